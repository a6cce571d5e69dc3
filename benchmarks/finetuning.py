"""Is a trained model a better start for other classes than random weights? Section 4.6, Table 9, group by group.

    python benchmarks/finetuning.py --out runs/finetuning [--steps 1500 300] [--seeds 1]
    python benchmarks/finetuning.py --out runs/total --data TOTALSEGMENTATOR --init WEIGHTS --paper

For each group of classes, two trainings with the same options, patches and steps: from random weights ("scratch"), and
from a trained model (`--init`), whose class heads are new. Both are scored on the same held-out cases, Dice on the
model's grid.

The second command is the paper's: the groups vertebrae, cardiac, muscles and organs of TotalSegmentator, whose folder
is read as published, one fold held out, the weights of a model that was trained on the assembly. The first is the same
in small, on phantoms: a U-Net learns FIRST from ten patients, then each group of GROUPS from two others; six more are
held out. Finished trainings are not repeated, interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from partial_labels import STEPS_PER_EPOCH, cell, names_of, phantoms, train, whole_epochs, write_dataset

Results = Mapping[str, Mapping[str, Sequence[float]]]       # {"Scratch" or "Ours": {group: mean Dice of each seed}}

SPACING_MM = 4.0
PATIENTS = {"first": (0, 10), "few": (100, 2), "held_out": (1000, 6)}       # folder -> first seed, number of patients
RECIPE = ("--folds 1 --backbone unet --width 8 --lpg-hidden 64 --spacing 4 --patch-size 32 32 32 --batch-size 2 "
          "--lr 1e-3 --warmup-epochs 1 --balance 0.5 --weight-positives --prior 0.02 --overlays 0 --workers 0").split()
PAPER_RECIPE = "--folds 5 --fold 0 --overlays 0".split()
FIRST = ("liver", "kidneys", "spleen", "pancreas", "right lung", "left lung", "bladder")    # what the model knows
GROUPS = {"vessels": ("aorta", "postcava"), "gastro": ("stomach", "colon"), "gall bladder": ("gall bladder",)}

# TotalSegmentator's first edition in its publishers' order (`total_v1` in totalsegmentator/map_to_binary.py of
# https://github.com/wasserth/TotalSegmentator), which goes by these groups. The paper does not list its own; it has 104
# classes, those of this edition. Ribs are no column of Table 9. Lobes are joined to lungs.
_SIDES = ("left", "right")
TOTAL_GROUPS = {
    "vertebrae": tuple(f"vertebrae_{part}{n}" for part, most in (("l", 5), ("t", 12), ("c", 7))
                       for n in range(most, 0, -1)),
    "cardiac": ("esophagus", "trachea", "heart_myocardium", "heart_atrium_left", "heart_ventricle_left",
                "heart_atrium_right", "heart_ventricle_right", "pulmonary_artery", "brain",
                *(f"{name}_{side}" for name in ("iliac_artery", "iliac_vena") for side in _SIDES), "small_bowel",
                "duodenum", "colon", "urinary_bladder"),
    "muscles": (*(f"{name}_{side}" for name in ("humerus", "scapula", "clavicula", "femur", "hip") for side in _SIDES),
                "sacrum", "face", *(f"{name}_{side}" for name in ("gluteus_maximus", "gluteus_medius",
                                                                  "gluteus_minimus", "autochthon", "iliopsoas")
                                    for side in _SIDES)),
    "organs": ("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta",
               "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right",
               "adrenal_gland_left", "right_lung", "left_lung"),
}
# Table 9 as printed: vertebrae, cardiac, muscles, organs of TotalSegmentator, their mean; JHH cardiac, organs, mean;
# PDAC, cyst and PanNET of JHH, their mean.
TABLE_9 = {
    "Scratch": (81.06, 84.47, 88.83, 86.42, 85.20, 71.63, 89.08, 80.36, 53.1, 41.2, 34.6, 42.97),
    "MedicalNet": (82.28, 87.40, 91.36, 86.90, 86.99, 58.07, 77.68, 67.88, None, None, None, None),
    "ModelsGen.": (85.12, 86.51, 89.96, 85.78, 86.84, 74.25, 88.64, 81.45, None, None, None, None),
    "Swin UNETR": (86.23, 87.91, 92.39, 88.56, 88.77, 67.85, 87.21, 77.53, 53.4, 41.6, 35.4, 43.47),
    "UniMiSS": (85.12, 88.96, 92.86, 88.51, 88.86, 69.33, 82.53, 75.93, None, None, None, None),
    "Ours": (86.49, 89.57, 94.43, 88.95, 89.86, 72.06, 89.37, 80.72, 53.6, 49.2, 45.7, 49.5),
}


def write_phantoms(out: Path) -> None:
    """Write OUT/first with the labels of FIRST, OUT/few and OUT/held_out with those of all GROUPS."""
    labels = [label for group in GROUPS.values() for label in group]
    for name, (seed, count) in PATIENTS.items():
        drawn = FIRST if name == "first" else labels
        if not (out / name / "Phantoms" / "dataset.json").is_file():                 # written last
            write_dataset(out / name / "Phantoms", phantoms(seed, count, SPACING_MM), drawn, drawn, tuple(drawn))


def last_dice(folder: Path, classes: Sequence[str]) -> float:
    """Mean over the classes of the mean Dice of a run's last validation, from its validation.json.

    Raises SystemExit where no held-out case has one of them.
    """
    cases = json.loads((folder / "validation.json").read_text(encoding="utf-8"))["last"]["cases"].values()
    means = []
    for name in classes:
        values = [case[name]["dice"] for case in cases if case.get(name, {}).get("dice") is not None]
        if not values:
            raise SystemExit(f"{folder}: no held-out case shows {name}. Leave its group out with --groups.")
        means.append(float(np.mean(values)))
    return float(np.mean(means))


def run_groups(args: argparse.Namespace, groups: Mapping[str, Sequence[str]]) -> Results:
    """Train every group from scratch and from the model; {"Scratch", "Ours": {group: mean Dice of each seed}}."""
    results: dict[str, dict[str, list[float]]] = {"Scratch": {}, "Ours": {}}
    cache, first, later = args.out / "cache", *args.steps
    for seed in range(args.seeds):
        init, data, more = args.init, args.data, PAPER_RECIPE if args.paper else RECIPE
        if data is None:
            data, more = args.out / "few", [*RECIPE, "--val-root", args.out / "held_out"]
            init = train(args.out / "first", args.out / "runs" / f"first-seed{seed}", cache, first, seed, RECIPE)
        for group, labels in groups.items():
            classes = [name for label in labels for name in names_of(label)]
            from_model = ["--init", init, "--partial", "--anew", ",".join(classes)]
            for method, start in (("Scratch", []), ("Ours", from_model)):
                folder = args.out / "runs" / f"{method.lower()}-{group.replace(' ', '-')}-seed{seed}"
                train(data, folder, cache, None if args.paper else later, seed,
                      [*more, "--classes", ",".join(classes), *start])
                results[method].setdefault(group, []).append(last_dice(folder, classes))
    return results


def table_9(results: Results) -> Iterator[str]:
    """Markdown lines: a row for each start, the paper's rows below where the groups are its own."""
    groups = list(results["Scratch"])
    yield f"| start | {' | '.join(groups)} | mean |"
    yield "|--" * (2 + len(groups)) + "|"
    for method, by_group in results.items():
        means = [float(np.mean([scores[seed] for scores in by_group.values()]))
                 for seed in range(len(next(iter(by_group.values()))))]
        cells = [cell([100 * value for value in scores], 1) for scores in (*by_group.values(), means)]
        yield f"| {method} | {' | '.join(cells)} |"
    if groups == list(TOTAL_GROUPS):
        for method, numbers in TABLE_9.items():
            yield f"| {method}, paper | {' | '.join(f'{number:.2f}' for number in numbers[:5])} |"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/finetuning"), help="folder for phantoms and runs (default %(default)s)")
    add("--data", type=Path, metavar="ROOT", help="holds TotalSegmentator as published (default: phantoms)")
    add("--init", type=Path, metavar="WEIGHTS", help="the trained model, with --data")
    add("--groups", nargs="+", metavar="GROUP", help="of TotalSegmentator or of the phantoms (default: all)")
    add("--steps", type=whole_epochs, nargs=2, default=(1500, 300), metavar=("FIRST", "LATER"),
        help=f"optimiser steps of the model and of each fine-tuning, multiples of {STEPS_PER_EPOCH} (default 1500 300)")
    add("--seeds", type=int, default=1, help="repetitions, with seeds 0, 1, ... (default %(default)s)")
    add("--paper", action="store_true", help="use the paper's network and recipe")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score all groups and print the table."""
    args = build_parser().parse_args(argv)
    if (args.data is None) != (args.init is None):
        sys.exit("--data and --init go together: other data, and the model that starts on them.")
    groups = GROUPS if args.data is None else TOTAL_GROUPS
    if unknown := [name for name in args.groups or () if name not in groups]:
        sys.exit(f"--groups {unknown[0]}: choose from {', '.join(groups)}.")
    if args.data is None:
        write_phantoms(args.out)
    chosen = {name: labels for name, labels in groups.items() if args.groups is None or name in args.groups}
    print("\n".join(table_9(run_groups(args, chosen))))


if __name__ == "__main__":
    main()
