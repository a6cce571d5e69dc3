"""Writing files so that no reader ever sees half of one, and the one-line refusal of a file that cannot be used."""

import contextlib
import errno
import os
import shutil
from pathlib import Path


class FileError(ValueError):
    """A file that cannot be used or written; the text is one line for the user: what, which file, what to do."""


def one_line(path, what, remedy):
    """`<path>: <what>. <remedy>.`; control characters of a file name do not break the line."""
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
    return f"{name}: {what}. {remedy}" + ("" if remedy.endswith("?") else ".")


@contextlib.contextmanager
def atomic_write(path, keep=None):
    """Give a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    A reader, or a rerun after a crash, sees the old file or the complete new one, never a part.
    keep: path that the former file takes; between the two renamings `path` is missing and `keep` complete.
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
            raise FileError(one_line(path, f"disk full, {free:.0f} MiB free", "Make room, or write to another disk")) from error
        if isinstance(error, OSError):
            what = f"cannot be written: {error.strerror or error}"
            raise FileError(one_line(path, what, "Check the folder and its permissions")) from error
        raise


def _sync_folder(folder):
    """Make the new name durable; only POSIX systems can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
