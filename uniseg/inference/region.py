"""Which part of a CT the network sees: the body without arms beside it, but no less than a window."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..imaging.bits import Box
from ..imaging.body import body_mask, trunk_box
from ..imaging.grid import voxel_size_mm

BODY_MARGIN = 4          # voxels of air around the body


class OnGrid(NamedTuple):
    """A CT on the grid of a model; its axes are RAS+."""

    hu: np.ndarray       # (D, H, W)
    affine: np.ndarray   # (4, 4)
    body: np.ndarray     # (D, H, W) bool, the body mask
    box: Box | None      # what the windows are laid over; None where there is no body
    shown: np.ndarray    # (D, H, W) the HU that the network sees; hu itself, unless the field of view cuts the patient


def find_body(hu: np.ndarray, affine: np.ndarray, window: Sequence[int],
              outside: np.ndarray | None = None) -> tuple[np.ndarray, Box | None]:
    """The body mask of a CT, and the box that the windows are laid over.

    hu:      (D, H, W) RAS+, on the model's grid
    window:  voxels of a sliding window, D H W
    outside: (D, H, W) bool, what lies outside the field of view; None: nothing
    returns: (D, H, W) bool, and slices of the three axes; None where there is no body
    """
    body = body_mask(hu, voxel_size_mm(affine), outside)
    return body, box_of_windows(body, affine, window)


def box_of_windows(body: np.ndarray, affine: np.ndarray, window: Sequence[int]) -> Box | None:
    """The box that the windows are laid over; None for an empty body mask (D, H, W)."""
    box = trunk_box(body, voxel_size_mm(affine), BODY_MARGIN)
    return None if box is None else grow_to_window(box, window, body.shape)


def grow_to_window(box: Box, window: Sequence[int], shape: Sequence[int]) -> Box:
    """The box, grown along each axis where it is smaller than the window.

    It grows to the size of the window, or to the whole volume if that is smaller. The voxels of the CT itself, arms
    among them, are better than padding.

    >>> grow_to_window((slice(4, 8), slice(6, 9)), (8, 8), (20, 9))
    (slice(2, 10, None), slice(1, 9, None))
    """
    grown = []
    for part, least, whole in zip(box, window, shape):
        size = part.stop - part.start
        missing = max(0, min(least, whole) - size)
        start = min(max(0, part.start - missing // 2), whole - size - missing)
        grown.append(slice(start, start + size + missing))
    return tuple(grown)
