"""Where the patient's body is in a CT: without air, table and arms.

The sliding window covers the body only (sliding_window.py), and no organ is found outside it. The paper has no such
step. Arrays are (D, H, W) in RAS+, as everywhere (volume.py). Read bits.py and components.py first.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .bits import bounding_box
from .components import largest_components

COARSE_MM = 5.0         # sampling step of the body mask: organs are larger, and a CT takes a fraction of a second
TISSUE_HU = -300.0      # fat is about -100 HU; foam of the table is below -700
LUNG_HU = -950.0        # above: lung, except for severe emphysema; below: air, even of a scanner that is slightly off
FOAM_HU = -900.0        # separates a truncated lung (median about -860 HU) from table foam (below -930)
CUT_LUNG_MM2 = 300.0    # least area of a truncated lung in a slice: shells and rails of the table are thinner
ABOVE_AIR_HU = 50.0     # lung is at least this far above the minimum, for CTs clipped above LUNG_HU
ARM_SHARE, ARM_MM, ARM_GAIN_MM = 0.45, 60.0, 30.0     # see trunk_box

Spacing = Sequence[float] | np.ndarray                 # (3,) voxel size in mm


def body_mask(hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The patient without air and table, but with lungs and bowel gas. Empty where there is no body.

    hu:         (D, H, W)  RAS+
    spacing_mm: (3,)       voxel size
    returns:    (D, H, W)  bool, Fortran order. Its edge is exact to about COARSE_MM: the mask is found on every n-th
                           voxel, and each of these stands for its block.
    """
    steps = _coarse_steps(spacing_mm)
    coarse = coarse_body_mask(every_nth_voxel(hu, steps), [n * s for n, s in zip(steps, spacing_mm)])
    mask = coarse.T                                          # expanded as (W, H, D), for a result in Fortran order
    for axis in (2, 1, 0):
        within = [slice(None)] * axis + [slice(0, hu.T.shape[axis])]
        mask = np.repeat(mask, steps[2 - axis], axis=axis)[tuple(within)]
    return np.ascontiguousarray(mask).T


def _coarse_steps(spacing_mm: Spacing) -> list[int]:
    """How many voxels of each axis make a step of at most COARSE_MM; at least one."""
    return [max(1, int(COARSE_MM / s)) for s in spacing_mm]


def every_nth_voxel(array: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """One voxel per block of steps[a] voxels along axis a: the middle one (the last block may be incomplete)."""
    index = [np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(array.shape, steps)]
    return np.asarray(array[:, :, index[2]])[:, index[1]][index[0]]


def coarse_body_mask(hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """`body_mask` on a grid that is coarse already: (D, H, W) -> bool of the same shape.

    Everything above TISSUE_HU is opened in each axial slice, which cuts the table's shell off the back. The largest
    component is the body, and gets its skin back. Then holes are filled slice by slice, also where the field of view
    cuts a lung open, but not between patient and table. A constant image has no body.
    """
    tissue = hu > TISSUE_HU
    if not tissue.any() or hu.min() == hu.max():
        return np.zeros(hu.shape, bool)
    radius = max(1, round(5.0 / min(spacing_mm[:2])))               # 5 mm: the table's shell is thinner than 10 mm
    in_plane = ndimage.generate_binary_structure(2, 1)[:, :, None]
    # Outside the array counts as body while eroding, so that a body cut by the field of view keeps its edge there.
    opened = ndimage.binary_erosion(tissue, in_plane, iterations=radius, border_value=1)
    body = largest_components(opened if opened.any() else tissue)
    body = ndimage.binary_dilation(body, in_plane, iterations=radius + 1, mask=tissue)
    border, lung_hu = _field_of_view_border(hu), max(LUNG_HU, hu.min() + ABOVE_AIR_HU)
    for k in range(body.shape[2]):
        if body[:, :, k].any():
            body[:, :, k] = _fill_slice(body[:, :, k], hu[:, :, k], border, lung_hu, float(np.prod(spacing_mm[:2])))
    return body


def _fill_slice(body: np.ndarray, hu: np.ndarray, border: tuple[np.ndarray, np.ndarray], lung_hu: float,
                pixel_mm2: float) -> np.ndarray:
    """An axial slice of the body with its holes, and with the lungs that the border of the field of view cuts open.

    body, hu: (D, H)
    border:   see _field_of_view_border
    lung_hu:  HU above which air at the border is taken for lung
    """
    filled, closed = ndimage.binary_fill_holes(body), body.copy()
    closed[border] = _close_border(body[border], hu[border], lung_hu)
    added, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~filled)
    is_lung = np.asarray(ndimage.median(hu, added, range(1, count + 1))) > FOAM_HU
    is_large = np.bincount(added.ravel())[1:] * pixel_mm2 > CUT_LUNG_MM2
    return filled | np.append(False, is_lung & is_large)[added]


def _field_of_view_border(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the outermost voxels of an axial slice's field of view, in their order around it: (x (N,), y (N,)).

    The field of view is the whole slice, or the ellipse within it (a circle in a square slice) where everything beyond
    has one value: the scanner's padding, or air in a CT that is clipped.
    """
    x, y = (2 * (np.arange(n) + 0.5) / n - 1 for n in hu.shape[:2])
    radius = np.hypot(x[:, None], y)
    view, beyond = np.ones(hu.shape[:2], bool), hu[radius > 1.06]
    if beyond.size and np.ptp(beyond) < 1:                   # 1.06 and 0.97, because resampling has blurred the circle
        view = radius < 0.97
    border = np.argwhere(view & ~ndimage.binary_erosion(view))
    angle = np.arctan2(*(border + 0.5 - np.array(view.shape) / 2).T)
    x_index, y_index = border[np.argsort(angle)].T
    return x_index, y_index


def _close_border(body: np.ndarray, hu: np.ndarray, lung_hu: float = LUNG_HU) -> np.ndarray:
    """The body along the border of the field of view, closed where the border cuts a lung rather than air.

    A stretch between two pieces of body belongs to it when its median is above `lung_hu`.

    body, hu: (N,) around the field of view; the first voxel follows the last
    returns:  (N,) bool; no body anywhere means no stretch between, and nothing is added

    >>> hu = np.array([-1000, 40, -850, -900, 30, -990])
    >>> _close_border(np.array([0, 1, 0, 0, 1, 0], bool), hu).astype(int).tolist()
    [0, 1, 1, 1, 1, 0]
    """
    if not body.any():
        return body
    first = int(body.argmax())                               # a stretch begins here, or everything is body
    body, hu = np.roll(body, -first), np.roll(hu, -first)
    stretches = np.split(np.arange(body.size), np.flatnonzero(np.diff(body)) + 1)
    closed = np.concatenate([body[s] | (np.median(hu[s]) > lung_hu) for s in stretches])
    return np.roll(closed, first)


def trunk_box(body: np.ndarray, spacing_mm: Spacing, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """The bounding box of the body without arms beside it; None where there is no body.

    With arms beside the trunk, windows laid over the whole body show half a trunk, an arm and the air between them.
    An arm is thinner than the trunk: a disk of ARM_SHARE of the radius of the trunk's widest disk (at most ARM_MM) fits
    into axial slices of the trunk, but not of an arm. The box ends where such disks end, on those sides of x and y
    where that gains ARM_GAIN_MM. On the other sides it is the bounding box of the body.

    body:    (D, H, W) bool, RAS+, of body_mask
    margin:  voxels by which the box is larger, where the array allows
    returns: slices of the three axes
    """
    box = bounding_box(body, margin)
    if box is None:
        return None
    steps = _coarse_steps(spacing_mm)
    coarse = every_nth_voxel(body, steps)
    coarse_mm = [n * s for n, s in zip(steps, spacing_mm)]
    # Distance to air in the slice. Beyond the array there is no air: a body that the field of view cuts goes on.
    depth = np.stack([ndimage.distance_transform_edt(plane, coarse_mm[:2]) if not plane.all()
                      else np.full(plane.shape, np.inf) for plane in np.moveaxis(coarse, 2, 0)], axis=2)
    radius_mm = min(ARM_MM, ARM_SHARE * depth.max())
    core, sides = bounding_box(depth >= radius_mm), list(box)
    assert core is not None                                  # the widest disk is among them
    for axis in (0, 1):
        low = core[axis].start * steps[axis] - int(radius_mm / spacing_mm[axis]) - margin
        high = core[axis].stop * steps[axis] + int(radius_mm / spacing_mm[axis]) + margin
        gain = ARM_GAIN_MM / spacing_mm[axis]
        sides[axis] = slice(low if low - box[axis].start > gain else box[axis].start,
                            high if box[axis].stop - high > gain else box[axis].stop)
    return sides[0], sides[1], sides[2]
