"""What the tests of every room share."""

pytest_plugins = ["servers"]
