"""A dataset as its publisher ships it (Section 4.1.1).

Its files are found by layouts.py; what its label values mean is in taxonomy.DATASETS. Some publishers ship a
dataset.json. It does not decide what the values mean: the Decathlon calls three different tumours "cancer", and AMOS
lists MR images beside CTs. It has to agree with the published meaning, and where it lists cases of a folder, only
those are used. Read layouts.py and dataset_json.py first, find.py next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from .. import taxonomy
from . import layouts
from .case_files import listed_cases, refuse_missing_files, with_unique_ids
from .dataset import CaseFiles, DataError, Dataset, Label, few, inside
from .dataset_json import label_values, read_json
from .layouts import Layout, Paired


def choose_layout(rows: Sequence[Layout], folder: Path) -> tuple[Layout, Paired] | None:
    """The first of the Layouts of which the folder holds a label file, with its files (layouts.pair); else None."""
    paths = list(layouts.files_below(folder)) if rows else []
    return next(((row, paired) for row in rows if (paired := layouts.pair(row, paths)).labels), None)


def read_published(folder: Path, rows: Sequence[Layout], notes: list[str], allow: Collection[str] = (),
                   more: Collection[str] = ()) -> Dataset:
    """The Dataset of a folder as published. Raises DataError.

    rows: the Layouts, editions of one dataset, that the folder may have
    notes, allow: see find.find_datasets
    more: classes beyond Table 2 that are taken from a folder of masks
    """
    chosen = choose_layout(rows, folder)
    if chosen is None:
        wanted = " or ".join(f"{label}.nii.gz" for row in rows for label in row.labels)
        raise DataError(f"{folder}: taken for {rows[0].name}, but there is no label like {wanted or 'any known'} "
                        "in it. Unpack it as published (docs/datasets.md), or describe it in a dataset.json.")
    row, paired = chosen
    published = next(d for d in taxonomy.DATASETS if d.name == row.name)
    labels = published_labels(published)
    cases = _cases(folder, row, paired, notes, allow, more)
    if labels and (folder / "dataset.json").is_file():
        cases = _only_listed(folder, cases, labels, len(published.transfer), row.name, notes, allow)
    if row.partial_from:
        part = tuple(taxonomy.NAMES[number - 1] for number in published.partial)
        cases = {number: case._replace(annotated=part) if number >= row.partial_from else case
                 for number, case in cases.items()}
    if not cases:
        raise DataError(f"{folder}: no case of {row.name} is left to use. Unpack it as published (docs/datasets.md).")
    dataset = Dataset(row.name, folder, labels, tuple(range(len(published.transfer) + 1)),
                      tuple(sorted(with_unique_ids(folder, list(cases.values())), key=lambda case: case.id)),
                      published=True)
    fewer = [case.id for case in dataset.cases if case.annotated not in (None, dataset.annotated)]
    if fewer and not row.partial_from:
        notes.append(f"{folder}: {few(fewer, 'cases')} lack masks of some classes, which count as not annotated there")
    return dataset


def published_labels(published: taxonomy.Dataset) -> tuple[Label, ...]:
    """The labels of a row of taxonomy.DATASETS, dropped ones left out; a label to split stands for two classes."""
    labels = []
    for value, number in enumerate(published.transfer, start=1):
        if number:
            name = taxonomy.NAMES[number - 1]
            classes = (name, taxonomy.BY_NAME[name].partner) if number in published.split else (name,)
            labels.append(Label(name, (value,), classes))
    return tuple(labels)


# ---------------------------------------------------------------------------------------------------------------- cases

def _cases(folder: Path, row: Layout, paired: Paired, notes: list[str], allow: Collection[str],
           more: Collection[str]) -> dict[int, CaseFiles]:
    """{number: CaseFiles} of the files that layouts.pair gives.

    Raises DataError with all files that have no partner.
    """
    images, labels, ids = paired
    doubled = [path for side in (images, labels) for same in side.values() if len(same) > 1 for path in same]
    if doubled:
        raise DataError(f"{folder}: {few(doubled, 'files')} share their ids. "
                        "Keep one image and one label for each id.")
    mr = {number for number in {*images, *labels} if row.ct_below and number >= row.ct_below}
    if mr:
        notes.append(f"{folder}: {len(mr)} MR images (ids from {row.ct_below} on) left out")
    _judge_lone_files(folder, row, paired, mr, notes, allow)
    cases = {}
    for number in sorted((images.keys() & labels.keys()) - mr):
        image, label = (inside(folder, side[number][0], folder, allow) for side in (images, labels))
        annotated = _annotated_by_masks(folder, label, allow, more) if label.is_dir() else None
        cases[number] = CaseFiles(ids[number], image, label, annotated)
    return cases


def _judge_lone_files(folder: Path, row: Layout, paired: Paired, mr: set[int], notes: list[str],
                      allow: Collection[str]) -> None:
    """Note images without label, and labels without image, that are published so. Raise DataError for others."""
    images, labels, _ = paired
    lone = {"images": [images[n][0] for n in sorted(images.keys() - labels.keys() - mr)],
            "labels": [labels[n][0] for n in sorted(labels.keys() - images.keys() - mr)]}
    if row.spare and lone[row.spare]:
        notes.append(f"{folder}: {few(lone.pop(row.spare), row.spare)} without partner left out, as published")
    if any(lone.values()):
        what = "; ".join(f"{few(files, side)} without {'label' if side == 'images' else 'image'}"
                         for side, files in lone.items() if files)
        if "missing" not in allow:
            raise DataError(f"{folder}: {what}. Add what is missing or move them away, or leave them out with "
                            "--skip-bad.")
        notes.append(f"{folder}: {what}, left out by --skip-bad")


def _annotated_by_masks(folder: Path, label: Path, allow: Collection[str], more: Collection[str]) -> tuple[str, ...]:
    """The classes of which a folder of masks has the files.

    Raises DataError where there is none, or a link leads outside.
    """
    masks = layouts.mask_files(label, more)
    if not masks:
        raise DataError(f"{label}: no mask of a known class. Unpack it as published (docs/datasets.md).")
    for path in (path for paths in masks.values() for path in paths if path.is_symlink()):
        inside(folder, path.relative_to(folder), folder, allow)
    return tuple(masks)


# --------------------------------------------------------------------------------------- the publisher's dataset.json

def _only_listed(folder: Path, cases: dict[int, CaseFiles], labels: Sequence[Label], highest: int, name: str,
                 notes: list[str], allow: Collection[str]) -> dict[int, CaseFiles]:
    """The cases that the publisher's dataset.json lists. Raises DataError where its labels are not the published ones.

    highest: the largest label value of the published dataset
    """
    path = folder / "dataset.json"
    content = read_json(path)
    _check_meaning(path, label_values(content["labels"], path), labels, highest, name)
    if "training" not in content:
        return cases
    listed = listed_cases(folder, content, allow)
    refuse_missing_files(path, listed, allow)
    images = {case.image.resolve() for case in listed}
    covered = {image.parent for image in images}             # a list of imagesTr says nothing about imagesVa
    kept = {number: case for number, case in cases.items()
            if case.image.resolve() in images or case.image.resolve().parent not in covered}
    if len(kept) < len(cases):
        notes.append(f"{folder}: {len(cases) - len(kept)} cases left out that its dataset.json does not list")
    return kept


def _check_meaning(path: Path, given: Iterable[tuple[str, list[int]]], labels: Sequence[Label], highest: int,
                   name: str) -> None:
    """Raise DataError where a dataset.json contradicts the published labels. given: its (label name, values)."""
    meaning, values = {label.values[0]: label.classes for label in labels}, set()
    for label_name, raw in given:
        values.update(raw)
        try:
            classes = taxonomy.resolve(label_name)
        except ValueError:                                   # "background", "cancer", "Vessel"
            continue
        if any(meaning.get(value) != classes for value in raw):
            raise DataError(f"{path}: label {label_name!r} is {raw}, in the published {name} it is not. "
                            "Rename the folder.")
    if values - {0} != set(range(1, highest + 1)):
        raise DataError(f"{path}: its labels are not the 1 to {highest} of the published {name}. Rename the folder.")
