"""Swin UNETR: the paper's main backbone (Section 4.1.2; Fig. 3: 62.19 M parameters).

It has a Swin Transformer as its encoder and a convolutional decoder.
Follows Hatamizadeh et al., "Swin UNETR", BrainLes 2021, https://arxiv.org/abs/2201.01266, and Tang et al.,
"Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022,
https://arxiv.org/abs/2111.14791. Windows and shifts follow Liu et al., "Swin Transformer", ICCV 2021,
https://arxiv.org/abs/2103.14030. Submodules have the names of MONAI's network, which the released weights use,
https://github.com/Project-MONAI/MONAI/blob/dev/monai/networks/nets/swin_unetr.py.

Axes: the transformer keeps channels last, (B, D, H, W, C), so that a linear layer acts on each token. The convolutions
use (B, C, D, H, W). N is the number of windows in a grid, n the number of tokens in a window.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import kernels
from ..kernels.layers import conv_of_doubled, is_cheaper_at_once, window_attention
from .layers import Conv, ImageConv, instance_norm
from .window_size import check_window_size

WINDOW = 7              # tokens along each axis of an attention window
SHIFT = WINDOW // 2     # tokens by which every second block shifts its windows
HEADS = (3, 6, 12, 24)  # attention heads per stage; each head has width / 3 channels
DEPTH = 2               # blocks per stage: one without shift, one with
MASKED = -100.0         # added before the softmax to the score of two tokens that are not neighbours in the image

# The eight corners (i, j, k) of a 2x2x2 cell, in the order in which patch merging concatenates them. The released
# weights were trained with MONAI 0.9.0, which takes 010 and 001 twice and never takes 110 and 011. Later versions take
# each corner once. The tensors have the same shapes, so weights load either way, but the features differ.
Corners = tuple[tuple[int, int, int], ...]
CORNERS: dict[str, Corners] = {
    "standard": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "v090": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}


def partition(grid: Tensor, window: Sequence[int]) -> Tensor:
    """Cut a grid (B, D, H, W, C) into windows -> (B * N, n, C). The window (wd, wh, ww) divides (D, H, W)."""
    (wd, wh, ww), (b, d, h, w, channels) = window, grid.shape
    x = grid.reshape(b, d // wd, wd, h // wh, wh, w // ww, ww, channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)                        # (B, D/wd, H/wh, W/ww, wd, wh, ww, C)
    return x.reshape(-1, wd * wh * ww, channels)                 # (B * N, n, C)


def unpartition(windows: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of `partition`: windows (B * N, n, C) -> grid (B, D, H, W, C), with (D, H, W) = `size`."""
    (wd, wh, ww), (d, h, w) = window, size
    x = windows.reshape(-1, d // wd, h // wh, w // ww, wd, wh, ww, windows.shape[-1])
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)                        # (B, D/wd, wd, H/wh, wh, W/ww, ww, C)
    return x.reshape(-1, d, h, w, windows.shape[-1])             # (B, D, H, W, C)


def window_and_shift(size: Sequence[int], shifted: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The window and the shift along each axis of a grid. An axis of up to 7 tokens is one window without shift."""
    window = tuple(min(WINDOW, s) for s in size)
    shift = tuple(SHIFT if shifted and s > WINDOW else 0 for s in size)
    return window, shift


def shift_mask(size: Sequence[int], window: Sequence[int], shift: Sequence[int],
               device: torch.device | None = None) -> Tensor:
    """Which pairs of tokens in a window must not attend to each other after the grid is rolled by `shift`.

    The roll moves the first `shift` planes of each axis behind the last ones, where they share a window with tokens
    from the other end of the image. Each axis has three regions: before the last window, the last window up to the
    planes that were moved, and those planes. Two tokens of different regions are masked.

    size, window, shift: (D, H, W) of the padded grid, (wd, wh, ww), (sd, sh, sw)
    returns: (N, n, n) bool, True where masked
    """
    region = torch.zeros(1, *size, 1, dtype=torch.uint8, device=device)       # (1, D, H, W, 1)
    for axis in range(3):
        plane = torch.arange(size[axis], device=device)
        along = (plane >= size[axis] - window[axis]).byte() + (plane >= size[axis] - shift[axis]).byte()
        shape = [1] * 5
        shape[axis + 1] = size[axis]
        region = 3 * region + (along.view(shape) if shift[axis] else 0)       # (1, D, H, W, 1)
    region = partition(region, window).squeeze(-1)                            # (N, n)
    return region[:, :, None] != region[:, None, :]                           # (N, n, n)


def relative_position_index() -> Tensor:
    """The row of the bias table for each pair of tokens in a 7x7x7 window: (343, 343), values 0 to 13^3 - 1.

    The table has one row for each relative position, -6 to 6 along each axis. The result is on the CPU, also within
    `torch.device("meta")`, where these operations would take seconds.
    """
    axis = torch.arange(WINDOW, device="cpu")
    position = torch.cartesian_prod(axis, axis, axis)                         # (343, 3)
    difference = position[:, None] - position[None, :] + WINDOW - 1           # (343, 343, 3), 0 to 12
    side = 2 * WINDOW - 1
    return (difference * torch.tensor([side * side, side, 1], device="cpu")).sum(-1)   # (343, 343)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within windows, softmax(q k^T / sqrt(c) + bias) v.

    q, k, v: (B * N, heads, n, c)  queries, keys and values of the n tokens of each window
    bias:    (heads, n, n)         of two tokens' relative position
    mask:    (N, n, n) bool or None, see `shift_mask`
    returns: (B * N, heads, n, c)

    On a CPU, inference computes it by kernels/layers.py, faster.
    """
    if kernels.on_cpu_without_gradient(q):
        return window_attention(q, k, v, bias, mask, MASKED)
    return plain_attention(q, k, v, bias, mask)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` as the formula reads."""
    q = q / math.sqrt(q.shape[-1])
    scores = q @ k.transpose(-2, -1)                                          # (B * N, heads, n, n), the largest one,
    scores += bias.to(scores.dtype)                                           # so added to in place
    if mask is not None:
        by_image = scores.unflatten(0, (-1, len(mask)))                       # (B, N, heads, n, n)
        by_image.add_(mask[:, None].to(scores.dtype), alpha=MASKED)
    return scores.softmax(dim=-1) @ v                                         # (B * N, heads, n, c)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias for the relative position of two tokens."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)    # usual for Swin transformers
        self.register_buffer("relative_position_index", relative_position_index())

    def bias(self, n: int) -> Tensor:
        """The bias of a window of n tokens: (heads, n, n).

        A window smaller than 7x7x7 reads the top left corner of the full window's index. This is not the geometry of
        the small window: in a 3x3x3 window, token 3 starts the second row, yet it reads the bias of the fourth token
        in a row of seven. The released weights are trained and used this way.
        """
        index = self.relative_position_index[:n, :n]                          # (n, n)
        return self.relative_position_bias_table[index].permute(2, 0, 1)      # (heads, n, n)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B * N, n, C), mask (N, n, n) bool or None, see `shift_mask` -> (B * N, n, C)."""
        n = x.shape[1]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))                  # (B * N, n, 3, heads, C / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                  # each (B * N, heads, n, C / heads)
        x = attention(q, k, v, self.bias(n), mask)                            # (B * N, heads, n, C / heads)
        x = x.transpose(1, 2).flatten(2)                                      # (B * N, n, C)
        return self.proj(x)                                                   # (B * N, n, C)


class SwinBlock(nn.Module):
    """Transformer block: window attention, then a two-layer perceptron; each has a LayerNorm before and a residual."""

    def __init__(self, channels: int, heads: int, shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict({"linear1": nn.Linear(channels, 4 * channels),
                                  "linear2": nn.Linear(4 * channels, channels)})

    def attend(self, x: Tensor) -> Tensor:
        """Window attention on a normalised grid: (B, D, H, W, C) -> (B, D, H, W, C)."""
        d, h, w = x.shape[1:4]
        window, shift = window_and_shift((d, h, w), self.shifted)
        # Zeros after the norm fill the last windows (grids of 48, 24, 12 become 49, 28, 14). They are not masked:
        # their tokens have the keys and values of the biases of qkv, and every token of the window attends to them.
        pad = [-size % along for size, along in zip((d, h, w), window)]
        x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))                 # (B, D', H', W', C)
        padded = tuple(x.shape[1:4])
        mask = None
        if any(shift):
            x = x.roll([-s for s in shift], dims=(1, 2, 3))                   # (B, D', H', W', C)
            mask = shift_mask(padded, window, shift, x.device)                # (N, n, n)
        x = self.attn(partition(x, window), mask)                             # (B * N, n, C)
        x = unpartition(x, window, padded)                                    # (B, D', H', W', C)
        if any(shift):
            x = x.roll(shift, dims=(1, 2, 3))                                 # (B, D', H', W', C)
        return x[:, :d, :h, :w]                                               # (B, D, H, W, C)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D, H, W, C)."""
        x = x + self.attend(self.norm1(x))                                    # (B, D, H, W, C)
        hidden = F.gelu(self.mlp["linear1"](self.norm2(x)))                   # (B, D, H, W, 4C)
        return x + self.mlp["linear2"](hidden)                                # (B, D, H, W, C)


class PatchMerging(nn.Module):
    """Halve the grid and double the channels: concatenate the corners of each 2x2x2 cell, then apply a linear layer."""

    def __init__(self, channels: int, corners: Corners):
        super().__init__()
        self.corners = corners
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2C)."""
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.corners], dim=-1)  # (B, D/2, H/2, W/2, 8C)
        return self.reduction(self.norm(x))                                   # (B, D/2, H/2, W/2, 2C)


class Stage(nn.Module):
    """Two Swin blocks, the second with shifted windows, then patch merging."""

    def __init__(self, channels: int, heads: int, corners: Corners):
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(SwinBlock(channels, heads, shifted=i % 2 == 1) for i in range(DEPTH))
        self.downsample = PatchMerging(channels, corners)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) -> (B, D/2, H/2, W/2, 2C)."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)                 # (B, D, H, W, C)
            else:
                x = block(x)                                                  # (B, D, H, W, C)
        return self.downsample(x)                                             # (B, D/2, H/2, W/2, 2C)


class SwinTransformer(nn.Module):
    """Patch embedding and four stages. The decoder sees the embedding and the output of each stage."""

    def __init__(self, in_channels: int, width: int, corners: Corners):
        super().__init__()
        self.patch_embed = nn.Sequential(OrderedDict(proj=ImageConv(in_channels, width, kernel_size=2, stride=2)))
        # One list per stage, because the released names read `layers1.0.blocks...`.
        self.layers1, self.layers2, self.layers3, self.layers4 = (
            nn.ModuleList([Stage(width << level, heads, corners)]) for level, heads in enumerate(HEADS))

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, in_channels, D, H, W) -> five maps, number l = 0 to 4 of shape (B, 2^l C, D/2^(l+1), ...)."""
        x = self.patch_embed(image).permute(0, 2, 3, 4, 1)                    # (B, D/2, H/2, W/2, C)
        outputs = [self.normalised(x)]
        for (stage,) in (self.layers1, self.layers2, self.layers3, self.layers4):
            x = stage(x)                                                      # half the size, twice the channels
            outputs.append(self.normalised(x))
        return outputs

    @staticmethod
    def normalised(x: Tensor) -> Tensor:
        """LayerNorm without parameters over the channels: (B, D, H, W, C) -> (B, C, D, H, W)."""
        x = F.layer_norm(x, x.shape[-1:]).permute(0, 4, 1, 2, 3)
        return x if kernels.on_cpu_without_gradient(x) else x.contiguous()    # see kernels/layers.py, channels_last


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, kind: type[Conv] = Conv) -> nn.Sequential:
    """A convolution without bias, wrapped in a module because the released names read `<name>.conv.weight`."""
    layer = kind(in_channels, out_channels, kernel_size, bias=False)
    return nn.Sequential(OrderedDict(conv=layer))


class ResBlock(nn.Module):
    """Two 3x3x3 convolutions with a residual. Where the channels change, a 1x1x1 convolution adapts the residual."""

    def __init__(self, in_channels: int, out_channels: int, first: type[Conv] = Conv):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, kind=first)
        self.conv2 = conv(out_channels, out_channels)
        self.conv3 = conv(in_channels, out_channels, 1, first) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D, H, W)."""
        return self.after_conv(self.conv1(x), x if self.conv3 is None else self.conv3(x))

    def after_conv(self, y: Tensor, x: Tensor) -> Tensor:
        """What follows the first convolution y and the one of the residual x: (B, out, D, H, W) -> the same shape."""
        y = F.leaky_relu(instance_norm(y), 0.01, inplace=True)                # (B, out, D, H, W)
        y = instance_norm(self.conv2(y))                                      # (B, out, D, H, W)
        if self.conv3 is not None:
            x = instance_norm(x)                                              # (B, out, D, H, W)
        return F.leaky_relu(x + y, 0.01, inplace=True)                        # (B, out, D, H, W)


class Encoder(nn.Module):
    """Residual block between the transformer (or the image) and the decoder; the size of the map stays."""

    def __init__(self, in_channels: int, out_channels: int, first: type[Conv] = Conv):
        super().__init__()
        self.layer = ResBlock(in_channels, out_channels, first)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D, H, W)."""
        return self.layer(x)


class Decoder(nn.Module):
    """Double the size, append the skip of that level, and apply a residual block."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        up = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=2, stride=2, bias=False)
        self.transp_conv = nn.Sequential(OrderedDict(conv=up))
        self.conv_block = ResBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, in, D, H, W), skip (B, out, 2D, 2H, 2W) -> (B, out, 2D, 2H, 2W)."""
        up: Any = self.transp_conv
        convs: Any = self.conv_block.conv1, self.conv_block.conv3
        if kernels.on_cpu_without_gradient(x) and is_cheaper_at_once(x, up.conv, convs[0].conv):
            y, residual = (conv_of_doubled(x, skip, up.conv, wrapped.conv) for wrapped in convs)
            return self.conv_block.after_conv(y, residual)                    # (B, out, 2D, 2H, 2W)
        x = self.transp_conv(x)                                               # (B, out, 2D, 2H, 2W)
        x = torch.cat([x, skip], dim=1)                                       # (B, 2 out, 2D, 2H, 2W), upsampled first
        return self.conv_block(x)                                             # (B, out, 2D, 2H, 2W)


class SwinUNETR(nn.Module):
    """Swin UNETR with C = `width` channels at full resolution (paper: 48, so 62,186,610 parameters).

    width:   a multiple of 3, the number of heads in the first stage
    merging: order of the corners in patch merging, see `CORNERS`: "standard", or "v090" for the released weights

    Raises ValueError for another width or merging.
    """

    size_multiple = 32

    def __init__(self, in_channels: int = 1, width: int = 48, merging: str = "standard"):
        super().__init__()
        if width < HEADS[0] or width % HEADS[0]:
            raise ValueError(f"SwinUNETR: width must be a multiple of {HEADS[0]} (the heads of stage 1), got {width}.")
        if merging not in CORNERS:
            raise ValueError(f"SwinUNETR: merging must be one of {', '.join(CORNERS)}, got {merging!r}.")
        c = width
        self.in_channels = in_channels
        self.bottleneck_channels = 16 * c
        self.decoder_channels = c
        self.swinViT = SwinTransformer(in_channels, c, CORNERS[merging])
        self.encoder1 = Encoder(in_channels, c, first=ImageConv)
        self.encoder2 = Encoder(c, c)
        self.encoder3 = Encoder(2 * c, 2 * c)
        self.encoder4 = Encoder(4 * c, 4 * c)
        self.encoder10 = Encoder(16 * c, 16 * c)
        self.decoder5 = Decoder(16 * c, 8 * c)
        self.decoder4 = Decoder(8 * c, 4 * c)
        self.decoder3 = Decoder(4 * c, 2 * c)
        self.decoder2 = Decoder(2 * c, c)
        self.decoder1 = Decoder(c, c)

    def checkpoint_activations(self) -> None:
        """Recompute the Swin blocks in the backward pass instead of keeping their activations, which saves memory."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.checkpointing = True

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, in_channels, D, H, W) -> bottleneck F_E (B, 16C, D/32, ...), decoder map F_D (B, C, D, H, W).

        D, H and W are multiples of 32, one of them at least 64. Raises ValueError for other sizes.
        """
        check_window_size(image, self, needs_two_voxels=True)
        embedding, stage1, stage2, stage3, stage4 = self.swinViT(image)
        bottleneck = self.encoder10(stage4)                                   # (B, 16C, D/32, H/32, W/32)  F_E
        x = self.decoder5(bottleneck, stage3)                                 # (B, 8C, D/16, H/16, W/16), no encoder
        x = self.decoder4(x, self.encoder4(stage2))                           # (B, 4C, D/8, H/8, W/8)
        x = self.decoder3(x, self.encoder3(stage1))                           # (B, 2C, D/4, H/4, W/4)
        x = self.decoder2(x, self.encoder2(embedding))                        # (B, C, D/2, H/2, W/2)
        features = self.decoder1(x, self.encoder1(image))                     # (B, C, D, H, W)             F_D
        return bottleneck, features
