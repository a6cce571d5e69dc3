"""Grids in mm, smooth random fields on them, and the random motion that makes another patient of a label map.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). Points are world mm in RAS+: x to the right, y to the front,
z to the head. Fields and motions are functions of mm, so that a coarse and a fine grid see the same patient.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage, special

from uniseg.datasets.augment import rotation
from uniseg.imaging.bits import bounding_box

# Hollow organs are emptier or fuller than in the map: most mm that the wall moves inwards and outwards.
SWELLING_MM = {"stomach": (8.0, 5.0), "colon": (5.0, 4.0), "small_bowel": (2.0, 2.0), "duodenum": (3.0, 2.0), "gallbladder": (4.0, 4.0),
               "urinary_bladder": (9.0, 5.0)}
KNOT_MM, MOST_MM = (64.0, 32.0), (7.0, 1.5)       # the elastic part: distance of control points, most that each moves a point


class Grid(NamedTuple):
    """An isotropic grid: voxel (i, j, k) has its centre at origin_mm + spacing_mm * (i, j, k)."""

    origin_mm: tuple
    spacing_mm: float
    shape: tuple

    @property
    def affine(self):
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def axes(self, box=None):
        """The coordinates in mm along each axis, of a box (three slices) where one is given."""
        box = box or (slice(None),) * 3
        return [(o + self.spacing_mm * np.arange(n))[part].astype(np.float32)
                for o, n, part in zip(self.origin_mm, self.shape, box)]

    def mesh(self, box=None):
        """x (D, 1, 1), y (1, H, 1), z (1, 1, W) in mm."""
        return np.meshgrid(*self.axes(box), indexing="ij", sparse=True)


def covering(low_mm, high_mm, spacing_mm):
    """The grid from one corner to the other."""
    shape = tuple(max(1, int(round((b - a) / spacing_mm)) + 1) for a, b in zip(low_mm, high_mm))
    return Grid(tuple(float(a) for a in low_mm), float(spacing_mm), shape)


def _splines(axis_mm, low_mm, knot_mm, points):
    """Cubic B-spline weight of each control point (low + knot * (p - 1)) at each place: (n, points), float32."""
    t = np.abs((np.asarray(axis_mm)[:, None] - low_mm) / knot_mm - (np.arange(points) - 1)[None])
    return np.where(t < 1, 2 / 3 - t ** 2 + t ** 3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0)).astype(np.float32)


def field(axes, wavelength_mm, rng):
    """A smooth random field of unit variance on the axes, (D, H, W) float32: white noise on control points, cubic B-splines."""
    knot = max(wavelength_mm / 2.5, 1e-3 + (axes[0][1] - axes[0][0] if len(axes[0]) > 1 else 1.0))
    points = [int(np.ceil((a[-1] - a[0]) / knot)) + 4 for a in axes]
    value = rng.standard_normal(points, np.float32) / np.float32((151 / 315) ** 1.5)        # the splines' integral of squares
    for axis, (along, n) in enumerate(zip(axes, points)):
        value = np.moveaxis(np.tensordot(_splines(along, along[0], knot, n), value, (1, axis)), 0, axis)
    return np.ascontiguousarray(value)


def share(normal, fraction):
    """The value that a unit-variance field stays below in `fraction` of all places."""
    return normal < special.ndtri(np.clip(fraction, 1e-6, 1 - 1e-6))


def soften(mask, grid, sigma_mm):
    """A mask blurred by `sigma_mm`, float32; at a flat boundary it is ndtr(depth / sigma)."""
    return ndimage.gaussian_filter(mask.astype(np.float32), sigma_mm / grid.spacing_mm, mode="nearest", truncate=3)


def deeper(mask, grid, depth_mm):
    """Share (0 to 1) of each voxel that lies deeper than `depth_mm` (a number, or an array) below a mask's surface.

    Depth is read from the blurred mask: exact below a flat surface, less below a bulging one.
    """
    sigma = max(1.5, 0.7 * grid.spacing_mm, float(np.max(depth_mm)) / 1.4)
    depth = sigma * special.ndtri(np.clip(soften(mask, grid, sigma), 1e-4, 1 - 1e-4))
    return np.clip((depth - depth_mm) / grid.spacing_mm + 0.5, 0, 1)


class Motion:
    """Where in the label map each point of the new patient comes from: rotation, zoom and a smooth displacement.

    Folds nothing over: per axis the two B-spline fields change by at most 2 * 3 * most / knot per mm, together below 1 (Rueckert
    et al. 1999, https://doi.org/10.1109/42.796284), and the determinant of the linear part is positive: left stays left.
    """

    def __init__(self, low_mm, high_mm, rng):
        self.centre = (np.asarray(low_mm) + high_mm) / 2
        angles = np.deg2rad(rng.normal(0, [2, 2, 4]))
        zoom = rng.uniform(0.86, 1.14) * rng.uniform(0.93, 1.07, 3)
        self.matrix = rotation(angles) @ np.diag(1 / zoom)                       # offset in the patient -> offset in the map
        self.low = np.asarray(low_mm) - 80.0
        self.control = []
        for knot, most in zip(KNOT_MM, MOST_MM):
            points = np.ceil((np.asarray(high_mm) + 80.0 - self.low) / knot).astype(int) + 3
            self.control.append(rng.uniform(-most, most, (3, *points)).astype(np.float32))

    def reach(self, low_mm, high_mm):
        """Corners of a box of the patient that holds what a box of the map becomes."""
        corners = np.array(np.meshgrid(*zip(low_mm, high_mm))).reshape(3, -1).T - self.centre
        moved = corners @ np.linalg.inv(self.matrix).T + self.centre
        return moved.min(axis=0) - sum(MOST_MM), moved.max(axis=0) + sum(MOST_MM)

    def planes(self, grid):
        """Yield for each plane of axis 0 the places in the map, (3, H, W) float32 mm."""
        x, y, z = grid.axes()
        parts = []
        for knot, control in zip(KNOT_MM, self.control):
            wx, wy, wz = (_splines(np.clip(a, low, low + knot * (n - 4)), low, knot, n)
                          for a, low, n in zip((x, y, z), self.low, control.shape[1:]))
            parts.append((wx, np.einsum("hb,wc,iabc->aihw", wy, wz, control, optimize=True)))
        matrix, centre = self.matrix.astype(np.float32), self.centre.astype(np.float32)
        plane = (matrix[:, 1, None, None] * (y - centre[1])[:, None] + matrix[:, 2, None, None] * (z - centre[2])[None]
                 + centre[:, None, None])                                         # what does not depend on x
        for i, xi in enumerate(x):
            place = plane + (matrix[:, 0] * (xi - centre[0]))[:, None, None]
            for wx, control in parts:
                for a in np.flatnonzero(wx[i]):
                    place += wx[i, a] * control[a]
            yield place


def move(labels, affine, grid, motion):
    """The label map as the new patient has it, on a grid: nearest neighbour, 0 outside the map.

    labels: (D, H, W) integers in RAS+, affine (4, 4)
    """
    moved = np.zeros(grid.shape, labels.dtype)
    to_index = np.linalg.inv(affine).astype(np.float32)
    for i, place in enumerate(motion.planes(grid)):
        index = np.rint(np.einsum("ij,jhw->ihw", to_index[:3, :3], place) + to_index[:3, 3, None, None]).astype(np.int32)
        inside = ((index >= 0) & (index < np.array(labels.shape)[:, None, None])).all(axis=0)
        moved[i][inside] = labels[tuple(index[:, inside])]
    return moved


def swell(labels, ids, grid, rng):
    """Make hollow organs emptier or fuller, unevenly; in place. What they leave, and where they may grow, has no label (0).

    labels: (D, H, W) ids of structures on the grid; ids: {structure: id}
    """
    for structure, (inwards, outwards) in SWELLING_MM.items():
        amount, seed = rng.uniform(-1, 1), rng.integers(2 ** 32)                # drawn whether the organ is in view or not
        box = bounding_box(labels == ids.get(structure, -1), int(np.ceil(outwards / grid.spacing_mm)) + 1)
        if box is None:
            continue
        mask, free = labels[box] == ids[structure], labels[box] == 0
        outside, inside = (ndimage.distance_transform_edt(m, grid.spacing_mm) if not m.all() else np.full(m.shape, np.inf)
                           for m in (~mask, mask))
        height = inside - outside                                               # mm above the wall, positive within
        by_mm = amount * (inwards if amount < 0 else outwards) * (1 + 0.4 * field(grid.axes(box), 60.0, np.random.default_rng(seed)))
        # Between the centres of two voxels the wall lies in the middle: half a voxel is no movement.
        new = height + by_mm > np.where(mask, 0.5, -0.5) * grid.spacing_mm
        labels[box][mask & ~new] = 0
        labels[box][free & new] = ids[structure]


def upsample(coarse, coarse_grid, grid):
    """A smooth array of a coarse grid on a fine one, linearly; beyond the coarse grid its edge is repeated."""
    for axis, (place, low, n) in enumerate(zip(grid.axes(), coarse_grid.origin_mm, coarse.shape)):
        at = np.clip((place - low) / coarse_grid.spacing_mm, 0, n - 1)
        below = np.minimum(at.astype(int), n - 2)
        weight = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(below, axis) * (1 - weight) + coarse.take(below + 1, axis) * weight
    return coarse
