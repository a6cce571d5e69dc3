"""The masked loss, Section 3.2.4, Eq. (3)-(4): Dice and binary cross-entropy over the classes a case's dataset annotates.

A class that a dataset does not annotate is neither foreground nor background: it adds nothing, and its logits get a
gradient of exactly zero. There are K sigmoids, not one softmax, because classes overlap: a tumour lies inside its organ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .kernels import masked_sum as fast

SMOOTH = 1.0             # one voxel: keeps Dice defined where neither truth nor prediction has the class
VOXELS = (1, 2, 3)       # axes of the pairs (P, D, H, W)


def unpack_bits(bits: Tensor, classes: int) -> Tensor:
    """One bit a class -> the targets M of Eq. (3): (B, D, H, W) int64 -> (B, K, D, H, W) float32 of zeros and ones."""
    target = torch.empty(bits.shape[0], classes, *bits.shape[1:], dtype=torch.float32, device=bits.device)
    for k in range(classes):
        target[:, k] = (bits >> k) & 1
    return target


def masked_loss(logits: Tensor, target: Tensor, labelled: Tensor, pairs: float | Tensor | None = None,
                positive_weight: Tensor | None = None, sums: Tensor | None = None, dice_of_absent: bool = True) -> Tensor:
    """Mean of Dice loss + BCE over the labelled (sample, class) pairs: Eq. (4) divided by their number.

    logits:    (B, K, D, H, W)
    target:    (B, K, D, H, W)  0 or 1, or between (the soft pseudo labels of Eq. (5)); only labelled pairs are read
    labelled:  (B, K) bool      True where the sample's dataset annotates class k
    pairs:     divide by this number instead of the batch's own count of labelled pairs. Under data parallelism: the
               count over all ranks divided by the number of ranks, so that averaging gradients over ranks gives the
               gradient of the joint batch
    positive_weight: (B, K) weight of positive voxels in the BCE (None: 1, the paper)
    sums:      (3, K) tensor to which the sums of p t, p and t over the labelled pairs' voxels are added, where p is the
               sigmoid and t the target. Dice needs them anyway; training reports them (None: not wanted)
    dice_of_absent: If True (Eq. (4)), Dice also counts in patches without the class. It equals s / (s + 1) there, with
               s = sum(p), and can pin a rare class at probability 0. If False, such pairs use BCE only
    returns:   0-d tensor; 0 with zero gradients where nothing is labelled

    Dice is taken over the whole patch of a pair, never slice by slice. Raises ValueError for shapes that do not fit.
    """
    total, found = masked_sum(logits, target, labelled, positive_weight, dice_of_absent)
    if sums is not None:
        sums += found
    count = torch.as_tensor(labelled.sum() if pairs is None else pairs, dtype=total.dtype, device=total.device)
    return total / count.clamp(min=torch.finfo(total.dtype).tiny)


def masked_sum(logits: Tensor, target: Tensor, labelled: Tensor, positive_weight: Tensor | None = None,
               dice_of_absent: bool = True) -> tuple[Tensor, Tensor]:
    """Eq. (4) as printed, the sum over the labelled pairs, and the sums (3, K) of `masked_loss`.

    By default kernels/masked_sum.py computes the same numbers with less memory; `UNISEG_KERNELS=0` runs the readable form.
    """
    if logits.shape != target.shape or labelled.shape != logits.shape[:2]:
        raise ValueError(f"masked_loss: logits {tuple(logits.shape)}, target {tuple(target.shape)} and labelled "
                         f"{tuple(labelled.shape)} do not fit. Expected (B, K, D, H, W) twice and (B, K).")
    if kernels.ENABLED:
        return fast.MaskedSum.apply(logits, target, labelled, positive_weight, dice_of_absent, SMOOTH)
    return plain_masked_sum(logits, target, labelled, positive_weight, dice_of_absent)


def plain_masked_sum(logits: Tensor, target: Tensor, labelled: Tensor, positive_weight: Tensor | None = None,
                     dice_of_absent: bool = True) -> tuple[Tensor, Tensor]:
    """Eq. (3)-(4) as the paper has them, a line a term. Arguments and results are those of `masked_sum`."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    x, t = logits[labelled].to(kind), target[labelled].to(kind)                      # (P, D, H, W): the labelled pairs alone
    p = torch.sigmoid(x)
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")                 # -t log p - (1 - t) log(1 - p)
    if positive_weight is not None:
        weight = positive_weight.to(x.device)[labelled][:, None, None, None]         # (P, 1, 1, 1)
        bce = bce * (1 + (weight - 1) * t)
    overlap, predicted, true = ((p * t).sum(VOXELS), p.sum(VOXELS), t.sum(VOXELS))   # (P,) each
    dice = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
    counts = torch.ones_like(dice) if dice_of_absent else (true != 0).to(kind)
    total = (bce.mean(VOXELS) + counts * (1 - dice)).sum()
    classes = labelled.nonzero()[:, 1].to(x.device)                                  # the class of each pair
    sums = x.new_zeros(3, logits.shape[1]).index_add(1, classes, torch.stack([overlap, predicted, true]).detach())
    return total, sums
