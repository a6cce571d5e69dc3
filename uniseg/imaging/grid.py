"""The grid of a volume: the size of its voxels, and the coarser grid of every n-th voxel. Read volume.py first."""

from collections.abc import Sequence

import numpy as np


def voxel_size_mm(affine: np.ndarray) -> np.ndarray:
    """The voxel size (3,): the lengths of the affine's columns."""
    return np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)


def voxel_volume_mm3(affine: np.ndarray) -> float:
    """The volume of a voxel, also where the axes are sheared."""
    return abs(np.linalg.det(np.asarray(affine, float)[:3, :3]))


def every_nth_voxel(array: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """One voxel per block of steps[a] voxels along axis a: the middle one (the last block may be incomplete)."""
    index = [np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(array.shape, steps)]
    return np.asarray(array[:, :, index[2]])[:, index[1]][index[0]]


def every_nth_affine(affine: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The affine (4, 4) of the grid of `every_nth_voxel`.

    >>> every_nth_affine(np.diag([1.0, 2.0, 5.0, 1.0]), (5, 3, 1))[:3].tolist()
    [[5.0, 0.0, 0.0, 2.0], [0.0, 6.0, 0.0, 2.0], [0.0, 0.0, 5.0, 0.0]]
    """
    sampled = np.asarray(affine, np.float64) @ np.diag([*map(float, steps), 1.0])
    sampled[:3, 3] = affine[:3, :3] @ [s // 2 for s in steps] + affine[:3, 3]
    return sampled
