"""Which part of a volume lies outside the scanner's field of view, and what the network sees there instead.

Scanners reconstruct a circle and fill the corners of the image with one value. Other tools fill with one value what a
rotation, a crop or a larger grid has left without data; many take 0, which is the HU of water. Neither is patient.
read_ct (volume.py) finds these regions once and sets them to air. The body mask, the check of the HU and the network's
input use them. The paper has no such step. Arrays are (D, H, W) in RAS+. Read bits.py and body.py first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .bits import bounding_box
from .body import coarse_steps
from .grid import every_nth_affine, every_nth_voxel, voxel_size_mm
from .hounsfield import implausible_hu

AIR_LIKE_HU = -900.0      # a constant region below may be the air around the patient, a higher one cannot
METAL_HU = 1500.0         # implants are above, and often all at the highest value of the CT
LEAST_FILL_ML = 5.0       # a smaller region is a coincidence
AGREEMENT = 0.97          # share of an axial slice in which the shape of a field of view and the voxels agree
SAME_SLICES = 0.9         # share of the slices in which the field of view has the shape that it has in all
REACH_MM = 30.0           # how far the network's input goes on beyond the field of view
CIRCLE_ERROR = 0.6        # coarse voxels, root mean square, between the field of view's edge and a circle


@dataclass(frozen=True)
class Outside:
    """What lies outside the field of view, on a coarse grid. `on_grid` brings it to a finer one."""

    mask: np.ndarray          # (d, h, w) bool, on every n-th voxel
    affine: np.ndarray        # (4, 4) of that grid, mm

    def on_grid(self, hu: np.ndarray, affine: np.ndarray, filled_with: float) -> np.ndarray:
        """The mask on another grid of the same volume, exact to the voxel.

        hu:          (D, H, W) on that grid, resampled from the volume whose outside was set to `filled_with`
        affine:      (4, 4) of that grid; its axes are parallel to those of the coarse grid
        returns:     (D, H, W) bool, Fortran order
        """
        to_coarse = np.linalg.inv(self.affine) @ np.asarray(affine, float)
        near = ndimage.binary_dilation(self.mask, np.ones((3, 3, 3), bool))
        index = [np.clip(np.rint(to_coarse[a, a] * np.arange(n) + to_coarse[a, 3]).astype(int), 0, near.shape[a] - 1)
                 for a, n in enumerate(hu.shape)]
        result = np.empty(hu.shape, bool, order="F")
        for k, plane in enumerate(index[2]):
            result[:, :, k] = near[:, :, plane][np.ix_(index[0], index[1])] & (abs(hu[:, :, k] - filled_with) < 0.5)
        return result


# ------------------------------------------------------------------------------------------------------------ finding

def find_outside(hu: np.ndarray, affine: np.ndarray, air_hu: float, notes: list[str]) -> Outside | None:
    """Find what lies outside the field of view, set it to air in `hu`, and say what is doubtful about the rest.

    hu:      (D, H, W) RAS+; changed in place where a fill is not `air_hu` already
    affine:  (4, 4), mm
    notes:   gets a sentence where the fill cannot be air, and where the values cannot be Hounsfield units
    returns: None where all of the volume has been seen
    """
    spacing_mm = voxel_size_mm(affine)
    steps = coarse_steps(spacing_mm)
    coarse = every_nth_voxel(hu, steps)
    regions = constant_regions(coarse, float(np.prod(spacing_mm * steps)) / 1000)
    lowest, highest = float(coarse.min()), float(coarse.max())
    # A clipped CT has its air at the lowest value, however high that is, and metal has the highest that can be stored.
    fills = {value: region for value, region in regions.items()
             if value > max(AIR_LIKE_HU, lowest) and not value == highest > METAL_HU}
    air = {value: region for value, region in regions.items() if value <= AIR_LIKE_HU}
    outside = np.zeros(coarse.shape, bool)
    for region in air.values():
        outside |= region
    outside = beyond_the_view(outside)
    for value, region in fills.items():
        notes.append(f"{region.mean():.0%} of the volume, up to its border, has the one value {value:g}. That cannot "
                     "be patient; it is read as air")
        outside |= region
    if doubt := implausible_hu(coarse[~outside]):
        notes.append(doubt)
    if not outside.any():
        return None
    found = Outside(outside, every_nth_affine(affine, steps))
    for value in {**fills, **air}:
        if value != air_hu:
            np.copyto(hu, air_hu, where=found.on_grid(hu, affine, value), casting="unsafe")
    return found


def constant_regions(coarse: np.ndarray, voxel_ml: float) -> dict[float, np.ndarray]:
    """The connected regions of one exact value that reach a face of the volume: {value: (d, h, w) bool}.

    A region has to hold a block of three voxels a side, or of two at a face: in noise, and in a CT of few grey levels,
    neighbours share a value by chance, but not as many. A constant volume has no such region.
    """
    # A block is the centre of voxels that are all the same. Beyond a face the volume counts as going on.
    blocks = ndimage.maximum_filter(coarse, 3, mode="nearest") == ndimage.minimum_filter(coarse, 3, mode="nearest")
    regions: dict[float, np.ndarray] = {}
    if blocks.all():
        return regions
    for value in np.unique(coarse[blocks]):
        labels, count = ndimage.label(coarse == value)
        large = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml >= LEAST_FILL_ML
        at_face = np.concatenate([labels.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
        kept = np.intersect1d(labels[blocks & (coarse == value)], at_face)
        kept = kept[large[kept]]
        if kept.size:
            regions[float(value)] = np.isin(labels, kept)
    return regions


def beyond_the_view(air: np.ndarray) -> np.ndarray:
    """The part of a constant, air-like region that lies beyond a field of view, and is not air around the patient.

    A field of view is a circle or a rectangle, and the same in all axial slices. The outline of a patient is neither.

    air:     (d, h, w) bool
    returns: (d, h, w) bool
    """
    never_seen = np.asarray(air.all(axis=2))                # (d, h)
    box = bounding_box(~never_seen)
    same = np.mean(air != never_seen[:, :, None], axis=(0, 1)) <= 1 - AGREEMENT
    if box is not None and never_seen.any() and same.mean() >= SAME_SLICES:
        for view in (_rectangle(box, never_seen.shape), _circle(~never_seen)):
            if view is not None and not view.all() and np.mean(view != never_seen) >= AGREEMENT:
                return air & ~view[:, :, None]
    return np.zeros_like(air)


def _rectangle(box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    view = np.zeros(shape, bool)
    view[box] = True
    return view


def _circle(seen: np.ndarray) -> np.ndarray | None:
    """The circle that fits the edge of what is seen best (least squares, I. Kasa, IEEE Trans. Instrum. Meas. 1976).

    returns: (d, h) bool, or None where the edge is no circle
    """
    edge = np.argwhere(seen & ndimage.binary_dilation(~seen)).astype(float)
    if len(edge) < 8:
        return None
    system = np.column_stack([2 * edge, np.ones(len(edge))])
    (x, y, c), *_ = np.linalg.lstsq(system, (edge ** 2).sum(axis=1), rcond=None)
    radius = np.sqrt(max(c + x ** 2 + y ** 2, 0.0))
    distance = np.hypot(*(edge - (x, y)).T)
    if np.sqrt(np.mean((distance - radius) ** 2)) > CIRCLE_ERROR:
        return None
    i, j = np.ogrid[:seen.shape[0], :seen.shape[1]]
    return np.hypot(i - x, j - y) <= radius + 0.5             # the edge's voxels are within


# ---------------------------------------------------------------------------------------------------------- continuing

def continued(hu: np.ndarray, outside: np.ndarray, body: np.ndarray,
              spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """The volume continued by REACH_MM beyond the field of view where that cuts the patient; elsewhere it stays.

    Beyond its field of view a patient goes on, and the network does better with a guess than with air at once. In each
    slice in which the body is cut, a voxel takes the value of its mirror image at the nearest edge, or of the edge
    itself where the mirror image is outside too. The voxels at the edge are replaced as well, since resampling has
    mixed them with the fill. Slices without a voxel inside repeat the nearest slice with one.

    hu:            (D, H, W); not changed
    outside, body: (D, H, W) bool
    spacing_mm:    (3,) voxel size
    returns:       `hu` itself where the body is cut nowhere
    """
    result = hu
    last, source = None, (np.empty(0, int), np.empty(0, int))
    seen = np.flatnonzero(~outside.all(axis=(0, 1)))
    for k in seen:
        blank = ndimage.binary_dilation(outside[:, :, k])
        if blank.all() or not (ndimage.binary_dilation(blank) & body[:, :, k]).any():
            continue
        if result is hu:
            result = hu.copy(order="K")
        if last is None or not np.array_equal(blank, last):   # most fields of view are the same in all slices
            last, source = blank, _mirrored(blank, spacing_mm[:2])
        result[:, :, k] = hu[:, :, k][source]
    for k in np.setdiff1d(np.arange(hu.shape[2]), seen) if seen.size else ():
        nearest = seen[np.argmin(abs(seen - k))]
        if abs(nearest - k) * spacing_mm[2] <= REACH_MM and body[:, :, nearest].any():
            if result is hu:
                result = hu.copy(order="K")
            result[:, :, k] = result[:, :, nearest]
    return result


def _mirrored(blank: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices (i, j) of the pixel whose value each pixel takes, its own where nothing is to be continued.

    blank: (D, H) bool, the pixels outside the field of view and at its edge
    """
    away_mm, edge = ndimage.distance_transform_edt(blank, spacing_mm, return_indices=True)
    own = np.indices(blank.shape)
    mirror = np.clip(2 * edge - own, 0, np.array(blank.shape)[:, None, None] - 1)
    i, j = np.where(away_mm > REACH_MM, own, np.where(blank[tuple(mirror)], edge, mirror))
    return i, j
