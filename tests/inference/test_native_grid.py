"""native_grid.py: bytes of logits, and the label map that is made of them (Section 4.1.2), on a few voxels."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from uniseg.imaging.bits import get_bit
from uniseg.imaging.merging import merging_groups
from uniseg.inference.native_grid import (
    AT_THRESHOLD,
    Crop,
    box_slices,
    crops_of_slab,
    logits_to_bytes,
    masks_of,
    order_of_the_sure,
    to_native,
)
from uniseg.taxonomy import label_values


def label_map_of(logits, limits, names):
    """Logits (K, D, H, W) -> bytes -> masks and label map on the same grid, as segmenter.py does it."""
    fields = [logits_to_bytes(of_class, limit) for of_class, limit in zip(logits, limits)]
    for k, (voxels, values) in order_of_the_sure(logits, limits, names).items():
        fields[k][voxels] = values
    crops = [Crop([0, 0, 0], np.asfortranarray(field)) for field in fields]
    shape = logits.shape[1:]
    return to_native(masks_of(crops, shape), crops, label_values(names), np.eye(4), shape, np.eye(4))


def slow_label_map(logits, limits, names):
    """Voxel by voxel: organs, then vessels, then tumours; within a kind the largest distance from the threshold."""
    label_map = np.zeros(logits.shape[1:], int)
    for voxel in np.ndindex(label_map.shape):
        for group in merging_groups(names):
            inside = [k for k in group if logits[k][voxel] > limits[k]]
            if inside:
                surest = max(inside, key=lambda k: logits[k][voxel] - limits[k])           # the first of equals
                label_map[voxel] = label_values(names)[names[surest]]
    return label_map


# C15
def test_of_two_sure_organs_the_surer_one_has_the_voxel_in_either_order():
    """Spleen at 5 logits, liver at 9: both are 4 logits and more above the threshold, where bytes end."""
    for names in (["spleen", "liver"], ["liver", "spleen"]):
        logits = np.array([5.0 if name == "spleen" else 9.0 for name in names], np.float32).reshape(2, 1, 1, 1)
        bits, label_map = label_map_of(logits, [0.0, 0.0], names)
        assert label_map.item() == label_values(names)["liver"]
        assert get_bit(bits, 0).all() and get_bit(bits, 1).all()            # the masks keep their overlap


@pytest.mark.parametrize("thresholds", [(0, 0, 0, 0, 0), (0, 1.5, -2, 0, 3)])
def test_the_label_map_is_the_slow_one_however_sure_the_classes_are(thresholds):
    """Logits in steps of a quarter, from 20 below to 30 above: those of the paper's rule, without an end."""
    names = ["spleen", "liver", "aorta", "stomach", "postcava"]
    logits = (np.random.default_rng(0).integers(-80, 120, (5, 9, 8, 7)) / 4).astype(np.float32)
    bits, label_map = label_map_of(logits, thresholds, names)
    assert np.array_equal(label_map, slow_label_map(logits, thresholds, names))
    for k, limit in enumerate(thresholds):
        assert np.array_equal(get_bit(bits, k), logits[k] > limit)


def test_where_one_class_is_sure_no_byte_changes():
    """An organ and a vessel do not compete, nor does a class that is below 4 logits."""
    logits = np.array([9.0, 3.0, 9.0], np.float32).reshape(3, 1, 1, 1)
    assert order_of_the_sure(logits, [0.0] * 3, ["spleen", "liver", "aorta"]) == {}
    assert logits_to_bytes(logits[0], 0.0).item() == 255 and logits_to_bytes(logits[1], 0.0).item() == AT_THRESHOLD + 96


@pytest.mark.parametrize("level", [-40, -4, 0, 6])                 # logits: far below, faint, mixed, sure
def test_the_crops_of_a_slab_hold_all_bytes_above_0_that_are_inside_the_body(level):
    names, limits = ["spleen", "liver", "aorta"], [0.0, 1.5, -2.0]
    rng = np.random.default_rng(5)
    logits = rng.normal(level, 3, (3, 9, 8, 7)).astype(np.float32)
    logits[:, 2, 2:4, :] = 50
    inside = rng.random((9, 8, 7)) > 0.3
    inside[:2] = False
    for k, crop in enumerate(crops_of_slab(logits, limits, names, inside, z=20)):
        expected = logits_to_bytes(logits[k], limits[k])
        if k in (changed := order_of_the_sure(logits, limits, names)):
            voxels, values = changed[k]
            expected[voxels] = values
        expected[~inside] = 0
        found = np.zeros((9, 8, 27), np.uint8)
        found[box_slices(crop.start, crop.values.shape)] = crop.values
        assert (found[:, :, 20:] == expected).all() and not found[:, :, :20].any()
        assert all(crop.values.any(axis=axes).all() for axes in ((1, 2), (0, 2), (0, 1)))          # no box is smaller


def test_a_class_that_is_far_below_its_threshold_everywhere_has_no_crop():
    """A byte is 1/32 of a logit: 0 up to 4 logits below the threshold, 1 from 127/32 below it on."""
    inside = np.ones((2, 2, 2), bool)
    for logit, byte in ((-4.0, 0), (-3.985, 0), (-127 / 32, 1)):
        logits = np.full((1, 2, 2, 2), logit, np.float32)
        crop, = crops_of_slab(logits, [0.0], ["liver"], inside, z=0)
        assert crop is None if byte == 0 else (crop.values == byte).all()
        assert (logits_to_bytes(logits[0], 0.0) == byte).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_on_a_finer_grid_each_class_is_interpolated_by_itself_for_any_number_of_threads(threads):
    """Two organs and a vessel, changed after their bytes were made: compared with scipy on the whole grid."""
    names, shape, native_shape = ["spleen", "liver", "aorta"], (12, 11, 13), (24, 22, 39)
    rng = np.random.default_rng(2)
    fields = rng.integers(60, 200, (3, *shape)).astype(np.uint8)
    fields[:, :2] = fields[:, :, -2:] = 0
    bits = masks_of([Crop([0, 0, 0], np.asfortranarray(field)) for field in fields], shape)
    crops = [Crop([0, 0, 0], fields[0]), None, Crop([3, 2, 1], fields[2][3:, 2:, 1:])]
    affine, native_affine = np.diag([2.0, 2.0, 3.0, 1.0]), np.eye(4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        native_bits, label_map = to_native(bits, crops, label_values(names), affine, native_shape, native_affine)
    finally:
        torch.set_num_threads(before)
    at = [(np.arange(n) - (n - 1) / 2) / r + (m - 1) / 2 for n, m, r in zip(native_shape, shape, (2, 2, 3))]
    at = np.array(np.meshgrid(*(np.clip(line, 0, m - 1) for line, m in zip(at, shape)), indexing="ij"))
    expected, surest = np.zeros(native_shape, int), np.zeros(native_shape)
    for k, name in enumerate(names):
        known = np.zeros(shape, np.uint8)
        if crops[k] is not None:
            known[tuple(slice(s, None) for s in crops[k].start)] = crops[k].values
        agreeing = np.where(get_bit(bits, k), np.maximum(known, AT_THRESHOLD + 1), np.minimum(known, AT_THRESHOLD - 1))
        values = ndimage.map_coordinates(agreeing.astype(float), at, order=1, mode="nearest")
        clear = abs(values - AT_THRESHOLD) > 1e-3                     # float32 and float64 round differently
        assert clear.mean() > 0.99 and np.array_equal(get_bit(native_bits, k)[clear], (values > AT_THRESHOLD)[clear])
        surest = np.zeros(native_shape) if name == "aorta" else surest             # a vessel covers an organ
        wins = get_bit(native_bits, k) & (np.rint(values) > surest)
        expected[wins], surest[wins] = label_values(names)[name], np.rint(values)[wins]
    assert (label_map == expected).mean() > 0.999 and set(np.unique(label_map)) == {0, 1, 6, 8}
