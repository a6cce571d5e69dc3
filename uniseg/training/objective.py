"""The loss of a batch: Eq. (3)-(4) for partial labels, or the loss of an extension or of a network with a softmax.

Read losses.py first. continual.py and baselines.py have the other two.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from .. import continual
from ..baselines import PlainModel, Softmax, refuse_unlabelled
from ..datasets.cases import Case
from ..losses import masked_loss, unpack_bits, without_ignored
from ..machine.choices import BASELINES
from .network import Network
from .recipe import TrainConfig


class Objective(Protocol):
    """The loss of a batch: PartialLabels, continual.Extension or baselines.Softmax."""

    def pairs(self, labelled: torch.Tensor) -> float:
        """How many (sample, class) pairs of a batch count in its loss; labelled: (B, K) bool."""

    def __call__(self, model: torch.nn.Module, image: torch.Tensor, bits: torch.Tensor, labelled: torch.Tensor,
                 pairs: torch.Tensor, weight: torch.Tensor | None,
                 cast: Callable[[], AbstractContextManager]) -> torch.Tensor:
        """The batch's sum over pairs, divided by `pairs`: a 0-d tensor.

        image (B, 1, D, H, W); labelled (B, K) bool
        bits (B, D, H, W) int64, bit k is class k; negative where nobody says what the voxel holds
        pairs:  0-d, how many count in the whole step
        weight: (B, K), of the classes' positive voxels in the BCE, or None
        cast:   gives the context in which networks run: autocast, or nothing
        """


class PartialLabels:
    """The loss of a batch whose classes are labelled in part, Eq. (3)-(4); an Objective.

    sums:           (3, K) tensor to which each batch adds its sums of losses.masked_loss, for steps.learning; or None
    dice_of_absent: whether Dice also counts in patches without the class, see losses.masked_loss
    reduction:      over the classes that a sample annotates: "mean", or "sum" as Eq. (4) is printed, for each sample
    """

    def __init__(self, sums: torch.Tensor | None = None, dice_of_absent: bool = True, reduction: str = "mean") -> None:
        self.sums, self.dice_of_absent, self.reduction = sums, dice_of_absent, reduction

    def pairs(self, labelled: torch.Tensor) -> float:
        """What a batch's sum over its labelled (sample, class) pairs is divided by; labelled: (B, K) bool.

        It is their number. With the reduction "sum" it is the number of samples B: the loss is the mean over samples of
        Eq. (4).
        """
        return float(len(labelled) if self.reduction == "sum" else labelled.sum())

    def __call__(self, model: torch.nn.Module, image: torch.Tensor, bits: torch.Tensor, labelled: torch.Tensor,
                 pairs: torch.Tensor, weight: torch.Tensor | None,
                 cast: Callable[[], AbstractContextManager]) -> torch.Tensor:
        """See Objective."""
        with cast():
            logits = model(image)                                                  # (B, K, D, H, W)
        logits, target = without_ignored(logits, unpack_bits(bits, logits.shape[1]), bits)
        return masked_loss(logits, target, labelled, pairs, positive_weight=weight, sums=self.sums,
                           dice_of_absent=self.dice_of_absent)


def make_objective(args: argparse.Namespace, config: TrainConfig, network: Network, train_cases: Sequence[Case],
                   device: torch.device) -> Objective:
    """The loss that the options ask for. Raises ValueError where it does not fit the network or the cases."""
    teacher = continual.frozen_teacher(args.old, args.extend, device) if args.old else None
    if config.head == "softmax":
        if teacher is not None and config.baseline == "none":
            raise ValueError(f"{args.extend}: a network with a softmax. Say how to extend it: --baseline "
                             f"{', '.join(BASELINES)}.")
        refuse_unlabelled(train_cases, network.classes[len(teacher.classes) if teacher is not None else 0:])
        assert isinstance(network, PlainModel)
        return Softmax(network, teacher, config.baseline, config.old_weight or 1.0)
    if config.baseline != "none":
        raise ValueError(f"--baseline {config.baseline}: for a checkpoint that was trained with --head softmax, given "
                         "to --extend.")
    if teacher is None:
        return PartialLabels(torch.zeros(3, len(network.classes), device=device), not config.dice_present,
                             config.reduction)
    return continual.Extension(teacher, config.hard_pseudo, config.old_labels, config.freeze == "old",
                               config.reduction, config.old_weight, config.old_dice)


def class_weights(config: TrainConfig, cases: Sequence[Case], classes: Sequence[str]) -> torch.Tensor | None:
    """The BCE weight (K,) of each class's positive voxels, or None where the recipe weighs all classes alike."""
    if not (config.weight_positives or config.balance_loss):
        return None
    return positive_weights(cases, classes, config.balance_loss, math.prod(config.patch_size))


def positive_weights(cases: Sequence[Case], classes: Sequence[str], power: float = 0.0,
                     patch_voxels: int = 0) -> torch.Tensor:
    """BCE weight of each class's positive voxels, (K,), from its mean voxels in the cases that show it.

    power 0 (--weight-positives):    (10000 / mean)^0.6, at least 1 and at most 12
    another power (--balance-loss):  (patch_voxels / mean)^power, at least 1; at power 1 the positive voxels of a class
                                     weigh as much as all other voxels of a patch
    A class that no case shows counts as one of 10000 voxels.
    """
    def weight(mean: float) -> float:
        return max((patch_voxels / mean) ** power if power else min((10000 / mean) ** 0.6, 12.0), 1.0)

    means = [float(np.mean([c.voxels[name] for c in cases if c.voxels.get(name)] or [10000])) for name in classes]
    return torch.tensor([weight(mean) for mean in means], dtype=torch.float32)
