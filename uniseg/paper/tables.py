"""The paper's Tables 3, 4, 6 and 8: the Universal Model's row as printed, and a row for ours below.

Sections 4.2 to 4.5. Numbers are in per cent. Where the paper contradicts itself, a footnote says so. Our rows come from
other data, unless the evaluated dataset is the table's own, and never from its split. "-" stands for what was not
evaluated.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from ..metrics import complete_mean, sensitivity_specificity

Row = dict[str, Any]              # of evaluation.scores, one per case and class

OTHER_DATA = "Ours are other data than the paper's, in number and kind: the rows do not compare."

# Table 3, test set of MSD: dataset, title, organ, tumour, the paper's DSC and NSD of organ, tumour and their average.
TABLE_3 = (
    ("MSD Task03 Liver", "Task03 liver", "liver", "liver_tumor", (95.42, 79.35, 87.39), (98.18, 93.42, 95.80)),
    ("MSD Task07 Pancreas", "Task07 pancreas", "pancreas", "pancreatic_tumor", (82.84, 62.33, 72.59),
     (96.65, 82.86, 89.76)),
    ("MSD Task08 HepaticVessel", "Task08 hepatic vessel", "hepatic_vessel", "hepatic_vessel_tumor",
     (67.15, 75.86, 71.51), (84.84, 85.23, 85.04)),
    ("MSD Task06 Lung", "Task06 lung", None, "lung_tumor", (None, 80.01, None), (None, 81.25, None)),
    ("MSD Task09 Spleen", "Task09 spleen", "spleen", None, (97.27, None, None), (99.87, None, None)),
    ("MSD Task10 Colon", "Task10 colon", None, "colon_tumor", (None, 63.14, None), (None, 75.15, None)),
)

# Table 4: title, classes whose mean it is, the paper's DSC. Five-fold cross-validation on BTCV.
TABLE_4 = (("Spl", ("spleen",), 95.82), ("RKid", ("right_kidney",), 94.28), ("LKid", ("left_kidney",), 94.11),
           ("Gall", ("gall_bladder",), 79.52), ("Eso", ("esophagus",), 76.55), ("Liv", ("liver",), 97.05),
           ("Sto", ("stomach",), 92.59), ("Aor", ("aorta",), 91.63), ("IVC", ("postcava",), 86.00),
           ("Veins", ("portal_and_splenic_vein",), 77.54), ("Pan", ("pancreas",), 83.17),
           ("AG", ("right_adrenal_gland", "left_adrenal_gland"), 70.52))
TABLE_4_MEAN = 86.13
TABLE_4_NOTE = ("86.13 is printed; the mean of these 12 columns is 86.56, with the adrenal glands counted twice 85.33. "
                "The paper's dataset-specific rows count them twice, its dataset-agnostic rows do not.")

# Table 6: class, title, the paper's sensitivity, specificity and harmonic mean. Patients with tumours: LiTS, KiTS
# and MSD Pancreas; patients without: CHAOS and Pancreas-CT.
TABLE_6 = (("liver_tumor", "Liver tumor", (88.89, 95.00, 91.84)),
           ("kidney_tumor", "Kidney tumor", (91.67, 95.00, 93.31)),
           ("pancreatic_tumor", "Pancreatic tumor", (93.98, 91.25, 92.59)))

# Table 8: title, class, the paper's DSC on 3D-IRCADb; mDSC* is the mean of the first seven, mDSC the mean of all.
TABLE_8 = (("Spleen", "spleen", 95.76), ("KidneyR", "right_kidney", 94.99), ("KidneyL", "left_kidney", 94.42),
           ("Gallblad.", "gall_bladder", 88.79), ("Liver", "liver", 97.03), ("Stomach", "stomach", 89.36),
           ("Pancreas", "pancreas", 80.99), ("LungR", "right_lung", 97.71), ("LungL", "left_lung", 96.72))
TABLE_8_MEANS = (91.62, 92.86)

BTCV, IRCADB = ("BTCV", "BTCV-Synapse"), ("3D-IRCADb",)


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the four tables. rows: of evaluation.scores.score_case, of all cases"""
    for table in (_table_3, _table_4, _table_6, _table_8):
        yield from table(rows)
        yield ""
    yield OTHER_DATA


def mean_percent(rows: Sequence[Row], name: str, column: str = "dice") -> float | None:
    """100 times the mean of a column over the cases that have the class; None where no case has it."""
    values = [row[column] for row in rows if row["class"] == name and row["present"] and row.get(column) is not None]
    return 100 * sum(values) / len(values) if values else None


def rows_for(rows: Sequence[Row], datasets: Collection[str]) -> tuple[Sequence[Row], str]:
    """(the rows of a table's datasets where there are any, else all rows; what they are)."""
    of_datasets = [row for row in rows if row["dataset"] in datasets]
    if of_datasets:
        names = sorted({row["dataset"] for row in of_datasets})
        return of_datasets, f"cases of {' and '.join(names)} (not the paper's split)"
    return rows, "other data"


def _cells(first: str, cells: Iterable[float | str | None], widths: Iterable[int]) -> str:
    """One line: a title, then cells aligned at the right."""
    texts = ["-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell for cell in cells]
    return f"{first:17s}" + "".join(text.rjust(width) for text, width in zip(texts, widths))


def _table_3(rows: Sequence[Row]) -> Iterator[str]:
    yield "Table 3. Medical Segmentation Decathlon, % (the paper: MSD's test set; Avg.: of organ and tumour)"
    for dataset, title, organ, tumour, dsc, nsd in TABLE_3:
        chosen, what = rows_for(rows, (dataset,))
        parts = [part for part, name in (("Organ", organ), ("Tumor", tumour)) if name]
        columns = [*parts, "Avg."] if len(parts) == 2 else parts
        yield f"  {title}; ours: {what}"
        yield "  " + _cells("", [f"DSC {c}" for c in columns] + [f"NSD {c}" for c in columns], [11] * 6)
        ours = [[mean_percent(chosen, name, column) for name in (organ, tumour) if name] for column in ("dice", "nsd")]
        ours = [part + [complete_mean(part)] if len(part) == 2 else part for part in ours]
        yield "  " + _cells("Universal Model", [v for part in (dsc, nsd) for v in part if v is not None], [11] * 6)
        yield "  " + _cells("ours", [*ours[0], *ours[1]], [11] * 6)


def _table_4(rows: Sequence[Row]) -> Iterator[str]:
    chosen, what = rows_for(rows, BTCV)
    ours = [complete_mean(mean_percent(chosen, name) for name in names) for _, names, _ in TABLE_4]
    widths = [7] * 13
    yield ("Table 4. BTCV, DSC in % (the paper: five-fold cross-validation; AG: mean of the adrenal glands); "
           f"ours: {what}")
    yield "  " + _cells("", [title for title, _, _ in TABLE_4] + ["Avg."], widths)
    yield "  " + _cells("Universal Model", [value for _, _, value in TABLE_4] + [TABLE_4_MEAN], widths) + " [1]"
    yield "  " + _cells("ours", ours + [complete_mean(ours)], widths)
    yield from textwrap.wrap(f"[1] {TABLE_4_NOTE}", 126, initial_indent="  ", subsequent_indent="      ")


def _table_6(rows: Sequence[Row]) -> Iterator[str]:
    yield "Table 6. Detection per patient, %: sensitivity, specificity, harmonic mean (ours: patients with / without)"
    yield "  " + _cells("", [title for _, title, _ in TABLE_6], [24] * 3)
    yield "  " + _cells("", ["Sen.", "Spec.", "Harm."] * 3, [8] * 9)
    yield "  " + _cells("Universal Model", [value for _, _, values in TABLE_6 for value in values], [8] * 9)
    ours, counts = [], []
    for name, _, _ in TABLE_6:
        of_class = [row for row in rows if row["class"] == name]
        detection = sensitivity_specificity([row["found"] for row in of_class], [row["present"] for row in of_class])
        shares = [detection[key] for key in ("sensitivity", "specificity", "harmonic_mean")]
        ours += [None if share is None else 100 * share for share in shares]
        counts.append(f"{detection['tp'] + detection['fn']} / {detection['tn'] + detection['fp']} patients")
    yield "  " + _cells("ours", ours, [8] * 9)
    yield "  " + _cells("", counts, [24] * 3)


def _table_8(rows: Sequence[Row]) -> Iterator[str]:
    chosen, what = rows_for(rows, IRCADB)
    ours = [mean_percent(chosen, name) for _, name, _ in TABLE_8]
    widths = [10] * 11
    yield f"Table 8. 3D-IRCADb, DSC in % (mDSC*: the first seven organs, mDSC: all); ours: {what}"
    yield "  " + _cells("", [title for title, _, _ in TABLE_8] + ["mDSC*", "mDSC"], widths)
    yield "  " + _cells("Universal Model", [value for _, _, value in TABLE_8] + list(TABLE_8_MEANS), widths)
    yield "  " + _cells("ours", ours + [complete_mean(ours[:7]), complete_mean(ours)], widths)
