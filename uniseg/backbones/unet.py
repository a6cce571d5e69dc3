"""3-D U-Net in the Models Genesis form: the paper's second backbone (19.08 M parameters, Section 4.1.2).

Follows Zhou et al., "Models Genesis", MICCAI 2019, https://arxiv.org/abs/1908.06912, whose file is
https://github.com/MrGiovanni/ModelsGenesis/blob/master/pytorch/unet3d.py; sub-module names are the released ones
(`down_tr64.ops.0.conv1`, `up_tr256.up_conv`, ...), where 64 ... 512 are the channels at the paper's width of 64.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .window_size import check_window_size


class ConvNormReLU(nn.Module):
    """3x3x3 convolution, normalisation, ReLU; the size stays.

    The normalisation is named `bn1` because the released weights name it so. Theirs is a batch normalisation that uses
    the statistics of the current batch in training and evaluation alike, never running ones. At one window per batch
    that equals an instance normalisation with affine parameters, which is used here: its result for a window does not
    depend on the other windows of the batch. Hence no running_mean, running_var or num_batches_tracked in the state.
    """

    # Differs from upstream: at more than one window per batch, each window has its own statistics.

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.bn1 = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)

    def forward(self, x):
        x = self.bn1(self.conv1(x))                              # (B, out, D, H, W)
        return F.relu(x, inplace=True)                           # (B, out, D, H, W)


class Down(nn.Module):
    """Two convolutions of one level; the caller keeps the result for the skip and pools it for the next level."""

    def __init__(self, in_channels, middle_channels, out_channels):
        super().__init__()
        self.ops = nn.Sequential(ConvNormReLU(in_channels, middle_channels),
                                 ConvNormReLU(middle_channels, out_channels))

    def forward(self, x):
        return self.ops(x)                                       # (B, out, D, H, W)


class Up(nn.Module):
    """Double the size, append the skip of that level, two convolutions."""

    def __init__(self, in_channels, skip_channels):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, kernel_size=2, stride=2)
        self.ops = nn.Sequential(ConvNormReLU(in_channels + skip_channels, skip_channels),
                                 ConvNormReLU(skip_channels, skip_channels))

    def forward(self, x, skip):
        x = self.up_conv(x)                                      # (B, in, 2D, 2H, 2W)
        x = torch.cat([x, skip], dim=1)                          # (B, in + skip, 2D, 2H, 2W), upsampled part first
        return self.ops(x)                                       # (B, skip, 2D, 2H, 2W)


class UNet(nn.Module):
    """U-Net of four levels with C, 2C, 4C, 8C channels, C = `width` (64 in the paper: 19,073,600 parameters).

    forward: image (B, in_channels, D, H, W), each size a multiple of 8
             -> bottleneck F_E (B, 8C, D/8, H/8, W/8), decoder map F_D (B, C, D, H, W)
    """

    size_multiple = 8

    def __init__(self, in_channels=1, width=64):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"UNet: width must be even (the first convolution has width / 2 channels), got {width}.")
        c = width
        self.in_channels = in_channels
        self.bottleneck_channels = 8 * c
        self.decoder_channels = c
        self.down_tr64 = Down(in_channels, c // 2, c)
        self.down_tr128 = Down(c, c, 2 * c)
        self.down_tr256 = Down(2 * c, 2 * c, 4 * c)
        self.down_tr512 = Down(4 * c, 4 * c, 8 * c)
        self.up_tr256 = Up(8 * c, 4 * c)
        self.up_tr128 = Up(4 * c, 2 * c)
        self.up_tr64 = Up(2 * c, c)

    def forward(self, image):
        check_window_size(image, self, needs_two_voxels=True)
        skip64 = self.down_tr64(image)                           # (B,  C, D,   H,   W)
        skip128 = self.down_tr128(F.max_pool3d(skip64, 2))       # (B, 2C, D/2, H/2, W/2)
        skip256 = self.down_tr256(F.max_pool3d(skip128, 2))      # (B, 4C, D/4, H/4, W/4)
        bottleneck = self.down_tr512(F.max_pool3d(skip256, 2))   # (B, 8C, D/8, H/8, W/8)   F_E
        x = self.up_tr256(bottleneck, skip256)                   # (B, 4C, D/4, H/4, W/4)
        x = self.up_tr128(x, skip128)                            # (B, 2C, D/2, H/2, W/2)
        features = self.up_tr64(x, skip64)                       # (B,  C, D,   H,   W)     F_D
        return bottleneck, features
