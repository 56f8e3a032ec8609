"""SIGINT and SIGTERM as a wish to stop: noted from the first line on, and granted at the next good moment."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

INTERRUPTED = 130
GRACE_SECONDS = 0.7  # from the second signal to the end of the process, whatever it is computing
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Noting:
    """A handler that notes signals and raises KeyboardInterrupt; what swallows that does not swallow the note."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.is_watched = False  # whether a note is to end the command

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.noted.append(number)
        raise KeyboardInterrupt


def quiet_start() -> None:
    """Ends a script without a traceback, if Ctrl-C comes while it is still importing; signals are noted from here on.

    Does nothing in an interactive session, in another thread than the main one, or where somebody handles SIGINT.
    """
    is_main = threading.current_thread() is threading.main_thread()
    is_interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    if is_interactive or not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _Noting())
    others, ignored = sys.excepthook, sys.unraisablehook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
        else:
            others(kind, error, trace)

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):  # it is noted
            ignored(unraisable)

    sys.excepthook, sys.unraisablehook = hook, swallowed


@contextmanager
def watched(say: Callable[[str], None]) -> Iterator[None]:
    """A context for a whole command: SIGINT and SIGTERM raise KeyboardInterrupt, and are noted for `deferred`.

    A second signal ends the process within a second, also while XLA compiles and Python's handlers have to wait:
    then at once, without cleaning up; what is saved stays whole. A signal that was noted since `quiet_start`, but
    swallowed, counts as the first.

    Args:
      say: called with a sentence before the process ends so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)
    handler = earlier if isinstance(earlier, _Noting) else _Noting()
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    former = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, handler, say), daemon=True).start()
    handler.is_watched = True
    try:
        if handler.noted:
            raise KeyboardInterrupt
        yield
    finally:
        handler.is_watched = False
        signal.set_wakeup_fd(former)
        for number, each in before.items():
            signal.signal(number, each)
        with contextlib.suppress(OSError):
            theirs.close()


def _watch(numbers: socket.socket, handler: _Noting, say: Callable[[str], None]) -> None:
    """Reads the number of each signal, which the C handler writes at once, until the context is left.

    As long as the first was swallowed, it is sent again; a second ends the process.
    """
    main = threading.main_thread().ident or 0
    count, num_sent = len(handler.noted), 0
    with numbers:
        while count < 2:
            numbers.settimeout(GRACE_SECONDS if count and signal.getsignal(signal.SIGINT) is handler else None)
            try:
                received = numbers.recv(1)
            except TimeoutError:
                num_sent += 1
                signal.pthread_kill(main, signal.SIGINT)
                continue
            if not received:
                return
            is_sent, num_sent = num_sent > 0, max(num_sent - 1, 0)
            count += received[0] in _SIGNALS and not is_sent
        numbers.settimeout(GRACE_SECONDS)
        with contextlib.suppress(TimeoutError):
            while numbers.recv(1):
                pass
            return  # the context was left in time
    say("stopped at once; what was saved until then is whole, and the same command goes on from there")
    sys.stdout.flush()
    os._exit(INTERRUPTED)


@contextmanager
def deferred(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """A context in which the first SIGINT or SIGTERM is noted and the second raises KeyboardInterrupt.

    Yields a function that tells whether one came. In a thread that is not the main one signals cannot be handled;
    there it always says no.

    Args:
      say: called once with a sentence when the first signal comes.

    Raises:
      KeyboardInterrupt: at once, where a signal came before, in a `watched` context, and something swallowed it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    earlier = signal.getsignal(signal.SIGINT)
    if isinstance(earlier, _Noting) and earlier.is_watched and earlier.noted:
        raise KeyboardInterrupt
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
