"""What lies between the labelled structures: skin, fat, muscles of the body wall, discs, and the patient's outline.

Beyond the paper: part of the synthetic CT (docs/synthetic.md); read geometry.py first. The label maps show organs,
bones and some muscles. Here three convex outlines are put around them in each axial slice, on a coarse grid: one of the
labelled structures, one of the muscles of the body wall, one of the skin. Depths below the outlines are smooth and tell
which tissue an unlabelled voxel shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .geometry import Grid, below_quantile, field, soften, upsample

IdsOf = Callable[..., list[int]]              # from prefixes of structures' names to the ids of these structures

COARSE_MM = 4.0
DIRECTIONS = 60                               # of the outlines' tangents in the axial plane
ANGLES = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
CLOSING_MM = 12.0                             # muscles fill gaps of up to twice this between bones and muscles
MUSCULAR = ("vertebrae", "autochthon", "sacrum", "hip", "gluteus", "iliopsoas", "scapula", "clavicula", "femur",
            "humerus", "rib")


class Body(NamedTuple):
    """Depths in mm below three outlines (positive inside), and shares of regions, all on the coarse grid, float32."""

    grid: Grid
    hull: NDArray                             # below the outline of the labelled structures
    wall: NDArray                             # below the outer side of the muscles of the body wall
    skin: NDArray
    muscular: NDArray                         # share of the region between bones and muscles
    disc: NDArray                             # share of the region between vertebrae
    chest: NDArray  # share of the region between lungs, heart and trachea, above the lower heart
    arm_bone: NDArray                         # depth below the surface of the bone of an arm at the side


def support(mask: NDArray, grid: Grid) -> NDArray:
    """How far the mask reaches in each direction of each axial slice, (DIRECTIONS, W) mm.

    Slices without voxels take the values of the nearest slice that has some. Raises ValueError for an empty mask.
    """
    x, y, _ = grid.axes()
    reach = np.full((DIRECTIONS, mask.shape[2]), np.nan)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        i, j = np.nonzero(mask[:, :, k])
        reach[:, k] = np.max(np.outer(np.cos(ANGLES), x[i]) + np.outer(np.sin(ANGLES), y[j]), axis=1)
    known = np.flatnonzero(~np.isnan(reach[0]))
    if not len(known):
        raise ValueError("no labelled structure in view. Give a label map of TotalSegmentator's structures.")
    nearest = known[np.abs(np.arange(mask.shape[2])[:, None] - known).argmin(axis=1)]
    reach = ndimage.maximum_filter1d(reach[:, nearest], round(60 / grid.spacing_mm), axis=1, mode="nearest")
    return ndimage.gaussian_filter(reach, (2.0, 20 / grid.spacing_mm), mode=("wrap", "nearest"))


def depth_below(reach: NDArray, grid: Grid) -> NDArray[np.float32]:
    """Depth (mm) of each voxel below the convex outline with the support `reach`; negative outside."""
    x, y, _ = grid.mesh()
    depth = np.full(grid.shape, np.inf, np.float32)
    for k, angle in enumerate(ANGLES):
        along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        np.minimum(depth, reach[k].astype(np.float32) - along, out=depth)
    return depth


def _height(labels: NDArray, ids: list[int], grid: Grid, which: int, otherwise: float) -> float:
    """z (mm) of the lowest (which = 0) or highest (-1) slice that shows one of the ids; `otherwise` where none does."""
    slices = np.flatnonzero(np.isin(labels, ids).any(axis=(0, 1)))
    return float(grid.origin_mm[2] + grid.spacing_mm * slices[which]) if len(slices) else otherwise


def step(z: NDArray, at: float, width: float) -> Any:
    """0 far below `at`, 1 far above, with a smooth rise between."""
    return 0.5 + 0.5 * np.tanh((np.asarray(z) - at) / width)


def outline(labels: NDArray, ids_of: IdsOf, grid: Grid, rng: np.random.Generator,
            arm_rng: np.random.Generator | None) -> Body:
    """The Body around a coarse label map.

    labels: (D, H, W) ids of structures on the coarse grid; arm_rng: draws arms at the sides, None for raised arms
    """
    z = grid.axes()[2]
    top = _height(labels, ids_of("liver"), grid, -1, z[-1])
    hip = _height(labels, ids_of("hip"), grid, -1, z[0] - 50.0)
    hull = support((labels > 0) & ~np.isin(labels, ids_of("skull", "brain", "humerus")), grid)
    chest, pelvis = step(z, top, 25.0)[None], 1 - step(z, hip, 25.0)[None]
    wall = hull + _muscle_mm(hull.shape, chest, pelvis, grid, rng)
    fat_mm = _fat_mm(hull.shape, chest, pelvis, grid, rng)
    skin = _skin(wall, fat_mm, grid) - _furrows(labels, ids_of, grid, pelvis[0], rng)
    for bone, flesh_mm in (("humerus", rng.uniform(22, 36)), ("skull", 12.0)):  # bones that the outline leaves out
        if (mask := np.isin(labels, ids_of(bone))).any():
            voxels_away = ndimage.distance_transform_edt(~mask).astype(np.float32)
            skin = np.maximum(skin, flesh_mm - grid.spacing_mm * voxels_away)
    closed, disc, organs = _regions(labels, ids_of, grid)
    arm, arm_bone = arms(skin, grid, _height(labels, ids_of("humerus"), grid, 0, np.inf), arm_rng)
    return Body(grid, depth_below(hull, grid), depth_below(wall, grid), np.maximum(skin, arm),
                np.maximum(closed, step(arm, 9.0, 2.0).astype(np.float32)), disc, organs, arm_bone)


def _sides() -> tuple[NDArray, NDArray, NDArray]:
    """How much each direction points to the front, to a side, to the back: (DIRECTIONS, 1) each, 0 to 1."""
    angle = ANGLES[:, None]
    return np.maximum(np.sin(angle), 0), np.abs(np.cos(angle)), np.maximum(-np.sin(angle), 0)


def _muscle_mm(shape: tuple[int, ...], chest: NDArray, pelvis: NDArray, grid: Grid,
               rng: np.random.Generator) -> NDArray:
    """Thickness (mm) of the muscles of the body wall by direction and height, (DIRECTIONS, W)."""
    angle, (front, side, back) = ANGLES[:, None], _sides()
    flank = np.exp(-((np.abs(np.sin(angle)) - 0.35) / 0.35) ** 2) * (np.sin(angle) > -0.5)  # three layers of muscle
    rectus = np.exp(-((np.abs(np.cos(angle)) - 0.28) / 0.2) ** 2) * (np.sin(angle) > 0)  # a pair, with a line between
    muscle_mm = 1.5 + rng.uniform(0.8, 1.3) * ((8 * rectus + 13 * flank) * (1 - 0.5 * chest) * (1 - 0.7 * pelvis)
                                               + chest * (9 * front + 4 * side + 3 * back))
    return muscle_mm * (1 + 0.3 * _uneven(shape, grid, rng))


def _fat_mm(shape: tuple[int, ...], chest: NDArray, pelvis: NDArray, grid: Grid, rng: np.random.Generator) -> NDArray:
    """Thickness (mm) of the fat under the skin by direction and height, (DIRECTIONS, W)."""
    front, side, back = _sides()
    fat_mm = min(rng.lognormal(np.log(15), 0.5), 45.0)
    wave = 0.15 * _uneven(shape, grid, rng)
    return 3.0 + fat_mm * np.maximum(0.15, (0.55 + 0.6 * front + 0.25 * side + 0.35 * back + wave) * (1 - 0.45 * chest)
                                     * (1 + 0.5 * pelvis * np.maximum(side, back)))


def _skin(wall: NDArray, fat_mm: NDArray, grid: Grid) -> NDArray:
    """Depth (mm) below the skin, (D, H, W): around wall and fat, with the waist filled and the corners rounded."""
    # fills the waist
    outer = ndimage.maximum_filter1d(wall + fat_mm, round(90 / grid.spacing_mm), axis=1, mode="nearest")
    outer = ndimage.gaussian_filter1d(outer, 30 / grid.spacing_mm, mode="nearest")
    outer = np.maximum(wall + 3.0, 0.35 * (wall + fat_mm) + 0.65 * outer)
    return depth_below(ndimage.gaussian_filter1d(outer, DIRECTIONS / 24, axis=0, mode="wrap"), grid)


def arms(skin: NDArray, grid: Grid, highest_mm: float, rng: np.random.Generator | None) -> tuple[NDArray, NDArray]:
    """Depths (mm) of two arms at the sides: below their skin and below the surface of their bones, (D, H, W) float32
    each.

    skin:       depth below the skin of the trunk
    highest_mm: z where a raised arm of the label map begins; the arms end below it
    rng:        None for no arms
    """
    x, y, z = grid.mesh()
    depth, bone = (np.full(grid.shape, -1e3, np.float32) for _ in range(2))
    if rng is None:
        return depth, bone
    shown = np.any(skin > 0, axis=1)                                                          # (D, W)
    shown = shown[:, shown.any(axis=0) & (grid.axes()[2] < highest_mm)]
    if not shown.size:
        return depth, bone
    # The arms lie beside the trunk's median width, so that wide hips do not push them away.
    edges = np.median(shown.argmax(axis=0)), len(shown) - 1 - np.median(shown[::-1].argmax(axis=0))
    middle = np.mean(y[0, np.flatnonzero((skin > 0).any(axis=(0, 2))), 0])
    from_middle = z - grid.axes()[2].mean()
    for edge, away in zip(edges, (-1, 1)):
        radius, flat = rng.uniform(34, 50), rng.uniform(0.8, 1.0)  # of the limb; its width / its depth
        at_x = x[int(edge), 0, 0] + away * (radius * flat + rng.uniform(-6, 12))
        at_x = at_x + rng.uniform(-0.08, 0.08) * from_middle
        at_y = middle + rng.uniform(-50, 20) + rng.uniform(-0.1, 0.1) * from_middle
        from_axis = np.sqrt(((x - at_x) / flat) ** 2 + (y - at_y) ** 2)
        below = np.clip((highest_mm - 40.0 - z) / 2, -1e3, 1e3)  # ends in a stump, out of most views
        depth = np.maximum(depth, np.minimum(radius - from_axis, below))
        bone = np.maximum(bone, np.minimum(rng.uniform(9, 13) - from_axis, below))
    return depth.astype(np.float32), bone.astype(np.float32)


def _uneven(shape: tuple[int, ...], grid: Grid, rng: np.random.Generator) -> NDArray:
    """A smooth random function of direction and height, (DIRECTIONS, W), of unit variance."""
    sigma = (DIRECTIONS / 20, 40 / grid.spacing_mm)
    value = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode=("wrap", "nearest"))
    return value / value.std()


def _furrows(labels: NDArray, ids_of: IdsOf, grid: Grid, pelvis: NDArray, rng: np.random.Generator) -> NDArray:
    """How much deeper (mm) the skin lies behind the spine and between the buttocks than the convex outline."""
    x, y, _ = grid.mesh()
    spine = np.argwhere(np.isin(labels, ids_of("vertebrae", "sacrum")))
    if not len(spine):
        return np.zeros((1, 1, 1), np.float32)
    at = spine.mean(axis=0) * grid.spacing_mm + grid.origin_mm
    behind = 1 - step(y, at[1] - 30.0, 8.0)
    low = _height(labels, ids_of("femur"), grid, -1, grid.origin_mm[2] - 100.0) + 15.0
    cleft = (1 - step(grid.axes()[2], low, 12.0)) * pelvis
    return (behind * (rng.uniform(4, 12) * np.exp(-((x - at[0]) / 18) ** 2) * (1 - cleft)
                      + 32.0 * cleft * np.exp(-np.abs(x - at[0]) / 9))).astype(np.float32)


def _regions(labels: NDArray, ids_of: IdsOf, grid: Grid) -> list[NDArray]:
    """Shares (float32) of the regions between bones and muscles, between vertebrae, and in the chest."""
    steps = round(CLOSING_MM / grid.spacing_mm)
    ball = ndimage.generate_binary_structure(3, 1)
    padded = np.pad(np.isin(labels, ids_of(*MUSCULAR)), steps, mode="edge")
    closed = ndimage.binary_closing(padded, ball, steps)[(slice(steps, -steps),) * 3]
    z = grid.axes()[2]
    thigh = np.isin(labels, ids_of("femur", "hip", "gluteus"))
    joint = _height(labels, ids_of("femur"), grid, -1, -np.inf) - 15.0
    near = ndimage.binary_dilation(thigh, ball, round(24 / grid.spacing_mm)) & (z < joint)
    near |= ndimage.binary_dilation(np.isin(labels, ids_of("humerus")), ball, round(16 / grid.spacing_mm))
    spine = np.pad(np.isin(labels, ids_of("vertebrae")), 3, mode="edge")
    disc = ndimage.binary_closing(spine, np.ones((1, 1, 3), bool), 3)[3:-3, 3:-3, 3:-3] & (labels == 0)
    organs = np.isin(labels, ids_of("lung", "heart", "trachea"))
    base = _height(labels, ids_of("heart"), grid, 0, np.inf)
    chest = ndimage.binary_closing(organs, ball, 5) & (z > base)
    return [soften(mask, grid, 3.0) for mask in (closed | near, disc, chest)]


def fill(labels: NDArray, kinds: dict[str, list[int]], body: Body, hu: dict[str, float], grid: Grid,
         rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Paint all voxels without a label: (HU, depth below the skin in mm), (D, H, W) float32 each; the outside is air.

    labels: fine label map; kinds: {"lung": ids, "organ": ids}; hu: {tissue: HU} of the patient
    """
    hull, wall, skin, muscular, disc, chest, arm_bone = (upsample(part, body.grid, grid) for part in body[1:])
    axes = grid.axes()
    streaks = (field(axes, 9.0, rng) + 0.6 * field(axes, 25.0, rng)) / 1.17
    zero = field(axes, 26.0, rng)  # surfaces where it is 0: fascia in fat, fat between muscles
    sheets = np.exp(-(zero / 0.06) ** 2) * np.clip(field(axes, 40.0, rng), 0, 1)
    image = np.full(grid.shape, -1000.0, np.float32)
    inside = skin > 0
    image[inside] = hu["fat"] + 5 * streaks[inside]
    image[inside & (skin < 2.4)] = hu["skin"]
    image[inside & (wall < 0)] += (45 * sheets)[inside & (wall < 0)]  # septa and veins under the skin
    cavity = inside & ((wall > 0) | (muscular > 0.5) & (skin > 8))
    image[cavity] = hu["fat"] + 4 + 7 * streaks[cavity] + 70 * sheets[cavity]
    layers = np.cos(2 * np.pi * wall / rng.uniform(8, 11)) - 0.8 * zero  # fat between layers of wall muscle
    outside = cavity & (hull < 5.0) & (layers > rng.uniform(-1.7, -1.3))
    between = cavity & (muscular > 0.5) & (np.abs(zero) > rng.uniform(0.03, 0.16)) & (streaks < 1.9)
    muscle = outside | between
    image[muscle] = hu["muscle"] + 4 * streaks[muscle]
    image[cavity & (disc > 0.5)] = hu["disc"]
    image[arm_bone > 0] = hu["cortical_bone"]
    image[arm_bone > 4] = hu["fat"] + 20  # the marrow of long bones is fat
    soft = cavity & (chest > 0.5) & ~below_quantile(streaks, rng.uniform(0.45, 0.8))  # nodes, thymus, small vessels
    image[soft] = 0.7 * hu["muscle"] + 0.3 * hu["fat"]
    lungs = soften(np.isin(labels, kinds["lung"]), grid, 2.5)
    image[cavity & (lungs > 0.06)] = hu["muscle"] - 12                                      # pleura, diaphragm
    organs = soften(np.isin(labels, kinds["organ"]), grid, 2.0)
    narrow = cavity & (organs > 0.45) & (image < 0)                                         # between organs that touch
    image[narrow] = 0.55 * hu["muscle"] + 0.45 * hu["fat"] + 40 * (organs[narrow] - 0.45)
    return image, skin
