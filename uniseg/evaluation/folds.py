"""Several evaluations, or training runs, as the folds of one cross-validation (Section 4.2.1). Read folder.py first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.dataset import DataError
from ..metrics import sample_sd
from .folder import read
from .scores import Row, classes_in

Part = tuple[Path, list[Row], dict[str, int]]      # folder, its rows, {"fold", "folds"} or {}


def pool(folders: Sequence[Path], epoch: str = "last") -> tuple[list[Row], list[str]]:
    """(all rows with their "fold", notes) of the folds of one cross-validation. A single folder keeps its own folds.

    Raises DataError where a case is in two of them, or where they are folds of different divisions.
    """
    parts: list[Part] = [(folder, *read(folder, epoch)) for folder in folders]
    owner_of: dict[tuple[str, str], Path] = {}
    pooled = []
    for number, (folder, rows, division) in enumerate(parts):
        for row in rows:
            patient = (row["dataset"], row["case"])
            owner = owner_of.setdefault(patient, folder)
            if owner != folder:
                raise DataError(f"{folder}: case {'/'.join(filter(None, patient))} is in {owner} too. "
                                "A case may be held out once; leave one of them out.")
        pooled += [{**row, "fold": division.get("fold", number if len(parts) > 1 else row.get("fold"))} for row in rows]
    return pooled, _fold_notes(parts)


def _fold_notes(parts: Sequence[Part]) -> list[str]:
    """Notes on what differs from a complete cross-validation. Raises DataError for folds of different divisions."""
    if len(parts) < 2:
        return []
    known = {division["fold"] for _, _, division in parts if division}
    counts = {division["folds"] for _, _, division in parts if division}
    if len(counts) > 1:
        raise DataError(f"{parts[0][0]}: the runs are folds of different divisions "
                        f"({', '.join(map(str, sorted(counts)))} folds). Give runs of one cross-validation.")
    if not counts:
        return ["no folder says which fold it is; each counts as one"]
    missing = [str(k) for k in range(counts.pop()) if k not in known]
    notes = [f"fold {', '.join(missing)} is missing: means are not over all cases"] if missing else []
    classes = [classes_in(rows) for _, rows, _ in parts]
    uneven = {name for names in classes for name in names if not all(name in others for others in classes)}
    if uneven:
        notes.append(f"not in every fold: {', '.join(sorted(uneven))}")
    return notes


def fold_means(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """{class: {"folds", "mean", "sd"}} of the folds' means of DSC; sd (n - 1) is None for one fold."""
    rows, means_of = list(rows), {}
    for name in classes_in(rows):
        folds: dict[Any, list[float]] = {}
        for row in rows:
            if row["class"] == name and row.get("dice") is not None:
                folds.setdefault(row["fold"], []).append(row["dice"])
        means = [float(np.mean(values)) for values in folds.values()]
        if means:
            means_of[name] = {"folds": len(means), "mean": float(np.mean(means)), "sd": sample_sd(means)}
    return means_of
