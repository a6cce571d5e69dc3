"""SIGTERM and Ctrl-C: a training finishes its step before it ends."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


def in_main_thread() -> bool:
    """Whether signal handlers can be set here. Python allows it in the main thread only; notebooks may use another."""
    return threading.current_thread() is threading.main_thread()


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
