"""Connected components of masks, chosen by their size."""

import numpy as np
from scipy import ndimage

from .bits import bounding_box

CONNECTED_26 = np.ones((3, 3, 3), bool)


def in_memory_order(*arrays):
    """Views of the arrays with the first one's slowest axis first; passes over Fortran-ordered volumes are then several
    times faster. Writing to a view writes to its array.
    """
    fortran = abs(arrays[0].strides[0]) < abs(arrays[0].strides[-1])
    return tuple(a.T for a in arrays) if fortran else arrays


def keep_components(mask, choose):
    """The 26-connected components of a mask that are chosen by size; an empty mask stays empty.

    choose: sizes in voxels (N,) -> bool (N,)
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


def largest(sizes, count):
    """Which of the sizes are the `count` largest: bool; the first of equals.

    >>> largest(np.array([5, 9, 7, 9]), 2).tolist()
    [False, True, False, True]
    """
    chosen = np.zeros(len(sizes), bool)
    chosen[np.argsort(-sizes, kind="stable")[:count]] = True
    return chosen


def largest_components(mask, count=1):
    """The `count` largest 26-connected components of a mask; an empty mask stays empty."""
    return keep_components(mask, lambda sizes: largest(sizes, count))
