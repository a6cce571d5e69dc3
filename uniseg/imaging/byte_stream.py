"""The bytes of a file, compressed or not, read without trusting anything that the file says about itself."""

import io
import os
import stat
import zlib
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from ..machine.files import FileError, one_line
from .file_names import similar_name

DEFLATE_RATIO = 1032           # deflate cannot expand a byte to more than 1032 bytes (zlib's technical details)
MAX_PADDING = 1 << 20          # zeros between or behind gzip members: tapes and block devices pad with less
FREE_MEMBERS, MEMBER_BYTES = 1000, 1024    # more gzip members than this have on average at least so many bytes each
DAMAGED = "Copy or download the file again"


class VolumeError(FileError):
    """A file that is not a usable volume. The text is one line for the user: which file, what is wrong, what to do."""


def refuse(path: str | Path, what: str, remedy: str) -> NoReturn:
    """Raise VolumeError with the line `<path>: <what>. <remedy>.`"""
    raise VolumeError(one_line(path, what, remedy))


class ByteStream:
    """The bytes of a file, decompressed when its content (not its name) is gzip. A context manager.

    `read` returns at most the number of bytes asked for, so that memory never depends on what a header promises.
    Reading to the end checks the CRC and the length of every gzip member. gzip.GzipFile is not used because it raises
    an error for bytes behind the last member, which many files have and which lose nothing when the CRC is right.
    """

    def __init__(self, path: Path, notes: list[str]) -> None:
        """Open the file. Warnings are appended to `notes`. Raises VolumeError for what is not a regular file."""
        self.path, self.notes = path, notes
        self.file = _open_regular(path)
        self.opened = os.fstat(self.file.fileno())
        self.size = self.opened.st_size                       # on disk
        self.head = self.file.read(512)
        self.file.seek(0)
        self.compressed = self.head[:2] == b"\x1f\x8b"
        self.delivered = 0                                    # decompressed bytes that `read` has returned
        self.inflate = zlib.decompressobj(wbits=31)           # 31: one gzip member with its CRC
        self.pending = b""                                    # read from the file, not yet given to the decompressor
        self.members, self.inflated = 1, 0                    # gzip members so far, and the bytes that they gave
        self.ended = False

    def __enter__(self) -> "ByteStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end of the data.

        Raises VolumeError for a damaged stream, EOFError where the file ends inside a gzip member.
        """
        try:
            data = self._inflate(size) if self.compressed else self.file.read(size)
        except OSError as error:
            refuse(self.path, f"cannot be read: {error.strerror}", "Check the disk or the network share")
        self.delivered += len(data)
        return data

    def changed(self) -> bool:
        """Whether the file was written to since it was opened."""
        now = os.fstat(self.file.fileno())
        return (now.st_size, now.st_mtime_ns) != (self.opened.st_size, self.opened.st_mtime_ns)

    def _inflate(self, size: int) -> bytes:
        parts = []
        while size > 0 and not self.ended:
            if self.inflate.eof:
                self._next_member()
                continue
            data = self.inflate.unconsumed_tail or self.pending or self.file.read(1 << 18)
            self.pending = b""
            try:
                part = self.inflate.decompress(data, size)
            except zlib.error as error:
                what = "CRC mismatch" if "data check" in str(error) else "corrupt gzip stream"
                refuse(self.path, f"{what}, the file is damaged ({error})", DAMAGED)
            if not data and not part:
                raise EOFError                                # inside a member; the caller knows what is missing
            parts.append(part)
            size -= len(part)
            self.inflated += len(part)
        return b"".join(parts)

    def _next_member(self) -> None:
        """Continue with the next gzip member (bgzip and pigz write several). Zeros between members are padding."""
        self.members += 1
        if self.members > FREE_MEMBERS + self.inflated // MEMBER_BYTES:
            refuse(self.path, f"cut into more than {self.members - 1:,} gzip members of a few bytes each", DAMAGED)
        rest = self.inflate.unused_data.lstrip(b"\0")
        padding = 0
        while len(rest) < 2 and padding < MAX_PADDING and (more := self.file.read(1 << 18)):
            rest, padding = (rest + more).lstrip(b"\0"), padding + len(more)
        if rest[:2] == b"\x1f\x8b":
            self.inflate, self.pending = zlib.decompressobj(wbits=31), rest
            return
        self.ended = True
        if rest or padding >= MAX_PADDING:
            self.notes.append("bytes that are not gzip follow the compressed data; they are ignored")


def _open_regular(path: Path) -> io.BufferedReader:
    """Open a regular, non-empty file for reading. Raises VolumeError that says why it cannot be opened."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return open(path, "rb")
    except FileNotFoundError:
        refuse(path, "no such file", _suggest_name(path))
    except PermissionError:
        refuse(path, "permission denied", "Make the file readable for this user")
    except (OSError, ValueError) as error:                    # a loop of links, a name that is too long or holds NUL
        refuse(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}", "Check the path")
    if stat.S_ISDIR(status.st_mode):
        refuse(path, "is a folder", "Give a .nii.gz file; a DICOM folder is converted first, for example by dcm2niix")
    if not stat.S_ISREG(status.st_mode):
        refuse(path, "not a regular file", "Save the CT to a .nii.gz file first")
    refuse(path, "empty file", DAMAGED)


def _suggest_name(path: Path) -> str:
    """What to do about a file that does not exist."""
    if path.is_symlink():
        return "It is a symbolic link to a file that does not exist"
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either"
    close = similar_name(path.name, os.listdir(path.parent))
    return f"Did you mean '{close}'?" if close else "Check the path"
