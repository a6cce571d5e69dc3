"""What training does to a patch besides cutting it out: Section 4.1.2's rotation, and augmentation beyond the paper.

Pure functions of arrays and an `rng`. Nothing mirrors: left and right are classes.
"""

import numpy as np
from scipy import ndimage


def rotate_90(array, times):
    """Turn the last three axes (D, H, W) by `times` x 90 degrees in the axial plane.

    A rotation is a motion a patient can make (180 degrees: lying prone), not a mirror: every voxel keeps its label, the
    right kidney stays the right kidney, and the liver stays on the same side of the spine as seen from the front.
    """
    return np.rot90(array, times, axes=(-3, -2))


class Deformation:
    """Beyond the paper (--augment strong, contrast): a small rotation and zoom about the patch's centre; never a mirror.

    patch_size: (D, H, W) of the result; `reach`: voxels of the source that it is made of.
    """

    def __init__(self, patch_size, rng):
        self.size = np.array(patch_size)
        angles, zoom = np.deg2rad(rng.uniform(-12, 12, 3)), rng.uniform(0.8, 1.25, 3) ** 0.5 * rng.uniform(0.85, 1.2)
        self.matrix = _rotation(angles) @ np.diag(1 / zoom)      # output offset from the centre -> input offset
        self.reach = tuple(int(n) for n in np.ceil(np.abs(self.matrix) @ (self.size / 2)).astype(int) * 2 + 2)

    def __call__(self, hu, bits):
        """hu, bits of shape `reach` -> float32 HU and bits of shape `patch_size`; linear, and nearest for the bits."""
        offset = (np.array(self.reach) - 1) / 2 - self.matrix @ ((self.size - 1) / 2)
        size = tuple(self.size)
        return (ndimage.affine_transform(hu.astype(np.float32), self.matrix, offset, size, order=1, mode="nearest"),
                ndimage.affine_transform(bits, self.matrix, offset, size, order=0, mode="nearest"))


def degrade(hu, rng):
    """Beyond the paper: now and then blur and noise, as other scanners and kernels give."""
    if rng.random() < 0.3:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.3, 1.0, 3))
    if rng.random() < 0.5:
        hu = hu + rng.normal(0, rng.uniform(0, 40), hu.shape).astype(np.float32)
    return hu


def recontrast(hu, bits, rng):
    """Another contrast phase, roughly (--augment contrast): each annotated structure as a whole brighter or darker, then a random curve of HU.

    Few CTs show few phases; a network that has seen organs at many grey values has to learn shape and place.
    hu, bits: (D, H, W) of one patch; returns float32 HU. The curve is monotone, so that darker stays darker.
    """
    offset = np.zeros(hu.shape, np.float32)
    for k in range(bits.dtype.itemsize * 8):
        offset[(bits >> bits.dtype.type(k)) & bits.dtype.type(1) != 0] += rng.normal(0, 30)
    hu = hu + ndimage.gaussian_filter(offset, 0.7)
    knots = np.array([-1000.0, -175, -75, 0, 75, 150, 250, 1000])
    return np.interp(hu, knots, np.maximum.accumulate(knots + rng.normal(0, 15, len(knots)))).astype(np.float32)


def _rotation(angles):
    """Rotation matrix of three small angles in radians about the axes D, H, W; determinant +1."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
