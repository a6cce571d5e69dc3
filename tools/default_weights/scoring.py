"""Which CTs score new weights, how they compare with the shipped ones, and what speaks against shipping them.

Beyond the paper. No CT is scored by weights that were trained on it: those of plan.FOLDS, which train the weights that
are shipped, are scored by runs that leave them out. uniseg.evaluate writes a row for each case and class; here such
tables become one. SHIPPED holds the rows of the shipped weights, made in the same way before they were shipped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from uniseg.machine.files import atomic_write
from uniseg.segmenter import DEFAULT_WEIGHTS

from .labelled import copy_dataset

NEVER_TRAIN = ("IRCAD", "NSCLC")   # datasets of DATA/validation
SHIPPED = Path(__file__).with_name("shipped_scores.csv")
WORSE = 0.05                       # a class may lose less than this in mean Dice
MORE_FALSE_ML = 10.0               # volume that may be found more where there is nothing, over all cases and classes


class Comparison(NamedTuple):
    """Shipped against new, by case and class."""

    dice: dict[tuple[str, str], tuple[float, float]]       # (class, case): (shipped, new), where the class is there
    false_ml: dict[tuple[str, str], tuple[float, float]]   # the same, where it is annotated and absent
    offered: tuple[str, ...]
    objections: list[str]                                  # what speaks against shipping; [] if nothing does


def held_out(data: Path, folder: Path, names: Sequence[str]) -> Path:
    """A folder with copies of the datasets of DATA that `names` names, to score."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (path for part in ("train", "validation") for path in sorted((data / part).glob("*"))):
        if source.name in names and not (folder / source.name).exists():
            copy_dataset(source, folder / source.name)
    return folder


def join(folders: Sequence[Path], out: Path) -> None:
    """The rows of several results of uniseg.evaluate as one table."""
    lines = [(folder / "cases.csv").read_text(encoding="utf-8").splitlines(keepends=True) for folder in folders]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text("".join([*lines[0][:1], *(line for part in lines for line in part[1:])]), encoding="utf-8")


def compare(shipped: Path, new: Path) -> Comparison:
    """Compare two tables of the same cases. Raises ValueError where they are others."""
    rows = [read_rows(path) for path in (shipped, new)]
    if {case for _, case in rows[0]} != {case for _, case in rows[1]}:
        raise ValueError(f"{new}: scores other cases than {shipped}. Score both anew.")
    offered, dice, false_ml = offered_classes(), {}, {}
    for key in sorted(set(rows[0]) & set(rows[1])):
        old, now = rows[0][key], rows[1][key]
        if int(old["reference_voxels"] or 0):
            dice[key] = float(old["dice"]), float(now["dice"])
        else:
            false_ml[key] = float(old["predicted_ml"] or 0), float(now["predicted_ml"] or 0)
    lost = sorted({name for name, _ in set(rows[0]) - set(rows[1])} & set(offered))
    return Comparison(dice, false_ml, offered, [f"{name} is not known any more" for name in lost]
                      + objections_to(dice, false_ml, offered))


def offered_classes() -> tuple[str, ...]:
    """The classes that the shipped weights offer."""
    content = json.loads(DEFAULT_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    return tuple(name for name in content["classes"] if name not in content["about"].get("experimental", {}))


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """{(class, dataset/case): row} of a cases.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["class"], f"{row['dataset']}/{row['case']}"): row for row in csv.DictReader(file)}


def class_means(dice: Mapping[tuple[str, str], tuple[float, float]],
                classes: Sequence[str]) -> dict[str, tuple[float, float]]:
    """{class: (shipped, new) mean Dice over the cases that show it}."""
    means = {}
    for name in classes:
        pairs = [pair for (of, _), pair in dice.items() if of == name]
        if pairs:
            means[name] = (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs))
    return means


def objections_to(dice: Mapping[tuple[str, str], tuple[float, float]],
                  false_ml: Mapping[tuple[str, str], tuple[float, float]], offered: Sequence[str]) -> list[str]:
    """What speaks against new weights: no better on the mean over the classes offered, a class that is clearly worse,
    more found where there is nothing."""
    means = class_means(dice, offered)
    if not means:
        return ["no class is scored"]
    old, new = (sum(pair[which] for pair in means.values()) / len(means) for which in (0, 1))
    found = [] if new > old else [f"the mean Dice over {len(means)} classes is {new:.3f}, {old:.3f} before"]
    found += [f"{name} {b:.2f}, {a:.2f} before" for name, (a, b) in means.items() if b < a - WORSE]
    false_old, false_new = (sum(pair[which] for (name, _), pair in false_ml.items() if name in offered)
                            for which in (0, 1))
    if false_new > false_old + MORE_FALSE_ML:
        found.append(f"{false_new:.0f} ml are found where there is nothing, {false_old:.0f} before")
    return found


def pages(comparison: Comparison) -> str:
    """The comparison as a page in Markdown."""
    means = class_means(comparison.dice, [*comparison.offered, *sorted({name for name, _ in comparison.dice}
                                                                       - set(comparison.offered))])
    lines = ["| class | cases | shipped | new |", "|--|--|--|--|"]
    for name, (old, new) in means.items():
        cases = [case.rpartition("/")[2] for of, case in comparison.dice if of == name]
        lines.append(f"| {name}{'' if name in comparison.offered else ' (experimental)'} | {', '.join(cases)} | "
                     f"{old:.3f} | {new:.3f} |")
    scored = [pair for name, pair in means.items() if name in comparison.offered]
    if scored:
        old, new = (sum(pair[which] for pair in scored) / len(scored) for which in (0, 1))
        lines.append(f"| mean of the classes offered | | {old:.3f} | {new:.3f} |")
    lines += ["", "| case | class | shipped | new |", "|--|--|--|--|"]
    lines += [f"| {case} | {name} | {old:.3f} | {new:.3f} |" for (name, case), (old, new) in comparison.dice.items()]
    lines += ["", "| nothing to find | class | shipped, ml | new, ml |", "|--|--|--|--|"]
    lines += [f"| {case} | {name} | {old:.1f} | {new:.1f} |"
              for (name, case), (old, new) in comparison.false_ml.items() if max(old, new) > 0]
    lines += ["", "Against shipping: " + ("; ".join(comparison.objections) or "nothing") + ".", ""]
    return "\n".join(lines)
