"""Two processes, one folder: a lock for as long as a run works, and a turn for as long as a result is written."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from .files import FileError, one_line
from .owners import Owner, this_host, this_process

try:
    import fcntl
except ImportError:                                                  # Windows
    fcntl = None                                                     # type: ignore[assignment]

LONGEST_TURN = 60.0                # seconds after which a process waits no longer for its turn


@contextlib.contextmanager
def held(path: Path, doing: str, option: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The lock of a process that has surely ended is replaced.

    path:   a text file "NUMBER HOST START" of the process that holds it
    doing:  what that process does, for the message: "trains in this folder"
    option: that names another folder: "--out"
    Raises FileError where another process holds it, or may hold it: on another host nobody can tell.
    """
    _take(path, doing, option)
    try:
        yield
    finally:
        if holder(path) == this_process():
            path.unlink(missing_ok=True)


def _take(path: Path, doing: str, option: str) -> None:
    me = this_process()
    with turn(path.parent):        # or two processes could both find a dead lock, and one remove that of the other
        former = holder(path)
        if former is not None and not former.may_run():
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            raise FileError(one_line(path, *_refusal(path, doing, option))) from None
        except OSError as error:
            what = f"cannot be written: {error.strerror}"
            raise FileError(one_line(path, what, "Check the folder and its permissions")) from None
        try:
            os.write(handle, f"{me.pid} {platform.node()} {me.start}".encode())
        finally:
            os.close(handle)


def _refusal(path: Path, doing: str, option: str) -> tuple[str, str]:
    """(what is wrong, what to do) where the lock exists."""
    try:
        number, host = path.read_text(errors="replace").split()[:2]
    except (OSError, ValueError):                                    # just being written, or its writer was killed
        return ("another run has just started in this folder",
                f"Give another {option}; if no run works here, remove this file")
    return (f"process {number} on {host} {doing}",
            f"Wait for it or give another {option}; if it runs no more, remove this file")


def holder(path: Path) -> Owner | None:
    """The process that a lock file names; None where there is no lock, or one that nobody can read."""
    try:
        number, host, *start = path.read_text(errors="replace").split()
        ours = host == platform.node()
        return Owner(this_host() if ours else f"other:{host}", int(number), int(start[0]) if start else 0)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def turn(folder: Path, longest: float = LONGEST_TURN) -> Iterator[bool]:
    """Run the block while no other process is in such a block for this folder; gives whether that is sure.

    The turn is a lock of the system on the folder itself (flock). It leaves no file, and it ends with the process,
    however that ends. Where the disk or the system has none, or another program holds it longer than `longest`
    seconds, the block runs all the same: what it writes must not rely on the turn alone.
    """
    handle = None
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle is not None and _wait_for_turn(handle, longest)
    finally:
        if handle is not None:
            os.close(handle)


def _wait_for_turn(handle: int, longest: float) -> bool:
    """Whether the turn has come within `longest` seconds. False at once where there is no flock."""
    if fcntl is None:
        return False
    end = time.monotonic() + longest
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        except OSError:
            return False
