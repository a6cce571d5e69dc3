"""Overlapping masks as one integer volume: bit k of a voxel says whether it belongs to the k-th class of a list.

32 classes fit exactly one uint32 per voxel; one float32 map per class would need 32 times the memory. A voxel of a
tumour can still belong to the liver too.
"""

from collections.abc import Sequence
from types import EllipsisType

import numpy as np

Box = tuple[slice, ...]        # slices of each axis


def bit_dtype(count: int) -> np.dtype:
    """The smaller of uint32 and uint64 that holds `count` classes. Raises ValueError for more than 64."""
    if not 0 <= count <= 64:
        raise ValueError(f"{count} classes do not fit one integer per voxel. Use at most 64 classes at a time.")
    return np.dtype(np.uint32 if count <= 32 else np.uint64)


def get_bit(bits: np.ndarray, k: int) -> np.ndarray:
    """The mask of class k, bool, of the shape of `bits`.

    >>> get_bit(np.array([0, 1, 2, 3], np.uint32), 1).tolist()
    [False, False, True, True]
    """
    return (bits & bits.dtype.type(1 << k)) != 0


def drop_bit(bits: np.ndarray, k: int) -> np.ndarray:
    """The bits without class k; the classes after it move down by one.

    >>> drop_bit(np.array([0b1101, 0b0010], np.uint32), 1).tolist()
    [7, 0]
    """
    one = bits.dtype.type(1)
    low = bits.dtype.type((1 << k) - 1)
    return (bits & low) | ((bits >> one) & ~low)


def set_bit(bits: np.ndarray, k: int, mask: np.ndarray, box: Box | EllipsisType = ...) -> None:
    """Make `mask` the mask of class k, in place. With `box`, only there; `mask` then has the shape of the box."""
    one, part = bits.dtype.type(1 << k), bits[box]
    bits[box] = np.where(mask, part | one, part & ~one)


def pack(masks: Sequence[np.ndarray]) -> np.ndarray:
    """K bool masks of one shape -> their bit volume. Raises ValueError for no mask at all."""
    masks = list(masks)
    if not masks:
        raise ValueError("no masks to pack. Give at least one.")
    bits = np.zeros_like(masks[0], dtype=bit_dtype(len(masks)))
    for k, mask in enumerate(masks):
        bits |= np.asarray(mask, bool).astype(bits.dtype) << bits.dtype.type(k)
    return bits


def bounding_box(mask: np.ndarray, margin: int = 0) -> Box | None:
    """The smallest box around the True voxels, grown by `margin` voxels within the array; None for an empty mask.

    >>> bounding_box(np.eye(4, dtype=bool)[None, 1:3])
    (slice(0, 1, None), slice(0, 2, None), slice(1, 3, None))
    """
    box = [slice(None)] * mask.ndim
    # The axis that varies slowest in memory first: later axes are then searched inside a smaller, contiguous part.
    for axis in sorted(range(mask.ndim), key=lambda a: -abs(mask.strides[a])):
        part = mask[tuple(box)]
        occupied = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if occupied.size == 0:
            return None
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape))


def bounding_boxes(bits: np.ndarray, count: int, margin: int = 0) -> list[Box | None]:
    """`bounding_box` of the masks of the classes 0 to count - 1, in one pass over a volume (D, H, W).

    >>> bounding_boxes(np.array([[[0, 2, 2, 3]]], np.uint32), 1)
    [(slice(0, 1, None), slice(0, 1, None), slice(3, 4, None))]
    """
    columns = np.bitwise_or.reduce(bits, axis=2)                         # (D, H): what any plane holds
    planes = [np.bitwise_or.reduce(plane, axis=None) for plane in np.moveaxis(bits, 2, 0)]
    along = [np.bitwise_or.reduce(columns, axis=1), np.bitwise_or.reduce(columns, axis=0), np.array(planes, bits.dtype)]
    boxes: list[Box | None] = []
    for k in range(count):
        occupied = [np.flatnonzero(get_bit(of_axis, k)) for of_axis in along]
        boxes.append(tuple(slice(max(0, int(at[0]) - margin), min(n, int(at[-1]) + 1 + margin))
                           for at, n in zip(occupied, bits.shape)) if occupied[0].size else None)
    return boxes
