"""phantom.py: a patient that is the same in mm on every grid, has its tumours in its organs, and looks like a CT."""

import numpy as np
import pytest

from uniseg.imaging.components import largest_components
from uniseg.phantom import HU, make_phantom
from uniseg.taxonomy import BY_NAME


@pytest.fixture(scope="module")
def patient():
    return make_phantom((4.0, 4.0, 4.0), seed=0)


def centroid_mm(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def test_shapes_types_and_order_are_those_of_a_loaded_volume(patient):
    hu, masks, affine = patient
    assert hu.shape == (82, 60, 82) and hu.dtype == np.int16 and hu.flags.f_contiguous
    assert affine.shape == (4, 4) and np.allclose(np.diag(affine), [4, 4, 4, 1])
    assert all(m.shape == hu.shape and m.dtype == bool and m.any() for m in masks.values())
    assert set(masks) <= set(BY_NAME) and set(masks) == set(HU) - {"superior_mesenteric_artery"}


def test_a_class_beyond_table_2_can_be_drawn_and_changes_no_other(patient):
    hu, masks, affine = patient
    more_hu, more, _ = make_phantom((4.0, 4.0, 4.0), beyond=True)
    artery = more.pop("superior_mesenteric_artery")
    assert all(np.array_equal(more[name], masks[name]) for name in masks) and not any((artery & mask).any()
                                                                                      for mask in masks.values())
    places = affine[:3, :3] @ np.argwhere(artery).T + affine[:3, 3:]     # mm: from the aorta down through the mesentery
    assert np.ptp(places[2]) > 80 and places[1].max() > 15 > -5 > places[1].min()
    assert hu[artery].mean() < 60 < more_hu[artery].mean()


@pytest.mark.slow
def test_the_same_seed_is_the_same_patient_and_another_seed_is_another(patient):
    again, masks, _ = make_phantom((4.0, 4.0, 4.0), seed=0)
    other = make_phantom((4.0, 4.0, 4.0), seed=1)
    assert np.array_equal(again, patient[0])
    assert all(np.array_equal(masks[n], patient[1][n]) for n in masks)
    assert not np.array_equal(other[1]["liver"], patient[1]["liver"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_organs_lie_on_their_side_in_their_order(seed):
    _, masks, affine = make_phantom((5.0, 5.0, 5.0), seed=seed)
    at = {name: centroid_mm(mask, affine) for name, mask in masks.items()}
    for right in ("liver", "gall_bladder", "right_kidney", "right_adrenal_gland", "right_lung", "right_head_of_femur",
                  "postcava"):
        assert at[right][0] > 5, right
    for left in ("spleen", "stomach", "left_kidney", "left_adrenal_gland", "left_lung", "left_head_of_femur", "aorta"):
        assert at[left][0] < -2, left
    assert at["bladder"][2] < at["intestine"][2] < at["right_kidney"][2] < at["liver"][2] < at["right_lung"][2]
    assert at["right_kidney"][1] < at["pancreas"][1] and at["aorta"][1] < at["pancreas"][1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_lesions_and_vessels_are_inside_their_organs_and_organs_are_apart(seed):
    _, masks, _ = make_phantom((4.0, 4.0, 4.0), seed=seed)
    overlap = np.zeros(masks["liver"].shape, int)
    for name, mask in masks.items():
        entry = BY_NAME[name]
        if entry.parents:
            assert not (mask & ~np.logical_or.reduce([masks[p] for p in entry.parents])).any(), name
        else:
            overlap += mask
            assert np.array_equal(largest_components(mask), mask), name
    assert overlap.max() == 1


@pytest.mark.slow
def test_another_voxel_size_shows_the_same_anatomy():
    _, cubic, affine = make_phantom((4.0, 4.0, 4.0), seed=2)
    _, slices, thick = make_phantom((2.5, 2.5, 6.0), seed=2)
    for name in cubic:
        volume = cubic[name].sum() * 64.0, slices[name].sum() * 37.5
        assert 0.75 < volume[0] / volume[1] < 1.33 or max(volume) < 5000, name  # below 5 ml voxels are too large to say
        assert np.abs(centroid_mm(cubic[name], affine) - centroid_mm(slices[name], thick)).max() < 5.0, name


def test_intensities_are_those_of_a_portal_venous_ct(patient):
    hu, masks, _ = patient
    assert hu.min() >= -1024 and abs(np.median(hu[:3]) + 1000) < 20
    for name, expected in (("spleen", 120), ("aorta", 150), ("bladder", 5), ("left_lung", -850), ("liver", 110)):
        assert abs(np.median(hu[masks[name]]) - expected) < 25, name
    tumour = masks["liver_tumor"]
    assert np.median(hu[tumour]) + 20 < np.median(hu[masks["liver"] & ~tumour])


def test_without_tumours_nothing_else_changes(patient):
    _, healthy, _ = make_phantom((4.0, 4.0, 4.0), seed=0, tumours=False)
    assert set(patient[1]) - set(healthy) == {"liver_tumor", "kidney_tumor", "kidney_cyst"}
    assert np.array_equal(healthy["spleen"], patient[1]["spleen"])
    assert np.array_equal(healthy["liver"], patient[1]["liver"])


def test_a_small_shape_is_the_middle_of_the_patient(patient):
    hu, masks, affine = make_phantom((4.0, 4.0, 4.0), seed=0, shape=(22, 20, 12))
    assert hu.shape == (22, 20, 12) and all(m.shape == hu.shape for m in masks.values())
    assert np.allclose(affine[:3, :3] @ ((np.array(hu.shape) - 1) / 2) + affine[:3, 3], 0)
    assert np.array_equal(masks["aorta"], patient[1]["aorta"][30:52, 20:40, 35:47])
