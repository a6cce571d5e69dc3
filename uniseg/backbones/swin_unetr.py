"""Swin UNETR: the paper's main backbone (62.19 M parameters), a Swin Transformer encoder and a convolutional decoder.

Follows Hatamizadeh et al., "Swin UNETR", BrainLes 2021, https://arxiv.org/abs/2201.01266, and Tang et al.,
"Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022,
https://arxiv.org/abs/2111.14791; windows and shifts are those of Liu et al., "Swin Transformer", ICCV 2021,
https://arxiv.org/abs/2103.14030. Sub-module names are those of MONAI's network, which the released weights use,
https://github.com/Project-MONAI/MONAI/blob/dev/monai/networks/nets/swin_unetr.py.

Axes: the transformer keeps its grids channels last, (B, D, H, W, C), so that a linear layer acts on each token; the
convolutions keep (B, C, D, H, W). N is the number of windows of a grid, n the number of tokens of a window.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .window_size import check_window_size

WINDOW = 7              # tokens along each axis of an attention window
SHIFT = WINDOW // 2     # of every second block
HEADS = (3, 6, 12, 24)  # a stage; width / 3 channels a head at each
DEPTH = 2               # blocks a stage: one without shift, one with
MASKED = -100.0         # added before the softmax for two tokens that are no neighbours in the image

# The eight corners (i, j, k) of a 2x2x2 cell in the order in which patch merging concatenates them. The released
# weights are trained with MONAI 0.9.0, which takes 010 and 001 twice and 110 and 011 never; later versions take each
# corner once. The shapes are equal, so that a state dict loads either way, but the features are not.
CORNERS = {
    "standard": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "v090": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}


def partition(grid, window):
    """Cut a grid (B, D, H, W, C) into windows of wd x wh x ww tokens -> (B * N, n, C); each size divides its axis."""
    (wd, wh, ww), (b, d, h, w, channels) = window, grid.shape
    x = grid.reshape(b, d // wd, wd, h // wh, wh, w // ww, ww, channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)                        # (B, D/wd, H/wh, W/ww, wd, wh, ww, C)
    return x.reshape(-1, wd * wh * ww, channels)                 # (B * N, n, C)


def unpartition(windows, window, size):
    """Inverse of `partition`: windows (B * N, n, C) -> grid (B, D, H, W, C), with (D, H, W) = `size`."""
    (wd, wh, ww), (d, h, w) = window, size
    x = windows.reshape(-1, d // wd, h // wh, w // ww, wd, wh, ww, windows.shape[-1])
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)                        # (B, D/wd, wd, H/wh, wh, W/ww, ww, C)
    return x.reshape(-1, d, h, w, windows.shape[-1])             # (B, D, H, W, C)


def window_and_shift(size, shifted):
    """Window and shift along each axis of a grid. An axis of 7 tokens or fewer is one window and is not shifted."""
    window = tuple(min(WINDOW, s) for s in size)
    shift = tuple(SHIFT if shifted and s > WINDOW else 0 for s in size)
    return window, shift


def shift_mask(size, window, shift, device=None):
    """Which pairs of tokens of a window must not attend to each other once the grid is rolled by `shift`.

    The roll carries the first `shift` planes of each axis behind the last ones: they share a window with tokens from
    the other end of the image. Two tokens are kept apart where they belong to different regions, three along each axis:
    before the last window, in the last window up to the planes that came round, and those planes.

    size, window, shift: (D, H, W) of the padded grid, (wd, wh, ww), (sd, sh, sw)
    returns: (N, n, n) bool, True where masked
    """
    region = torch.zeros(1, *size, 1, dtype=torch.uint8, device=device)       # (1, D, H, W, 1)
    for axis in range(3):
        place = torch.arange(size[axis], device=device)
        along = (place >= size[axis] - window[axis]).byte() + (place >= size[axis] - shift[axis]).byte()
        shape = [1] * 5
        shape[axis + 1] = size[axis]
        region = 3 * region + (along.view(shape) if shift[axis] else 0)       # (1, D, H, W, 1)
    region = partition(region, window).squeeze(-1)                            # (N, n)
    return region[:, :, None] != region[:, None, :]                           # (N, n, n)


def relative_position_index():
    """Row of the bias table for each pair of tokens of a 7x7x7 window: (343, 343), values 0 to 13^3 - 1.

    The table holds one row for each difference of places, -6 to 6 along each axis.
    """
    axis = torch.arange(WINDOW)
    place = torch.cartesian_prod(axis, axis, axis)                            # (343, 3)
    difference = place[:, None] - place[None, :] + WINDOW - 1                 # (343, 343, 3), 0 to 12
    side = 2 * WINDOW - 1
    return (difference * torch.tensor([side * side, side, 1])).sum(-1)        # (343, 343)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window, with a learned bias for the relative place of two tokens."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)    # the usual width for Swin transformers
        self.register_buffer("relative_position_index", relative_position_index())

    def bias(self, n):
        """Bias of a window of n tokens: (heads, n, n).

        A window smaller than 7x7x7 reads the top left corner of the index of the full one. That is not the geometry of
        the small window (in a 3x3x3 window, token 3 opens the second row, yet reads the bias of the fourth token of a
        row of seven), but the released weights are trained and used so.
        """
        index = self.relative_position_index[:n, :n]                          # (n, n)
        return self.relative_position_bias_table[index].permute(2, 0, 1)      # (heads, n, n)

    def forward(self, x, mask):
        """x: (B * N, n, C); mask: (N, n, n) bool or None, see `shift_mask`; returns (B * N, n, C)."""
        n = x.shape[1]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))                  # (B * N, n, 3, heads, C / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                  # each (B * N, heads, n, C / heads)
        q = q / math.sqrt(q.shape[-1])
        scores = q @ k.transpose(-2, -1)                                      # (B * N, heads, n, n), the largest one,
        scores += self.bias(n)                                                # hence added to in place
        if mask is not None:
            scores.unflatten(0, (-1, len(mask))).add_(mask[:, None], alpha=MASKED)  # seen as (B, N, heads, n, n)
        x = scores.softmax(dim=-1) @ v                                        # (B * N, heads, n, C / heads)
        x = x.transpose(1, 2).flatten(2)                                      # (B * N, n, C)
        return self.proj(x)                                                   # (B * N, n, C)


class SwinBlock(nn.Module):
    """Transformer block: window attention, then a two-layer perceptron, each after a LayerNorm and with a residual."""

    def __init__(self, channels, heads, shifted):
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict({"linear1": nn.Linear(channels, 4 * channels),
                                  "linear2": nn.Linear(4 * channels, channels)})

    def attend(self, x):
        """x: (B, D, H, W, C), normalised; returns the attention's output of the same shape."""
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

    def forward(self, x):
        x = x + self.attend(self.norm1(x))                                    # (B, D, H, W, C)
        hidden = F.gelu(self.mlp["linear1"](self.norm2(x)))                   # (B, D, H, W, 4C)
        return x + self.mlp["linear2"](hidden)                                # (B, D, H, W, C)


class PatchMerging(nn.Module):
    """Halve the grid and double the channels: concatenate the corners of each 2x2x2 cell, then one linear layer."""

    def __init__(self, channels, corners):
        super().__init__()
        self.corners = corners
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x):
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.corners], dim=-1)  # (B, D/2, H/2, W/2, 8C)
        return self.reduction(self.norm(x))                                   # (B, D/2, H/2, W/2, 2C)


class Stage(nn.Module):
    """Two Swin blocks, the second with shifted windows, then patch merging."""

    def __init__(self, channels, heads, corners):
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(SwinBlock(channels, heads, shifted=i % 2 == 1) for i in range(DEPTH))
        self.downsample = PatchMerging(channels, corners)

    def forward(self, x):
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)                 # (B, D, H, W, C)
            else:
                x = block(x)                                                  # (B, D, H, W, C)
        return self.downsample(x)                                             # (B, D/2, H/2, W/2, 2C)


class SwinTransformer(nn.Module):
    """Patch embedding and four stages; the decoder sees the embedding and the output of each stage."""

    def __init__(self, in_channels, width, corners):
        super().__init__()
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv3d(in_channels, width, kernel_size=2, stride=2)))
        # One list a stage: the released keys read `layers1.0.blocks...`.
        self.layers1, self.layers2, self.layers3, self.layers4 = (
            nn.ModuleList([Stage(width << level, heads, corners)]) for level, heads in enumerate(HEADS))

    def forward(self, image):
        """image: (B, in_channels, D, H, W); returns five maps, the l-th (B, 2^l C, D/2^(l+1), ...), l = 0 to 4."""
        x = self.patch_embed(image).permute(0, 2, 3, 4, 1)                    # (B, D/2, H/2, W/2, C)
        outputs = [self.normalised(x)]
        for (stage,) in (self.layers1, self.layers2, self.layers3, self.layers4):
            x = stage(x)                                                      # half the size, twice the channels
            outputs.append(self.normalised(x))
        return outputs

    @staticmethod
    def normalised(x):
        """LayerNorm without parameters over the channels: (B, D, H, W, C) -> (B, C, D, H, W)."""
        return F.layer_norm(x, x.shape[-1:]).permute(0, 4, 1, 2, 3).contiguous()


def conv(in_channels, out_channels, kernel_size=3):
    """Convolution without bias, one module deep because the released keys read `<name>.conv.weight`."""
    layer = nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=layer))


class ResBlock(nn.Module):
    """Two 3x3x3 convolutions with a residual; a 1x1x1 convolution fits the residual where the channels change."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.conv3 = conv(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None

    def forward(self, x):
        y = F.instance_norm(self.conv1(x))                                    # (B, out, D, H, W)
        y = F.leaky_relu(y, 0.01, inplace=True)                               # (B, out, D, H, W)
        y = F.instance_norm(self.conv2(y))                                    # (B, out, D, H, W)
        if self.conv3 is not None:
            x = F.instance_norm(self.conv3(x))                                # (B, out, D, H, W)
        return F.leaky_relu(x + y, 0.01, inplace=True)                        # (B, out, D, H, W)


class Encoder(nn.Module):
    """Residual block between the transformer (or the image) and the decoder; the size stays."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = ResBlock(in_channels, out_channels)

    def forward(self, x):
        return self.layer(x)                                                  # (B, out, D, H, W)


class Decoder(nn.Module):
    """Double the size, append the skip of that level, one residual block."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        up = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=2, stride=2, bias=False)
        self.transp_conv = nn.Sequential(OrderedDict(conv=up))
        self.conv_block = ResBlock(2 * out_channels, out_channels)

    def forward(self, x, skip):
        x = self.transp_conv(x)                                               # (B, out, 2D, 2H, 2W)
        x = torch.cat([x, skip], dim=1)                                       # (B, 2 out, 2D, 2H, 2W), upsampled first
        return self.conv_block(x)                                             # (B, out, 2D, 2H, 2W)


class SwinUNETR(nn.Module):
    """Swin UNETR with C = `width` channels at full resolution (48 in the paper: 62,186,610 parameters).

    width:         a multiple of 3, the heads of the first stage
    merging:       "standard", or "v090" for released weights: the order of corners in patch merging, see `CORNERS`

    forward: image (B, in_channels, D, H, W), each size a multiple of 32
             -> bottleneck F_E (B, 16C, D/32, H/32, W/32), decoder map F_D (B, C, D, H, W)
    """

    size_multiple = 32

    def __init__(self, in_channels=1, width=48, merging="standard"):
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
        self.encoder1 = Encoder(in_channels, c)
        self.encoder2 = Encoder(c, c)
        self.encoder3 = Encoder(2 * c, 2 * c)
        self.encoder4 = Encoder(4 * c, 4 * c)
        self.encoder10 = Encoder(16 * c, 16 * c)
        self.decoder5 = Decoder(16 * c, 8 * c)
        self.decoder4 = Decoder(8 * c, 4 * c)
        self.decoder3 = Decoder(4 * c, 2 * c)
        self.decoder2 = Decoder(2 * c, c)
        self.decoder1 = Decoder(c, c)

    def checkpoint_activations(self):
        """Recompute the Swin blocks in the backward pass instead of keeping their activations: the same numbers, less memory."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.checkpointing = True

    def forward(self, image):
        check_window_size(image, self, needs_two_voxels=True)
        embedding, stage1, stage2, stage3, stage4 = self.swinViT(image)
        bottleneck = self.encoder10(stage4)                                   # (B, 16C, D/32, H/32, W/32)  F_E
        x = self.decoder5(bottleneck, stage3)                                 # (B, 8C, D/16, H/16, W/16), no encoder
        x = self.decoder4(x, self.encoder4(stage2))                           # (B, 4C, D/8, H/8, W/8)
        x = self.decoder3(x, self.encoder3(stage1))                           # (B, 2C, D/4, H/4, W/4)
        x = self.decoder2(x, self.encoder2(embedding))                        # (B, C, D/2, H/2, W/2)
        features = self.decoder1(x, self.encoder1(image))                     # (B, C, D, H, W)             F_D
        return bottleneck, features
