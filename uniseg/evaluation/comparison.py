"""Two evaluations of the same cases: paired differences of DSC, by class and by group, with a test.

Read significance.py and folder.py first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .scores import GROUPS, Row, in_group
from .significance import paired_tests

Patient = tuple[str, str]         # dataset and case


def compare(rows: Iterable[Row], others: Iterable[Row], resamples: int,
            seed: int) -> tuple[dict[str, Any] | None, list[str]]:
    """({"classes": ..., "groups": ...} of paired_tests, notes) of two evaluations; (None, notes) without a common case.

    rows, others: of cases.csv; resamples, seed: of the bootstrap
    """
    by_class, notes = paired_differences(rows, others)
    if not by_class:
        return None, notes
    classes = {name: list(differences.values()) for name, differences in by_class.items()}
    groups = {group: group_differences(by_class, group) for group in GROUPS}
    return {"classes": paired_tests(classes, resamples, seed), "groups": paired_tests(groups, resamples, seed)}, notes


def paired_differences(rows: Iterable[Row], others: Iterable[Row]) -> tuple[dict[str, dict[Patient, float]], list[str]]:
    """({class: {patient: DSC of `rows` less DSC of `others`}}, notes) of the cases that both evaluations scored."""
    theirs = {(row["dataset"], row["case"], row["class"]): row for row in others}
    by_class: dict[str, dict[Patient, float]] = {}
    other_volumes = 0
    for row in rows:
        other = theirs.get((row["dataset"], row["case"], row["class"]))
        if other and row.get("dice") is not None and other.get("dice") is not None:
            by_class.setdefault(row["class"], {})[row["dataset"], row["case"]] = row["dice"] - other["dice"]
            volume, other_volume = row.get("reference_ml"), other.get("reference_ml")
            if volume is not None and other_volume is not None:
                other_volumes += not math.isclose(volume, other_volume, rel_tol=1e-4)
    notes = [f"{other_volumes} of the pairs were scored against other references: their volumes differ"] \
        if other_volumes else []
    return by_class, notes


def group_differences(by_class: dict[str, dict[Patient, float]], group: str) -> list[float]:
    """One difference per patient: the mean over the group's classes that both evaluations scored in that patient."""
    patients: dict[Patient, list[float]] = {}
    for name, differences in by_class.items():
        if in_group(group, name):
            for patient, difference in differences.items():
                patients.setdefault(patient, []).append(difference)
    return [float(np.mean(differences)) for differences in patients.values()]
