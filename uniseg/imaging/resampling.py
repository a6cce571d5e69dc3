"""Resampling from one grid to another and back, plane by plane."""

import math

import numpy as np

from .bits import bounding_box
from .byte_stream import VolumeError
from .nifti import format_mm
from .volume import MAX_VOXELS, voxel_size_mm


def resampled_shape(shape, spacing_mm, new_spacing_mm):
    """Shape of the grid of `new_spacing_mm` that covers the same field of view; at least one voxel an axis.

    >>> resampled_shape((512, 512, 300), (0.8, 0.8, 1.0), 1.5)
    (273, 273, 200)
    """
    ratios = np.broadcast_to(spacing_mm, 3) / np.broadcast_to(new_spacing_mm, 3)
    new_shape = tuple(max(1, round(float(n * ratio))) for n, ratio in zip(shape, ratios))
    if math.prod(new_shape) > MAX_VOXELS:
        raise VolumeError(f"voxels of {format_mm(spacing_mm)} mm make a grid of {new_shape} at "
                          f"{format_mm(new_spacing_mm)} mm, more than {MAX_VOXELS:,} voxels. Check its voxel size.")
    return new_shape


def resample(array, affine, new_spacing_mm, shape=None, antialias=False, dtype=np.float32):
    """Resample linearly; both grids share the centre of the field of view, so that resampling commutes with flips.

    array:     (D, H, W)  any numeric type
    shape:     of the result; default `resampled_shape`
    antialias: average over the new voxel (a triangle of half-width new / old spacing) where the new grid is coarser
    returns:   (D', H', W') of `dtype`, Fortran order, and its affine
    """
    spacing, target = voxel_size_mm(affine), np.broadcast_to(np.asarray(new_spacing_mm, float), 3)
    shape = tuple(shape) if shape is not None else resampled_shape(array.shape, spacing, target)
    taps = [_taps(*sizes, antialias) for sizes in zip(array.shape, shape, target / spacing)]
    return _separable(array, taps, dtype), _same_centre(affine, array.shape, shape, target / spacing)


def _same_centre(affine, shape, new_shape, ratio):
    """Affine of the grid whose voxels are `ratio` times as large and whose centre is the same point."""
    affine = np.asarray(affine, float)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * ratio
    new[:3, 3] += affine[:3, :3] @ ((np.array(shape) - 1) / 2) - new[:3, :3] @ ((np.array(new_shape) - 1) / 2)
    return new


def _taps(n, new_n, ratio, antialias=False):
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


def _separable(array, taps, dtype=np.float32):
    """Apply the taps of the three axes, along the last one, the slowest of a NIfTI file; besides the result it holds a few planes.

    Each input plane is first resampled inside the plane (and kept as long as the next output plane needs it), then
    the planes are mixed. The order of axes is the same for any layout in memory, and so is every rounding: a file stored
    with its axes permuted gives the same voxels.
    """
    order = (2, 1, 0)                                                                   # slowest, middle, fastest
    planes, (slow, rows, columns) = array.transpose(order), [taps[axis] for axis in order]
    result = np.empty([len(index) for index, _ in taps], dtype, order="F")
    kept = {}                                                                           # input plane -> resampled plane
    for out, index, weight in zip(result.transpose(order), *slow):
        needed = {k: weight[index == k].sum() for k in dict.fromkeys(index[weight > 0].tolist())}
        kept = {k: kept[k] if k in kept else _resample_plane(planes[k], rows, columns) for k in needed}
        mixed = sum(kept[k] * needed[k] for k in needed)
        out[...] = np.rint(mixed) if out.dtype.kind in "iu" else mixed
    return result


def _resample_plane(plane, rows, columns):
    """One plane (rows, columns) as float32; the axis that shrinks goes first, there is less to do then."""
    plane = plane.astype(np.float32)
    if len(rows[0]) < plane.shape[0]:
        return _mix(_mix(plane, rows, axis=0), columns, axis=1)
    return _mix(_mix(plane, columns, axis=1), rows, axis=0)


def _mix(plane, taps, axis):
    index, weight = taps                                                                # (n, K), (n, K)
    weight = weight[:, None, :] if axis == 0 else weight[None, :, :]
    mixed = plane.take(index[:, 0], axis) * weight[..., 0]
    for tap in range(1, index.shape[1]):
        mixed += plane.take(index[:, tap], axis) * weight[..., tap]
    return mixed


def _within(taps, start, size):
    """Taps on a crop of the input that is 0 outside: the outputs it can reach (slice), and their taps on the crop."""
    index, weight = taps
    weight = np.where((index >= start) & (index < start + size), weight, np.float32(0))
    reached = np.flatnonzero(weight.any(axis=1))
    outputs = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
    return outputs, (np.clip(index[outputs] - start, 0, size - 1), weight[outputs])


def resample_back(values, start, model_shape, native_shape, model_affine, native_affine, planes=32):
    """Bring one class from the model's grid back to the native grid, the inverse geometry of `resample`, linearly.

    values: (d, h, w)  crop of a volume of `model_shape` that is 0 elsewhere
    start:  (3,)       index of its first voxel in that volume
    yields: slices into the native RAS+ array, and the values (float32, Fortran order) there, at most `planes` planes of
            axis 2 at a time; native voxels that are not visited are 0
    """
    ratio = voxel_size_mm(native_affine) / voxel_size_mm(model_affine)
    boxes, taps = zip(*(_within(_taps(n, native_n, r), first, size) for n, native_n, r, first, size
                        in zip(model_shape, native_shape, ratio, start, values.shape)))
    if 0 in (box.stop - box.start for box in boxes):
        return
    index, weight = taps[2]
    for at in range(0, len(index), planes):
        part = slice(at, min(at + planes, len(index)))
        low, high = index[part].min(), index[part].max() + 1
        block = np.asfortranarray(values[:, :, low:high])
        native = (*boxes[:2], slice(boxes[2].start + part.start, boxes[2].start + part.stop))
        yield native, _separable(block, [*taps[:2], (index[part] - low, weight[part])])


def resample_mask(mask, affine, new_spacing_mm):
    """Resample a mask to the grid that `resample` gives, keeping its volume, so that thin structures survive.

    A new voxel is set when the mask covers half of it; where that loses volume (a vessel thinner than a voxel), the
    voxels covered most are set, as many as the volume asks for. A mask that is not empty keeps a voxel at least.
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
