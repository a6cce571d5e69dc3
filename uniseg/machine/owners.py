"""Which process a file belongs to, and whether that process may still be at work.

A lock and a temporary file name the process that wrote them, so that what a killed process left can be told from what
a living one is writing. A process number alone is not enough: it is used again, in containers at once. The time at
which the process started goes with it.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """A process on a host."""

    host: str
    pid: int
    start: int = 0             # clock ticks from the start of the system to that of the process; 0: not known

    def may_run(self) -> bool:
        """False only where the process has surely ended. Nobody knows that of a process on another host."""
        if self.host != this_host() or os.name == "nt":              # on Windows, signal 0 is Ctrl-C
            return True
        if self.pid == os.getpid():
            return self.start == started(self.pid) != 0              # else a former process had the same number
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:                                      # it belongs to somebody else
            pass
        state, start = _status(self.pid)
        return state not in ("Z", "X") and (not self.start or not start or self.start == start)


def this_process() -> Owner:
    """The Owner of what this process writes."""
    return Owner(this_host(), os.getpid(), started(os.getpid()))


def this_host() -> str:
    """The name of this machine in letters, digits and _, at most 20 of them, so that it fits into a file name.

    >>> set(this_host()) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
    set()
    """
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:20] or "_"


def started(pid: int) -> int:
    """When a process started, in clock ticks since the system did; 0 where the system does not tell."""
    return _status(pid)[1]


def _status(pid: int) -> tuple[str, int]:
    """(state, start) of a process from Linux's /proc: fields 3 and 22 of proc(5), behind the name in parentheses."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", 0
