"""The paper's Tables 3, 4, 5, 6 and 8: all rows as printed (printed.py), and a row for ours below.

Sections 4.2 to 4.5. Numbers are in per cent. Where the paper contradicts itself, a footnote says so. Our rows come from
other data, unless the evaluated dataset is the table's own, and never from its split. "-" stands for what was not
evaluated.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from ..metrics import complete_mean, sensitivity_specificity
from . import printed
from .printed import Printed

Row = dict[str, Any]              # of evaluation.scores, one per case and class

OTHER_DATA = "Ours are other data than the paper's, in number and kind: the rows do not compare."

# Table 3: dataset, title, organ, tumour; where its numbers stand in a block of printed.py.
TABLE_3 = (
    ("MSD Task03 Liver", "Task03 liver", "liver", "liver_tumor", printed.TASK03_AND_07, slice(0, 6)),
    ("MSD Task07 Pancreas", "Task07 pancreas", "pancreas", "pancreatic_tumor", printed.TASK03_AND_07, slice(6, 12)),
    ("MSD Task08 HepaticVessel", "Task08 hepatic vessel", "hepatic_vessel", "hepatic_vessel_tumor",
     printed.TASK08_06_09_10, slice(0, 6)),
    ("MSD Task06 Lung", "Task06 lung", None, "lung_tumor", printed.TASK08_06_09_10, slice(6, 8)),
    ("MSD Task09 Spleen", "Task09 spleen", "spleen", None, printed.TASK08_06_09_10, slice(8, 10)),
    ("MSD Task10 Colon", "Task10 colon", None, "colon_tumor", printed.TASK08_06_09_10, slice(10, 12)),
)

# Tables of means of DSC: (title of the column, the classes whose mean it is).
KIDNEYS, GLANDS = ("right_kidney", "left_kidney"), ("right_adrenal_gland", "left_adrenal_gland")
TABLE_4 = (("Spl", ("spleen",)), ("RKid", ("right_kidney",)), ("LKid", ("left_kidney",)), ("Gall", ("gall_bladder",)),
           ("Eso", ("esophagus",)), ("Liv", ("liver",)), ("Sto", ("stomach",)), ("Aor", ("aorta",)),
           ("IVC", ("postcava",)), ("Veins", ("portal_and_splenic_vein",)), ("Pan", ("pancreas",)), ("AG", GLANDS))
TABLE_8_JHH = (("Spleen", ("spleen",)), ("KidneyR", ("right_kidney",)), ("KidneyL", ("left_kidney",)),
               ("Gallblad.", ("gall_bladder",)), ("Liver", ("liver",)), ("Stomach", ("stomach",)),
               ("Pancreas", ("pancreas",)), ("Aorta", ("aorta",)), ("Postcava", ("postcava",)),
               ("Vein", ("portal_and_splenic_vein",)))
TABLE_8 = (*TABLE_8_JHH[:7], ("LungR", ("right_lung",)), ("LungL", ("left_lung",)))
TABLE_4_NOTE = ("86.13 is printed; the mean of these 12 columns is 86.56, with the adrenal glands counted twice 85.33. "
                "The paper's dataset-specific rows count them twice, its dataset-agnostic rows do not.")

# Table 5, MOTS (Section 4.2.3): title, classes, the dataset that annotates them. Its kidney is both kidneys.
TABLE_5 = (("Liver", ("liver",), "LiTS"), ("tumor", ("liver_tumor",), "LiTS"), ("Kidney", KIDNEYS, "KiTS19"),
           ("tumor", ("kidney_tumor",), "KiTS19"), ("Hepatic", ("hepatic_vessel",), "MSD Task08 HepaticVessel"),
           ("tumor", ("hepatic_vessel_tumor",), "MSD Task08 HepaticVessel"),
           ("Pan", ("pancreas",), "MSD Task07 Pancreas"), ("tumor", ("pancreatic_tumor",), "MSD Task07 Pancreas"),
           ("Colon t.", ("colon_tumor",), "MSD Task10 Colon"), ("Lung t.", ("lung_tumor",), "MSD Task06 Lung"),
           ("Spleen", ("spleen",), "MSD Task09 Spleen"))
# Its training and test CTs in each dataset, by Table 1 of DoDNet (https://arxiv.org/abs/2011.10217): 920 and 235.
MOTS = {"LiTS": (104, 27), "KiTS19": (168, 42), "MSD Task08 HepaticVessel": (242, 61), "MSD Task07 Pancreas": (224, 57),
        "MSD Task10 Colon": (100, 26), "MSD Task06 Lung": (50, 13), "MSD Task09 Spleen": (32, 9)}

# Table 6: class, title. Patients with tumours: LiTS, KiTS and MSD Pancreas; patients without: CHAOS and Pancreas-CT.
TABLE_6 = (("liver_tumor", "Liver tumor"), ("kidney_tumor", "Kidney tumor"), ("pancreatic_tumor", "Pancreatic tumor"))

BTCV, IRCADB, KITS = ("BTCV", "BTCV-Synapse"), ("3D-IRCADb",), ("KiTS19", "KiTS", "KiTS23")


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the five tables. rows: of evaluation.scores.score_case, of all cases"""
    for table in (_table_3, _table_4, _table_5, _table_6, _table_8):
        yield from table(rows)
        yield ""
    yield OTHER_DATA


def mean_percent(rows: Sequence[Row], name: str, column: str = "dice") -> float | None:
    """100 times the mean of a column over the cases that have the class; None where no case has it."""
    values = [row[column] for row in rows if row["class"] == name and row["present"] and row.get(column) is not None]
    return 100 * sum(values) / len(values) if values else None


def means_of(rows: Sequence[Row], columns: Iterable[tuple[str, Sequence[str]]]) -> list[float | None]:
    """mean_percent of DSC for each (title, classes): the mean over the classes, None where one is not there."""
    return [complete_mean(mean_percent(rows, name) for name in names) for _, names in columns]


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


def _printed(block: Printed, widths: Sequence[int], part: slice = slice(None)) -> Iterator[str]:
    """The paper's rows."""
    for method, numbers in block.items():
        yield "  " + _cells(method, numbers[part], widths)


def _table_3(rows: Sequence[Row]) -> Iterator[str]:
    yield "Table 3. Medical Segmentation Decathlon, % (the paper: MSD's test set; Avg.: of organ and tumour)"
    for dataset, title, organ, tumour, block, part in TABLE_3:
        chosen, what = rows_for(rows, (dataset,))
        parts = [part_name for part_name, name in (("Organ", organ), ("Tumor", tumour)) if name]
        columns = [*parts, "Avg."] if len(parts) == 2 else parts
        yield f"  {title}; ours: {what}"
        yield "  " + _cells("", [f"DSC {c}" for c in columns] + [f"NSD {c}" for c in columns], [11] * 6)
        ours = [[mean_percent(chosen, name, column) for name in (organ, tumour) if name] for column in ("dice", "nsd")]
        ours = [scores + [complete_mean(scores)] if len(scores) == 2 else scores for scores in ours]
        yield from _printed(block, [11] * 6, part)
        yield "  " + _cells("ours", [*ours[0], *ours[1]], [11] * 6)


def _table_4(rows: Sequence[Row]) -> Iterator[str]:
    chosen, what = rows_for(rows, BTCV)
    ours, widths = means_of(chosen, TABLE_4), [7] * 13
    yield ("Table 4. BTCV, DSC in % (the paper: five-fold cross-validation; AG: mean of the adrenal glands); "
           f"ours: {what}")
    yield "  " + _cells("", [title for title, _ in TABLE_4] + ["Avg."], widths)
    yield "  trained on BTCV alone"
    yield from _printed(printed.TABLE_4_SPECIFIC, widths)
    yield "  trained on several datasets"
    yield from (line + (" [1]" if printed.OURS in line else "") for line in _printed(printed.TABLE_4_AGNOSTIC, widths))
    yield "  " + _cells("ours", ours + [complete_mean(ours)], widths)
    yield from textwrap.wrap(f"[1] {TABLE_4_NOTE}", 126, initial_indent="  ", subsequent_indent="      ")


def _table_5(rows: Sequence[Row]) -> Iterator[str]:
    widths, ours, whats = [9] * 12, [], set()
    for _, names, dataset in TABLE_5:
        chosen, what = rows_for(rows, KITS if dataset in KITS else (dataset,))
        ours += means_of(chosen, [("", names)])
        whats.add("other data" if what == "other data" else "cases of its datasets (not the paper's split)")
    yield "Table 5. MOTS, DSC in % (kidney, ours: mean of the right and the left one; *: trained on MOTS alone)"
    yield f"  ours: {' and '.join(sorted(whats))}"
    yield "  " + _cells("", [title for title, _, _ in TABLE_5] + ["Avg."], widths)
    yield from _printed(printed.TABLE_5, widths)
    yield "  " + _cells("ours", ours + [complete_mean(ours)], widths)


def _table_6(rows: Sequence[Row]) -> Iterator[str]:
    yield "Table 6. Detection per patient, %: sensitivity, specificity, harmonic mean (ours: patients with / without)"
    yield "  " + _cells("", [title for _, title in TABLE_6], [24] * 3)
    yield "  " + _cells("", ["Sen.", "Spec.", "Harm."] * 3, [8] * 9)
    yield from _printed(printed.TABLE_6, [8] * 9)
    ours, counts = [], []
    for name, _ in TABLE_6:
        of_class = [row for row in rows if row["class"] == name]
        detection = sensitivity_specificity([row["found"] for row in of_class], [row["present"] for row in of_class])
        shares = [detection[key] for key in ("sensitivity", "specificity", "harmonic_mean")]
        ours += [None if share is None else 100 * share for share in shares]
        counts.append(f"{detection['tp'] + detection['fn']} / {detection['tn'] + detection['fp']} patients")
    yield "  " + _cells("ours", ours, [8] * 9)
    yield "  " + _cells("", counts, [24] * 3)


def _table_8(rows: Sequence[Row]) -> Iterator[str]:
    chosen, what = rows_for(rows, IRCADB)
    ours, widths = means_of(chosen, TABLE_8), [10] * 11
    yield f"Table 8. 3D-IRCADb, DSC in % (mDSC*: the first seven organs, mDSC: all); ours: {what}"
    yield "  " + _cells("", [title for title, _ in TABLE_8] + ["mDSC*", "mDSC"], widths)
    yield from _printed(printed.TABLE_8_IRCADB, widths)
    yield "  " + _cells("ours", ours + [complete_mean(ours[:7]), complete_mean(ours)], widths)
    ours = means_of(rows, TABLE_8_JHH)
    yield "  JHH, a private dataset; ours: other data"
    yield "  " + _cells("", [title for title, _ in TABLE_8_JHH] + ["mDSC"], widths)
    yield from _printed(printed.TABLE_8_JHH, widths)
    yield "  " + _cells("ours", ours + [complete_mean(ours)], widths)
