"""A second look at the middle of the body, with other surroundings (beyond the paper)."""

import numpy as np

from ..imaging.bits import bounding_box

FADE = 8                 # voxels in which the second view gains its weight, from its sides inwards


def widened(box, window, shape):
    """The box grown, where it is smaller than the window, to the window's size or the volume's, whichever is less: the CT's own
    voxels, arms among them, are better than padding. None stays None.

    >>> widened((slice(4, 8), slice(6, 9)), (8, 8), (20, 9))
    (slice(2, 10, None), slice(1, 9, None))
    """
    if box is None:
        return None
    wide = []
    for part, w, n in zip(box, window, shape):
        more = max(0, min(w, n) - (part.stop - part.start))
        start = min(max(0, part.start - more // 2), n - (part.stop - part.start) - more)
        wide.append(slice(start, part.stop - part.start + more + start))
    return tuple(wide)


def middle(body, share):
    """The middle of the body's width and depth: slices of axes 0 and 1 that hold `share` of each.

    >>> middle(np.ones((10, 20, 3), bool), 0.7)
    (slice(2, 8, None), slice(3, 17, None))
    """
    parts = []
    for part in bounding_box(body)[:2]:
        n = part.stop - part.start
        cut = min(round((1 - share) / 2 * n), (n - 1) // 2)
        parts.append(slice(part.start + cut, part.stop - cut))
    return tuple(parts)


def fading(shape):
    """Weight of the second view in each column of its (D, H), (D, H, 1) float32: 1/2, but towards its sides linearly less in FADE voxels.

    >>> fading([2, 2 * FADE + 1])[0, :3, 0] * 2 * (FADE + 1)
    array([1., 1., 1.], dtype=float32)
    >>> float(fading([2 * FADE + 1, 2 * FADE + 1])[:, FADE, 0].max())
    0.5
    """
    rise = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in shape]
    nearest = np.minimum.outer(*rise)                                            # voxels to the nearest side, the first is 1
    return (np.minimum(nearest / (FADE + 1), 1) / 2).astype(np.float32)[..., None]
