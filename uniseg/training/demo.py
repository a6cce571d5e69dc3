"""`train --demo`: the whole method on synthetic patients in a few minutes, for whoever sees it for the first time.

    RUN/data/Chest, Abdomen, Pelvis   four phantoms each (phantom.py); each dataset labels other organs, none all
    RUN                               what every training leaves: curves, overlays, checkpoints (docs/training.md)
    RUN/unseen                        a patient of no dataset, segmented by the trained network

It is `python -m uniseg.train --data-root RUN/data` with a small network and a short recipe, whose options may be given
as always (`--demo --epochs 20`). Read phantom.py first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import taxonomy
from ..imaging.volume import write_volume
from ..machine.console import say
from ..machine.progress import each
from ..metrics import dice
from ..phantom import make_phantom
from ..segmenter import load
from .run_folder import write_json

DATASETS = {                       # what each labels, as public datasets of chest, abdomen and pelvis do
    "Chest": ("right lung", "left lung", "liver"),
    "Abdomen": ("liver", "spleen", "kidneys", "stomach"),
    "Pelvis": ("bladder", "femoral heads", "aorta")}
PATIENTS = 4                       # per dataset; of each, one validates
SPACING_MM = 6.0                   # of the training data and of the network's grid
UNSEEN_SEED, UNSEEN_MM = 1000, 3.0
# Another recipe than the paper's: a network of 1 M parameters and 400 steps where the paper has 62 M and 2000 epochs.
OPTIONS: dict[str, Any] = {
    "out": Path("runs/demo"), "folds": PATIENTS, "backbone": "unet", "width": 8, "lpg_hidden": 64, "prior": 0.02,
    "spacing": SPACING_MM, "patch_size": (32, 32, 32), "batch_size": 2, "steps_per_epoch": 40, "epochs": 10,
    "warmup_epochs": 1, "val_every": 2, "lr": 2e-3, "balance": 0.5, "weight_positives": True, "dice_present": True,
    "overlays": len(DATASETS), "workers": 1}


def refuse_other_data(args: argparse.Namespace) -> None:
    """Raises ValueError where options of --demo contradict it."""
    for name in ("data_root", "dataset", "val_root", "split", "extend"):
        if getattr(args, name):
            raise ValueError(f"--demo makes its own data and network. Leave --{name.replace('_', '-')} out.")


def data_root(out: Path) -> Path:
    """Where the datasets of a demonstration lie."""
    return out / "data"


def write_assembly(out: Path) -> None:
    """Make the datasets in RUN/data, unless they are there, and say what they are."""
    for line in ("Synthetic patients in three datasets, each with labels of other organs:",
                 *(f"  {name:10}labels {', '.join(labels)}" for name, labels in DATASETS.items()),
                 "One network learns them all: the loss of Eq. (4) leaves out what a dataset does not label."):
        say(line, sys.stderr)
    for number, (name, labels) in enumerate(DATASETS.items()):
        folder, seeds = data_root(out) / name, range(PATIENTS * number, PATIENTS * (number + 1))
        if (folder / "dataset.json").is_file():                            # written last: the dataset is complete
            continue
        for seed in each(seeds, f"making {name}: patients", PATIENTS):
            write_case(folder, f"patient{seed:02d}.nii.gz", labels, seed)
        write_json(folder / "dataset.json", {
            "labels": {"0": "background", **{str(value): label for value, label in enumerate(labels, start=1)}},
            "training": [{kind: f"{kind}sTr/patient{seed:02d}.nii.gz" for kind in ("image", "label")}
                         for seed in seeds]})


def write_case(folder: Path, case: str, labels: Sequence[str], seed: int) -> None:
    """A phantom of this seed as imagesTr/<case> and labelsTr/<case>, in which the labels have the values 1, 2, ..."""
    hu, masks, affine = make_phantom((SPACING_MM,) * 3, seed)
    label_map = np.zeros(hu.shape, np.uint8, order="F")
    for value, label in enumerate(labels, start=1):
        for name in taxonomy.resolve(label):
            label_map[masks[name]] = value
    for kind, array in (("imagesTr", hu), ("labelsTr", label_map)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write_volume(folder / kind / case, array, affine)


def try_it(out: Path, device: str) -> None:
    """Segment a patient of no dataset with the trained network; print a Dice per class, and where to look."""
    weights = next(path for path in (out / "best.pt", out / "last.pt") if path.is_file())
    hu, masks, affine = make_phantom((UNSEEN_MM,) * 3, UNSEEN_SEED)
    folder = out / "unseen"
    folder.mkdir(exist_ok=True)
    write_volume(folder / "ct.nii.gz", hu, affine)
    segmentation = load(weights, device).segment(folder / "ct.nii.gz")
    segmentation.save(folder / "ct_seg.nii.gz")
    segmentation.preview(folder / "ct_preview.png")
    scores = {name: dice(segmentation.mask(name), masks[name]) for name in segmentation.classes}
    for line in lines(out, scores, segmentation.stats["seconds"]["total"]):
        say(line)


def lines(out: Path, scores: Mapping[str, float], seconds: float) -> Iterator[str]:
    """The text about the unseen patient. scores: {class: Dice}"""
    yield f"A patient that the network has not seen, {out / 'unseen' / 'ct.nii.gz'}, segmented in {seconds:.1f} s:"
    yield f"  {'class':24}{'labelled in':20}{'Dice':>6}"
    for name, score in scores.items():
        yield f"  {name:24}{', '.join(labelled_in(name)):20}{score:6.2f}"
    yield f"  {'mean':44}{np.mean(list(scores.values())):6.2f}"
    yield f"No patient was labelled with more than {most_labels()} of these {len(scores)} classes."
    yield f"Look at {out / 'progress.png'} (the curves), {out / 'overlays'} (labels and predictions), and"
    yield f"{out / 'unseen' / 'ct_preview.png'}. docs/training.md explains the files and how to train on your own data."


def labelled_in(name: str) -> list[str]:
    """The datasets of the demonstration that label a class."""
    return [dataset for dataset, labels in DATASETS.items() if any(name in taxonomy.resolve(label) for label in labels)]


def most_labels() -> int:
    """How many classes the dataset with most of them labels."""
    return max(sum(len(taxonomy.resolve(label)) for label in labels) for labels in DATASETS.values())
