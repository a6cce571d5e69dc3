"""SIGTERM and Ctrl-C: a training ends after its step, not within it."""

import contextlib
import signal
import time


def threading_is_main():
    """Signals can be set in the main thread only (the tests and notebooks may call main elsewhere)."""
    import threading

    return threading.current_thread() is threading.main_thread()


class Stopped(Exception):
    """A signal came within a validation, which ends without a result."""


@contextlib.contextmanager
def signals_noted():
    """A list to which SIGTERM and SIGINT are appended; so a step ends before the process does.

    A second Ctrl-C ends it at once. torchrun passes on a signal that its processes may have had from the terminal or the
    scheduler as well, hence "second" means a second later.
    """
    noted, first = [], []

    def note(number, _):
        noted.append(number)
        first.append(time.monotonic())
        if number == signal.SIGINT and first[-1] - first[0] > 1:
            raise KeyboardInterrupt
    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_signals_to_main(worker):
    """A scheduler signals every process of a job; the one that trains still needs its workers to end its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
