"""Where the patient's body is in a CT: without air, table and arms.

The sliding window covers the body only (sliding_window.py), and no organ is found outside it. The paper has no such
step. Arrays are (D, H, W) in RAS+, as everywhere (volume.py). Read bits.py and components.py first.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from .bits import bounding_box
from .components import keep_components
from .grid import every_nth_voxel

COARSE_MM = 5.0         # sampling step of the body mask: organs are larger, and a CT takes a fraction of a second
TISSUE_HU = -300.0      # fat is about -100 HU; foam of the table is below -700
LUNG_HU = -940.0        # lung is above, but for emphysema; air is below, even of a scanner that is slightly off
TOUCHES = 0.1           # share of the pixels around a lung that are of the body, at least;
WALLED = 0.1            # share of them that may be air, which foam, blankets and cushions have beside them,
MOST_OPEN = 0.4         # also where the field of view cuts a lung that does not lie behind the body
CUT_LUNG_MM2 = 300.0    # least area of a truncated lung in a slice: shells and rails of the table are thinner
ABOVE_AIR_HU = 50.0     # lung is at least this far above the lowest HU, for CTs that are clipped
CLIP_MARGIN_HU = 20.0   # tissue is at least this far above the lowest HU of a CT that is clipped above TISSUE_HU
CLIPPED_HU = -50.0      # the highest HU at which a CT can be clipped and still show fat
PART_OF_BODY = 0.2      # of the largest component's size; a smaller one is table, or an arm
CLOSE_MM = 20.0         # a gap of this width in the wall of a cavity is closed
IN_HULL = 0.8           # share of a cavity that lies within the convex hull of the body in its slice
ARM_SHARE, ARM_MM, ARM_GAIN_MM = 0.45, 60.0, 30.0     # see trunk_box

IN_PLANE = ndimage.generate_binary_structure(2, 1)[:, :, None]     # the neighbours within an axial slice

Spacing = Sequence[float] | np.ndarray                 # (3,) voxel size in mm


def body_mask(hu: np.ndarray, spacing_mm: Spacing, outside: np.ndarray | None = None) -> np.ndarray:
    """The patient without air and table, but with lungs and bowel gas. Empty where there is no body.

    hu:         (D, H, W)  RAS+
    spacing_mm: (3,)       voxel size
    outside:    (D, H, W)  bool, what lies outside the field of view (field_of_view.py); None: nothing
    returns:    (D, H, W)  bool, Fortran order. Its edge is exact to about COARSE_MM: the mask is found on every n-th
                           voxel, and each of these stands for its block.
    """
    steps = coarse_steps(spacing_mm)
    coarse_outside = None if outside is None else every_nth_voxel(outside, steps)
    coarse = coarse_body_mask(every_nth_voxel(hu, steps), [n * s for n, s in zip(steps, spacing_mm)], coarse_outside)
    mask = coarse.T                                          # expanded as (W, H, D), for a result in Fortran order
    for axis in (2, 1, 0):
        within = [slice(None)] * axis + [slice(0, hu.T.shape[axis])]
        mask = np.repeat(mask, steps[2 - axis], axis=axis)[tuple(within)]
    mask = np.ascontiguousarray(mask).T
    return mask if outside is None else mask & ~outside


def coarse_steps(spacing_mm: Spacing) -> list[int]:
    """How many voxels of each axis make a step of at most COARSE_MM; at least one."""
    return [max(1, int(COARSE_MM / s)) for s in spacing_mm]


def coarse_body_mask(hu: np.ndarray, spacing_mm: Spacing, outside: np.ndarray | None = None) -> np.ndarray:
    """`body_mask` on a grid that is coarse already: (D, H, W) -> bool of the same shape.

    Everything above TISSUE_HU is opened in each axial slice, which cuts the table's shell off the back. The largest
    component is the body, with others of a size like it (the second thigh), and gets its skin back. Then the cavities
    of each slice are added (`_with_cavities`). A constant image has no body.
    """
    beyond = np.zeros(hu.shape, bool) if outside is None else outside
    tissue = (hu > tissue_hu(hu)) & ~beyond
    if not tissue.any() or hu.min() == hu.max():
        return np.zeros(hu.shape, bool)
    radius = max(1, round(5.0 / min(spacing_mm[:2])))               # 5 mm: the table's shell is thinner than 10 mm
    # What is not seen counts as body while eroding, so that a body cut by the field of view keeps its edge there.
    opened = ndimage.binary_erosion(tissue | beyond, IN_PLANE, iterations=radius, border_value=1) & tissue
    body = keep_components(opened if opened.any() else tissue, lambda sizes: sizes >= PART_OF_BODY * sizes.max())
    body = ndimage.binary_dilation(body, IN_PLANE, iterations=radius + 1, mask=tissue)
    return _with_cavities(body, tissue, hu, beyond, spacing_mm) & ~beyond


def tissue_hu(hu: np.ndarray) -> float:
    """The HU above which a voxel is tissue: TISSUE_HU, or more in a CT whose lower values have all been set to one."""
    lowest = hu.min()
    clipped = TISSUE_HU - CLIP_MARGIN_HU < lowest < CLIPPED_HU and np.mean(hu == lowest) > 0.01
    return float(lowest) + CLIP_MARGIN_HU if clipped else TISSUE_HU


def _with_cavities(body: np.ndarray, tissue: np.ndarray, hu: np.ndarray, beyond: np.ndarray,
                   spacing_mm: Spacing) -> np.ndarray:
    """The body with the holes of its axial slices, and with cavities whose wall is too thin or cut.

    The wall of a slim chest is thinner than the table's shell, so the opening has removed it, and the field of view may
    have cut it off. Added are, besides holes of the body:

    - what has the HU of lung, if it lies within the convex hull of the body and of all tissue in front of its middle,
      or has hardly any air beside it, as mattress, blankets and cushions have (`_is_lung`);
    - what tissue of any thickness encloses, gaps of CLOSE_MM apart, if it lies within this hull.

    The table, and the air between it and the patient, are behind and outside of the hull.

    body, tissue, hu, beyond: (D, H, W); beyond: what lies outside the field of view
    """
    filled, shown = _filled(body), body.any(axis=(0, 1))
    width = max(1, round(CLOSE_MM / min(spacing_mm[:2]) / 2))
    padded = np.pad(tissue, ((width, width), (width, width), (0, 0)))
    closed = ndimage.binary_closing(padded, IN_PLANE, iterations=width)[width:-width, width:-width]
    enclosed = _Parts(_filled(closed | filled) & ~filled & ~tissue & shown)
    lungs = _Parts(_like_lung(hu, max(LUNG_HU, float(hu.min()) + ABOVE_AIR_HU), tissue | filled) & shown)

    y = np.arange(body.shape[1])[None, :, None]
    rows = body.sum(axis=0)                                                           # (H, W) pixels a row
    middle = (rows * y[0]).sum(axis=0) / np.maximum(rows.sum(axis=0), 1)              # (W,)
    hull = body | tissue & (y >= np.rint(middle))
    for k in np.flatnonzero((enclosed.labels + lungs.labels).any(axis=(0, 1))):
        hull[:, :, k] = convex_hull(hull[:, :, k])
    large = lungs.sizes * float(np.prod(spacing_mm[:2])) > CUT_LUNG_MM2
    in_front = np.broadcast_to(y >= (rows > 0).argmax(axis=0), body.shape)            # of the hindmost row of the body
    lung = lungs.where(large & ((lungs.share(hull) > 0.5) | _is_lung(lungs, in_front, tissue, filled, beyond)))
    return _filled(filled | lung | enclosed.where(enclosed.share(hull) >= IN_HULL))


def _is_lung(parts: "_Parts", in_front: np.ndarray, tissue: np.ndarray, filled: np.ndarray,
             beyond: np.ndarray) -> np.ndarray:
    """Which parts with the HU of lung are lung although the body does not enclose them: (count,) bool.

    A lung with a thin wall, or one that the field of view cuts, has the body on one side and hardly any air around it.
    Mattress, blankets and cushions have air on their other side, a hollow table has no body beside it, and what a table
    holds lies behind the body.
    """
    cut = parts.share(~ndimage.binary_erosion(~beyond, IN_PLANE)) > 0
    not_behind = parts.share(in_front) > 0.8
    open_share, at_body = parts.share_around(~(tissue | filled | beyond)), parts.share_around(filled) > TOUCHES
    return (cut | not_behind) & at_body & (open_share < WALLED) | cut & not_behind & (open_share < MOST_OPEN)


class _Parts:
    """The connected parts of each axial slice of a mask (D, H, W)."""

    def __init__(self, mask: np.ndarray) -> None:
        structure = np.zeros((3, 3, 3), bool)
        structure[:, :, 1:2] = IN_PLANE
        self.labels, self.count = ndimage.label(mask, structure)
        self.sizes = np.bincount(self.labels.ravel(), minlength=self.count + 1)[1:]    # pixels of each

    def share(self, of: np.ndarray) -> np.ndarray:
        """The share of each part that lies in the mask `of`: (count,)."""
        return np.bincount(self.labels[of], minlength=self.count + 1)[1:] / self.sizes

    def share_around(self, of: np.ndarray) -> np.ndarray:
        """The share of the pixels next to each part that lie in the mask `of`: (count,)."""
        around = ndimage.grey_dilation(self.labels, footprint=IN_PLANE) * (self.labels == 0)
        pixels, inside = (np.bincount(a.ravel(), minlength=self.count + 1)[1:] for a in (around, around * of))
        return inside / np.maximum(pixels, 1)

    def where(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen parts as a mask; chosen: (count,) bool"""
        return np.append(False, chosen)[self.labels]


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask with the holes of its axial slices."""
    return ndimage.binary_fill_holes(mask, IN_PLANE)


def _like_lung(hu: np.ndarray, lowest: float, known: np.ndarray) -> np.ndarray:
    """What beside the known voxels has the HU of lung, not of air, and is thicker than the skin's edge."""
    like = (ndimage.median_filter(hu, (3, 3, 1)) > lowest) & ~known
    return ndimage.binary_dilation(ndimage.binary_opening(like, np.ones((3, 3, 1), bool)), IN_PLANE, mask=like)


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of the True pixels: (D, H) bool -> (D, H) bool. Fewer than three, or a line, are their own."""
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))           # pixels at the array's border count as edge
    try:
        sides = ConvexHull(points).equations                             # a x + b y + c <= 0 on the inner side of each
    except (QhullError, ValueError):
        return mask
    i, j = np.ogrid[:mask.shape[0], :mask.shape[1]]
    inside = np.ones(mask.shape, bool)
    for a, b, c in sides:
        inside &= a * i + b * j + c <= 1e-9
    return inside


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
    steps = coarse_steps(spacing_mm)
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
