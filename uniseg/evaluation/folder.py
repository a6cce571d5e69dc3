"""The folder of an evaluation: cases.csv, a row for each case and class, and summary.json. Reading them again, and folds.

A training run's validation.json (run_folder.write_validation) is read as an evaluation too: its scores are those of the
held-out cases, on the model's grid, without surfaces. Five runs are the five folds of Section 4.2.1. Read scores.py first.
"""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np

from ..datasets.dataset import DataError
from ..machine.files import atomic_write
from ..taxonomy import kind_of
from .scores import COLUMNS, classes_in

CASES, SUMMARY, VALIDATION = "cases.csv", "summary.json", "validation.json"


def write(out, rows, summary):
    """cases.csv, then summary.json: where that stands, the evaluation is complete."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    for name, content in ((CASES, text.getvalue()), (SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")):
        with atomic_write(out / name) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")


def _cell(value):
    return int(value) if isinstance(value, bool) else value       # floats with all their digits: they are read as they were


def holds_one(out):
    return (out / CASES).exists() or (out / SUMMARY).exists()


# --------------------------------------------------------------------------------------------------------------- reading

def read(folder, epoch="last"):
    """(rows, {"fold", "folds"} or {}) of an evaluation, or of a training run at its "last" or "best" epoch. Raises DataError."""
    if (folder / CASES).is_file():
        return _read_cases(folder / CASES), _fold_of_summary(folder / SUMMARY)
    if (folder / VALIDATION).is_file():
        return _read_validation(folder / VALIDATION, epoch)
    raise DataError(f"{folder}: holds neither {CASES} nor {VALIDATION}. Give the folder of an evaluation or of a training run.")


def _read_cases(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if set(table.fieldnames or ()) != set(COLUMNS):
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return [{key: _value(text, COLUMNS[key]) for key, text in row.items()} for row in table]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Evaluate again with --overwrite.") from None


def _value(text, kind):
    if text == "":
        return "" if kind is str else None
    return bool(int(text)) if kind is bool else kind(text)


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Make it again.") from None


def _fold_of_summary(path):
    settings = _read_json(path).get("settings", {}) if path.is_file() else {}
    return {key: settings[key] for key in ("fold", "folds") if settings.get("fold") is not None}


def _read_validation(path, epoch):
    content = _read_json(path)
    scores = content.get(epoch)
    if not isinstance(scores, dict) or not isinstance(scores.get("cases"), dict):
        raise DataError(f"{path}: no scores of the {epoch} epoch. Train until the first validation.")
    rows = []
    for name, classes in scores["cases"].items():
        dataset, _, case = name.rpartition("/")
        rows += [{"dataset": dataset, "case": case, "class": c, "kind": kind_of(c), "dice": found["dice"],
                  "reference_voxels": found["reference"], "predicted_voxels": found["predicted"],
                  "present": found["reference"] > 0, "found": found["predicted"] > 0} for c, found in classes.items()]
    return rows, {key: content[key] for key in ("fold", "folds") if content.get("folds", 1) > 1}


def pool(folders, epoch="last"):
    """(all rows with their "fold", notes) of evaluations or runs, the folds of one cross-validation; one is read as it is.

    Raises DataError where a case is in two of them, or where they are folds of different divisions.
    """
    parts = [(folder, *read(folder, epoch)) for folder in folders]
    owners, rows = {}, []
    for i, (folder, own, place) in enumerate(parts):
        for row in own:
            patient = (row["dataset"], row["case"])
            if owners.setdefault(patient, folder) != folder:
                raise DataError(f"{folder}: case {'/'.join(filter(None, patient))} is in {owners[patient]} too. A case may be "
                                "held out once; leave one of them out.")
        rows += [{**row, "fold": place.get("fold", i if len(parts) > 1 else row.get("fold"))} for row in own]
    return rows, _fold_notes(parts)


def _fold_notes(parts):
    """What is not as in a whole cross-validation. Raises DataError for folds of different divisions."""
    told = {place["fold"]: folder for folder, _, place in parts if place}
    counts = {place["folds"] for _, _, place in parts if place}
    if len(parts) < 2:
        return []
    if len(counts) > 1:
        raise DataError(f"{parts[0][0]}: the runs are folds of different divisions ({', '.join(map(str, sorted(counts)))} "
                        "folds). Give runs of one cross-validation.")
    if not counts:
        return ["no folder says which fold it is; each counts as one"]
    missing = [str(k) for k in range(counts.pop()) if k not in told]
    notes = [f"fold {', '.join(missing)} is missing: means are not over all cases"] if missing else []
    names = [set(classes_in(rows)) for _, rows, _ in parts]
    if uneven := sorted(set.union(*names) - set.intersection(*names)):
        notes.append(f"not in every fold: {', '.join(uneven)}")
    return notes


def fold_means(rows):
    """{class: {"folds", "mean", "sd"}}: mean and standard deviation (n - 1) over the folds' means of Dice; sd None for one."""
    found = {}
    for name in classes_in(rows):
        folds = {}
        for row in rows:
            if row["class"] == name and row.get("dice") is not None:
                folds.setdefault(row["fold"], []).append(row["dice"])
        means = [float(np.mean(values)) for values in folds.values()]
        if means:
            found[name] = {"folds": len(means), "mean": float(np.mean(means)),
                           "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None}
    return found


# ------------------------------------------------------------------------------------------------------------ comparing

def paired_differences(rows, others):
    """({class: differences of Dice, own less other, one a patient}, notes) of the cases that both evaluations scored."""
    theirs = {(row["dataset"], row["case"], row["class"]): row for row in others}
    found, strange = {}, 0
    for row in rows:
        other = theirs.get((row["dataset"], row["case"], row["class"]))
        if other and row.get("dice") is not None and other.get("dice") is not None:
            found.setdefault(row["class"], {})[row["dataset"], row["case"]] = row["dice"] - other["dice"]
            volumes = [r.get("reference_ml") for r in (row, other)]
            strange += None not in volumes and not math.isclose(*volumes, rel_tol=1e-4)
    notes = [f"{strange} of the pairs were scored against other references: their volumes differ"] if strange else []
    return found, notes
