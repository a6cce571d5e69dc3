"""Where the patient's body is: without air, table and arms."""

import numpy as np
from scipy import ndimage

from .bits import bounding_box
from .components import largest_components

COARSE_MM = 5.0         # sampling step for the body mask: organs are larger, and a CT takes a fraction of a second
LUNG_HU = -950.0        # above: lung, but for severe emphysema; below: air, of a scanner that is a little off too
FOAM_HU = -900.0        # a cut lung's median is above, -860 on a real CT; that of the table's foam and the air about it below, -930 and less
CUT_LUNG_MM2 = 300.0    # least of a cut lung in a slice: shells and rails of the table are thinner
ABOVE_AIR_HU = 50.0     # lung is so much above the lowest value at least: air, where a CT is clipped at more than LUNG_HU
ARM_SHARE, ARM_MM, ARM_GAIN_MM = 0.45, 60.0, 30.0     # see trunk_box


def body_mask(hu, spacing_mm, threshold_hu=-300.0):
    """The patient without air and table, lungs and bowel gas included. Empty where there is no body.

    hu:         (D, H, W)  RAS+
    returns:    (D, H, W)  bool; its edge is exact to about COARSE_MM, as the mask is found on every n-th voxel and
                           each of those stands for its block

    Steps: threshold (fat is about -100 HU, foam of the table below -700), an opening in each axial slice (cuts the
    table's shell off the back), the largest component, its skin back, holes filled slice by slice, lungs that the
    field of view cuts among them, table and air behind the patient not. A constant image has no body.
    """
    steps = [max(1, int(COARSE_MM / s)) for s in spacing_mm]
    coarse = coarse_body(every_nth(hu, steps), [n * s for n, s in zip(steps, spacing_mm)], threshold_hu)
    mask = coarse.T                                                 # expanded as (W, H, D): the result is in Fortran order
    for axis in (2, 1, 0):
        keep = [slice(None)] * axis + [slice(0, hu.T.shape[axis])]
        mask = np.repeat(mask, steps[2 - axis], axis=axis)[tuple(keep)]
    return np.ascontiguousarray(mask).T


def every_nth(array, steps):
    """Each steps[a]-th voxel of axis a, from the middle of its block (the last block may be a part)."""
    index = [np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(array.shape, steps)]
    return np.asarray(array[:, :, index[2]])[:, index[1]][index[0]]


def coarse_body(hu, spacing_mm, threshold_hu):
    tissue = hu > threshold_hu
    if not tissue.any() or hu.min() == hu.max():
        return np.zeros(hu.shape, bool)
    radius = max(1, round(5.0 / min(spacing_mm[:2])))               # 5 mm: the table's shell is thinner than 10 mm
    in_plane = ndimage.generate_binary_structure(2, 1)[:, :, None]
    # Outside the array counts as body while eroding, so that a body cut by the field of view keeps its edge there.
    opened = ndimage.binary_erosion(tissue, in_plane, iterations=radius, border_value=1)
    body = largest_components(opened if opened.any() else tissue)
    body = ndimage.binary_dilation(body, in_plane, iterations=radius + 1, mask=tissue)
    border, limit = _border(hu), max(LUNG_HU, hu.min() + ABOVE_AIR_HU)
    for k in range(body.shape[2]):
        plane, values = body[:, :, k], hu[:, :, k]
        if plane.any():
            filled, closed = ndimage.binary_fill_holes(plane), plane.copy()
            closed[border] = _closed(plane[border], values[border], limit)
            more, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~filled)
            lung = np.asarray(ndimage.median(values, more, range(1, count + 1))) > FOAM_HU
            large = np.bincount(more.ravel())[1:] * np.prod(spacing_mm[:2]) > CUT_LUNG_MM2
            body[:, :, k] = filled | np.append(False, lung & large)[more]
    return body


def _border(hu):
    """Index of an axial plane's outermost voxels of the field of view, in their order around it: (x (N,), y (N,)).

    The field of view is the plane, or the ellipse within it (a circle in a square plane) where all beyond has one value: the
    scanner's padding, or air of a CT that is clipped.
    """
    x, y = (2 * (np.arange(n) + 0.5) / n - 1 for n in hu.shape[:2])
    radius = np.hypot(x[:, None], y)
    view, beyond = np.ones(hu.shape[:2], bool), hu[radius > 1.06]
    if beyond.size and np.ptp(beyond) < 1:                          # 1.06 and 0.97 of the radius: resampling has blurred the circle
        view = radius < 0.97
    border = np.argwhere(view & ~ndimage.binary_erosion(view))
    angle = np.arctan2(*(border + 0.5 - np.array(view.shape) / 2).T)
    return tuple(border[np.argsort(angle)].T)


def _closed(body, hu, limit=LUNG_HU):
    """The body where the field of view ends, with the stretches between where it cuts a lung and not the air.

    body, hu:   (N,) around the field of view; the first voxel follows the last
    limit:      HU above which the median of a stretch is a lung's
    returns:    (N,) bool; nothing where there is no body, for then there is no stretch between

    >>> _closed(np.array([0, 1, 0, 0, 1, 0], bool), np.array([-1000, 40, -850, -900, 30, -990])).astype(int).tolist()
    [0, 1, 1, 1, 1, 0]
    """
    if not body.any():
        return body
    first = int(body.argmax())                                      # a stretch begins here, or all is body
    body, hu = np.roll(body, -first), np.roll(hu, -first)
    stretches = np.split(np.arange(body.size), np.flatnonzero(np.diff(body)) + 1)
    closed = np.concatenate([body[s] | (np.median(hu[s]) > limit) for s in stretches])
    return np.roll(closed, first)


def trunk_box(body, spacing_mm, margin=0):
    """bounding_box of the body without arms at its sides; None where there is no body.

    body:    (D, H, W) bool, RAS+, of body_mask
    returns: slices of three axes, `margin` voxels wider where the array allows

    With arms beside the trunk, windows laid over the whole body show half a trunk, an arm and the air between them. The arm
    is thinner: a disk of ARM_SHARE of the radius of the trunk's widest disk (at most ARM_MM) fits into axial slices of the trunk,
    not of the arm. The box ends where such disks do, on sides of x and y where that gains ARM_GAIN_MM; elsewhere it is that of the body.
    """
    box = bounding_box(body, margin)
    if box is None:
        return None
    steps = [max(1, int(COARSE_MM / s)) for s in spacing_mm]
    coarse = every_nth(body, steps)
    scale = [n * s for n, s in zip(steps, spacing_mm)]
    # Distance to air in the slice; beyond the array there is none, as a body that the field of view cuts goes on.
    depth = np.stack([ndimage.distance_transform_edt(plane, scale[:2]) if not plane.all() else np.full(plane.shape, np.inf)
                      for plane in np.moveaxis(coarse, 2, 0)], axis=2)
    radius = min(ARM_MM, ARM_SHARE * depth.max())
    core, box = bounding_box(depth >= radius), list(box)
    for axis in (0, 1):
        low = core[axis].start * steps[axis] - int(radius / spacing_mm[axis]) - margin
        high = core[axis].stop * steps[axis] + int(radius / spacing_mm[axis]) + margin
        gain = ARM_GAIN_MM / spacing_mm[axis]
        box[axis] = slice(low if low - box[axis].start > gain else box[axis].start,
                          high if box[axis].stop - high > gain else box[axis].stop)
    return tuple(box)
