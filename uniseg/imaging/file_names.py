"""What files are called: the endings of NIfTI, and the names of a result beside its CT. No numpy here."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii")
RESULT = "_seg"                # ct.nii.gz -> ct_seg.nii.gz, ct_seg.json, ct_seg/
CLASS_NAME = re.compile(r"[\w .-]{1,64}")     # letters and digits of any script: names that lead out of no folder
MOST_NAME_BYTES = 200          # a file name has at most 255, and `.nii.gz` and the name of a temporary file need some


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


def mask_path(folder: str | Path, name: str) -> Path:
    """The mask of a class in a folder of masks: ct_seg, liver -> ct_seg/liver.nii.gz

    Raises ValueError where the name of the class cannot be that of a file.
    """
    if fault := class_name_fault(name):
        raise ValueError(f"class {name!r}: {fault}. A file cannot have its name; rename the class.")
    return Path(folder) / f"{name}.nii.gz"


def class_name_fault(name: object) -> str:
    """Why a class cannot have this name, in a few words; "" where it can. Masks are files of the name of their class.

    >>> class_name_fault("liver"), class_name_fault("../ct")
    ('', 'has other characters than letters, digits, space, _, . and -')
    """
    if not isinstance(name, str):
        return "is not text"
    if not 1 <= len(name) <= 64:
        return f"has {len(name)} characters, not 1 to 64"
    if not CLASS_NAME.fullmatch(name):
        return "has other characters than letters, digits, space, _, . and -"
    if name[0] in ". " or name[-1] in ". ":
        return "begins or ends with a dot or a space"
    return "is too long for a file name" if len(name.encode()) > MOST_NAME_BYTES else ""


def same_file_name(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two of these names that are one file name where upper and lower case, or spellings of one letter, are
    not told apart (macOS, Windows); None where there are no two.

    >>> same_file_name(["liver", "spleen", "Liver"])
    ('liver', 'Liver')
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFKC", name).casefold()
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None


def complete(result: Path, masks: bool) -> bool:
    """Whether a former run finished this label map. Its JSON is written last, so the JSON's presence shows it.

    masks: whether the folder of masks must exist as well
    """
    return result.is_file() and json_path(result).is_file() and (not masks or masks_folder(result).is_dir())
