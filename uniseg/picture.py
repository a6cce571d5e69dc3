"""Pictures of a CT with its masks, written as PNG without a plotting package."""

import struct
import zlib

import numpy as np

from . import taxonomy
from .volume import atomic_write, scale_hu, voxel_size_mm


def write_png(path, rgb):
    """rgb (rows, columns, 3) uint8 -> an 8-bit RGB file (https://www.w3.org/TR/png-3/)."""
    rows, columns, _ = rgb.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    scanlines = np.concatenate([np.zeros((rows, 1), np.uint8), rgb.reshape(rows, -1)], axis=1)  # filter type 0 each
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
                              + chunk(b"IDAT", zlib.compress(scanlines.tobytes(), 6)) + chunk(b"IEND", b""))


def class_color(value):
    """RGB of a value of the label map; classes that Table 2 does not list take turns with five colours that it does not use."""
    more = ((255, 0, 255), (120, 90, 255), (255, 255, 0), (0, 255, 255), (255, 60, 120))
    return taxonomy.CLASSES[value - 1].color if value <= len(taxonomy.CLASSES) else more[value % 5]


def middle(label_map):
    """The mean voxel of all labels, (3,) int, by every fourth voxel of each axis; the volume's own where there is none."""
    found = np.argwhere(label_map[::4, ::4, ::4] > 0) * 4
    return found.mean(axis=0).astype(int) if len(found) else np.array(label_map.shape) // 2


def overlay(hu, label_map, affine, at=None, hu_window=(-175.0, 250.0), size=320):
    """Axial, coronal and sagittal slice side by side as a radiologist sees them (patient's right on the picture's left).

    hu, label_map: (D, H, W) RAS+; at: voxel the slices go through (default: the middle of all labels)
    returns:       (size, 3 * size, 3) uint8; mm are true to scale within each slice
    """
    at = middle(label_map) if at is None else at
    spacing = voxel_size_mm(affine)
    panels = []
    for axis, (across, down) in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
        planes = [a[(slice(None),) * axis + (int(at[axis]),)][::-1, ::-1].T for a in (hu, label_map)]  # rows: down, columns: across
        panels.append(_panel(*planes, spacing[down], spacing[across], hu_window, size))
    return np.concatenate(panels, axis=1)


def _panel(hu, labels, row_mm, column_mm, hu_window, size):
    """One slice fitted into a black square, masks tinted, their outlines in full colour."""
    mm_per_pixel = max(hu.shape[0] * row_mm, hu.shape[1] * column_mm) / size
    rows = np.minimum((np.arange(int(hu.shape[0] * row_mm / mm_per_pixel)) * mm_per_pixel / row_mm).astype(int), hu.shape[0] - 1)
    columns = np.minimum((np.arange(int(hu.shape[1] * column_mm / mm_per_pixel)) * mm_per_pixel / column_mm).astype(int), hu.shape[1] - 1)
    grey, labels = scale_hu(hu[np.ix_(rows, columns)], hu_window) * 255, labels[np.ix_(rows, columns)]
    rgb = np.repeat(grey[..., None], 3, axis=2)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        rgb[mask] = 0.7 * rgb[mask] + 0.3 * np.array(class_color(value))
        rgb[mask & edge] = class_color(value)
    panel = np.zeros((size, size, 3), np.uint8)
    top, left = (size - rgb.shape[0]) // 2, (size - rgb.shape[1]) // 2
    panel[top:top + rgb.shape[0], left:left + rgb.shape[1]] = rgb
    return panel
