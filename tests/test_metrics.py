"""Dice and surface distances on masks whose figures can be worked out by hand."""

import numpy as np
import pytest

from uniseg.metrics import dice, dice_from_counts, hd95, nsd, surface, surface_distances


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


# ------------------------------------------------------------------------------------------------------------ surfaces

SPACING = (1.0, 2.0, 4.0)


def boxes(shift):
    """A 4 x 4 x 4 cube and the same one `shift` voxels further along the first axis."""
    here, there = np.zeros((2, 16, 8, 8), bool)
    here[2:6, 2:6, 2:6] = there[2 + shift:6 + shift, 2:6, 2:6] = True
    return here, there


def slow_distances(a, b, spacing_mm):
    """Voxel by voxel: from each surface voxel of a to the nearest of b."""
    def edge(mask):
        padded = np.pad(mask, 1)
        return [np.array(v) for v in np.argwhere(mask) if not all(
            padded[tuple(v + 1 + step)] for step in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int)))]
    return [min(np.linalg.norm((v - w) * spacing_mm) for w in edge(b)) for v in edge(a)]


def test_the_surface_of_a_cube_of_4_is_all_but_its_inner_8_voxels():
    here, _ = boxes(0)
    assert surface(here).sum() == 64 - 8 and not surface(here)[3:5, 3:5, 3:5].any()
    assert surface(np.ones((3, 3, 3), bool)).sum() == 26                       # the array's border is a surface too


def test_surface_distances_equal_a_slow_loop():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 6, 7)) < 0.3
    found = surface_distances(a, b, SPACING)
    for distances, expected in zip(found, (slow_distances(a, b, SPACING), slow_distances(b, a, SPACING))):
        np.testing.assert_allclose(np.sort(distances), np.sort(expected), rtol=1e-12)


def test_two_cubes_three_voxels_apart_by_hand():
    """The far faces (16 voxels of 56) are 3 mm away, the next rim (12) 2 mm, the next (12) 1 mm; the last 16 touch."""
    here, there = boxes(3)
    assert hd95(here, there, SPACING) == 3.0
    assert nsd(here, there, SPACING, tolerance_mm=3.0) == 1.0
    assert nsd(here, there, SPACING, tolerance_mm=2.0) == (56 - 16) / 56
    assert nsd(here, there, SPACING, tolerance_mm=1.0) == (56 - 16 - 12) / 56
    assert nsd(here, there, SPACING, tolerance_mm=0.0) == 16 / 56


def test_the_spacing_is_that_of_the_axes_in_order():
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[4, 4, 2] = b[4, 4, 5] = True                                             # three voxels apart along the last axis
    assert hd95(a, b, SPACING) == 12.0 and nsd(a, b, SPACING, 11.9) == 0.0 and nsd(a, b, SPACING, 12.0) == 1.0


def test_equal_masks_are_at_distance_zero_and_order_does_not_matter():
    here, there = boxes(2)
    assert hd95(here, here, SPACING) == 0.0 and nsd(here, here, SPACING, 0.0) == 1.0
    assert hd95(here, there, SPACING) == hd95(there, here, SPACING)
    assert nsd(here, there, SPACING, 1.0) == nsd(there, here, SPACING, 1.0)


def test_empty_masks_agree_with_each_other_and_with_nothing_else():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert nsd(empty, empty, SPACING, 2.0) == 1.0 and hd95(empty, empty, SPACING) == 0.0
    for pair in ((empty, full), (full, empty)):
        assert nsd(*pair, SPACING, 2.0) == 0.0 and hd95(*pair, SPACING) == float("inf")
        with pytest.raises(ValueError, match="a mask is empty, it has no surface"):
            surface_distances(*pair, SPACING)


def test_surfaces_of_different_grids_are_refused():
    for measure, more in ((nsd, [2.0]), (hd95, []), (surface_distances, [])):
        with pytest.raises(ValueError, match="differ. Compare masks of one grid"):
            measure(np.ones((2, 2, 2), bool), np.zeros((2, 2, 3), bool), SPACING, *more)
