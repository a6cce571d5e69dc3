"""Layers of the backbones for inference on CPUs; the instance norm also for training.

The readable forms are in backbones/layers.py and backbones/swin_unetr.py, and say when these run.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine.device import without_autocast

ROWS = 1 << 14                     # voxels whose sums are taken together: a few MiB, which stay in a cache


def has_conv3d() -> bool:
    """Whether this build of PyTorch has oneDNN."""
    return torch.backends.mkldnn.is_available()


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, D, H, W) with the C numbers of a voxel side by side in memory; x itself where they are.

    oneDNN's convolutions need not rearrange such a map, and take half to five sixths of the time.
    """
    return x.contiguous(memory_format=torch.channels_last_3d)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """F.conv3d by oneDNN, in float32: (B, in, D, H, W) -> (B, out, D', H', W').

    For one image of few channels or voxels, PyTorch takes a slow loop instead (the 20480 in
    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/Convolution.cpp, use_mkldnn). In all other cases
    this is what F.conv3d does.
    """
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation=(1, 1, 1), groups=1)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """F.instance_norm as a group normalisation with one channel per group, which is the same: (B, C, D, H, W) -> same.

    Where channels lie first, PyTorch's operator for groups is about four times faster in float32, as it adds up in
    vectors.
    """
    return group_norm(x, x.shape[1], weight, bias)


def group_norm(x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:
    """F.group_norm, exact in float32 also where channels lie last: (B, C, D, H, W) -> same.

    Where they do, PyTorch's operator adds up all voxels one by one, and its result for a map of 96^3 voxels is wrong by
    1e-3 (https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/group_norm_kernel.cpp). This one takes
    sums of ROWS voxels at a time, first of the values, then of their squared distances from the mean. PyTorch's runs
    with gradients, where maps have their channels first, and in bfloat16, whose own steps are larger than the error.
    """
    last = x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    if torch.is_grad_enabled() or x.dtype != torch.float32 or not last:
        return F.group_norm(x, groups, weight, bias, eps)
    (b, c), together = x.shape[:2], x.shape[1] // groups
    voxels = x.movedim(1, -1).reshape(b, -1, c)                                # (B, N, C), a view

    def mean_of(sums: Tensor) -> Tensor:
        """(B, C) sums over the voxels -> (B, 1, C) means over the voxels and the channels of a group."""
        means = sums.view(b, groups, together).sum(dim=2) / (voxels.shape[1] * together)
        return means.repeat_interleave(together, dim=1)[:, None]

    parts = voxels.split(ROWS, dim=1)
    mean = mean_of(torch.stack([part.sum(dim=1) for part in parts]).sum(dim=0))
    squares = [(part - mean).square_().sum(dim=1) for part in parts]
    scale = (mean_of(torch.stack(squares).sum(dim=0)) + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(shift, voxels, scale).view(b, *x.shape[2:], c).movedim(-1, 1)


def double_size(x: Tensor, weight: Tensor) -> Tensor:
    """F.conv_transpose3d with kernel 2 and stride 2: x (B, I, D, H, W), weight (I, O, 2, 2, 2) -> (B, O, 2D, 2H, 2W).

    The kernels of neighbours do not overlap: each voxel becomes 2x2x2 voxels of its own. So this is one matrix product
    from I channels to 8 O numbers per voxel, which are then put in their places. The result has its channels last.
    """
    (b, i, d, h, w), out_channels = x.shape, weight.shape[1]
    cells = x.movedim(1, -1) @ weight.permute(0, 2, 3, 4, 1).reshape(i, -1)    # (B, D, H, W, 8 O)
    cells = cells.view(b, d, h, w, 2, 2, 2, out_channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cells.reshape(b, 2 * d, 2 * h, 2 * w, out_channels).movedim(-1, 1)


def is_cheaper_at_once(x: Tensor, up: nn.ConvTranspose3d, conv: nn.Conv3d) -> bool:
    """Whether `conv_of_doubled` has fewer products than up, concatenation and conv, its own preparation included.

    It has not for a small map of many channels.
    """
    i, c, o, taps = up.in_channels, up.out_channels, conv.out_channels, math.prod(conv.kernel_size)
    voxels = 8 * x[:, 0].numel()                                               # of the result
    return voxels * 8 * i * o + 8 * taps * i * c * o < voxels * (i * c + taps * c * o)


def conv_of_doubled(x: Tensor, skip: Tensor, up: nn.ConvTranspose3d, conv: nn.Conv3d) -> Tensor:
    """conv(cat([up(x), skip])) with 8 products for 27 in its first part: how each level of a decoder begins.

    x (B, I, D, H, W), skip (B, S, 2D, 2H, 2W) -> (B, O, 2D, 2H, 2W); up doubles the size (I -> C), conv has a kernel of
    3 or 1 (C + S -> O).

    A convolution of a sum is the sum of the convolutions, so that the two parts need not lie in one tensor. And `up`
    and `conv` together are one transposed convolution: what a voxel of x adds to the result is what `conv` makes of the
    2x2x2 cell that `up` makes of the voxel. With a kernel of 3 this response is 4x4x4 voxels wide. A voxel of the
    result lies in 8 responses of I channels, where the convolution would multiply 27 voxels of C channels. A channel of
    ones carries the bias of `up`, which the zeros beyond the border do not have.
    """
    cell, weight, reach = up.weight, conv.weight, conv.kernel_size[0] - 1      # (I, C, 2, 2, 2), (O, C + S, k, k, k)
    channels = cell.shape[1]
    if up.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)                   # (B, I + 1, D, H, W)
        cell = torch.cat([cell, up.bias[None, :, None, None, None].expand(1, -1, 2, 2, 2)])  # (I + 1, C, 2, 2, 2)
    with without_autocast(x.device.type):
        response = F.conv3d(cell, weight[:, :channels], padding=reach)         # (I + 1, O, 2 + reach, ...)
    out = channels_last(F.conv3d(skip, weight[:, channels:], conv.bias, padding=reach // 2))   # (B, O, 2D, 2H, 2W)
    if reach == 0:
        return out.add_(double_size(x, response))
    return out.add_(F.conv_transpose3d(x, response, stride=2, padding=reach // 2))


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, masked: float) -> Tensor:
    """swin_unetr.plain_attention without the matrix of scores, for inference; the arguments and the result are its own.

    For one image of 96^3 voxels the matrix has 480 MB. PyTorch's fused operator wants one bias for all windows that it
    is given, so neighbouring windows with the same mask go through it together: 98 calls for the 343 windows of that
    image. In training the operator would store the scores like the plain form, and be slower.
    """
    bias = bias.to(q.dtype)[None]                                              # (1, heads, n, n)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    parts = []
    for image in range(0, len(q), len(mask)):
        for first, end in same_masks(mask):
            windows = slice(image + first, image + end)
            parts.append(F.scaled_dot_product_attention(q[windows], k[windows], v[windows],
                                                        attn_mask=bias + masked * mask[first].to(q.dtype)))
    return torch.cat(parts)


def same_masks(mask: Tensor) -> list[tuple[int, int]]:
    """The runs [first, end) of neighbouring windows with the same mask (N, n, n).

    >>> same_masks(torch.tensor([0, 0, 1, 0]).view(4, 1, 1))
    [(0, 2), (2, 3), (3, 4)]
    """
    changes = (mask[1:] != mask[:-1]).flatten(1).any(dim=1).nonzero().flatten() + 1
    return list(itertools.pairwise([0, *changes.tolist(), len(mask)]))
