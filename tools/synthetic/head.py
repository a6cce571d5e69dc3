"""Synthetic CT of heads, drawn without a label map: cases that show none of the classes (docs/synthetic.md).

Beyond the paper; read head_parts.py and geometry.py first. The label maps show torsos only, so a model that is trained
on them has never seen a head. A head here consists of the ellipsoids and tubes of head_parts.py, an outline of skin
around them, and a braincase with a brain. Position, size, posture and HU vary from head to head. No class of Table 2
is drawn: the view ends above the oesophagus, the lungs and the aorta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uniseg.datasets.augment import rotation

from . import tissues
from .geometry import Box, Grid, covering, field
from .head_parts import BRAINCASE, NUCLEI, OUTLINE, PARTS, VENTRICLES, Ball, Point
from .scanner import scan

VIEWS = {"head": (0.4, -135.0), "head and neck": (0.35, -172.0), "brain": (0.25, -62.0)}  # probability, lower end (mm)
# Each stage draws from its own random stream, (seed, 1000 + number of the stage).
POSTURE, SHAPE, HU, SOFT, BRAIN, DETAILS, HOLDER, SCANNER = range(8)
ELASTIC_MM, JITTER_MM = 2.0, 0.8               # standard deviation of the smooth displacement, and of a part's position

# Mean HU and the spread (sd) between heads. Other tissues have the HU of tissues.LITERATURE.
# [w] ranges of https://en.wikipedia.org/wiki/Hounsfield_scale: grey matter 37-45, white matter 20-30,
#     cerebrospinal fluid 0-15, clotted blood 50-75, cortical bone 500-1900
# [e] estimate without a source
LITERATURE = {
    "grey": (38, 2), "white": (28, 2), "csf": (7, 3), "clot": (65, 6),                              # w
    "table": (1150, 150), "diploe": (550, 130), "petrous": (1350, 120), "enamel": (2300, 250),      # w, e, e, e
    "dura": (55, 6), "eye": (12, 4), "lens": (110, 15), "gland": (20, 20), "mucosa": (40, 8), "calcium": (250, 80),  # e
}


class Head(NamedTuple):
    """A head that is being painted."""

    grid: Grid
    matrix: NDArray                            # (3, 3): mm in the CT -> mm in the reference head
    reference: NDArray                         # (3, D, H, W) float32: where each voxel lies in the reference head, mm
    image: NDArray                             # (D, H, W) float32 HU

    def paint(self, depth: NDArray, value: float | NDArray, box: Box | EllipsisType = ...) -> None:
        """Fill a shape with a value or an array; voxels at its surface are filled in part.

        depth: mm below the surface, of the box
        """
        part = self.image[box]
        part += self.share(depth) * (value - part)

    def share(self, depth: NDArray) -> NDArray:
        """Share (0 to 1) of each voxel that lies in a shape, from the depth (mm) below its surface."""
        return np.clip(depth / self.grid.spacing_mm + 0.5, 0, 1)

    def around(self, points_mm: NDArray, reach_mm: ArrayLike) -> Box:
        """The box of the CT within `reach_mm` of points of the reference head, wherever the displacement moved them."""
        in_ct = np.asarray(points_mm, float) @ np.linalg.inv(self.matrix).T
        index = (in_ct - self.grid.origin_mm) / self.grid.spacing_mm
        more = (1.2 * np.max(reach_mm) + 5 * ELASTIC_MM + 3 * JITTER_MM) / self.grid.spacing_mm + 1
        low, high = np.maximum(index.min(axis=0) - more, 0), np.maximum(index.max(axis=0) + more + 1, 0)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high))
        return x, y, z


def ellipsoid(coordinates: NDArray, centre: NDArray, radii: Point | NDArray) -> NDArray:
    """Depth (mm) below the surface of an ellipsoid, negative outside; nearly exact close to the surface.

    coordinates: (3, D, H, W) mm
    """
    scaled = [(a - np.float32(c)) / np.float32(r) for a, c, r in zip(coordinates, centre, radii)]
    level = np.sqrt(sum(s * s for s in scaled))
    slope = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii)))
    return np.maximum(level, 1e-3) * (1 - level) / np.maximum(slope, 1e-3 / max(radii))


def tube(coordinates: NDArray, points: NDArray, radius: float | NDArray) -> NDArray:
    """Depth (mm) below the surface of a tube through the points, negative outside.

    coordinates: (3, D, H, W) mm; points: (N, 3) mm
    """
    nearest = np.inf
    for start, end in zip(np.asarray(points, np.float32)[:-1], np.asarray(points, np.float32)[1:]):
        step = end - start
        offset = [a - s for a, s in zip(coordinates, start)]
        along = np.clip(sum(o * s for o, s in zip(offset, step)) / (step @ step), 0, 1)
        nearest = np.minimum(nearest, sum((o - along * s) ** 2 for o, s in zip(offset, step)))
    return np.float32(radius) - np.sqrt(nearest)


def joined(depths: Iterable[NDArray], round_mm: float) -> NDArray:
    """Depth (mm) below the union of shapes, with furrows filled as if by a ball of about `round_mm`."""
    return round_mm * np.logaddexp.reduce([depth / np.float32(round_mm) for depth in depths])


def both_sides(points: ArrayLike) -> list[NDArray]:
    """The points, and their mirror image if they do not lie in the midline: (N, 3) each."""
    points = np.asarray(points, float)
    return [points, points * [-1, 1, 1]] if points[:, 0].any() else [points]


def ellipsoids(head: Head, balls: Iterable[Ball]) -> list[NDArray]:
    """The depth (mm), (D, H, W), below each of some ellipsoids, and below their mirror images beside the midline."""
    return [ellipsoid(head.reference, centre, radii) for middle, radii in balls for (centre,) in both_sides([middle])]


def draw_head(seed: int, spacing_mm: float = 2.0) -> tuple[NDArray[np.int16], NDArray]:
    """Draw one synthetic CT of a head: hu (D, H, W) and affine (4, 4); RAS+, isotropic voxels of `spacing_mm`.

    The same seed gives the same CT.
    """
    def stage(number: int) -> np.random.Generator:
        return np.random.default_rng((seed, 1000 + number))

    head = posture(spacing_mm, stage(POSTURE), stage(SHAPE))
    rng = stage(HU)
    hu = tissues.draw_hu(rng.choice(["native", "arterial", "portal"], p=[0.55, 0.3, 0.15]), rng)
    hu |= {tissue: mean + sd * rng.standard_normal() for tissue, (mean, sd) in LITERATURE.items()}
    hu["vein"] = hu["right_blood"]
    skin, cavity = soft_tissue(head, hu, stage(SOFT))
    brain(head, cavity, hu, stage(BRAIN))
    details(head, skin, hu, stage(DETAILS))
    skin = holder(head, skin, stage(HOLDER))
    return scan(head.image, skin, head.grid, stage(SCANNER)), head.grid.affine


def posture(spacing_mm: float, rng: np.random.Generator, shape_rng: np.random.Generator) -> Head:
    """A Head of air: nodding by up to 20 degrees, turned, resized; with or without the neck, or the brain alone."""
    zoom = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)
    angles = np.deg2rad([rng.uniform(-20, 20), rng.normal(0, 4), rng.normal(0, 6)])
    matrix = np.diag(1 / zoom) @ rotation(angles)
    view = list(VIEWS)[rng.choice(len(VIEWS), p=[odds for odds, _ in VIEWS.values()])]
    low = VIEWS[view][1] * zoom[2] + rng.uniform(-8, 8)
    high = 84 * zoom[2] + rng.uniform(-20 if view == "brain" else 0, 25)
    side, back, front = rng.uniform(92, 125) * zoom[0], rng.uniform(112, 140) * zoom[1], rng.uniform(118, 140) * zoom[1]
    grid = covering((-side, -back, low), (side, front, high), spacing_mm)
    coordinates = np.stack(np.meshgrid(*grid.axes(), indexing="ij"))
    reference = np.einsum("ij,jdhw->idhw", matrix.astype(np.float32), coordinates)
    for axis in reference:
        axis += np.float32(ELASTIC_MM) * np.clip(field(grid.axes(), 90.0, shape_rng), -3, 3)
    return Head(grid, matrix, reference, np.full(grid.shape, -1000.0, np.float32))


def soft_tissue(head: Head, hu: Mapping[str, float], rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Paint skin, fat, muscle and the skull around its cavity.

    returns: depths (mm) below the skin and below the inner side of the skull, (D, H, W) each
    """
    x, y, z = head.reference
    axes = head.grid.axes()
    front_base = 0.8 * (z + 30 + 0.9 * np.maximum(25 - y, 0))              # the floor of the braincase rises in front
    cerebrum, *others = ellipsoids(head, BRAINCASE)
    cavity = joined([np.minimum(cerebrum, front_base), *others], 3.0)
    skull_mm = rng.uniform(4.5, 8.0) + 1.2 * field(axes, 60.0, rng) + 3 * np.exp(-((y + 85) / 20) ** 2)
    skull_mm = np.clip(skull_mm, 3.0, 14.0)
    scalp_mm = rng.uniform(4, 9)
    neck_mm = rng.uniform(50, 66) + 25 / (1 + np.exp((z + 195) / 12))      # widens towards the shoulders
    neck = np.minimum(neck_mm - np.hypot(x, 1.05 * (y + 10)), -(z + 50))
    skin = joined([cavity + skull_mm + scalp_mm, neck, *ellipsoids(head, OUTLINE)], 3.0)
    zero, streaks = field(axes, 24.0, rng), field(axes, 9.0, rng)
    head.paint(skin, hu["skin"])
    head.paint(skin - 2.2, hu["fat"] + 6 * streaks)
    fat_mm = rng.uniform(4, 13)
    planes = 18 * (np.abs(zero) - rng.uniform(0.15, 0.5))                  # fat between muscles where the field is 0
    vault = 45 - z - 0.6 * np.abs(y)                                       # the temporal muscle ends on the vault
    head.paint(np.minimum(np.minimum(skin - fat_mm, planes), vault), hu["muscle"] + 5 * streaks)
    head.paint(np.minimum(cavity + skull_mm, skin - 2), hu["table"])
    table_mm = rng.uniform(1.2, 2.0)
    head.paint(np.minimum(cavity + skull_mm - table_mm, skin - 2), hu["diploe"] + 130 * streaks)
    head.paint(cavity + table_mm, hu["table"])
    return skin, cavity


def brain(head: Head, cavity: NDArray, hu: Mapping[str, float], rng: np.random.Generator) -> None:
    """Fill the cavity with fluid, grey and white matter, nuclei, ventricles, falx, and a bleeding in an eighth of the
    heads.

    cavity: depth (mm) below the inner side of the skull, (D, H, W)
    """
    x, y, z = head.reference
    axes = head.grid.axes()
    gap_mm, wide = rng.uniform(1.0, 4.0), rng.uniform(0.05, 0.25)  # space outside the brain and width of the sulci
    depth, fold = cavity - gap_mm, np.abs(field(axes, 22.0, rng))          # sulci lie where the field is 0
    hind = (y < -12) & (z < -18 - 0.2 * (y + 12))
    fold = np.where(hind, np.abs(np.sin(np.pi * (z + 0.3 * y) / 7)) + 0.1, fold)    # leaves of the cerebellum
    head.paint(cavity, hu["csf"])
    head.paint(depth, hu["grey"])
    head.paint(np.minimum(depth - 3.5, 12 * (fold - 0.25)), hu["white"] + 1.5 * field(axes, 12.0, rng))
    head.paint(np.minimum(np.minimum(depth, 18 - depth), 10 * (wide * (1 - depth / 18) - fold)), hu["csf"])
    for tissue, points, radius in NUCLEI:
        put(head, tissue, points, radius, hu, rng)
    ventricle_mm = rng.uniform(4.0, 11.0)
    for tissue, points, radius in VENTRICLES:
        put(head, tissue, points, radius if np.ndim(radius) else np.asarray(radius) * ventricle_mm, hu, rng)
    middle = np.minimum(np.minimum(depth + 2, z - 12 + 0.2 * np.abs(y)), np.hypot(y / 45, (z - 8) / 28) * 20 - 20)
    head.paint(np.minimum(middle, wide * 18 - np.abs(x)), hu["csf"])
    head.paint(np.minimum(middle, rng.uniform(0.6, 1.4) - np.abs(x)), hu["dura"])
    if rng.random() < 0.12:
        centre = rng.uniform((-45, -50, -10), (45, 50, 45))
        put(head, "clot", centre[None], rng.uniform(6, 20, 3), hu, rng, mirror=False)
    if rng.random() < 0.5:
        put(head, "calcium", [(0, -26, 6)], (3, 3, 3), hu, rng)            # pineal gland


def details(head: Head, skin: NDArray, hu: Mapping[str, float], rng: np.random.Generator) -> None:
    """Paint all PARTS, such as bones, teeth, sinuses, eyes, airway, glands and vessels, and cut off what leaves the
    skin.

    skin: depth (mm) below the skin, (D, H, W)
    """
    toothless, filled = rng.random() < 0.2, rng.random() < 0.4
    cells = np.abs(field(head.grid.axes(), 9.0, rng))
    mucus = rng.random() < 0.15                                            # in some of the sinuses and mastoid cells
    for tissue, points, radius in PARTS:
        if tissue == "enamel":
            if not toothless:
                filling = {"enamel": 6000.0} if filled and rng.random() < 0.2 else {}
                put(head, tissue, points, radius, {**hu, **filling}, rng)
        elif tissue in ("air", "cells", "orbit"):
            for side in both_sides(points):
                _paint_cavity(head, tissue, side, radius, cells, mucus, hu, rng)
        else:
            put(head, tissue, points, radius, hu, rng)
    head.paint(-skin, -1000.0)


def _paint_cavity(head: Head, tissue: str, points: NDArray, radius: ArrayLike, cells: NDArray, mucus: bool,
                  hu: Mapping[str, float], rng: np.random.Generator) -> None:
    """Paint one sinus ("air"), a region of cells or an orbit: a wall of bone and its filling.

    cells: (D, H, W), low in the septa between cells; mucus: half of the cavities hold mucus instead of air
    """
    coordinates, box, depth = shape(head, points, radius, rng)
    wall = 1.5 if tissue != "orbit" else np.minimum(1.8, 74 - coordinates[1])       # orbits are open in front
    head.paint(np.minimum(depth + wall, 1.8 + wall), 0.5 * (hu["table"] + hu["diploe"]), box)
    if tissue == "cells":
        head.paint(depth, hu["mucosa"] + 150, box)
        depth = np.minimum(depth, 10 * (cells[box] - 0.25))
    if tissue == "orbit":
        filling = hu["fat"]
    else:
        filling = hu["mucosa"] - 20 if mucus and rng.random() < 0.5 else hu["gas"]
    head.paint(depth, filling, box)


def shape(head: Head, points: ArrayLike, radius: ArrayLike, rng: np.random.Generator) -> tuple[NDArray, Box, NDArray]:
    """An ellipsoid or a tube, moved and resized a little.

    returns: coordinates (3, d, h, w) mm in the reference head, the box of the CT around the shape, depth (d, h, w) mm
    """
    points = np.asarray(points, float)
    points = points + rng.normal(0, JITTER_MM, 3) * (points[:, 0].any() or [0, 1, 1])     # stays in the midline
    radius = np.asarray(radius) * rng.uniform(0.92, 1.08)
    box = head.around(points, radius)
    in_box = (slice(None), *box)
    coordinates = head.reference[in_box]
    depth = ellipsoid(coordinates, points[0], radius) if np.ndim(radius) else tube(coordinates, points, radius)
    return coordinates, box, depth


def put(head: Head, tissue: str, points: Sequence[Point] | NDArray, radius: ArrayLike, hu: Mapping[str, float],
        rng: np.random.Generator, mirror: bool = True) -> None:
    """Paint a part, on both sides if it does not lie in the midline."""
    for side in both_sides(points) if mirror else [np.asarray(points)]:
        _, box, depth = shape(head, side, radius, rng)
        if tissue == "bone":
            head.paint(depth, hu["table"], box)
            head.paint(depth - 1.7, 0.6 * hu["diploe"], box)
        else:
            head.paint(depth, hu[tissue], box)


def holder(head: Head, skin: NDArray, rng: np.random.Generator) -> NDArray:
    """Lay half of the heads in a shell with foam; returns the depth (mm) below the skin or the shell, (D, H, W)."""
    if rng.random() < 0.5:
        return skin
    x, y, z = head.grid.mesh()
    gap, thick, width = rng.uniform(4, 14), rng.uniform(2.5, 5), rng.uniform(88, 105)
    inside = np.argwhere((skin > 0).any(axis=2))
    back = y[0, inside[:, 1].min(), 0]
    bowl = np.hypot(x, (y - back - width + gap) * 0.95) - width  # positive outside the inner side of the shell
    shell = np.minimum(np.minimum(bowl, thick - bowl), back + rng.uniform(50, 110) - y) + 0 * z
    head.image[(skin < 0) & (bowl < 0) & (bowl > -gap) & (y < back + 60)] = rng.uniform(-975, -900)
    shell = np.where(skin < 0, shell, -1.0).astype(np.float32)
    head.paint(shell, np.asarray(rng.uniform(-600, 150), np.float32))
    return np.maximum(skin, np.where(shell > -0.5 * head.grid.spacing_mm, 0.1, -np.inf)).astype(np.float32)
