"""Image files that are no NIfTI: what they are, told by their first bytes, and the command that converts them.

uniseg reads NIfTI only. A DICOM series is many files, whose order, gaps, tilt and scaling are told in dozens of fields
that every maker fills in its own way: a reader of a few hundred lines would be wrong on some of them without a word.
dcm2niix (https://github.com/rordenlab/dcm2niix) knows them. No numpy here, so that a wrong path is refused at once.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterable
from pathlib import Path

DICOM, NRRD, META = "a DICOM file", "an NRRD file", "a MetaImage file"
MAGIC = {b"NRRD": NRRD, b"ObjectType": META, b"PK\3\4": "a zip archive", b"\x89PNG": "a PNG picture",
         b"\x89HDF": "an HDF5 or MINC file", b"\xff\xd8\xff": "a JPEG picture", b"\x93NUMPY": "a numpy file"}
BY_ITK = {".nrrd": NRRD, ".nhdr": NRRD, ".mha": META, ".mhd": META}      # what SimpleITK converts, by ending
HEAD_BYTES = 512
MOST_LOOKED_AT = 50                # files of a folder whose first bytes are read


def format_of(head: bytes) -> str:
    """The name of the format of a file that begins with these bytes, "" for NIfTI and for an unknown one."""
    if head[128:132] == b"DICM":
        return DICOM
    if name := next((name for magic, name in MAGIC.items() if head.startswith(magic)), ""):
        return name
    if head[:4] in (struct.pack("<i", 348), struct.pack(">i", 348)):
        nifti = head[344:347] in (b"n+1", b"ni1")
        return "" if nifti else "an Analyze 7.5 file, whose header does not say which side is the right,"
    version, *dims, voxel_type = struct.unpack(">6i", head[:24].ljust(24, b"\0"))
    if version == 1 and min(dims) >= 1 and max(dims) < 1 << 16 and 0 <= voxel_type <= 4:
        return "an MGH file of FreeSurfer"
    return ""


def remedy(path: Path, name: str) -> str:
    """What to do about a file of this format: one sentence without its full stop, with a command where there is one.

    >>> remedy(Path("scan 1/0001.dcm"), DICOM)
    "Convert its series first: `mkdir -p nifti && dcm2niix -z y -o nifti 'scan 1'`"
    """
    if name == DICOM:
        return f"Convert its series first: `{dcm2niix(path.parent)}`"
    if name in (NRRD, META):
        return f"Convert it first, with SimpleITK for example: `{simple_itk(path)}`"
    return "Convert it to .nii.gz with the program that made it"


def dcm2niix(folder: Path) -> str:
    """The command that converts the DICOM series of a folder."""
    return f"mkdir -p nifti && dcm2niix -z y -o nifti {shlex.quote(str(folder))}"


def simple_itk(path: Path) -> str:
    """The command that converts a file that SimpleITK reads."""
    code = "import sys, SimpleITK as s; s.WriteImage(s.ReadImage(sys.argv[1]), sys.argv[2])"
    words = (str(path), str(path.with_suffix(".nii.gz")))
    return f'python -c "{code}" {" ".join(map(shlex.quote, words))}'


def known_format(files: Iterable[Path]) -> tuple[str, Path | None]:
    """(format, file) of the first of these files that is DICOM, NRRD or MetaImage; ("", None) where none is.

    Only the first MOST_LOOKED_AT files are opened; a folder of DICOM files holds hardly anything else.
    """
    for number, file in enumerate(files):
        name = BY_ITK.get(file.suffix.lower(), "")
        if not name and number < MOST_LOOKED_AT:
            name = format_of(_head(file))
        if name in (DICOM, NRRD, META):
            return name, file
    return "", None


def _head(file: Path) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:
        return b""
