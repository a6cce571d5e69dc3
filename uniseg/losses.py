"""The masked loss, Section 3.2.4, Eq. (3)-(4): Dice and binary cross-entropy over the classes a case's dataset annotates.

A class that a dataset does not annotate is neither foreground nor background: it adds nothing, and its logits get a
gradient of exactly zero. K sigmoids, not one softmax: classes overlap (a tumour lies inside its organ).
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

SMOOTH = 1.0  # one voxel in numerator and denominator: keeps Dice defined where neither truth nor prediction has the class
ROWS = {"cpu": 1, "cuda": 32}  # (sample, class) pairs at a time: a CPU keeps one in its cache, a GPU is kept busy by all classes of an image
VOXELS = (1, 2, 3)  # axes of rows (n, D, H, W)


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
    ROWS pairs of an image at a time, and the backward pass computes p again: beside the gradient nothing larger is made than a row on a
    CPU, an image's logits on a GPU.
    """

    @staticmethod
    def forward(ctx, logits, target, labelled, positive_weight, dice_of_absent):
        ctx.rows, ctx.dice_of_absent = _rows(labelled, logits.device), dice_of_absent
        positive_weight = None if positive_weight is None else positive_weight.to(logits.device)
        ctx.save_for_backward(logits, target, positive_weight)
        total = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        sums = total.new_zeros(3, logits.shape[1])
        for rows in ctx.rows:
            loss, found = _rows_loss(*(part[rows].to(total.dtype) for part in (logits, target)), _weight(positive_weight, rows), dice_of_absent)
            total += loss.sum()
            sums[:, rows[1]] += found
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        logits, target, positive_weight = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for rows in ctx.rows:
            parts = (part[rows].to(grad_total.dtype) for part in (logits, target))
            gradient[rows] = _rows_gradient(*parts, _weight(positive_weight, rows), ctx.dice_of_absent).mul_(grad_total).to(gradient.dtype)
        return gradient, None, None, None, None


def _rows(labelled, device):
    """The labelled pairs of (B, K) as indices of (B, K, ...) on a device, up to ROWS of one image at a time: [(b, a slice or tensor of ks)]"""
    most = ROWS.get(device.type, ROWS["cuda"])
    found = []
    for b, row in enumerate(labelled.tolist()):
        classes = [k for k, has in enumerate(row) if has]
        for i in range(0, len(classes), most):
            part = classes[i:i + most]
            together = part == list(range(part[0], part[-1] + 1))              # a slice is read in place, other choices are copied
            found.append((b, slice(part[0], part[-1] + 1) if together else torch.tensor(part, device=device)))
    return found


def _weight(positive_weight, rows):
    """The rows' weights of positive voxels, (n, 1, 1, 1); None where all are 1."""
    return None if positive_weight is None else positive_weight[rows][:, None, None, None]


def _rows_loss(x, t, weight, dice_of_absent):
    """BCE + Dice loss of n classes of an image, (n,), and their sums, (3, n): logits x and 0/1 targets t (n, D, H, W)."""
    _, quotient, sums = _dice(torch.sigmoid(x), t)
    loss = _weighted(F.softplus(x) - t * x, t, weight).mean(VOXELS)
    counts = 1 if dice_of_absent else sums[2] != 0
    return loss + (1 - quotient.flatten()) * counts, sums


def _rows_gradient(x, t, weight, dice_of_absent):
    """d _rows_loss / dx, (n, D, H, W)."""
    p = torch.sigmoid(x)
    size, quotient, (_, _, true) = _dice(p, t)
    gradient = _weighted(p - t, t, weight) / x[0].numel()
    if not dice_of_absent:
        size = torch.where(true[:, None, None, None] != 0, size, torch.inf)    # no step from Dice
    return gradient - (2 * t - quotient) / size * p * (1 - p)


def _dice(p, t):
    """Denominator and value of the Dice quotient d, (n, 1, 1, 1), and the sums of p t, p and t, (3, n)."""
    both, predicted, true = (part.sum(VOXELS, keepdim=True) for part in (p * t, p, t))
    size = predicted + true + SMOOTH
    return size, (2 * both + SMOOTH) / size, torch.stack([both, predicted, true]).flatten(1)


def _weighted(each, t, weight):
    return each if weight is None else each * (1 + (weight - 1) * t)
