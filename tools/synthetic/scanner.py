"""What the scanner makes of a patient: table, blur, slices, noise, streaks, padding.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). The noise's correlation is fitted to what tools/measure_hu.py finds
in the livers of two real CTs with voxels of 0.7 and 1.0 mm (hu.json): 0.64 and 0.61 to the next voxel, 0.30 at two, 0.10 at five.
"""

import numpy as np
from scipy import ndimage

from .geometry import field

# Two kinds of noise, share of the variance and sigma (mm) of the blur that gives the first its correlation.
NOISE = ((0.78, 0.55), (0.22, 1.7))


def table(skin, grid, rng):
    """Share (0 to 1) and HU of a curved table behind the patient and of a mattress: ((D, H, W) share, HU) pairs."""
    x, y, _ = grid.mesh()
    inside = np.argwhere((skin > 0).any(axis=2))
    if not len(inside):
        return []
    back, middle = y[0, inside[:, 1].min(), 0], np.mean(x[inside[:, 0], 0, 0])
    curve = y - back + rng.uniform(1, 5) - rng.uniform(2e-4, 9e-4) * (x - middle) ** 2            # 0 at the mattress's top
    wide = np.abs(x - middle) < rng.uniform(190, 240)
    air, layers, depth = skin < 0, [], 0.0
    plan = [(rng.uniform(8, 25), rng.uniform(-960, -850)), (rng.uniform(1.5, 3.0), rng.uniform(-150, 500)),
            (rng.uniform(15, 50), rng.uniform(-985, -900)), (rng.uniform(1.0, 2.5), rng.uniform(-300, 300))]
    for thick, value in plan:
        below = -(curve + depth) / grid.spacing_mm
        part = np.clip(below + 0.5, 0, 1) * np.clip(thick / grid.spacing_mm - below + 0.5, 0, 1)
        layers.append(((part * wide * air).astype(np.float32), value))
        depth += thick
    return layers


def blur(image, grid, rng):
    """The scanner's own blur in the plane and the slice's thickness along z, drawn; at least half a voxel (partial volume)."""
    voxel = 0.42 * grid.spacing_mm
    in_plane = max(voxel, rng.uniform(0.5, 1.0))
    thick = max(voxel, rng.choice([1.0, 1.5, 2.5, 3.0, 5.0], p=[0.2, 0.15, 0.25, 0.2, 0.2]) / np.sqrt(12))        # sd of a box
    return ndimage.gaussian_filter(image, np.array([in_plane, in_plane, thick]) / grid.spacing_mm, mode="nearest", truncate=3)


def noise(shape, spacing_mm, rng):
    """Noise of unit variance with the correlation of real CT at this voxel size, float32."""
    total = np.zeros(shape, np.float32)
    for part, sigma_mm in NOISE:
        white = rng.standard_normal(shape, np.float32)
        sigma = sigma_mm / spacing_mm
        if sigma > 0.3:                                                  # narrower than that, voxels are independent
            white = ndimage.gaussian_filter(white, (sigma, sigma, 0.6 * sigma), mode="wrap", truncate=3)
            white /= white.std()
        total += np.float32(np.sqrt(part)) * white
    return total


def streaks(image, grid, rng):
    """Dark and bright lines across the patient where much bone lies in the way (shoulders, hips), HU."""
    lines = rng.standard_normal(image.shape, np.float32)
    lines = ndimage.gaussian_filter(lines, (30 / grid.spacing_mm, 1.0, 0.6))
    bone = (image > 250).mean(axis=(0, 1))
    return lines / lines.std() * (rng.uniform(5, 15) * bone / max(bone.max(), 1e-6)).astype(np.float32)


def scan(image, skin, grid, rng):
    """The CT (D, H, W) int16 of a patient's HU (float32), whose depth below the skin is `skin` in mm (negative outside)."""
    if rng.random() < 0.85:
        for part, value in table(skin, grid, rng):
            image += part * (value - image)
    image = blur(image, grid, rng)
    sd = min(rng.lognormal(np.log(10), 0.5), 35.0)         # 11 to 16 HU in five livers as scanned; resampling takes some of it
    deep = 0.75 + 0.5 * np.clip(skin / 90, -0.6, 1)                      # noise grows with the way through the body
    image += np.float32(sd) * deep * noise(image.shape, grid.spacing_mm, rng)
    image += 2.0 * field(grid.axes(), 150.0, rng)                        # cupping and scatter
    if rng.random() < 0.12:
        image += streaks(image, grid, rng) * (skin > 0)
    image = np.clip(np.rint(image), -1024, 3071)
    if rng.random() < 0.4:                                               # the round field of view of the scanner
        x, y, _ = grid.mesh()
        middle, reach = [(a.min() + a.max()) / 2 for a in (x, y)], max(np.ptp(x), np.ptp(y)) / 2
        outside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 > (reach * rng.uniform(1.0, 1.1)) ** 2
        image[np.broadcast_to(outside, image.shape)] = rng.choice([-1024, -2048], p=[0.7, 0.3])
    return image.astype(np.int16)
