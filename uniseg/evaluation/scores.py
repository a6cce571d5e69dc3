"""From two readings of a case to numbers, and from the numbers of all cases to means: Sections 4.2 to 4.5 and 4.7.

    score_case -> one row a class: DSC, NSD, HD95, voxels, whether a tumour is there and was found
    summarise  -> per class and per group means with confidence intervals

Means of DSC, NSD and HD95 are over the cases where the class is annotated and present. Where it is annotated and absent a
case has none of them; what was predicted there is a false positive. Read metrics.py, readings.py and significance.py first.
"""

import math

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..datasets.masks import check_same_grid
from ..imaging.bits import bounding_box
from ..imaging.components import CONNECTED_26
from ..imaging.volume import voxel_size_mm
from ..metrics import agreement, dice_from_counts, lesion_detection, sensitivity_specificity
from .readings import open_in_order, open_masks
from .significance import bootstrap_interval

# Columns of cases.csv. `dice_reader2` is prediction and second reader, `dice_readers` both readers (Section 4.7).
COLUMNS = {"dataset": str, "case": str, "fold": int, "class": str, "kind": str, "reference_voxels": int, "reference_ml": float,
           "predicted_voxels": int, "predicted_ml": float, "dice": float, "nsd": float, "tolerance_mm": float, "hd95_mm": float,
           "present": bool, "found": bool, "lesions_tp": int, "lesions_fn": int, "lesions_fp": int,
           "reader2_voxels": int, "dice_reader2": float, "dice_readers": float}
DEFAULT_TOLERANCE_MM = 2.0        # of a class that Table 2 does not list
CYSTS = ("kidney_cyst",)          # benign: the paper's tumours are the six others (Fig. 3)
GROUPS = ("organs", "vessels", "tumours", "all classes")


def group_of(name):
    """The group of a class; a cyst is in none but "all classes"."""
    return None if name in CYSTS else {"organ": "organs", "vessel": "vessels", "tumour": "tumours"}[taxonomy.kind_of(name)]


def in_group(group, name):
    return group in ("all classes", group_of(name))


def tolerance_of(name):
    return taxonomy.BY_NAME[name].tolerance_mm if name in taxonomy.BY_NAME else DEFAULT_TOLERANCE_MM


# --------------------------------------------------------------------------------------------------------------- one case

def score_case(reference, prediction, second=None, wanted=None, min_lesion_ml=0.0):
    """(rows, classes that the prediction does not offer) of one case: a dict a class that the reference annotates.

    second: Reading of a second reader, or None
    wanted: names of classes, None: all
    Raises DataError where grids differ or a file cannot be used.
    """
    volume, masks = open_in_order(reference)
    ct = volume if reference.source else None
    theirs, predicted_mask = open_masks(prediction, ct)
    check_same_grid(volume, theirs, reference.path, prediction.path)
    reader2_mask = None
    if second:
        other, reader2_mask = open_masks(second, ct)
        check_same_grid(volume, other, reference.path, second.path)
    offered, told = prediction.classes, second.classes if second else ()
    rows, missing = [], []
    for name, mask in masks:
        if wanted is not None and name not in wanted:
            continue
        if name not in offered:
            missing.append(name)
            continue
        predicted = predicted_mask(name)
        row = score_class(name, mask, predicted, volume.affine, min_lesion_ml)
        if name in told:
            row |= _second_reader(mask, predicted, reader2_mask(name))
        rows.append({"dataset": reference.dataset, "case": reference.case, **row})
    return rows, missing


def score_class(name, reference, predicted, affine, min_lesion_ml=0.0):
    """The row of one class: two bool masks (D, H, W) of one grid compared within the box that holds both."""
    box = joint_box(reference, predicted)
    spacing_mm = tuple(voxel_size_mm(affine))
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    reference, predicted = (mask[box] if box else mask[:0] for mask in (reference, predicted))
    voxels = [int(np.count_nonzero(mask)) for mask in (reference, predicted)]
    tumour, tolerance_mm = taxonomy.kind_of(name) == taxonomy.TUMOUR, tolerance_of(name)
    row = {"class": name, "kind": taxonomy.kind_of(name), "tolerance_mm": tolerance_mm, "present": voxels[0] > 0,
           "found": voxels[1] > 0 and (not tumour or largest_ml(predicted, voxel_ml) >= min_lesion_ml)}
    for who, count in zip(("reference", "predicted"), voxels):
        row |= {f"{who}_voxels": count, f"{who}_ml": round(count * voxel_ml, 4)}
    if voxels[0]:
        found = agreement(predicted, reference, spacing_mm, tolerance_mm)
        row |= {"dice": found["dice"], "nsd": found["nsd"], "hd95_mm": found["hd95"]}
    if tumour and box:
        lesions = lesion_detection(predicted, reference)
        row |= {f"lesions_{key}": lesions[key] for key in ("tp", "fn", "fp")}
    elif tumour:
        row |= {"lesions_tp": 0, "lesions_fn": 0, "lesions_fp": 0}
    return row


def joint_box(*masks):
    """Slices of the smallest box around the voxels of all masks and one voxel more; None where all are empty."""
    boxes = [box for mask in masks if (box := bounding_box(mask, margin=1))]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes)) or None


def largest_ml(mask, voxel_ml):
    """Volume of the largest 26-connected component of a mask in ml; 0 where it is empty."""
    components, found = ndimage.label(mask, structure=CONNECTED_26)
    return round(float(np.bincount(components.ravel())[1:].max() * voxel_ml), 6) if found else 0.0


def _second_reader(reference, predicted, second):
    """DSC of prediction and second reader, and of both readers; without them where neither reader drew anything."""
    box = joint_box(reference, predicted, second)
    reference, predicted, second = (mask[box] if box else mask[:0] for mask in (reference, predicted, second))
    row = {"reader2_voxels": int(np.count_nonzero(second))}
    if not (reference.any() or second.any()):
        return row
    return row | {column: dice_from_counts(*(int(np.count_nonzero(m)) for m in (one & second, one, second)))
            for column, one in (("dice_reader2", predicted), ("dice_readers", reference))}


def healthy_rows(prediction, wanted=None, min_lesion_ml=0.0):
    """The rows of a patient known to have no tumour: each tumour class that the prediction offers, as absent (Section 4.3).

    Cysts are left out: they are common, and no tumour.
    """
    volume, mask_of = open_masks(prediction)
    names = [n for n in prediction.classes if group_of(n) == "tumours" and (wanted is None or n in wanted)]
    rows = []
    for name in names:
        mask = mask_of(name)
        rows.append({"dataset": "healthy", "case": prediction.case,
                     **score_class(name, np.zeros_like(mask), mask, volume.affine, min_lesion_ml)})
    return rows


# -------------------------------------------------------------------------------------------------------------- all cases

def values_of(rows, column, names):
    """(patients, (patients, classes) float64, NaN where there is no value) of a column of the rows."""
    patients = list(dict.fromkeys((row["dataset"], row["case"]) for row in rows))
    place = {patient: i for i, patient in enumerate(patients)}
    values = np.full((len(patients), len(names)), np.nan)
    for row in rows:
        if row["class"] in names and row.get(column) is not None:
            values[place[row["dataset"], row["case"]], names.index(row["class"])] = row[column]
    return patients, values


def classes_in(rows):
    """The classes of the rows, in the order of Table 2, others after them."""
    found = {row["class"] for row in rows}
    return [n for n in taxonomy.NAMES if n in found] + sorted(found - set(taxonomy.NAMES))


def summarise(rows, resamples=1000, seed=0):
    """{"classes": {class: {...}}, "groups": {group: {...}}} of rows; what is not defined is None.

    resamples: of the bootstrap over patients; seed: of its random numbers
    """
    names = classes_in(rows)
    dice = values_of(rows, "dice", names)[1]
    classes = {name: _class_summary([row for row in rows if row["class"] == name], dice[:, [k]], resamples, seed)
               for k, name in enumerate(names)}
    groups = {}
    for group in GROUPS:
        members = [k for k, n in enumerate(names) if in_group(group, n) and classes[n]["present"]]
        if members:
            groups[group] = {"classes": len(members), "dice_mean": _mean(classes[names[k]]["dice_mean"] for k in members),
                             "dice_ci": bootstrap_interval(dice[:, members], resamples, seed),
                             "nsd_mean": _mean(classes[names[k]]["nsd_mean"] for k in members)}
    return {"classes": classes, "groups": groups}


def _class_summary(rows, dice, resamples, seed):
    present = [row for row in rows if row["present"]]
    distances = [row["hd95_mm"] for row in present if row.get("hd95_mm") is not None]
    median = float(np.median(distances)) if distances else None
    dice = dice[~np.isnan(dice[:, 0])]
    summary = {
        "kind": rows[0]["kind"], "tolerance_mm": rows[0].get("tolerance_mm"), "annotated": len(rows), "present": len(present),
        "dice_mean": _mean(dice[:, 0].tolist()), "dice_sd": float(np.std(dice, ddof=1)) if len(dice) > 1 else None,
        "dice_ci": bootstrap_interval(dice, resamples, seed),
        "nsd_mean": _mean(row["nsd"] for row in present if row.get("nsd") is not None),
        "hd95_median_mm": median if median is not None and math.isfinite(median) else None,
        "hd95_infinite": sum(math.isinf(d) for d in distances),
        "absent": len(rows) - len(present), "false_positives": sum(bool(r["found"]) for r in rows if not r["present"]),
        "detection": sensitivity_specificity([r["found"] for r in rows], [r["present"] for r in rows])}
    if rows[0]["kind"] == taxonomy.TUMOUR:
        counted = [row for row in rows if row.get("lesions_tp") is not None]
        summary["lesions"] = {key: sum(r[f"lesions_{key}"] for r in counted) if counted else None for key in ("tp", "fn", "fp")}
    return summary


def _mean(values):
    """Their mean; None where there are none, or where one of them is None."""
    values = list(values)
    return float(np.mean(values)) if values and None not in values else None


def readers(rows):
    """Section 4.7, Fig. 5(b): {class: {pair: {"mean", "sd"}, "cases"}} over the cases where a reader drew the class.

    The three pairs are of the same cases: prediction and reader 1, prediction and reader 2, readers 1 and 2.
    """
    found = {}
    for name in classes_in(rows):
        own = [row for row in rows if row["class"] == name and row.get("dice_readers") is not None]
        if own:
            first = [row["dice"] if row["present"] else float(row["predicted_voxels"] == 0) for row in own]
            pairs = {"prediction_reader1": first,
                     "prediction_reader2": [row["dice_reader2"] for row in own],
                     "reader1_reader2": [row["dice_readers"] for row in own]}
            found[name] = {"cases": len(own), **{
                pair: {"mean": _mean(v), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else None} for pair, v in pairs.items()}}
    return found
