"""What training does to a patch besides cutting it out: Section 4.1.2's rotation, and augmentation beyond the paper.

Pure functions of arrays and an `rng`. Nothing mirrors: left and right are classes.
"""

import numpy as np
from scipy import ndimage

from ..imaging.splines import cubic_b_splines


def rotate_90(array, times):
    """Turn the last three axes (D, H, W) by `times` x 90 degrees in the axial plane.

    A rotation is a motion a patient can make (180 degrees: lying prone), not a mirror: every voxel keeps its label, the
    right kidney stays the right kidney, and the liver stays on the same side of the spine as seen from the front.
    """
    return np.rot90(array, times, axes=(-3, -2))


class Deformation:
    """Beyond the paper: one random change of shape of a patch about its centre, for image and labels alike; never a mirror.

    patch_size:         (D, H, W) of the result; `reach` (D, H, W) voxels of the source that it is made of
    turn_and_zoom:      rotation by up to 12 degrees about each axis, zoom by 0.76 to 1.34 (--augment strong, contrast)
    displacement_voxels: (3,) most that a voxel moves along each axis besides, smoothly over the patch (--deform)
    """

    def __init__(self, patch_size, rng, turn_and_zoom=True, displacement_voxels=(0.0, 0.0, 0.0)):
        self.size, self.matrix = np.array(patch_size), np.eye(3)
        if turn_and_zoom:
            angles, zoom = np.deg2rad(rng.uniform(-12, 12, 3)), rng.uniform(0.8, 1.25, 3) ** 0.5 * rng.uniform(0.85, 1.2)
            self.matrix = rotation(angles) @ np.diag(1 / zoom)  # output offset from the centre -> input offset
        self.field = None
        if any(displacement_voxels):
            self.field = smooth_field(patch_size, displacement_voxels, rng)                       # (3, D, H, W)
        extra = np.ceil(displacement_voxels).astype(int) * 2
        self.reach = tuple(int(n) for n in np.ceil(np.abs(self.matrix) @ (self.size / 2)).astype(int) * 2 + 2 + extra)

    def __call__(self, hu, bits):
        """hu, bits of shape `reach` -> float32 HU and bits of shape `patch_size`; linear, and nearest for the bits."""
        offset = (np.array(self.reach) - 1) / 2 - self.matrix @ ((self.size - 1) / 2)
        size, hu = tuple(self.size), hu.astype(np.float32)
        if self.field is None:
            return (ndimage.affine_transform(hu, self.matrix, offset, size, order=1, mode="nearest"),
                    ndimage.affine_transform(bits, self.matrix, offset, size, order=0, mode="nearest"))
        places = np.einsum("ij,jdhw->idhw", self.matrix, np.indices(size)) + offset[:, None, None, None] + self.field
        return (ndimage.map_coordinates(hu, places, order=1, mode="nearest"),
                ndimage.map_coordinates(bits, places, order=0, mode="nearest"))


def smooth_field(size, most, rng):
    """A random displacement (3, D, H, W) of voxels, at most `most[a]` along axis a, that folds nothing over.

    Cubic B-splines on a coarse grid of control points (Rueckert et al. 1999, https://doi.org/10.1109/42.796284). Between two of
    them the field changes by at most 2 most, so with their distance over 6 most no derivative reaches 1/3: the sum of the
    three of a row stays below 1, and the Jacobian determinant of x + field(x) is positive everywhere.
    """
    distance = max(16.0, 6.001 * max(most))
    splines = [cubic_b_splines(np.arange(n) / distance, int(np.ceil((n - 1) / distance)) + 3) for n in size]  # (n, points) each
    control = rng.uniform(-1, 1, (3, *(s.shape[1] for s in splines))) * np.reshape(most, (3, 1, 1, 1))
    return np.einsum("da,hb,wc,iabc->idhw", *splines, control, optimize=True)


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


def rotation(angles):
    """Rotation matrix of three small angles in radians about the axes D, H, W; determinant +1."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
