"""NIfTI files as bytes: a reader that trusts no header, and a writer that never leaves half a file.

nibabel interprets the header. The voxels are read here, because a CT that comes from elsewhere may be truncated,
corrupt or hostile, and `nibabel.load` accepts several of these faults silently (a gzip file with a wrong checksum, for
example). A file that cannot be used raises VolumeError with one line, `<path>: <what>. <what to do>.` Header extensions
are bytes here, which nothing parses; formats/label_table.py knows those of label maps. Callers use volume.py, which
knows what the voxels mean. Read byte_stream.py first.
"""

import contextlib
import gzip
import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np
from nibabel.nifti1 import xform_codes
from nibabel.spatialimages import HeaderDataError

from ..machine.files import atomic_write
from .byte_stream import DAMAGED, DEFLATE_RATIO, ByteStream, refuse
from .other_formats import DICOM, format_of, remedy

BLOCK_BYTES = 4 << 20          # voxels are read and written in blocks of this size; a multiple of every itemsize
SLACK_BYTES = 64               # zero bytes tolerated behind the voxels: some writers pad
MAX_OFFSET = 64 << 20          # header extensions larger than this are not those of a CT
MAX_EXTENSIONS = 1000
MAX_AXIS = 32_767              # voxels along one axis: what NIfTI-1 can state; NIfTI-2 can state more
MM_PER_UNIT = {1: 1000.0, 3: 0.001}   # NIFTI_UNITS_METER, NIFTI_UNITS_MICRON


# --------------------------------------------------------------------------------------------------- reading

def read_nifti(path: str | Path, max_voxels: int,
               labels: bool = False) -> tuple[np.ndarray, tuple[int, int, int], nib.Nifti1Header, list[str]]:
    """Read a NIfTI-1 or NIfTI-2 file (.nii, .nii.gz, .hdr/.img).

    returns: voxels  (X * Y * Z,) as stored, Fortran order, native byte order; 64-bit types as float32
             shape   (X, Y, Z)
             header  nibabel's header
             notes   list of warnings
    labels: whether a label map is expected; the messages differ
    Raises VolumeError for a file that cannot be used, or that has more than `max_voxels` voxels.
    """
    notes: list[str] = []
    with _at_the_voxels(path, max_voxels, labels, notes) as (data, shape, dtype, header):
        return _read_payload(data, math.prod(shape), dtype), shape, header, notes


def read_planes(path: str | Path, max_voxels: int) -> Iterator[tuple[np.ndarray, nib.Nifti1Header]]:
    """Yield (a few planes (X, Y, n) as stored, header) from the first plane to the last: a file in little memory.

    Raises VolumeError, for a damaged file when the damage is met.
    """
    with _at_the_voxels(path, max_voxels, False, []) as (data, shape, dtype, header):
        plane = shape[0] * shape[1] * dtype.itemsize
        for block in _payload(data, math.prod(shape) * dtype.itemsize, plane * max(1, BLOCK_BYTES // plane)):
            yield np.frombuffer(block, dtype).reshape((*shape[:2], -1), order="F"), header


def read_extensions(path: str | Path) -> tuple[nib.Nifti1Header, list[bytes]]:
    """The header of a NIfTI file and the contents of its extensions, without the voxels; a pair of files has none here.

    Raises VolumeError for a file whose beginning cannot be used.
    """
    with ByteStream(Path(path), []) as stream:
        header, single = _parse_header(stream)
        return header, _extensions(stream, _vox_offset(header, single, Path(path)), header) if single else []


@contextlib.contextmanager
def _at_the_voxels(path: str | Path, max_voxels: int, labels: bool, notes: list[str]
                   ) -> Iterator[tuple[ByteStream, tuple[int, int, int], np.dtype, nib.Nifti1Header]]:
    """The file, checked and read up to its first voxel: (stream, (X, Y, Z), type as stored, header)."""
    path = Path(path)
    if path.name.lower().endswith((".img", ".img.gz")):
        path = _pair_member(path, ".hdr")
    with ByteStream(path, notes) as stream:
        header, single = _parse_header(stream)
        _repair_codes(header, notes)
        shape = grid_shape(header["dim"], path, labels)
        dtype = _stored_dtype(header, path)
        offset = _vox_offset(header, single, path)
        with contextlib.nullcontext(stream) if single else ByteStream(_pair_member(path, ".img"), notes) as data:
            _note_name(data)
            _check_promise(data, shape, dtype, offset, max_voxels)
            _extensions(data, offset, header)
            yield data, shape, dtype, header


def _pair_member(path: Path, suffix: str) -> Path:
    """The other file of a .hdr/.img pair, compressed or not."""
    name = path.name.removesuffix(".gz")
    candidates = [path.with_name(name[:-4] + suffix + gz) for gz in ("", ".gz")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    refuse(path, f"is one half of a .hdr/.img pair and {candidates[0].name} is missing", "Put both files in one folder")


def _note_name(stream: ByteStream) -> None:
    """Warn where the file's name disagrees with its content about compression."""
    named_gz = stream.path.name.lower().endswith(".gz")
    if named_gz != stream.compressed:
        stream.notes.append("named .gz but not compressed" if named_gz else
                            "compressed although its name does not end in .gz")


def _parse_header(stream: ByteStream) -> tuple[nib.Nifti1Header, bool]:
    """nibabel's header of the first bytes, unrepaired, and whether the voxels are in the same file."""
    path, head = stream.path, stream.head
    if head.startswith(b"version https://git-lfs"):
        refuse(path, "git-lfs pointer, not the file itself", "Run git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        start = head.lstrip()[:9].decode("ascii", "replace")
        refuse(path, f"not gzip and not NIfTI; starts with '{start}' (a failed download?)", "Download the file again")
    if format_of(head) == DICOM:
        refuse(path, DICOM, remedy(path, DICOM))
    try:
        block = stream.read(348)
        for size, kind in ((348, nib.Nifti1Header), (540, nib.Nifti2Header)):
            for endian in "<>":
                if block[:4] == struct.pack(endian + "i", size):
                    block += stream.read(size - 348)
                    if len(block) == size:
                        header = kind(block, endianness=endian, check=False)
                        magic = bytes(header["magic"].item())[:3]
                        if magic in (b"n+1", b"n+2", b"ni1", b"ni2"):
                            return header, magic[1:2] == b"+"
    except EOFError:
        refuse(path, "truncated inside the header", DAMAGED)
    if name := format_of(head) or format_of(block):
        refuse(path, f"{name}, not NIfTI", remedy(path, name))
    if len(block) < 348:
        refuse(path, f"not NIfTI: {len(block)} bytes, and a header has 348", DAMAGED)
    refuse(path, f"not NIfTI; starts with {block[:8]!r}", "Convert the CT to .nii.gz")


def _repair_codes(header: nib.Nifti1Header, notes: list[str]) -> None:
    """Read unknown sform and qform codes as "not set", as nibabel does."""
    for field in ("qform_code", "sform_code"):
        if int(header[field]) not in xform_codes.value_set("code"):
            notes.append(f"{field} {int(header[field])} in the header is unknown; it is read as 0")
            header[field] = 0


def grid_shape(dim: Sequence[int], path: str | Path, labels: bool = False) -> tuple[int, int, int]:
    """(X, Y, Z) of the header's dim field [n, X, Y, Z, T, ...]. A single time point is squeezed.

    labels: whether a label map is expected

    Raises VolumeError for what is not one 3-D volume.
    """
    ndim, dims = int(dim[0]), [int(n) for n in dim[1:]]
    shape = dims[:ndim] if 1 <= ndim <= 7 else []
    if not shape or min(shape) < 1:
        refuse(path, f"bad dimensions in the header: {[ndim, *dims]}", DAMAGED)
    if ndim < 3:
        refuse(path, f"{ndim}-D; need a 3-D CT", "Stack the slices into one volume first")
    if labels and math.prod(shape[3:]) > 1:
        refuse(path, f"{ndim}-D, shape {tuple(shape)}; need a 3-D label map",
               "If each channel is the mask of a class, write the number of the class into the voxels of one 3-D map")
    if math.prod(shape[4:]) > 1:
        refuse(path, f"{ndim}-D, shape {tuple(shape)}; need a 3-D CT", "Save one volume with three axes first")
    if math.prod(shape[3:]) > 1:
        refuse(path, f"4-D, shape {tuple(shape)}; need a 3-D CT",
               "Save one volume first: nib.save(img.slicer[..., 0], 'one.nii.gz')")
    return shape[0], shape[1], shape[2]


def _stored_dtype(header: nib.Nifti1Header, path: Path) -> np.dtype:
    """The number type of the voxels in the file. Raises VolumeError for colours and complex numbers."""
    code = int(header["datatype"])
    if code in (128, 2304):
        refuse(path, "RGB image (a screenshot export?)", "Export the CT itself, in Hounsfield units")
    if code in (32, 1792, 2048):
        refuse(path, "complex voxels; need a CT in Hounsfield units", "Export the CT itself")
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind not in "iuf":
        refuse(path, f"unknown voxel type (NIfTI datatype {code})", "Save the CT as int16")
    return dtype


def _vox_offset(header: nib.Nifti1Header, single: bool, path: Path) -> int:
    """The byte at which the voxels start."""
    offset, least = float(header["vox_offset"]), header.sizeof_hdr + 4 if single else 0
    if not (least <= offset <= MAX_OFFSET and offset.is_integer()):
        refuse(path, f"bad vox_offset {offset:g} in the header", DAMAGED)
    return int(offset)


def _check_promise(stream: ByteStream, shape: tuple[int, int, int], dtype: np.dtype, offset: int,
                   max_voxels: int) -> None:
    """Compare what the header promises with what the file can hold, before anything is allocated."""
    voxels = math.prod(shape)                                 # Python integers: no overflow
    promised = offset + voxels * dtype.itemsize
    grid = " x ".join(map(str, shape))
    if stream.compressed and promised > DEFLATE_RATIO * stream.size + SLACK_BYTES:
        refuse(stream.path, f"the header promises {promised:,} bytes ({grid}), more than {stream.size:,} compressed "
               "bytes can hold", DAMAGED)
    if not stream.compressed and stream.size < promised:
        refuse(stream.path, f"truncated: expected {promised:,} bytes ({grid}), got {stream.size:,}", DAMAGED)
    if not stream.compressed and stream.size > promised + SLACK_BYTES:
        _refuse_surplus(stream, promised)
    if max(shape) > MAX_AXIS:
        refuse(stream.path, f"{grid} voxels; no axis of a CT has more than {MAX_AXIS:,}", "Cut it into shorter volumes")
    if voxels > max_voxels:
        refuse(stream.path, f"{voxels:,} voxels ({grid}), more than the limit of {int(max_voxels):,}",
               "Crop it or resample it to larger voxels; infer also takes a higher limit, --max-voxels")


def _refuse_surplus(stream: ByteStream, promised: int) -> NoReturn:
    refuse(stream.path, f"more data than declared: the header stands for {promised:,} bytes",
           "The header is wrong; save the CT again with the program that made it")


def _extensions(stream: ByteStream, offset: int, header: nib.Nifti1Header) -> list[bytes]:
    """Read up to the voxels; the contents of the extensions. One that does not fit before the voxels is refused."""
    try:
        skipped = stream.read(offset - stream.delivered)
    except EOFError:
        skipped = b""
    if stream.delivered < offset:
        refuse(stream.path, f"truncated: the voxels start at byte {offset:,}, the file ends before", DAMAGED)
    at = 4 if skipped[:1].strip(b"\0") else len(skipped)      # the first of 4 bytes says whether extensions follow
    found: list[bytes] = []
    while at + 8 <= len(skipped):
        size, = struct.unpack_from(header.endianness + "i", skipped, at)
        if size == 0:
            break
        if size < 8 or at + size > len(skipped):
            refuse(stream.path, f"header extension of {size:,} bytes does not fit before the voxels", DAMAGED)
        if len(found) == MAX_EXTENSIONS:
            refuse(stream.path, f"more than {MAX_EXTENSIONS:,} header extensions", "Save the CT again without them")
        found.append(skipped[at + 8:at + size])
        at += size
    return found


def _read_payload(stream: ByteStream, voxels: int, dtype: np.dtype) -> np.ndarray:
    """All voxels: memory grows with the bytes that arrive."""
    kept = np.dtype(np.float32) if dtype.itemsize >= 8 else dtype.newbyteorder("=")
    buffer = bytearray()
    for block in _payload(stream, voxels * dtype.itemsize, BLOCK_BYTES):
        with np.errstate(over="ignore"):                      # beyond float32 becomes inf, and is counted as such later
            buffer += block if kept == dtype else np.frombuffer(block, dtype).astype(kept).data.cast("B")
    return np.frombuffer(buffer, kept)


def _payload(stream: ByteStream, size: int, step: int) -> Iterator[bytes]:
    """Yield the `size` bytes of the voxels, `step` at a time. Reads to the end, to the CRC of gzip."""
    expected = stream.delivered + size
    try:
        while stream.delivered < expected:
            wanted = min(step, expected - stream.delivered)
            block = stream.read(wanted)
            if len(block) < wanted:
                refuse(stream.path, f"truncated: expected {expected:,} bytes, got {stream.delivered:,}", DAMAGED)
            yield block
        surplus = stream.read(SLACK_BYTES + 1)
    except EOFError:
        what = "truncated (CRC missing)" if stream.delivered == expected else "truncated"
        refuse(stream.path, f"{what}: the gzip stream ends early", DAMAGED)
    if len(surplus) > SLACK_BYTES or surplus.strip(b"\0"):
        _refuse_surplus(stream, expected)
    if stream.changed():
        refuse(stream.path, "changed while it was read", "Wait until it is complete, then try again")


# --------------------------------------------------------------------------------------------------- the affine

def header_affine(header: nib.Nifti1Header, path: str | Path, notes: list[str]) -> np.ndarray:
    """The affine (4, 4) of a header: sform before qform, as the standard says. Doubts are appended to `notes`.

    Raises VolumeError where the header holds no usable affine.
    """
    header = header.copy()
    zooms = np.abs(header["pixdim"][1:4].astype(float))
    header["pixdim"][1:4] = zooms
    if header["pixdim"][0] not in (-1, 1):                    # qfac; the standard reads 0 as 1
        header["pixdim"][0] = 1
    sform = usable_affine(header.get_sform) if header["sform_code"] else None
    qform = usable_affine(header.get_qform) if header["qform_code"] else None
    if sform is not None:
        affine = sform
        if qform is not None and _differ(sform, qform):
            notes.append("sform and qform of the header differ; the sform is used")
    elif qform is not None:
        affine = qform
        if header["sform_code"]:
            notes.append("the sform of the header is not a valid affine; the qform is used")
    elif header["sform_code"] or header["qform_code"]:
        refuse(path, "the header holds no valid affine (sform, qform)", "Save the CT again with its orientation")
    else:
        base = usable_affine(header.get_base_affine)
        if base is None:
            refuse(path, f"no orientation and no voxel size in the header (pixdim {zooms.tolist()})",
                   "Save the CT again with its affine")
        affine = base
        axes = "".join(nib.aff2axcodes(affine))
        notes.append(f"no orientation information (sform and qform codes are 0); the axes are assumed to be {axes}")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(zooms, sizes, rtol=0.01):
        notes.append(f"voxel size {format_mm(zooms)} in the header disagrees with its affine, {format_mm(sizes)}; "
                     "the affine is used")
    return affine


def usable_affine(get: Callable[[], np.ndarray]) -> np.ndarray | None:
    """The affine that `get` returns if it is finite, invertible and of a plausible size, else None."""
    try:
        with np.errstate(all="ignore"):
            affine = get()
    except (ValueError, HeaderDataError):                     # an impossible quaternion
        return None
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e9:       # mm, or micrometres
        return None
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() < 1e-6:
        return None
    return affine if abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3 else None


def _differ(affine: np.ndarray, other: np.ndarray) -> bool:
    """Whether they differ by more than 1 % in a voxel size, 1 degree in an axis, or half a voxel in the origin."""
    sizes, others = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, other))
    cosines = (affine[:3, :3] / sizes * other[:3, :3] / others).sum(axis=0)
    return bool((abs(sizes / others - 1) > 0.01).any() or (cosines < np.cos(np.radians(1.0))).any()
                or np.linalg.norm(affine[:3, 3] - other[:3, 3]) > 0.5 * sizes.min())


def format_mm(sizes: np.ndarray | Sequence[float] | float) -> str:
    """Sizes for a message.

    >>> format_mm([0.7031, 0.7031, 5.0])
    '0.7031 x 0.7031 x 5'
    """
    return " x ".join(f"{size:.4g}" for size in np.atleast_1d(sizes))


# --------------------------------------------------------------------------------------------------- writing

def extension_block(content: bytes) -> bytes:
    """What stands between a little-endian header and the voxels: no extension, or one with this content (ecode 0).

    Its size is a multiple of 16 (https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/
    extension.html), so the content is padded with NUL.
    """
    if not content:
        return bytes(4)
    size = -(-(8 + len(content)) // 16) * 16
    return b"\1\0\0\0" + struct.pack("<2i", size, 0) + content.ljust(size - 8, b"\0")


def write_nifti(path: str | Path, array: np.ndarray, header: nib.Nifti1Header, extension: bytes = b"") -> None:
    """Write `array` (X, Y, Z) under a complete `header`: in blocks, atomically, and equal bytes for equal input.

    The name decides about compression: .gz is compressed. `extension` is the content of a header extension, behind
    which the voxels begin; vox_offset of `header` is set to that.
    """
    header = header.as_byteswapped("<")                       # a copy
    between = extension_block(extension)
    header["vox_offset"] = header.sizeof_hdr + len(between)
    planes = max(1, BLOCK_BYTES // max(1, array[..., :1].nbytes))
    with atomic_write(path) as temporary, open(temporary, "wb") as plain:
        with contextlib.ExitStack() as stack:
            file: io.BufferedWriter | gzip.GzipFile = plain
            if str(path).endswith(".gz"):                     # mtime and name would make equal results differ
                file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=plain, mtime=0))
            file.write(header.binaryblock)
            file.write(between)
            for start in range(0, array.shape[2], planes):
                file.write(array[..., start:start + planes].astype(header.get_data_dtype()).tobytes(order="F"))
