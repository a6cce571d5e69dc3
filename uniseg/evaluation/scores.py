"""From two Readings of a case to numbers, and from the numbers of all cases to means: Sections 4.2 to 4.5 and 4.7.

    score_case -> one row per class: DSC, NSD, HD95, voxels, whether a tumour is there and was found
    summarise  -> means per class and per group, with confidence intervals

Means of DSC, NSD and HD95 are over the cases where the class is annotated and present. Where it is annotated and
absent, a case has none of the three, and whatever was predicted there is a false positive. Read metrics.py,
masks.py and significance.py first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..datasets.dataset import in_order
from ..datasets.masks import check_same_grid
from ..imaging.bits import bit_dtype, bounding_box, get_bit, set_bit
from ..imaging.components import CONNECTED_26
from ..imaging.grid import voxel_size_mm, voxel_volume_mm3
from ..imaging.volume import Volume
from ..metrics import (
    agreement,
    complete_mean,
    dice_from_counts,
    lesion_detection,
    sample_sd,
    sensitivity_specificity,
)
from .masks import MaskOf, open_in_order, open_masks
from .readings import Reading
from .rules import WITHOUT_TUMOURS, Rules
from .significance import bootstrap_interval

Row = dict[str, Any]              # of one case and class; its keys are COLUMNS, those without a value may be missing

# Columns of cases.csv. `dice_reader2` compares prediction and second reader, `dice_readers` both readers (Section 4.7).
COLUMNS: dict[str, type] = {
    "dataset": str, "case": str, "fold": int, "class": str, "kind": str,
    "reference_voxels": int, "reference_ml": float, "predicted_voxels": int, "predicted_ml": float,
    "dice": float, "nsd": float, "tolerance_mm": float, "hd95_mm": float,
    "present": bool, "found": bool, "lesions_tp": int, "lesions_fn": int, "lesions_fp": int,
    "reader2_voxels": int, "dice_reader2": float, "dice_readers": float}
CYSTS = ("kidney_cyst",)          # benign; the paper's tumours are the other six (Fig. 3)
GROUPS = ("organs", "vessels", "tumours", "all classes")


def group_of(name: str) -> str | None:
    """The group of a class. Cysts have none: they are only in "all classes"."""
    groups = {taxonomy.ORGAN: "organs", taxonomy.VESSEL: "vessels", taxonomy.TUMOUR: "tumours"}
    return None if name in CYSTS else groups[taxonomy.kind_of(name)]


def in_group(group: str, name: str) -> bool:
    """Whether a class belongs to one of GROUPS."""
    return group in ("all classes", group_of(name))


# ------------------------------------------------------------------------------------------------------------ one case

def score_case(reference: Reading, prediction: Reading, second: Reading | None = None,
               wanted: Collection[str] | None = None, rules: Rules = Rules(),
               doubts: list[str] | None = None) -> tuple[list[Row], list[str]]:
    """(one row per class that the reference annotates, classes that the prediction does not offer) of one case.

    second: Reading of a second reader, or None
    wanted: names of the classes to score; None: all
    rules:  how they are scored
    doubts: gets the warnings of the reader about the reference and its CT

    Raises DataError where the grids differ or a file cannot be used.
    """
    volume, masks = _opened(reference, rules)
    ct = volume if reference.source else None
    predicted_volume, predicted_mask = open_masks(prediction, ct)
    if rules.organs == WITHOUT_TUMOURS:
        predicted_mask = _without_tumours(predicted_mask, set(reference.classes) & set(prediction.classes))
    check_same_grid(volume, predicted_volume, reference.path, prediction.path)
    reader2_mask = None
    if second:
        second_volume, reader2_mask = open_masks(second, ct)
        check_same_grid(volume, second_volume, reference.path, second.path)
        if rules.organs == WITHOUT_TUMOURS:
            reader2_mask = _without_tumours(reader2_mask, set(reference.classes) & set(second.classes))
    offered, classes_of_second = prediction.classes, second.classes if second else ()
    rows: list[Row] = []
    missing = []
    for name, mask in masks:
        if wanted is not None and name not in wanted:
            continue
        if name not in offered:
            missing.append(name)
            continue
        predicted = predicted_mask(name)
        row = score_class(name, mask, predicted, volume.affine, rules, reference.dataset)
        if reader2_mask and name in classes_of_second:
            row |= _second_reader(mask, predicted, reader2_mask(name))
        rows.append({"dataset": reference.dataset, "case": reference.case, **row})
    if doubts is not None:
        doubts += volume.warnings
    return rows, missing


def _opened(reference: Reading, rules: Rules) -> tuple[Volume, Iterable[tuple[str, np.ndarray]]]:
    """masks.open_in_order of a reference; with WITHOUT_TUMOURS its organs lack the tumours that it annotates."""
    volume, masks = open_in_order(reference)
    if rules.organs != WITHOUT_TUMOURS:
        return volume, masks
    bits = np.zeros(volume.array.shape, bit_dtype(len(reference.classes)), order="F")
    names: list[str] = []
    for name, mask in masks:                     # a tumour may come after its organ
        set_bit(bits, len(names), mask)
        names.append(name)
    as_drawn = _without_tumours(lambda name: get_bit(bits, names.index(name)), names)
    return volume, ((name, as_drawn(name)) for name in names)


def _without_tumours(mask_of: MaskOf, classes: Iterable[str]) -> MaskOf:
    """mask_of, with every organ less the tumours and cysts inside it, as a label map with one value per voxel has it.

    classes: names of the tumours that are taken away, among others
    """
    tumours = [name for name in classes if taxonomy.kind_of(name) == taxonomy.TUMOUR]

    def as_drawn(name: str) -> np.ndarray:
        mask = mask_of(name)
        for inner in tumours:
            if name in taxonomy.BY_NAME[inner].parents:
                mask = mask & ~mask_of(inner)
        return mask
    return as_drawn


def score_class(name: str, reference: np.ndarray, predicted: np.ndarray, affine: np.ndarray, rules: Rules = Rules(),
                dataset: str = "") -> Row:
    """The row of one class: two (D, H, W) bool masks of one grid, compared within the box that holds both.

    dataset: the case's, whose task may have a tolerance of its own
    """
    box = joint_box(reference, predicted)
    spacing_mm = tuple(voxel_size_mm(affine))
    voxel_ml = voxel_volume_mm3(affine) / 1000
    reference, predicted = (mask[box] if box else mask[:0] for mask in (reference, predicted))
    voxels = [int(np.count_nonzero(mask)) for mask in (reference, predicted)]
    tumour, tolerance_mm = taxonomy.kind_of(name) == taxonomy.TUMOUR, rules.tolerance_of(name, dataset)
    row = {"class": name, "kind": taxonomy.kind_of(name), "tolerance_mm": tolerance_mm, "present": voxels[0] > 0,
           "found": voxels[1] > 0 and (not tumour or largest_ml(predicted, voxel_ml) >= rules.min_lesion_ml)}
    for who, count in zip(("reference", "predicted"), voxels):
        row |= {f"{who}_voxels": count, f"{who}_ml": round(count * voxel_ml, 4)}
    if voxels[0]:
        scores = agreement(predicted, reference, spacing_mm, tolerance_mm)
        row |= {"dice": scores["dice"], "nsd": scores["nsd"], "hd95_mm": scores["hd95"]}
    if tumour and box:
        lesions = lesion_detection(predicted, reference)
        row |= {f"lesions_{key}": lesions[key] for key in ("tp", "fn", "fp")}
    elif tumour:
        row |= {"lesions_tp": 0, "lesions_fn": 0, "lesions_fp": 0}
    return row


def joint_box(*masks: np.ndarray) -> tuple[slice, ...] | None:
    """Slices of the smallest box around the voxels of all masks, one voxel wider; None where all masks are empty."""
    boxes = [box for mask in masks if (box := bounding_box(mask, margin=1))]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes)) or None


def largest_ml(mask: np.ndarray, voxel_ml: float) -> float:
    """Volume in ml of the largest 26-connected component of a mask; 0 where the mask is empty."""
    components, count = ndimage.label(mask, structure=CONNECTED_26)
    return round(float(np.bincount(components.ravel())[1:].max() * voxel_ml), 6) if count else 0.0


def _second_reader(reference: np.ndarray, predicted: np.ndarray, second: np.ndarray) -> Row:
    """DSC of prediction and second reader, and of both readers; left out where neither reader drew anything."""
    box = joint_box(reference, predicted, second)
    reference, predicted, second = (mask[box] if box else mask[:0] for mask in (reference, predicted, second))
    row = {"reader2_voxels": int(np.count_nonzero(second))}
    if not (reference.any() or second.any()):
        return row
    return row | {column: dice_from_counts(*(int(np.count_nonzero(m)) for m in (one & second, one, second)))
            for column, one in (("dice_reader2", predicted), ("dice_readers", reference))}


def healthy_rows(prediction: Reading, wanted: Collection[str] | None = None, rules: Rules = Rules()) -> list[Row]:
    """The rows of a patient known to have no tumour of some kinds: each of them as absent (Section 4.3).

    wanted: the classes that are known to be absent; None: every tumour class of the prediction

    Cysts are left out: they are common and no tumours.
    """
    volume, mask_of = open_masks(prediction)
    names = [n for n in prediction.classes if group_of(n) == "tumours" and (wanted is None or n in wanted)]
    rows = []
    for name in names:
        mask = mask_of(name)
        rows.append({"dataset": prediction.dataset, "case": prediction.case,
                     **score_class(name, np.zeros_like(mask), mask, volume.affine, rules)})
    return rows


# ----------------------------------------------------------------------------------------------------------- all cases

def values_of(rows: Sequence[Row], column: str, names: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """(patients, (patients, classes) float64 with NaN where there is no value) of a column of the rows."""
    patients = list(dict.fromkeys((row["dataset"], row["case"]) for row in rows))
    row_of = {patient: i for i, patient in enumerate(patients)}
    values = np.full((len(patients), len(names)), np.nan)
    for row in rows:
        if row["class"] in names and row.get(column) is not None:
            values[row_of[row["dataset"], row["case"]], names.index(row["class"])] = row[column]
    return patients, values


def classes_in(rows: Iterable[Row]) -> list[str]:
    """The classes of the rows, in the order of Table 2, other classes last."""
    return list(in_order({row["class"] for row in rows}))


def summarise(rows: Sequence[Row], resamples: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{"classes": {class: {...}}, "groups": {group: {...}}} of rows; undefined numbers are None.

    resamples, seed: of the bootstrap over patients
    """
    names = classes_in(rows)
    dice = values_of(rows, "dice", names)[1]
    classes = {name: _class_summary([row for row in rows if row["class"] == name], dice[:, [k]], resamples, seed)
               for k, name in enumerate(names)}
    groups = {}
    for group in GROUPS:
        members = [k for k, n in enumerate(names) if in_group(group, n) and classes[n]["present"]]
        if members:
            groups[group] = {"classes": len(members),
                             "dice_mean": complete_mean(classes[names[k]]["dice_mean"] for k in members),
                             "dice_ci": bootstrap_interval(dice[:, members], resamples, seed),
                             "nsd_mean": complete_mean(classes[names[k]]["nsd_mean"] for k in members)}
    return {"classes": classes, "groups": groups}


def _class_summary(rows: Sequence[Row], dice: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """The summary of one class. dice: (patients, 1), NaN where the class is not annotated or absent."""
    present = [row for row in rows if row["present"]]
    distances = [row["hd95_mm"] for row in present if row.get("hd95_mm") is not None]
    median = float(np.median(distances)) if distances else None
    dice = dice[~np.isnan(dice[:, 0])]
    summary = {
        "kind": rows[0]["kind"], "tolerance_mm": rows[0].get("tolerance_mm"),
        "annotated": len(rows), "present": len(present),
        "dice_mean": complete_mean(dice[:, 0].tolist()), "dice_sd": sample_sd(dice),
        "dice_ci": bootstrap_interval(dice, resamples, seed),
        "nsd_mean": complete_mean(row["nsd"] for row in present if row.get("nsd") is not None),
        "hd95_median_mm": median if median is not None and math.isfinite(median) else None,
        "hd95_infinite": sum(math.isinf(d) for d in distances),
        "absent": len(rows) - len(present), "false_positives": sum(bool(r["found"]) for r in rows if not r["present"]),
        "detection": sensitivity_specificity([r["found"] for r in rows], [r["present"] for r in rows])}
    if rows[0]["kind"] == taxonomy.TUMOUR:
        counted = [row for row in rows if row.get("lesions_tp") is not None]
        summary["lesions"] = {key: sum(r[f"lesions_{key}"] for r in counted) if counted else None
                              for key in ("tp", "fn", "fp")}
    return summary


def readers(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Section 4.7, Fig. 5(b): {class: {pair: {"mean", "sd"}, "cases"}} over the cases where a reader drew the class.

    The pairs are prediction and reader 1, prediction and reader 2, readers 1 and 2, all three on the same cases.
    """
    by_class: dict[str, dict[str, Any]] = {}
    for name in classes_in(rows):
        of_class = [row for row in rows if row["class"] == name and row.get("dice_readers") is not None]
        if of_class:
            first = [row["dice"] if row["present"] else float(row["predicted_voxels"] == 0) for row in of_class]
            pairs = {"prediction_reader1": first,
                     "prediction_reader2": [row["dice_reader2"] for row in of_class],
                     "reader1_reader2": [row["dice_readers"] for row in of_class]}
            by_class[name] = {"cases": len(of_class), **{
                pair: {"mean": complete_mean(values), "sd": sample_sd(values)} for pair, values in pairs.items()}}
    return by_class
