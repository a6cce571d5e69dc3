"""A dataset described by a dataset.json, in the form of the Decathlon (MSD) or of nnU-Net v2 (Section 4.1.1).

    {"labels": {"0": "background", "1": "liver"}, "training": [{"image": ..., "label": ...}]}      Decathlon
    {"labels": {"background": 0, "liver": 1}}, files in imagesTr and labelsTr                      nnU-Net v2

The label names become classes by taxonomy.resolve, or by the file of --map. Read dataset.py first, published.py next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import taxonomy
from ..imaging.file_names import bare
from .dataset import CaseFiles, DataError, Dataset, Label, inside

NameMap = Mapping[str, "str | None"]      # {label name: class name, or None to drop the label}
BACKGROUND = ("background", "bg", "clear_label")


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
    content, labels, values = read_labels(path, name_map, allow, notes)
    cases = listed_cases(folder, content, allow) if "training" in content else _cases_in_folders(folder, content)
    if not cases:
        raise DataError(f"{path}: no training case. List them under \"training\" or put files into imagesTr and "
                        "labelsTr.")
    refuse_missing_files(path, cases, allow)
    return Dataset(name or content.get("name") or folder.name, folder, labels, values, tuple(cases))


# --------------------------------------------------------------------------------------------------------------- labels

def read_labels(path: Path, name_map: NameMap | None = None, allow: Collection[str] = (),
                notes: list[str] | None = None) -> tuple[dict[str, Any], tuple[Label, ...], tuple[int, ...]]:
    """The content of a dataset.json, those of its labels that are classes, and every value it names, ascending.

    The arguments are those of read_dataset. Raises DataError.
    """
    content = read_json(path)
    labels: list[Label] = []
    values = {0}
    for label, raw in label_values(content["labels"], path):
        values.update(raw)
        classes = _classes_of(label, name_map or {}, path, allow, notes)
        if classes and 0 in raw:
            raise DataError(f"{path}: label {label!r} has the value 0, which is background. Number the labels from 1.")
        if classes:
            labels.append(Label(label, tuple(raw), classes))
    _refuse_double_classes(labels, path)
    return content, tuple(labels), tuple(sorted(values))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a dataset.json, which has "labels". Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
                        "Mend it.") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: no "labels". Add e.g. "labels": {{"0": "background", "1": "liver"}}.')
    return content


def label_values(labels: Mapping[str, Any], path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield (label name, its values) from {"1": "liver"} (Decathlon), {"liver": 1} or {"liver": [1, 2]} (nnU-Net v2).
    """
    for key, value in labels.items():
        if isinstance(value, str) and key.strip().lstrip("-").isdigit():
            yield value, [int(key)]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, [value]
        elif isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            yield key, value
        else:
            raise DataError(f'{path}: label {key!r}: {value!r} is neither "1": "liver" nor "liver": 1. Mend it.')


def _classes_of(name: str, name_map: NameMap, path: Path, allow: Collection[str] = (),
                notes: list[str] | None = None) -> tuple[str, ...]:
    """The class names of one label; () where it is background or dropped. A map may name classes that Table 2 lacks."""
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
        raise DataError(f"--map: {name!r} -> {given!r} is neither a class name nor null. Both sides are e.g. "
                        "\"kidneys\".")
    try:
        return taxonomy.resolve(given)
    except ValueError:
        return (given,)


def _refuse_double_classes(labels: Sequence[Label], path: Path) -> None:
    label_of: dict[str, str] = {}
    for label in labels:
        for name in label.classes:
            if name in label_of:
                raise DataError(f"{path}: labels {label_of[name]!r} and {label.name!r} are both class {name}. "
                                "Name one label per class, with several values if need be: \"liver\": [1, 2].")
            label_of[name] = label.name


def read_map(path: Path) -> dict[str, str | None]:
    """The {label name: class name, or None to drop the label} of --map. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--map {path}: cannot be read as JSON ({error}). "
                        f"Give a file like {{\"vena\": \"postcava\"}}.") from None
    if not isinstance(content, dict):
        raise DataError(f"--map {path}: not {{label name: class name or null}}. "
                        f"Give a file like {{\"vena\": \"postcava\"}}.")
    return content


# ---------------------------------------------------------------------------------------------------------------- cases

def listed_cases(folder: Path, content: Mapping[str, Any], allow: Collection[str] = ()) -> list[CaseFiles]:
    """The cases under "training" of a dataset.json, whether or not their files are there. Raises DataError."""
    path, cases = folder / "dataset.json", []
    for entry in content["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise DataError(f'{path}: training entry {entry!r} lacks "image" or "label". Mend it.')
        image, label = (inside(folder, entry[key], path, allow) for key in ("image", "label"))
        cases.append(CaseFiles(bare(image.name), image, label))
    return cases


def _cases_in_folders(folder: Path, content: Mapping[str, Any]) -> list[CaseFiles]:
    """The cases of nnU-Net's form, one for each file in labelsTr."""
    ending = content.get("file_ending", ".nii.gz")
    labels = sorted(f for f in (folder / "labelsTr").glob("*" + ending) if not f.name.startswith("."))
    images = [folder / "imagesTr" / (label.name[:-len(ending)] + "_0000" + ending) for label in labels]
    return [CaseFiles(bare(label.name), image, label) for image, label in zip(images, labels)]


def refuse_missing_files(path: Path, cases: Sequence[CaseFiles], allow: Collection[str] = ()) -> None:
    """Raise DataError where a file of a listed case is missing, unless `allow` holds "missing".

    path: the dataset.json
    """
    missing = [str(file) for case in cases for file in (case.image, case.label) if not file.is_file()]
    if missing and "missing" not in allow:
        raise DataError(f"{path}: {len(missing)} files it needs are missing: {', '.join(missing[:5])}. "
                        "Add them, edit the list, or leave these cases out with --skip-bad.")
