"""What files are called: the endings of NIfTI, and the names of a result beside its CT. No numpy here."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii")
OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgh", ".mgz", ".mnc", ".dcm", ".vtk", ".stl",
                  ".gz", ".zip", ".json", ".npy", ".npz", ".png", ".jpg", ".tif", ".tiff")
RESULT = "_seg"                # ct.nii.gz -> ct_seg.nii.gz, ct_seg.json, ct_seg/
CLASS_NAME = re.compile(r"[\w .-]{1,64}")     # letters and digits of any script: names that lead out of no folder
MOST_NAME_BYTES = 200          # a file name has at most 255, and `.nii.gz` and the name of a temporary file need some


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


def preview_path(result: Path) -> Path:
    """The picture beside a label map: ct_seg.nii.gz -> ct_preview.png"""
    return result.with_name(f"{stem(result).removesuffix(RESULT)}_preview.png")


def view_path(result: Path) -> Path:
    """The viewer beside a label map: ct_seg.nii.gz -> ct_view.html"""
    return result.with_name(f"{stem(result).removesuffix(RESULT)}_view.html")


def viewer_paths(result: Path) -> dict[str, Path]:
    """The files for other viewers beside a label map: ct_seg.nii.gz -> ct_seg.seg.nrrd, ct_seg.ctbl and others."""
    endings = {"slicer": ".seg.nrrd", "slicer colors": ".ctbl", "itk-snap": "_itksnap.txt", "niivue": "_niivue.json",
               "mricron colors": ".nii.lut", "mricron names": ".nii.txt"}
    return {kind: result.with_name(f"{stem(result)}{ending}") for kind, ending in endings.items()}


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
