"""SIGINT and SIGTERM as a wish to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """A context in which the first SIGINT or SIGTERM is noted and the second raises KeyboardInterrupt.

    Yields a function that tells whether one came. In a thread that is not the main one signals cannot be handled;
    there it always says no.

    Args:
      say: called once with a sentence when the first signal comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        say("stopping after this segment; once more stops at once")

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
