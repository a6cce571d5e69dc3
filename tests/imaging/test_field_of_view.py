"""What lies outside a field of view: found by its one value, read as air, continued for the network."""

import nibabel as nib
import numpy as np
import pytest

from uniseg.imaging.field_of_view import beyond_the_view, constant_regions, continued
from uniseg.imaging.volume import AIR_HU, read_ct

SHAPE, MM = (40, 30, 8), 5.0


def patient(seed=0):
    """(D, H, W) int16: an oval body of 40 HU in air of -990, both with noise; voxels of 5 mm."""
    x, y = (np.arange(n) - (n - 1) / 2 for n in SHAPE[:2])
    body = (x[:, None] / 15) ** 2 + (y / 11) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 8, SHAPE)
    return (np.where(body, 40, -990)[..., None] + noise).astype(np.int16)


def read(hu, mm=MM):
    return read_ct(nib.Nifti1Image(hu, np.diag([mm, mm, mm, 1.0])))


def disc(radius):
    x, y = np.ogrid[:SHAPE[0], :SHAPE[1]]
    return np.hypot(x - (SHAPE[0] - 1) / 2, y - (SHAPE[1] - 1) / 2) <= radius


FILLED = {                                                     # what a tool has left without data
    "two sides": np.s_[:6], "an L": [np.s_[:6], np.s_[:, :6]], "whole slices": np.s_[:, :, -3:],
    "a ring": [np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]], "a corner": np.s_[:8, :8],
    "around a circle": ~disc(14.0)}


@pytest.mark.parametrize("value", [0, 150, -500, 1000])
@pytest.mark.parametrize("where", FILLED)
def test_c01_a_fill_of_any_value_and_shape_is_read_as_air_with_a_warning(where, value):
    hu, filled = patient(), np.zeros(SHAPE, bool)
    for part in FILLED[where] if isinstance(FILLED[where], list) else [FILLED[where]]:
        filled[part] = True
    ct = read(np.where(filled, value, hu).astype(np.int16))
    assert (ct.array[filled] == AIR_HU).all() and np.array_equal(ct.array[~filled], hu[~filled])
    assert np.array_equal(ct.outside.on_grid(ct.array, ct.affine, AIR_HU), filled)
    [warning] = ct.warnings
    assert f"has the one value {value}" in warning and "read as air" in warning


def test_c01_what_a_scanner_shows_is_no_fill():
    hu = patient()
    coarse = (hu // 8 * 8).astype(np.int16)                  # few grey levels: neighbours share a value by chance
    inside = hu.copy()
    inside[18:22, 13:17, 3:6] = 0                              # as large as a fill, but it reaches no face
    hip = hu.copy()
    hip[18:22, 13:17, :5] = 3071                               # metal, cut by the lowest slice
    for array in (hu, coarse, inside, hip):
        assert constant_regions(array, MM ** 3 / 1000) == {} or array is hip
        ct = read(array)
        assert ct.outside is None and ct.warnings == [] and np.array_equal(ct.array, array)


def test_c02_the_scanners_circle_is_known_from_the_air_around_a_patient_by_its_shape():
    circle = np.repeat(~disc(14.0)[..., None], SHAPE[2], axis=2)
    assert np.array_equal(beyond_the_view(circle), circle)
    crop = np.ones(SHAPE, bool)
    crop[8:30, 5:28] = False                                   # a grid larger than the field of view
    assert np.array_equal(beyond_the_view(crop), crop)
    oval = patient() < -500                                    # air that is clipped to one value
    assert not beyond_the_view(oval).any()
    head = np.stack([~disc(radius) for radius in (8, 10, 12, 13, 14, 14, 13, 12)], axis=2)
    assert not beyond_the_view(head).any()                     # round, but not the same in all slices
    ct = read(np.where(circle, -2000, patient()).astype(np.int16))
    assert ct.warnings == [] and np.array_equal(ct.outside.on_grid(ct.array, ct.affine, AIR_HU), circle)
    assert read(np.where(oval, -1024, patient()).astype(np.int16)).outside is None


def test_the_view_is_found_on_a_finer_grid_too():
    fine = np.repeat(np.repeat(patient(), 3, axis=0), 3, axis=1)
    circle = np.kron(~disc(14.0), np.ones((3, 3))).astype(bool)[..., None] & np.ones(SHAPE[2], bool)
    fine[circle] = 7                                           # steps between the coarse voxels' middles: to the voxel
    ct = read_ct(nib.Nifti1Image(fine, np.diag([MM / 3, MM / 3, MM, 1.0])))
    assert np.array_equal(ct.array == AIR_HU, circle)


def test_a_slice_goes_on_beyond_its_view_as_its_mirror_image():
    hu = np.arange(8.0).reshape(8, 1, 1) * np.ones((1, 1, 3))
    outside, body = np.zeros((8, 1, 3), bool), np.ones((8, 1, 3), bool)
    outside[5:, :, 1] = outside[:, :, 2] = True                # the second slice is cut, the third not seen
    # voxel 4 may hold some of the fill, so that 3 is the edge
    cut = [0, 1, 2, 3, 2, 1, 0, 0]
    assert continued(hu, outside, body, (4.0, 4.0, 4.0))[:, 0].T.tolist() == [list(range(8)), cut, cut]
    assert continued(hu, outside, body, (4.0, 4.0, 40.0))[:, 0, 2].tolist() == list(range(8))   # 40 mm off: not seen
    outside[2:, :, 1] = True                                   # voxel 0 is the only one left: nothing to mirror
    assert continued(hu, outside, body, (4.0, 4.0, 4.0))[:, 0, 1].tolist() == [0] * 8
    # 30 mm, not more
    assert continued(hu, outside, body, (5.0, 5.0, 5.0))[:, 0, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 7]


def test_a_patient_who_is_not_cut_stays_as_is():
    hu = np.arange(64.0).reshape(8, 8, 1)
    outside, body = np.zeros((8, 8, 1), bool), np.zeros((8, 8, 1), bool)
    outside[6:] = True
    body[1:3, 3:5] = True                                      # air between the patient and the edge
    assert continued(hu, outside, body, (4.0, 4.0, 4.0)) is hu


# ------------------------------------------------------------------------------------------------ Hounsfield units

@pytest.mark.parametrize("damaged, says", [
    (lambda hu: hu + 1024, "look like HU + 1024"),
    (lambda hu: np.where(~disc(19)[..., None], -2000, hu + 1024), "look like HU + 1024"),
    (lambda hu: np.where(~disc(14)[..., None], -3024, hu + 1000), "look like HU + 1024"),
    (lambda hu: np.clip(hu, -250, 500), "clipped: nothing is below -250"),
    (lambda hu: np.clip(hu, -325, 500), "clipped: nothing is below -325"),
    (lambda hu: np.clip(hu, -150, 250), "hold no air"),
    (lambda hu: hu - 1024, "intercept applied twice"),
    (lambda hu: hu // 2, "the darkest values are about"),
    (lambda hu: np.where(hu > -500, hu + 500, hu), "soft tissue"),
], ids=["raw", "raw, padded", "raw, +1000, padded", "clipped", "clipped lower", "clipped to a window", "twice",
        "halved", "bent"])
def test_c03_values_that_are_no_hounsfield_units_are_warned_about(damaged, says):
    [warning] = read(damaged(patient()).astype(np.int16)).warnings
    assert says in warning


def test_c03_lungs_bones_and_a_field_of_view_without_air_are_hounsfield_units():
    rng = np.random.default_rng(1)
    lungs = rng.normal(-850, 60, SHAPE)
    lungs[::4] = 40                                            # vessels
    femur = np.where(rng.random(SHAPE) < 0.3, 700, 50) + rng.normal(0, 30, SHAPE)
    femur[:, :4] -= 1000
    for hu in (patient(), lungs, femur):
        assert read(hu.astype(np.int16)).warnings == []
