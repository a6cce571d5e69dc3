"""A dataset described by a dataset.json, in the form of the Decathlon (MSD) or of nnU-Net v2 (Section 4.1.1).

    {"labels": {"0": "background", "1": "liver"}, "training": [{"image": ..., "label": ...}]}      Decathlon
    {"labels": {"background": 0, "liver": 1}}, files in imagesTr and labelsTr                      nnU-Net v2

The label names become classes by taxonomy.resolve, or by the file of --map. Read dataset.py first, published.py next.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import taxonomy
from ..imaging.file_names import class_name_fault
from ..machine import json_files
from .case_files import cases_in_folders, listed_cases, refuse_missing_files
from .channels import ct_channel
from .dataset import DataError, Dataset, Label, short

NameMap = Mapping[str, "str | None"]      # {label name: class name, or None to drop the label}
BACKGROUND = ("background", "bg", "clear_label")
IGNORED = ("ignore", "ignored", "ignore_label")      # nnU-Net's label of voxels that nobody has judged
LARGEST_VALUE = 65535                     # of a label map


class Described(NamedTuple):
    """What the "labels" of a dataset.json say."""

    content: dict[str, Any]       # of the whole file
    labels: tuple[Label, ...]     # those that are classes
    values: tuple[int, ...]       # every value that it names, ascending
    ignored: tuple[int, ...]      # the values of IGNORED


def read_dataset(folder: Path, name_map: NameMap | None = None, name: str | None = None, allow: Collection[str] = (),
                 notes: list[str] | None = None) -> Dataset:
    """The Dataset that the dataset.json of a folder describes.

    name_map: {label name: class name, or None to drop the label}; it goes before the aliases of taxonomy.py
    name: of the dataset; by default the "name" in the file, else the folder's name
    allow, notes: see find.find_datasets

    Raises DataError.
    """
    folder = Path(folder)
    path = folder / "dataset.json"
    content, labels, values, ignored = read_labels(path, name_map, allow, notes)
    channel = ct_channel(content, path, notes)
    listed = listed_cases if "training" in content else cases_in_folders
    cases = listed(folder, content, allow, channel)
    if not cases:
        raise DataError(f"{path}: no training case. List them under \"training\" or put files into imagesTr and "
                        "labelsTr.")
    refuse_missing_files(path, cases, allow)
    return Dataset(name or _name(content, path) or folder.name, folder, labels, values, tuple(cases), ignored=ignored)


def _name(content: Mapping[str, Any], path: Path) -> str:
    """The "name" in a dataset.json, "" where it has none. Raises DataError for what cannot name a folder of results."""
    name = content.get("name")
    if name is not None and not (isinstance(name, str) and name.isprintable() and len(name) <= 100):
        raise DataError(f'{path}: "name" is {short(name)}, not a text of at most 100 characters. Mend it.')
    if name and name.strip().startswith("."):
        raise DataError(f'{path}: "name" is {short(name)}, which begins with a dot. Give another one.')
    return (name or "").strip()


# --------------------------------------------------------------------------------------------------------------- labels

def read_labels(path: Path, name_map: NameMap | None = None, allow: Collection[str] = (),
                notes: list[str] | None = None) -> Described:
    """What the labels of a dataset.json mean. The arguments are those of read_dataset. Raises DataError."""
    content = read_json(path)
    labels: list[Label] = []
    values, ignored = {0}, set()
    for label, raw in label_values(content["labels"], path):
        values.update(raw)
        if taxonomy.normalise_name(label) in IGNORED:
            ignored.update(raw)
            continue
        classes = classes_of(label, name_map or {}, path, allow, notes)
        if classes and 0 in raw:
            raise DataError(f"{path}: label {label!r} has the value 0, which is background. Number the labels from 1.")
        if classes:
            labels.append(Label(label, tuple(raw), classes))
    refuse_double_classes(labels, path)
    return Described(content, tuple(labels), tuple(sorted(values)), tuple(sorted(ignored)))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a dataset.json, which has "labels". Raises DataError."""
    content = json_files.read_json(path, DataError)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: no "labels". Add e.g. "labels": {{"0": "background", "1": "liver"}}.')
    return content


def label_values(labels: Mapping[str, Any], path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield (label name, its values) from {"1": "liver"} (Decathlon), {"liver": 1} or {"liver": [1, 2]} (nnU-Net v2).

    Raises DataError for other forms, and for two labels of the same values.
    """
    label_of: dict[tuple[int, ...], str] = {}
    for key, value in labels.items():
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}\s*", key, re.ASCII):
            name, values = value, [int(key)]
        else:
            name, values = key, value if isinstance(value, list) and value else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise DataError(f'{path}: label {short(key)}: {short(value)} is neither "1": "liver" nor "liver": 1. '
                            "Mend it.")
        if not 0 <= min(values) <= max(values) <= LARGEST_VALUE:
            raise DataError(f"{path}: label {short(name)} has the value {short(values)}. Number the labels from 0 to "
                            f"{LARGEST_VALUE}.")
        if len(name) > 100:
            raise DataError(f"{path}: the name of label {short(name)} has {len(name)} characters. Give a short one.")
        same = tuple(sorted(set(values)))
        if same in label_of:
            raise DataError(f"{path}: labels {short(label_of[same])} and {short(name)} both have the value "
                            f"{', '.join(map(str, values[:5]))}. Give each a value of its own.")
        label_of[same] = name
        yield name, values


def classes_of(name: str, name_map: NameMap, path: Path, allow: Collection[str] = (),
                notes: list[str] | None = None) -> tuple[str, ...]:
    """The class names of one label; () where it is background or dropped. A map may name classes that Table 2 lacks.

    The arguments are those of read_dataset. Raises DataError.
    """
    key = name if name in name_map else taxonomy.normalise_name(name)
    if key in name_map:
        return _mapped_classes(name, name_map[key])
    if key in BACKGROUND:
        return ()
    try:
        return taxonomy.resolve(name)
    except ValueError as error:
        if "unknown" in allow:
            if notes is not None:
                notes.append(f"{path}: label {name!r} is left out, it is no known class and --classes does not name it")
            return ()
        raise DataError(f"{path}: {error} Or give --map FILE with {{\"{name}\": \"class\"}}, null to drop it, or "
                        "name with --classes what is to be learned.") from None


def _mapped_classes(name: str, given: str | None) -> tuple[str, ...]:
    """The class names of the label `name`, for which the file of --map gives `given`."""
    if given is None:
        return ()
    if not isinstance(given, str):
        raise DataError(f"--map: {name!r} -> {short(given)} is neither a class name nor null. Both sides are e.g. "
                        "\"kidneys\".")
    try:
        return taxonomy.resolve(given)
    except ValueError:
        if fault := class_name_fault(given):
            raise DataError(f"--map: {short(name)} -> {short(given)} cannot name a class: it {fault}. "
                            "Use letters, digits, spaces and _ . - only.") from None
        return (given,)


def refuse_double_classes(labels: Sequence[Label], path: Path) -> None:
    """Raise DataError where two labels of a map are one class."""
    label_of: dict[str, str] = {}
    for label in labels:
        for name in label.classes:
            if name in label_of:
                raise DataError(f"{path}: labels {label_of[name]!r} and {label.name!r} are both class {name}. "
                                "Name one label per class, with several values if need be: \"liver\": [1, 2].")
            label_of[name] = label.name


def read_map(path: Path) -> dict[str, str | None]:
    """The {label name: class name, or None to drop the label} of --map. Raises DataError."""
    content = json_files.read_json(path, DataError, 'Give a file like {"vena": "postcava"}')
    if not isinstance(content, dict):
        raise DataError(f"{path}: not {{label name: class name or null}}. "
                        f"Give a file like {{\"vena\": \"postcava\"}}.")
    return content
