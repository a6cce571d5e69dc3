"""Cubic B-splines on evenly spaced control points: the smooth random fields of augmentation and of synthetic CT.

A sum of control values weighted by these splines is a smooth function whose derivatives have known bounds
(Rueckert et al. 1999, https://doi.org/10.1109/42.796284).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def cubic_b_splines(positions: ArrayLike, count: int) -> NDArray[np.float64]:
    """Weight of each of `count` control points at each position, (len(positions), count).

    positions: in units of the distance between control points; control point p lies at p - 1. Between 0 and count - 3 the
               weights of a row are not negative and sum to 1.

    >>> cubic_b_splines([0.0, 0.5], 4).round(3).tolist()
    [[0.167, 0.667, 0.167, 0.0], [0.021, 0.479, 0.479, 0.021]]
    """
    distance = np.abs(np.asarray(positions)[:, None] - (np.arange(count) - 1)[None])
    inner, outer = 2 / 3 - distance ** 2 + distance ** 3 / 2, (2 - distance) ** 3 / 6
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0.0))
