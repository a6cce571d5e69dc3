"""Lesions painted into the synthetic CT, so that training sees tumour classes at all. They are drawings, not real
tumours.

Beyond the paper (docs/synthetic.md); read contents.py first. A lesion is an ellipsoid whose surface a smooth random
field moves in and out. KINDS says per class how often it is painted, how many and how large; sizes are log-uniform
between two radii. Every lesion belongs to its organ (Section 4.1.1): where it bulges out of the organ, its voxels are
added to the organ's mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .contents import Patient, lumen, sub_grid
from .geometry import Box, Grid, field, soften

Masks = dict[str, NDArray[np.bool_]]


class Kind(NamedTuple):
    """How often and how a class of lesion is painted."""

    organs: tuple[str, ...]    # classes that may hold it; one is drawn at random
    probability: float         # that a patient has any
    most: int                  # lesions per patient
    radius_mm: tuple[float, float]       # smallest, largest
    rough: float               # how far the surface leaves the ellipsoid, as a share of the radius
    bulge: bool                # whether it may leave the organ into fat


KINDS = {
    "liver_tumor": Kind(("liver",), 0.4, 6, (4.0, 35.0), 0.14, False),
    "kidney_tumor": Kind(("right_kidney", "left_kidney"), 0.2, 1, (9.0, 35.0), 0.12, True),
    "kidney_cyst": Kind(("right_kidney", "left_kidney"), 0.3, 3, (4.0, 25.0), 0.04, True),
    "lung_tumor": Kind(("right_lung", "left_lung"), 0.3, 3, (4.0, 24.0), 0.28, False),
    "pancreatic_tumor": Kind(("pancreas",), 0.2, 1, (6.0, 18.0), 0.16, True),
    "colon_tumor": Kind(("colon",), 0.2, 1, (12.0, 26.0), 0.18, True),
}


def blob(axes: list[NDArray], centre_mm: NDArray, radius_mm: float, rough: float,
         rng: np.random.Generator) -> NDArray[np.float32]:
    """Approximate depth (mm) of each voxel below the surface of a random lesion, (D, H, W); negative outside."""
    ratios = rng.uniform(0.8, 1.25, 3)
    ratios *= radius_mm / np.cbrt(ratios.prod())
    x, y, z = np.meshgrid(*(axis - c for axis, c in zip(axes, centre_mm)), indexing="ij", sparse=True)
    distance = np.sqrt((x / ratios[0]) ** 2 + (y / ratios[1]) ** 2 + (z / ratios[2]) ** 2)
    return radius_mm * (1 + rough * field(axes, max(1.1 * radius_mm, 6.0), rng) - distance).astype(np.float32)


def paint_lesions(patient: Patient, masks: Masks, free: NDArray[np.bool_], rng: np.random.Generator,
                  kinds: Mapping[str, Kind] = KINDS) -> Masks:
    """Paint lesions into the patient's image and return {class: mask}, with an empty mask for a class that is not
    painted.

    masks: {class: mask} of organs; grows where a lesion bulges out
    free:  (D, H, W) unlabelled voxels that a bulging lesion may take (fat inside the body wall)
    """
    lesions: Masks = {}
    for name, kind in kinds.items():
        lesions[name] = np.zeros(patient.grid.shape, bool)
        count = rng.integers(1, kind.most + 1) if rng.random() < kind.probability else 0
        for _ in range(count):
            organ = kind.organs[rng.integers(len(kind.organs))]
            if organ in masks and masks[organ].any():
                _paint_one(patient, name, kind, masks[organ], free, lesions, rng)
    return lesions


def _paint_one(patient: Patient, name: str, kind: Kind, organ: NDArray, free: NDArray, lesions: Masks,
               rng: np.random.Generator) -> None:
    """Add one lesion of a class in one organ to the image and the masks. It takes no voxel of another lesion."""
    grid = patient.grid
    voxels = np.flatnonzero(organ)
    centre_mm = np.array(np.unravel_index(rng.choice(voxels), organ.shape)) * grid.spacing_mm + grid.origin_mm
    low, high = kind.radius_mm
    most = np.cbrt(len(voxels) * grid.spacing_mm ** 3) / (2.5 if kind.bulge else 4.0)  # it does not replace its organ
    radius = min(low * (high / low) ** rng.random(), max(low, most))
    box = _box(grid, centre_mm, 1.6 * radius)
    part = sub_grid(grid, box)
    depth = blob(part.axes(), centre_mm, radius, kind.rough, rng)
    if name == "lung_tumor":
        depth += _spicules(part, centre_mm, radius, rng)
    within = organ[box] | free[box] if kind.bulge else organ[box].copy()
    for other in lesions.values():
        within &= ~other[box]
    if name == "colon_tumor":                                        # thickens the wall and leaves a narrow lumen
        within &= organ[box] & (lumen(organ[box], part, radius * rng.uniform(0.5, 0.9)) < 0.5) \
            | free[box] & (soften(organ[box], part, 3.0) > 0.15)
    mask = (depth > 0) & within
    if mask.sum() < 2:
        return
    value = APPEARANCE[name](patient, part, depth, radius, rng)
    patient.paint(box, np.clip(depth / grid.spacing_mm + 0.5, 0, 1) * within, value)
    lesions[name][box] |= mask
    organ[box] |= mask


def _box(grid: Grid, centre_mm: NDArray, reach_mm: float) -> Box:
    """The box of the voxels within `reach_mm` of a point along each axis."""
    index = (np.asarray(centre_mm) - grid.origin_mm) / grid.spacing_mm
    voxels = reach_mm / grid.spacing_mm
    x, y, z = (slice(max(0, int(i - voxels)), min(size, int(i + voxels) + 2)) for i, size in zip(index, grid.shape))
    return x, y, z


def _spicules(grid: Grid, centre_mm: NDArray, radius_mm: float, rng: np.random.Generator) -> NDArray | np.float32:
    """Depth (mm) to add along random directions for the rays of a spiculated nodule; half of the nodules are smooth."""
    if rng.random() < 0.5:
        return np.float32(0)
    x, y, z = (a - c for a, c in zip(grid.mesh(), centre_mm))
    away = np.sqrt(x ** 2 + y ** 2 + z ** 2) + 1e-3
    rays = rng.normal(size=(rng.integers(5, 14), 3))
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    nearest = np.max([(x * a + y * b + z * c) / away for a, b, c in rays], axis=0)
    return (0.5 * radius_mm * np.exp((nearest - 1) * 30)).astype(np.float32)


# ------------------------------------------------------------------------------------------ HU of a lesion by phase
# Each takes the patient, the grid of the lesion's box, the depth (mm) below its surface and its radius (mm), and
# returns HU.

def _liver(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Darker than the liver, half with a rim; or bright in the arterial phase, washed out later. Necrotic centre."""
    liver, texture = patient.hu["liver"], 6 * field(grid.axes(), 8.0, rng)
    strength = {"native": 0.35, "arterial": 0.55, "portal": 1.0, "late": 0.7}[patient.phase]
    if rng.random() < 0.25 and patient.phase != "native":            # as hepatocellular carcinoma
        value = liver + (rng.uniform(20, 60) if patient.phase == "arterial" else -rng.uniform(10, 30)) + 2 * texture
    else:
        value = liver - strength * rng.uniform(20, 65) + texture
        if rng.random() < 0.5:
            value = value + strength * rng.uniform(10, 30) * np.exp(-((depth - 2.5) / 2.0) ** 2)
    if radius > 12 and rng.random() < 0.6:
        necrotic = depth - rng.uniform(0.35, 0.6) * radius + 2 * field(grid.axes(), 12.0, rng)
        value = value + np.clip(necrotic / 3, 0, 1) * (rng.uniform(5, 25) - value)
    return value


def _kidney(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Solid, uneven, mostly less bright than the cortex; necrotic parts when large."""
    gain = 0.0 if patient.phase == "native" else rng.uniform(0.35, 0.9 if patient.phase == "arterial" else 0.68)
    value = 35 + gain * (patient.hu["cortex"] - 35) + 14 * field(grid.axes(), 9.0, rng)
    if radius > 14:
        necrotic = np.clip(field(grid.axes(), 0.9 * radius, rng) - 0.2, 0, 1) * (depth > 0.25 * radius)
        value = value - necrotic * (value - 18)
    return value


def _cyst(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Water, even."""
    return np.full(grid.shape, rng.uniform(-2, 16), np.float32)


def _lung(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Solid; a fifth of the large ones have a cavity with air."""
    value = 32 + (0 if patient.phase == "native" else rng.uniform(5, 45)) + 8 * field(grid.axes(), 8.0, rng)
    if radius > 10 and rng.random() < 0.2:
        value = np.where((depth > 0.45 * radius) & (field(grid.axes(), radius, rng) > -0.5), patient.hu["gas"], value)
    return value


def _pancreas(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """Enhances less than the gland."""
    gain = patient.hu["pancreas"] - 38
    return 36 + rng.uniform(0.1, 0.55) * max(gain, 0) + 6 * field(grid.axes(), 8.0, rng)


def _colon(patient: Patient, grid: Grid, depth: NDArray, radius: float, rng: np.random.Generator) -> NDArray:
    """About as bright as the wall of the gut."""
    return 0.9 * patient.hu["gut_wall"] + rng.uniform(0, 25) + 8 * field(grid.axes(), 8.0, rng)


APPEARANCE = {"liver_tumor": _liver, "kidney_tumor": _kidney, "kidney_cyst": _cyst, "lung_tumor": _lung,
              "pancreatic_tumor": _pancreas, "colon_tumor": _colon}
