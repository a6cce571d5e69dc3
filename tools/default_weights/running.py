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
    say(f"python -m {module} {' '.join(options)}")
    if clock.left_s() <= 0:
        return False
    process = subprocess.Popen([sys.executable, "-m", module, *options], start_new_session=True)
    try:
        code = process.wait(None if clock.end is None else clock.left_s())
    except subprocess.TimeoutExpired:
        end(process)
        return False
    except BaseException:
        end(process)
        raise
    if code in TERMINATED:
        return False
    if code:
        raise CommandFailed(f"python -m {module}: ended with exit code {code}. Its last lines say why; the same "
                            "command goes on from there.")
    return True


def end(process: subprocess.Popen) -> None:
    """SIGTERM to a command and all that it has started, SIGKILL to what is left after GRACE_S."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
