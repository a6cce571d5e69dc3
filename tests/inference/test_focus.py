"""inference/focus.py: the windows near the organs asked for give what the windows over the whole body give.

The network is test_segmenter's stand-in, which knows each class by its HU, on a grid of 2 mm. The locator is the same
one on a grid of 8 mm, or one that errs.
"""

import numpy as np
import pytest
import torch

import uniseg
from test_infer import save_weights
from test_segmenter import BANDS, Bands, image, paint, same, stand_in
from uniseg.imaging.bits import pack
from uniseg.inference import focus, plausibility
from uniseg.inference.focus import Organ, around, is_worth_it, located, organs_of, saves_windows
from uniseg.segmenter import Segmenter
from uniseg.sliding_window import plan_windows

FINE, COARSE = (2.0, 2.0, 2.0), (8.0, 8.0, 8.0)


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The stand-in's organs are of no adult's size, and most of its windows touch its liver."""
    monkeypatch.setattr(plausibility, "ADULT_ML", {})
    monkeypatch.setattr(focus, "MOST_WINDOWS", 1)
    monkeypatch.setattr(focus, "ADULT_SHARE", 0)


def with_locator(bands=None, locator_bands=None):
    """(network, Segmenter) with windows of 32 mm, whose locator has the bands given."""
    network = Bands(bands)
    model = stand_in(network, spacing_mm=FINE)
    model.locator = lambda: stand_in(Bands(locator_bands or bands), spacing_mm=COARSE)
    return network, model


def run(network, model, *args, **options):
    """(result, number of windows of the fine network)"""
    before = network.windows
    return model.segment(*args, **options), network.windows - before


@pytest.mark.parametrize("asked, looked_at", [("spleen", ["spleen"]), ("liver_tumor", ["liver"]),
                                              ("spleen, liver_tumor", ["spleen", "liver"])])
def test_near_the_organs_asked_for_the_result_is_that_of_the_whole_run_and_windows_are_left_out(asked, looked_at):
    hu, _, affine = paint((64, 56, 60), FINE)
    network, model = with_locator()
    whole, all_windows = run(network, model, image(hu, affine), classes=asked, focus=False)
    near, some = run(network, model, image(hu, affine), classes=asked)
    same(near, whole)
    assert all(near.mask(name).any() for name in near.classes)
    assert near.stats["settings"]["focused_on"] == looked_at and whole.stats["settings"]["focused_on"] is None
    assert some < all_windows * (0.5 if asked == "spleen" else 1)


@pytest.mark.parametrize("flips", [(1, 1, -1), (-1, 1, 1), (-1, -1, -1)])
def test_left_stays_left_in_a_ct_that_is_stored_another_way_round(flips):
    hu, masks, affine = paint((64, 56, 60), FINE)
    _, model = with_locator()
    turned = hu[::flips[0], ::flips[1], ::flips[2]]
    moved = affine @ np.diag([*flips, 1.0])
    moved[:3, 3] += affine[:3, :3] @ [(n - 1) * (f < 0) for n, f in zip(hu.shape, flips)]
    result = model.segment(image(turned, moved), classes="spleen", postprocess=False)
    assert result.stats["settings"]["focused_on"] == ["spleen"]
    assert np.array_equal(result.mask("spleen")[::flips[0], ::flips[1], ::flips[2]], masks["spleen"])


@pytest.mark.parametrize("fault, seen_as_spleen", [
    ("finds nothing", (900, 10)), ("finds the aorta, beside which the spleen goes on", BANDS["aorta"]),
    ("takes the whole body for spleen", (0, 50))])
def test_where_the_locator_errs_the_whole_body_is_searched(fault, seen_as_spleen):
    hu, masks, affine = paint((64, 56, 60), FINE)
    network, model = with_locator(locator_bands={**BANDS, "spleen": seen_as_spleen})
    result, windows = run(network, model, image(hu, affine), classes="spleen", postprocess=False)
    assert np.array_equal(result.mask("spleen"), masks["spleen"])
    assert result.stats["settings"]["focused_on"] is None
    assert windows >= run(network, model, image(hu, affine), classes="spleen", focus=False)[1]


def test_an_organ_that_the_fine_network_does_not_find_near_its_box_is_searched_everywhere():
    """The locator is right about the liver's place, and the fine network sees none of it: no guess is made."""
    hu, _, affine = paint((64, 56, 60), FINE)
    _, model = with_locator({**BANDS, "liver": (900, 10)}, BANDS)
    result = model.segment(image(hu, affine), classes="liver")
    assert result.stats["settings"]["focused_on"] is None and result.stats["not_found"] == ["liver"]


def test_without_need_nothing_is_located():
    """All classes; no locator; so few windows that the coarse pass costs what it saves; a class it does not know."""
    hu, _, affine = paint((64, 56, 60), FINE)
    _, model = with_locator()

    def never():
        raise AssertionError("the locator was asked")
    model.locator = never
    assert model.segment(image(hu, affine)).stats["settings"]["focused_on"] is None
    assert model.segment(image(hu, affine), classes="liver", focus=False).stats["settings"]["focused_on"] is None
    model.locator = None
    assert model.segment(image(hu, affine), classes="liver").stats["settings"]["focused_on"] is None
    _, model = with_locator(locator_bands={"spleen": BANDS["spleen"]})
    assert model.segment(image(hu, affine), classes="liver").stats["settings"]["focused_on"] is None
    coarse = stand_in(spacing_mm=(4.0, 4.0, 4.0))
    coarse.locator = lambda: stand_in(spacing_mm=(4.0, 4.0, 4.0))
    assert coarse.segment(image(hu, affine), classes="liver").stats["settings"]["focused_on"] is None


def test_it_is_worth_it_from_four_times_as_many_windows_on():
    """A torso of 400 x 300 x 600 mm: 160 windows at 1.5 mm with half overlap, 2 x 2 x 3 at 3 mm without."""
    assert len(sum(plan_windows((267, 200, 400), (96,) * 3).values(), [])) == 5 * 4 * 8
    assert is_worth_it((267, 200, 400), (96,) * 3, (1.5,) * 3, 0.5, (96,) * 3, (3.0,) * 3)
    assert not is_worth_it((133, 100, 200), (96,) * 3, (3.0,) * 3, 0.5, (96,) * 3, (3.0,) * 3)


def test_a_box_that_most_windows_touch_saves_nothing(monkeypatch):
    """Windows of 4 along an axis of 16 begin at 0, 2, ... 12: seven. Voxel 0 is in the first; 0 to 6 are in four."""
    monkeypatch.undo()
    body = np.ones((16, 4, 4), bool)
    near = np.zeros_like(body)
    near[:1] = True
    assert saves_windows(near, body, (4, 4, 4), 0.5)
    near[:7] = True                                                       # the first four of seven: 0.57
    assert saves_windows(near, body, (4, 4, 4), 0.5)
    near[:9] = True                                                       # five of seven
    assert not saves_windows(near, body, (4, 4, 4), 0.5)


def test_the_box_of_an_organ_gets_a_margin_of_10_mm_within_the_volume():
    """6 mm to 2 mm: coarse voxels 5 and 6 are fine voxels 15 to 20; 10 mm are 5 voxels; 24 and 22 are the ends."""
    coarse, fine = np.diag([6.0, 6, 6, 1]), np.diag([2.0, 2, 2, 1])
    coarse[:3, 3], fine[:3, 3] = 3, 1                                     # both begin at 0 mm
    near = around([Organ((slice(5, 7),) * 3, 1.0)], coarse, fine, (40, 24, 22))
    assert near.sum() == 16 * 14 * 12 and near[10:26, 10:24, 10:22].all()


def test_the_largest_component_is_the_organ_unless_it_comes_in_pieces_and_a_speck_is_none():
    """Voxels of 10 mm have 1 ml: 8 ml and a speck of 1 ml elsewhere; the aorta has half a millilitre."""
    mask = np.zeros((6, 6, 6), bool)
    mask[1:3, 1:3, 1:3] = mask[5, 5, 5] = True
    cm = np.diag([10.0, 10, 10, 1])
    assert located(pack([mask, mask]), ["liver", "colon"], cm, ["colon"]) == {
        "liver": Organ((slice(1, 3),) * 3, pytest.approx(8)), "colon": Organ((slice(1, 6),) * 3, pytest.approx(9))}
    assert located(pack([mask[4:]]), ["aorta"], np.diag([10.0, 10, 5, 1]), []) == {}


def test_an_organ_much_smaller_than_an_adults_is_not_believed(monkeypatch):
    """A spleen has 124 ml in the reference adult; a fifth of it are 24.8 ml."""
    monkeypatch.undo()
    mask = np.zeros((6, 6, 6), bool)
    mask[:4, :3, :2] = True                                               # 24 ml
    assert located(pack([mask]), ["spleen"], np.diag([10.0, 10, 10, 1]), []) == {}
    mask[:5, :3, :2] = True                                               # 30 ml
    assert list(located(pack([mask]), ["spleen"], np.diag([10.0, 10, 10, 1]), [])) == ["spleen"]


def test_a_tumour_and_an_inner_vessel_lie_in_their_organs_and_a_class_beyond_table_2_is_its_own():
    assert organs_of(["hepatic_vessel", "lung_tumor", "aorta", "heart"]) == {
        "liver", "right_lung", "left_lung", "aorta", "heart"}


def test_other_weights_are_located_by_the_built_in_ones_which_are_read_once_and_have_no_locator(tmp_path):
    assert uniseg.load().locator is None
    model = uniseg.load(save_weights(tmp_path / "other.pt", ("liver", "spleen")))
    locator = model.locator()
    assert isinstance(locator, Segmenter) and locator.weights["file"] == "default.pt"
    assert model.locator() is locator


def test_fast_is_one_view_and_windows_that_overlap_by_a_quarter():
    hu, _, affine = paint((64, 56, 60), FINE)
    network = Bands()
    model = Segmenter(network, stand_in(spacing_mm=FINE).preprocessing, torch.device("cpu"),
                      {"file": "stand-in", "sha256": "0" * 64}, second_view=0.7)
    slow, all_windows = run(network, model, image(hu, affine))
    fast, some = run(network, model, image(hu, affine), fast=True)
    same(fast, slow)                                        # for a network that looks at each voxel alone
    assert some < all_windows / 3
    settings = fast.stats["settings"]
    assert (settings["overlap"], settings["second_view"], settings["fast"]) == (0.25, None, True)
    assert model.segment(image(hu, affine), fast=True, overlap=0.1).stats["settings"]["overlap"] == 0.1
