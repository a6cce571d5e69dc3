"""Which datasets a folder holds, which of their labels is which class, which classes they annotate at all: Sections 3.1, 4.1.1.

    ROOT/<dataset>/dataset.json        the Medical Segmentation Decathlon's form or nnU-Net v2's
    ROOT/<published name>/             as its publisher ships it: layouts.py
      -> Dataset: label values and their classes, cases as CaseFiles

A class that a dataset, or a case of it, does not annotate is *unlabelled*, never background. Read taxonomy.py and layouts.py
first.

Which says what the values mean: a dataset.json, except where the publisher ships one itself (the Decathlon calls three
different tumours "cancer", AMOS lists MR beside CT). There the published meaning holds, the dataset.json has to agree with
it, and its training list says which cases of the folders it lists are used. So it is with --dataset NAME=FOLDER.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..imaging.file_names import bare
from . import layouts

SUFFIXES = (".nii.gz", ".nii")


class DataError(ValueError):
    """A dataset that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Label:
    """One label of a dataset.json: its raw values and the class (or right and left classes) it stands for."""

    name: str
    values: tuple
    classes: tuple                # one name, or (right, left) for a merged pair


class CaseFiles(NamedTuple):
    """One case as published."""

    id: str
    image: Path
    label: Path                   # a label map, or a folder of binary masks (layouts.mask_files)
    annotated: tuple = None       # names of the classes annotated in this case; None: all those of its dataset


@dataclass(frozen=True)
class Dataset:
    """A folder of cases, its label values mapped to classes."""

    name: str
    folder: Path
    labels: tuple                 # of Label; none where the labels are folders of masks
    values: tuple                 # every raw value that may occur, background and dropped labels included
    cases: tuple                  # of CaseFiles
    published: bool = False       # the values' meaning is that of layouts.py, not of a dataset.json

    @property
    def annotated(self):
        """Names of the classes this dataset annotates, in the order of Table 2, others after them."""
        names = {c for label in self.labels for c in label.classes} | {c for case in self.cases for c in case.annotated or ()}
        return in_order(names)

    def annotated_in(self, case):
        """The same for one of its CaseFiles."""
        return self.annotated if case.annotated is None else in_order(case.annotated)


def in_order(names):
    """Class names in the order of Table 2, those it does not list after them."""
    rank = {n: i for i, n in enumerate(taxonomy.NAMES)}
    return tuple(sorted(names, key=lambda n: (rank.get(n, len(rank)), n)))


def find_datasets(root, name_map=None, named=(), notes=None, allow=()):
    """Every dataset in the sub-folders of `root` (or `root` itself), sorted by folder, then those of `named`.

    name_map: {label name: class name, or None to drop the label}; {name: name} asks for a class beyond Table 2, which a folder
           of masks may then hold too
    named: (name, folder) pairs, of --dataset: a published dataset's name, or any name for a folder with a dataset.json
    notes: a list that gets one line for everything that is left out by intention
    allow: "missing" (files of a case, which then fails when it is read; a published image or label without its partner is
           left out), "outside" (files that lie outside the dataset's folder), "unknown" (labels of no class, left out)
    Raises DataError; a folder with NIfTI files that nobody can tell is one, hidden folders are not looked into.
    """
    notes = [] if notes is None else notes
    datasets = {}
    for folder, name in dataset_folders(root, named, notes):
        dataset = read_folder(folder, name, name_map, notes, allow)
        if other := datasets.get(dataset.name):
            raise DataError(f'{other.folder} and {dataset.folder} both have the "name" {dataset.name}. '
                            "Change one dataset.json, or leave one of them out.")
        datasets[dataset.name] = dataset
    return list(datasets.values())


def dataset_folders(root, named=(), notes=None):
    """(folder, its name in `named` or None) of each dataset of `find_datasets`, before it is read. Raises DataError."""
    found = [] if root is None else [(f, None) for f in _folders_in(Path(root), [] if notes is None else notes)]
    return found + [(Path(folder), name) for name, folder in named]


def _folders_in(root, notes):
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --data-root holds one folder per dataset, see docs/datasets.md.")
    if (root / "dataset.json").is_file() or _choose(layouts.known_as(root.absolute().name), root):
        return [root]
    folders = list(_inner_folders(root, notes))
    if not folders:
        raise DataError(f"{root}: no dataset.json in it or in its sub-folders, and no published dataset's folder. "
                        "See docs/datasets.md for the layout.")
    return folders


def _inner_folders(root, notes):
    """Yield the datasets' folders below `root`; folders that only hold datasets (10_Decathlon/Task03_Liver) are entered."""
    for folder in _sub_folders(root):
        if layouts.is_mr(folder.name):
            notes.append(f"{folder}: left out, its images are MR")
        elif _is_dataset(folder):
            yield folder
        elif any(_is_dataset(f) or layouts.is_mr(f.name) for f in _sub_folders(folder)):
            yield from _inner_folders(folder, notes)
        elif any(layouts.files_below(folder)):
            raise DataError(f"{folder}: holds NIfTI files, but no dataset.json, and no published dataset has this name. "
                            "Give --dataset NAME=FOLDER (names: docs/datasets.md), add a dataset.json, or move it away.")


def _sub_folders(folder):
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _is_dataset(folder):
    return (folder / "dataset.json").is_file() or bool(layouts.known_as(folder.name))


def read_folder(folder, name=None, name_map=None, notes=None, allow=()):
    """The Dataset of a folder, by the name given with --dataset or by the folder's own. Raises DataError."""
    notes = [] if notes is None else notes
    if not folder.is_dir():
        raise DataError(f"--dataset {name}={folder}: no such folder. Give the folder that holds the dataset.")
    rows = layouts.known_as(folder.absolute().name if name is None else name)
    has_json = (folder / "dataset.json").is_file()
    if has_json and not rows:
        return read_dataset(folder, name_map, name, allow, notes)
    if has_json and name is None and not rows[0].ships_json:          # somebody described it here
        return read_dataset(folder, name_map, None, allow, notes)
    if not rows:
        raise DataError(f"--dataset {name}={folder}: no published dataset of this name and no dataset.json in the folder. "
                        "`python -m uniseg layouts` prints the names.")
    wanted = tuple(label for label, name in (name_map or {}).items() if label == name and name not in taxonomy.BY_NAME)
    return read_published(folder, rows, notes, allow, wanted)


# ----------------------------------------------------------------------------------------------- as publishers ship them

def _choose(rows, folder):
    """(Layout, its pair) of the first edition of which the folder holds a label file, or None."""
    paths = list(layouts.files_below(folder)) if rows else ()
    return next(((row, found) for row in rows if (found := layouts.pair(row, paths))[1]), None)


def read_published(folder, rows, notes, allow=(), more=()):
    """The Dataset of a folder as published. rows: the Layouts, editions of one dataset, that it may have.

    more: classes beyond Table 2 that are taken from a folder of masks
    """
    chosen = _choose(rows, folder)
    if chosen is None:
        wanted = " or ".join(f"{label}.nii.gz" for r in rows for label in r.labels)
        raise DataError(f"{folder}: taken for {rows[0].name}, but there is no label like {wanted or 'any known'} in it. "
                        "Unpack it as published (docs/datasets.md), or describe it in a dataset.json.")
    row, found = chosen
    published = next(d for d in taxonomy.DATASETS if d.name == row.name)
    names = [taxonomy.NAMES[c - 1] if c else "" for c in published.transfer]
    labels = tuple(Label(name, (value,), (name, taxonomy.BY_NAME[name].partner) if c in published.split else (name,))
                   for value, (c, name) in enumerate(zip(published.transfer, names), start=1) if c)
    cases = _published_cases(folder, row, found, notes, allow, more)
    if labels and (folder / "dataset.json").is_file():
        cases = _as_listed(folder, cases, labels, len(names), row.name, notes, allow)
    if row.partial_from:
        part = tuple(taxonomy.NAMES[c - 1] for c in published.partial)
        cases = {number: case._replace(annotated=part) if number >= row.partial_from else case for number, case in cases.items()}
    if not cases:
        raise DataError(f"{folder}: no case of {row.name} is left to use. Unpack it as published (docs/datasets.md).")
    dataset = Dataset(row.name, folder, labels, tuple(range(len(names) + 1)),
                      tuple(sorted(cases.values(), key=lambda case: case.id)), published=True)
    every = dataset.annotated
    fewer = [case.id for case in dataset.cases if case.annotated not in (None, every)]
    if fewer and not row.partial_from:
        notes.append(f"{folder}: {_few(fewer, 'cases')} lack masks of some classes, which count as not annotated there")
    return dataset


def _published_cases(folder, row, found, notes, allow, more):
    """{number: CaseFiles} of what layouts.pair has found. Raises DataError with all images and labels that have no partner."""
    images, labels, ids = found
    twice = [path for side in (images, labels) for same in side.values() if len(same) > 1 for path in same]
    if twice:
        raise DataError(f"{folder}: {_few(twice, 'files')} share their ids. Keep one image and one label for each id.")
    mr = {number for number in {*images, *labels} if row.ct_below and number >= row.ct_below}
    if mr:
        notes.append(f"{folder}: {len(mr)} MR images (ids from {row.ct_below} on) left out")
    lone = {"images": [images[n][0] for n in sorted(images.keys() - labels.keys() - mr)],
            "labels": [labels[n][0] for n in sorted(labels.keys() - images.keys() - mr)]}
    if row.spare and lone[row.spare]:
        notes.append(f"{folder}: {_few(lone.pop(row.spare), row.spare)} without partner left out, as published")
    if any(lone.values()):
        what = "; ".join(f"{_few(files, side)} without {'label' if side == 'images' else 'image'}"
                         for side, files in lone.items() if files)
        if "missing" not in allow:
            raise DataError(f"{folder}: {what}. Add what is missing or move them away, or leave them out with --skip-bad.")
        notes.append(f"{folder}: {what}, left out by --skip-bad")
    cases = {}
    for number in sorted((images.keys() & labels.keys()) - mr):
        image, label = (_inside(folder, side[number][0], folder, allow) for side in (images, labels))
        annotated = _annotated_by_masks(folder, label, allow, more) if label.is_dir() else None
        cases[number] = CaseFiles(ids[number], image, label, annotated)
    return cases


def _annotated_by_masks(folder, label, allow, more):
    masks = layouts.mask_files(label, more)
    if not masks:
        raise DataError(f"{label}: no mask of a known class. Unpack it as published (docs/datasets.md).")
    for path in (path for paths in masks.values() for path in paths if path.is_symlink()):
        _inside(folder, path.relative_to(folder), folder, allow)
    return tuple(masks)


def _as_listed(folder, cases, labels, highest, name, notes, allow):
    """The cases that the dataset.json of a published dataset lists, after a check that its labels are the published ones."""
    path = folder / "dataset.json"
    content = _read_json(path)
    meaning, values = {label.values[0]: label.classes for label in labels}, set()
    for given, raw in _label_values(content["labels"], path):
        values.update(raw)
        try:
            classes = taxonomy.resolve(given)
        except ValueError:                                   # "background", "cancer", "Vessel"
            continue
        if any(meaning.get(value) != classes for value in raw):
            raise DataError(f"{path}: label {given!r} is {raw}, in the published {name} it is not. Rename the folder.")
    if values - {0} != set(range(1, highest + 1)):
        raise DataError(f"{path}: its labels are not the 1 to {highest} of the published {name}. Rename the folder.")
    if "training" not in content:
        return cases
    listed = _decathlon_cases(folder, content, allow)
    _refuse_lost(path, listed, allow)
    images = {case.image.resolve() for case in listed}
    covered = {image.parent for image in images}             # a list of imagesTr says nothing about imagesVa
    kept = {number: case for number, case in cases.items()
            if case.image.resolve() in images or case.image.resolve().parent not in covered}
    if len(kept) < len(cases):
        notes.append(f"{folder}: {len(cases) - len(kept)} cases left out that its dataset.json does not list")
    return kept


def _few(paths, what):
    """"7 images (a, b, c, d, e, ...)" """
    return f"{len(paths)} {what} ({', '.join(map(str, paths[:5]))}{', ...' if len(paths) > 5 else ''})"


# ------------------------------------------------------------------------------------------------------- dataset.json

def read_dataset(folder, name_map=None, name=None, allow=(), notes=None):
    """Parse one dataset.json.

    name_map: {label name: class name or null}, consulted before the aliases
    name:     of the dataset; by default the "name" of the file, else the folder's
    allow, notes: see find_datasets
    """
    path = Path(folder) / "dataset.json"
    content, labels, values = read_labels(path, name_map, allow, notes)
    cases = _nnunet_cases(Path(folder), content) if "training" not in content else \
        _decathlon_cases(Path(folder), content, allow)
    if not cases:
        raise DataError(f"{path}: no training case. List them under \"training\" or put files into imagesTr and labelsTr.")
    _refuse_lost(path, cases, allow)
    return Dataset(name or content.get("name") or Path(folder).name, Path(folder), labels, values, tuple(cases))


def read_labels(path, name_map=None, allow=(), notes=None):
    """A dataset.json's content, its labels that are classes (a tuple of Label), and every value it names, ascending.

    The options are those of read_dataset.
    """
    content = _read_json(path)
    labels, values = [], {0}
    for label, raw in _label_values(content["labels"], path):
        values.update(raw)
        classes = _classes_of(label, name_map or {}, path, allow, notes)
        if classes and 0 in raw:
            raise DataError(f"{path}: label {label!r} has the value 0, which is background. Number the labels from 1.")
        if classes:
            labels.append(Label(label, tuple(raw), classes))
    _refuse_double_classes(labels, path)
    return content, tuple(labels), tuple(sorted(values))


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}). Mend it.") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: no "labels". Add e.g. "labels": {{"0": "background", "1": "liver"}}.')
    return content


def _refuse_lost(path, cases, allow):
    lost = [str(f) for case in cases for f in (case.image, case.label) if not f.is_file()]
    if lost and "missing" not in allow:
        raise DataError(f"{path}: {len(lost)} files it needs are missing: {', '.join(lost[:5])}. Add them, edit the list, or leave "
                        "these cases out with --skip-bad.")


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


def _classes_of(name, name_map, path, allow=(), notes=None):
    """The class names of one label; () where it is background or dropped. A map may name classes that Table 2 lacks."""
    key = name if name in name_map else taxonomy.normalise_name(name)
    if key in name_map:
        given = name_map[key]
        if given is None:
            return ()
        if not isinstance(given, str):
            raise DataError(f"--map: {name!r} -> {given!r} is neither a class name nor null. Both sides are e.g. \"kidneys\".")
        try:
            return taxonomy.resolve(given)
        except ValueError:
            return (given,)
    if key in ("background", "bg", "clear_label"):
        return ()
    try:
        return taxonomy.resolve(name)
    except ValueError as error:
        if "unknown" in allow:
            if notes is not None:
                notes.append(f"{path}: label {name!r} is left out, it is no known class and --classes does not name it")
            return ()
        raise DataError(f"{path}: {error} Or give --map FILE with {{\"{name}\": \"class\"}}, null to drop it, or name with "
                        "--classes what is to be learned.") from None


def _refuse_double_classes(labels, path):
    seen = {}
    for label in labels:
        for name in label.classes:
            if name in seen:
                raise DataError(f"{path}: labels {seen[name]!r} and {label.name!r} are both class {name}. "
                                "Name one label per class, with several values if need be: \"liver\": [1, 2].")
            seen[name] = label.name


def _inside(folder, relative, path, allow):
    """folder/relative, refused where it leads out of the folder."""
    full = (folder / relative).resolve()
    if not full.is_relative_to(folder.resolve()) and "outside" not in allow:
        raise DataError(f"{path}: {str(relative)!r} leads out of the dataset's folder. Use paths inside it, or --allow-outside.")
    return folder / relative


def _decathlon_cases(folder, content, allow):
    path, cases = folder / "dataset.json", []
    for entry in content["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise DataError(f'{path}: training entry {entry!r} lacks "image" or "label". Mend it.')
        image, label = (_inside(folder, entry[key], path, allow) for key in ("image", "label"))
        cases.append(CaseFiles(bare(image.name), image, label))
    return cases


def _nnunet_cases(folder, content):
    ending = content.get("file_ending", ".nii.gz")
    labels = sorted(f for f in (folder / "labelsTr").glob("*" + ending) if not f.name.startswith("."))
    return [CaseFiles(bare(f.name), folder / "imagesTr" / (f.name[:-len(ending)] + "_0000" + ending), f) for f in labels]


def read_map(path):
    """The {label name: class name or null} of --map."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--map {path}: cannot be read as JSON ({error}). Give a file like {{\"vena\": \"postcava\"}}.") from None
    if not isinstance(content, dict):
        raise DataError(f"--map {path}: not {{label name: class name or null}}. Give a file like {{\"vena\": \"postcava\"}}.")
    return content


def named_folder(text):
    """(name, folder) of the text of --dataset; argparse shows the error."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, as in LiTS=/data/lits")
    return name, Path(folder)
