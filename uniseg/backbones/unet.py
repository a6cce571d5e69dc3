"""3-D U-Net in the form of Models Genesis: the second backbone of Section 4.4.2 (Fig. 3: 19.08 M parameters).

Follows Zhou et al., "Models Genesis", MICCAI 2019, https://arxiv.org/abs/1908.06912, and its file
https://github.com/MrGiovanni/ModelsGenesis/blob/master/pytorch/unet3d.py. Submodules have the names of the released
weights (`down_tr64.ops.0.conv1`, `up_tr256.up_conv`, ...); 64 to 512 are the channels at the paper's width of 64.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels.layers import conv_of_doubled, is_cheaper_at_once
from .layers import Conv, ImageConv, InstanceNorm
from .window_size import check_window_size


class ConvNormReLU(nn.Module):
    """3x3x3 convolution, normalisation and ReLU; the size of the map stays.

    The released weights call the normalisation `bn1`. Theirs is a batch normalisation that always uses the statistics
    of the current batch, never running statistics. With one window per batch, this equals an instance normalisation
    with affine parameters, which is used here. So the state has no running_mean, running_var or num_batches_tracked.

    Differs from upstream: with several windows per batch, each window has its own statistics, and its result does not
    depend on the other windows.
    """

    def __init__(self, in_channels: int, out_channels: int, conv: type[Conv] = Conv):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.bn1 = InstanceNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D, H, W)."""
        return self.after_conv(self.conv1(x))                    # (B, out, D, H, W)

    def after_conv(self, x: Tensor) -> Tensor:
        """(B, out, D, H, W) -> (B, out, D, H, W)."""
        return F.relu(self.bn1(x), inplace=True)                 # (B, out, D, H, W)


class Down(nn.Module):
    """The two convolutions of one level. The caller keeps the result for the skip and pools it for the next level."""

    def __init__(self, in_channels: int, middle_channels: int, out_channels: int, first: type[Conv] = Conv):
        super().__init__()
        self.ops = nn.Sequential(ConvNormReLU(in_channels, middle_channels, first),
                                 ConvNormReLU(middle_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D, H, W)."""
        return self.ops(x)


class Up(nn.Module):
    """Double the size, append the skip of that level, and apply two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int):
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, kernel_size=2, stride=2)
        self.ops = nn.Sequential(ConvNormReLU(in_channels + skip_channels, skip_channels),
                                 ConvNormReLU(skip_channels, skip_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, in, D, H, W), skip (B, skip, 2D, 2H, 2W) -> (B, skip, 2D, 2H, 2W)."""
        first: Any = self.ops[0]
        if kernels.on_cpu_without_gradient(x) and is_cheaper_at_once(x, self.up_conv, first.conv1):
            x = conv_of_doubled(x, skip, self.up_conv, first.conv1)  # (B, skip, 2D, 2H, 2W)
            return self.ops[1](first.after_conv(x))              # (B, skip, 2D, 2H, 2W)
        x = self.up_conv(x)                                      # (B, in, 2D, 2H, 2W)
        x = torch.cat([x, skip], dim=1)                          # (B, in + skip, 2D, 2H, 2W), upsampled part first
        return self.ops(x)                                       # (B, skip, 2D, 2H, 2W)


class UNet(nn.Module):
    """U-Net of four levels with C, 2C, 4C and 8C channels, where C = `width` (paper: 64, so 19,073,600 parameters).

    width: even. Raises ValueError otherwise.
    """

    size_multiple = 8

    def __init__(self, in_channels: int = 1, width: int = 64):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"UNet: width must be even (the first convolution has width / 2 channels), got {width}.")
        c = width
        self.in_channels = in_channels
        self.bottleneck_channels = 8 * c
        self.decoder_channels = c
        self.down_tr64 = Down(in_channels, c // 2, c, first=ImageConv)
        self.down_tr128 = Down(c, c, 2 * c)
        self.down_tr256 = Down(2 * c, 2 * c, 4 * c)
        self.down_tr512 = Down(4 * c, 4 * c, 8 * c)
        self.up_tr256 = Up(8 * c, 4 * c)
        self.up_tr128 = Up(4 * c, 2 * c)
        self.up_tr64 = Up(2 * c, c)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, in_channels, D, H, W) -> bottleneck F_E (B, 8C, D/8, H/8, W/8), decoder map F_D (B, C, D, H, W).

        D, H and W are multiples of 8, one of them at least 16. Raises ValueError for other sizes.
        """
        check_window_size(image, self, needs_two_voxels=True)
        skip64 = self.down_tr64(image)                           # (B,  C, D,   H,   W)
        skip128 = self.down_tr128(F.max_pool3d(skip64, 2))       # (B, 2C, D/2, H/2, W/2)
        skip256 = self.down_tr256(F.max_pool3d(skip128, 2))      # (B, 4C, D/4, H/4, W/4)
        bottleneck = self.down_tr512(F.max_pool3d(skip256, 2))   # (B, 8C, D/8, H/8, W/8)   F_E
        x = self.up_tr256(bottleneck, skip256)                   # (B, 4C, D/4, H/4, W/4)
        x = self.up_tr128(x, skip128)                            # (B, 2C, D/2, H/2, W/2)
        features = self.up_tr64(x, skip64)                       # (B,  C, D,   H,   W)     F_D
        return bottleneck, features
