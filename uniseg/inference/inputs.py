"""The CTs that a user names: files, folders, and with --recursive the folders below. What is no NIfTI is named.

Read imaging/file_names.py first. No torch and no numpy here, so that a wrong path is refused at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..imaging.file_names import RESULT, is_nifti, similar_name, stem
from ..imaging.other_formats import DICOM, dcm2niix, known_format, remedy
from ..machine.console import note, printable

# Files and folders of labels, as datasets call them: TotalSegmentator's s0001/segmentations, KiTS' segmentation.nii.gz,
# the Decathlon's labelsTr, and our own results and masks. --recursive passes them over; a file that is named is taken.
LABELS = re.compile(r"(.*[_-])?(segmentations?|labels?(tr|ts|val)?|masks?|seg|pred(iction)?s?)", re.IGNORECASE)


class Found(NamedTuple):
    """A CT, and in which folder below the one that the user named it lies; Path(".") for that folder itself."""

    ct: Path
    below: Path


def find_cts(inputs: Sequence[Path], recursive: bool = False) -> list[Found]:
    """The CTs that the user names: files as they are, folders by their NIfTI files without results.

    recursive: whether folders below count as well; files and folders of labels are left out, which a note says
    Raises ValueError with one line where there is nothing to segment.
    """
    if not inputs:
        raise ValueError("no CT given. Name a NIfTI file or a folder, or try --demo.")
    return [found for path in inputs for found in _of_input(path, len(inputs) > 1, recursive)]


def _of_input(path: Path, among_several: bool, recursive: bool) -> Iterator[Found]:
    if path.is_dir():
        cts, labels = _below(path) if recursive else ([Found(ct, Path(".")) for ct in _nifti_files(path)], [])
        if not cts:
            raise ValueError(_nothing_in(path, recursive, labels))
        if labels:
            note(f"{printable(str(path))}: {len(labels)} NIfTI files are left out, as their names or folders are those "
                 f"of labels, such as {printable(str(labels[0].relative_to(path)))}")
        yield from cts
    elif path.exists() or among_several:            # a missing file among several is an error of that case alone
        yield Found(path, Path("."))
    else:
        raise ValueError(f"{path}: no such file. Check the name.{_similar_name(path)}")


def _nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder that are no results, also dangling links; hidden files do not count."""
    return sorted(f for f in folder.iterdir() if is_nifti(f.name) and not f.is_dir()
                  and not f.name.startswith(".") and not stem(f).endswith(RESULT))


def _below(root: Path) -> tuple[list[Found], list[Path]]:
    """The CTs of a folder and of all folders below, in the order of their folders, and the labels among them."""
    found, labels = [], []
    for folder in _folders(root):
        below = folder.relative_to(root)
        of_labels = any(LABELS.fullmatch(part) for part in below.parts)
        for file in _nifti_files(folder):
            if of_labels or LABELS.fullmatch(stem(file)):
                labels.append(file)
            else:
                found.append(Found(file, below))
    return found, labels


def _folders(root: Path) -> Iterator[Path]:
    """The folder and all below it, parents first, in the order of their names; hidden ones and circles are left out.

    Raises ValueError for a folder that cannot be read.
    """
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions, or name the "
                         "folders that can.")

    seen = set()
    for folder, names, _ in os.walk(root, onerror=refuse, followlinks=True):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            names.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(folder)


def _nothing_in(folder: Path, recursive: bool, labels: Sequence[Path]) -> str:
    """The line for a folder without a CT: what it holds instead, and what to do about it."""
    if labels:
        return (f"{folder}: only NIfTI files with the names or folders of labels, such as "
                f"{labels[0].relative_to(folder)}. Name the CTs themselves.")
    deeper = [] if recursive else _below(folder)[0]
    if deeper:
        return (f"{folder}: no NIfTI file in this folder itself, but {len(deeper)} in folders below, such as "
                f"{deeper[0].ct.relative_to(folder)}. Give --recursive to take them.")
    files = (f for below in _folders(folder) for f in sorted(below.iterdir()) if f.is_file())
    name, file = known_format(files)
    if name == DICOM:
        return (f"{folder}: a folder of DICOM files, which uniseg does not read. Convert them first: "
                f"`{dcm2niix(folder)}`.")
    if file is not None:
        return f"{folder}: no NIfTI file, but {name}, {file.relative_to(folder)}. {remedy(file, name)}."
    if recursive:
        return f"{folder}: no .nii or .nii.gz file of a CT in this folder or below it. Name another one."
    return f"{folder}: no .nii or .nii.gz file in this folder. Name another one."


def _similar_name(path: Path) -> str:
    """' Did you mean x?' where the folder holds a file of a similar name, else ''."""
    close = similar_name(path.name, (f.name for f in path.parent.iterdir())) if path.parent.is_dir() else ""
    return f" Did you mean {path.with_name(close)}?" if close else ""
