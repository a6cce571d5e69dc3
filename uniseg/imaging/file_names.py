"""What files are called: the endings of NIfTI, and the names of a result beside its CT."""

import re
from pathlib import Path


def json_path(path):
    """ct_seg.nii.gz -> ct_seg.json"""
    path = Path(path)
    return path.with_name(bare(path.name) + ".json")


SUFFIXES = (".nii.gz", ".nii")
RESULT = "_seg"


def stem(path):
    """'ct.nii.gz' -> 'ct'"""
    return bare(path.name)


def masks_folder(result):
    """ct_seg.nii.gz -> ct_seg"""
    return result.with_name(stem(result))


def complete(result, masks):
    """Whether a former run finished this result: its JSON is written last."""
    return result.is_file() and result.with_name(f"{stem(result)}.json").is_file() and (not masks or masks_folder(result).is_dir())


def bare(name):
    """The name of a NIfTI file without its ending.

    >>> bare("ct.nii.gz"), bare("ct.nii"), bare("s0001")
    ('ct', 'ct', 's0001')
    """
    return re.sub(r"\.nii(\.gz)?$", "", name)
