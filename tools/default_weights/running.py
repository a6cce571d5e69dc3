"""Commands run one after another against a clock: what a stage starts ends in time, and leaves what it has.

Beyond the paper. On a machine that is lent for a quarter of an hour nothing is worth more than what has come back from
it in time. So every command runs in a session of its own, gets SIGTERM at its deadline, on which `uniseg.train` saves
its checkpoint, and SIGKILL a little later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from uniseg.machine.console import say

GRACE_S = 25.0                    # from SIGTERM to SIGKILL: a checkpoint takes a second or two
POLL_S = 0.1
TERMINATED = (128 + signal.SIGTERM, -signal.SIGTERM)


class CommandFailed(RuntimeError):
    """A command that ended by itself with an error."""


class Ended(Exception):
    """This process has received SIGTERM or Ctrl-C."""


class Clock:
    """The time that is left of a number of minutes; None: there is no end."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def left_s(self) -> float:
        """Seconds that are left, infinite without an end."""
        return float("inf") if self.end is None else self.end - time.monotonic()

    def share(self, part: float, of: float) -> "Clock":
        """A clock for `part` of `of` equal parts of what is left."""
        return Clock(None if self.end is None else max(self.left_s(), 0.0) / 60 * part / of)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM and Ctrl-C raise Ended, so that the running command is ended in order."""
    def end(number: int, frame: Any) -> None:
        raise Ended
    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def call(module: str, options: Sequence[str], clock: Clock) -> bool:
    """Run `python -m MODULE OPTIONS`; returns whether it came to its own end before the clock's.

    Raises CommandFailed where it ends with an error, and Ended, after ending it, where this process is to end.
    """
    return call_all([(module, options)], clock)[0]


def call_all(commands: Sequence[tuple[str, Sequence[str]]], clock: Clock) -> list[bool]:
    """The same for several commands at once. Where one fails, the others are ended."""
    if clock.left_s() <= 0:
        return [False] * len(commands)
    processes: list[subprocess.Popen] = []
    try:
        for module, options in commands:
            say(f"python -m {module} {' '.join(options)}")
            processes.append(subprocess.Popen([sys.executable, "-m", module, *options], start_new_session=True))
        while any(process.poll() is None for process in processes) and clock.left_s() > 0:
            _refuse_failed(processes, commands)
            time.sleep(POLL_S)
    finally:
        end([process for process in processes if process.poll() is None])
    _refuse_failed(processes, commands)
    return [process.returncode == 0 for process in processes]


def _refuse_failed(processes: Sequence[subprocess.Popen], commands: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise CommandFailed for a command that has ended by itself with an error."""
    for process, (module, _) in zip(processes, commands):
        if process.poll() not in (None, 0, *TERMINATED, -signal.SIGKILL):
            raise CommandFailed(f"python -m {module}: ended with exit code {process.returncode}. Its last lines say "
                                "why; the same command goes on from there.")


def end(processes: Sequence[subprocess.Popen]) -> None:
    """SIGTERM to commands and all that they have started, SIGKILL to what is left after GRACE_S."""
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        until = time.monotonic() + grace_s
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
