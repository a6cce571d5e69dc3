"""From logits on the model's grid to masks on the CT's own grid, with one byte a voxel and class."""

import numpy as np

from ..imaging.bits import bit_dtype, bounding_box, get_bit
from ..imaging.merging import merging_groups, paint_where_surer
from ..imaging.resampling import resample_back

STEPS_PER_LOGIT = 32     # a logit is stored as a byte: 128 is the threshold, one step is 1/32, 0 is 4 or more below
AT_THRESHOLD = 128


def to_bytes(logits, limit):
    """Logits -> bytes: above AT_THRESHOLD just where logit > limit, below it elsewhere, 1/32 a step."""
    steps = np.rint((logits - np.float32(limit)) * STEPS_PER_LOGIT) + AT_THRESHOLD
    inside = logits > limit
    steps[inside] = np.clip(steps[inside], AT_THRESHOLD + 1, 255)
    np.clip(steps, 0, np.where(inside, 255, AT_THRESHOLD - 1), out=steps)
    return steps.astype(np.uint8)


def box_at(start, shape):
    return tuple(slice(s, s + n) for s, n in zip(start, shape))


def assemble(pieces, offset, shape):
    """The slabs of one class joined: (start on the model grid, bytes), cropped to its mask and one voxel around it.

    offset: of the body box that the pieces count from, on the model grid of the given shape.

    None where no voxel is above the threshold. Outside all pieces a byte is 0.
    """
    if not any((values > AT_THRESHOLD).any() for _, values in pieces):
        return None
    starts = [np.add(start, offset) for start, _ in pieces]
    low = np.maximum(np.min(starts, axis=0) - 1, 0)
    high = np.minimum(np.max([start + values.shape for start, (_, values) in zip(starts, pieces)], axis=0) + 1, shape)
    joined = np.zeros(high - low, np.uint8, order="F")
    for start, (_, values) in zip(starts, pieces):
        joined[box_at(start - low, values.shape)] = values
    tight = bounding_box(joined > AT_THRESHOLD, margin=1)
    return [int(l) + s.start for l, s in zip(low, tight)], joined[tight]


def to_native(bits, maps, numbers, affine, native_shape, native_affine):
    """Bits (uint32) and label map on the native grid, RAS+, from refined model-grid bits and the bytes of each class.

    numbers: {class: its value in the label map}, in the order of the bits
    Every class is interpolated linearly inside its bounding box. Organs come first, then vessels, then tumours; within
    one kind the class with the higher confidence (distance of the logit from its threshold) wins (Section 4.1.2).
    """
    native_bits = np.zeros(native_shape, bit_dtype(len(numbers)), order="F")
    label_map = np.zeros(native_shape, np.uint8 if max(numbers.values()) <= 255 else np.uint16, order="F")
    surest = np.zeros(native_shape, np.uint8, order="F")
    names = list(numbers)
    for group in merging_groups(names):
        surest.fill(0)
        for k in group:
            found = _refined(get_bit(bits, k), maps[k])
            if found is None:
                continue
            start, field = found
            for box, block in resample_back(field, start, bits.shape, native_shape, affine, native_affine):
                inside = block > AT_THRESHOLD
                native_bits[box] |= inside.astype(native_bits.dtype) << native_bits.dtype.type(k)
                confidence = np.where(inside, np.rint(block), 0).astype(np.uint8)
                paint_where_surer(label_map[box], surest[box], numbers[names[k]], confidence)
    return native_bits, label_map


def _refined(mask, found):
    """(start, bytes) of a class whose mask post-processing may have changed: bytes agree with the mask everywhere."""
    box = bounding_box(mask, margin=1)
    if box is None:
        return None
    field = np.zeros([s.stop - s.start for s in box], np.uint8, order="F")
    if found is not None:                                        # None: all voxels came from the partner's side
        start, values = found
        both = [(max(b.start, s), min(b.stop, s + n)) for b, s, n in zip(box, start, values.shape)]
        if all(low < high for low, high in both):
            field[tuple(slice(low - b.start, high - b.start) for (low, high), b in zip(both, box))] = \
                values[tuple(slice(low - s, high - s) for (low, high), s in zip(both, start))]
    inside = mask[box]
    field = np.where(inside, np.maximum(field, AT_THRESHOLD + 1), np.minimum(field, AT_THRESHOLD - 1))
    return [s.start for s in box], np.asfortranarray(field)


def count_voxels(bits, numbers, voxel_mm3):
    """Per class of `numbers`, see to_native: its number in the label map, voxels, ml, and whether it touches the border of the volume."""
    counted = {}
    faces = [bits[0], bits[-1], bits[:, 0], bits[:, -1], bits[:, :, 0], bits[:, :, -1]]
    for k, (name, number) in enumerate(numbers.items()):
        one = bits.dtype.type(1 << k)
        voxels = sum(int(np.count_nonzero(bits[:, :, z] & one)) for z in range(bits.shape[2]))
        counted[name] = {"label": number, "voxels": voxels, "ml": round(voxels * voxel_mm3 / 1000, 3),
                         "touches_border": bool(voxels and any((face & one).any() for face in faces))}
    return counted
