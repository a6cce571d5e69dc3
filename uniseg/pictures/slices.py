"""Pictures of a CT with its masks, written as PNG without a plotting package."""

import colorsys

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..imaging.volume import scale_hu, voxel_size_mm

CROSS = ndimage.generate_binary_structure(2, 1)
# Letters of 3 x 5 pixels: a digit a row, its three bits the pixels from left to right.
GLYPHS = dict(zip("0123456789RA", "75557 26227 71747 71717 55711 74717 74757 71222 75757 75717 65655 25755".split()))


def class_color(value):
    """RGB of a value of the label map. Classes beyond Table 2 get strong colours, hues a golden section of the circle apart."""
    if value <= len(taxonomy.CLASSES):
        return taxonomy.CLASSES[value - 1].color
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(value * 0.618034 % 1, 1.0, (1.0, 0.7)[value // 16 % 2]))


def middle(label_map):
    """The mean voxel of all labels, (3,) int, by every fourth voxel of each axis; the volume's own where there is none."""
    found = np.argwhere(label_map[::4, ::4, ::4] > 0) * 4
    return found.mean(axis=0).astype(int) if len(found) else np.array(label_map.shape) // 2


def overlay(hu, label_map, affine, at=None, hu_window=(-175.0, 250.0), size=320):
    """Axial, coronal and sagittal slice side by side as a radiologist sees them: masks tinted and outlined, with their numbers.

    The patient's right (R) is on the picture's left; the sagittal slice looks to the left (A: anterior).
    hu, label_map: (D, H, W) RAS+; at: voxel the slices go through (default: on each axis the slice that shows most)
    returns:       (size, 3 * size, 3) uint8; mm are true to scale within each slice
    """
    at = _most_telling(label_map) if at is None else at
    spacing = voxel_size_mm(affine)
    panels = []
    for axis, (across, down), mark in ((2, (0, 1), "R"), (1, (0, 2), "R"), (0, (1, 2), "A")):
        # rows: down, columns: across
        planes = [a[(slice(None),) * axis + (int(at[axis]),)][::-1, ::-1].T for a in (hu, label_map)]
        panels.append(panel(*planes, spacing[down], spacing[across], hu_window, size))
        _write(panels[-1], mark, size // 2, 8)
    return np.concatenate(panels, axis=1)


def _most_telling(label_map):
    """On each axis the slice with the largest sum, over classes, of the square root of the area: many, and in full view."""
    step = 4 if label_map[::4, ::4, ::4].any() else 1
    sparse = np.asarray(label_map[::step, ::step, ::step])
    score = [np.zeros(n) for n in sparse.shape]
    for value in np.unique(sparse[sparse > 0]):
        for axis in range(3):
            score[axis] += np.sqrt((sparse == value).sum(axis=tuple({0, 1, 2} - {axis})))
    return [step * int(s.argmax()) if s.any() else n // 2 for s, n in zip(score, label_map.shape)]


def panel(hu, labels, row_mm, column_mm, hu_window, size):
    """One slice fitted into a black square, masks tinted, their outlines in full colour, their numbers inside."""
    mm_per_pixel = max(hu.shape[0] * row_mm, hu.shape[1] * column_mm) / size
    rows, columns = (np.minimum((np.arange(max(1, int(n * mm / mm_per_pixel))) * mm_per_pixel / mm).astype(int), n - 1)
                     for n, mm in zip(hu.shape, (row_mm, column_mm)))
    grey, labels = scale_hu(hu[np.ix_(rows, columns)], hu_window) * 255, labels[np.ix_(rows, columns)]
    rgb = np.repeat(grey[..., None], 3, axis=2)
    edge = ndimage.maximum_filter(labels, footprint=CROSS) != ndimage.minimum_filter(labels, footprint=CROSS)
    numbers = np.unique(labels[labels > 0])
    for number in numbers:
        mask, color = labels == number, class_color(number)
        rgb[mask] = 0.7 * rgb[mask] + 0.3 * np.array(color)
        rgb[mask & edge] = color
    for number in numbers:
        points = np.argwhere(labels == number)
        row, column = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        above = len(points) < 800                             # pixels; the number would cover the structure
        _write(rgb, str(number), points[:, 0].min() - 8 if above else row, column)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - rgb.shape[0]) // 2, (size - rgb.shape[1]) // 2
    square[top:top + rgb.shape[0], left:left + rgb.shape[1]] = rgb
    return square


def _write(rgb, text, row, column):
    """Write digits, R or A in white on black, centred at a pixel, moved inside; left out where the picture is smaller."""
    ink = np.concatenate([np.pad([[int(bit) for bit in f"{int(line):03b}"] for line in GLYPHS[glyph]], ((1, 1), (0, 1)))
                          for glyph in text], axis=1)
    ink = np.kron(np.pad(ink, ((0, 0), (1, 0))), np.ones((2, 2), int))[..., None] * 255
    height, width, _ = ink.shape
    if height <= rgb.shape[0] and width <= rgb.shape[1]:
        top, left = (int(np.clip(at - extent // 2, 0, whole - extent))
                     for at, extent, whole in zip((row, column), ink.shape, rgb.shape))
        rgb[top:top + height, left:left + width] = ink
