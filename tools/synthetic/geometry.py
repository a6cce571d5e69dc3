"""Grids in mm, smooth random fields on them, and the random motion that turns a label map into another patient.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). Points are world coordinates in mm in RAS+: x points to
the right, y to the front, z to the head. Fields and motions are functions of mm, so a coarse and a fine grid see the
same patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, special

from uniseg.datasets.augment import rotation
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.splines import cubic_b_splines

Box = tuple[slice, slice, slice]

# Hollow organs are emptier or fuller than in the map: most mm that the wall moves inwards and outwards.
SWELLING_MM = {"stomach": (8.0, 5.0), "colon": (5.0, 4.0), "small_bowel": (2.0, 2.0), "duodenum": (3.0, 2.0),
               "gallbladder": (4.0, 4.0), "urinary_bladder": (9.0, 5.0)}
# The elastic part of the motion, a coarse and a fine field: distance of the control points, most that each moves a
# point.
KNOT_MM, MOST_MM = (64.0, 32.0), (7.0, 1.5)
MARGIN_MM = 80.0                     # how far the elastic part reaches beyond the map


class Grid(NamedTuple):
    """An isotropic grid: voxel (i, j, k) has its centre at origin_mm + spacing_mm * (i, j, k)."""

    origin_mm: tuple[float, ...]
    spacing_mm: float
    shape: tuple[int, ...]

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine (4, 4) from voxel indices to mm."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def axes(self, box: Box | None = None) -> list[NDArray[np.float32]]:
        """The coordinates in mm along each axis, of the whole grid or of a box in it."""
        parts = box or (slice(None),) * 3
        return [(origin + self.spacing_mm * np.arange(size))[part].astype(np.float32)
                for origin, size, part in zip(self.origin_mm, self.shape, parts)]

    def mesh(self) -> list[NDArray[np.float32]]:
        """x (D, 1, 1), y (1, H, 1), z (1, 1, W) in mm."""
        return list(np.meshgrid(*self.axes(), indexing="ij", sparse=True))


def covering(low_mm: Sequence[float], high_mm: Sequence[float], spacing_mm: float) -> Grid:
    """The grid that reaches from the corner `low_mm` to the corner `high_mm`."""
    shape = tuple(max(1, int(round((high - low) / spacing_mm)) + 1) for low, high in zip(low_mm, high_mm))
    return Grid(tuple(float(low) for low in low_mm), float(spacing_mm), shape)


def _splines(axis_mm: ArrayLike, low_mm: float, knot_mm: float, count: int) -> NDArray[np.float32]:
    """B-spline weight of each control point, low + knot * (p - 1), at each coordinate: (n, count)."""
    return cubic_b_splines((np.asarray(axis_mm) - low_mm) / knot_mm, count).astype(np.float32)


def field(axes: Sequence[NDArray], wavelength_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth random field of unit variance on the axes, (D, H, W): cubic B-splines of white noise."""
    knot = max(wavelength_mm / 2.5, 1e-3 + (axes[0][1] - axes[0][0] if len(axes[0]) > 1 else 1.0))
    counts = [int(np.ceil((axis[-1] - axis[0]) / knot)) + 4 for axis in axes]
    # The integral of a squared cubic B-spline is 151 / 315: without the division the variance would be its third power.
    value = rng.standard_normal(counts, np.float32) / np.float32((151 / 315) ** 1.5)
    for number, (axis, count) in enumerate(zip(axes, counts)):
        value = np.moveaxis(np.tensordot(_splines(axis, axis[0], knot, count), value, (1, number)), 0, number)
    return np.ascontiguousarray(value)


def below_quantile(normal: NDArray, fraction: ArrayLike) -> NDArray[np.bool_]:
    """Where a field of unit variance lies below its quantile `fraction`, that is, in this fraction of all points."""
    return normal < special.ndtri(np.clip(fraction, 1e-6, 1 - 1e-6))


def soften(mask: NDArray, grid: Grid, sigma_mm: float) -> NDArray[np.float32]:
    """A mask blurred by `sigma_mm`; at a flat boundary the value is ndtr(depth / sigma)."""
    return ndimage.gaussian_filter(mask.astype(np.float32), sigma_mm / grid.spacing_mm, mode="nearest", truncate=3)


def deeper(mask: NDArray, grid: Grid, depth_mm: float | NDArray) -> NDArray:
    """Share (0 to 1) of each voxel that lies deeper than `depth_mm` (a number, or an array) below a mask's surface.

    The depth is read from the blurred mask. It is exact below a flat surface and too small below a bulging one.
    """
    sigma = max(1.5, 0.7 * grid.spacing_mm, float(np.max(depth_mm)) / 1.4)
    depth = sigma * special.ndtri(np.clip(soften(mask, grid, sigma), 1e-4, 1 - 1e-4))
    return np.clip((depth - depth_mm) / grid.spacing_mm + 0.5, 0, 1)


class Motion:
    """Where in the label map each point of the new patient comes from: rotation, zoom and a smooth displacement.

    The motion folds nothing over. Along each axis the two B-spline fields change by at most 2 * 3 * most / knot per mm,
    together below 1 (Rueckert et al. 1999, https://doi.org/10.1109/42.796284). The determinant of the linear part is
    positive, so left stays left.
    """

    def __init__(self, low_mm: NDArray, high_mm: NDArray, rng: np.random.Generator) -> None:
        """low_mm, high_mm: corners of the label map"""
        self.centre = (np.asarray(low_mm) + high_mm) / 2
        angles = np.deg2rad(rng.normal(0, [2, 2, 4]))
        zoom = rng.uniform(0.86, 1.14) * rng.uniform(0.93, 1.07, 3)
        self.matrix = rotation(angles) @ np.diag(1 / zoom)  # offset in the patient -> offset in the map
        self.low = np.asarray(low_mm) - MARGIN_MM
        self.control = []
        for knot, most in zip(KNOT_MM, MOST_MM):
            counts = np.ceil((np.asarray(high_mm) + MARGIN_MM - self.low) / knot).astype(int) + 3
            self.control.append(rng.uniform(-most, most, (3, *counts)).astype(np.float32))

    def reach(self, low_mm: NDArray, high_mm: NDArray) -> tuple[NDArray, NDArray]:
        """Corners of a box of the patient that holds everything that a box of the map becomes."""
        corners = np.array(np.meshgrid(*zip(low_mm, high_mm))).reshape(3, -1).T - self.centre
        moved = corners @ np.linalg.inv(self.matrix).T + self.centre
        return moved.min(axis=0) - sum(MOST_MM), moved.max(axis=0) + sum(MOST_MM)

    def planes(self, grid: Grid) -> Iterator[NDArray[np.float32]]:
        """Yield for each plane of axis 0 the points of the map that its voxels come from, (3, H, W) in mm."""
        x, y, z = grid.axes()
        parts = []
        for knot, control in zip(KNOT_MM, self.control):
            wx, wy, wz = (_splines(np.clip(axis, low, low + knot * (count - 4)), low, knot, count)
                          for axis, low, count in zip((x, y, z), self.low, control.shape[1:]))
            parts.append((wx, np.einsum("hb,wc,iabc->aihw", wy, wz, control, optimize=True)))
        matrix, centre = self.matrix.astype(np.float32), self.centre.astype(np.float32)
        plane = (matrix[:, 1, None, None] * (y - centre[1])[:, None] + matrix[:, 2, None, None] * (z - centre[2])[None]
                 + centre[:, None, None])                                         # the part that does not depend on x
        for i, xi in enumerate(x):
            points = plane + (matrix[:, 0] * (xi - centre[0]))[:, None, None]
            for wx, control in parts:
                for a in np.flatnonzero(wx[i]):
                    points += wx[i, a] * control[a]
            yield points


def move(labels: NDArray, affine: NDArray, grid: Grid, motion: Motion) -> NDArray:
    """The label map of the new patient on a grid, by nearest neighbour; 0 outside the map.

    labels: (D, H, W) integers in RAS+, affine (4, 4)
    """
    moved = np.zeros(grid.shape, labels.dtype)
    to_index = np.linalg.inv(affine).astype(np.float32)
    for i, points in enumerate(motion.planes(grid)):
        index = np.einsum("ij,jhw->ihw", to_index[:3, :3], points) + to_index[:3, 3, None, None]
        index = np.rint(index).astype(np.int32)
        inside = ((index >= 0) & (index < np.array(labels.shape)[:, None, None])).all(axis=0)
        moved[i][inside] = labels[tuple(index[:, inside])]
    return moved


def _distance_mm(mask: NDArray, grid: Grid) -> NDArray:
    """Distance (mm) of each voxel of a mask to the nearest voxel outside it; infinite where there is none outside."""
    return ndimage.distance_transform_edt(mask, grid.spacing_mm) if not mask.all() else np.full(mask.shape, np.inf)


def swell(labels: NDArray, ids: dict[str, int], grid: Grid, rng: np.random.Generator) -> None:
    """Make hollow organs emptier or fuller, unevenly; changes `labels` in place.

    An organ grows only into voxels without a label (0); the voxels that it leaves have no label afterwards.
    labels: (D, H, W) ids of structures on the grid; ids: {structure: id}
    """
    for structure, (inwards, outwards) in SWELLING_MM.items():
        amount, seed = rng.uniform(-1, 1), rng.integers(2 ** 32)  # drawn whether the organ is in view or not
        box = bounding_box(labels == ids.get(structure, -1), int(np.ceil(outwards / grid.spacing_mm)) + 1)
        if box is None:
            continue
        mask, free = labels[box] == ids[structure], labels[box] == 0
        inside, outside = _distance_mm(mask, grid), _distance_mm(~mask, grid)
        height = inside - outside                                               # mm inside the wall, negative outside
        uneven = 1 + 0.4 * field(grid.axes(box), 60.0, np.random.default_rng(seed))
        by_mm = amount * (inwards if amount < 0 else outwards) * uneven
        # The wall lies in the middle between the centres of two voxels: half a voxel is no movement.
        new = height + by_mm > np.where(mask, 0.5, -0.5) * grid.spacing_mm
        labels[box][mask & ~new] = 0
        labels[box][free & new] = ids[structure]


def upsample(coarse: NDArray, coarse_grid: Grid, grid: Grid) -> NDArray:
    """Interpolate an array of a coarse grid linearly on a fine one; outside the coarse grid its edge is repeated."""
    for axis, (axis_mm, low, size) in enumerate(zip(grid.axes(), coarse_grid.origin_mm, coarse.shape)):
        index = np.clip((axis_mm - low) / coarse_grid.spacing_mm, 0, size - 1)
        below = np.minimum(index.astype(int), size - 2)
        weight = (index - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(below, axis) * (1 - weight) + coarse.take(below + 1, axis) * weight
    return coarse
