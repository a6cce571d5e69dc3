"""native_grid.py: bytes of logits, and the label map that is made of them (Section 4.1.2), on a few voxels."""

import numpy as np
import pytest

from uniseg.imaging.bits import get_bit
from uniseg.imaging.merging import merging_groups
from uniseg.inference.native_grid import (
    AT_THRESHOLD,
    Crop,
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
