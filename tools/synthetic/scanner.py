"""What the scanner makes of a patient: table, blur, slices, noise, streaks, padding.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). The correlation of the noise is fitted to what
tools/measure_hu.py finds in the livers of two real CTs with voxels of 0.7 and 1.0 mm (hu.json): 0.64 and 0.61 to the
next voxel, 0.30 over two voxels, 0.10 over five.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .geometry import Grid, field

# Two kinds of noise: share of the variance, and sigma (mm) of the blur that correlates the voxels.
NOISE = ((0.78, 0.55), (0.22, 1.7))
# Scanners as in clinics (`clinic`): what a CT was made for, and how often.
PROTOCOLS = {"standard": 0.4, "low dose": 0.25, "sharp kernel": 0.2, "thick slices": 0.15}
CUT_BY_CIRCLE, TARGETED = 0.6, 0.3   # probability of a circle that cuts the patient; of one around a part of it


def table(skin: NDArray, grid: Grid, rng: np.random.Generator) -> list[tuple[NDArray[np.float32], float]]:
    """A curved table behind the patient with a mattress: per layer the share (0 to 1) of each voxel that it fills, and
    its HU.

    skin: (D, H, W) depth below the skin, positive inside the patient
    """
    x, y, _ = grid.mesh()
    inside = np.argwhere((skin > 0).any(axis=2))
    if not len(inside):
        return []
    back, middle = y[0, inside[:, 1].min(), 0], np.mean(x[inside[:, 0], 0, 0])
    # 0 at the top of the mattress
    curve = y - back + rng.uniform(1, 5) - rng.uniform(2e-4, 9e-4) * (x - middle) ** 2
    wide = np.abs(x - middle) < rng.uniform(190, 240)
    air, layers, depth = skin < 0, [], 0.0
    plan = [(rng.uniform(8, 25), rng.uniform(-960, -850)), (rng.uniform(1.5, 3.0), rng.uniform(-150, 500)),
            (rng.uniform(15, 50), rng.uniform(-985, -900)), (rng.uniform(1.0, 2.5), rng.uniform(-300, 300))]
    for thick, value in plan:                                            # mattress, shell, foam, shell
        below = -(curve + depth) / grid.spacing_mm
        part = np.clip(below + 0.5, 0, 1) * np.clip(thick / grid.spacing_mm - below + 0.5, 0, 1)
        layers.append(((part * wide * air).astype(np.float32), value))
        depth += thick
    return layers


def blur(image: NDArray, grid: Grid, rng: np.random.Generator) -> NDArray:
    """Blur an image as a scanner does: its own blur in the plane, the slice thickness along z, both random.

    The blur is at least half a voxel wide, which gives partial volume.
    """
    voxel = 0.42 * grid.spacing_mm
    in_plane = max(voxel, rng.uniform(0.5, 1.0))
    slice_mm = rng.choice([1.0, 1.5, 2.5, 3.0, 5.0], p=[0.2, 0.15, 0.25, 0.2, 0.2])
    across = max(voxel, slice_mm / np.sqrt(12))                          # standard deviation of a box
    sigma = np.array([in_plane, in_plane, across]) / grid.spacing_mm
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)


def noise(shape: tuple[int, ...], spacing_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of unit variance with the correlation of real CT at this voxel size."""
    total = np.zeros(shape, np.float32)
    for share, sigma_mm in NOISE:
        white = rng.standard_normal(shape, np.float32)
        sigma = sigma_mm / spacing_mm
        if sigma > 0.3:  # with a narrower blur the voxels are independent
            white = ndimage.gaussian_filter(white, (sigma, sigma, 0.6 * sigma), mode="wrap", truncate=3)
            white /= white.std()
        total += np.float32(np.sqrt(share)) * white
    return total


def streaks(image: NDArray, grid: Grid, rng: np.random.Generator) -> NDArray:
    """Dark and bright lines across the patient in slices with much bone (shoulders, hips), HU."""
    lines = rng.standard_normal(image.shape, np.float32)
    lines = ndimage.gaussian_filter(lines, (30 / grid.spacing_mm, 1.0, 0.6))
    bone = (image > 250).mean(axis=(0, 1))
    return lines / lines.std() * (rng.uniform(5, 15) * bone / max(bone.max(), 1e-6)).astype(np.float32)


def clinic(image: NDArray, skin: NDArray, grid: Grid, rng: np.random.Generator) -> NDArray[np.int16]:
    """The CT (D, H, W) of a patient, scanned with one of PROTOCOLS; arguments as those of `scan`.

    standard: as `scan`; low dose: as beside a PET, with two to three times the noise; sharp kernel: that of lungs, with
    bright and dark edges and much noise; thick slices: of 4 to 7 mm, and as far apart, interpolated in between
    """
    protocol = list(PROTOCOLS)[rng.choice(len(PROTOCOLS), p=list(PROTOCOLS.values()))]
    image = scan(image, skin, grid, rng).astype(np.float32)
    if protocol == "low dose":
        image += np.float32(rng.uniform(15, 40)) * noise(image.shape, grid.spacing_mm, rng)
    if protocol == "sharp kernel":
        smooth = ndimage.gaussian_filter(image, rng.uniform(1.5, 2.5) / grid.spacing_mm, truncate=3)
        image += np.float32(rng.uniform(0.5, 1.3)) * (image - smooth)
        image += np.float32(rng.uniform(10, 40)) * rng.standard_normal(image.shape, np.float32)
    if protocol == "thick slices":
        image = thick_slices(image, grid, rng.uniform(4, 7))
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def thick_slices(image: NDArray, grid: Grid, slice_mm: float) -> NDArray[np.float32]:
    """The image (D, H, W) as it comes back from slices of `slice_mm`, one beside the other: a mean over each slice,
    linear in between, as a resampling to a finer grid makes it."""
    z = grid.spacing_mm * np.arange(grid.shape[2])
    centres = np.arange(z[0], max(z[-1], z[0] + slice_mm), slice_mm)
    means = ndimage.uniform_filter1d(image, max(1, round(slice_mm / grid.spacing_mm)), axis=2, mode="nearest")
    slices = means[:, :, np.clip(np.rint(centres / grid.spacing_mm).astype(int), 0, grid.shape[2] - 1)]
    position = np.clip(z / slice_mm, 0, len(centres) - 1)
    below = np.minimum(position.astype(int), len(centres) - 2)
    weight = (position - below).astype(np.float32)
    return slices[:, :, below] * (1 - weight) + slices[:, :, below + 1] * weight


def circle(skin: NDArray, grid: Grid, rng: np.random.Generator) -> tuple[NDArray[np.bool_], int] | None:
    """A circular field of view that cuts the patient: (the pixels (D, H) that lie outside, the padding's HU).

    skin: (D, H, W) depth below the skin in mm. None where no circle is drawn, or none that cuts the patient.
    """
    drawn, targeted = rng.random() < CUT_BY_CIRCLE, rng.random() < TARGETED
    aside, share, padding = rng.uniform(-1, 1, 2), rng.uniform(), rng.choice([-1024, -2048], p=[0.6, 0.4])
    pixels = np.argwhere((skin > 0).any(axis=2))
    if not drawn or not len(pixels):
        return None
    x, y, _ = grid.mesh()
    (left, back), (right, front) = pixels.min(axis=0), pixels.max(axis=0)
    half_mm = (right - left) * grid.spacing_mm / 2
    radius = half_mm * (0.45 + 0.25 * share if targeted else 0.65 + 0.3 * share)
    aside = aside * (0.5 if targeted else 0.12) * half_mm
    middle = [(x[left, 0, 0] + x[right, 0, 0]) / 2 + aside[0], (y[0, back, 0] + y[0, front, 0]) / 2 + 0.5 * aside[1]]
    outside = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 > radius ** 2)[:, :, 0]
    return outside, int(padding)


def scan(image: NDArray, skin: NDArray, grid: Grid, rng: np.random.Generator) -> NDArray[np.int16]:
    """The CT (D, H, W) of a patient.

    image: (D, H, W) float32 HU; skin: (D, H, W) depth below the skin in mm, negative outside
    """
    if rng.random() < 0.85:
        for share, value in table(skin, grid, rng):
            image += share * (value - image)
    image = blur(image, grid, rng)
    sd = min(rng.lognormal(np.log(10), 0.5), 35.0)         # 11 to 16 HU in five real livers; resampling lowers it
    deep = 0.75 + 0.5 * np.clip(skin / 90, -0.6, 1)                      # noise grows with the way through the body
    image += np.float32(sd) * deep * noise(image.shape, grid.spacing_mm, rng)
    image += 2.0 * field(grid.axes(), 150.0, rng)                        # cupping and scatter
    if rng.random() < 0.12:
        image += streaks(image, grid, rng) * (skin > 0)
    image = np.clip(np.rint(image), -1024, 3071)
    if rng.random() < 0.4:                                               # the round field of view of the scanner
        x, y, _ = grid.mesh()
        middle = [(axis.min() + axis.max()) / 2 for axis in (x, y)]
        radius = max(np.ptp(x), np.ptp(y)) / 2 * rng.uniform(1.0, 1.1)
        outside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 > radius ** 2
        image[np.broadcast_to(outside, image.shape)] = rng.choice([-1024, -2048], p=[0.7, 0.3])
    return image.astype(np.int16)
