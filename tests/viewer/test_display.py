"""display.py: the grid that is shown, classes that overlap, and the middle of a class."""

import numpy as np
import pytest

from uniseg.imaging.bits import pack
from uniseg.viewer import display
from uniseg.viewer.display import combine, display_spacing, make_display, middle
from view_cases import ball


@pytest.mark.parametrize("shape, spacing", [((512, 512, 51), (0.8, 0.8, 5.0)), ((512, 512, 600), (0.8, 0.8, 1.0)),
                                            ((50, 400, 400), (3.0, 0.7, 0.9)), ((100, 100, 100), (1.0, 1.0, 1.0))])
def test_the_finest_axes_are_coarsened_to_one_size_until_the_voxels_are_few_enough(shape, spacing):
    most = np.prod(shape, dtype=float) / 3
    chosen = display_spacing(shape, spacing, most)
    assert np.prod(np.array(shape) * spacing / chosen) == pytest.approx(most, rel=1e-6)
    coarsened = chosen > spacing
    assert np.ptp(chosen[coarsened]) == 0 and (chosen[~coarsened] >= chosen[coarsened].max() - 1e-6).all()
    assert np.array_equal(display_spacing(shape, spacing, 1e12), spacing)


def test_overlapping_classes_are_all_kept_with_the_one_of_the_label_map_first():
    bits = np.array([0b000, 0b001, 0b011, 0b111, 0b101], np.uint32).reshape(5, 1, 1)       # liver, tumour, vessel
    label_map = np.array([0, 6, 27, 27, 15], np.uint8).reshape(5, 1, 1)
    codes, combinations = combine(bits, label_map, [6, 27, 15], ["liver", "liver_tumor", "hepatic_vessel"])
    assert codes.dtype == np.uint8
    assert [combinations[code] for code in codes.ravel()] == [(), (0,), (1, 0), (1, 2, 0), (2, 0)]


def test_where_two_organs_claim_a_voxel_the_surer_one_of_the_label_map_is_first():
    bits = np.array([0b11, 0b11], np.uint32).reshape(2, 1, 1)
    codes, combinations = combine(bits, np.array([6, 7]).reshape(2, 1, 1), [6, 7], ["liver", "stomach"])
    assert [combinations[code] for code in codes.ravel()] == [(0, 1), (1, 0)]


def test_classes_that_the_label_map_leaves_out_or_gives_one_number_are_in_the_order_of_merging():
    names = ["liver", "liver_tumor", "hepatic_vessel"]
    bits = np.array([0b011, 0b011, 0b111, 0b110], np.uint32).reshape(4, 1, 1)
    label_map = np.array([1, 1, 1, 0], np.uint8).reshape(4, 1, 1)        # liver and tumour are 1, vessels are left out
    codes, combinations = combine(bits, label_map, [1, 1, None], names)
    assert [combinations[code] for code in codes.ravel()] == [(1, 0), (1, 0), (1, 0, 2), (1, 2)]


def test_more_than_255_combinations_take_two_bytes():
    bits = np.arange(600, dtype=np.uint32).reshape(10, 10, 6)
    names = [f"class {k}" for k in range(10)]
    label_map = np.array([0] + [int(n).bit_length() for n in range(1, 600)]).reshape(bits.shape)
    codes, combinations = combine(bits, label_map, range(1, 11), names)
    assert codes.dtype == np.uint16 and len(combinations) == 600
    for value, code in zip(bits.ravel(), codes.ravel()):
        assert sum(1 << k for k in combinations[code]) == value
        assert combinations[code][:1] == ((int(value).bit_length() - 1,) if value else ())


def test_a_coarser_grid_averages_the_ct_and_takes_the_nearest_voxel_of_the_masks():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    hu = np.random.default_rng(0).normal(50, 20, (40, 40, 20)).astype(np.float32)
    liver = ball(hu.shape, (20, 20, 10), 9)
    spacing = np.array([2.0, 2.0, 2.0])
    shown = make_display(hu, affine, pack([liver]), liver * np.uint8(6), [6], ["liver"], spacing)
    assert shown.hu.shape == (20, 20, 20) and shown.hu.mean() == pytest.approx(hu.mean(), abs=0.5)
    assert shown.hu.std() < hu.std() / 1.5
    for index in np.ndindex(shown.codes.shape):
        at = (np.linalg.inv(affine) @ shown.affine @ [*index, 1])[:3]                # halfway between voxels
        near = liver[tuple(np.rint(at).astype(int))]
        assert (shown.combinations[shown.codes[index]] == (0,)) == near


def test_a_tumour_that_falls_between_the_voxels_of_the_coarser_grid_is_still_shown():
    affine = np.eye(4)
    hu = np.zeros((30, 30, 30), np.int16)
    liver, tumour = ball(hu.shape, (15, 15, 15), 12), np.zeros(hu.shape, bool)
    for place in np.ndindex(3, 3, 3):
        tumour[:] = False
        tumour[tuple(np.add((14, 14, 14), place))] = True
        label_map = np.where(tumour, 27, liver * 6).astype(np.uint8)
        shown = make_display(hu, affine, pack([liver, tumour]), label_map, [6, 27], ["liver", "liver_tumor"],
                             np.full(3, 3.0))
        with_tumour = [code for code, those in enumerate(shown.combinations) if 1 in those]
        (at,) = np.argwhere(np.isin(shown.codes, with_tumour))
        mm = shown.affine @ [*at, 1]
        assert np.abs(mm[:3] - np.argwhere(tumour)[0]).max() <= 1.5
        assert shown.combinations[shown.codes[tuple(at)]] == (1, 0)


def test_the_middle_lies_inside_also_of_a_ring_whose_centre_of_mass_does_not():
    shape = (41, 41, 11)
    outer, inner = (ball((41, 41, 1), (20, 20, 0), radius).repeat(11, axis=2) for radius in (18, 10))
    ring = outer & ~inner
    at = middle(ring, (1, 1, 1))
    assert ring[at] and 12 <= np.hypot(at[0] - 20, at[1] - 20) <= 16 and at[2] == 5
    assert middle(np.zeros(shape, bool), (1, 1, 1)) is None
    one = np.zeros(shape, bool)
    one[40, 0, 10] = True
    assert middle(one, (1, 1, 1)) == (40, 0, 10)


def test_the_middle_of_a_large_mask_is_looked_for_among_few_voxels_and_lies_deep_inside():
    mask = ball((120, 120, 60), (60, 50, 30), 49)
    assert np.abs(np.subtract(middle(mask, (1, 1, 1)), (60, 50, 30))).max() <= 2


def test_of_a_large_grid_every_class_gets_a_voxel_inside_it_also_one_between_the_voxels_searched(monkeypatch):
    liver, spot = ball((30, 30, 30), (15, 15, 15), 10), np.zeros((30, 30, 30), bool)
    spot[3, 5, 7] = True
    label_map = np.where(spot, 27, liver * 6).astype(np.uint8)
    shown = make_display(np.zeros(spot.shape, np.int16), np.eye(4), pack([liver, spot, spot & liver]), label_map,
                         [6, 27, 26], ["liver", "liver_tumor", "kidney_tumor"], np.ones(3))
    monkeypatch.setattr(display, "FEW_VOXELS", 1000)
    middles = display.middles(shown, 3)
    assert np.abs(np.subtract(middles[0], 15)).max() <= 1 and middles[1:] == [(3, 5, 7), None]
