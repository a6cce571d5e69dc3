"""Dice on masks whose overlap can be counted on one's fingers."""

import numpy as np
import pytest

from uniseg.metrics import dice, dice_from_counts


def test_two_boxes_that_share_half():
    predicted, reference = np.zeros((2, 4, 4, 4), bool)
    predicted[:2], reference[1:3] = True, True                # 32 voxels each, 16 in common
    assert dice(predicted, reference) == 2 * 16 / (32 + 32) == 0.5
    assert dice(reference, predicted) == 0.5


def test_equal_masks_have_dice_one_and_disjoint_ones_zero():
    mask = np.arange(27).reshape(3, 3, 3) % 2 == 0
    assert dice(mask, mask) == 1.0
    assert dice(mask, ~mask) == 0.0


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, full = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == dice(full, empty) == 0.0


def test_the_counts_of_a_whole_validation_set_give_a_plain_float():
    assert dice_from_counts(*np.array([3, 4, 8]) * 10 ** 9) == 0.5
    assert type(dice_from_counts(*np.array([3, 4, 8]))) is type(dice_from_counts(3, 4, 8)) is float


def test_masks_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2, 2, 2\) and \(2, 2, 3\) differ. Compare masks of one grid"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
