"""The sizes of image that a backbone takes, checked once at the start of its forward pass."""


def check_window_size(image, backbone, needs_two_voxels):
    """Raise a ValueError unless `image` (B, in_channels, D, H, W) fits `backbone` (its class names it in the message).

    needs_two_voxels: True where an instance normalisation follows the deepest convolution. It subtracts the mean over
                      the voxels of one channel, so that a 1x1x1 bottleneck would come out as zero whatever the image;
                      PyTorch refuses it.
    """
    name, multiple = type(backbone).__name__, backbone.size_multiple
    if image.ndim != 5 or image.shape[1] != backbone.in_channels:
        raise ValueError(f"{name}: expected an image of shape (B, {backbone.in_channels}, D, H, W), "
                         f"got {tuple(image.shape)}.")
    size = tuple(image.shape[2:])
    if any(s == 0 or s % multiple for s in size):
        raise ValueError(f"{name}: each spatial size must be a positive multiple of {multiple}, got {size}. "
                         "Pad the window to the next multiple.")
    if needs_two_voxels and size == (multiple,) * 3:
        raise ValueError(f"{name}: a window of {size} shrinks to one voxel at the bottleneck, which instance "
                         f"normalisation cannot take. Use at least {2 * multiple} along one axis.")
