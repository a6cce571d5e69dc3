"""Which datasets a folder holds, which of their labels is which class, which classes they annotate at all: Sections 3.1, 4.1.1.

    ROOT/<dataset>/dataset.json        the Medical Segmentation Decathlon's form or nnU-Net v2's
      -> Dataset: label values and their classes, cases as (id, image path, label path)

A class that a dataset does not annotate is *unlabelled*, never background. Read taxonomy.py first.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from . import taxonomy

SUFFIXES = (".nii.gz", ".nii")


class DataError(ValueError):
    """A dataset that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Label:
    """One label of a dataset.json: its raw values and the class (or right and left classes) it stands for."""

    name: str
    values: tuple
    classes: tuple                # one name, or (right, left) for a merged pair


@dataclass(frozen=True)
class Dataset:
    """A folder with a dataset.json, its names mapped to classes."""

    name: str
    folder: Path
    labels: tuple                 # of Label
    values: tuple                 # every raw value that may occur, background and dropped labels included
    cases: tuple                  # of (case id, image path, label path)

    @property
    def annotated(self):
        """Names of the classes this dataset annotates, in the order of Table 2, others after them."""
        names = {c for label in self.labels for c in label.classes}
        rank = {n: i for i, n in enumerate(taxonomy.NAMES)}
        return tuple(sorted(names, key=lambda n: (rank.get(n, len(rank)), n)))


def dataset_folders(root):
    """`root` itself if it holds a dataset.json, else every sub-folder that does, sorted by name. Raises DataError."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --data-root holds one folder per dataset, each with a dataset.json.")
    folders = [root] if (root / "dataset.json").is_file() else \
        sorted(f for f in root.iterdir() if (f / "dataset.json").is_file())
    if not folders:
        raise DataError(f"{root}: no dataset.json in it or in its sub-folders. See README, Data, for the layout.")
    return folders


def find_datasets(root, name_map=None):
    """The Dataset of each of the `dataset_folders` of `root`. Raises DataError."""
    datasets = {}
    for folder in dataset_folders(root):
        dataset = read_dataset(folder, name_map)
        if other := datasets.get(dataset.name):
            raise DataError(f'{other.folder} and {folder} both have the "name" {dataset.name}. Change one dataset.json.')
        datasets[dataset.name] = dataset
    return list(datasets.values())


def read_dataset(folder, name_map=None, incomplete=False):
    """Parse one dataset.json.

    name_map:   {label name: class name or null}, consulted before the aliases
    incomplete: do not refuse it where files of its cases are missing
    """
    path = Path(folder) / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}). Mend it.") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: no "labels". Add e.g. "labels": {{"0": "background", "1": "liver"}}.')
    labels, values = [], {0}
    for name, raw in _label_values(content["labels"], path):
        values.update(raw)
        classes = _classes_of(name, name_map or {}, path)
        if classes and 0 in raw:
            raise DataError(f"{path}: label {name!r} has the value 0, which is background. Number the labels from 1.")
        if classes:
            labels.append(Label(name, tuple(raw), classes))
    _refuse_double_classes(labels, path)
    cases = _nnunet_cases(Path(folder), content) if "training" not in content else _decathlon_cases(Path(folder), content)
    if not cases:
        raise DataError(f"{path}: no training case. List them under \"training\" or put files into imagesTr and labelsTr.")
    lost = [str(f) for _, image, label in cases for f in (image, label) if not f.is_file()]
    if lost and not incomplete:
        raise DataError(f"{path}: {len(lost)} files it needs are missing: {', '.join(lost[:5])}. Add them or edit the list.")
    return Dataset(content.get("name") or Path(folder).name, Path(folder), tuple(labels), tuple(sorted(values)), tuple(cases))


def _label_values(labels, path):
    """(name, [values]) of both forms: {"1": "liver"} (Decathlon) and {"liver": 1} or {"liver": [1, 2]} (nnU-Net v2)."""
    for key, value in labels.items():
        if isinstance(value, str) and key.strip().lstrip("-").isdigit():
            yield value, [int(key)]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, [value]
        elif isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            yield key, value
        else:
            raise DataError(f'{path}: label {key!r}: {value!r} is neither "1": "liver" nor "liver": 1. Mend it.')


def _classes_of(name, name_map, path):
    """The class names of one label; () where it is background or dropped. A map may name classes that Table 2 lacks."""
    if name in name_map:
        given = name_map[name]
        if given is None:
            return ()
        if not isinstance(given, str):
            raise DataError(f"--map: {name!r} -> {given!r} is neither a class name nor null. Both sides are e.g. \"kidneys\".")
        try:
            return taxonomy.resolve(given)
        except ValueError:
            return (given,)
    if taxonomy.normalise_name(name) in ("background", "bg", "clear_label"):
        return ()
    try:
        return taxonomy.resolve(name)
    except ValueError as error:
        raise DataError(f"{path}: {error} Or give --map FILE with {{\"{name}\": \"class\"}}, null to drop it.") from None


def _refuse_double_classes(labels, path):
    seen = {}
    for label in labels:
        for name in label.classes:
            if name in seen:
                raise DataError(f"{path}: labels {seen[name]!r} and {label.name!r} are both class {name}. "
                                "Name one label per class, with several values if need be: \"liver\": [1, 2].")
            seen[name] = label.name


def _inside(folder, relative, path):
    """folder/relative, refused where it leads out of the folder."""
    full = (folder / relative).resolve()
    if not full.is_relative_to(folder.resolve()):
        raise DataError(f"{path}: {relative!r} leads out of the dataset's folder. Use paths inside it.")
    return folder / relative


def _decathlon_cases(folder, content):
    path, cases = folder / "dataset.json", []
    for entry in content["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise DataError(f'{path}: training entry {entry!r} lacks "image" or "label". Mend it.')
        image, label = (_inside(folder, entry[key], path) for key in ("image", "label"))
        cases.append((_stem(image), image, label))
    return cases


def _nnunet_cases(folder, content):
    ending = content.get("file_ending", ".nii.gz")
    labels = sorted(f for f in (folder / "labelsTr").glob("*" + ending) if not f.name.startswith("."))
    return [(_stem(f), folder / "imagesTr" / (f.name[:-len(ending)] + "_0000" + ending), f) for f in labels]


def _stem(path):
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def read_map(path):
    """The {label name: class name or null} of --map."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--map {path}: cannot be read as JSON ({error}). Give a file like {{\"vena\": \"postcava\"}}.") from None
    if not isinstance(content, dict):
        raise DataError(f"--map {path}: not {{label name: class name or null}}. Give a file like {{\"vena\": \"postcava\"}}.")
    return content
