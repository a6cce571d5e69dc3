"""What is compared with what: predictions with references, second readers with first, and the classes that are scored.

Read readings.py first, scores.py next.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import taxonomy
from ..datasets.dataset import DataError
from ..datasets.dataset_json import NameMap
from .readings import Reading, as_folder_name, in_folder
from .scores import group_of

HEALTHY = "healthy"          # the column "dataset" of patients without tumour
HealthyFolder = tuple[tuple[str, ...], Path]     # tumours that its patients are known to lack, () for all; folder
HealthyReading = tuple[Reading, tuple[str, ...]]


def find_predictions(folder: Path, references: Iterable[Reading], name_map: NameMap | None = None,
                     numbers: str | None = None, notes: list[str] | None = None) -> dict[str, Reading]:
    """{name of a reference: the Reading of its prediction}.

    folder: holds the predictions, or sub-folders with the names of the datasets
    numbers, notes: see numbers.numbers_of

    In folders of masks without a JSON, a class that one case has counts as predicted in all cases: where its file is
    missing, the prediction is empty. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the one with the predictions.")
    references = list(references)
    flat = in_folder(folder, "", name_map, numbers, notes)
    sub_folders = {name: folder / as_folder_name(name) for name in {r.dataset for r in references} if name}
    by_dataset = {name: in_folder(inner, name, name_map, numbers, notes)
                  for name, inner in sub_folders.items() if inner.is_dir()}
    predictions: dict[str, Reading] = {}
    user_of: dict[str, str] = {}               # case in `flat` -> name of the reference that it belongs to
    for reference in references:
        prediction = by_dataset.get(reference.dataset, {}).get(reference.case)
        if prediction is None and (prediction := flat.get(reference.case)):
            user = user_of.setdefault(reference.case, reference.name)
            if user != reference.name:
                raise DataError(f"{prediction.path}: may be {user} or {reference.name}. "
                                "Put the predictions of each dataset into a folder of the dataset's name.")
        if prediction:
            predictions[reference.name] = prediction
    return with_empty_masks(predictions)


def with_empty_masks(readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """The predictions of one tool, with an empty mask for every class that only other predictions have.

    readings: {name: Reading}. Only folders of masks whose classes are not known change.
    """
    classes = {c for r in readings.values() if r.masks is not None and not r.classes_known for c in r.masks}
    return {name: r if r.masks is None or r.classes_known else r._replace(masks={c: r.masks.get(c) for c in classes})
            for name, r in readings.items()}


def healthy_option(text: str) -> HealthyFolder:
    """--healthy: (the tumours that its patients are known to lack, folder); no tumour stands for every one.

    >>> healthy_option("liver_tumor,kidney_tumor=chaos")
    (('liver_tumor', 'kidney_tumor'), PosixPath('chaos'))

    A folder that exists is taken as it is, whatever its name. Raises argparse.ArgumentTypeError for a class that is no
    tumour.
    """
    names, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return (), Path(text)
    try:
        tumours = tuple(name for part in names.split(",") for name in taxonomy.resolve(part.strip()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if others := [name for name in tumours if group_of(name) != "tumours"]:
        raise argparse.ArgumentTypeError(f"{text}: {others[0]} is no tumour")
    return tumours, Path(folder)


def refuse_same_healthy(healthy: Sequence[HealthyFolder]) -> None:
    """Raise ValueError where two folders of --healthy share their name: it tells their patients apart."""
    names = [folder.absolute().name.casefold() for _, folder in healthy]
    if len(set(names)) < len(names):
        raise ValueError("--healthy: two folders share their name, which tells their patients apart. Rename one, or "
                         "name all tumours of a folder in one option.")


def healthy_name(folder: Path, among: int) -> str:
    """What the cases of a folder of --healthy have in the column "dataset"; among: how many folders are given."""
    return HEALTHY if among == 1 else f"{HEALTHY} {folder.absolute().name}"


def healthy_predictions(healthy: Sequence[HealthyFolder], name_map: NameMap | None,
                        classes: Collection[str] | None) -> list[HealthyReading]:
    """(Reading, tumours that the patient is known to lack, () for all) of predictions for patients without tumour.

    healthy: of --healthy; classes: names given with --classes, or None
    Raises DataError where nothing says which tumours the model of a label map looks for.
    """
    found = []
    for tumours, folder in healthy:
        if not folder.is_dir():
            raise DataError(f"--healthy {folder}: no such folder. "
                            "Give the one with predictions for patients without tumour.")
        readings = list(with_empty_masks(in_folder(folder, name_map=name_map)).values())
        if not readings:
            raise DataError(f"--healthy {folder}: no prediction in it. Give results for patients without tumour.")
        if classes is None and not tumours and (unclear := [r for r in readings if r.is_plain_map]):
            raise DataError(f"{unclear[0].path}: a label map that does not say which tumours its model looks for. "
                            "Name them with --classes.")
        found += [(r._replace(dataset=healthy_name(folder, len(healthy))), tumours) for r in readings]
    return found


def wanted_of_healthy(lacks: Collection[str], classes: Collection[str] | None) -> Collection[str] | None:
    """The classes that a patient counts for: those of --healthy and of --classes; None where neither names any."""
    return classes if not lacks else lacks if classes is None else set(lacks) & set(classes)


def match_readers(others: Iterable[Reading], references: Iterable[Reading]) -> dict[str, Reading]:
    """{name of a reference: the second reader's Reading} where that is of the same dataset and case.

    A Reading of another dataset is taken where it is the only one with the case's name.
    """
    by_case: dict[str, list[Reading]] = {}
    for reading in others:
        by_case.setdefault(reading.case, []).append(reading)
    pairs = {}
    for reference in references:
        same_case = by_case.get(reference.case, [])
        same_dataset = [other for other in same_case if other.dataset == reference.dataset]
        if len(same_dataset or same_case) == 1:
            pairs[reference.name] = (same_dataset or same_case)[0]
    return pairs


# -------------------------------------------------------------------------------------------------------------- classes

def chosen_classes(names: str | None, readings: Iterable[Reading]) -> set[str] | None:
    """The class names of the text of --classes, aliases resolved; None where the option is not given.

    Raises ValueError for an unknown name.
    """
    if names is None:
        return None
    known = {c for r in readings for c in r.classes}
    given = [name.strip() for name in names.split(",")]
    return {c for name in given for c in ((name,) if name in known else taxonomy.resolve(name))}


def without_unannotated(rows: Sequence[dict[str, Any]], references: Iterable[Reading], seconds: Mapping[str, Reading],
                        classes: Collection[str] | None, notes: list[str]) -> list[dict[str, Any]]:
    """The rows without classes that nobody drew in plain label maps: nothing says that those are annotated there.

    rows: of scores.score_case; seconds: {name: Reading} of the second reader
    classes: names given with --classes, which then are annotated; or None
    """
    if classes is not None:
        return list(rows)
    plain = {(r.dataset, r.case) for r in references if r.is_plain_map}
    drawn = {row["class"] for row in rows if row["present"]}
    kept = [row for row in rows if (row["dataset"], row["case"]) not in plain or row["class"] in drawn]
    if dropped := {row["class"] for row in rows} - {row["class"] for row in kept}:
        notes.append(f"{len(dropped)} classes of Table 2 are in no label map of the references and count as not "
                     "annotated; --classes names those that are")
    if any(r.is_plain_map for r in seconds.values()):
        drawn = {row["class"] for row in kept if row.get("reader2_voxels")}
        kept = [{key: value for key, value in row.items() if row["class"] in drawn or "reader" not in key}
                for row in kept]
    return kept
