"""A file of torch.save as plain values and tensors, whoever made it: both of torch's formats, and no third one.

    since torch 1.6   a zip file, stored without compression: NAME/data.pkl, and NAME/data/KEY for each storage
    before            five pickles one after the other (unpickling.py), then the storages

Everything that the file says about sizes is compared with the size of the file before memory is taken.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .unpickling import Machine, UnpicklingError

MOST_ENTRIES = 65_536              # of the zip file: one for each storage, and about ten more
MOST_PICKLE_BYTES = 64 << 20       # a checkpoint of 10,000 training cases has 6 MB
SHARING = 4                        # tensors may share storages, such as tied weights, but not multiply the file
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."     # the first of the five pickles: a magic number
DAMAGED = "Copy or download it again."


class FileRefused(Exception):
    """A weights file that cannot be used. The text says what is wrong and what to do, without the path."""


def read_torch_file(path: Path) -> Any:
    """The content of a file of torch.save. Raises FileRefused."""
    _refuse_irregular(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            _refuse_other_formats(path, start)
            if start.startswith(b"PK"):
                return _read_zip(file)
            if not start.startswith(LEGACY_START):
                raise UnpicklingError("it does not begin like a file of torch.save")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_legacy(data)
    except UnpicklingError as error:
        raise FileRefused(f"not a checkpoint that can be read safely ({error}). "
                          "Use a checkpoint written by uniseg.train.") from None
    except OSError as error:
        raise FileRefused(f"cannot be read: {error.strerror or error}. Check the file and its permissions.") from None


def _refuse_irregular(path: Path) -> None:
    """Raise FileRefused for what is not a regular file with something in it."""
    try:
        status = path.stat()
    except (OSError, ValueError):                             # missing, a loop of links, a name that holds NUL
        status = None
    if status is None or stat.S_ISDIR(status.st_mode):
        raise FileRefused("no such weights file. Give --weights a checkpoint of uniseg.train.")
    if not stat.S_ISREG(status.st_mode):
        raise FileRefused("not a regular file. Save the weights to a file first.")
    if not status.st_size:
        raise FileRefused(f"empty file. {DAMAGED}")


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise FileRefused for files that are often taken for weights."""
    if start.startswith(b"version https://git-lfs"):
        raise FileRefused("a git-lfs pointer, not the weights. Run `git lfs pull`.")
    if start.lstrip()[:1] == b"<":
        raise FileRefused("an HTML page, not weights (a failed download?). Download it again.")
    if path.suffix == ".safetensors" or start[8:10] in (b'{"', b"{ ", b"{}"):
        raise FileRefused("a safetensors file, which uniseg does not read. Convert it where safetensors is installed: "
                          "torch.save(safetensors.torch.load_file(FILE), 'weights.pt').")
    if start.startswith((b"\x89HDF", b"GGUF", b"\x08\x07\x12", b"\x1f\x8b", b"7z\xbc\xaf")):
        raise FileRefused("not a file of torch.save (Keras, GGUF, ONNX, or an archive?). Unpack it, or use a "
                          "checkpoint written by uniseg.train.")


# ------------------------------------------------------------------------------------------------- the zip format

def _read_zip(file: BinaryIO) -> Any:
    """The content of a zip file of torch.save."""
    entries = _entries(file)
    [top, *more] = {name.split("/")[0] for name in entries}
    if more or f"{top}/data.pkl" not in entries:
        raise UnpicklingError("a zip file without data.pkl in one folder")
    if f"{top}/constants.pkl" in entries:
        raise UnpicklingError("a TorchScript archive, which is a program; save its state_dict instead")
    swap = _record(file, entries, f"{top}/byteorder", 16, b"little").decode("ascii", "replace") != sys.byteorder
    buffers: dict[str, bytearray] = {}

    def open_storage(key: str, numel: int, itemsize: int) -> bytearray:
        info = entries.get(f"{top}/data/{key}")
        if info is None or info.file_size != numel * itemsize:
            found = "no record" if info is None else f"a record of {info.file_size:,}"
            raise UnpicklingError(f"a storage of {numel * itemsize:,} bytes, for which there is {found}")
        if key not in buffers:
            buffers[key] = _record(file, entries, info.filename, info.file_size)
            if swap:
                _swap_bytes(buffers[key], itemsize)
        return buffers[key]

    pickle = _record(file, entries, f"{top}/data.pkl", MOST_PICKLE_BYTES)
    return Machine(bytes(pickle), open_storage, SHARING * _size(file)).run()


def _entries(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """{name: entry} of a zip file whose entries are stored, and lie one behind the other."""
    count = _entry_count(file)
    if count is None:
        raise FileRefused(f"truncated. {DAMAGED}")
    if count > MOST_ENTRIES:
        raise UnpicklingError(f"a zip file of {count:,} entries")
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except Exception:                                         # zipfile raises many kinds for a damaged file
        raise FileRefused(f"damaged, its table of entries cannot be read. {DAMAGED}") from None
    names = {info.filename: info for info in infos}
    if len(names) != len(infos) or not infos:
        raise UnpicklingError("a zip file without entries, or with two of one name")
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in ordered[1:]] + [_size(file)]
    for info, end in zip(ordered, ends):
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise UnpicklingError("a compressed or encrypted zip file; torch.save stores its entries as they are")
        if info.header_offset + 30 + info.file_size > end:
            raise UnpicklingError("a zip file whose entries overlap")
    return names


def _entry_count(file: BinaryIO) -> int | None:
    """The number of entries that the end of a zip file states; None where the file does not end like a zip file."""
    size = _size(file)
    file.seek(max(0, size - 98))
    end = file.read(98)[-98:]
    if len(end) < 22 or end[-22:-18] != b"PK\5\6":
        return None
    count: int = struct.unpack("<H", end[-12:-10])[0]
    if count == 0xffff and end[-42:-38] == b"PK\6\7" and end[-98:-94] == b"PK\6\6":      # zip64
        count = struct.unpack("<Q", end[-66:-58])[0]
    return count


def _record(file: BinaryIO, entries: dict[str, zipfile.ZipInfo], name: str, most: int,
            default: bytes = b"") -> bytearray:
    """The bytes of an entry, whose checksum is right; `default` where there is no such entry."""
    info = entries.get(name)
    if info is None:
        return bytearray(default)
    if info.file_size > most:
        raise UnpicklingError(f"{name.partition('/')[2]} has {info.file_size:,} bytes, more than {most:,}")
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise FileRefused(f"damaged, the entry {name} is not where it should be. {DAMAGED}")
    file.seek(sum(struct.unpack("<HH", header[26:30])), os.SEEK_CUR)
    buffer = bytearray(info.file_size)
    if file.readinto(buffer) < len(buffer) or zlib.crc32(buffer) != info.CRC:      # type: ignore[attr-defined]
        raise FileRefused(f"damaged, a checksum does not match. {DAMAGED}")
    return buffer


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _swap_bytes(buffer: bytearray, itemsize: int) -> None:
    """Numbers of a machine of the other byte order, in place."""
    np.frombuffer(buffer, f"u{itemsize}").byteswap(inplace=True)


# ------------------------------------------------------------------------------------------- the format before 1.6

def _read_legacy(data: mmap.mmap) -> Any:
    """The content of a file of torch.save as it was before torch 1.6."""
    storages: dict[str, tuple[bytearray, int]] = {}                       # {key: (its buffer, bytes of a number)}
    left = len(data)

    def open_storage(key: str, numel: int, itemsize: int) -> bytearray:
        nonlocal left
        if key not in storages:
            left -= numel * itemsize
            if left < 0:
                raise UnpicklingError("its storages are larger than the file")
            storages[key] = bytearray(numel * itemsize), itemsize
        if len(storages[key][0]) != numel * itemsize:
            raise UnpicklingError("a storage of two sizes")
        return storages[key][0]

    machine = Machine(data, open_storage, SHARING * len(data))
    _, _, system, content, keys = (machine.run() for _ in range(5))
    if not isinstance(system, dict) or not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise UnpicklingError("its pickles are damaged")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise UnpicklingError("its list of storages is not that of its tensors")
    for key in keys:
        buffer, itemsize = storages[key]
        if machine.number("<q") * itemsize != len(buffer):
            raise UnpicklingError("a storage of another size than its tensors say")
        buffer[:] = machine.take(len(buffer))
        if system.get("little_endian", True) != (sys.byteorder == "little"):
            _swap_bytes(buffer, itemsize)
    return content
