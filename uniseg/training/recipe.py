"""The recipe of Section 4.1.2: every setting of training with its default and the source of that default.

The options of `python -m uniseg.train` (options.py) end here: what travels after them is one TrainConfig.
Read train.py next, which follows the recipe.
"""

import math
from dataclasses import dataclass

from ..imaging.preprocessing import Preprocessing


@dataclass(frozen=True)
class TrainConfig:
    """The recipe, and the source of each default.

    P: the paper, Section 4.1.2 where none is named; R: the code released with it; U: uniseg's choice, also where an
    option goes beyond the paper and is off.
    """

    # network
    backbone: str = "swin_unetr"          # P
    width: int = 0                        # P, Fig. 3: 48, 64 or 16 channels at the first level, to have its parameters
    lpg: str = "independent"              # P, Eq. (1)
    lpg_hidden: int = 0                   # R: 512 (independent), 256 (shared)
    encoding: str = "v3"                  # P, Table 7: the best prompt
    prior: float = 0.5                    # U: 0.5 leaves the heads as they are initialised
    head_start: str = "torch"             # U: of the generated heads; "he": UniversalModel.start_heads
    head: str = "class-specific"          # P, Section 3.2.3; softmax: the plain network of Section 5's baselines
    # preprocessing
    spacing: float = 1.5                  # P, mm isotropic
    hu_window: tuple[float, float] = (-175.0, 250.0)            # P
    antialias: bool = False               # R: linear interpolation
    pad: str = "air"                      # R; "edge": repeat the edge voxels of a case smaller than the patch
    input_windows: tuple[tuple[float, float], ...] = ()         # P: the one HU window; else each is an input channel
    # patches
    dataset_weights: tuple[tuple[str, float], ...] = ()         # P: none, each dataset has the same probability
    patch_size: tuple[int, int, int] = (96, 96, 96)             # P, voxels, D H W
    foreground: float = 2 / 3             # P: foreground : background = 2 : 1
    background: str = "anywhere"          # P: "a background region"; "tissue": R, above the lower end of the HU window
    balance: float = 0.0                  # U: share of foreground centres drawn class by class
    lesions: float = 0.0                  # U: share of foreground centres drawn lesion by lesion
    rotate_probability: float = 0.1       # P
    shift_probability: float = 0.2        # P
    augment: str = "paper"                # P; "strong" and "contrast": see datasets/augment.py
    # loss
    reduction: str = "mean"               # R: over the annotated classes; "sum": P, Eq. (4) as printed
    weight_positives: bool = False        # U: BCE weight (10000 / voxels)^0.6 of a class, from 1 to 12
    balance_loss: float = 0.0             # U: else BCE weight (patch voxels / class voxels)^this, at least 1
    dice_present: bool = False            # P, Eq. (4): Dice in every patch; else only of classes that the patch shows
    # optimisation
    epochs: int = 2000                    # R
    warmup_epochs: int = 50               # P
    steps_per_epoch: int = 0              # U: 0 = as many as draw each training case once on average
    batch_size: int = 6                   # P, per process
    accumulate: int = 1                   # U: none
    lr: float = 1e-4                      # R: in print, the paper's digit is lost
    weight_decay: float = 1e-5            # P
    beta1: float = 0.9                    # P: "momentum of 0.9"
    amp: str = "off"                      # U: float32
    ema: float = 0.0                      # U: decay of averaged weights, which are then validated and saved as best.pt
    freeze: str = "nothing"               # P; "backbone": train the heads only; "old": the MLPs of new classes only
    activation_checkpointing: bool = False  # U: recompute the Swin blocks in the backward pass
    seed: int = 0                         # U
    # extension by new classes, Section 3.3
    hard_pseudo: bool = False             # P: soft pseudo labels
    old_labels: bool = False              # P, Eq. (5): pseudo labels for all old classes
    old_weight: float = 0.0               # P, Eq. (4): all pairs weigh alike; see continual.Extension, baselines.py
    old_dice: str = "linear"              # P, Eq. (4): the Dice of old classes; "squared", "none": losses.masked_loss
    baseline: str = "none"                # P; else lwf, ilt or plop of a network with a softmax (baselines.py)
    # validation
    folds: int = 5                        # P: five-fold cross-validation
    fold: int = 0                         # U: the fold that validates
    val_every: int = 10                   # U, epochs
    overlap: float = 0.5                  # P, of neighbouring windows

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network's inference has to repeat."""
        return Preprocessing((self.spacing,) * 3, self.hu_window, self.patch_size, self.antialias, self.pad)

    @property
    def steps(self) -> int:
        """The number of optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch


def never_leaves_warmup(config: TrainConfig) -> str:
    """What is wrong with a run that ends before its warm-up does; "" where nothing is."""
    if config.warmup_epochs < config.epochs or not config.warmup_epochs:
        return ""
    return (f"--epochs {config.epochs} ends within the {config.warmup_epochs} epochs of the warm-up: the learning rate "
            f"rises to the end and never falls. Give more epochs, or fewer --warmup-epochs, "
            f"{max(0, config.epochs // 10)} for example")


def lr_at(step: int, config: TrainConfig) -> float:
    """The learning rate of optimiser step `step` (from 0): linear warm-up, then half a cosine down to 0."""
    warmup = config.warmup_epochs * config.steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
