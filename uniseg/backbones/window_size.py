"""Checks the size of an image once, at the start of a backbone's forward pass."""

from typing import Protocol

from torch import Tensor


class TakesImages(Protocol):
    """What is read from a backbone here."""

    size_multiple: int
    in_channels: int


def check_window_size(image: Tensor, backbone: TakesImages, needs_two_voxels: bool) -> None:
    """Raise ValueError unless `image` (B, in_channels, D, H, W) fits `backbone`, whose class the message names.

    needs_two_voxels: True where an instance normalisation follows the deepest convolution. It subtracts the mean over
                      the voxels of a channel, so a bottleneck of 1x1x1 would be zero whatever the image shows. PyTorch
                      refuses that case.
    """
    name, multiple = type(backbone).__name__, backbone.size_multiple
    if image.ndim != 5 or image.shape[1] != backbone.in_channels:
        raise ValueError(f"{name}: expected an image of shape (B, {backbone.in_channels}, D, H, W), "
                         f"got {tuple(image.shape)}.")
    size = tuple(image.shape[2:])
    if any(n == 0 or n % multiple for n in size):
        raise ValueError(f"{name}: each spatial size must be a positive multiple of {multiple}, got {size}. "
                         "Pad the window to the next multiple.")
    if needs_two_voxels and size == (multiple,) * 3:
        raise ValueError(f"{name}: a window of {size} shrinks to one voxel at the bottleneck, which instance "
                         f"normalisation cannot take. Use at least {2 * multiple} along one axis.")
