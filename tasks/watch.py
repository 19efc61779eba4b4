"""Who listens to the stages of this process: the terminal's progress display, or nobody."""

from tasks.launch import Event
from tasks.stage import Listener

_listeners: list[Listener] = []


def listen_with(listen: Listener) -> None:
    """Add a listener for every stage of every run in this process."""
    _listeners.append(listen)


def listener() -> Listener:
    """One listener that tells all."""

    def tell(label: str, event: Event) -> None:
        for listen in _listeners:
            listen(label, event)

    return tell
