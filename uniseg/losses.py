"""The masked loss of Section 3.2.4, Eq. (3)-(4): Dice and binary cross-entropy (BCE) over the annotated classes.

If a dataset does not annotate a class, the voxels of its CTs are neither foreground nor background of that class.
Such a class adds nothing to the loss, and its logits get a gradient of exactly zero. There are K sigmoids, not one
softmax, because classes overlap: a tumour lies inside its organ. Beyond the paper, single voxels can be left out of all
classes in the same way (`without_ignored`).

Read heads.py first. continual.py uses the same loss for Eq. (5).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .kernels import masked_sum as fast

SMOOTH = 1.0             # one voxel: keeps the Dice quotient defined where neither target nor prediction has the class
VOXELS = (1, 2, 3)       # the spatial axes of (P, D, H, W)
SURELY_ABSENT = -100.0   # a logit whose sigmoid, and whose cross-entropy against 0, is 0 in float32


def unpack_bits(bits: Tensor, classes: int) -> Tensor:
    """The targets M of Eq. (3) from one bit per class: (B, D, H, W) int64 -> (B, K, D, H, W) float32, each 0 or 1."""
    target = torch.empty(bits.shape[0], classes, *bits.shape[1:], dtype=torch.float32, device=bits.device)
    for k in range(classes):
        target[:, k] = (bits >> k) & 1
    return target


def without_ignored(logits: Tensor, target: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and target for which voxels that nobody judges add nothing to the loss and get a gradient of zero.

    logits, target: (B, K, D, H, W); bits: (B, D, H, W) int64, negative in the ignored voxels (data.PatchDataset)

    Such a voxel becomes a sure and right negative of every class: it has no part in the sums of Dice, and its BCE is 0.
    The mean of the BCE is still over all voxels of the patch, so that a patch with few judged voxels counts less.
    """
    ignored = (bits < 0)[:, None]                                                    # (B, 1, D, H, W)
    if not ignored.any():
        return logits, target
    return logits.masked_fill(ignored, SURELY_ABSENT), target.masked_fill(ignored, 0.0)


def masked_loss(logits: Tensor, target: Tensor, labelled: Tensor, pairs: float | Tensor | None = None,
                positive_weight: Tensor | None = None, sums: Tensor | None = None,
                dice_of_absent: bool = True, dice: str = "linear") -> Tensor:
    """The mean of Dice loss + BCE over the labelled (sample, class) pairs: Eq. (4) divided by their number.

    logits:    (B, K, D, H, W)
    target:    (B, K, D, H, W)  0 or 1, or between for the soft pseudo labels of Eq. (5); only labelled pairs are read
    labelled:  (B, K) bool      True where the sample's dataset annotates class k
    pairs:     Divide by this number instead of the number of labelled pairs in this batch. In data-parallel
               training it is the number of pairs on all ranks divided by the number of ranks. Averaging the gradients
               over the ranks then gives the gradient of the joint batch.
    positive_weight: (B, K) weight of positive voxels in the BCE (None: 1, as in the paper)
    sums:      (3, K) tensor, to which the sums of p t, p and t over the voxels of the labelled pairs are added; p is
               the sigmoid, t the target (None: they are not needed). Training reports them.
    dice_of_absent: If True (Eq. (4)), Dice also counts in patches without the class. It equals s / (s + 1) there, with
               s = sum(p), and can pin a rare class at probability 0. If False, such pairs use BCE only.
    dice:      "linear" (Eq. (4)): 2 sum(p t) / (sum(p) + sum(t)), which for soft targets between 0 and 1 is not largest
               where p = t; "squared": 2 sum(p t) / (sum(p^2) + sum(t^2)), which is, and which for targets of 0 and 1
               is the form of V-Net (https://arxiv.org/abs/1606.04797); "none": no Dice
    returns:   0-d tensor; 0 with zero gradients if nothing is labelled

    Dice is computed over the whole patch of a pair, not slice by slice. Raises ValueError for shapes that do not fit.
    """
    total, batch_sums = masked_sum(logits, target, labelled, positive_weight, dice_of_absent, dice)
    if sums is not None:
        sums += batch_sums
    count = torch.as_tensor(labelled.sum() if pairs is None else pairs, dtype=total.dtype, device=total.device)
    return total / count.clamp(min=torch.finfo(total.dtype).tiny)


def masked_sum(logits: Tensor, target: Tensor, labelled: Tensor, positive_weight: Tensor | None = None,
               dice_of_absent: bool = True, dice: str = "linear") -> tuple[Tensor, Tensor]:
    """Eq. (4) as printed, a sum over the labelled pairs (0-d), and the sums (3, K) that `masked_loss` describes.

    By default kernels/masked_sum.py computes these numbers faster and with less memory. `UNISEG_KERNELS=0` runs the
    readable form below, which alone has other kinds of Dice. Raises ValueError for shapes that do not fit.
    """
    if logits.shape != target.shape or labelled.shape != logits.shape[:2]:
        raise ValueError(f"masked_loss: logits {tuple(logits.shape)}, target {tuple(target.shape)} and labelled "
                         f"{tuple(labelled.shape)} do not fit. Expected (B, K, D, H, W) twice and (B, K).")
    if kernels.ENABLED and dice == "linear":
        return fast.MaskedSum.apply(logits, target, labelled, positive_weight, dice_of_absent, SMOOTH)
    return plain_masked_sum(logits, target, labelled, positive_weight, dice_of_absent, dice)


def plain_masked_sum(logits: Tensor, target: Tensor, labelled: Tensor, positive_weight: Tensor | None = None,
                     dice_of_absent: bool = True, dice: str = "linear") -> tuple[Tensor, Tensor]:
    """Eq. (4) as in the paper, one line per term. Arguments and results are those of `masked_sum`."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    x, t = logits[labelled].to(dtype), target[labelled].to(dtype)                    # (P, D, H, W), labelled pairs only
    p = torch.sigmoid(x)
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")                 # -t log p - (1 - t) log(1 - p)
    if positive_weight is not None:
        weight = positive_weight.to(x.device)[labelled][:, None, None, None]         # (P, 1, 1, 1)
        bce = bce * (1 + (weight - 1) * t)
    overlap, predicted, true = (p * t).sum(VOXELS), p.sum(VOXELS), t.sum(VOXELS)     # (P,) each
    sizes = (p * p + t * t).sum(VOXELS) if dice == "squared" else predicted + true   # (P,)
    dice_loss = 1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)                        # (P,)
    if dice == "none":
        dice_loss = torch.zeros_like(dice_loss)
    if not dice_of_absent:
        dice_loss = dice_loss * (true != 0)
    total = (bce.mean(VOXELS) + dice_loss).sum()
    classes = labelled.nonzero()[:, 1].to(x.device)                                  # (P,) the class of each pair
    sums = x.new_zeros(3, logits.shape[1]).index_add(1, classes, torch.stack([overlap, predicted, true]).detach())
    return total, sums
