"""The command line."""


def main() -> None:
    """Entry point of the `roundhouse` command."""
    from cli.main import main as run

    run()
