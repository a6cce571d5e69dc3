"""Connected components of masks, chosen by their size."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from .bits import bounding_box

CONNECTED_26 = np.ones((3, 3, 3), bool)     # voxels that touch at a face, an edge or a corner are connected


def in_memory_order(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of the arrays, transposed if the first one is in Fortran order, so that its slowest axis comes first.

    Passes over Fortran-ordered volumes are several times faster this way. Writing to a view writes to its array.
    """
    fortran = abs(arrays[0].strides[0]) < abs(arrays[0].strides[-1])
    return tuple(a.T for a in arrays) if fortran else arrays


def keep_components(mask: np.ndarray, choose: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The 26-connected components of a mask that `choose` selects by size. An empty mask stays empty.

    mask:    (D, H, W) bool
    choose:  sizes in voxels (N,) -> which of them stay (N,) bool
    returns: (D, H, W) bool
    """
    kept = np.zeros_like(mask, dtype=bool)
    box = bounding_box(mask)
    if box is None:
        return kept
    inside, out = in_memory_order(mask[box], kept[box])
    labels, _ = ndimage.label(inside, structure=CONNECTED_26)
    sizes = np.bincount(labels.ravel())[1:]                         # without the background, label 0
    out[...] = np.append(False, choose(sizes))[labels]
    return kept


def largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """Which of the sizes (N,) are the `count` largest, (N,) bool. Among equal sizes the first ones are chosen.

    >>> largest(np.array([5, 9, 7, 9]), 2).tolist()
    [False, True, False, True]
    """
    chosen = np.zeros(len(sizes), bool)
    chosen[np.argsort(-sizes, kind="stable")[:count]] = True
    return chosen


def largest_components(mask: np.ndarray, count: int = 1) -> np.ndarray:
    """The `count` largest 26-connected components of a mask (D, H, W). An empty mask stays empty."""
    return keep_components(mask, lambda sizes: largest(sizes, count))
