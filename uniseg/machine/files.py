"""Writing files so that no reader ever sees half of one, and the one-line text that refuses an unusable file.

A file is written under a temporary name, `.NAME.HOST-START.PID.tmp`, which says which process writes it. What a killed
process left is removed by the next one that writes into the folder.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from .console import printable
from .owners import Owner, this_process

# A temporary of this version; those of earlier ones have no host and no start.
TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<host>[A-Za-z0-9_]{1,20})-(?P<start>\d+))?\.(?P<pid>\d{1,10})\.tmp",
                       re.DOTALL)


class FileError(ValueError):
    """A file that cannot be read or written. The text is one line for the user: which file, what, what to do."""


def one_line(path: str | Path, what: str, remedy: str) -> str:
    """`<path>: <what>. <remedy>.` Control characters in the file's name are escaped, so that it stays one line."""
    return f"{printable(str(path))}: {what}. {remedy}" + ("" if remedy.endswith("?") else ".")


@contextlib.contextmanager
def atomic_write(path: str | Path, keep: Path | None = None) -> Iterator[Path]:
    """Context that gives a temporary path beside `path`. It is renamed to `path` if the block succeeds, else removed.

    A reader, or a rerun after a crash, sees the old file or the complete new one, never a part.

    keep:   the former file is renamed to this path. Between the two renamings `path` is missing and `keep` is complete.
    raises: FileError when the disk is full or the folder cannot be written
    """
    path = Path(path)
    temporary = temporary_beside(path)
    with refused_in_one_line(path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def refused_in_one_line(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a FileError about `path`: a full disk, or what else keeps it from writing."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free / 2 ** 20
            what = f"disk full, {free:.0f} MiB free"
            raise FileError(one_line(path, what, "Make room, or write to another disk")) from error
        what = f"cannot be written: {error.strerror or error}"
        raise FileError(one_line(path, what, "Check the folder and its permissions")) from error


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes what becomes `path`. It begins with a dot, so that no folder lists it.

    With the first name in a folder, what killed processes of this host left in it is removed.
    """
    _sweep_once(path.parent.absolute())
    name = path.name if len(os.fsencode(path.name)) < 200 else path.name[:50]    # a file name has at most 255 bytes
    host, pid, start = this_process()
    return path.with_name(f".{name}.{host}-{start}.{pid}.tmp")


@functools.lru_cache(maxsize=4096)
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def sweep(folder: Path, names: Collection[str] | None = None, ours: bool = False) -> None:
    """Remove the temporaries, files or folders, of processes that have ended. What cannot be removed stays.

    names: only those of these files; then those of earlier versions count as well, whose names have the process alone
    ours:  nobody else can be writing here, because the caller holds the folder's lock: those of other hosts and of
           earlier versions count as well

    A name that does not have exactly the form of a temporary is the user's and stays.
    """
    with contextlib.suppress(OSError):
        for entry in [f for f in os.scandir(folder) if f.name.startswith(".") and f.name.endswith(".tmp")]:
            form = TEMPORARY.fullmatch(entry.name)
            if form and (names is None or form["name"] in names) and _is_left_over(form, names is not None, ours):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def _is_left_over(form: re.Match[str], named: bool, ours: bool) -> bool:
    """Whether nobody writes the temporary of this name any more; named, ours: see sweep."""
    me, pid = this_process(), int(form["pid"])
    if form["host"] is None:
        return (named or ours) and not Owner(me.host, pid).may_run()
    owner = Owner(form["host"], pid, int(form["start"]))
    return owner != me and (ours or not owner.may_run())


def sync_folder(folder: Path) -> None:
    """Make a renaming in the folder durable. Only POSIX systems can open a folder; elsewhere nothing is done."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_stamp(path: str | Path) -> tuple[int, int] | None:
    """(bytes, time of the last change) of a file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
