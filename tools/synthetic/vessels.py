"""Branching vessels, grown from a root to random points of an organ and drawn with partial volume.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). Label maps show no vessels inside lungs, liver and
mesentery, and without them an organ looks painted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .geometry import Grid

SAMPLES_PER_VOXEL = 10           # random points in a voxel that a vessel fills


class Tree(NamedTuple):
    """A branching vessel; node 0 is the root and its own parent, other nodes have a higher number than their parent."""

    points_mm: NDArray           # (N, 3)
    parent: NDArray              # (N,)
    radius_mm: NDArray           # (N,) of the vessel between a node and its parent


def grow_tree(root_mm: NDArray, targets_mm: NDArray, leaf_mm: float, most_mm: float, rng: np.random.Generator) -> Tree:
    """Join each target, from near to far, to the node that roughly gives the shortest way to the root.

    The radius follows Murray's law (the cubes of the branches' radii add up), from `leaf_mm` to at most `most_mm`.
    """
    targets = targets_mm[np.argsort(np.linalg.norm(targets_mm - root_mm, axis=1))]
    points = np.empty((1 + 2 * len(targets), 3))
    parent, way = np.zeros(len(points), int), np.zeros(len(points))
    points[0], count = root_mm, 1
    for target in targets:
        distance = np.linalg.norm(points[:count] - target, axis=1)
        nearest = int((distance + 0.5 * way[:count]).argmin())
        bend = (points[nearest] + target) / 2 + rng.normal(0, 0.08, 3) * distance[nearest]
        for point in (bend, target):
            points[count], parent[count] = point, nearest
            way[count] = way[nearest] + np.linalg.norm(point - points[nearest])
            nearest, count = count, count + 1
    leaves = np.zeros(count)
    leaves[2::2] = 1                                              # a target is a leaf until something grows on it
    for node in range(count - 1, 0, -1):
        leaves[parent[node]] += leaves[node]
    return Tree(points[:count], parent[:count], np.minimum(leaf_mm * np.maximum(leaves, 1) ** (1 / 3), most_mm))


def line(points_mm: ArrayLike, radius_mm: float) -> Tree:
    """A vessel without branches through the points."""
    points = np.asarray(points_mm, float)
    return Tree(points, np.maximum(np.arange(len(points)) - 1, 0), np.full(len(points), float(radius_mm)))


def covered(tree: Tree, grid: Grid, rng: np.random.Generator) -> NDArray[np.float32]:
    """Share (0 to 1) of each voxel of the grid that a tree fills: random points inside its tubes, counted per voxel."""
    points, parent, radius = tree
    start, step = points[parent[1:]], points[1:] - points[parent[1:]]
    length = np.linalg.norm(step, axis=1)
    samples = np.ceil(np.pi * radius[1:] ** 2 * length / grid.spacing_mm ** 3 * SAMPLES_PER_VOXEL).astype(int)
    which = np.repeat(np.arange(len(step)), samples)
    along = rng.random((len(which), 1))
    across = rng.standard_normal((len(which), 3))                 # becomes a random point in a ball
    across *= (radius[1:][which] * rng.random(len(which)) ** (1 / 3) / np.linalg.norm(across, axis=1))[:, None]
    voxel = np.rint((start[which] + along * step[which] + across - grid.origin_mm) / grid.spacing_mm).astype(int)
    inside = ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(voxel[inside].T), grid.shape)
    count = np.bincount(flat, minlength=int(np.prod(grid.shape)))
    return np.minimum(count / np.float32(SAMPLES_PER_VOXEL), 1).astype(np.float32).reshape(grid.shape)


def somewhere(mask: NDArray, grid: Grid, count: int, rng: np.random.Generator) -> NDArray:
    """`count` random points inside a mask, (count, 3) in mm; none, (0, 3), where the mask is empty."""
    inside = np.flatnonzero(mask)
    if not len(inside):
        return np.empty((0, 3))
    voxel = np.array(np.unravel_index(rng.choice(inside, count), mask.shape)).T
    return (voxel + rng.uniform(-0.5, 0.5, voxel.shape)) * grid.spacing_mm + grid.origin_mm
