"""A Reading: what one source, a model or a person, says about one case, and where its masks are stored.

    a result of uniseg.infer     CASE_seg.nii.gz and CASE_seg.json, which names the classes; if --masks wrote the folder
                                 CASE_seg/ too, that is used
    a folder of masks            CASE/liver.nii.gz, one file per class
    a label map                  CASE.nii.gz, whose numbers mean what its header says, or what numbers.py finds
    a case of a dataset          its label as published; only the classes that are annotated there

This file finds Readings; masks.py reads their masks. Read datasets/find.py and numbers.py first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..datasets import layouts
from ..datasets.dataset import CaseFiles, DataError, Dataset, Label, few, in_order
from ..datasets.dataset_json import NameMap, read_labels
from ..datasets.find import find_datasets
from ..formats.labels import merged_name
from ..formats.numbers import classes_of_values
from ..imaging.file_names import RESULT, bare, case_name, is_nifti, json_path
from ..inference.finished import listed_masks
from ..machine.json_files import read_json
from .numbers import Numbers, numbers_of, numbers_of_header


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
    ignored: tuple[int, ...] = ()  # values of voxels of which nobody says what they hold
    numbers: str = ""             # what says what the values of a label map mean; "" for masks

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


def as_folder_name(name: str) -> str:
    """The name of a dataset with every character replaced that a folder's name should not have."""
    return re.sub(r"[^\w.-]+", "_", name)


# ----------------------------------------------------------------------------------------------------------- references

def find_references(folder: Path, name_map: NameMap | None = None, named: Iterable[tuple[str, Path]] = (),
                    notes: list[str] | None = None, numbers: str | None = None) -> list[Reading]:
    """The Readings of a folder of datasets, of one dataset, or of a plain folder (`in_folder`). Raises DataError.

    name_map, named, notes: see datasets.find.find_datasets
    numbers: see numbers.numbers_of

    Labels of datasets that are neither a known class nor in the name_map are left out with a note.
    """
    if not named and _is_plain(folder):
        return list(in_folder(folder, "", name_map, numbers, notes).values())
    readings: dict[str, Reading] = {}
    for dataset in find_datasets(folder, name_map, named, notes, allow=("unknown",)):
        for case in dataset.cases:
            origin = "" if case.label.is_dir() else folder_json(dataset)
            reading = Reading(dataset.name, case_name(case.id), case.label, source=(dataset, case), numbers=origin)
            if reading.name in readings:
                raise DataError(f"{case.label}: the same case, {reading.name}, as {readings[reading.name].path}. "
                                "Rename one.")
            readings[reading.name] = reading
    return list(readings.values())


def folder_json(dataset: Dataset) -> str:
    """What says what the label values of a dataset mean."""
    return f"{dataset.name} as published" if dataset.published else str(dataset.folder / "dataset.json")


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds the labels themselves, not datasets.

    A dataset.json without a list of cases, and without labelsTr, only says what the numbers of a model's label maps
    mean.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give one with labels.")
    path = folder / "dataset.json"
    if path.is_file():
        return "training" not in read_labels(path, allow=("unknown",)).content and not (folder / "labelsTr").is_dir()
    files = list(layouts.files_below(folder))
    if any(layouts.pair(row, files).labels for row in layouts.known_as(folder.absolute().name)):
        return False
    sub_folders = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return any("/" not in name for name in files) or any(_mask_of_class(f) for f in sub_folders
                                                         if not layouts.known_as(f.name))


# -------------------------------------------------------------------------------------------------------- plain folders

def in_folder(folder: Path, dataset: str = "", name_map: NameMap | None = None, numbers: str | None = None,
              notes: list[str] | None = None) -> dict[str, Reading]:
    """{case: Reading} of a plain folder: label maps, results of uniseg.infer, or folders of masks. Raises DataError.

    numbers: see numbers.numbers_of

    Where there are results of uniseg.infer (..._seg), other files, such as the CTs beside them, are ignored.
    """
    meaning = meaning_in(folder, numbers, name_map, notes)
    entries = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and (f.is_dir() or is_nifti(f.name))]
    results = [f for f in entries if bare(f.name).endswith(RESULT)]
    readings: dict[str, Reading] = {}
    name_of: dict[str, str] = {}                    # in lower case -> name: some disks do not tell them apart
    for path in results or entries:
        reading, case = reading_at(path, dataset, meaning), case_name(path.name)
        other = readings.get(name_of.get(case.lower(), case))
        if reading is None or (other and other.masks is not None and reading.masks is None):
            continue
        if other and (other.masks is None) == (reading.masks is None):
            raise DataError(f"{path}: the same case as {other.path}. Keep one of them.")
        readings[name_of.setdefault(case.lower(), case)] = reading
    return readings


def meaning_in(folder: Path, numbers: str | None = None, name_map: NameMap | None = None,
               notes: list[str] | None = None) -> Callable[[Path], Numbers]:
    """The function that says what the numbers of a plain label map in this folder mean: by its header, if that says so.

    Parameters as in_folder.
    """
    of_folder = functools.cache(lambda: numbers_of(folder, numbers, name_map, notes))
    return lambda path: (numbers_of_header(path, name_map) if numbers is None else None) or of_folder()


def reading_at(path: Path, dataset: str, meaning: Callable[[Path], Numbers]) -> Reading | None:
    """The Reading of one file or folder; None for a folder without masks.

    meaning: plain label map -> its Numbers
    """
    named = numbers_of_json(path)
    if path.is_dir():
        masks = _listed(path, _mask_of_class(path, named))
        return Reading(dataset, case_name(path.name), path, masks=masks, classes_known=bool(named)) if masks else None
    numbers = Numbers.of(_labels(named), "the JSON beside each") if named else meaning(path)
    return Reading(dataset, case_name(path.name), path, numbers.labels, numbers.values, classes_known=numbers.known,
                   ignored=numbers.ignored, numbers=numbers.source)


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


def numbers_of_json(path: Path) -> dict[str, int | None]:
    """{class: its number, or None} in the JSON beside a result of uniseg.infer; {} without a JSON. Raises DataError."""
    beside = json_path(path)
    if not beside.is_file():
        return {}
    try:
        classes = read_json(beside, DataError).get("classes", {})
        return {name: None if entry["label"] is None else int(entry["label"]) for name, entry in classes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error).removeprefix(f"{beside}: ")
        raise DataError(f"{beside}: not the JSON of a result ({reason}). "
                        "Segment the case again, or move it away.") from None


def _labels(numbers: dict[str, int | None]) -> tuple[Label, ...]:
    """The labels of a result; both sides of an organ may have one number (infer --numbers)."""
    return tuple(Label(merged_name(classes), (value,), classes)
                 for value, classes in classes_of_values(numbers).items())


def numbers_line(references: Iterable[Reading], predictions: Iterable[Reading], seconds: Iterable[Reading] = ()) -> str:
    """One line that says which file, or Table 2, gave the numbers of all label maps their meaning."""
    sides = []
    for who, readings in (("references", references), ("predictions", predictions), ("second reader", seconds)):
        sources = list(dict.fromkeys(r.numbers or "the names of mask files" for r in readings))
        if sources:
            sides.append(f"{who} by {few(sources) if len(sources) > 1 else sources[0]}")
    return "label numbers: " + "; ".join(sides)


def _mask_of_class(folder: Path, named: Collection[str] = ()) -> dict[str, Path | None]:
    """{class: path} of a folder with one mask per class; other files are left out.

    named: the classes of a result's JSON. If there are any, only these count, which may lie beyond Table 2.
    """
    files = {bare(name): folder / name for name in layouts.files_below(folder) if "/" not in name}
    if named:
        return {name: files[name] for name in named if name in files}
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
    return {name for path in files for name in numbers_of_json(path)} - set(taxonomy.NAMES)
