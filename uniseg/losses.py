"""The masked loss, Section 3.2.4, Eq. (3)-(4): Dice and binary cross-entropy over the classes a case's dataset annotates.

A class that a dataset does not annotate is neither foreground nor background: it adds nothing, and its logits get a
gradient of exactly zero. K sigmoids, not one softmax: classes overlap (a tumour lies inside its organ).
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

SMOOTH = 1.0  # one voxel in numerator and denominator: keeps Dice defined where neither truth nor prediction has the class


def unpack_bits(bits, classes):
    """One bit a class -> the targets M of Eq. (3): (B, D, H, W) int64 -> (B, K, D, H, W) float32 of zeros and ones."""
    target = torch.empty(bits.shape[0], classes, *bits.shape[1:], dtype=torch.float32, device=bits.device)
    for k in range(classes):
        target[:, k] = (bits >> k) & 1
    return target


def masked_loss(logits, target, labelled, pairs=None, reduction="mean", positive_weight=None, sums=None, dice_of_absent=True):
    """Dice + BCE of the labelled (sample, class) pairs, Eq. (3)-(4).

    logits:    (B, K, D, H, W)
    target:    (B, K, D, H, W)  0 or 1, or between (the soft pseudo labels of Eq. (5)); only rows of labelled pairs are read
    labelled:  (B, K) bool      True where the sample's dataset annotates class k
    pairs:     divide by this number instead of the batch's own count of labelled pairs (float or 0-d tensor). Under
               data parallelism: the count over all ranks divided by the number of ranks, so that averaging gradients
               over ranks gives the gradient of the joint batch
    reduction: "mean" over the labelled pairs, or "sum" (Eq. (4) as printed)
    positive_weight: (B, K) weight of positive voxels in the BCE term (None: 1, the paper)
    sums:      (3, K) tensor to which the sums over the labelled pairs' voxels of p t, p and t are added, which Dice needs
               anyway; p is the sigmoid, t the target (None: not wanted)
    dice_of_absent: whether Dice counts for a pair without a voxel of the class, as in Eq. (4). Its loss there, s / (s + 1) with
               s = sum(p), is steepest at s = 1, a probability of 1 / N: it outweighs the cross-entropy of the few voxels that
               a small class has in other patches, and holds the class at zero. Without it those pairs have their BCE alone
    returns:   0-d tensor; 0 with zero gradients where nothing is labelled

    Dice is taken over the whole patch of a (sample, class) pair, never slice by slice.
    """
    if logits.shape != target.shape or labelled.shape != logits.shape[:2]:
        raise ValueError(f"masked_loss: logits {tuple(logits.shape)}, target {tuple(target.shape)} and labelled "
                         f"{tuple(labelled.shape)} do not fit. Expected (B, K, D, H, W) twice and (B, K).")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"masked_loss: reduction {reduction!r} is not 'mean' or 'sum'.")
    total, found = _MaskedSum.apply(logits, target, labelled, positive_weight, dice_of_absent)
    if sums is not None:
        sums += found
    if reduction == "sum":
        return total
    if pairs is None:
        pairs = labelled.sum()
    return total / torch.as_tensor(pairs, dtype=total.dtype, device=total.device).clamp(min=torch.finfo(total.dtype).tiny)


class _MaskedSum(torch.autograd.Function):
    """Sum over labelled pairs of (BCE + Dice loss), with the gradient written out; and the `sums` of masked_loss, without one.

    With p = sigmoid(x), N voxels, t the target:
      BCE = mean(softplus(x) - t x)                       d/dx = (p - t) / N
      D   = 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)  dD/dp = -(2 t - d) / (sum(p) + sum(t) + 1), d the quotient
    One row at a time, and the backward pass computes p again: nothing of the size of all logits is made but the gradient.
    """

    @staticmethod
    def forward(ctx, logits, target, labelled, positive_weight, dice_of_absent):
        pairs = labelled.nonzero().tolist()
        weights = [1.0] * len(pairs) if positive_weight is None else positive_weight[labelled].tolist()
        ctx.rows, ctx.dice_of_absent = list(zip(pairs, weights)), dice_of_absent
        ctx.save_for_backward(logits, target)
        total = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        sums = total.new_zeros(3, logits.shape[1])
        for (b, k), weight in ctx.rows:
            loss, found = _row_loss(logits[b, k].to(total.dtype), target[b, k].to(total.dtype), weight, dice_of_absent)
            total += loss
            sums[:, k] += found
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        logits, target = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for (b, k), weight in ctx.rows:
            row = _row_gradient(logits[b, k].to(grad_total.dtype), target[b, k].to(grad_total.dtype), weight, ctx.dice_of_absent)
            gradient[b, k] = row.mul_(grad_total)
        return gradient, None, None, None, None


def _row_loss(x, t, weight, dice_of_absent):
    """BCE + Dice loss of one (sample, class), and its sums: logits x and 0/1 target t (D, H, W), weight of positive voxels."""
    _, quotient, sums = _dice(torch.sigmoid(x), t)
    loss = ((F.softplus(x) - t * x) * _voxel_weight(t, weight)).mean()
    return loss + 1 - quotient if dice_of_absent or sums[2] else loss, sums


def _row_gradient(x, t, weight, dice_of_absent):
    """d _row_loss / dx, (D, H, W)."""
    p = torch.sigmoid(x)
    size, quotient, (_, _, true) = _dice(p, t)
    gradient = (p - t) * _voxel_weight(t, weight) / x.numel()
    return gradient - (2 * t - quotient) / size * p * (1 - p) if dice_of_absent or true else gradient


def _dice(p, t):
    """Denominator and value of the Dice quotient d, and the sums of p t, p and t, (3,)."""
    both, predicted, true = (p * t).sum(), p.sum(), t.sum()
    size = predicted + true + SMOOTH
    return size, (2 * both + SMOOTH) / size, torch.stack([both, predicted, true])


def _voxel_weight(t, weight):
    return 1 if weight == 1 else 1 + (weight - 1) * t
