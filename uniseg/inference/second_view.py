"""The second view: the body's centre is run through the network again by itself (beyond the paper).

The centre is padded by its edge voxels where it is smaller than a window, and the two logits are averaged. More context
helps and misleads, so the errors of the two views differ. The weight of the second view fades towards its sides.
"""

from collections.abc import Sequence

import numpy as np

from ..imaging.bits import bounding_box

FADE = 8                 # voxels over which the second view gains its weight, from its sides inwards


def central_part(body: np.ndarray, share: float) -> tuple[slice, slice]:
    """The centre of the body's width and depth: slices of axes 0 and 1 that hold `share` of each.

    body: (D, H, W) bool, not empty

    >>> central_part(np.ones((10, 20, 3), bool), 0.7)
    (slice(2, 8, None), slice(3, 17, None))
    """
    box = bounding_box(body)
    assert box is not None
    parts = []
    for part in box[:2]:
        n = part.stop - part.start
        cut = min(round((1 - share) / 2 * n), (n - 1) // 2)
        parts.append(slice(part.start + cut, part.stop - cut))
    return parts[0], parts[1]


def view_weight(shape: Sequence[int]) -> np.ndarray:
    """Weight of the second view in the mean of both: (D, H) -> (D, H, 1) float32.

    It is 1/2, but within FADE voxels of the sides it falls linearly.

    >>> view_weight([2, 2 * FADE + 1])[0, :3, 0] * 2 * (FADE + 1)
    array([1., 1., 1.], dtype=float32)
    >>> float(view_weight([2 * FADE + 1, 2 * FADE + 1])[:, FADE, 0].max())
    0.5
    """
    to_side = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in shape]
    nearest = np.minimum.outer(*to_side)                     # voxels to the nearest side; an outermost voxel has 1
    return (np.minimum(nearest / (FADE + 1), 1) / 2).astype(np.float32)[..., None]
