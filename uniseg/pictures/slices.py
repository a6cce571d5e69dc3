"""Slices of a CT with its masks in colour, their outlines and their numbers. canvas.py writes them as PNG."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..imaging.grid import voxel_size_mm
from ..imaging.volume import scale_hu
from .canvas import label
from .colors import class_color

CROSS = ndimage.generate_binary_structure(2, 1)
SMALL = 800               # pixels of a structure that its number would cover; the number then stands above it


def labels_centre(label_map: np.ndarray) -> np.ndarray:
    """The mean voxel of all labels, (3,) int, from every fourth voxel of each axis.

    label_map: (D, H, W); without labels the centre of the volume is returned
    """
    voxels = np.argwhere(label_map[::4, ::4, ::4] > 0) * 4
    return voxels.mean(axis=0).astype(int) if len(voxels) else np.array(label_map.shape) // 2


def overlay(hu: np.ndarray, label_map: np.ndarray, affine: np.ndarray, at: Sequence[int] | np.ndarray | None = None,
            hu_window: Sequence[float] = (-175.0, 250.0), size: int = 320) -> np.ndarray:
    """Axial, coronal and sagittal slice side by side as a radiologist sees them, with the masks and their numbers.

    The patient's right (R) is on the left of the picture. The sagittal slice looks to the left (A: anterior).

    hu, label_map: (D, H, W) RAS+
    at:            voxel that the slices go through (default: on each axis the slice that shows most)
    returns:       (size, 3 * size, 3) uint8; mm are true to scale within each slice
    """
    at = _most_telling_slices(label_map) if at is None else at
    spacing = voxel_size_mm(affine)
    panels = []
    for axis, (across, down), mark in ((2, (0, 1), "R"), (1, (0, 2), "R"), (0, (1, 2), "A")):
        # rows: down, columns: across
        ct, labels = (a[(slice(None),) * axis + (int(at[axis]),)][::-1, ::-1].T for a in (hu, label_map))
        panels.append(panel(ct, labels, spacing[down], spacing[across], hu_window, size, mark))
    return np.concatenate(panels, axis=1)


def _most_telling_slices(label_map: np.ndarray) -> list[int]:
    """On each axis the slice in which most is seen: the largest sum, over classes, of the square root of the area.

    The root favours many classes over one large one.
    """
    step = 4 if label_map[::4, ::4, ::4].any() else 1
    sparse = np.asarray(label_map[::step, ::step, ::step])
    score = [np.zeros(n) for n in sparse.shape]
    for value in np.unique(sparse[sparse > 0]):
        for axis in range(3):
            score[axis] += np.sqrt((sparse == value).sum(axis=tuple({0, 1, 2} - {axis})))
    return [step * int(s.argmax()) if s.any() else n // 2 for s, n in zip(score, label_map.shape)]


def panel(hu: np.ndarray, labels: np.ndarray, row_mm: float, column_mm: float, hu_window: Sequence[float], size: int,
          mark: str = "") -> np.ndarray:
    """One slice fitted into a black square: masks tinted, their outlines in full colour, their numbers on them.

    hu, labels: (rows, columns)
    mark:       the side of the patient that is on the left
    returns:    (size, size, 3) uint8
    """
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
    square = np.zeros((size, size, 3), np.float32)
    top, left = (size - rgb.shape[0]) // 2, (size - rgb.shape[1]) // 2
    square[top:top + rgb.shape[0], left:left + rgb.shape[1]] = rgb.astype(np.uint8)
    for number in numbers:
        pixels = np.argwhere(labels == number)
        row, column = pixels[((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        row = pixels[:, 0].min() - 9 if len(pixels) < SMALL else row
        label(square, left + column + 0.5, top + row + 0.5, str(number))
    label(square, 10, size / 2, mark)
    return square.round().astype(np.uint8)

