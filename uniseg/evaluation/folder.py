"""The folder of an evaluation: cases.csv with a row for each case and class, and summary.json.

The validation.json of a training run (training/run_folder.py) can be read as an evaluation too. Its scores are those
of the held-out cases on the model's grid, without surface distances. Read scores.py first, folds.py and comparison.py
next.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..datasets.dataset import DataError
from ..machine.files import atomic_write
from ..machine.json_files import read_json
from ..taxonomy import kind_of
from .scores import COLUMNS, Row

REMEDY = "Make it again"
CASES, SUMMARY, VALIDATION = "cases.csv", "summary.json", "validation.json"


def write(out: Path, rows: Iterable[Row], summary: Mapping[str, Any]) -> None:
    """Write cases.csv, then summary.json: where that exists, the evaluation is complete.

    Raises OSError or machine.files.FileError.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, list(COLUMNS), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    for name, content in ((CASES, text.getvalue()), (SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")):
        with atomic_write(out / name) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")


def _cell(value: Any) -> Any:
    """True and False as 1 and 0. Floats keep all their digits, so that reading gives the same numbers again."""
    return int(value) if isinstance(value, bool) else value


def holds_evaluation(out: Path) -> bool:
    """Whether the folder holds an evaluation, complete or not."""
    return (out / CASES).exists() or (out / SUMMARY).exists()


def refuse_out(out: Path, overwrite: bool, read: Iterable[Path]) -> None:
    """Raise ValueError for a folder --out that cannot be written, holds an evaluation already, or is one of `read`."""
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ValueError(f"--out {out}: nothing can be written in {existing}. Give another one.")
    if holds_evaluation(out) and not overwrite:
        raise ValueError(f"{out}: holds an evaluation already. Give --overwrite to replace it, or another --out.")
    if out.resolve() in {path.resolve() for path in read}:
        raise ValueError(f"{out}: is read and would be written. Give another --out.")


# -------------------------------------------------------------------------------------------------------------- reading

def read(folder: Path, epoch: str = "last") -> tuple[list[Row], dict[str, int]]:
    """(rows, {"fold", "folds"} or {}) of an evaluation, or of a training run. Raises DataError.

    epoch: of a training run, "last" or "best"
    """
    if (folder / CASES).is_file():
        return _read_cases(folder / CASES), _fold_of_summary(folder / SUMMARY)
    if (folder / VALIDATION).is_file():
        return _read_validation(folder / VALIDATION, epoch)
    raise DataError(f"{folder}: holds neither {CASES} nor {VALIDATION}. "
                    "Give the folder of an evaluation or of a training run.")


def _read_cases(path: Path) -> list[Row]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if set(table.fieldnames or ()) != set(COLUMNS):
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return [{key: _value(text, COLUMNS[key]) for key, text in row.items()} for row in table]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Evaluate again with --overwrite.") from None


def _value(text: str, kind: type) -> Any:
    """The value of a cell of cases.csv; None where it is empty, "" where the column holds text."""
    if text == "":
        return "" if kind is str else None
    return bool(int(text)) if kind is bool else kind(text)


def _fold_of_summary(path: Path) -> dict[str, int]:
    content = read_json(path, DataError, REMEDY) if path.is_file() else {}
    settings = content.get("settings", {}) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise DataError(f"{path}: not the summary of an evaluation. {REMEDY}.")
    return _division(settings, path) if settings.get("fold") is not None else {}


def _division(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """{"fold", "folds"} of a file. Raises DataError where they are no numbers."""
    found = {key: content.get(key) for key in ("fold", "folds")}
    whole = {key: number for key, number in found.items() if isinstance(number, int) and not isinstance(number, bool)}
    if len(whole) < 2:
        raise DataError(f"{path}: fold {found['fold']!r} of {found['folds']!r} are no numbers. {REMEDY}.")
    return whole


def _read_validation(path: Path, epoch: str) -> tuple[list[Row], dict[str, int]]:
    content = read_json(path, DataError, REMEDY)
    scores = content.get(epoch) if isinstance(content, dict) else None
    if not isinstance(scores, dict) or not isinstance(scores.get("cases"), dict):
        raise DataError(f"{path}: no scores of the {epoch} epoch. Train until the first validation.")
    try:
        rows = _rows_of_validation(scores["cases"])
        return rows, _division(content, path) if content.get("folds", 1) > 1 else {}
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not the validation.json of a training run. {REMEDY}.") from None


def _rows_of_validation(cases: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, classes in cases.items():
        dataset, _, case = name.rpartition("/")
        rows += [{"dataset": dataset, "case": case, "class": c, "kind": kind_of(c), "dice": score["dice"],
                  "reference_voxels": score["reference"], "predicted_voxels": score["predicted"],
                  "present": score["reference"] > 0, "found": score["predicted"] > 0} for c, score in classes.items()]
    return rows
