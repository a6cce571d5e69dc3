"""Overlapping masks as one integer volume: bit k of a voxel says whether it belongs to the k-th class of a list.

32 classes are exactly one uint32 a voxel: 32 times smaller than float32 maps, and a tumour's voxel can still be liver too.
"""

import numpy as np


def bit_dtype(count):
    """The smallest of uint32 and uint64 that holds `count` classes."""
    if not 0 <= count <= 64:
        raise ValueError(f"{count} classes do not fit one integer per voxel. Use at most 64 classes at a time.")
    return np.dtype(np.uint32 if count <= 32 else np.uint64)


def get_bit(bits, k):
    """The mask of class k, bool.

    >>> get_bit(np.array([0, 1, 2, 3], np.uint32), 1).tolist()
    [False, False, True, True]
    """
    return (bits & bits.dtype.type(1 << k)) != 0


def drop_bit(bits, k):
    """The bits without class k; the classes after it move down by one.

    >>> drop_bit(np.array([0b1101, 0b0010], np.uint32), 1).tolist()
    [7, 0]
    """
    one = bits.dtype.type(1)
    low = bits.dtype.type((1 << k) - 1)
    return (bits & low) | ((bits >> one) & ~low)


def set_bit(bits, k, mask, box=...):
    """Make `mask` the mask of class k, in place; with `box` (slices) only there, `mask` having the box's shape."""
    one, part = bits.dtype.type(1 << k), bits[box]
    bits[box] = np.where(mask, part | one, part & ~one)


def pack(masks):
    """A list of K bool masks of one shape -> their bit volume."""
    masks = list(masks)
    if not masks:
        raise ValueError("no masks to pack. Give at least one.")
    bits = np.zeros_like(masks[0], dtype=bit_dtype(len(masks)))
    for k, mask in enumerate(masks):
        bits |= np.asarray(mask, bool).astype(bits.dtype) << bits.dtype.type(k)
    return bits


def bounding_box(mask, margin=0):
    """Slices of the smallest box around the True voxels, grown by `margin` voxels within the array; None when empty.

    >>> bounding_box(np.eye(4, dtype=bool)[None, 1:3])
    (slice(0, 1, None), slice(0, 2, None), slice(1, 3, None))
    """
    box = [slice(None)] * mask.ndim
    # The axis that varies slowest in memory first: later axes are then searched inside a smaller, contiguous part.
    for axis in sorted(range(mask.ndim), key=lambda a: -abs(mask.strides[a])):
        part = mask[tuple(box)]
        hit = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if hit.size == 0:
            return None
        box[axis] = slice(int(hit[0]), int(hit[-1]) + 1)
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape))
