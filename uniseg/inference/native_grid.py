"""From logits on the model's grid to masks on the grid of the CT, with one byte per voxel and class (Section 4.1.2).

Floats for all classes of a whole CT would need gigabytes. So each slab of logits becomes bytes at once: 128 is the
class's threshold, one step is 1/32 of a logit, and 0 is 4 logits or more below the threshold. Above 4 logits all bytes
would be the same, and the surest class would not be known: `order_of_the_sure` keeps the order. Bytes are kept in a box
around the voxels above 0 only. Read imaging/bits.py and imaging/resampling.py first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..imaging.bits import Box, bit_dtype, bounding_box, bounding_boxes, get_bit, set_bit
from ..imaging.merging import merging_groups, paint_where_surer
from ..imaging.resampling import way_back
from ..machine.threads import in_threads

STEPS_PER_LOGIT = 32
AT_THRESHOLD = 128
BLOCK_PLANES = 16                                  # planes of the CT that are made at a time
SURE = (254 - AT_THRESHOLD) / STEPS_PER_LOGIT      # logits above the threshold, from which on the byte is 254 or 255
FAINT = AT_THRESHOLD / STEPS_PER_LOGIT             # logits below the threshold, from which on the byte is 0


class Crop(NamedTuple):
    """The bytes of one class in a box of the model's grid; outside the box they are 0."""

    start: Sequence[int]     # (3,) index of the box's first voxel
    values: np.ndarray       # (d, h, w) uint8, Fortran order


def logits_to_bytes(logits: np.ndarray, limit: float) -> np.ndarray:
    """Logits -> uint8: above AT_THRESHOLD exactly where logit > limit, below it elsewhere, 1/32 of a logit per step."""
    steps = (logits - np.float32(limit)) * STEPS_PER_LOGIT
    np.rint(steps, out=steps)
    steps += AT_THRESHOLD
    rounded = np.clip(steps, 0, 255, out=steps).astype(np.uint8)
    return np.where(logits > limit, np.maximum(rounded, AT_THRESHOLD + 1), np.minimum(rounded, AT_THRESHOLD - 1))


def order_of_the_sure(logits: np.ndarray, limits: Sequence[float], names: Sequence[str],
                      within: np.ndarray | bool = True) -> dict[int, tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """The bytes that tell classes of one kind apart where two or more are about 4 logits above their thresholds.

    There the surest class keeps 255, the next gets 254, and so on, so that the higher confidence still wins
    (Section 4.1.2). Classes that are equally sure share a byte.

    logits:  (K, D, H, W) float32; limits: the logit of each class's threshold; names: the K classes
    within:  (D, H, W) bool, the voxels whose bytes are wanted
    returns: {k: (indices of voxels, their bytes)}, for the classes whose bytes change
    """
    changes = {}
    for group in merging_groups(names):
        sure = np.zeros(logits.shape[1:], np.uint8)                                       # how many of the classes are
        for k in group:
            sure += logits[k] > np.float32(limits[k] + SURE)
        tied = np.nonzero((sure > 1) & within)
        surplus = np.array([logits[k][tied] - np.float32(limits[k]) for k in group])              # (group, voxels)
        for k, own in zip(group, surplus):
            surer = (surplus > own).sum(axis=0)
            lowered = (logits[k][tied] > np.float32(limits[k] + SURE)) & (surer > 0)
            if lowered.any():
                changes[k] = tuple(axis[lowered] for axis in tied), (255 - surer[lowered]).astype(np.uint8)
    return changes


def crops_of_slab(logits: np.ndarray, limits: Sequence[float], names: Sequence[str], inside: np.ndarray,
                  z: int) -> Iterator[Crop | None]:
    """For each class in turn, its bytes in a slab of planes, in the box of those above 0; None where there are none.

    logits: (K, D, H, dz) float32; limits: the logit of each class's threshold; names: the K classes
    inside: (D, H, dz) bool; the bytes of other voxels are 0
    z:      the slab's first plane
    """
    sure = order_of_the_sure(logits, limits, names, inside)

    def crop(k: int) -> Crop | None:
        box = bounding_box((logits[k] > np.float32(limits[k]) - FAINT) & inside)    # most slabs have few classes
        if box is None:
            return None
        start, likely = [part.start for part in box], logits_to_bytes(logits[k][box], limits[k])
        if k in sure:
            voxels, values = sure[k]
            likely[tuple(axis - first for axis, first in zip(voxels, start))] = values
        likely *= inside[box]
        tight = bounding_box(likely > 0)                                            # the faintest are rounded to 0
        if tight is None:
            return None
        x, y, plane = (first + part.start for first, part in zip(start, tight))
        return Crop((x, y, plane + z), np.asfortranarray(likely[tight]))

    return in_threads(crop, range(len(names)))


def join_slabs(slabs: Sequence[Crop], region: Box | None, shape: Sequence[int]) -> Crop | None:
    """The slabs of one class as one crop of the model's grid: the box of its mask and one voxel around it.

    slabs:   crops whose starts count from the first voxel of `region`
    region:  part of the model's grid that the network has seen; None for nothing, without slabs
    shape:   (D, H, W) of the model's grid
    returns: None where no voxel is above the threshold
    """
    if region is None or not any((slab.values > AT_THRESHOLD).any() for slab in slabs):
        return None
    starts = [np.add(slab.start, [part.start for part in region]) for slab in slabs]
    stops = [start + slab.values.shape for start, slab in zip(starts, slabs)]
    low, high = np.maximum(np.min(starts, axis=0) - 1, 0), np.minimum(np.max(stops, axis=0) + 1, shape)
    joined = np.zeros(high - low, np.uint8, order="F")
    for start, slab in zip(starts, slabs):
        joined[box_slices(start - low, slab.values.shape)] = slab.values
    tight = bounding_box(joined > AT_THRESHOLD, margin=1)
    assert tight is not None
    return Crop([int(first) + part.start for first, part in zip(low, tight)], joined[tight])


def masks_of(crops: Sequence[Crop | None], shape: Sequence[int]) -> np.ndarray:
    """The masks of all classes on the model's grid, one bit per class: (D, H, W) of `bit_dtype`."""
    bits = np.zeros(shape, bit_dtype(len(crops)), order="F")
    for k, crop in enumerate(crops):
        if crop is not None:
            set_bit(bits, k, crop.values > AT_THRESHOLD, box_slices(crop.start, crop.values.shape))
    return bits


def box_slices(start: Sequence[int] | np.ndarray, shape: Sequence[int]) -> Box:
    """The slices of the box that begins at `start`."""
    return tuple(slice(int(s), int(s) + n) for s, n in zip(start, shape))


def to_native(bits: np.ndarray, crops: Sequence[Crop | None], values: Mapping[str, int | None], affine: np.ndarray,
              native_shape: Sequence[int], native_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The masks and the label map on the grid of the CT, from post-processed masks on the model's grid.

    Every class is interpolated linearly inside its bounding box. In the label map organs come first, then vessels, then
    tumours. Within one kind the class with the higher confidence (distance of the logit from its threshold) wins.
    Several blocks of planes are made at a time (machine/threads.py).

    bits:    (D, H, W) the masks on the model's grid, one bit per class
    crops:   the bytes of each class
    values:  {class: its value in the label map}, in the order of the bits; a class with None is not in the label map,
             where it neither covers others nor leaves a hole
    returns: bits and label map (uint8, or uint16 beyond 255), both of `native_shape`, RAS+
    """
    native_bits = np.zeros(native_shape, bit_dtype(len(values)), order="F")
    largest = max(value or 0 for value in values.values())
    label_map = np.zeros(native_shape, np.uint8 if largest <= 255 else np.uint16, order="F")
    groups, numbers = merging_groups(list(values)), list(values.values())
    boxes = {k: box for k, box in enumerate(bounding_boxes(bits, len(values), margin=1)) if box is not None}
    ways = {k: way_back(box, bits.shape, native_shape, affine, native_affine) for k, box in boxes.items()}

    def fill(first: int) -> None:
        """Make BLOCK_PLANES planes of both arrays; within each group, the classes compete."""
        planes = slice(first, min(first + BLOCK_PLANES, native_shape[2]))
        of_bits, of_map = native_bits[:, :, planes], label_map[:, :, planes]
        for group in groups:
            surest = np.zeros(of_map.shape, np.uint8, order="F")
            for k in group:
                part = ways[k].within(planes) if k in ways else None
                if part is None:
                    continue
                block = part.resample(_agreeing_bytes(bits, k, boxes[k], part.needs, crops[k]))
                inside, there = block > AT_THRESHOLD, part.native
                of_bits[there] |= inside * native_bits.dtype.type(1 << k)
                if (number := numbers[k]) is not None:
                    confidence = np.multiply(np.rint(block, out=block), inside, out=block).astype(np.uint8)
                    paint_where_surer(of_map[there], surest[there], number, confidence)

    for _ in in_threads(fill, range(0, native_shape[2], BLOCK_PLANES)):     # no two blocks share a voxel
        pass
    return native_bits, label_map


def _agreeing_bytes(bits: np.ndarray, k: int, box: Box, planes: slice, crop: Crop | None) -> np.ndarray:
    """The bytes of class k, made to agree with its mask, which post-processing may have changed.

    box:     around the mask, on the model's grid; planes: those of the box that are asked for
    crop:    None where all voxels of the mask came from the class of the other side
    returns: (d, h, planes) uint8, Fortran order
    """
    box = (*box[:2], slice(box[2].start + planes.start, box[2].start + planes.stop))
    field = np.zeros([s.stop - s.start for s in box], np.uint8, order="F")
    if crop is not None:
        both = [(max(b.start, s), min(b.stop, s + n)) for b, s, n in zip(box, crop.start, crop.values.shape)]
        if all(low < high for low, high in both):
            into = tuple(slice(low - b.start, high - b.start) for (low, high), b in zip(both, box))
            out_of = tuple(slice(low - s, high - s) for (low, high), s in zip(both, crop.start))
            field[into] = crop.values[out_of]
    inside = get_bit(bits[box], k)
    return np.where(inside, np.maximum(field, AT_THRESHOLD + 1), np.minimum(field, AT_THRESHOLD - 1))
