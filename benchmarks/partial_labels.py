"""Can one model learn from datasets that each annotate other organs? The masked loss, Eq. (3)-(4), on phantoms.

    python benchmarks/partial_labels.py --out runs/partial_labels [--steps 2000] [--seeds 1] [--longer 3]

writes an assembly of four datasets of phantoms (PATIENTS each) three times, with the same CTs and different labels.

    full        every dataset annotates every class
    partial     each dataset annotates its own classes (DATASETS), and its dataset.json names these alone
    background  the label files of `partial`, but each dataset.json names every class, so that what is unlabelled counts
                as background. Patches are drawn as for `partial`, voxel for voxel; only the loss differs.

Each is trained by `python -m uniseg.train` with the same options, and scored with `uniseg.load(...).segment` on other
phantoms, which are labelled in full. With equal steps `partial` sees an annotated class a quarter as often as `full`
does; --longer N also trains it N times as long. The command may be called again: finished trainings are not repeated,
interrupted ones are resumed. There are three trainings per seed. One of 2000 steps takes about 10 minutes on one idle
core of an AMD EPYC (family 26; 1000 steps were measured, 5 minutes), up to 20 on a busy machine. Results are in
docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import uniseg
from uniseg import checkpoint
from uniseg.datasets.dataset import Dataset
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import class_masks
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.machine.device import imitates_bf16
from uniseg.metrics import dice
from uniseg.phantom import make_phantom
from uniseg.taxonomy import BY_NAME, NAMES, TUMOUR, normalise_name, resolve

Patient = tuple[NDArray, dict[str, NDArray], NDArray]      # hu, masks, affine, as phantom.make_phantom gives them

SPACING_MM = 4.0
PATIENTS = 5              # per dataset
TEST_PATIENTS = 6
TEST_SEED = 1000          # of the first test patient; training patients have the seeds 0 to 19
# The values of the labels are 1, 2, ...; lesions come last and cover their organs.
LABELS = ("liver", "kidneys", "spleen", "pancreas", "stomach", "gall bladder", "aorta", "postcava", "right lung",
          "left lung", "colon", "bladder", "liver tumor", "kidney tumor", "kidney cyst")
DATASETS = {              # what each annotates, like the public dataset at the right, as far as the phantom draws it
    "Liver": ("liver", "liver tumor"),                                                               # LiTS
    "Kidneys": ("kidneys", "kidney tumor", "kidney cyst"),                                           # KiTS
    "Pancreas": ("liver", "spleen", "pancreas", "stomach", "gall bladder"),                          # Pancreas-CT
    # CT-ORG, TotalSegmentator
    "Trunk": ("kidneys", "aorta", "postcava", "right lung", "left lung", "colon", "bladder"),
}
ROOTS = ("full", "partial", "background")
CLASSES = sorted((name for label in LABELS for name in resolve(label)), key=NAMES.index)
STEPS_PER_EPOCH = 50
# All trainings are in bf16. On a processor without instructions for it, where it is ten times slower, in float32.
AMP = () if imitates_bf16(torch.device("cpu")) else ("--amp", "bf16")
RECIPE = (*("--folds 1 --backbone unet --width 8 --lpg-hidden 64 --spacing 4 --patch-size 40 40 40 --batch-size 2 "
            "--lr 1e-3 --warmup-epochs 4 --balance 0.5 --weight-positives --prior 0.02 --workers 1").split(), *AMP)


# ------------------------------------------------------------------------------------------------------- the phantoms

def names_of(label: str) -> tuple[str, ...]:
    """The classes that a label stands for; a label that is not in Table 2 is a class of its own."""
    try:
        return resolve(label)
    except ValueError:
        return (normalise_name(label),)


def write_dataset(folder: Path, patients: Mapping[str, Patient], drawn: Sequence[str], named: Sequence[str],
                  labels: Sequence[str] = LABELS) -> None:
    """Write a dataset in the form of the Medical Segmentation Decathlon; a label has its value (1, 2, ...) in `labels`.

    patients: {case id: patient}; drawn: labels in the label files; named: labels in dataset.json
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
               "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
                            for case in patients]}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))


def phantoms(first_seed: int, count: int, spacing_mm: float) -> dict[str, Patient]:
    """{case id: patient} with consecutive seeds."""
    return {f"patient{seed:03d}": make_phantom((spacing_mm,) * 3, seed)
            for seed in range(first_seed, first_seed + count)}


def write_phantoms(out: Path, patients: int = PATIENTS, test_patients: int = TEST_PATIENTS,
                   spacing_mm: float = SPACING_MM, roots: Sequence[str] = ROOTS) -> None:
    """Write OUT/full, OUT/partial, OUT/background, the same patients labelled in three ways, and OUT/test.

    OUT/test holds other patients, labelled in full. patients: per dataset
    """
    for number, (dataset, annotated) in enumerate(DATASETS.items()):
        cases = phantoms(number * patients, patients, spacing_mm)
        for root in roots:
            write_dataset(out / root / dataset, cases, LABELS if root == "full" else annotated,
                          annotated if root == "partial" else LABELS)
    write_dataset(out / "test" / "Phantoms", phantoms(TEST_SEED, test_patients, spacing_mm), LABELS, LABELS)


def find_phantoms(out: Path, roots: Sequence[str] = ROOTS) -> Dataset:
    """The test dataset of OUT. All phantoms are written first if some are missing."""
    if not (out / "test" / "Phantoms" / "dataset.json").is_file():                  # written last
        for root in (*roots, "test"):
            shutil.rmtree(out / root, ignore_errors=True)
        write_phantoms(out, roots=roots)
    (test,) = find_datasets(out / "test")
    return test


# ---------------------------------------------------------------------------------------------------------- three
# models

def unfinished(folder: Path) -> int | None:
    """The step that the training of a run folder has reached; None if it is finished."""
    if not (folder / "last.pt").is_file():
        return 0
    training = checkpoint.read(folder / "last.pt")["training"]
    return training["step"] if training["epoch"] < training["config"]["epochs"] else None


def train(root: Path, folder: Path, cache: Path, steps: int | None, seed: int, recipe: Sequence[Any] = RECIPE) -> Path:
    """Run `python -m uniseg.train` until the folder holds a finished training; returns its last checkpoint.

    steps: a multiple of STEPS_PER_EPOCH, or None if the options of `recipe` say how long
    """
    step = unfinished(folder)
    if step is not None:
        if not step:
            shutil.rmtree(folder, ignore_errors=True)                    # interrupted before the end of its first epoch
        print(f"training {folder.name} on {root.name}, from step {step}", file=sys.stderr, flush=True)
        start = time.monotonic()
        length = ["--epochs", steps // STEPS_PER_EPOCH, "--steps-per-epoch", STEPS_PER_EPOCH] if steps else []
        command = [sys.executable, "-m", "uniseg.train", "--data-root", root, "--out", folder, "--cache", cache,
                   *recipe, *length, "--seed", seed, *(["--resume"] if step else [])]
        subprocess.run(list(map(str, command)), check=True)
        print(f"{folder.name} took {(time.monotonic() - start) / 60:.1f} min", file=sys.stderr, flush=True)
    return folder / "last.pt"


def score(weights: Path, test: Dataset, pictures: Path) -> dict[str, float]:
    """{class: mean Dice over the test cases that have it} of `segment`, on each CT's own grid.

    pictures: folder for a picture of each case
    """
    segmenter = uniseg.load(weights)
    scores: dict[str, list[float]] = {name: [] for name in CLASSES}
    pictures.mkdir(exist_ok=True)
    for case, ct_path, label_path, _ in test.cases:
        ct, label = read_ct(ct_path), read_label_map(label_path)
        result = segmenter.segment(ct_path)
        for name, truth in class_masks(test, label.array, ct.array, ct.affine, label_path):
            if truth.any():
                scores[name].append(dice(result.mask(name), truth) if name in segmenter.classes else 0.0)
        result.preview(pictures / f"{case}.png")
    return {name: float(np.mean(values)) for name, values in scores.items()}


def annotated_by(out: Path) -> dict[str, int]:
    """{class: number of datasets that annotate it in OUT/partial}"""
    partial = find_datasets(out / "partial")
    return {name: sum(name in d.annotated for d in partial) for name in CLASSES}


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Mean over the seeds (least to most), as text."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def table(scores: Mapping[str, Sequence[Mapping[str, float]]], annotated: Mapping[str, int],
          digits: int = 2) -> Iterator[str]:
    """Markdown lines: Dice per class and column, mean over the seeds (least to most).

    scores: {column: [{class: Dice} of each seed]}; annotated: {class: number of datasets that annotate it in `partial`}
    """
    lesions = [name for name in CLASSES if BY_NAME[name].kind == TUMOUR]
    groups = {name: [name] for name in CLASSES}
    groups |= {"**mean of organs**": [name for name in CLASSES if name not in lesions],
               "**mean of lesions**": lesions, "**mean of all**": CLASSES}
    yield f"| class | annotated by | {' | '.join(scores)} |"
    yield "|--" * (2 + len(scores)) + "|"
    for row, names in groups.items():
        counts = f"{annotated[row]} of {len(DATASETS)}" if row in annotated else ""
        cells = [cell([np.mean([one[name] for name in names]) for one in column], digits) for column in scores.values()]
        yield f"| {row} | {counts} | {' | '.join(cells)} |"


def whole_epochs(text: str) -> int:
    """The value of --steps. Raises ArgumentTypeError, which argparse shows, unless it makes whole epochs."""
    steps = int(text)
    if steps < STEPS_PER_EPOCH or steps % STEPS_PER_EPOCH:
        raise argparse.ArgumentTypeError(f"{text}: give a multiple of {STEPS_PER_EPOCH}")
    return steps


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/partial_labels"),
                        help="folder for phantoms, runs and pictures (default %(default)s)")
    parser.add_argument("--steps", type=whole_epochs, default=2000,
                        help=f"of each training, a multiple of {STEPS_PER_EPOCH} (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1,
                        help="trainings of each root, with seeds 0, 1, ... (default %(default)s)")
    parser.add_argument("--longer", type=int, default=1, metavar="N",
                        help="also train `partial` N times as long")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score all columns and print the table."""
    args = build_parser().parse_args(argv)
    columns = {root: (root, args.steps) for root in ROOTS}
    if args.longer > 1:
        columns[f"partial, {args.longer} times as long"] = ("partial", args.longer * args.steps)
    test = find_phantoms(args.out)
    scores: dict[str, list[dict[str, float]]] = {column: [] for column in columns}
    for seed in range(args.seeds):
        for column, (root, steps) in columns.items():
            folder = args.out / "runs" / f"{root}-{steps}-{seed}"
            weights = train(args.out / root, folder, args.out / "cache", steps, seed)
            scores[column].append(score(weights, test, folder / "pictures"))
    print("\n".join(table(scores, annotated_by(args.out))))


if __name__ == "__main__":
    main()
