"""Left and right of a patient: the mid-sagittal plane, and dividing paired organs by it (Section 4.1.2).

Pure functions on numpy arrays. Arrays are (D, H, W) in RAS+ (see volume.py): the index of axis 0 grows towards the
patient's right, of axis 1 towards the front, of axis 2 towards the head. Points in mm are world coordinates,
`affine @ (i, j, k, 1)`, with x to the right, so that a plane found on one grid holds on every other grid of the same
patient. Read body.py, components.py and spine.py first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from .bits import bounding_box
from .body import COARSE_MM, coarse_body_mask
from .components import CONNECTED_26, in_memory_order
from .grid import every_nth_affine, every_nth_voxel, voxel_size_mm
from .spine import Column, SpineSearch

SYMMETRY_MM = 8.0       # distance of the points that are compared with their mirror images
BONE_HU = 200.0         # vertebrae, ribs, pelvis; also calcification and strong contrast, which the fit tolerates
WHOLE_SHARE = 0.8       # a component with this share of its voxels on one side belongs to that side as a whole
LEAST_BODY = 100        # coarse voxels; a smaller body has no plane
NEAR_MM = 15.0          # the spine lies this near to the plane of best symmetry, also where a patient is crooked
BOTH_HALVES = 0.75      # share of the body whose mirror image is in view, where most of both halves is
# Evidence of a spine that confirms a plane which is plausible by itself, one that is not, and that shows where it is
WEAKLY_CONFIRMS, CONFIRMS, SHOWS = 0.1, 0.2, 0.3
BESIDE_MM, TURN_COST, SPINE_COST, LEAST_PARTNERS = 60.0, 0.1, 0.05, 0.2      # see _plane_at_spine
# Where no spine is seen, as in a pelvis or with large voxels, the outline of a whole trunk shows the middle:
TRUNK = 1.15            # its width is at least this share of its depth; half a trunk is narrower
CUT_SHARE = 0.1         # of its largest sagittal section is the most that touches a lateral face of the image
SYMMETRIC = 0.1         # a mismatch with its mirror image as of most whole CTs; wrong planes seen had 0.12 and more
# Where a flank is not in view, a hip in a short CT may pass for a spine: less than this is not believed.
LEAST_SPINE_MM, SURE_SHARE = 28.0, 0.35          # evidence times height of the CT, or evidence of a very short CT
LEAST_FLESH_MM = 26.0   # of body on both sides of the spine: with less, a half of a vertebra may pass for a whole one

Point = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Plane:
    """The mid-sagittal plane x = a + b y + c z, in world mm. Larger x is the patient's right.

    sure: whether the CT shows that this is the middle of the patient. Where it does not, as on one side of a patient
          alone, the plane is a guess, and nothing may be divided by it.
    """

    a: float
    b: float
    c: float
    sure: bool = True

    def x_at(self, points_mm: np.ndarray) -> np.ndarray:
        """The x of the plane at the y and z of each point: (..., 3) -> (...)."""
        return self.a + self.b * points_mm[..., 1] + self.c * points_mm[..., 2]

    def is_right(self, points_mm: np.ndarray) -> np.ndarray:
        """Whether each point lies to the right of the plane: (..., 3) -> (...) bool."""
        points_mm = np.asarray(points_mm, np.float64)
        return points_mm @ np.array([1.0, -self.b, -self.c]) > self.a

    def mirror(self, points_mm: np.ndarray) -> np.ndarray:
        """The mirror images of the points: (..., 3) -> (..., 3)."""
        normal = np.array([1.0, -self.b, -self.c])
        distance = (points_mm @ normal - self.a) / (normal @ normal)
        return points_mm - 2.0 * distance[..., None] * normal


# ------------------------------------------------------------------------------------------- the mid-sagittal plane

def midsagittal_plane(hu: np.ndarray, affine: np.ndarray, spine: SpineSearch | None = None,
                      mask: np.ndarray | None = None) -> Plane:
    """The plane between the patient's right and left half, and whether the CT shows that it is.

    The paper fits "a hyperplane through the vertebral and sagittal centers". Here two witnesses are heard: the plane
    about which outline and bones come nearest to being their own mirror image, and the spine (spine.py). A spine that
    lies on the plane of symmetry confirms it. Where the field of view shows one side of the patient and the spine, the
    plane goes through the spine. Where neither is so, the plane is not sure: a half of a body, or a kidney with what is
    around it, has a plane of symmetry too.

    hu:      (D, H, W) RAS+
    spine:   a search for the spine in this CT, where there is one already
    mask:    (D, H, W) bool, the body mask of the CT, where there is one already
    returns: the plane; without a body (air, a constant image) the sagittal one through the array's middle, not sure
    """
    affine = np.asarray(affine, np.float64)
    density, to_world = _symmetry_density(hu, affine, mask)
    if density is None:
        middle = affine[:3, :3] @ ((np.array(hu.shape) - 1) / 2.0) + affine[:3, 3]
        return Plane(float(middle[0]), 0.0, 0.0, sure=False)
    body = _Body(density, to_world, *_sample_body(density, to_world))
    plane, search = _plane_of_symmetry(body), spine or SpineSearch(hu, affine, mask)
    near, best = search.column(_near(plane, search)), search.column()
    symmetric = _mirror_mismatch(plane, body) <= SYMMETRIC
    both_flanks = _shows_both_flanks(search)
    enough = WEAKLY_CONFIRMS if symmetric or both_flanks else CONFIRMS
    height_mm = search.hu.shape[2] * search.spacing_mm[2]
    least = 0.0 if both_flanks else min(LEAST_SPINE_MM / height_mm, SURE_SHARE)
    if near and _is_spine(near) and near.evidence >= max(enough, least) and not _outshone(near, best):
        whole = _mirror_images(plane, body)[1].mean() >= BOTH_HALVES
        return plane if whole else _plane_at_spine(near, plane, body)
    if best and _is_spine(best) and best.evidence >= max(SHOWS, least) and not both_flanks:
        return _plane_at_spine(best, plane, body)
    return replace(plane, sure=symmetric and both_flanks)


@dataclass(frozen=True)
class _Body:
    """What is compared with its mirror image."""

    density: np.ndarray      # of _symmetry_density
    to_world: np.ndarray
    points: np.ndarray       # of _sample_body
    values: np.ndarray


def _is_spine(column: Column) -> bool:
    return column.is_vertebrae and column.flesh_mm >= LEAST_FLESH_MM


def _outshone(near: Column, best: Column | None) -> bool:
    """Whether there is a column with far more evidence elsewhere, though it may be cut by the field of view."""
    return best is not None and best.is_vertebrae and near.evidence < 0.5 * best.evidence


def _shows_both_flanks(search: SpineSearch) -> bool:
    """Whether the body is as wide for its depth as a trunk, and does not go on beyond a lateral face of the image."""
    width, depth = (int(search.body.any(axis=axis).sum(axis=0).max()) * search.spacing_mm[1 - axis] for axis in (1, 0))
    inner = search.body.sum(axis=(1, 2)).max()
    cut = max(search.body[0].sum(), search.body[-1].sum())
    return bool(width >= TRUNK * depth and cut <= CUT_SHARE * inner)


def _near(plane: Plane, search: SpineSearch) -> np.ndarray:
    """Voxels of the search's grid within NEAR_MM of the plane."""
    shape, to_world = search.score.shape, search.to_world
    slope = np.array([1.0, -plane.b, -plane.c]) @ to_world[:3, :3]
    i, j, k = np.ogrid[tuple(slice(0, n) for n in shape)]
    offset = np.array([1.0, -plane.b, -plane.c]) @ to_world[:3, 3] - plane.a
    return abs(slope[0] * i + (slope[1] * j + slope[2] * k + offset)) < NEAR_MM


def _plane_at_spine(spine: Column, plane: Plane, body: _Body) -> Plane:
    """The plane near the spine about which the body in view is the nearest to symmetric, where little has a partner.

    plane: of symmetry, without regard to the spine
    """
    beside = abs(body.points[:, 0] - spine.a - spine.c * body.points[:, 2]) < BESIDE_MM
    around = replace(body, points=body.points[beside], values=body.values[beside])

    def cost(parameters: Point, body: _Body = body) -> float:
        away = (parameters[0] - spine.centre[0]) / NEAR_MM
        return _mirror_mismatch(_plane_through(spine.centre, parameters), body, LEAST_PARTNERS) + SPINE_COST * away ** 2

    turned = min(((float(spine.centre[0]), b, spine.c) for b in np.arange(-0.3, 0.31, 0.05)),
                 key=lambda parameters: cost(parameters, around) + TURN_COST * abs(parameters[1]))
    starts: list[Point] = [turned, (float(plane.x_at(spine.centre)), plane.b, plane.c)]
    return _plane_through(spine.centre, _pattern_search(cost, min(starts, key=cost), (4.0, 0.04, 0.04), rounds=4))


def _plane_of_symmetry(body: _Body) -> Plane:
    """The plane about which the body's outline and bones come nearest to being their own mirror image.

    Bones (the vertebrae above all) and the filled outline of the body are reflected, and the plane with the best
    agreement is taken. Differs from the paper's words, because the middle of each row is a wrong centre in a patient
    who lies rotated: the midpoints of the chords of an ellipse turned one way lie on a line that is turned the other
    way.

    Voxel pairs of which one lies outside the image do not count, so a body cut at a flank does no harm. Arms and table
    cost nearly the same for each plane. On phantoms rotated or tilted by up to 20 degrees the plane is found to within
    1 mm and 1 degree; people are less symmetric.
    """
    centre = body.points.mean(axis=0)

    def mismatch(parameters: Point) -> float:
        """parameters: x of the plane at the body's centre, and its slopes b and c"""
        return _mirror_mismatch(_plane_through(centre, parameters), body)

    # Starts across and about the body's centre, then a pattern search from the best: no start is trusted alone.
    starts = [(centre[0] + shift, slope, 0.0) for shift in (-40.0, -20.0, 0.0, 20.0, 40.0)
              for slope in (-0.3, -0.15, 0.0, 0.15, 0.3)]
    best = _pattern_search(mismatch, min(starts, key=mismatch), steps=(10.0, 0.08, 0.08), rounds=6)
    return _plane_through(centre, best)


def _symmetry_density(hu: np.ndarray, affine: np.ndarray,
                      mask: np.ndarray | None = None) -> tuple[np.ndarray | None, np.ndarray]:
    """Smoothed density of body and bone on a grid of about COARSE_MM, and that grid's affine; None without a body.

    Bone counts four times as much as soft tissue: there is little of it, but its position is the surest.
    """
    spacing_mm = voxel_size_mm(affine)
    steps = [max(1, int(COARSE_MM / s)) for s in spacing_mm]
    to_world = every_nth_affine(affine, steps)
    coarse = every_nth_voxel(hu, steps)
    body = coarse_body_mask(coarse, spacing_mm * steps) if mask is None else every_nth_voxel(mask, steps)
    if body.sum() < LEAST_BODY:
        return None, to_world
    density = body * (1.0 + 3.0 * (coarse > BONE_HU))
    return ndimage.gaussian_filter(density.astype(np.float32), 6.0 / (spacing_mm * steps), mode="nearest"), to_world


def _sample_body(density: np.ndarray, to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the body about SYMMETRY_MM apart, (N, 3) in world mm, and their density (N,)."""
    coarse_mm = voxel_size_mm(to_world)
    thin = [max(1, round(SYMMETRY_MM / s)) for s in coarse_mm]
    lines = [np.arange((n - 1) % t // 2, n, t) for n, t in zip(density.shape, thin)]
    index = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    values = density[tuple(index.T)]
    index, values = index[values > 0.05], values[values > 0.05]     # outside the body there is nothing to compare
    return index @ to_world[:3, :3].T + to_world[:3, 3], values


def _mirror_images(plane: Plane, body: _Body) -> tuple[np.ndarray, np.ndarray]:
    """The mirror images of the body's points, as indices of its density (N, 3), and which lie inside it (N,) bool."""
    to_index = np.linalg.inv(body.to_world)
    index = plane.mirror(body.points) @ to_index[:3, :3].T + to_index[:3, 3]
    return index, ((index > -0.5) & (index < np.array(body.density.shape) - 0.5)).all(axis=1)


def _mirror_mismatch(plane: Plane, body: _Body, least: float = 0.5) -> float:
    """How much the density differs from its mirror image, as a share of it; only points whose image is inside count.

    least: share of the points that have to count; a plane near the border leaves too little to compare
    """
    index, inside = _mirror_images(plane, body)
    if inside.mean() < least:
        return float(body.density.max())
    other = ndimage.map_coordinates(body.density, index[inside].T, order=1, mode="nearest")
    return float(np.abs(other - body.values[inside]).sum() / body.values[inside].sum())


def _plane_through(centre: np.ndarray, parameters: Point) -> Plane:
    """The plane with slopes b and c that has the given x at the y and z of `centre`; parameters: (x, b, c)."""
    x, b, c = (float(p) for p in parameters)
    return Plane(float(x - b * centre[1] - c * centre[2]), b, c)


def _pattern_search(cost: Callable[[Point], float], start: Point, steps: Sequence[float],
                    rounds: int) -> np.ndarray:
    """Minimise without a gradient: step along each parameter while it helps, then halve the steps."""
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


# --------------------------------------------------------------------------------------------------- left and right

def right_side(shape: Sequence[int], affine: np.ndarray, plane: Plane,
               box: Sequence[slice] | None = None) -> np.ndarray:
    """Which voxels lie to the right of the plane: bool, Fortran order.

    shape:   of the volume
    box:     slices of the part that is asked for; default: all of it
    returns: (D, H, W), or the shape of the box
    """
    box = box or tuple(slice(0, n) for n in shape)
    affine, normal = np.asarray(affine, np.float64), np.array([1.0, -plane.b, -plane.c])
    slope = normal @ affine[:3, :3]                          # of the signed distance, per voxel index
    k, j, i = np.ogrid[tuple(box)[::-1]]                     # (W, H, D): the result is in Fortran order
    distance = (slope[2] * k + slope[1] * j) + slope[0] * i  # without the constant, which is on the other side below
    return (distance > plane.a - normal @ affine[:3, 3]).T


def split_left_right(mask: np.ndarray, affine: np.ndarray, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Divide the mask of a merged pair (both kidneys, both lungs) into (right, left), bool arrays of its shape.

    A 26-connected component with at least WHOLE_SHARE of its voxels on one side goes there as a whole, so a lung that
    reaches over the middle keeps its edge. A component that straddles the plane (organs that touch) is cut by it voxel
    by voxel. Any number of components is allowed: none gives two empty masks, a single kidney goes to its side.
    """
    right, left = np.zeros_like(mask, dtype=bool), np.zeros_like(mask, dtype=bool)
    box = bounding_box(mask)
    if box is None:
        return right, left
    inside, on_right, to_right, to_left = in_memory_order(
        mask[box], right_side(mask.shape, affine, plane, box), right[box], left[box])
    labels, count = ndimage.label(inside, structure=CONNECTED_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    share = np.bincount(labels[on_right], minlength=count + 1) / np.maximum(sizes, 1)
    whole, cut = share >= WHOLE_SHARE, (share < WHOLE_SHARE) & (share > 1 - WHOLE_SHARE)
    whole[0] = cut[0] = False                                # the background
    to_right[...] = whole[labels] | (cut[labels] & on_right)
    to_left[...] = (labels > 0) & ~to_right
    return right, left
