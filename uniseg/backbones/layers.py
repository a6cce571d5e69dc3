"""Layers that more than one backbone has. kernels/layers.py has fast forms of them for a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import layers as fast
from ..machine.device import autocast_type, without_autocast


def instance_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Each channel of each image gets mean 0 and variance 1, then weight and bias (C,): (B, C, D, H, W) -> the same."""
    if kernels.on_cpu(x):
        return fast.instance_norm(x, weight, bias)
    return F.instance_norm(x, weight=weight, bias=bias)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation with a weight and a bias for each channel."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D, H, W)."""
        return instance_norm(x, self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """Each group of channels of each image gets mean 0 and variance 1, then a weight and a bias for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D, H, W)."""
        if kernels.on_cpu(x):
            return fast.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)


class Conv(nn.Conv3d):
    """A convolution. With a kernel of 3 (or 1) it keeps the size, which a stride divides."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=(kernel_size - 1) // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D', H', W')."""
        if not kernels.on_cpu_without_gradient(x):
            return super().forward(x)
        x = fast.channels_last(x)
        if (self.kernel_size == (3, 3, 3) and x.dtype == torch.float32 and autocast_type("cpu") is None
                and fast.has_conv3d()):
            x = fast.conv3d(x, self.weight, self.bias, self.stride, (1, 1, 1))
        else:
            x = super().forward(x)
        return fast.channels_last(x)                    # of a single channel, PyTorch makes a map with channels first


class ImageConv(Conv):
    """A convolution that takes the image itself. It multiplies in float32 whatever autocast says.

    Between 0.5 and 1 bfloat16 has steps of 1/256: 8 HU in a window of 2000 HU. What comes out is in autocast's type.
    """

    def forward(self, image: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D', H', W')."""
        with without_autocast(image.device.type):
            x = super().forward(image.float())
        return x.to(autocast_type(image.device.type) or x.dtype)
