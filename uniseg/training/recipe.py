"""The recipe of Section 4.1.2: every setting of training with its default and where that comes from; the command's options.

Read train.py next, which follows it.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Each default names its source: P the paper (Section 4.1.2), R the released code, U ours."""

    # network
    backbone: str = "swin_unetr"          # P
    width: int = 0                        # P: 48, 64 or 16 first-level channels
    lpg: str = "independent"              # P, Eq. (1)
    lpg_hidden: int = 0                   # R: 512 (independent), 256 (shared)
    encoding: str = "v3"                  # P, Table 7: the best prompt
    prior: float = 0.5                    # P: sigmoids start at one half
    head: str = "class-specific"          # P, Section 3.2.3; softmax: the plain network of Section 5's baselines
    # preprocessing
    spacing: float = 1.5                  # P, mm isotropic
    hu_window: tuple = (-175.0, 250.0)    # P
    antialias: bool = False               # P: linear interpolation
    pad: str = "air"                      # P; "edge": a case smaller than the patch goes on as its outermost voxels
    input_windows: tuple = ()             # P: the one HU window; else pairs of HU, each a channel of the network's input
    # patches
    dataset_weights: tuple = ()           # P: each dataset has the same probability; else (name, weight) of some
    patch_size: tuple = (96, 96, 96)      # P
    foreground: float = 2 / 3             # P, foreground : background = 2 : 1
    balance: float = 0.0                  # U: share of foreground centres drawn class by class
    lesions: float = 0.0                  # U: share of foreground centres drawn lesion by lesion
    rotate_probability: float = 0.1       # P
    shift_probability: float = 0.2        # P
    augment: str = "paper"                # P; "strong" adds small rotations, zoom, contrast, blur, noise; "contrast" phases
    deform: float = 0.0                   # U, mm: most that a smooth random deformation moves a voxel
    weight_positives: bool = False        # U: BCE weight (10000 / voxels)^0.6 of a class, 1 to 12
    balance_loss: float = 0.0             # U: instead, BCE weight (a patch's voxels / the class's)^this, at least 1
    dice_present: bool = False            # P, Eq. (4): Dice in every patch; else only of classes that the patch shows
    # optimisation
    epochs: int = 2000                    # R
    warmup_epochs: int = 50               # P
    steps_per_epoch: int = 0              # U: 0 = as many as draw each training case once on average
    batch_size: int = 6                   # P, per process
    accumulate: int = 1                   # P: none
    lr: float = 1e-4                      # R; the paper's digit is lost in print
    weight_decay: float = 1e-5            # P
    beta1: float = 0.9                    # P ("momentum 0.9")
    amp: str = "off"                      # P: float32
    ema: float = 0.0                      # U: decay of averaged weights, which are then validated and kept as best.pt
    freeze: str = "nothing"               # P; "backbone" trains the heads only, "old" the MLPs of the new classes only
    activation_checkpointing: bool = False  # U: recompute the Swin blocks in the backward pass; same numbers, less memory
    compile: bool = False                 # U: torch.compile
    seed: int = 0                         # U
    # extension by new classes, Section 3.3
    hard_pseudo: bool = False             # P: soft pseudo labels
    old_labels: bool = False              # P, Eq. (5): pseudo labels for all old classes
    baseline: str = "none"                # P; lwf, ilt, plop of a softmax (baselines.py)
    # validation
    folds: int = 5                        # P: five-fold cross-validation
    fold: int = 0                         # U: the fold that validates
    val_every: int = 10                   # U, epochs
    overlap: float = 0.5                  # P, of the window


def lr_at(step, config):
    """Learning rate of optimiser step `step` (0-based): linear warm-up, then half a cosine down to 0."""
    warmup, total = config.warmup_epochs * config.steps_per_epoch, config.epochs * config.steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
