"""Do old classes survive when new ones are learned without the old data? Section 5's two protocols; Tables 10 and 11.

    python benchmarks/continual.py --out runs/continual [--protocol tumour body] [--steps 1500 800] [--seeds 1] [--jobs 2]

Tumour extension (Table 10): step 1 learns 13 organs, step 2 the liver tumour from other patients whose organs are not labelled.
Body extension (Table 11): 7 abdominal organs, then 3 of the gastrointestinal tract, then 4 of the cardiovascular system, each from
other patients. Every method trains by `python -m uniseg.train`, its later steps with --extend; LwF, ILT and PLOP share their first
step. By default the patients are phantoms and the network is a small U-Net, so that all of it (19 trainings) takes less than an
hour on two cores. A finished training is not repeated, one that was cut is resumed.

On real data, with the paper's network and recipe (Swin UNETR, 1.5 mm, 96^3, 100 epochs, batch 2) on a GPU:

    python benchmarks/continual.py --protocol tumour --data BTCV LITS TEST --paper --out runs/btcv_lits

where each is a folder of datasets as --data-root takes it (docs/datasets.md), TEST labels all 14 classes in one dataset or
several. A softmax needs every class labelled in every case: LwF, ILT and PLOP need the 13-organ edition of BTCV.

Dice is that of the networks themselves, on the CT's own grid, without post-processing.
"""

import argparse
import concurrent.futures
import functools
import re
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
from partial_labels import STEPS_PER_EPOCH, cell, names_of, train, whole_epochs, write_dataset

import uniseg
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import read_ct
from uniseg.metrics import dice
from uniseg.phantom import make_phantom

SPACING_MM = 4.0
PATIENTS, TEST_PATIENTS = 8, 6                            # of each step
RECIPE = ("--folds 1 --backbone unet --width 8 --lpg-hidden 64 --spacing 4 --patch-size 32 32 32 --batch-size 2 --lr 1e-3 "
          "--warmup-epochs 2 --balance 0.5 --weight-positives --prior 0.02 --amp bf16 --workers 0").split()
EXTEND = "--folds 1 --batch-size 2 --lr 5e-4 --warmup-epochs 2 --balance 0.5 --weight-positives --prior 0.02 --amp bf16 --workers 0".split()
PAPER_RECIPE = "--folds 1 --epochs 100 --warmup-epochs 0 --batch-size 2 --lr 1e-4 --weight-decay 1e-5".split()     # Section 5.1.3
LIVER_TUMOUR = "liver tumor"
GROUPS = {                                               # of each step: the labels that it learns
    "tumour": (("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava",
                "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"), (LIVER_TUMOUR,)),
    "body": (("spleen", "right kidney", "left kidney", "gall bladder", "liver", "postcava", "pancreas"),
             ("stomach", "colon", "intestine"), ("aorta", "portal and splenic vein", "celiac trunk", "superior mesenteric artery")),
}
BESIDE = {("tumour", 1): ("liver",)}                      # labelled there as well, as in LiTS
METHODS = {                                               # options of the first step, of the later ones
    "LwF": (("--head", "softmax"), ("--baseline", "lwf")), "ILT": (("--head", "softmax"), ("--baseline", "ilt")),
    "PLOP": (("--head", "softmax"), ("--baseline", "plop")), "Ours (1-hot)": (("--encoding", "one-hot"), ()),
    "Ours (text)": (("--encoding", "v3"), ()),
}
# Beyond the tables, by --methods.
METHODS |= {f"{name}, longer": METHODS[name] for name in ("LwF", "Ours (text)")}
LONGER = 3                                                # times the others' steps in the later steps
FIRST_STEPS = {("--head", "softmax"): "softmax", ("--encoding", "one-hot"): "ours-1-hot", ("--encoding", "v3"): "ours-text"}  # shared
IN_TABLE = {"tumour": ("LwF", "ILT", "PLOP", "Ours (text)"), "body": tuple(METHODS)[:5]}
# Table 10, step 1 and step 2 of the 13 organs in the order of GROUPS, the liver tumour, means of organs and of all.
TABLE_10 = {
    "LwF": ((.955, .819, .927, .844, .718, .969, .896, .801, .877, .735, .826, .743, .654),
            (.941, .745, .845, .796, .690, .935, .852, .847, .784, .628, .812, .671, .468), .456, .828, .770, .748),
    "ILT": (None, (.950, .687, .913, .750, .692, .960, .857, .774, .849, .757, .812, .692, .527), .335, .828, .786, .754),
    "PLOP": (None, (.942, .778, .908, .823, .690, .959, .883, .803, .819, .634, .822, .708, .612), .362, .828, .799, .768),
    "Ours (text)": ((.952, .917, .922, .840, .720, .966, .886, .903, .902, .812, .845, .755, .758),
                    (.941, .860, .872, .728, .690, .955, .862, .909, .872, .742, .808, .703, .683), .466, .860, .817, .792),
}
# Table 11: organ (7) of steps 1, 2, 3; gastro (3) of steps 2, 3; cardiac (4) of step 3.
TABLE_11 = {"LwF": (.891, .777, .767, .530, .486, .360), "ILT": (.891, .775, .776, .653, .480, .484),
            "PLOP": (.891, .780, .777, .427, .464, .318), "Ours (1-hot)": (.882, .767, .777, .674, .665, .452),
            "Ours (text)": (.887, .783, .787, .695, .692, .636)}


# -------------------------------------------------------------------------------------------------------------- the phantoms

def write_phantoms(out, protocol, patients=PATIENTS, test_patients=TEST_PATIENTS, spacing_mm=SPACING_MM):
    """OUT/<protocol>/step1, step2, ...: other patients each, with the labels of that step alone. OUT/<protocol>/test: all labels.

    Tumours are in the patients of the tumour extension's second step and in its test patients.
    """
    every = [label for group in GROUPS[protocol] for label in group]
    jobs = [(f"step{i}", 100 * i, patients, (*BESIDE.get((protocol, i - 1), ()), *group)) for i, group in enumerate(GROUPS[protocol], 1)]
    for name, first, count, labels in [*jobs, ("test", 1000, test_patients, every)]:
        tumours = LIVER_TUMOUR in labels
        cases = {f"patient{seed:04d}": make_phantom((spacing_mm,) * 3, seed, tumours, beyond=protocol == "body")
                 for seed in range(first, first + count)}
        write_dataset(out / protocol / name / "Phantoms", cases, labels, labels, tuple(labels))


def data_folders(args, protocol):
    """(folders of the steps, test folder); phantoms are written where no data is given."""
    if args.data:
        return args.data[:-1], args.data[-1]
    steps = [args.out / protocol / f"step{i + 1}" for i in range(len(GROUPS[protocol]))]
    test = args.out / protocol / "test"
    if not (test / "Phantoms" / "dataset.json").is_file():                           # written last
        shutil.rmtree(args.out / protocol, ignore_errors=True)
        write_phantoms(args.out, protocol)
    return steps, test


# -------------------------------------------------------------------------------------------------------------- the trainings

def chain(args, protocol, method, seed, upto=None):
    """Train the steps of one method, each from the one before; returns their last checkpoints. upto: only so many steps."""
    (first, later), (roots, _) = METHODS[method], data_folders(args, protocol)
    checkpoints = []
    for i, (root, group) in enumerate(zip(roots, GROUPS[protocol])):
        if upto is not None and i >= upto:
            break
        own = FIRST_STEPS[first] if i == 0 else re.sub(r"\W+", "-", method.lower()).strip("-")
        folder = args.out / "runs" / f"{protocol}-{own}-seed{seed}-step{i + 1}"
        classes = ",".join(name for label in group for name in names_of(label))
        if i == 0:
            options = [*(PAPER_RECIPE if args.paper else RECIPE), *first]
        else:
            options = [*(PAPER_RECIPE[:2] if args.paper else EXTEND), *later, "--extend", checkpoints[-1]]
        steps = args.steps[1] * (LONGER if method.endswith("longer") else 1) if i else args.steps[0]
        checkpoints.append(train(root, folder, args.out / "cache", None if args.paper else steps, seed, [*options, "--classes", classes]))
    return checkpoints


@functools.lru_cache(maxsize=None)
def score(weights, test):
    """{class: mean Dice over the test cases that have it} of a checkpoint, without post-processing."""
    segmenter, found = uniseg.load(weights), {}
    named = {name: name for groups in GROUPS.values() for group in groups for label in group for name in names_of(label)}
    for dataset in find_datasets(test, named, allow=("unknown",)):
        for case in dataset.cases:
            ct = read_ct(case.image)
            result = segmenter.segment(nibabel.Nifti1Image(ct.array, ct.affine), postprocess=False)     # RAS+, as the masks are
            for name, truth in case_masks(dataset, case, ct):
                if name in segmenter.classes and truth.any():
                    found.setdefault(name, []).append(dice(result.mask(name), truth))
    return {name: float(np.mean(values)) for name, values in found.items()}


# -------------------------------------------------------------------------------------------------------------------- the tables

def mean_of(scores, labels):
    """Mean Dice of the classes of some labels; None where none was scored."""
    values = [scores[name] for label in labels for name in names_of(label) if name in scores]
    return float(np.mean(values)) if values else None


def shown(values):
    """Mean over the seeds, with least and most where there are several; "-" where nothing was scored."""
    values = [v for v in values if v is not None]
    return cell(values, 3) if values else "-"


def table_10(results):
    """Markdown of Table 10. results: {method: [(scores of step 1, scores of step 2) of each seed]}; steps in one cell."""
    organs, (tumour,) = GROUPS["tumour"]
    columns = [(label, [label]) for label in organs] + [("liver tumor", [tumour]), ("organ mean", organs), ("mean", [*organs, tumour])]
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


def paper_10(method, column):
    organs = GROUPS["tumour"][0]
    one, two, tumour, organ_1, organ_2, mean = TABLE_10[method]
    one = one or TABLE_10["LwF"][0]                                                  # the three share their first step
    if column in organs:
        return f"{one[organs.index(column)]:.3f} / {two[organs.index(column)]:.3f}"
    return {"liver tumor": f"N/A / {tumour:.3f}", "organ mean": f"{organ_1:.3f} / {organ_2:.3f}", "mean": f"N/A / {mean:.3f}"}[column]


def table_11(results):
    """Markdown of Table 11. results: {method: [(scores of steps 1, 2, 3) of each seed]}."""
    organ, gastro, cardiac = GROUPS["body"]
    columns = [(organ, 0), (organ, 1), (organ, 2), (gastro, 1), (gastro, 2), (cardiac, 2)]
    yield "Table 11, body extension\n"
    yield "| | organ (7), step 1 | step 2 | step 3 | gastro (3), step 2 | step 3 | cardiac (4), step 3 |"
    yield "|--" * 7 + "|"
    for method, seeds in results.items():
        yield f"| {method} | " + " | ".join(shown([mean_of(steps[i], labels) for steps in seeds]) for labels, i in columns) + " |"
        if method in TABLE_11:
            yield f"| {method}, paper | " + " | ".join(f"{v:.3f}" for v in TABLE_11[method]) + " |"
    yield ""


def change(protocol, results):
    """How much Dice the classes of each step but the last lose or win from the step that learned them to the last, their mean."""
    groups = GROUPS[protocol][:-1]
    lost = {m: np.mean([steps[-1][name] - steps[i][name] for steps in seeds for i, group in enumerate(groups) for label in group
                        for name in names_of(label) if name in steps[i]]) for m, seeds in results.items()}
    return "Old classes, change of Dice from the step that learned them to the last: " + ", ".join(
        f"{m} {v:+.3f}" for m, v in sorted(lost.items(), key=lambda pair: -pair[1])) + "."


def order(protocol, results):
    """How the methods rank after the last step, by the mean over all classes, here and in the paper."""
    labels = [label for group in GROUPS[protocol] for label in group]
    if not results:
        return "No method of the paper's table was run."
    ours = {m: np.mean([mean_of(steps[-1], labels) for steps in seeds]) for m, seeds in results.items()}
    weights = [len(group) for group in GROUPS["body"]]
    paper = {m: TABLE_10[m][5] if protocol == "tumour" else np.average(np.array(TABLE_11[m])[[2, 4, 5]], weights=weights) for m in results}
    text = [" > ".join(f"{m} {v:.3f}" for m, v in sorted(found.items(), key=lambda pair: -pair[1])) for found in (ours, paper)]
    same = sorted(ours, key=ours.get) == sorted(paper, key=paper.get)
    return f"Mean of all {len(labels)} classes after the last step, here: {text[0]}.\nIn the paper: {text[1]}. " \
           f"The order is {'the same' if same else 'NOT the same'}."


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/continual"), help="phantoms and runs")
    parser.add_argument("--protocol", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="default: those of the paper's table")
    parser.add_argument("--steps", type=whole_epochs, nargs=2, default=(1500, 800), metavar=("FIRST", "LATER"),
                        help=f"of the first step's training and of each later one's, multiples of {STEPS_PER_EPOCH}")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--data", type=Path, nargs="+", metavar="ROOT", help="folders of each step's data, then of the test data")
    parser.add_argument("--paper", action="store_true", help="the paper's network and recipe")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.data and (len(args.protocol) > 1 or len(args.data) != 1 + len(GROUPS[args.protocol[0]])):
        sys.exit("--data: choose one --protocol and give one folder a step and one for the test.")
    jobs = [(p, m, seed) for p in args.protocol for m in args.methods or IN_TABLE[p] for seed in range(args.seeds)]
    for protocol in args.protocol:
        data_folders(args, protocol)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        first = {(p, METHODS[m][0], seed): (p, m, seed) for p, m, seed in jobs}             # methods share their first steps
        list(pool.map(lambda job: chain(args, *job, upto=1), first.values()))
        trained = list(pool.map(lambda job: chain(args, *job), jobs))
    results = {p: {} for p in args.protocol}
    for (protocol, method, _), checkpoints in zip(jobs, trained):
        test = data_folders(args, protocol)[1]
        results[protocol].setdefault(method, []).append(tuple(score(weights, test) for weights in checkpoints))
    for protocol, found in results.items():
        print("\n".join((table_10 if protocol == "tumour" else table_11)(found)))
        print(order(protocol, {method: seeds for method, seeds in found.items() if method in IN_TABLE[protocol]}))
        print(change(protocol, found) + "\n")


if __name__ == "__main__":
    main()
