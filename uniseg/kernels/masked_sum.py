"""The sum of Eq. (4) over the labelled (sample, class) pairs, with its gradient written by hand.

The readable form is `losses.plain_masked_sum`. This one takes a few pairs at a time, and its backward pass computes the
sigmoid again instead of keeping it. Except for the gradient, its largest tensors are the patch of one pair on a CPU, or
the patches of one image on a GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pairs at a time. One pair fits into the cache of a CPU. All classes of an image keep a GPU busy.
ROWS = {"cpu": 1, "cuda": 32}
VOXELS = (1, 2, 3)       # the spatial axes of rows (n, D, H, W)

Rows = tuple[int, "slice | Tensor"]      # an image and some of its classes: indices into (B, K, ...)


class MaskedSum(torch.autograd.Function):
    """The sum of BCE + Dice loss over the labelled pairs, and the sums (3, K) of p t, p and t, which have no gradient.

    With logit x, p = sigmoid(x), target t and N voxels:

        BCE = mean(softplus(x) - t x)                        dBCE/dx = (p - t) / N
        D = 1 - d, with the Dice quotient d = (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)
                                                             dD/dp = -(2 t - d) / (sum(p) + sum(t) + smooth)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, labelled: Tensor, positive_weight: Tensor | None,
                dice_of_absent: bool, smooth: float) -> tuple[Tensor, Tensor]:
        """Arguments and results are those of losses.masked_sum; `smooth` is losses.SMOOTH."""
        ctx.rows, ctx.dice_of_absent, ctx.smooth = _rows(labelled, logits.device), dice_of_absent, smooth
        positive_weight = None if positive_weight is None else positive_weight.to(logits.device)
        ctx.save_for_backward(logits, target, positive_weight)
        total = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        sums = total.new_zeros(3, logits.shape[1])
        for rows in ctx.rows:
            x, t = logits[rows].to(total.dtype), target[rows].to(total.dtype)
            loss, rows_sums = _rows_loss(x, t, _weight(positive_weight, rows), dice_of_absent, smooth)
            total += loss.sum()
            sums[:, rows[1]] += rows_sums
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the sum with respect to the logits, times grad_total (0-d). The targets have no gradient."""
        logits, target, positive_weight = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for rows in ctx.rows:
            x, t = logits[rows].to(grad_total.dtype), target[rows].to(grad_total.dtype)
            part = _rows_gradient(x, t, _weight(positive_weight, rows), ctx.dice_of_absent, ctx.smooth)
            gradient[rows] = part.mul_(grad_total).to(gradient.dtype)
        return gradient, None, None, None, None, None


def _rows(labelled: Tensor, device: torch.device) -> list[Rows]:
    """The labelled pairs of (B, K), as an image and up to ROWS of its classes at a time."""
    most = ROWS.get(device.type, ROWS["cuda"])
    rows: list[Rows] = []
    for b, row in enumerate(labelled.tolist()):
        classes = [k for k, has in enumerate(row) if has]
        for i in range(0, len(classes), most):
            part = classes[i:i + most]
            # A slice is read in place; any other choice of classes is copied.
            together = part == list(range(part[0], part[-1] + 1))
            rows.append((b, slice(part[0], part[-1] + 1) if together else torch.tensor(part, device=device)))
    return rows


def _weight(positive_weight: Tensor | None, rows: Rows) -> Tensor | None:
    """The weights of positive voxels in these rows, (n, 1, 1, 1); None if all are 1."""
    return None if positive_weight is None else positive_weight[rows][:, None, None, None]


def _rows_loss(x: Tensor, t: Tensor, weight: Tensor | None, dice_of_absent: bool,
               smooth: float) -> tuple[Tensor, Tensor]:
    """BCE + Dice loss of n classes of an image, (n,), and their sums (3, n). x: logits, t: targets, (n, D, H, W)."""
    _, quotient, sums = _dice(torch.sigmoid(x), t, smooth)
    loss = _weighted(F.softplus(x) - t * x, t, weight).mean(VOXELS)
    counts = 1 if dice_of_absent else sums[2] != 0
    return loss + (1 - quotient.flatten()) * counts, sums


def _rows_gradient(x: Tensor, t: Tensor, weight: Tensor | None, dice_of_absent: bool, smooth: float) -> Tensor:
    """The derivative of `_rows_loss` with respect to x, (n, D, H, W)."""
    p = torch.sigmoid(x)
    size, quotient, (_, _, true) = _dice(p, t, smooth)
    gradient = _weighted(p - t, t, weight) / x[0].numel()
    if not dice_of_absent:
        size = torch.where(true[:, None, None, None] != 0, size, torch.inf)    # Dice then has the gradient 0
    return gradient - (2 * t - quotient) / size * p * (1 - p)


def _dice(p: Tensor, t: Tensor, smooth: float) -> tuple[Tensor, Tensor, Tensor]:
    """The denominator and the value of the Dice quotient d, (n, 1, 1, 1) each, and the sums of p t, p and t, (3, n)."""
    overlap, predicted, true = (part.sum(VOXELS, keepdim=True) for part in (p * t, p, t))
    size = predicted + true + smooth
    return size, (2 * overlap + smooth) / size, torch.stack([overlap, predicted, true]).flatten(1)


def _weighted(bce: Tensor, t: Tensor, weight: Tensor | None) -> Tensor:
    """The BCE of each voxel times its weight: 1 for negative voxels, `weight` for positive voxels."""
    return bce if weight is None else bce * (1 + (weight - 1) * t)
