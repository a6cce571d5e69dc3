"""tools.synthetic.mixing exchanges organs between label maps; scanner.circle and clinic scan as clinics do."""

import numpy as np
import pytest

from tools.synthetic import mixing, scanner
from tools.synthetic.geometry import Grid
from tools.synthetic.mixing import exchange

IDS = {"spleen": 1, "liver": 2, "kidney_right": 3, "kidney_left": 4, "gallbladder": 5}
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def a_map(spleen=6, side=40):
    """A map of 80 mm with a cube of a spleen, `spleen` voxels wide, and organs around."""
    labels = np.zeros((side,) * 3, np.uint16)
    labels[25:38, 5:35, 5:35] = IDS["liver"]
    labels[10:10 + spleen, 10:10 + spleen, 10:10 + spleen] = IDS["spleen"]
    labels[3:8, 25:35, 25:35] = IDS["kidney_left"]
    return labels


def only(monkeypatch, organ, odds):
    monkeypatch.setattr(mixing, "EXCHANGED", {(organ,): odds})


def voxels(labels, name):
    return int((labels == IDS[name]).sum())


def test_a_larger_spleen_takes_the_place_of_the_map_s_own_and_no_other_organ_changes(monkeypatch):
    """The donor's spleen is twice as wide, so 8 times the volume; the zoom changes it by at most 0.85^3 to 1.15^3."""
    only(monkeypatch, "spleen", (1.0, 0.0, 0.0))
    mine, donor = a_map(6), a_map(12)
    mixed = exchange(mine, AFFINE, IDS, [(donor, AFFINE)], np.random.default_rng(0))
    assert 0.85 ** 3 < voxels(mixed, "spleen") / 12 ** 3 < 1.15 ** 3
    assert all(np.array_equal(mixed == IDS[name], mine == IDS[name]) for name in ("liver", "kidney_left"))
    assert np.linalg.norm(np.argwhere(mixed == 1).mean(axis=0) - np.argwhere(mine == 1).mean(axis=0)) < 1.5
    assert voxels(mine, "spleen") == 6 ** 3                                     # the map itself is left alone


def test_an_organ_without_room_or_cut_off_in_the_other_map_is_not_taken(monkeypatch):
    only(monkeypatch, "spleen", (1.0, 0.0, 0.0))
    crowded = a_map(6)
    crowded[crowded == 0] = IDS["liver"]
    for mine, donor in ((crowded, a_map(14)), (a_map(6), np.roll(a_map(12), -12, axis=0))):
        mixed = exchange(mine, AFFINE, IDS, [(donor, AFFINE)], np.random.default_rng(0))
        assert np.array_equal(mixed, mine)


def test_a_kidney_may_be_missing_but_never_both(monkeypatch):
    monkeypatch.setattr(mixing, "EXCHANGED", {("kidney_right",): (0.0, 1.0, 0.0), ("kidney_left",): (0.0, 1.0, 0.0)})
    mine = a_map()
    mine[3:8, 5:15, 25:35] = IDS["kidney_right"]
    mixed = exchange(mine, AFFINE, IDS, [], np.random.default_rng(0))
    assert voxels(mixed, "kidney_right") == 0 and voxels(mixed, "kidney_left") == voxels(mine, "kidney_left")


def test_a_ptotic_kidney_lies_20_to_60_mm_lower(monkeypatch):
    only(monkeypatch, "kidney_left", (0.0, 0.0, 1.0))
    mine = a_map()
    mine[mine == IDS["spleen"]] = 0
    mixed = exchange(mine, AFFINE, IDS, [], np.random.default_rng(3))
    low, high = (np.argwhere(labels == IDS["kidney_left"])[:, 2].mean() for labels in (mixed, mine))
    assert 18 < 2.0 * (high - low) < 62


# ------------------------------------------------------------------------------------------------- scanners of clinics

GRID = Grid((0.0, 0.0, 0.0), 4.0, (60, 50, 20))


def depth_below_skin():
    """An elliptic cylinder of 200 x 160 mm."""
    x, y, _ = GRID.mesh()
    depth = 80 * (1 - np.sqrt(((x - 118) / 100) ** 2 + ((y - 98) / 80) ** 2))
    return np.broadcast_to(depth, GRID.shape).astype(np.float32)


def test_a_circle_cuts_the_patient_and_leaves_most_of_it(monkeypatch):
    monkeypatch.setattr(scanner, "CUT_BY_CIRCLE", 1.0)
    skin, shares = depth_below_skin(), []
    for seed in range(30):
        outside, padding = scanner.circle(skin, GRID, np.random.default_rng(seed))
        assert outside.shape == GRID.shape[:2] and padding in (-1024, -2048)
        shares.append((outside[:, :, None] & (skin > 0)).sum() / (skin > 0).sum())
    assert min(shares) > 0.005 and max(shares) < 0.85 and 0.1 < np.median(shares) < 0.6


def test_thick_slices_keep_the_mean_and_take_away_what_is_thinner():
    """Slices of 8 mm, two of the grid's: a plane that is bright in every second voxel becomes even."""
    image = np.zeros(GRID.shape, np.float32)
    image[:, :, ::2] = 100.0
    thick = scanner.thick_slices(image, GRID, 8.0)
    assert thick.shape == image.shape and np.abs(thick[:, :, 2:-2] - 50).max() < 1e-4


@pytest.mark.parametrize("protocol, more", [("standard", 1.0), ("low dose", 1.5), ("sharp kernel", 1.3)])
def test_low_dose_and_sharp_kernels_are_noisier(protocol, more, monkeypatch):
    monkeypatch.setattr(scanner, "PROTOCOLS", {protocol: 1.0})
    skin = depth_below_skin()
    image = np.where(skin > 0, 50.0, -1000.0).astype(np.float32)
    deep = skin > 30
    noise = [scanner.clinic(image.copy(), skin, GRID, np.random.default_rng(seed))[deep].std() for seed in range(4)]
    plain = [scanner.scan(image.copy(), skin, GRID, np.random.default_rng(seed))[deep].std() for seed in range(4)]
    assert np.mean(noise) >= 0.99 * more * np.mean(plain)
