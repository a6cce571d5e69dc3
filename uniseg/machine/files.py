"""Writing files so that no reader ever sees half of one, and the one-line text that refuses an unusable file."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .console import printable


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
    name = path.name if len(os.fsencode(path.name)) < 230 else path.name[:50]    # a file name has at most 255 bytes
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free / 2 ** 20
            what = f"disk full, {free:.0f} MiB free"
            raise FileError(one_line(path, what, "Make room, or write to another disk")) from error
        if isinstance(error, OSError):
            what = f"cannot be written: {error.strerror or error}"
            raise FileError(one_line(path, what, "Check the folder and its permissions")) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a renaming in the folder durable. Only POSIX systems can open a folder; elsewhere nothing is done."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
