"""What files are called: the endings of NIfTI, and the names of a result beside its CT. No numpy here."""

import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii")
OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgh", ".mgz", ".mnc", ".dcm", ".vtk", ".stl",
                  ".gz", ".zip", ".json", ".npy", ".npz", ".png", ".jpg", ".tif", ".tiff")
RESULT = "_seg"                # ct.nii.gz -> ct_seg.nii.gz, ct_seg.json, ct_seg/


def is_nifti(name: str) -> bool:
    """Whether a file of this name is taken for NIfTI; upper and lower case do not matter.

    >>> is_nifti("ct.nii.gz"), is_nifti("CT.NII"), is_nifti("ct.nrrd")
    (True, True, False)
    """
    return name.lower().endswith(SUFFIXES)


def other_image(name: str) -> bool:
    """Whether a name ends like a file of another kind, or like NIfTI in upper case, which no result is written as.

    >>> other_image("ct.mha"), other_image("CT.NII.GZ"), other_image("ct.nii.gz"), other_image("results_v1.2")
    (True, True, False, False)
    """
    return not name.endswith(SUFFIXES) and (is_nifti(name) or name.lower().endswith(OTHER_SUFFIXES))


def bare(name: str) -> str:
    """The name of a NIfTI file without its ending.

    >>> bare("ct.nii.gz"), bare("CT.NII"), bare("s0001")
    ('ct', 'CT', 's0001')
    """
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def case_name(name: str) -> str:
    """The case that a file or folder of this name belongs to.

    >>> case_name("a0_seg.nii.gz"), case_name("a0_0000.nii.gz"), case_name("a0_0000_seg")
    ('a0', 'a0', 'a0')
    """
    return bare(name).removesuffix(RESULT).removesuffix("_0000")


def similar_name(name: str, others: Iterable[str]) -> str:
    """The one of the `others` that is the same name but for a slip of the pen, or "". Never another patient's file.

    The numbers and single letters in a name tell patients apart. So the suggestion differs by case, punctuation, ending
    or `_0000` only, or by one letter that is missing, too much or exchanged with its neighbour.

    >>> similar_name("p0.nii.gz", ["p1_0000.nii.gz", "p0_0000.nii.gz"]), similar_name("p0.nii.gz", ["p1.nii.gz"])
    ('p0_0000.nii.gz', '')
    """
    def plain(text: str) -> str:
        return re.sub(r"\.n[a-z]{0,3}(\.[a-z]{1,3})?$|\.gz$", "", text.lower()).removesuffix("_0000")

    def letters(text: str) -> str:
        return re.sub(r"[\W_]+", "", plain(text))

    def one_slip(a: str, b: str) -> bool:
        a, b = sorted((a, b), key=len)
        if len(b) < 5 or len(b) - len(a) > 1:
            return False
        if len(a) == len(b):
            return any(a[:i] + a[i + 1] + a[i] + a[i + 2:] == b for i in range(len(a) - 1))
        return any(b[:i] + b[i + 1:] == a for i in range(1, len(b) - 1))

    def numbers(text: str) -> list[str]:
        return re.findall(r"\d+", plain(text))

    possible, wanted = [other for other in sorted(others) if numbers(other) == numbers(name)], letters(name)
    same = [other for other in possible if letters(other) == wanted]
    return next(iter(same or [other for other in possible if one_slip(wanted, letters(other))]), "")


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
