"""anatomy.py: boxes, components, the mid-sagittal plane, and right from left."""

import numpy as np
import pytest
from scipy import ndimage

from uniseg.imaging.anatomy import Plane, midsagittal_plane, right_side, split_left_right
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.body import body_mask
from uniseg.imaging.components import largest_components
from uniseg.imaging.volume import read_ct
from uniseg.phantom import make_phantom

IDENTITY = np.eye(4)
EMPTY = np.zeros((6, 5, 4), bool)


@pytest.fixture(scope="module")
def patient():
    hu, masks, affine = make_phantom((4.0, 4.0, 4.0), seed=1)
    return hu, masks, affine


def turned(volume, degrees, axes, order, fill):
    """The patient turned on the table: the array is resampled about its middle, the affine stays."""
    return ndimage.rotate(volume, degrees, axes=axes, reshape=False, order=order, mode="constant", cval=fill)


# --- bounding_box and largest_components

def test_bounding_box_is_tight_and_its_margin_stops_at_the_array():
    mask = EMPTY.copy()
    mask[1, 2, 3] = mask[4, 2, 1] = True
    assert bounding_box(mask) == (slice(1, 5), slice(2, 3), slice(1, 4))
    assert bounding_box(mask, margin=2) == (slice(0, 6), slice(0, 5), slice(0, 4))
    assert bounding_box(np.asfortranarray(mask)) == bounding_box(mask)


def test_bounding_box_of_nothing_is_none():
    assert bounding_box(EMPTY) is None
    assert bounding_box(np.zeros((0, 3, 3), bool)) is None


def test_largest_component_joins_voxels_that_touch_by_a_corner():
    mask = EMPTY.copy()
    mask[0, 0, 0] = mask[1, 1, 1] = True        # one component of two voxels, by a corner
    mask[5, 4, 3] = True                        # another of one voxel
    kept = largest_components(mask)
    assert kept.sum() == 2 and kept[0, 0, 0] and kept[1, 1, 1]
    assert np.array_equal(largest_components(mask, 2), mask)


def test_largest_components_of_nothing_is_nothing():
    kept = largest_components(EMPTY, 2)
    assert kept.shape == EMPTY.shape and not kept.any()


# --- midsagittal_plane

def test_plane_of_nothing_is_the_middle_of_the_array():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -100, 50, 7
    plane = midsagittal_plane(np.full((11, 9, 5), -1000, np.int16), affine)
    assert plane == Plane(-100 + 2.0 * 5, 0.0, 0.0, sure=False)


def test_plane_of_an_upright_patient_is_the_spine(patient):
    hu, _, affine = patient
    plane = midsagittal_plane(hu, affine)
    assert plane.sure and abs(plane.a) < 2.0 and abs(plane.b) < 0.03 and abs(plane.c) < 0.03


def test_the_plane_is_the_same_with_a_body_mask_that_exists_already(patient):
    """The segmenter has found the body before: outline and spine are looked for in the same one."""
    hu, _, affine = patient
    own, given = midsagittal_plane(hu, affine), midsagittal_plane(hu, affine, mask=body_mask(hu, (4.0, 4.0, 4.0)))
    assert given == own
    nowhere = midsagittal_plane(hu, affine, mask=np.zeros(hu.shape, bool))
    assert not nowhere.sure and nowhere.b == nowhere.c == 0.0                   # without a body there is no plane


@pytest.mark.slow
def test_plane_moves_with_the_affine(patient):
    hu, _, affine = patient
    moved = affine.copy()
    moved[:3, 3] += 100, -40, 700
    plane = midsagittal_plane(hu, moved)
    assert abs(plane.a - 100 + plane.b * -40 + plane.c * 700) < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-15, -8, 10, 15])
def test_plane_follows_a_patient_rotated_about_his_long_axis(patient, degrees):
    hu, _, affine = patient
    plane = midsagittal_plane(turned(hu, degrees, (0, 1), 1, -1000), affine)
    # ndimage.rotate turns axis 0 towards axis 1: the point (0, y) of the plane comes to lie at x = -tan(angle) y.
    assert abs(abs(plane.b) - np.tan(np.radians(abs(degrees)))) < 0.05
    assert np.sign(plane.b) == np.sign(rotation_slope(degrees))
    assert abs(plane.a) < 4.0


def rotation_slope(degrees):
    """dx/dy of the line x = 0 after the same rotation, measured on a picture of that line."""
    line = np.zeros((61, 61))
    line[29:32] = 1.0
    x, y = np.nonzero(ndimage.rotate(line, degrees, axes=(0, 1), reshape=False, order=1) > 0.5)
    return np.polyfit(y, x, 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-10, 12])
def test_plane_follows_a_patient_who_lies_aslant(patient, degrees):
    hu, _, affine = patient
    plane = midsagittal_plane(turned(hu, degrees, (0, 2), 1, -1000), affine)
    assert abs(plane.c - rotation_slope(degrees)) < 0.05


@pytest.mark.slow
def test_plane_does_not_mind_an_arm_or_a_field_of_view_off_centre(patient):
    hu, _, affine = patient
    with_arm = np.pad(hu, ((0, 15), (0, 0), (0, 0)), constant_values=-1000)
    with_arm[-16:-4, 25:40, 30:] = 60                                       # at the patient's right flank
    assert abs(midsagittal_plane(with_arm, affine).a) < 6.0
    cut = hu[14:]                                                           # 56 mm less on the patient's left
    moved = affine.copy()
    moved[0, 3] += 14 * 4.0
    plane = midsagittal_plane(cut, moved)
    assert abs(plane.a) < 6.0 and abs(plane.b) < 0.1


def seen(patient, part):
    """(hu, affine) of the slices `part` of axis 0 alone."""
    hu, _, affine = patient
    moved = affine.copy()
    moved[0, 3] += affine[0, 0] * (part.start or 0)
    return hu[part], moved


@pytest.mark.parametrize("cut", [16, pytest.param(-33, marks=pytest.mark.slow)])
def test_c11_the_plane_is_right_and_sure_where_a_part_of_one_side_is_cut_off(patient, cut):
    """The body is 75 voxels wide in 82: 17 % or 40 % of it is missing on one side."""
    plane = midsagittal_plane(*seen(patient, slice(cut, None) if cut > 0 else slice(None, cut)))
    assert plane.sure and abs(plane.a) < 5.0 and abs(plane.b) < 0.1 and abs(plane.c) < 0.1


@pytest.mark.parametrize("part, filled", [
    (slice(41, None), False), pytest.param(slice(None, 41), True, marks=pytest.mark.slow),
    pytest.param(slice(None, 20), False, marks=pytest.mark.slow),
    pytest.param(slice(50, 74), True, marks=pytest.mark.slow)])
def test_c10_the_plane_of_one_side_alone_is_not_sure(patient, part, filled):
    """Cut at the middle, beyond it, or narrow; also where the rest of the field of view is filled with air."""
    hu, affine = seen(patient, part)
    if filled:
        whole = np.full_like(patient[0], -1000)
        whole[part], affine = hu, patient[2]
        hu = whole
    assert not midsagittal_plane(hu, affine).sure


@pytest.mark.slow
def test_c10_c11_a_real_ct_shows_its_middle_and_a_crop_round_one_kidney_does_not(shared_data):
    ct = read_ct(shared_data / "unlabelled" / "crlm1006.nii.gz")
    whole = midsagittal_plane(ct.array, ct.affine)
    assert whole.sure
    spine = np.array([0.0, -90.0, -300.0])
    for x, y, sure in (((150, 300), (100, 300), True), ((290, 420), (170, 330), False), ((256, 512), (0, 512), False)):
        affine = ct.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [x[0], y[0], 0]
        plane = midsagittal_plane(ct.array[slice(*x), slice(*y)], affine)
        assert plane.sure == sure and (not sure or abs(plane.x_at(spine) - whole.x_at(spine)) < 5.0)


def test_the_outline_of_a_whole_trunk_shows_the_middle_where_voxels_are_too_large_for_a_spine():
    hu, _, affine = make_phantom((12.0, 12.0, 12.0), seed=1)
    plane = midsagittal_plane(hu, affine)
    assert plane.sure and abs(plane.a) < 3.0
    assert not midsagittal_plane(hu[14:], affine).sure


def test_mirror_of_a_point_lies_as_far_on_the_other_side():
    plane = Plane(3.0, 0.2, -0.1)
    points = np.random.default_rng(0).normal(size=(50, 3)) * 40
    mirrored = plane.mirror(points)
    assert np.allclose(plane.mirror(mirrored), points)
    assert (plane.is_right(points) != plane.is_right(mirrored)).all()
    middle = (points + mirrored) / 2
    assert np.allclose(plane.x_at(middle), middle[:, 0])
    assert np.allclose(Plane(3.0, 0.0, 0.0).mirror(np.array([[10.0, 5.0, 6.0]])), [[-4.0, 5.0, 6.0]])


# --- right and left

def test_the_right_is_where_the_first_index_is_large():
    assert right_side((4, 1, 1), IDENTITY, Plane(1.5, 0, 0)).ravel().tolist() == [False, False, True, True]
    assert Plane(1.5, 0, 0).is_right([2, 0, 0]) and not Plane(1.5, 0, 0).is_right([1, 0, 0])


def test_right_side_agrees_with_the_points_of_an_oblique_anisotropic_grid():
    affine = np.array([[0.8, 0.1, -0.2, 5], [-0.1, 0.7, 0.3, -9], [0.05, -0.2, 2.5, 40], [0, 0, 0, 1]])
    plane = Plane(4.0, 0.3, -0.15)
    index = np.moveaxis(np.indices((9, 8, 7)), 0, -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    assert np.array_equal(right_side((9, 8, 7), affine, plane), plane.is_right(points))
    box = (slice(2, 6), slice(1, 8), slice(3, 4))
    assert np.array_equal(right_side((9, 8, 7), affine, plane, box), plane.is_right(points)[box])


def halves():
    """12 voxels from left to right, the plane between voxels 5 and 6."""
    return np.zeros((12, 3, 3), bool), Plane(5.5, 0.0, 0.0)


def test_no_component_gives_two_empty_masks():
    mask, plane = halves()
    right, left = split_left_right(mask, IDENTITY, plane)
    assert not right.any() and not left.any() and right.shape == left.shape == mask.shape


@pytest.mark.parametrize("start, on_right", [(1, False), (8, True)])
def test_a_lone_component_goes_to_the_side_where_it_lies(start, on_right):
    mask, plane = halves()
    mask[start:start + 3] = True
    right, left = split_left_right(mask, IDENTITY, plane)
    assert right.any() == on_right and left.any() == (not on_right)
    assert np.array_equal(right | left, mask)


def test_three_components_go_each_to_its_side():
    mask, plane = halves()
    mask[0:2] = mask[3:5] = mask[9:11] = True
    right, left = split_left_right(mask, IDENTITY, plane)
    assert right.sum() == 2 * 9 and left.sum() == 4 * 9


def test_a_component_that_reaches_a_little_over_the_middle_stays_whole():
    mask, plane = halves()
    mask[5:12] = True                              # 6 of 7 slices are on the right
    right, left = split_left_right(mask, IDENTITY, plane)
    assert np.array_equal(right, mask) and not left.any()


def test_organs_that_touch_are_cut_by_the_plane():
    mask, plane = halves()
    mask[2:10] = True
    right, left = split_left_right(mask, IDENTITY, plane)
    assert right[6:10].all() and not right[:6].any()
    assert left[2:6].all() and not left[6:].any()


@pytest.mark.slow
def test_splitting_the_mirrored_patient_gives_the_mirrored_and_swapped_sides(patient):
    hu, masks, affine = patient                    # the phantom's world origin is the array's middle
    kidneys = masks["right_kidney"] | masks["left_kidney"]
    right, left = split_left_right(kidneys, affine, midsagittal_plane(hu, affine))
    swapped_right, swapped_left = split_left_right(kidneys[::-1], affine, midsagittal_plane(hu[::-1], affine))
    assert np.array_equal(right, masks["right_kidney"]) and np.array_equal(left, masks["left_kidney"])
    assert np.array_equal(swapped_right, left[::-1]) and np.array_equal(swapped_left, right[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("degrees, axes", [(15, (0, 1)), (-15, (0, 1)), (10, (0, 2))])
def test_kidneys_adrenals_lungs_and_hips_of_a_rotated_patient_are_told_apart(patient, degrees, axes):
    hu, masks, affine = patient
    plane = midsagittal_plane(turned(hu, degrees, axes, 1, -1000), affine)
    for organ in ("{}_kidney", "{}_adrenal_gland", "{}_lung", "{}_head_of_femur"):
        truth = {side: turned(masks[organ.format(side)].astype(np.uint8), degrees, axes, 0, 0) > 0
                 for side in ("right", "left")}
        right, left = split_left_right(truth["right"] | truth["left"], affine, plane)
        wrong = (right & truth["left"]).sum() + (left & truth["right"]).sum()
        assert wrong <= 0.01 * (right | left).sum(), organ
