"""Resampling from one grid to another and back, plane by plane (Section 4.1.2: 1.5 mm isotropic voxels).

Two grids of one volume share the centre of their field of view. Read volume.py first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .bits import Box, bounding_box
from .byte_stream import VolumeError
from .grid import voxel_size_mm
from .limits import MAX_VOXELS
from .nifti import format_mm

MAX_FIELD_MM = 3000.0          # along each axis; CT scanners reach 2200 mm along the patient, and 1000 mm across
FREE_VOXELS = 1 << 26          # a grid of up to this many voxels (0.6 m cubed at 1.5 mm) is made of any CT;
MOST_FINER = 64                # a larger one has at most this many times the voxels of its CT: 6 mm become 1.5 mm
MOST_COARSER = 1000.0          # times, along one axis: 0.0015 mm become 1.5 mm

Spacing = float | Sequence[float] | np.ndarray         # mm, one for all axes or one per axis
Taps = tuple[np.ndarray, np.ndarray]                   # along one axis: see _taps


def resampled_shape(shape: Sequence[int], spacing_mm: Spacing, new_spacing_mm: Spacing) -> tuple[int, int, int]:
    """Shape of the grid of `new_spacing_mm` that covers the same field of view, with at least one voxel per axis.

    Raises VolumeError where no CT has such a field of view, or where a few voxels would become very many.

    >>> resampled_shape((512, 512, 300), (0.8, 0.8, 1.0), 1.5)
    (273, 273, 200)
    """
    ratios = np.broadcast_to(spacing_mm, 3) / np.broadcast_to(new_spacing_mm, 3)
    depth, height, width = (max(1, round(float(n * ratio))) for n, ratio in zip(shape, ratios))
    new_shape = depth, height, width
    field_mm = np.broadcast_to(spacing_mm, 3) * shape
    most = min(MAX_VOXELS, max(FREE_VOXELS, MOST_FINER * math.prod(map(int, shape))))
    fault = (f"a field of view of {format_mm(field_mm)} mm" if field_mm.max() > MAX_FIELD_MM else
             f"more than {most:,} voxels" if math.prod(new_shape) > most else
             f"each as long as {1 / ratios.min():,.0f} of them" if ratios.min() < 1 / MOST_COARSER else "")
    if fault:
        raise VolumeError(f"voxels of {format_mm(spacing_mm)} mm make a grid of {new_shape} at "
                          f"{format_mm(new_spacing_mm)} mm, {fault}. Check its voxel size.")
    return new_shape


def resample(array: np.ndarray, affine: np.ndarray, new_spacing_mm: Spacing, shape: Sequence[int] | None = None,
             antialias: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Resample linearly. Both grids share the centre of the field of view, so that resampling commutes with flips.

    array:     (D, H, W)  any numeric type
    shape:     of the result; default `resampled_shape`
    antialias: average over the new voxel (a triangle of half-width new / old spacing) where the new grid is coarser
    returns:   (D', H', W') float32, Fortran order, and its affine
    """
    spacing, target = voxel_size_mm(affine), np.broadcast_to(np.asarray(new_spacing_mm, float), 3)
    new_shape = tuple(shape) if shape is not None else resampled_shape(array.shape, spacing, target)
    taps = [_taps(*sizes, antialias) for sizes in zip(array.shape, new_shape, target / spacing)]
    return _separable(array, taps), _same_centre(affine, array.shape, new_shape, target / spacing)


def _same_centre(affine: np.ndarray, shape: Sequence[int], new_shape: Sequence[int], ratio: np.ndarray) -> np.ndarray:
    """Affine of the grid whose voxels are `ratio` times as large and whose centre is the same point."""
    affine = np.asarray(affine, float)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * ratio
    new[:3, 3] += affine[:3, :3] @ ((np.array(shape) - 1) / 2) - new[:3, :3] @ ((np.array(new_shape) - 1) / 2)
    return new


def _taps(n: int, new_n: int, ratio: float, antialias: bool = False) -> Taps:
    """Which input voxels make each output voxel along one axis, and with which weights.

    The centre of output voxel j lies at input coordinate (j - (new_n - 1) / 2) * ratio + (n - 1) / 2. The weights are a
    triangle around it; outside the input its edge voxel is repeated.
    returns: index (new_n, K) int, weight (new_n, K) float32; K = 2 for linear interpolation
    """
    half_width = max(1.0, float(ratio)) if antialias else 1.0
    at = (np.arange(new_n) - (new_n - 1) / 2) * float(ratio) + (n - 1) / 2              # (new_n,)
    first = np.floor(at - half_width).astype(int) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * half_width)))                    # (new_n, K)
    weight = np.maximum(0.0, 1.0 - np.abs(index - at[:, None]) / half_width)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, n - 1), weight.astype(np.float32)


def _separable(array: np.ndarray, taps: Sequence[Taps]) -> np.ndarray:
    """Apply the taps of the three axes, plane by plane along the last axis, the slowest one of a NIfTI file.

    Each input plane is first resampled inside the plane (and kept as long as the next output plane needs it), then
    the planes are mixed. Besides the result only a few planes are held in memory. The order of axes is the same for
    any layout in memory, and so is every rounding: a file stored with its axes permuted gives the same voxels.

    array:   (D, H, W)
    returns: float32, Fortran order
    """
    order = (2, 1, 0)                                                                   # slowest, middle, fastest
    planes, (slow, rows, columns) = array.transpose(order), [taps[axis] for axis in order]
    result = np.empty([len(index) for index, _ in taps], np.float32, order="F")
    kept: dict[int, np.ndarray] = {}                                                    # input plane -> resampled plane
    for out, index, weight in zip(result.transpose(order), *slow):
        needed = {k: weight[index == k].sum() for k in dict.fromkeys(index[weight > 0].tolist())}
        kept = {k: kept[k] if k in kept else _resample_plane(planes[k], rows, columns) for k in needed}
        out[...] = sum(kept[k] * needed[k] for k in needed)
    return result


def _resample_plane(plane: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """One plane (rows, columns) as float32. An axis that shrinks goes first, which leaves less to do for the other."""
    plane = plane.astype(np.float32)
    if len(rows[0]) < plane.shape[0]:
        return _mix(_mix(plane, rows, axis=0), columns, axis=1)
    return _mix(_mix(plane, columns, axis=1), rows, axis=0)


def _mix(plane: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """Apply taps along one axis of a plane."""
    index, weight = taps                                                                # (n, K), (n, K)
    weight = weight[:, None, :] if axis == 0 else weight[None, :, :]
    mixed = plane.take(index[:, 0], axis) * weight[..., 0]
    for tap in range(1, index.shape[1]):
        mixed += plane.take(index[:, tap], axis) * weight[..., tap]
    return mixed


def _within(taps: Taps, start: int, size: int) -> tuple[slice, Taps]:
    """Taps for a crop of an input that is 0 outside the crop.

    start, size: of the crop along this axis
    returns:     the outputs that the crop can reach, and their taps on the crop
    """
    index, weight = taps
    weight = np.where((index >= start) & (index < start + size), weight, np.float32(0))
    reached = np.flatnonzero(weight.any(axis=1))
    outputs = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
    return outputs, (np.clip(index[outputs] - start, 0, size - 1), weight[outputs])


class WayBack(NamedTuple):
    """How a box of the model's grid, or some of its planes, come to the native grid by linear interpolation."""

    native: Box                    # the native voxels that the box reaches; all others are 0
    taps: Sequence[Taps]           # of each axis, on the voxels of the box
    needs: slice                   # the planes of the box, along axis 2, that these native voxels are made of

    def within(self, planes: slice) -> "WayBack | None":
        """The part of the way to these native planes, or None where it reaches none of them; its `native` begins at
        the first of the planes."""
        x, y, z = self.native
        low, high = max(z.start, planes.start), min(z.stop, planes.stop)
        if low >= high or x.start == x.stop or y.start == y.stop:
            return None
        index, weight = (of_axis[low - z.start:high - z.start] for of_axis in self.taps[2])
        needs = slice(int(index.min()), int(index.max()) + 1)
        return WayBack((x, y, slice(low - planes.start, high - planes.start)),
                       (*self.taps[:2], (index - needs.start, weight)), needs)

    def resample(self, values: np.ndarray) -> np.ndarray:
        """The values (float32, Fortran order) of the voxels `native`. values: those of the planes `needs` of the box"""
        return _separable(values, self.taps)


def way_back(box: Box, model_shape: Sequence[int], native_shape: Sequence[int], model_affine: np.ndarray,
             native_affine: np.ndarray) -> WayBack:
    """The inverse of `resample` for a volume of `model_shape` that is 0 outside a box.

    Where the native voxels are so coarse that none of them sees the box, it reaches no plane.
    """
    ratio = voxel_size_mm(native_affine) / voxel_size_mm(model_affine)
    native, taps = zip(*(_within(_taps(n, native_n, r), part.start, part.stop - part.start)
                         for n, native_n, r, part in zip(model_shape, native_shape, ratio, box)))
    return WayBack(native, taps, slice(0, box[2].stop - box[2].start))


def resample_mask(mask: np.ndarray, affine: np.ndarray, new_spacing_mm: Spacing) -> np.ndarray:
    """Resample a mask to the grid that `resample` gives, keeping its volume, so that thin structures survive.

    A new voxel is set when the mask covers half of it. Where that loses volume (a vessel thinner than a voxel), the
    voxels that the mask covers most are set, as many as the volume requires. A mask that is not empty keeps at least
    one voxel.

    mask:    (D, H, W) bool
    returns: (D', H', W') bool, Fortran order
    """
    spacing, target = voxel_size_mm(affine), np.broadcast_to(np.asarray(new_spacing_mm, float), 3)
    shape = resampled_shape(mask.shape, spacing, target)
    result = np.zeros(shape, bool, order="F")
    box = bounding_box(mask)
    if box is None:
        return result
    boxes, taps = zip(*(_within(_taps(n, new_n, ratio, antialias=True), part.start, part.stop - part.start)
                        for n, new_n, ratio, part in zip(mask.shape, shape, target / spacing, box)))
    coverage = _separable(mask[box], taps)
    wanted = max(1, round(float(np.count_nonzero(mask[box]) * np.prod(spacing / target))))
    covered = coverage[coverage > 0]
    wanted = min(wanted, covered.size)
    least = min(0.5, np.partition(covered, -wanted)[-wanted])
    result[boxes] = coverage > least - 1e-4                   # equally covered voxels stay together despite rounding
    result[boxes] &= coverage > 0
    return result
