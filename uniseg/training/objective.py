"""Which loss a run has: that of partial labels, of an extension by new classes, or of a plain network."""

import numpy as np
import torch

from .. import continual
from ..baselines import BASELINES, Softmax, refuse_unlabelled
from ..losses import masked_loss, unpack_bits


def positive_weights(cases, classes, power=0.0, patch_voxels=0):
    """BCE weight of each class's positive voxels, (K,), from its mean voxels in the cases that show it (10000 where none does).

    (10000 / mean)^0.6, at least 1, at most 12; with a `power` (patch_voxels / mean)^power, at least 1: at power 1 a class's
    positives weigh as much as all the rest of a patch.
    """
    means = [np.mean([c.voxels[name] for c in cases if c.voxels.get(name)] or [10000]) for name in classes]
    rule = (lambda mean: (patch_voxels / mean) ** power) if power else (lambda mean: min((10000 / mean) ** 0.6, 12.0))
    return torch.tensor([max(rule(mean), 1.0) for mean in means], dtype=torch.float32)


class PartialLabels:
    """The loss of a batch whose classes are labelled in part, Eq. (3)-(4). continual.py and baselines.py have others.

    sums: tensor (3, K) to which each batch adds those of losses.masked_loss, for `learning` (None: not wanted)
    dice_of_absent: see losses.masked_loss
    """

    def __init__(self, sums=None, dice_of_absent=True):
        self.sums, self.dice_of_absent = sums, dice_of_absent

    def pairs(self, labelled):
        """Number of (sample, class) pairs that count in the loss."""
        return float(labelled.sum())

    def __call__(self, model, image, bits, labelled, pairs, weight, cast):
        """image (B, 1, D, H, W), bits (B, D, H, W) int64, labelled (B, K) bool, weight (B, K) or None; cast: autocast or not."""
        with cast():
            logits = model(image)                                                  # (B, K, D, H, W)
        return masked_loss(logits, unpack_bits(bits, logits.shape[1]), labelled, pairs, positive_weight=weight, sums=self.sums,
                           dice_of_absent=self.dice_of_absent)


def make_objective(args, config, network, train_cases, device):
    """What a batch's loss is: that of partial labels, of an extension, or of a plain network. Raises ValueError."""
    teacher = continual.frozen_teacher(args.old, args.extend, device) if args.old else None
    if config.head == "softmax":
        if teacher is not None and config.baseline == "none":
            raise ValueError(f"{args.extend}: a network with a softmax. Say how to extend it: --baseline {', '.join(BASELINES)}.")
        refuse_unlabelled(train_cases, network.classes[len(teacher.classes) if teacher is not None else 0:])
        return Softmax(network, teacher, config.baseline)
    if config.baseline != "none":
        raise ValueError(f"--baseline {config.baseline}: for a checkpoint that was trained with --head softmax, given to --extend.")
    if teacher is None:
        return PartialLabels(torch.zeros(3, len(network.classes), device=device), not config.dice_present)
    return continual.Extension(teacher, config.hard_pseudo, config.old_labels, config.freeze == "old")
