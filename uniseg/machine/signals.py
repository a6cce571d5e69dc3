"""SIGTERM and Ctrl-C: an inference ends at once, a training finishes its step first."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType


def in_main_thread() -> bool:
    """Whether signal handlers can be set here. Python allows it in the main thread only; notebooks may use another."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def ends_at_signals() -> Iterator[None]:
    """Context in which SIGTERM ends the process with exit code 143, after cleaning up, and Ctrl-C with 130.

    Ctrl-C raises KeyboardInterrupt. A second one does not wait for the cleaning up: the process ends where it is, and
    what it was writing stays as a temporary file, which the next run removes. Where Ctrl-C is ignored, as in a job
    that a shell started in the background, it stays ignored.
    """
    if not in_main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    former = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        former[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    yield
    for number, handler in former.items():               # after an exception they stay: the process is ending
        signal.signal(number, handler)


class Stopped(Exception):
    """A signal arrived during a validation, which therefore ends without a result."""


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Context in which SIGTERM and SIGINT are appended to a list, so that the training can finish its step first.

    A second Ctrl-C ends the process at once. torchrun forwards signals that its processes may already have received
    from the terminal or the scheduler, so a "second" one is one that arrives more than a second after the first.
    """
    noted: list[int] = []
    times: list[float] = []

    def take_note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        times.append(time.monotonic())
        if number == signal.SIGINT and times[-1] - times[0] > 1:
            raise KeyboardInterrupt
    former = {number: signal.signal(number, take_note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_signals_to_main(worker: int) -> None:
    """Make a DataLoader worker ignore SIGTERM and SIGINT (its `worker_init_fn`; `worker` is its number).

    A scheduler signals every process of a job, and the training process still needs its workers to finish its step.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
