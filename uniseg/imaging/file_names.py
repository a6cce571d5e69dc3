"""What files are called: the endings of NIfTI, and the names of a result beside its CT. No numpy here."""

import re
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii")
RESULT = "_seg"                # ct.nii.gz -> ct_seg.nii.gz, ct_seg.json, ct_seg/


def bare(name: str) -> str:
    """The name of a NIfTI file without its ending.

    >>> bare("ct.nii.gz"), bare("ct.nii"), bare("s0001")
    ('ct', 'ct', 's0001')
    """
    return re.sub(r"\.nii(\.gz)?$", "", name)


def stem(path: Path) -> str:
    """'folder/ct.nii.gz' -> 'ct'"""
    return bare(path.name)


def json_path(path: str | Path) -> Path:
    """The statistics beside a label map: ct_seg.nii.gz -> ct_seg.json"""
    path = Path(path)
    return path.with_name(f"{stem(path)}.json")


def masks_folder(result: Path) -> Path:
    """The folder of one mask per class beside a label map: ct_seg.nii.gz -> ct_seg"""
    return result.with_name(stem(result))
