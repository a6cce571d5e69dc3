"""Eq. (2) for all classes at once: the class heads as matrix products, with a backward pass written by hand.

The readable form is `heads.plain_class_logits`. This one does not repeat the feature map for each class. It takes a
chunk of voxels at a time, so that the hidden layers of 32 classes stay in the cache of a CPU. In the backward pass it
computes the hidden layers again instead of keeping them.

8 x 8 products are too small for a GPU, so there up to GROUP classes form one block-diagonal product. A NaN in one class
then spreads to its group.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..machine.device import without_autocast

CHUNK = {"cpu": 768, "cuda": 1 << 18}     # voxels at a time
GROUP = {"cuda": 32}                       # most classes combined in one matrix product; 1 on devices not listed


def class_logits(features: Tensor, theta: Tensor, sizes: Sequence[int], chunk: int | None = None,
                 group: int | None = None) -> Tensor:
    """The logits of `heads.class_logits`: features (B, 8, D, H, W), theta (B, K, 153) -> (B, K, D, H, W).

    sizes: the numbers of values in w1, w2, w3, b1, b2, b3 (heads.SIZES)
    chunk: voxels at a time (None: CHUNK of the device)
    group: most classes in one product (None: GROUP of the device)

    It computes in float32, whatever autocast says. A GPU may multiply in TF32 (machine/device.py, with_tensor_cores).
    """
    chunk = chunk or CHUNK.get(features.device.type, CHUNK["cuda"])
    group = classes_in_one(theta.shape[1], group or GROUP.get(features.device.type, 1))
    flat = features.float().flatten(2)                                             # (B, 8, N)
    logits = ClassHeads.apply(flat, theta.float(), tuple(sizes), chunk, group)     # (B, K, N)
    return logits.unflatten(2, features.shape[2:])                                 # (B, K, D, H, W)


def classes_in_one(classes: int, most: int) -> int:
    """How many classes share a matrix product: the largest divisor of their number that is at most `most`.

    The only such divisor of 37 is 1, so each of 37 classes gets a product of its own, which is slower.

    >>> [classes_in_one(classes, 32) for classes in (6, 32, 34, 37)]
    [6, 32, 17, 1]
    """
    return max(n for n in range(1, most + 1) if classes % n == 0)


def _layers(theta: Tensor, sizes: Sequence[int], group: int) -> tuple[Tensor, ...]:
    """The three layers of all classes, from theta (K, 153) of one image; G classes share a product.

    returns: w1 (8K, 8), w2 (K/G, 8G, 8G), w3 (K/G, G, 8G), b1 (8K, 1), b2 (K/G, 8G, 1), b3 (K/G, G, 1)
    """
    w1, w2, w3, b1, b2, b3 = theta.split(sizes, dim=1)
    groups = len(theta) // group
    return (w1.reshape(-1, 8), _blocks(w2.reshape(-1, 8, 8), group), _blocks(w3.reshape(-1, 1, 8), group),
            b1.reshape(-1, 1), b2.reshape(groups, -1, 1), b3.reshape(groups, -1, 1))


def _blocks(matrices: Tensor, group: int) -> Tensor:
    """(K, a, b) -> (K/G, G a, G b): the matrices of G classes become the diagonal blocks of one matrix, 0 elsewhere."""
    classes, rows, columns = matrices.shape
    wide = matrices.new_zeros(classes // group, group, rows, group, columns)
    _diagonal(wide).copy_(matrices.unflatten(0, (-1, group)))
    return wide.flatten(3, 4).flatten(1, 2)


def _of_blocks(wide: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `_blocks`: (K/G, G rows, G columns) -> (K, rows, columns); the rest is ignored."""
    return _diagonal(wide.unflatten(2, (-1, columns)).unflatten(1, (-1, rows))).flatten(0, 1)


def _diagonal(wide: Tensor) -> Tensor:
    """The diagonal blocks of (K/G, G, a, G, b) as a view (K/G, G, a, b)."""
    return wide.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _hidden(x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """The two hidden layers of all classes for the voxels x (8, n): two tensors (K/G, 8G, n)."""
    h1 = torch.addmm(b1, w1, x).relu_().view(len(w2), -1, x.shape[1])          # ReLU(w1 F + b1)
    h2 = torch.baddbmm(b2, w2, h1).relu_()                                     # ReLU(w2 h1 + b2)
    return h1, h2


def _where_positive(gradient: Tensor, hidden: Tensor) -> Tensor:
    """The gradient before a ReLU, in place: 0 where the ReLU's output `hidden` is 0.

    This operator passes over the memory once; a product with a mask would pass three times.
    """
    return torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)


class ClassHeads(torch.autograd.Function):
    """Eq. (2) on flattened voxels, and its gradient with respect to features and theta."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, theta: Tensor, sizes: Sequence[int], chunk: int, group: int) -> Tensor:
        """features (B, 8, N), theta (B, K, 153) -> logits (B, K, N). The others are as in `class_logits`."""
        ctx.save_for_backward(features, theta)
        ctx.sizes, ctx.chunk, ctx.group = sizes, chunk, group
        logits = features.new_empty(features.shape[0], theta.shape[1], features.shape[2])
        with without_autocast(features.device.type):
            for image, parameters, out in zip(features, theta, logits):
                w1, w2, w3, b1, b2, b3 = _layers(parameters, sizes, group)
                for i in range(0, image.shape[1], chunk):
                    _, h2 = _hidden(image[:, i:i + chunk], w1, w2, b1, b2)
                    out[:, i:i + chunk] = torch.baddbmm(b3, w3, h2).flatten(0, 1)  # w3 h2 + b3: (K, n)
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of features (B, 8, N) and theta (B, K, 153) from that of the logits (B, K, N)."""
        features, theta = ctx.saved_tensors
        grad_features, grad_theta = torch.zeros_like(features), torch.zeros_like(theta)
        with without_autocast(features.device.type):
            for b, (image, parameters) in enumerate(zip(features, theta)):
                layers = w1, w2, _, b1, b2, _ = _layers(parameters, ctx.sizes, ctx.group)
                w2_t = w2.transpose(1, 2).contiguous()                                      # (K/G, 8G, 8G)
                w3_t = parameters.split(ctx.sizes, dim=1)[2][..., None].contiguous()        # (K, 8, 1)
                sums = [torch.zeros_like(part) for part in layers]
                g_w1, g_w2, g_w3, g_b1, g_b2, g_b3 = sums
                for i in range(0, image.shape[1], ctx.chunk):
                    x = image[:, i:i + ctx.chunk]
                    g = grad_logits[b, :, i:i + ctx.chunk]                     # (K, n)
                    grouped = g.unflatten(0, (-1, ctx.group))                  # (K/G, G, n)
                    h1, h2 = _hidden(x, w1, w2, b1, b2)
                    g_w3 += torch.bmm(grouped, h2.transpose(1, 2))
                    g_b3 += grouped.sum(2, keepdim=True)
                    g_h2 = _where_positive((w3_t * g[:, None]).view_as(h2), h2)  # (K/G, 8G, n)
                    g_w2 += torch.bmm(g_h2, h1.transpose(1, 2))
                    g_b2 += g_h2.sum(2, keepdim=True)
                    g_h1 = _where_positive(torch.bmm(w2_t, g_h2), h1).view(-1, x.shape[1])  # (8K, n)
                    g_w1 += (x @ g_h1.T).T
                    g_b1 += g_h1.sum(1, keepdim=True)
                    grad_features[b, :, i:i + ctx.chunk] = w1.T @ g_h1
                sums[1], sums[2] = _of_blocks(g_w2, 8, 8), _of_blocks(g_w3, 1, 8)
                grad_theta[b] = torch.cat([part.reshape(len(parameters), -1) for part in sums], dim=1)
        return grad_features, grad_theta, None, None, None
