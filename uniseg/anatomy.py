"""Where the body is, where its middle is, and what lies to the right of it: geometry for Section 4.1.2's post-processing.

Pure functions on numpy arrays. Arrays are (D, H, W) in RAS+ (see volume.py): the index of axis 0 grows towards the
patient's right, of axis 1 towards the front, of axis 2 towards the head. Points in mm are world coordinates, `affine @
(i, j, k, 1)`, with x to the right, so that a plane found on one grid holds on every other grid of the same patient.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .bits import bounding_box

COARSE_MM = 5.0         # sampling step for the body mask: organs are larger, and a CT takes a fraction of a second
LUNG_HU = -950.0        # above: lung, but for severe emphysema; below: air, of a scanner that is a little off too
FOAM_HU = -900.0        # a cut lung's median is above, -860 on a real CT; that of the table's foam and the air about it below, -930 and less
CUT_LUNG_MM2 = 300.0    # least of a cut lung in a slice: shells and rails of the table are thinner
ABOVE_AIR_HU = 50.0     # lung is so much above the lowest value at least: air, where a CT is clipped at more than LUNG_HU
ARM_SHARE, ARM_MM, ARM_GAIN_MM = 0.45, 60.0, 30.0     # see trunk_box
SYMMETRY_MM = 8.0       # sampling step for the search of the mid-sagittal plane
BONE_HU = 200.0         # vertebrae, ribs, pelvis; also calcium and strong contrast, which the fit tolerates
WHOLE_SHARE = 0.8       # a component with this share of its voxels on one side belongs to that side as a whole
CONNECTED_26 = np.ones((3, 3, 3), bool)


def in_memory_order(*arrays):
    """Views of the arrays with the first one's slowest axis first; passes over Fortran-ordered volumes are then several
    times faster. Writing to a view writes to its array.
    """
    fortran = abs(arrays[0].strides[0]) < abs(arrays[0].strides[-1])
    return tuple(a.T for a in arrays) if fortran else arrays


def keep_components(mask, choose):
    """The 26-connected components of a mask that are chosen by size; an empty mask stays empty.

    choose: sizes in voxels (N,) -> bool (N,)
    """
    kept = np.zeros_like(mask, dtype=bool)
    box = bounding_box(mask)
    if box is None:
        return kept
    inside, out = in_memory_order(mask[box], kept[box])
    labels, _ = ndimage.label(inside, structure=CONNECTED_26)
    sizes = np.bincount(labels.ravel())[1:]                         # without the background, label 0
    out[...] = np.append(False, choose(sizes))[labels]
    return kept


def largest(sizes, count):
    """Which of the sizes are the `count` largest: bool; the first of equals.

    >>> largest(np.array([5, 9, 7, 9]), 2).tolist()
    [False, True, False, True]
    """
    chosen = np.zeros(len(sizes), bool)
    chosen[np.argsort(-sizes, kind="stable")[:count]] = True
    return chosen


def largest_components(mask, count=1):
    """The `count` largest 26-connected components of a mask; an empty mask stays empty."""
    return keep_components(mask, lambda sizes: largest(sizes, count))


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
    coarse = _coarse_body(_every(hu, steps), [n * s for n, s in zip(steps, spacing_mm)], threshold_hu)
    mask = coarse.T                                                 # expanded as (W, H, D): the result is in Fortran order
    for axis in (2, 1, 0):
        keep = [slice(None)] * axis + [slice(0, hu.T.shape[axis])]
        mask = np.repeat(mask, steps[2 - axis], axis=axis)[tuple(keep)]
    return np.ascontiguousarray(mask).T


def _every(array, steps):
    """Each steps[a]-th voxel of axis a, from the middle of its block (the last block may be a part)."""
    index = [np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(array.shape, steps)]
    return np.asarray(array[:, :, index[2]])[:, index[1]][index[0]]


def _coarse_body(hu, spacing_mm, threshold_hu):
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
    coarse = _every(body, steps)
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


@dataclass(frozen=True)
class Plane:
    """The mid-sagittal plane x = a + b y + c z, in world mm; x above it is the patient's right."""

    a: float
    b: float
    c: float

    def is_right(self, points_mm):
        """points_mm: (..., 3) -> (...) bool."""
        points_mm = np.asarray(points_mm, np.float64)
        return points_mm @ np.array([1.0, -self.b, -self.c]) > self.a

    def mirror(self, points_mm):
        """The points' mirror images: (..., 3) -> (..., 3)."""
        normal = np.array([1.0, -self.b, -self.c])
        distance = (points_mm @ normal - self.a) / (normal @ normal)
        return points_mm - 2.0 * distance[..., None] * normal


def midsagittal_plane(hu, affine):
    """The plane about which body outline and bones of a CT come nearest to being their own mirror image.

    The paper fits "a hyperplane through the vertebral and sagittal centers". Here both are fitted at once: bones (the
    vertebrae above all) and the filled body outline are reflected, and the plane with the best agreement is taken.
    Differs from the paper's words, as the middle of each row of a patient who lies rotated is a wrong centre: the
    chords' midpoints of an ellipse turned one way lie on a line that is turned the other way.

    Voxel pairs of which one is outside the image do not count, so a body cut by the field of view does no harm; arms
    and table cost nearly the same for each plane. On phantoms rotated or tilted by up to 20 degrees the plane is found
    to within 1 mm and 1 degree; people are less symmetric.
    Without a body (air, a constant image) the plane is the sagittal one through the middle of the array.
    """
    affine = np.asarray(affine, np.float64)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    middle = affine[:3, :3] @ ((np.array(hu.shape) - 1) / 2.0) + affine[:3, 3]
    fallback = Plane(float(middle[0]), 0.0, 0.0)

    steps = [max(1, int(COARSE_MM / s)) for s in spacing_mm]
    coarse = _every(hu, steps)
    body = _coarse_body(coarse, steps * spacing_mm, -300.0)
    if body.sum() < 100:
        return fallback
    # Bone counts four times a voxel of soft tissue: little of it, but its place is the surest.
    density = body * (1.0 + 3.0 * (coarse > BONE_HU))
    density = ndimage.gaussian_filter(density.astype(np.float32), 6.0 / (steps * spacing_mm), mode="nearest")
    to_world = affine @ np.diag([*map(float, steps), 1.0])
    to_world[:3, 3] = affine[:3, :3] @ [s // 2 for s in steps] + affine[:3, 3]

    thin = [max(1, round(SYMMETRY_MM / s)) for s in steps * spacing_mm]
    index = np.stack(np.meshgrid(*(np.arange((n - 1) % t // 2, n, t) for n, t in zip(body.shape, thin)), indexing="ij"),
                     axis=-1).reshape(-1, 3)
    value = density[tuple(index.T)]
    index, value = index[value > 0.05], value[value > 0.05]          # outside the body there is nothing to compare
    points = index @ to_world[:3, :3].T + to_world[:3, 3]            # (N, 3) mm
    centre = points.mean(axis=0)
    to_index = np.linalg.inv(to_world)
    cap = float(density.max())

    def mismatch(parameters):
        """Share of density without its like on the other side; parameters: x at the body's centre, b, c."""
        mirrored = _through(centre, parameters).mirror(points) @ to_index[:3, :3].T + to_index[:3, 3]
        inside = ((mirrored > -0.5) & (mirrored < np.array(body.shape) - 0.5)).all(axis=1)
        if inside.mean() < 0.5:                                     # a plane at the rim leaves too little to compare
            return cap
        other = ndimage.map_coordinates(density, mirrored[inside].T, order=1, mode="nearest")
        return float(np.abs(other - value[inside]).sum() / value[inside].sum())

    # Starts across and about the body's centre, then a pattern search from the best: no start is trusted alone.
    starts = [(centre[0] + shift, slope, 0.0) for shift in (-40.0, -20.0, 0.0, 20.0, 40.0)
              for slope in (-0.3, -0.15, 0.0, 0.15, 0.3)]
    best = _pattern_search(mismatch, min(starts, key=mismatch), steps=(10.0, 0.08, 0.08), rounds=6)
    return _through(centre, best)


def _through(centre, parameters):
    """The plane that passes x at the y and z of `centre`, with slopes b and c."""
    x, b, c = (float(p) for p in parameters)
    return Plane(float(x - b * centre[1] - c * centre[2]), b, c)


def _pattern_search(cost, start, steps, rounds):
    """Minimise: step along each parameter while it helps, then halve the steps. Needs no gradient."""
    best, best_cost = np.array(start, np.float64), cost(start)
    for _ in range(rounds):
        improved = True
        while improved:
            improved = False
            for p in range(len(best)):
                for sign in (1.0, -1.0):
                    trial = best.copy()
                    trial[p] += sign * steps[p]
                    trial_cost = cost(trial)
                    if trial_cost < best_cost:
                        best, best_cost, improved = trial, trial_cost, True
        steps = [s / 2.0 for s in steps]
    return best


def right_side(shape, affine, plane, box=None):
    """Bool (D, H, W): which voxels lie to the right of the plane; only those of `box` (slices) when given."""
    box = box or tuple(slice(0, n) for n in shape)
    affine, normal = np.asarray(affine, np.float64), np.array([1.0, -plane.b, -plane.c])
    slope = normal @ affine[:3, :3]                                  # of the signed distance, per voxel index
    k, j, i = np.ogrid[box[::-1]]                                    # (W, H, D): the result is in Fortran order
    distance = (slope[2] * k + slope[1] * j) + slope[0] * i          # less a constant
    return (distance > plane.a - normal @ affine[:3, 3]).T


def split_left_right(mask, affine, plane):
    """Divide the mask of a merged pair (both kidneys, both lungs) into (right, left), bool arrays of its shape.

    A 26-connected component with at least WHOLE_SHARE of its voxels on one side goes there as a whole, so a lung that
    reaches over the middle keeps its edge; one that straddles (organs that touch) is cut by the plane voxel by voxel.
    Any number of components will do: none gives two empty masks, a lone kidney goes to the side where it lies.
    """
    right, left = np.zeros_like(mask, dtype=bool), np.zeros_like(mask, dtype=bool)
    box = bounding_box(mask)
    if box is None:
        return right, left
    inside, on_right, to_right, to_left = in_memory_order(
        mask[box], right_side(mask.shape, affine, plane, box), right[box], left[box])
    labels, found = ndimage.label(inside, structure=CONNECTED_26)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)
    share = np.bincount(labels[on_right], minlength=found + 1) / np.maximum(sizes, 1)
    whole, cut = share >= WHOLE_SHARE, (share < WHOLE_SHARE) & (share > 1 - WHOLE_SHARE)
    whole[0] = cut[0] = False                                       # the background
    to_right[...] = whole[labels] | (cut[labels] & on_right)
    to_left[...] = (labels > 0) & ~to_right
    return right, left
