"""Can one model learn from datasets that each annotate other organs? The masked loss, Eq. (3)-(4), on phantoms.

    python benchmarks/partial_labels.py --out runs/partial_labels [--steps 2000] [--seeds 1] [--longer 3]

writes an assembly of four datasets of phantoms (PATIENTS each) three times over: same CTs, same order, other labels.

    full        every dataset annotates every class
    partial     each dataset annotates its own classes (DATASETS), its dataset.json names these alone
    background  the label files of `partial`, but each dataset.json names every class: what is unlabelled is taken for
                background. Patches are drawn as for `partial`, voxel for voxel; only the loss differs.

Each is trained by `python -m uniseg.train` with the same options, and scored with `uniseg.load(...).segment` on other
phantoms that are labelled in full. In equal steps `partial` sees a class annotated a quarter as often as `full` does; --longer N
trains it N times as long besides. A finished training is not repeated and one that was cut is resumed, so the command may
be called again. 2000 steps take about 10 minutes on one core of an AMD EPYC (family 26) that has nothing else to do (1000 were
measured, 5), up to 20 on a busy machine; three trainings a seed. Docs: training.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import uniseg
from uniseg import checkpoint
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import class_masks
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.metrics import dice
from uniseg.phantom import make_phantom
from uniseg.pictures.canvas import write_png
from uniseg.pictures.slices import overlay
from uniseg.taxonomy import BY_NAME, NAMES, TUMOUR, normalise_name, resolve

SPACING_MM = 4.0
PATIENTS = 5              # of each dataset
TEST_PATIENTS = 6
TEST_SEED = 1000          # of the first test patient; the others' are 0 to 19
LABELS = ("liver", "kidneys", "spleen", "pancreas", "stomach", "gall bladder", "aorta", "postcava", "right lung", "left lung",
          "colon", "bladder", "liver tumor", "kidney tumor", "kidney cyst")    # value 1, 2, ...; lesions cover their organs
DATASETS = {              # what each annotates; after the sets named, cut down to what the phantom draws
    "Liver": ("liver", "liver tumor"),                                                               # LiTS
    "Kidneys": ("kidneys", "kidney tumor", "kidney cyst"),                                           # KiTS
    "Pancreas": ("liver", "spleen", "pancreas", "stomach", "gall bladder"),                          # Pancreas-CT
    "Trunk": ("kidneys", "aorta", "postcava", "right lung", "left lung", "colon", "bladder"),        # CT-ORG, TotalSegmentator
}
ROOTS = ("full", "partial", "background")
CLASSES = sorted((name for label in LABELS for name in resolve(label)), key=NAMES.index)
STEPS_PER_EPOCH = 50
RECIPE = ("--folds 1 --backbone unet --width 8 --lpg-hidden 64 --spacing 4 --patch-size 40 40 40 --batch-size 2 --lr 1e-3 "
          "--warmup-epochs 4 --balance 0.5 --weight-positives --prior 0.02 --amp bf16 --workers 1").split()


# ------------------------------------------------------------------------------------------------------- the phantoms

def names_of(label):
    """The classes that a label stands for; beyond Table 2 its own name."""
    try:
        return resolve(label)
    except ValueError:
        return (normalise_name(label),)


def write_dataset(folder, patients, drawn, named, labels=LABELS):
    """A dataset in the Medical Segmentation Decathlon's form, each label with its value (1, 2, ...) in `labels`.

    patients: {case id: (hu, masks, affine)}; drawn: labels in the label files; named: labels in dataset.json
    """
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case, (hu, masks, affine) in patients.items():
        label_map = np.zeros(hu.shape, np.uint8)
        for value, label in enumerate(labels, start=1):
            if label in drawn:
                label_map[np.logical_or.reduce([masks[name] for name in names_of(label)])] = value
        write_volume(folder / "imagesTr" / f"{case}.nii.gz", hu, affine)
        write_volume(folder / "labelsTr" / f"{case}.nii.gz", label_map, affine)
    content = {"labels": {"0": "background", **{str(labels.index(label) + 1): label for label in named}},
               "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in patients]}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))


def phantoms(first_seed, count, spacing_mm):
    """{case id: (hu, masks, affine)}"""
    return {f"patient{seed:03d}": make_phantom((spacing_mm,) * 3, seed) for seed in range(first_seed, first_seed + count)}


def write_phantoms(out, patients=PATIENTS, test_patients=TEST_PATIENTS, spacing_mm=SPACING_MM, roots=ROOTS):
    """OUT/full, OUT/partial, OUT/background: the same patients labelled three ways. OUT/test: others, labelled in full."""
    for number, (dataset, own) in enumerate(DATASETS.items()):
        cases = phantoms(number * patients, patients, spacing_mm)
        for root in roots:
            write_dataset(out / root / dataset, cases, LABELS if root == "full" else own, own if root == "partial" else LABELS)
    write_dataset(out / "test" / "Phantoms", phantoms(TEST_SEED, test_patients, spacing_mm), LABELS, LABELS)


def find_phantoms(out, roots=ROOTS):
    """The test dataset of OUT; the phantoms are written first where they are not all there."""
    if not (out / "test" / "Phantoms" / "dataset.json").is_file():                  # written last
        for root in (*roots, "test"):
            shutil.rmtree(out / root, ignore_errors=True)
        write_phantoms(out, roots=roots)
    (test,) = find_datasets(out / "test")
    return test


# ---------------------------------------------------------------------------------------------------------- three models

def train(root, folder, cache, steps, seed, recipe=RECIPE):
    """Run the command with the options of `recipe` until the folder holds a finished training; returns its last checkpoint.

    steps: a multiple of STEPS_PER_EPOCH, or None where the recipe says how long
    """
    last = folder / "last.pt"
    training = checkpoint.read(last)["training"] if last.is_file() else {"step": 0, "epoch": 0}
    if not training["step"] or training["epoch"] < training["config"]["epochs"]:
        if not training["step"]:
            shutil.rmtree(folder, ignore_errors=True)                    # what was cut before its first epoch ended
        print(f"training {folder.name} on {root.name}, from step {training['step']}", file=sys.stderr, flush=True)
        began = time.monotonic()
        length = ["--epochs", steps // STEPS_PER_EPOCH, "--steps-per-epoch", STEPS_PER_EPOCH] if steps else []
        command = [sys.executable, "-m", "uniseg.train", "--data-root", root, "--out", folder, "--cache", cache, *recipe, *length,
                   "--seed", seed, *(["--resume"] if training["step"] else [])]
        subprocess.run(list(map(str, command)), check=True)
        print(f"{folder.name} took {(time.monotonic() - began) / 60:.1f} min", file=sys.stderr, flush=True)
    return last


def score(weights, test, pictures):
    """{class: mean Dice over the test cases that have it}, of the shipped inference, on each CT's own grid."""
    segmenter, found = uniseg.load(weights), {name: [] for name in CLASSES}
    pictures.mkdir(exist_ok=True)
    for case, ct_path, label_path, _ in test.cases:
        ct, label = read_ct(ct_path), read_label_map(label_path)
        result = segmenter.segment(ct_path)
        for name, truth in class_masks(test, label.array, ct.array, ct.affine, label_path):
            if truth.any():
                found[name].append(dice(result.mask(name), truth) if name in segmenter.classes else 0.0)
        write_png(pictures / f"{case}.png", overlay(ct.array, result.label_map, ct.affine))
    return {name: float(np.mean(values)) for name, values in found.items()}


def annotated_by(out):
    """{class: number of datasets that annotate it in OUT/partial}"""
    partial = find_datasets(out / "partial")
    return {name: sum(name in d.annotated for d in partial) for name in CLASSES}


def cell(values, digits=2):
    """Mean over the seeds (least to most)."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def table(scores, annotated, digits=2):
    """Markdown lines: Dice of each class in each column, mean over the seeds (least to most).

    scores: {column: [{class: Dice} of each seed]}; annotated: {class: number of datasets that annotate it in `partial`}
    """
    lesions = [name for name in CLASSES if BY_NAME[name].kind == TUMOUR]
    groups = {name: [name] for name in CLASSES}
    groups |= {"**mean of organs**": [name for name in CLASSES if name not in lesions], "**mean of lesions**": lesions,
               "**mean of all**": CLASSES}
    yield f"| class | annotated by | {' | '.join(scores)} |"
    yield "|--" * (2 + len(scores)) + "|"
    for row, names in groups.items():
        counts = f"{annotated[row]} of {len(DATASETS)}" if row in annotated else ""
        cells = [cell([np.mean([one[name] for name in names]) for one in column], digits) for column in scores.values()]
        yield f"| {row} | {counts} | {' | '.join(cells)} |"


def whole_epochs(text):
    """The number of steps of --steps; argparse shows the error."""
    steps = int(text)
    if steps < STEPS_PER_EPOCH or steps % STEPS_PER_EPOCH:
        raise argparse.ArgumentTypeError(f"{text}: give a multiple of {STEPS_PER_EPOCH}")
    return steps


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/partial_labels"), help="phantoms, runs and pictures")
    parser.add_argument("--steps", type=whole_epochs, default=2000, help=f"of each training, a multiple of {STEPS_PER_EPOCH}")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each root, with seeds 0, 1, ...")
    parser.add_argument("--longer", type=int, default=1, help="train `partial` also so many times as long")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    columns = {root: (root, args.steps) for root in ROOTS}
    if args.longer > 1:
        columns[f"partial, {args.longer} times as long"] = ("partial", args.longer * args.steps)
    test, scores = find_phantoms(args.out), {column: [] for column in columns}
    for seed in range(args.seeds):
        for column, (root, steps) in columns.items():
            folder = args.out / "runs" / f"{root}-{steps}-{seed}"
            weights = train(args.out / root, folder, args.out / "cache", steps, seed)
            scores[column].append(score(weights, test, folder / "pictures"))
    print("\n".join(table(scores, annotated_by(args.out))))


if __name__ == "__main__":
    main()
