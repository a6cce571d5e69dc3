"""A Reading: what one source, a model or a person, says about one case, and where its masks are stored.

    a result of uniseg.infer     CASE_seg.nii.gz and CASE_seg.json, which names the classes; if --masks wrote the folder
                                 CASE_seg/ too, that is used
    a folder of masks            CASE/liver.nii.gz, one file per class
    a label map                  CASE.nii.gz with the numbers of Table 2, or with those of a dataset.json beside it, as
                                 nnU-Net's predictions have
    a case of a dataset          its label as published; only the classes that are annotated there

This file finds Readings; masks.py reads their masks. Read datasets/find.py first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..datasets import layouts
from ..datasets.dataset import CaseFiles, DataError, Dataset, Label, in_order
from ..datasets.dataset_json import NameMap, read_labels
from ..datasets.find import find_datasets
from ..imaging.file_names import RESULT, SUFFIXES, bare, json_path
from ..inference.finished import listed_masks

TABLE_2 = tuple(Label(name, (number,), (name,)) for name, number in taxonomy.label_values(taxonomy.NAMES).items())


class Reading(NamedTuple):
    """Where the masks of one case are. Exactly one of `labels`, `masks` and `source` says what the files contain."""

    dataset: str                  # "" outside a dataset
    case: str
    path: Path                    # a label map, or the folder of the masks
    labels: tuple[Label, ...] = ()   # the values of a label map and their classes
    values: tuple[int, ...] = ()  # every value that the label map may have, dropped ones included
    masks: dict[str, Path | None] | None = None   # class -> path of its mask; None: no such file, so the mask is empty
    source: tuple[Dataset, CaseFiles] | None = None
    classes_known: bool = True    # False: nothing says which classes were looked for; it may be any of Table 2

    @property
    def name(self) -> str:
        """DATASET/CASE, or CASE."""
        return f"{self.dataset}/{self.case}" if self.dataset else self.case

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of which it has a mask, in the order of Table 2."""
        if self.source:
            dataset, case = self.source
            return dataset.annotated_in(case)
        return in_order(self.masks if self.masks is not None else {c for label in self.labels for c in label.classes})

    @property
    def is_plain_map(self) -> bool:
        """True for a label map that comes without a list of its classes."""
        return not self.classes_known and self.masks is None


def case_name(name: str) -> str:
    """The case that a file or folder of this name belongs to.

    >>> case_name("a0_seg.nii.gz"), case_name("a0_0000.nii.gz"), case_name("a0_0000_seg")
    ('a0', 'a0', 'a0')
    """
    return bare(name).removesuffix(RESULT).removesuffix("_0000")


def as_folder_name(name: str) -> str:
    """The name of a dataset with every character replaced that a folder's name should not have."""
    return re.sub(r"[^\w.-]+", "_", name)


# ----------------------------------------------------------------------------------------------------------- references

def find_references(folder: Path, name_map: NameMap | None = None, named: Iterable[tuple[str, Path]] = (),
                    notes: list[str] | None = None) -> list[Reading]:
    """The Readings of a folder of datasets, of one dataset, or of a plain folder (`in_folder`). Raises DataError.

    name_map, named, notes: see datasets.find.find_datasets

    Labels of datasets that are neither a known class nor in the name_map are left out with a note.
    """
    if not named and _is_plain(folder):
        return list(in_folder(folder, name_map=name_map).values())
    readings: dict[str, Reading] = {}
    for dataset in find_datasets(folder, name_map, named, notes, allow=("unknown",)):
        for case in dataset.cases:
            reading = Reading(dataset.name, case_name(case.id), case.label, source=(dataset, case))
            if reading.name in readings:
                raise DataError(f"{case.label}: the same case, {reading.name}, as {readings[reading.name].path}. "
                                "Rename one.")
            readings[reading.name] = reading
    return list(readings.values())


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds the labels themselves, not datasets.

    A dataset.json without a list of cases, and without labelsTr, only says what the numbers of a model's label maps
    mean.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give one with labels.")
    path = folder / "dataset.json"
    if path.is_file():
        return "training" not in read_labels(path, allow=("unknown",))[0] and not (folder / "labelsTr").is_dir()
    files = list(layouts.files_below(folder))
    if any(layouts.pair(row, files).labels for row in layouts.known_as(folder.absolute().name)):
        return False
    sub_folders = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return any("/" not in name for name in files) or any(_mask_of_class(f) for f in sub_folders
                                                         if not layouts.known_as(f.name))


# -------------------------------------------------------------------------------------------------------- plain folders

def in_folder(folder: Path, dataset: str = "", name_map: NameMap | None = None) -> dict[str, Reading]:
    """{case: Reading} of a plain folder: label maps, results of uniseg.infer, or folders of masks. Raises DataError.

    Where there are results of uniseg.infer (..._seg), other files, such as the CTs beside them, are ignored.
    """
    described: tuple[tuple[Label, ...], tuple[int, ...]] | None = None
    if (folder / "dataset.json").is_file():
        _, labels, values = read_labels(folder / "dataset.json", name_map)
        described = labels, values
    entries = [f for f in sorted(folder.iterdir())
               if not f.name.startswith(".") and (f.is_dir() or f.name.endswith(SUFFIXES))]
    results = [f for f in entries if bare(f.name).endswith(RESULT)]
    readings: dict[str, Reading] = {}
    for path in results or entries:
        reading = _reading_at(path, dataset, described)
        other = readings.get(case_name(path.name))
        if reading is None or (other and other.masks is not None and reading.masks is None):
            continue
        if other and (other.masks is None) == (reading.masks is None):
            raise DataError(f"{path}: the same case as {other.path}. Keep one of them.")
        readings[case_name(path.name)] = reading
    return readings


def _reading_at(path: Path, dataset: str,
                described: tuple[tuple[Label, ...], tuple[int, ...]] | None) -> Reading | None:
    """The Reading of one file or folder; None for a folder without masks.

    described: (labels, values) of the dataset.json beside the file, or None
    """
    named = labels_of_json(path)
    if path.is_dir():
        masks = _listed(path, _mask_of_class(path, named))
        return Reading(dataset, case_name(path.name), path, masks=masks, classes_known=bool(named)) if masks else None
    if described and not named:
        labels, more_values = described
    else:
        labels, more_values = named or TABLE_2, ()
    values = {0, *more_values}.union(*(label.values for label in labels))
    return Reading(dataset, case_name(path.name), path, labels, tuple(sorted(values)),
                   classes_known=bool(named or described))


def _listed(folder: Path, masks: dict[str, Path | None]) -> dict[str, Path | None]:
    """The masks that belong to the result beside the folder, if its JSON lists them: others are of a former result.

    Raises DataError where one is missing.
    """
    listed = listed_masks(folder)
    if listed is None:
        return masks
    if missing := sorted(name for name in listed if not (folder / name).is_file()):
        raise DataError(f"{folder / missing[0]}: is missing, but the JSON of the result lists it. "
                        "Segment the case again.")
    return {name: path for name, path in masks.items() if path is not None and path.name in listed}


def labels_of_json(path: Path) -> tuple[Label, ...]:
    """The labels that the JSON beside a result of uniseg.infer names; () where there is no JSON. Raises DataError."""
    beside = json_path(path)
    if not beside.is_file():
        return ()
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        return tuple(Label(name, (int(entry["label"]),), (name,)) for name, entry in content.get("classes", {}).items())
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{beside}: not the JSON of a result ({error}). "
                        "Segment the case again, or move it away.") from None


def _mask_of_class(folder: Path, named: Sequence[Label] = ()) -> dict[str, Path | None]:
    """{class: path} of a folder with one mask per class; other files are left out.

    named: the Labels of a result's JSON. If there are any, only their names count, which may lie beyond Table 2.
    """
    files = {bare(name): folder / name for name in layouts.files_below(folder) if "/" not in name}
    if named:
        return {label.name: files[label.name] for label in named if label.name in files}
    masks: dict[str, Path | None] = {}
    for name, path in files.items():
        try:
            classes = taxonomy.resolve(name)
        except ValueError:
            continue
        if len(classes) == 1:
            masks[classes[0]] = path
    return masks


def names_beyond_table_2(folder: Path) -> set[str]:
    """The classes that results of uniseg.infer in a folder, or in its sub-folders, name and Table 2 does not list."""
    files = [path for pattern in ("*.nii*", "*/*.nii*") for path in sorted(folder.glob(pattern))]
    return {label.name for path in files for label in labels_of_json(path)} - set(taxonomy.NAMES)
