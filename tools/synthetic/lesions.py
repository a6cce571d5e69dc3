"""Lesions painted into the synthetic CT, so that tumour classes are seen at all. They are drawings, not patients' tumours.

Beyond the paper (docs/synthetic.md). A lesion is an ellipsoid whose surface a smooth random field moves in and out. KINDS says how
often each class is painted, how many, how large; sizes are log-uniform between two radii. Every lesion belongs to its organ
(Section 4.1.1): its voxels are added to the organ's mask where it bulges out of it.
"""

from typing import NamedTuple

import numpy as np

from .contents import lumen, sub_grid
from .geometry import field, soften


class Kind(NamedTuple):
    """How often and how a class of lesion is painted."""

    organs: tuple              # classes that may hold it; one is chosen
    probability: float         # of a patient having any
    most: int                  # lesions a patient
    radius_mm: tuple           # smallest, largest
    rough: float               # how far the surface leaves the ellipsoid, share of the radius
    bulge: bool                # may leave the organ into fat


KINDS = {
    "liver_tumor": Kind(("liver",), 0.4, 6, (4.0, 35.0), 0.14, False),
    "kidney_tumor": Kind(("right_kidney", "left_kidney"), 0.2, 1, (9.0, 35.0), 0.12, True),
    "kidney_cyst": Kind(("right_kidney", "left_kidney"), 0.3, 3, (4.0, 25.0), 0.04, True),
    "lung_tumor": Kind(("right_lung", "left_lung"), 0.3, 3, (4.0, 24.0), 0.28, False),
    "pancreatic_tumor": Kind(("pancreas",), 0.2, 1, (6.0, 18.0), 0.16, True),
    "colon_tumor": Kind(("colon",), 0.2, 1, (12.0, 26.0), 0.18, True),
}


def blob(axes, centre_mm, radius_mm, rough, rng):
    """Depth (mm, roughly) of each voxel below the surface of a random lesion, (D, H, W) float32; negative outside."""
    ratios = rng.uniform(0.8, 1.25, 3)
    ratios *= radius_mm / np.cbrt(ratios.prod())
    x, y, z = np.meshgrid(*(a - c for a, c in zip(axes, centre_mm)), indexing="ij", sparse=True)
    distance = np.sqrt((x / ratios[0]) ** 2 + (y / ratios[1]) ** 2 + (z / ratios[2]) ** 2)
    return radius_mm * (1 + rough * field(axes, max(1.1 * radius_mm, 6.0), rng) - distance).astype(np.float32)


def paint_lesions(patient, masks, free, rng, kinds=KINDS):
    """Paint lesions into the patient's image and return {class: mask}, an empty mask for a class that is not painted.

    masks: {class: mask} of organs; grown where a lesion bulges out
    free:  (D, H, W) bool, unlabelled places a bulging lesion may take (fat inside the wall)
    """
    lesions = {}
    for name, kind in kinds.items():
        lesions[name] = np.zeros(patient.grid.shape, bool)
        count = rng.integers(1, kind.most + 1) if rng.random() < kind.probability else 0
        for _ in range(count):
            organ = kind.organs[rng.integers(len(kind.organs))]
            if organ in masks and masks[organ].any():
                _one(patient, name, kind, masks[organ], free, lesions, rng)
    return lesions


def _one(patient, name, kind, organ, free, lesions, rng):
    """One lesion of a class in one organ: its mask and its HU. What another lesion holds is left to it."""
    grid = patient.grid
    voxels = np.flatnonzero(organ)
    at = np.array(np.unravel_index(rng.choice(voxels), organ.shape)) * grid.spacing_mm + grid.origin_mm
    low, high = kind.radius_mm
    most = np.cbrt(len(voxels) * grid.spacing_mm ** 3) / (2.5 if kind.bulge else 4.0)     # a lesion does not replace its organ
    radius = min(low * (high / low) ** rng.random(), max(low, most))
    box = _box(grid, at, 1.6 * radius)
    here = sub_grid(grid, box)
    depth = blob(here.axes(), at, radius, kind.rough, rng)
    if name == "lung_tumor":
        depth += _spicules(here, at, radius, rng)
    within = organ[box] | free[box] if kind.bulge else organ[box].copy()
    for other in lesions.values():
        within &= ~other[box]
    if name == "colon_tumor":                                        # the wall thickens, a narrow lumen remains
        within &= organ[box] & (lumen(organ[box], here, radius * rng.uniform(0.5, 0.9)) < 0.5) \
            | free[box] & (soften(organ[box], here, 3.0) > 0.15)
    mask = (depth > 0) & within
    if mask.sum() < 2:
        return
    value = APPEARANCE[name](patient, here, depth, radius, rng)
    patient.paint(box, np.clip(depth / grid.spacing_mm + 0.5, 0, 1) * within, value)
    lesions[name][box] |= mask
    organ[box] |= mask


def _box(grid, centre, reach):
    """Slices of the voxels within `reach` mm of a point along each axis."""
    index = (np.asarray(centre) - grid.origin_mm) / grid.spacing_mm
    return tuple(slice(max(0, int(i - reach / grid.spacing_mm)), min(n, int(i + reach / grid.spacing_mm) + 2))
                 for i, n in zip(index, grid.shape))


def _spicules(grid, centre, radius, rng):
    """Added depth along random directions: the rays of a spiculated nodule (half of the nodules are smooth)."""
    if rng.random() < 0.5:
        return np.float32(0)
    x, y, z = (a - c for a, c in zip(grid.mesh(), centre))
    away = np.sqrt(x ** 2 + y ** 2 + z ** 2) + 1e-3
    rays = rng.normal(size=(rng.integers(5, 14), 3))
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    nearest = np.max([(x * a + y * b + z * c) / away for a, b, c in rays], axis=0)
    return (0.5 * radius * np.exp((nearest - 1) * 30)).astype(np.float32)


# ------------------------------------------------------------------------------------------ HU of a lesion by phase

def _liver(patient, grid, depth, radius, rng):
    """Darker than the liver with a rim, or bright in the arterial phase and washed out later; dead inside."""
    liver, texture = patient.hu["liver"], 6 * field(grid.axes(), 8.0, rng)
    strength = {"native": 0.35, "arterial": 0.55, "portal": 1.0, "late": 0.7}[patient.phase]
    if rng.random() < 0.25 and patient.phase != "native":            # as hepatocellular carcinoma
        value = liver + (rng.uniform(20, 60) if patient.phase == "arterial" else -rng.uniform(10, 30)) + 2 * texture
    else:
        value = liver - strength * rng.uniform(20, 65) + texture
        if rng.random() < 0.5:
            value = value + strength * rng.uniform(10, 30) * np.exp(-((depth - 2.5) / 2.0) ** 2)
    if radius > 12 and rng.random() < 0.6:
        dead = np.clip((depth - rng.uniform(0.35, 0.6) * radius + 2 * field(grid.axes(), 12.0, rng)) / 3, 0, 1)
        value = value + dead * (rng.uniform(5, 25) - value)
    return value


def _kidney(patient, grid, depth, radius, rng):
    """Solid, uneven, mostly less bright than the cortex; dead inside when large."""
    gain = 0.0 if patient.phase == "native" else rng.uniform(0.35, 0.9 if patient.phase == "arterial" else 0.68)
    value = 35 + gain * (patient.hu["cortex"] - 35) + 14 * field(grid.axes(), 9.0, rng)
    if radius > 14:
        dead = np.clip(field(grid.axes(), 0.9 * radius, rng) - 0.2, 0, 1) * (depth > 0.25 * radius)
        value = value - dead * (value - 18)
    return value


def _cyst(patient, grid, depth, radius, rng):
    return np.full(grid.shape, rng.uniform(-2, 16), np.float32)


def _lung(patient, grid, depth, radius, rng):
    """Solid, with air inside now and then."""
    value = 32 + (0 if patient.phase == "native" else rng.uniform(5, 45)) + 8 * field(grid.axes(), 8.0, rng)
    if radius > 10 and rng.random() < 0.2:
        value = np.where((depth > 0.45 * radius) & (field(grid.axes(), radius, rng) > -0.5), patient.hu["gas"], value)
    return value


def _pancreas(patient, grid, depth, radius, rng):
    gain = patient.hu["pancreas"] - 38
    return 36 + rng.uniform(0.1, 0.55) * max(gain, 0) + 6 * field(grid.axes(), 8.0, rng)


def _colon(patient, grid, depth, radius, rng):
    return 0.9 * patient.hu["gut_wall"] + rng.uniform(0, 25) + 8 * field(grid.axes(), 8.0, rng)


APPEARANCE = {"liver_tumor": _liver, "kidney_tumor": _kidney, "kidney_cyst": _cyst, "lung_tumor": _lung,
              "pancreatic_tumor": _pancreas, "colon_tumor": _colon}
