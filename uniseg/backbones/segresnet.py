"""SegResNet: the smallest backbone of Section 4.4.2 (Fig. 3: "SegResNet-Tiny", 4.7 M parameters).

It has a residual encoder and a light decoder. Follows Myronenko, "3D MRI brain tumor segmentation using autoencoder
regularization", BrainLes 2018, https://arxiv.org/abs/1810.11654, without its variational branch. Submodules have the
names of MONAI's SegResNet, https://github.com/Project-MONAI/MONAI/blob/dev/monai/networks/nets/segresnet.py, so that
the weights of SuPreM load.
"""

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv, GroupNorm, ImageConv
from .window_size import check_window_size

BLOCKS_DOWN = (1, 2, 2, 4)   # residual blocks per level, from full resolution to 1/8
BLOCKS_UP = (1, 1, 1)        # residual blocks per level, from 1/4 to full resolution


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1,
         kind: type[Conv] = Conv) -> nn.Sequential:
    """A convolution without bias, wrapped in a module because the released names read `<name>.conv.weight`."""
    layer = kind(in_channels, out_channels, kernel_size, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=layer))


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with eight groups, or with fewer where eight does not divide a narrow network's channels."""
    return GroupNorm(math.gcd(8, channels), channels)


class ResBlock(nn.Module):
    """Pre-activation residual block: twice norm, ReLU and convolution, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = conv(channels, channels)
        self.norm2 = group_norm(channels)
        self.conv2 = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D, H, W)."""
        y = self.conv1(F.relu(self.norm1(x)))                    # (B, C, D, H, W)
        y = self.conv2(F.relu(self.norm2(y)))                    # (B, C, D, H, W)
        return x + y                                             # (B, C, D, H, W)


class SegResNet(nn.Module):
    """SegResNet of four levels with C, 2C, 4C and 8C channels, where C = `width` (paper: 16, so 4,700,848 parameters).

    F_D is the output of the last residual block. The original network ends in `conv_final`: a group normalisation (32
    parameters), a ReLU and a 1x1x1 classifier. Here the heads follow instead, which start with a normalisation and a
    ReLU of their own (heads.reduce_features), so `conv_final` of a released file is not needed. With it and MONAI's
    default of two output channels (34 parameters) the count is 4,700,914, the paper's 4.7 M.
    """

    size_multiple = 8

    def __init__(self, in_channels: int = 1, width: int = 16):
        super().__init__()
        c = width
        self.in_channels = in_channels
        self.bottleneck_channels = 8 * c
        self.decoder_channels = c
        self.convInit = conv(in_channels, c, kind=ImageConv)
        self.down_layers = nn.ModuleList()
        for level, blocks in enumerate(BLOCKS_DOWN):
            enter = nn.Identity() if level == 0 else conv(c << (level - 1), c << level, stride=2)
            self.down_layers.append(nn.Sequential(enter, *[ResBlock(c << level) for _ in range(blocks)]))
        self.up_samples = nn.ModuleList()
        self.up_layers = nn.ModuleList()
        for level, blocks in zip((2, 1, 0), BLOCKS_UP):
            double = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
            self.up_samples.append(nn.Sequential(conv(c << (level + 1), c << level, kernel_size=1), double))
            self.up_layers.append(nn.Sequential(*[ResBlock(c << level) for _ in range(blocks)]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, in_channels, D, H, W) -> bottleneck F_E (B, 8C, D/8, H/8, W/8), decoder map F_D (B, C, D, H, W).

        D, H and W are multiples of 8. Raises ValueError for other sizes.
        """
        check_window_size(image, self, needs_two_voxels=False)
        x = self.convInit(image)                                 # (B, C, D, H, W)
        skips = []
        for down in self.down_layers:
            x = down(x)                                          # (B, 2^l C, D/2^l, H/2^l, W/2^l) at level l
            skips.append(x)
        bottleneck = skips.pop()                                 # (B, 8C, D/8, H/8, W/8)   F_E
        for up_sample, up_layer in zip(self.up_samples, self.up_layers):
            x = up_sample(x) + skips.pop()                       # (B, 2^l C, D/2^l, H/2^l, W/2^l), l = 2, 1, 0
            x = up_layer(x)                                      # (B, 2^l C, D/2^l, H/2^l, W/2^l); last (B, C, D, H, W)
        return bottleneck, x                                     # F_E and F_D
