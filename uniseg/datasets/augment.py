"""Augmentation of training patches: the rotation of Section 4.1.2, and more beyond the paper.

All functions are pure functions of arrays and an `rng`. None of them mirrors: left and right are different classes.
data.py, which calls them, is the file to read next.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def rotate_90(array: np.ndarray, quarter_turns: int) -> np.ndarray:
    """Turn the last three axes (D, H, W) by `quarter_turns` x 90 degrees in the axial plane.

    A patient can make this motion (180 degrees: lying prone), so every voxel keeps its label: the right kidney stays
    the right kidney. A mirror image is not such a motion.
    """
    return np.rot90(array, quarter_turns, axes=(-3, -2))


class Deformation:
    """Beyond the paper: one random rotation and zoom of a patch about its centre, the same for image and labels.

    It turns by up to 12 degrees about each axis and zooms by 0.76 to 1.34; it never mirrors.

    patch_size: (D, H, W) of the result
    reach:      (D, H, W) voxels of the source from which the result is made
    """

    def __init__(self, patch_size: Sequence[int], rng: np.random.Generator) -> None:
        self.size = np.array(patch_size)
        angles = np.deg2rad(rng.uniform(-12, 12, 3))
        zoom = rng.uniform(0.8, 1.25, 3) ** 0.5 * rng.uniform(0.85, 1.2)
        self.matrix = rotation(angles) @ np.diag(1 / zoom)     # offset from the centre in the result -> in the source
        half = np.ceil(np.abs(self.matrix) @ (self.size / 2)).astype(int)
        self.reach = tuple(int(n) for n in half * 2 + 2)

    def __call__(self, hu: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """hu, bits of shape `reach` -> float32 HU (interpolated linearly) and nearest bits, of shape `patch_size`."""
        offset = (np.array(self.reach) - 1) / 2 - self.matrix @ ((self.size - 1) / 2)
        size = tuple(self.size)
        return (ndimage.affine_transform(hu.astype(np.float32), self.matrix, offset, size, order=1, mode="nearest"),
                ndimage.affine_transform(bits, self.matrix, offset, size, order=0, mode="nearest"))


def degrade(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beyond the paper: blur 3 patches of 10 and add noise to 5 of 10, as other scanners and kernels do.

    hu: (D, H, W) float32; returns the same shape and type
    """
    if rng.random() < 0.3:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.3, 1.0, 3))
    if rng.random() < 0.5:
        hu = hu + rng.normal(0, rng.uniform(0, 40), hu.shape).astype(np.float32)
    return hu


def recontrast(hu: np.ndarray, bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Beyond the paper (--augment contrast): roughly another contrast phase.

    Every annotated structure as a whole becomes brighter or darker. Then all HU pass through a random curve, which is
    monotone, so that what was darker stays darker. A few CTs show only a few phases: a network that has seen organs in
    many grey values has to learn their shape and place.

    hu, bits: (D, H, W) of one patch; returns (D, H, W) float32 HU
    """
    offset = np.zeros(hu.shape, np.float32)
    for k in range(bits.dtype.itemsize * 8):
        offset[(bits >> bits.dtype.type(k)) & bits.dtype.type(1) != 0] += rng.normal(0, 30)
    hu = hu + ndimage.gaussian_filter(offset, 0.7)
    knots = np.array([-1000.0, -175, -75, 0, 75, 150, 250, 1000])
    return np.interp(hu, knots, np.maximum.accumulate(knots + rng.normal(0, 15, len(knots)))).astype(np.float32)


def rotation(angles: np.ndarray) -> np.ndarray:
    """The (3, 3) rotation matrix of three angles in radians about the axes D, H, W; its determinant is 1."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
