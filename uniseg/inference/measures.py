"""What is measured in the mask of each class: volume, HU, where it lies, and whether the CT shows all of it.

The CT was freed before the network ran, so that memory holds it once at most. Its HU are read again here, a few planes
at a time (imaging/volume.py, hu_planes). All indices are those of the CT's file. Read imaging/bits.py first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..imaging.byte_stream import VolumeError
from ..imaging.grid import voxel_volume_mm3

PLANES_VOXELS = 1 << 20              # of the masks looked at together


@dataclass
class _Sums:
    """What is added up of the mask of one class."""

    voxels: int = 0
    hu: float = 0.0
    squared_hu: float = 0.0
    index: np.ndarray = field(default_factory=lambda: np.zeros(3))               # sum of the voxels' indices
    first: np.ndarray = field(default_factory=lambda: np.full(3, np.iinfo(np.int64).max))
    last: np.ndarray = field(default_factory=lambda: np.full(3, -1))


def measure(bits: np.ndarray, numbers: Mapping[str, int | None], affine: np.ndarray, hu: Iterable[np.ndarray],
            experimental: Mapping[str, str], warnings: list[str]) -> dict[str, dict[str, Any]]:
    """{class: its figures}, in plain Python types; docs/results.md explains each.

    bits:         (X, Y, Z) masks as the CT is stored, one bit per class
    numbers:      {class: its value in the label map, or None}, in the order of the bits
    affine:       (4, 4) of that grid, mm
    hu:           the CT's planes (X, Y, n) from the first to the last (volume.hu_planes). Where that raises VolumeError
                  or OSError, the figures have no HU and `warnings` says so
    experimental: {class: reason}, which is added to the figures of the class
    """
    sums = [_Sums() for _ in numbers]
    planes_of_hu: _Planes | None = _Planes(hu)
    step = max(1, PLANES_VOXELS // max(1, bits.shape[0] * bits.shape[1]))
    for z in range(0, bits.shape[2], step):
        planes = bits[..., z:z + step]
        try:
            hu_here = planes_of_hu.take(planes.shape[2]) if planes_of_hu else None
            if planes_of_hu and z + step >= bits.shape[2]:
                planes_of_hu.finish()
        except (VolumeError, OSError) as error:
            warnings.append(f"no HU of the classes: the CT could not be read a second time ({error})")
            planes_of_hu = hu_here = None
        _add(sums, planes, z, hu_here)
    voxel_ml = voxel_volume_mm3(affine) / 1000
    figures = {}
    for (name, value), of_class in zip(numbers.items(), sums):
        figures[name] = {"label": value, **_figures(of_class, bits.shape, affine, voxel_ml, planes_of_hu is not None)}
        if name in experimental:
            figures[name]["experimental"] = experimental[name]
    return figures


class _Planes:
    """An iterable of blocks of planes, taken in blocks of other sizes."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self.blocks: Iterator[np.ndarray] = iter(blocks)
        self.left: np.ndarray | None = None

    def take(self, count: int) -> np.ndarray:
        """The next `count` planes. Raises VolumeError where there are none."""
        parts, missing = [] if self.left is None else [self.left], count
        missing -= sum(part.shape[2] for part in parts)
        while missing > 0:
            block = next(self.blocks, None)
            if block is None:
                raise VolumeError("it has fewer planes now")
            parts.append(block)
            missing -= block.shape[2]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        self.left = joined[..., count:]
        return joined[..., :count]

    def finish(self) -> None:
        """Run to the end, where a reader checks the file. Raises VolumeError where there are further planes."""
        if (self.left is not None and self.left.size) or next(self.blocks, None) is not None:
            raise VolumeError("it has more planes now")


def _add(sums: Sequence[_Sums], planes: np.ndarray, z: int, hu: np.ndarray | None) -> None:
    """Add some planes (X, Y, n) of the masks, which begin at plane z, and their HU."""
    # For each index along an axis, all classes that have a voxel there: three reductions give all bounding boxes.
    over_x = np.bitwise_or.reduce(planes, axis=0)
    on_axis = [np.bitwise_or.reduce(np.bitwise_or.reduce(planes, axis=2), axis=1),
               np.bitwise_or.reduce(over_x, axis=1), np.bitwise_or.reduce(over_x, axis=0)]
    for k, of_class in enumerate(sums):
        one = planes.dtype.type(1 << k)
        indices = [np.flatnonzero(line & one) for line in on_axis]
        if not indices[0].size:
            continue
        low, high = np.array([[i[0] for i in indices], [i[-1] for i in indices]])
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high))
        mask = (planes[box] & one) != 0
        offset = low + (0, 0, z)
        of_class.voxels += int(np.count_nonzero(mask))
        of_class.first = np.minimum(of_class.first, offset)
        of_class.last = np.maximum(of_class.last, high + (0, 0, z))
        over_x_of_class = mask.sum(axis=0)
        for axis, counts in enumerate((mask.sum(axis=2).sum(axis=1), over_x_of_class.sum(axis=1),
                                       over_x_of_class.sum(axis=0))):
            of_class.index[axis] += float(counts @ np.arange(offset[axis], offset[axis] + counts.size))
        if hu is not None:
            values = hu[box][mask].astype(np.float64)
            of_class.hu += float(values.sum())
            of_class.squared_hu += float(np.square(values).sum())  # values @ values would wait for threads of BLAS


def _figures(of_class: _Sums, shape: Sequence[int], affine: np.ndarray, voxel_ml: float,
             with_hu: bool) -> dict[str, Any]:
    n = of_class.voxels
    figures: dict[str, Any] = {"voxels": n, "ml": round(float(n * voxel_ml), 3), "mean_hu": None, "sd_hu": None,
                               "centre_mm": None, "first_voxel": None, "last_voxel": None, "touches_border": False}
    if n == 0:
        return figures
    if with_hu:
        mean = of_class.hu / n
        figures["mean_hu"] = round(mean, 2)
        figures["sd_hu"] = round(max(0.0, of_class.squared_hu / n - mean ** 2) ** 0.5, 2)
    centre = affine[:3, :3] @ (of_class.index / n) + affine[:3, 3]
    figures["centre_mm"] = [round(float(c), 2) for c in centre]
    figures["first_voxel"] = [int(i) for i in of_class.first]
    figures["last_voxel"] = [int(i) for i in of_class.last]
    figures["touches_border"] = bool((of_class.first == 0).any() or (of_class.last == np.array(shape) - 1).any())
    if figures["touches_border"]:
        figures["ml_is"] = "of the part inside the CT"
    return figures
