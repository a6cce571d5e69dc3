"""Do old classes survive when new ones are learned without the old data? Section 5's two protocols; Tables 10 and 11.

    python benchmarks/continual.py --out runs/continual [--protocol tumour body] [--steps 1500 800] [--seeds 1] [--jobs
    2]

Tumour extension (Table 10): step 1 learns 13 organs, step 2 the liver tumour, from other patients whose organs are not
labelled. Body extension (Table 11): 7 abdominal organs, then 3 of the gastrointestinal tract, then 4 of the
cardiovascular system, each from other patients. Every method is trained by `python -m uniseg.train`, its later steps
with --extend. LwF, ILT and PLOP share their first step. By default the patients are phantoms and the network is a small
U-Net, so that all of it (19 trainings) takes less than an hour on two cores. Finished trainings are not repeated,
interrupted ones are resumed.

On real data, with the paper's network and recipe (Swin UNETR, 1.5 mm, 96^3, 100 epochs, batch 2) on a GPU:

    python benchmarks/continual.py --protocol tumour --data BTCV LITS TEST --paper --out runs/btcv_lits

Each of the three is a folder of datasets as --data-root takes it (docs/datasets.md). The datasets of TEST together
label all 14 classes. A softmax needs every class labelled in every case, so LwF, ILT and PLOP need the 13-organ edition
of BTCV.

Dice is that of the networks themselves, without post-processing, on the CT's own grid.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
from partial_labels import AMP, STEPS_PER_EPOCH, cell, names_of, train, whole_epochs, write_dataset

import uniseg
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import read_ct
from uniseg.metrics import dice
from uniseg.phantom import make_phantom
from uniseg.training.run_folder import write_json

Scores = Mapping[str, float]                              # {class: Dice}
Results = Mapping[str, Sequence[tuple[Scores, ...]]]      # {method: for each seed the scores after each step}

SPACING_MM = 4.0
PATIENTS, TEST_PATIENTS = 8, 6                            # per step; in the test set
RECIPE = (*("--folds 1 --backbone unet --width 8 --lpg-hidden 64 --spacing 4 --patch-size 32 32 32 --batch-size 2 "
            "--lr 1e-3 --warmup-epochs 2 --balance 0.5 --weight-positives --prior 0.02 --workers 0").split(), *AMP)
EXTEND = (*("--folds 1 --batch-size 2 --lr 5e-4 --warmup-epochs 2 --balance 0.5 --weight-positives --prior 0.02 "
            "--workers 0").split(), *AMP)
# Section 5.1.3
PAPER_RECIPE = "--folds 1 --epochs 100 --warmup-epochs 0 --batch-size 2 --lr 1e-4 --weight-decay 1e-5".split()
LIVER_TUMOUR = "liver tumor"
GROUPS = {                                               # protocol -> the labels that each step learns
    "tumour": (("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta",
                "postcava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
               (LIVER_TUMOUR,)),
    "body": (("spleen", "right kidney", "left kidney", "gall bladder", "liver", "postcava", "pancreas"),
             ("stomach", "colon", "intestine"),
             ("aorta", "portal and splenic vein", "celiac trunk", "superior mesenteric artery")),
}
BESIDE = {("tumour", 1): ("liver",)}                      # (protocol, index of the step): labelled as well, as in LiTS
METHODS = {                                               # options of the first step, options of the later steps
    "LwF": (("--head", "softmax"), ("--baseline", "lwf")), "ILT": (("--head", "softmax"), ("--baseline", "ilt")),
    "PLOP": (("--head", "softmax"), ("--baseline", "plop")), "Ours (1-hot)": (("--encoding", "one-hot"), ()),
    "Ours (text)": (("--encoding", "v3"), ()),
}
# Not in the paper's tables, for --methods and forgetting.py.
LENGTHS = {"half": 0.5, "double": 2, "longer": 3}         # the end of a method's name -> factor of its later steps
METHODS |= {f"{name}, {length}": METHODS[name] for length in LENGTHS for name in ("LwF", "ILT", "PLOP", "Ours (text)")}
# Beyond the paper: the weight of the old classes, and their Dice (docs/forgetting.md).
OLD_DICE = {"linear": "", "squared": ", squared Dice", "none": ", no old Dice"}
METHODS |= {f"{name}, old {weight}": (METHODS[name][0], (*METHODS[name][1], "--old-weight", weight))
            for name in ("LwF", "ILT", "PLOP") for weight in ("10", "100")}
METHODS |= {f"Ours, old {weight}{text}": (METHODS["Ours (text)"][0], ("--old-weight", weight, "--old-dice", dice))
            for dice, text in OLD_DICE.items() for weight in ("3", "1", "0.3")}
METHODS |= {f"Ours{text}": (METHODS["Ours (text)"][0], ("--old-dice", dice))
            for dice, text in OLD_DICE.items() if text}
METHODS["Ours, He start"] = (METHODS["Ours (text)"][0], ("--head-start", "he"))
# Options of a first step -> the name of its folder, which methods share.
FIRST_STEPS = {("--head", "softmax"): "softmax", ("--encoding", "one-hot"): "ours-1-hot",
               ("--encoding", "v3"): "ours-text"}
IN_TABLE = {"tumour": ("LwF", "ILT", "PLOP", "Ours (text)"), "body": tuple(METHODS)[:5]}
# Table 10: the 13 organs in the order of GROUPS after step 1 and after step 2, the liver tumour, mean of the organs
# after
# step 1 and after step 2, mean of all. None where the paper has one value for the three methods.
TABLE_10 = {
    "LwF": ((.955, .819, .927, .844, .718, .969, .896, .801, .877, .735, .826, .743, .654),
            (.941, .745, .845, .796, .690, .935, .852, .847, .784, .628, .812, .671, .468),
            .456, .828, .770, .748),
    "ILT": (None,
            (.950, .687, .913, .750, .692, .960, .857, .774, .849, .757, .812, .692, .527),
            .335, .828, .786, .754),
    "PLOP": (None,
             (.942, .778, .908, .823, .690, .959, .883, .803, .819, .634, .822, .708, .612),
             .362, .828, .799, .768),
    "Ours (text)": ((.952, .917, .922, .840, .720, .966, .886, .903, .902, .812, .845, .755, .758),
                    (.941, .860, .872, .728, .690, .955, .862, .909, .872, .742, .808, .703, .683),
                    .466, .860, .817, .792),
}
# Table 11: organ (7) of steps 1, 2, 3; gastro (3) of steps 2, 3; cardiac (4) of step 3.
TABLE_11 = {"LwF": (.891, .777, .767, .530, .486, .360), "ILT": (.891, .775, .776, .653, .480, .484),
            "PLOP": (.891, .780, .777, .427, .464, .318), "Ours (1-hot)": (.882, .767, .777, .674, .665, .452),
            "Ours (text)": (.887, .783, .787, .695, .692, .636)}


# --------------------------------------------------------------------------------------------------------- the phantoms

def write_phantoms(out: Path, protocol: str, patients: int = PATIENTS, test_patients: int = TEST_PATIENTS,
                   spacing_mm: float = SPACING_MM) -> None:
    """Write OUT/<protocol>/step1, step2, ... with the labels of their step alone, and OUT/<protocol>/test with all
    labels.

    Every folder has other patients. Those of the tumour extension's second step and its test patients have tumours.
    """
    every = [label for group in GROUPS[protocol] for label in group]
    folders = [(f"step{i}", 100 * i, patients, [*BESIDE.get((protocol, i - 1), ()), *group])
               for i, group in enumerate(GROUPS[protocol], 1)]
    for name, first, count, labels in [*folders, ("test", 1000, test_patients, every)]:
        tumours = LIVER_TUMOUR in labels
        cases = {f"patient{seed:04d}": make_phantom((spacing_mm,) * 3, seed, tumours, beyond=protocol == "body")
                 for seed in range(first, first + count)}
        write_dataset(out / protocol / name / "Phantoms", cases, labels, labels, tuple(labels))


def data_folders(args: argparse.Namespace, protocol: str) -> tuple[list[Path], Path]:
    """(folders of the steps, test folder); without --data they hold phantoms, which are written if they are missing."""
    if args.data:
        return args.data[:-1], args.data[-1]
    steps = [args.out / protocol / f"step{i + 1}" for i in range(len(GROUPS[protocol]))]
    test = args.out / protocol / "test"
    if not (test / "Phantoms" / "dataset.json").is_file():                           # written last
        shutil.rmtree(args.out / protocol, ignore_errors=True)
        write_phantoms(args.out, protocol)
    return steps, test


# -------------------------------------------------------------------------------------------------------- the trainings

def folders(args: argparse.Namespace, protocol: str, method: str, seed: int, upto: int | None = None) -> list[Path]:
    """The run folders of the steps of one method, or of the first `upto` steps. Methods share the first one."""
    first, later = FIRST_STEPS[METHODS[method][0]], re.sub(r"\W+", "-", method.lower()).strip("-")
    names = [f"{first}-seed{0 if args.one_start else seed}"]
    names += [f"{later}-seed{seed}{'-from0' if args.one_start and seed else ''}"] * (len(GROUPS[protocol]) - 1)
    return [args.out / "runs" / f"{protocol}-{name}-step{i}" for i, name in enumerate(names, 1)][:upto]


def chain(args: argparse.Namespace, protocol: str, method: str, seed: int, upto: int | None = None) -> list[Path]:
    """Train the steps of one method, each from the one before; returns their last checkpoints.

    upto: train only the first so many steps
    """
    (first, later), (roots, _) = METHODS[method], data_folders(args, protocol)
    checkpoints: list[Path] = []
    of_runs = folders(args, protocol, method, seed, upto)
    for i, (root, group, folder) in enumerate(zip(roots, GROUPS[protocol], of_runs)):
        classes = ",".join(name for label in group for name in names_of(label))
        if i == 0:
            options = [*(PAPER_RECIPE if args.paper else RECIPE), *first]
        else:
            options = [*(PAPER_RECIPE[:2] if args.paper else EXTEND), *later, "--extend", checkpoints[-1]]
        length = next((times for name, times in LENGTHS.items() if method.endswith(name)), 1)
        steps = int(args.steps[1] * length) if i else args.steps[0]
        checkpoints.append(train(root, folder, args.out / "cache", None if args.paper else steps,
                                 0 if args.one_start and i == 0 else seed, [*options, "--classes", classes]))
    return checkpoints


def train_all(args: argparse.Namespace, jobs: Sequence[tuple[str, str, int]],
              upto: int | None = None) -> Iterator[list[Path]]:
    """`chain` of every (protocol, method, seed), --jobs at a time, in the order of `jobs`."""
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        # Methods share their first steps, each of which is trained once.
        first = {folders(args, *job)[0]: job for job in jobs}
        list(pool.map(lambda job: chain(args, *job, upto=1), first.values()))
        yield from pool.map(lambda job: chain(args, *job, upto=upto), jobs)


def score(weights: Path, test: Path) -> dict[str, float]:
    """{class: mean Dice over the test cases that have it} of a checkpoint, without post-processing.

    A file beside the checkpoint keeps the scores, for other tables and later calls.
    """
    kept = weights.with_name(f"scores_{test.name}.json")
    if not kept.is_file() or kept.stat().st_mtime < weights.stat().st_mtime:
        write_json(kept, measure(weights, test))
    return json.loads(kept.read_text(encoding="utf-8"))


def measure(weights: Path, test: Path) -> dict[str, float]:
    """The scores of `score`."""
    segmenter = uniseg.load(weights)
    scores: dict[str, list[float]] = {}
    named = {name: name for groups in GROUPS.values() for group in groups for label in group
             for name in names_of(label)}
    for dataset in find_datasets(test, named, allow=("unknown",)):
        for case in dataset.cases:
            ct = read_ct(case.image)
            image = nibabel.Nifti1Image(ct.array, ct.affine)                          # RAS+, as the masks are
            result = segmenter.segment(image, postprocess=False)
            for name, truth in case_masks(dataset, case, ct):
                if name in segmenter.classes and truth.any():
                    scores.setdefault(name, []).append(dice(result.mask(name), truth))
    return {name: float(np.mean(values)) for name, values in scores.items()}


# ----------------------------------------------------------------------------------------------------------- the tables

def mean_of(scores: Scores, labels: Sequence[str]) -> float | None:
    """Mean Dice of the classes of some labels; None if none of them has a score."""
    values = [scores[name] for label in labels for name in names_of(label) if name in scores]
    return float(np.mean(values)) if values else None


def shown(values: Sequence[float | None]) -> str:
    """Mean over the seeds, with least and most if there are several; "-" if there is no score."""
    scores = [value for value in values if value is not None]
    return cell(scores, 3) if scores else "-"


def table_10(results: Results) -> Iterator[str]:
    """Markdown lines of Table 10, both steps in one cell."""
    organs, (tumour,) = GROUPS["tumour"]
    columns = [(label, [label]) for label in organs]
    columns += [("liver tumor", [tumour]), ("organ mean", organs), ("mean", [*organs, tumour])]
    yield "Table 10, tumour extension: step 1 / step 2\n"
    for part in (columns[:8], columns[8:]):
        yield "| | " + " | ".join(name for name, _ in part) + " |"
        yield "|--" * (1 + len(part)) + "|"
        for method, seeds in results.items():
            cells = []
            for name, labels in part:
                first = "N/A" if name in ("liver tumor", "mean") else shown([mean_of(one, labels) for one, _ in seeds])
                cells.append(f"{first} / {shown([mean_of(two, labels) for _, two in seeds])}")
            yield f"| {method} | " + " | ".join(cells) + " |"
            if method in TABLE_10:
                yield f"| {method}, paper | " + " | ".join(paper_10(method, name) for name, _ in part) + " |"
        yield ""


def paper_10(method: str, column: str) -> str:
    """The paper's cell of Table 10: step 1 / step 2."""
    organs = GROUPS["tumour"][0]
    one, two, tumour, organ_1, organ_2, mean = TABLE_10[method]
    one = one or TABLE_10["LwF"][0]  # LwF, ILT and PLOP share their first step
    if column in organs:
        return f"{one[organs.index(column)]:.3f} / {two[organs.index(column)]:.3f}"
    return {"liver tumor": f"N/A / {tumour:.3f}", "organ mean": f"{organ_1:.3f} / {organ_2:.3f}",
            "mean": f"N/A / {mean:.3f}"}[column]


def table_11(results: Results) -> Iterator[str]:
    """Markdown lines of Table 11."""
    organ, gastro, cardiac = GROUPS["body"]
    columns = [(organ, 0), (organ, 1), (organ, 2), (gastro, 1), (gastro, 2), (cardiac, 2)]
    yield "Table 11, body extension\n"
    yield "| | organ (7), step 1 | step 2 | step 3 | gastro (3), step 2 | step 3 | cardiac (4), step 3 |"
    yield "|--" * 7 + "|"
    for method, seeds in results.items():
        cells = (shown([mean_of(steps[i], labels) for steps in seeds]) for labels, i in columns)
        yield f"| {method} | {' | '.join(cells)} |"
        if method in TABLE_11:
            yield f"| {method}, paper | " + " | ".join(f"{v:.3f}" for v in TABLE_11[method]) + " |"
    yield ""


def change(protocol: str, results: Results) -> str:
    """A sentence: how the Dice of old classes changes per method, from the step that learned them to the last."""
    old = [(i, name) for i, group in enumerate(GROUPS[protocol][:-1]) for label in group for name in names_of(label)]
    changes = {method: np.mean([steps[-1][name] - steps[i][name]
                                for steps in seeds for i, name in old if name in steps[i]])
               for method, seeds in results.items()}
    return "Old classes, change of Dice from the step that learned them to the last: " + ", ".join(
        f"{method} {value:+.3f}" for method, value in sorted(changes.items(), key=lambda pair: -pair[1])) + "."


def order(protocol: str, results: Results) -> str:
    """Sentences: the order of the methods by the mean Dice after the last step, here and in the paper."""
    labels = [label for group in GROUPS[protocol] for label in group]
    if not results:
        return "No method of the paper's table was run."
    ours = {method: np.mean([mean_of(steps[-1], labels) for steps in seeds]) for method, seeds in results.items()}
    if protocol == "tumour":
        paper = {method: TABLE_10[method][5] for method in results}
    else:  # organ, gastro, cardiac after step 3
        sizes = [len(group) for group in GROUPS["body"]]
        paper = {method: np.average(np.array(TABLE_11[method])[[2, 4, 5]], weights=sizes) for method in results}
    ranks = [sorted(means.items(), key=lambda pair: -pair[1]) for means in (ours, paper)]
    here, there = (" > ".join(f"{method} {value:.3f}" for method, value in rank) for rank in ranks)
    same = sorted(ours, key=lambda method: ours[method]) == sorted(paper, key=lambda method: paper[method])
    return f"Mean of all {len(labels)} classes after the last step, here: {here}.\nIn the paper: {there}. " \
           f"The order is {'the same' if same else 'NOT the same'}."


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/continual"),
                        help="folder for phantoms and runs (default %(default)s)")
    parser.add_argument("--protocol", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS),
                        help="tumour: Table 10, body: Table 11 (default: both)")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="default: those of the paper's table")
    parser.add_argument("--steps", type=whole_epochs, nargs=2, default=(1500, 800), metavar=("FIRST", "LATER"),
                        help="optimiser steps of the first training and of each later one, "
                             f"multiples of {STEPS_PER_EPOCH} (default 1500 800)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions, with seeds 0, 1, ... (default %(default)s)")
    parser.add_argument("--one-start", action="store_true",
                        help="extend the first training of seed 0 with every seed: repetitions of the extensions alone")
    parser.add_argument("--jobs", type=int, default=1, help="trainings that run at a time (default %(default)s)")
    parser.add_argument("--data", type=Path, nargs="+", metavar="ROOT",
                        help="a folder of data for each step, then one for the test (default: phantoms)")
    parser.add_argument("--paper", action="store_true", help="use the paper's network and recipe")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score all methods and print the tables."""
    args = build_parser().parse_args(argv)
    if args.data and (len(args.protocol) > 1 or len(args.data) != 1 + len(GROUPS[args.protocol[0]])):
        sys.exit("--data: choose one --protocol and give one folder per step and one for the test.")
    jobs = [(protocol, method, seed) for protocol in args.protocol for seed in range(args.seeds)
            for method in args.methods or IN_TABLE[protocol]]
    for protocol in args.protocol:
        data_folders(args, protocol)
    trained = list(train_all(args, jobs))
    results: dict[str, dict[str, list[tuple[Scores, ...]]]] = {protocol: {} for protocol in args.protocol}
    for (protocol, method, _), checkpoints in zip(jobs, trained):
        test = data_folders(args, protocol)[1]
        results[protocol].setdefault(method, []).append(tuple(score(weights, test) for weights in checkpoints))
    for protocol, by_method in results.items():
        print("\n".join((table_10 if protocol == "tumour" else table_11)(by_method)))
        print(order(protocol, {method: seeds for method, seeds in by_method.items() if method in IN_TABLE[protocol]}))
        print(change(protocol, by_method) + "\n")


if __name__ == "__main__":
    main()
