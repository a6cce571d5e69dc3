"""spine.py: places ringed by bone, the column of them, and where it lies in the body."""

import numpy as np
import pytest

from uniseg.imaging.spine import SpineSearch, best_column, fit_line, in_the_back, ringed_by_bone
from uniseg.phantom import make_phantom


def disc(shape, centre, radius, voxel_mm=4.0):
    """(D, H) bool: a disc in a slice, in mm about a voxel."""
    i, j = np.ogrid[:shape[0], :shape[1]]
    return np.hypot(i - centre[0], j - centre[1]) * voxel_mm <= radius


@pytest.mark.parametrize("inside, gap, found", [(40, False, True), (40, True, True), (-60, False, False),
                                                (250, False, False)])
def test_soft_tissue_ringed_by_bone_is_found_and_the_fat_of_a_long_bone_is_not(inside, gap, found):
    hu = np.full((21, 21, 1), 20, np.int16)
    hu[disc((21, 21), (10, 10), 18)] = 400
    hu[disc((21, 21), (10, 10), 9)] = inside
    if gap:
        hu[10, :6] = 20                              # one ray of eight meets no bone
    score = ringed_by_bone(hu, (4.0, 4.0, 5.0))
    assert (score[10, 10, 0] > 0.5) == found and score[1, 1, 0] == 0


def test_half_a_ring_is_none():
    hu = np.full((21, 21, 1), 20, np.int16)
    hu[disc((21, 21), (10, 10), 18) & ~disc((21, 21), (10, 10), 9)] = 400
    assert ringed_by_bone(hu, (4.0, 4.0, 5.0))[10, 10, 0] == 1
    assert ringed_by_bone(hu[10:], (4.0, 4.0, 5.0)).max() < 0.5


def test_the_back_of_a_deep_body_and_all_of_a_neck_are_searched():
    body = np.zeros((2, 50, 1), bool)
    body[0, 5:45] = True                                                     # 200 mm deep
    body[1, 5:25] = True                                                     # 100 mm
    back = in_the_back(body, (5.0, 5.0, 5.0), 0.4)
    assert np.flatnonzero(back[0]).tolist() == list(range(5, 22))            # 16 voxels of 40 lie behind the last
    assert np.array_equal(back[1], body[1])


def test_the_best_column_follows_a_crooked_spine_past_a_brighter_place_that_ends():
    score = np.zeros((20, 6, 10), np.float32)
    crooked = [5 + k // 2 for k in range(10)]
    score[crooked, 2, range(10)] = 0.6
    score[18, 4, 2:5] = 1.0
    assert best_column(score, 1)[:, 0].tolist() == crooked


def test_the_line_leaves_out_what_is_beside_the_column():
    z = np.arange(0.0, 200.0, 5.0)
    x = 3.0 + 0.1 * z
    x[::4] += 60.0                                                           # a quarter of the places are of a kidney
    a, c = fit_line(x, z, np.ones_like(z))
    assert abs(a + c * 100 - 13.0) < 0.5 and abs(c - 0.1) < 0.01


def test_the_phantoms_spine_is_found_behind_and_in_front_where_it_is_flipped():
    hu, _, affine = make_phantom((4.0, 4.0, 8.0), seed=1)
    search = SpineSearch(hu, affine)
    column = search.column()
    assert abs(column.centre[0]) < 5 and column.is_vertebrae and column.evidence > 0.2
    share, depth_mm = search.place_in_depth(column)
    assert share < 0.3 and 150 < depth_mm < 250
    search = SpineSearch(hu[:, ::-1], affine).anywhere()
    assert search.place_in_depth(search.column())[0] > 0.6
    no_front = SpineSearch(hu[:, :hu.shape[1] // 2], affine).anywhere()  # the field of view ends in the middle
    assert no_front.place_in_depth(no_front.column()) is None


def test_there_is_no_column_in_air():
    assert SpineSearch(np.full((9, 9, 9), -1000, np.int16), np.diag([4.0, 4.0, 4.0, 1.0])).column() is None
