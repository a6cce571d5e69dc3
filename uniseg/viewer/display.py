"""The grid that the viewer shows: the CT and its masks, made coarser where their file would get too large.

The axes stay those of the CT, so that nothing is turned or sheared; the affine of the grid gives each voxel its place
in the patient in mm, also where the CT is oblique. Read imaging/volume.py first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..imaging.bits import bounding_box, get_bit
from ..imaging.grid import voxel_size_mm
from ..imaging.merging import merging_order
from ..imaging.resampling import resample

Combination = tuple[int, ...]      # positions of classes that share a voxel, the one on top first
FEW_VOXELS = 1 << 21               # a grid of more is searched at every other voxel for the middles of its classes
SAMPLES = 48                       # voxels along each axis of a mask whose middle is looked for


class Display(NamedTuple):
    """What the viewer shows, on one grid in RAS+."""

    hu: np.ndarray                     # (D, H, W)
    affine: np.ndarray                 # (4, 4) in mm
    codes: np.ndarray                  # (D, H, W) uint8, or uint16 beyond 256 combinations: index into `combinations`
    combinations: list[Combination]    # the first one is (), no class


def display_spacing(shape: Sequence[int], spacing_mm: Sequence[float] | np.ndarray, most: float) -> np.ndarray:
    """The voxel size (3,) in mm of a grid of about `most` voxels: axes that are finer than a common size get that size.

    >>> display_spacing((400, 400, 100), (1.0, 1.0, 5.0), 4e6).tolist()
    [2.0, 2.0, 5.0]
    >>> display_spacing((40, 40, 10), (1.0, 1.0, 5.0), 4e6).tolist()
    [1.0, 1.0, 5.0]
    """
    spacing = np.asarray(spacing_mm, float)
    field_mm = spacing * shape
    if math.prod(shape) <= most:
        return spacing
    order = np.argsort(spacing)
    for coarsened in (1, 2, 3):                      # the finest axis, the two finest, all: the size that fits exactly
        finer, others = order[:coarsened], order[coarsened:]
        size = float(np.prod(field_mm[finer]) * np.prod(np.asarray(shape)[others]) / most) ** (1 / coarsened)
        if coarsened == 3 or size <= spacing[order[coarsened]]:
            break
    return np.maximum(spacing, round(size, 9))


def make_display(hu: np.ndarray, affine: np.ndarray, bits: np.ndarray, label_map: np.ndarray,
                 values: Sequence[int | None], names: Sequence[str], spacing_mm: np.ndarray) -> Display:
    """The CT and its masks on a grid of the given voxel size. A coarser CT is averaged, masks give the nearest voxel.

    hu:        (D, H, W) RAS+, with its affine (4, 4)
    bits:      (D, H, W) bit k is the mask of class k
    label_map: (D, H, W) the number of the class on top
    values:    the number of each class in `label_map`; None for a class that it leaves out
    names:     of the classes, which decide what lies on top below the first one
    """
    if np.array_equal(spacing_mm, voxel_size_mm(affine)):
        return Display(hu, affine, *combine(bits, label_map, values, names))
    shown, shown_affine = resample(hu, affine, spacing_mm, antialias=True)
    nearest = _nearest_voxels(shown.shape, shown_affine, hu.shape, affine)
    few_bits, few_labels = bits[np.ix_(*nearest)], label_map[np.ix_(*nearest)]
    lost = int(_bits_of_any(bits)) & ~int(_bits_of_any(few_bits))
    for k in [k for k in range(len(names)) if lost >> k & 1]:
        _keep_small(k, few_bits, few_labels, shown_affine, bits, label_map, affine)
    return Display(shown, shown_affine, *combine(few_bits, few_labels, values, names))


def _nearest_voxels(shape: Sequence[int], affine: np.ndarray, of_shape: Sequence[int],
                    of_affine: np.ndarray) -> list[np.ndarray]:
    """Per axis, for each voxel of the first grid the nearest one of the second, whose axes are the same."""
    between = np.linalg.inv(of_affine) @ affine
    return [np.clip(np.rint(np.arange(n) * between[a, a] + between[a, 3]), 0, of_n - 1).astype(int)
            for a, (n, of_n) in enumerate(zip(shape, of_shape))]


def _bits_of_any(bits: np.ndarray) -> np.unsignedinteger:
    """The bits that are set in any voxel."""
    return np.bitwise_or.reduce(bits.ravel(order="K"))


def _keep_small(k: int, few_bits: np.ndarray, few_labels: np.ndarray, few_affine: np.ndarray, bits: np.ndarray,
                label_map: np.ndarray, affine: np.ndarray) -> None:
    """Put a class that fell between the voxels of the coarser grid into the voxels nearest to it, in place."""
    voxels = np.argwhere(get_bit(bits, k))
    there = _nearest_voxels(bits.shape, affine, few_bits.shape, few_affine)
    at = tuple(there[axis][voxels[:, axis]] for axis in range(3))
    few_bits[at] |= bits.dtype.type(1 << k)
    few_labels[at] = label_map[tuple(voxels.T)]


def combine(bits: np.ndarray, label_map: np.ndarray, values: Sequence[int | None],
            names: Sequence[str]) -> tuple[np.ndarray, list[Combination]]:
    """(codes, combinations): each voxel's classes, the one of the label map first, as a number into a short list.

    A tumour inside the liver is (tumour, liver). So nothing of the overlaps is lost, and a class that is hidden shows
    what it covers.
    """
    inside = bits != 0
    members, of_voxel = np.unique(bits[inside], return_inverse=True)
    pairs, inverse = np.unique(of_voxel.reshape(-1) * 65536 + label_map[inside], return_inverse=True)
    codes = np.zeros(bits.shape, np.uint8 if len(pairs) < 256 else np.uint16, order="F")
    codes[inside] = inverse.reshape(-1) + 1
    rank = {k: place for place, k in enumerate(reversed(merging_order(names)))}
    combinations: list[Combination] = [()]
    for which, label in (divmod(int(pair), 65536) for pair in pairs):
        inside_of = [k for k in range(len(names)) if int(members[which]) >> k & 1]
        combinations.append(tuple(sorted(inside_of, key=lambda k: (values[k] != label, rank[k]))))
    return codes, combinations


def middles(display: Display, count: int) -> list[tuple[int, int, int] | None]:
    """Per class a voxel well inside it, None where no voxel has the class. Large grids are searched at every other one.
    """
    having = np.zeros((count, len(display.combinations)), bool)
    for code, those in enumerate(display.combinations):
        having[list(those), code] = True
    spacing, step = voxel_size_mm(display.affine), 2 if display.codes.size > FEW_VOXELS else 1
    sparse = display.codes[::step, ::step, ::step]
    found: list[tuple[int, int, int] | None] = []
    for of_class in having:
        at = middle(of_class[sparse], spacing * step)
        found.append((step * at[0], step * at[1], step * at[2]) if at else middle(of_class[display.codes], spacing))
    return found


def middle(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> tuple[int, int, int] | None:
    """A voxel well inside a mask: of those at least half as deep as the deepest, the nearest to the centre of mass.

    The centre of mass itself may lie outside, as that of a colon does. None for an empty mask.

    >>> middle(np.ones((5, 5, 5), bool), (1, 1, 1))
    (2, 2, 2)
    """
    box = bounding_box(mask)
    if box is None:
        return None
    steps = [max(1, (part.stop - part.start) // SAMPLES) for part in box]
    sparse = mask[box][tuple(slice(step // 2, None, step) for step in steps)]
    if not sparse.any():
        steps, sparse = [1, 1, 1], mask[box]
    sampling = np.asarray(spacing_mm, float) * steps
    depth = ndimage.distance_transform_edt(np.pad(sparse, 1), sampling=sampling)[1:-1, 1:-1, 1:-1]
    deep = np.argwhere(depth >= depth.max() / 2)
    away_mm = (deep - np.argwhere(sparse).mean(axis=0)) * sampling
    i, j, k = (int(part.start + step // 2 + step * at) for part, step, at
               in zip(box, steps, deep[(away_mm ** 2).sum(axis=1).argmin()]))
    return i, j, k
