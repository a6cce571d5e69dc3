"""A small picture of a case for the page of all cases: one slice with its masks in colour."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from ..imaging.grid import voxel_size_mm
from ..imaging.volume import scale_hu
from ..pictures.canvas import png_bytes
from .display import Display

SIZE = 180                # pixels of the longer side
SHADES = 24               # of grey; nobody sees more in a small picture, and the file is half as large
AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}    # to the left, upwards


def thumbnail(display: Display, at: Sequence[int], plane: str, colors: Sequence[Sequence[int]]) -> str:
    """A PNG as a data URI: the slice of `plane` through the voxel `at`, in the orientation of the viewer.

    colors: RGB of each class that `display.combinations` names
    """
    across, up = AXES[plane]
    normal = 3 - across - up
    spacing = voxel_size_mm(display.affine)
    mm_per_pixel = max(display.hu.shape[a] * spacing[a] for a in (across, up)) / SIZE
    rows, columns = (_nearest(display.hu.shape[a], spacing[a], mm_per_pixel) for a in (up, across))
    hu, codes = (np.moveaxis(a, normal, 0)[at[normal]].T[::-1, ::-1][np.ix_(rows, columns)]
                 for a in (display.hu, display.codes))
    grey = np.round(scale_hu(hu, (-160, 240)) * (SHADES - 1)) / (SHADES - 1) * 255
    of_code = np.array([colors[those[0]] if those else (0, 0, 0) for those in display.combinations])
    share = np.where(codes > 0, 0.55, 0.0)[..., None]
    rgb = np.round((1 - share) * grey[..., None] + share * of_code[codes]).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(png_bytes(rgb)).decode("ascii")


def _nearest(n: int, spacing_mm: float, mm_per_pixel: float) -> np.ndarray:
    """For each pixel along an axis of n voxels the voxel under its centre."""
    pixels = max(1, round(n * spacing_mm / mm_per_pixel))
    return np.minimum(((np.arange(pixels) + 0.5) * mm_per_pixel / spacing_mm).astype(int), n - 1)
