"""The files of the cases that a dataset.json describes, and an id for each case that no other case has.

    "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]     Decathlon   -> case a
    imagesTr/a_0000.nii.gz, labelsTr/a.nii.gz                                      nnU-Net v2  -> case a
    "training": [{"image": "pat0/ct.nii.gz", ...}, {"image": "pat1/ct.nii.gz", ...}]           -> cases pat0_ct, pat1_ct

Folds, scores and pictures are found by these ids. Read dataset.py first, dataset_json.py next.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..imaging.file_names import SUFFIXES, bare, case_name, is_nifti
from .dataset import CaseFiles, DataError, few, inside, short


def same_id(name: str) -> str:
    """What two case ids must not share: disks and results do not tell such ids apart.

    >>> same_id("A b.nii.gz") == same_id("a_B.nii") == same_id("a_b_0000")
    True
    """
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", case_name(name))).casefold()


def with_unique_ids(path: Path, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """The cases with the names of their folders in front of their ids, as many as it takes to tell all ids apart.

    path: the file or folder that lists the cases; the message begins with it
    Raises DataError where a file is listed twice, or where no folder tells two cases apart.
    """
    _refuse_repetition(path, cases)
    deepest = max((len(case.image.parts) for case in cases), default=1)
    for folders in range(deepest):
        ids = ["_".join((*case.image.parent.parts[-folders or len(case.image.parts):], case.id)) for case in cases]
        if len(set(map(same_id, ids))) == len(ids):
            return [case._replace(id=name) for case, name in zip(cases, ids)]
    first: dict[tuple[Path, str], CaseFiles] = {}
    for case in cases:
        other = first.setdefault((case.image.parent, same_id(case.id)), case)
        if other is not case:
            raise DataError(f"{path}: {other.image.name} and {case.image.name} in {case.image.parent} are one case by "
                            "their names, which differ by case or ending only. Rename one.")
    raise DataError(f"{path}: cases share their names and folders. Give each image a name of its own.")


def _refuse_repetition(path: Path, cases: Sequence[CaseFiles]) -> None:
    """Raise DataError where one image is listed twice, or where an image is its own label."""
    seen: set[str] = set()
    for case in cases:
        image, label = map(os.path.normpath, (case.image, case.label))
        if image in seen:
            raise DataError(f"{path}: {case.image} is listed twice. Keep one entry.")
        if image == label:
            raise DataError(f"{path}: {case.image} is listed as image and as label. Name the label's own file.")
        seen.add(image)


# --------------------------------------------------------------------------------------------------- listed in the file

def listed_cases(folder: Path, content: Mapping[str, Any], allow: Collection[str] = (),
                 channel: int = 0) -> list[CaseFiles]:
    """The cases under "training" of a dataset.json, whether or not their files are there.

    channel: which of several images of a case is the CT
    Raises DataError.
    """
    path, entries = folder / "dataset.json", content["training"]
    if not isinstance(entries, list):
        raise DataError(f'{path}: "training" is {short(entries)}, not a list of {{"image": ..., "label": ...}}. Mend '
                        "it, or leave it out where imagesTr and labelsTr hold the cases.")
    cases = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise DataError(f'{path}: training entry {short(entry)} lacks "image" or "label". Mend it.')
        image = _one_file(folder, entry, "image", channel, allow)
        cases.append(CaseFiles(bare(image.name), image, _one_file(folder, entry, "label", 0, allow)))
    return with_unique_ids(path, cases)


def _one_file(folder: Path, entry: Mapping[str, Any], key: str, channel: int, allow: Collection[str]) -> Path:
    """The path that an entry names under "image" or "label": a text, or a list with one text for each channel."""
    path, given = folder / "dataset.json", entry[key]
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        if len(given) == 1 or (key == "image" and channel < len(given) and channel > 0):
            given = given[min(channel, len(given) - 1)]
        elif given and key == "image" and channel == 0:
            raise DataError(f'{path}: {len(given)} images in {short(given)}. Say with "channel_names" which is the '
                            "CT, or list that one alone.")
    if not isinstance(given, str) or not given.strip():
        raise DataError(f'{path}: "{key}" of a training entry is {short(given)}, not the path of one file. Mend it.')
    full = inside(folder, given, path, allow)
    if full.is_dir():
        raise DataError(f'{path}: "{key}" of a training entry is {short(given)}, which is a folder. Name the file.')
    return full


# ----------------------------------------------------------------------------------------------------- found in folders

def cases_in_folders(folder: Path, content: Mapping[str, Any], allow: Collection[str] = (),
                     channel: int = 0) -> list[CaseFiles]:
    """The cases of nnU-Net's form, one for each label in labelsTr; `channel` is the number in the name of its image.

    Raises DataError.
    """
    path, ending = folder / "dataset.json", content.get("file_ending")
    if ending is not None and (not isinstance(ending, str) or not is_nifti("x" + ending)):
        raise DataError(f'{path}: "file_ending" is {short(ending)}, and only NIfTI is read. Convert the files and give '
                        '".nii.gz" or ".nii".')
    cases = []
    for label in sorted((folder / "labelsTr").glob("*")):
        name = label.name
        if name.startswith(".") or label.is_dir() or not (name.endswith(ending) if ending else is_nifti(name)):
            continue
        own = name[len(bare(name)):]
        images = [Path("imagesTr") / f"{bare(name)}_{channel:04d}{e}" for e in dict.fromkeys((own, *SUFFIXES))]
        image = next((file for file in images if (folder / file).exists()), images[0])
        cases.append(CaseFiles(bare(name), inside(folder, image, path, allow),
                               inside(folder, Path("labelsTr") / name, path, allow)))
    if not cases:
        raise DataError(_why_no_case(folder, path, ending))
    return with_unique_ids(path, cases)


def _why_no_case(folder: Path, path: Path, ending: str | None) -> str:
    """The refusal of a dataset.json without a case, which names the files that are there instead."""
    labels = folder / "labelsTr"
    others = sorted(f.name for f in labels.glob("*") if not f.name.startswith(".")) if labels.is_dir() else []
    if ending and any(map(is_nifti, others)):
        return (f'{path}: "file_ending" is {ending!r}, and no label ends so: {few(others, "files")}. Correct '
                '"file_ending".')
    if others:
        return f"{path}: labelsTr holds no NIfTI file: {few(others, 'files')}. Convert them to .nii.gz."
    return f'{path}: no training case. List them under "training" or put files into imagesTr and labelsTr.'


def refuse_missing_files(path: Path, cases: Iterable[CaseFiles], allow: Collection[str] = ()) -> None:
    """Raise DataError where a file of a listed case is missing, unless `allow` holds "missing".

    path: the dataset.json
    """
    missing = [str(file) for case in cases for file in (case.image, case.label) if not file.is_file()]
    if missing and "missing" not in allow:
        raise DataError(f"{path}: {len(missing)} files it needs are missing: {', '.join(missing[:5])}. "
                        "Add them, edit the list, or leave these cases out with --skip-bad.")
