"""body.py: the patient without air and table, whatever the chest wall and the field of view; the trunk's box."""

import numpy as np
import pytest

from uniseg.imaging.bits import bounding_box
from uniseg.imaging.body import body_mask, convex_hull, tissue_hu, trunk_box
from uniseg.phantom import make_phantom

EMPTY = np.zeros((6, 5, 4), bool)


@pytest.fixture(scope="module")
def patient():
    return make_phantom((4.0, 4.0, 4.0), seed=1)


def test_body_of_air_and_of_a_constant_image_is_empty():
    assert not body_mask(np.full((20, 20, 5), -1000, np.int16), (3, 3, 3)).any()
    assert not body_mask(np.zeros((20, 20, 5), np.int16), (3, 3, 3)).any()


@pytest.mark.slow
def test_body_holds_organs_and_lungs_but_no_table(patient):
    hu, masks, affine = patient
    body = body_mask(hu, (4, 4, 4))
    for name, mask in masks.items():
        assert body[mask].all(), name
    below = affine[1, 3] + affine[1, 1] * np.arange(hu.shape[1]) < -106       # mm: there is only the table
    assert not body[:, below].any()
    assert 0.4 < body.mean() < 0.7


@pytest.mark.slow
def test_body_of_a_fine_grid_is_the_coarse_one_within_its_sampling_step():
    fine, coarse = (make_phantom((s, s, s), seed=1)[0] for s in (2.0, 4.0))
    share = body_mask(fine, (2, 2, 2)).mean(), body_mask(coarse, (4, 4, 4)).mean()
    assert body_mask(fine, (2, 2, 2)).shape == fine.shape
    assert abs(share[0] - share[1]) < 0.03


def test_body_of_single_slices_and_odd_sizes():
    disc = np.hypot(*np.ogrid[-40:41, -30:31])[..., None] < 25
    hu = np.where(disc, 40, -1000).astype(np.int16)
    body = body_mask(hu, (1.0, 1.0, 8.0))
    assert body.shape == (81, 61, 1)
    assert 2 * (body & disc).sum() / (body.sum() + disc.sum()) > 0.9


def chest(width=80, depth=60):
    """(hu, lungs): an oval chest with two lungs of -850 HU around soft tissue; voxels of 4 mm, slices 4 mm apart."""
    x, y = np.ogrid[-width / 2 + 0.5:width / 2, -depth / 2 + 0.5:depth / 2]
    def oval(radius_x, radius_y):
        return (x / radius_x) ** 2 + (y / radius_y) ** 2 < 1
    lungs = oval(30, 20) & (abs(x) > 6)
    hu = np.where(lungs, -850, np.where(oval(34, 24), 40, -1000))
    noise = np.random.default_rng(0).normal(0, 20, (*hu.shape, 4))
    return (hu[..., None] + noise).astype(np.int16), np.repeat(lungs[..., None], 4, axis=2)


def test_lungs_that_the_field_of_view_cuts_are_body_and_the_air_beside_the_patient_is_not():
    hu, lungs = chest()
    # both lungs, one, through the front ...
    for cut in (np.s_[20:60], np.s_[20:], np.s_[:, 15:], np.s_[20:60, 15:], np.s_[10:40, 20:]):
        body = body_mask(hu[cut], (4, 4, 4))
        assert body[lungs[cut]].all(), cut
        assert np.mean(body[hu[cut] < -930]) < 0.02, cut                    # noise apart, that is air
    assert not body_mask(hu, (4, 4, 4))[:, [0, -1]].any()


def test_air_of_a_clipped_ct_or_of_a_scanner_that_is_off_is_not_taken_for_a_lung():
    hu, _ = chest()
    for other in (np.maximum(hu, -900), np.maximum(hu, -500), hu + 30):
        for cut in (np.s_[:], np.s_[8:72], np.s_[20:60, 10:]):              # whole, both flanks cut, both lungs cut
            mask = body_mask(other[cut], (4, 4, 4))
            assert not mask[~body_mask(hu[cut], (4, 4, 4))].any() and mask[hu[cut] > -300].mean() > 0.9


def test_a_table_that_the_field_of_view_cuts_is_no_body():
    hu, _ = chest()
    cut = np.s_[8:72]                                                       # through both flanks
    body = body_mask(hu[cut], (4, 4, 4))
    # foam up to the last row, then air up to the back
    hu[:, :4] = np.random.default_rng(1).normal(-930, 30, hu[:, :4].shape)
    assert np.array_equal(body_mask(hu[cut], (4, 4, 4)), body)


def test_c04_a_blanket_that_the_field_of_view_cuts_is_no_body():
    """It has the HU of lung, lies beside and before the patient, and is cut. But there is air on its other side."""
    hu, lungs = chest()
    x, y = np.ogrid[-39.5:40, -29.5:30]
    blanket = (np.hypot(x / 38, y / 28) < 1) & (np.hypot(x / 35, y / 25) > 1) & (y > -10)
    hu[blanket] = np.random.default_rng(1).normal(-850, 20, (blanket.sum(), 4))
    for cut in (np.s_[:76], np.s_[4:76], np.s_[8:72]):                       # through the blanket, the flanks whole
        body = body_mask(hu[cut], (4, 4, 4))
        assert body[lungs[cut]].all() and not body[np.broadcast_to(blanket[..., None], hu.shape)[cut]].any(), cut


def test_c04_a_crop_that_shows_lung_up_to_its_back_keeps_the_lung():
    """A field of view within one lung: no chest wall, a piece of the heart in front, lung behind and beside it."""
    lung = np.random.default_rng(0).normal(-850, 20, (40, 60, 4)).astype(np.int16)
    x, y = np.ogrid[:40, :60]
    heart = np.hypot(x, y - 60) < 22                                         # in the corner of front and left
    hu = np.where(heart[..., None], 40, lung)
    assert body_mask(hu, (2, 2, 4)).mean() > 0.99


def test_c04_the_inside_of_a_hollow_table_is_no_body():
    """Foam in a shell, cut by a circular field of view: nothing but shell and edge is around it, but it is no lung."""
    hu, lungs = chest()
    x, y = np.ogrid[-39.5:40, -29.5:30]
    shell, foam = (abs(x) < 30) & (y < -25.5), (abs(x) < 29) & (y < -26.5)
    hu[shell], hu[foam] = 40, -850
    circle = np.broadcast_to((np.hypot(x, y) > 33)[..., None], hu.shape)
    hu[circle] = -1024
    body = body_mask(hu, (4, 4, 4), outside=circle)
    assert not body[np.broadcast_to(foam[..., None], hu.shape)].any()
    assert body[lungs & ~circle].all()


@pytest.mark.parametrize("padding", [-1024, -1000])
def test_lungs_that_a_circular_field_of_view_cuts_are_body(padding):
    hu, lungs = (array[20:60, 10:50] for array in chest())
    x, y = np.ogrid[-19.5:20, -19.5:20]
    hu, lungs = np.where((np.hypot(x, y) > 20)[..., None], padding, hu), lungs & (np.hypot(x, y) < 18)[..., None]
    body = body_mask(hu, (4, 4, 4), outside=hu == padding)
    assert body[lungs].all() and not body[hu == padding].any()


def test_lung_alone_is_no_body():
    assert not body_mask(np.random.default_rng(0).normal(-850, 20, (20, 20, 3)), (4, 4, 4)).any()


# --- slim patients, arms, crops, clipped CTs

def slim_chest(wall_mm, gaps=0, mm=2.0):
    """(hu, lungs): a chest with a wall as thin as given, and with so many gaps in it."""
    x, y = (mm * (np.arange(n) - (n - 1) / 2) for n in (180, 130))
    x, y = x[:, None], y[None]
    def oval(a, b):
        return (x / a) ** 2 + (y / b) ** 2 < 1
    lungs = oval(130, 85) & (abs(x) > 25)
    hu = np.where(lungs, -850, np.where(oval(130 + wall_mm, 85 + wall_mm), 40, -1000))
    angle = np.arctan2(y, x)
    for turn in np.linspace(-3, 3, gaps):                     # slits of about 8 mm through the wall
        hu[(abs(angle - turn) < 0.035) & (hu == 40) & ~oval(125, 80)] = -1000
    noise = np.random.default_rng(0).normal(0, 20, (*hu.shape, 3))
    return (hu[..., None] + noise).astype(np.int16), np.repeat(lungs[..., None], 3, axis=2)


@pytest.mark.parametrize("gaps", [0, 6])
@pytest.mark.parametrize("wall_mm", [3.0, 6.0, 9.0, 15.0])
def test_c04_a_slim_patient_keeps_both_lungs(wall_mm, gaps):
    hu, lungs = slim_chest(wall_mm, gaps)
    body = body_mask(hu, (2.0, 2.0, 5.0))
    assert (body & lungs).sum() > 0.97 * lungs.sum()
    assert (body & (hu < -940)).sum() < 0.02 * body.sum()


def test_c04_gas_behind_a_thin_wall_is_body_and_the_gap_above_a_table_is_not():
    hu, _ = slim_chest(6.0)
    gas = np.zeros(hu.shape, bool)
    gas[120:140, 60:75] = True
    hu[hu < -700] = -1000                                      # an abdomen full of gas: nothing looks like lung
    hu[20:160, 2:4] = 100                                      # the shell of a table, 8 mm below the back
    hu[20:22, 2:60] = hu[158:160, 2:60] = 100                  # which rises at both sides
    body = body_mask(hu, (2.0, 2.0, 5.0))
    assert body[gas].all() and not body[:, 4:12].any() and not body[22:28, 10:50].any()


def test_c04_arms_beside_the_head_take_nothing_from_it():
    x, y = np.ogrid[-90:90, -60:60]
    hu = np.full((180, 120, 12), -1000)
    hu[(np.hypot(x / 1.3, y) < 30)] = 40                       # the chest's upper end, with two lungs ...
    for side in (-1, 1):
        hu[np.hypot(x - 20 * side, y) < 13] = -850
        hu[np.hypot(x - 62 * side, y) < 14] = 40               # ... and an arm at each side, raised
    hu[:, :, 9:][(np.hypot(x, y) > 18) & (abs(x) < 45)] = -1000          # the neck
    hu[:, :, 9:][np.hypot(x, y) < 18] = 40
    hu = (hu + np.random.default_rng(0).normal(0, 15, hu.shape)).astype(np.int16)
    body = body_mask(hu, (3.0, 3.0, 5.0))
    assert body[(np.hypot(x / 1.3, y) < 28)][:, :9].all() and body[np.hypot(x, y) < 16].all()


@pytest.mark.parametrize("cut", [np.s_[:45], np.s_[:45, 20:100], np.s_[10:40, 30:], np.s_[130:170, :90]])
def test_c04_a_crop_through_one_lung_keeps_what_it_shows(cut):
    hu, lungs = (array[cut] for array in slim_chest(8.0))
    assert (body_mask(hu, (2.0, 2.0, 5.0)) & lungs).sum() > 0.95 * lungs.sum()


def test_c04_a_lung_with_a_thin_wall_that_lies_beside_and_behind_all_else_is_body():
    """The opened body is heart and spine, in front on the left and at the back: their hull holds half of the lung."""
    x, y = np.ogrid[-80:80, -60:60]
    wall, heart = np.hypot(x / 70, y / 50) < 1, (np.hypot(x + 25, y - 22) < 24) | (np.hypot(x + 10, y + 34) < 12)
    lungs = (np.hypot(x / 66, y / 46) < 1) & ~heart
    hu = np.where(lungs, -850, np.where(wall | heart, 40, -1000))[..., None]
    hu = (hu + np.random.default_rng(0).normal(0, 15, (160, 120, 3))).astype(np.int16)
    body = body_mask(hu, (2.0, 2.0, 5.0))
    assert body[lungs].mean() > 0.97 and body[hu < -950].mean() < 0.01


def test_c04_two_thighs_are_one_body():
    x, y = np.ogrid[-60:60, -40:40]
    hu = np.where((np.hypot(x - 30, y) < 22) | (np.hypot(x + 30, y) < 25), 40, -1000)[..., None] + np.zeros((1, 1, 4))
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    body = body_mask(hu, (4.0, 4.0, 4.0))
    assert body[90].any() and body[30].any()


@pytest.mark.parametrize("lowest", [-1024, -500, -325, -250, -160])
def test_c03_a_clipped_ct_has_the_body_it_has(lowest):
    hu = slim_chest(12.0)[0]
    whole, clipped = (body_mask(np.maximum(hu, low), (2.0, 2.0, 5.0)) for low in (-1024, lowest))
    tissue = hu > -100
    assert clipped[tissue].mean() > 0.97 and not clipped[~whole].any()
    assert tissue_hu(np.maximum(hu, lowest)) == max(-300, lowest + 20)


def test_the_convex_hull_of_pixels():
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[1, 7] = mask[7, 1] = True
    i, j = np.ogrid[:9, :9]
    assert np.array_equal(convex_hull(mask), (i >= 1) & (j >= 1) & (i + j <= 8))
    mask[7, 1] = False
    assert np.array_equal(convex_hull(mask), mask)             # a line has no area


# --- trunk_box

def trunk(arms, spacing_mm, half_width=160.0, depth=0.65, arm=42.0):
    """A body mask of ten slices: a trunk of the given half width (mm), arms with their middle x mm beyond its side."""
    n = [int(520 // spacing_mm), int(300 // spacing_mm)]
    x, y = (spacing_mm * (np.ogrid[tuple(map(slice, n))][a] - (n[a] - 1) / 2) for a in (0, 1))
    body = (x / half_width) ** 2 + (y / (depth * half_width)) ** 2 <= 1
    for side in arms:
        body = body | (np.hypot(x - side * (half_width + 0.8 * arm), y + 20) <= arm)
    return np.repeat(body[:, :, None], 10, axis=2), x.ravel()


@pytest.mark.parametrize("spacing_mm", [1.5, 5.0])
@pytest.mark.parametrize("arms", [(1,), (-1,), (-1, 1)])
def test_the_trunk_s_box_leaves_arms_out_that_touch_the_trunk_and_none_of_the_trunk(arms, spacing_mm):
    body, x = trunk(arms, spacing_mm)
    box, whole = trunk_box(body, (spacing_mm,) * 3, 2), bounding_box(body, 2)
    ends = x[box[0].start], x[box[0].stop - 1]
    assert box[1:] == whole[1:]
    for end, side, widest in ((ends[0], -1, whole[0].start), (ends[1], 1, whole[0].stop - 1)):
        if side in arms:
            assert 160 <= side * end <= 160 + 25, (side, ends)        # at most a third of the arm's width is left
        else:
            assert end == x[widest]


@pytest.mark.parametrize("half_width, depth", [(160, 0.65), (160, 0.5), (220, 0.8), (60, 0.65), (40, 1.0)])
def test_without_arms_the_trunk_s_box_is_the_body_s_for_the_stout_the_slender_and_the_small(half_width, depth):
    for spacing_mm in (1.5, 4.0):
        body, _ = trunk((), spacing_mm, half_width, depth)
        assert trunk_box(body, (spacing_mm,) * 3, 2) == bounding_box(body, 2)


def test_a_body_that_fills_the_field_of_view_or_is_not_there_has_the_box_it_has():
    full = np.ones((30, 20, 5), bool)
    assert trunk_box(full, (3.0,) * 3) == bounding_box(full)
    full[:, 17:] = False        # cut at both sides and at the back
    assert trunk_box(full, (3.0,) * 3) == bounding_box(full)
    assert trunk_box(EMPTY, (3.0,) * 3) is None


def test_the_trunk_s_box_of_the_phantom_is_its_body_s(patient):
    body = body_mask(patient[0], (4, 4, 4))
    assert trunk_box(body, (4.0,) * 3, 4) == bounding_box(body, 4)
