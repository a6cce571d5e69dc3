"""measures.py: the figures of a class, on masks of a few voxels whose answers can be counted by hand."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from uniseg.imaging.bits import pack
from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.volume import affine_in_mm, from_ras, hu_planes, read_ct, write_volume
from uniseg.inference import measures
from uniseg.inference.measures import measure

SHAPE = (6, 5, 4)
AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])           # a voxel has 30 mm3; voxel (0, 0, 0) lies at (0, 0, 0) mm
HU = np.arange(120, dtype=np.int16).reshape(SHAPE, order="F")       # HU of voxel (i, j, k): i + 6 j + 30 k


def of_masks(*voxels, hu=None, affine=AFFINE, warnings=None):
    """measure() of one mask per argument; each is a list of voxels (i, j, k)."""
    masks = [np.zeros(SHAPE, bool, order="F") for _ in voxels]
    for mask, listed in zip(masks, voxels):
        for voxel in listed:
            mask[voxel] = True
    numbers = {f"class_{k}": k + 1 for k in range(len(masks))}
    found = measure(pack(masks), numbers, affine, [HU] if hu is None else hu, {"class_1": "too few cases"},
                    [] if warnings is None else warnings)
    return list(found.values())


def test_volume_hu_centre_and_box_of_two_voxels():
    """Voxels (2, 1, 1) and (4, 3, 2): HU 2 + 6 + 30 = 38 and 4 + 18 + 60 = 82, so 60 +- 22."""
    (figures,) = of_masks([(2, 1, 1), (4, 3, 2)])
    assert figures == {"label": 1, "voxels": 2, "ml": 0.06, "mean_hu": 60.0, "sd_hu": 22.0,
                       "centre_mm": [6.0, 6.0, 7.5],                  # (3, 2, 1.5) times (2, 3, 5) mm
                       "first_voxel": [2, 1, 1], "last_voxel": [4, 3, 2], "touches_border": False}


def test_overlapping_masks_are_measured_each_by_itself():
    both, one = of_masks([(2, 2, 1), (3, 2, 1)], [(3, 2, 1)])
    assert (both["voxels"], both["mean_hu"]) == (2, 44.5) and (one["voxels"], one["mean_hu"]) == (1, 45.0)
    assert "experimental" not in both and one["experimental"] == "too few cases"


@pytest.mark.parametrize("voxel, touches", [((0, 2, 1), True), ((5, 2, 1), True), ((2, 0, 1), True), ((2, 4, 1), True),
                                            ((2, 2, 0), True), ((2, 2, 3), True), ((1, 1, 1), False),
                                            ((4, 3, 2), False)])
def test_a_class_at_any_of_the_six_faces_says_that_its_volume_is_that_of_a_part(voxel, touches):
    (figures,) = of_masks([voxel])
    assert figures["touches_border"] is touches
    assert figures.get("ml_is") == ("of the part inside the CT" if touches else None)


def test_a_class_that_was_not_found_has_no_figures_but_its_volume_of_nothing():
    (figures,) = of_masks([])
    assert figures == {"label": 1, "voxels": 0, "ml": 0.0, "mean_hu": None, "sd_hu": None, "centre_mm": None,
                       "first_voxel": None, "last_voxel": None, "touches_border": False}


def test_the_centre_of_a_hollow_class_may_lie_outside_of_it():
    (ring,) = of_masks([(1, 1, 1), (3, 1, 1), (1, 3, 1), (3, 3, 1)])
    assert ring["centre_mm"] == [4.0, 6.0, 5.0]                        # voxel (2, 2, 1), which is not in the mask


@pytest.mark.parametrize("planes, blocks", [(1, [4]), (3, [1, 1, 1, 1]), (2, [3, 1]), (3, [2, 2]), (99, [1, 3])])
def test_it_does_not_matter_in_which_blocks_masks_and_hu_come(monkeypatch, planes, blocks):
    rng = np.random.default_rng(0)
    masks = rng.random((2, *SHAPE)) < 0.3
    monkeypatch.setattr(measures, "PLANES_VOXELS", planes * SHAPE[0] * SHAPE[1])
    parts = np.split(HU, np.cumsum(blocks)[:-1], axis=2)
    for figures, mask in zip(measure(pack(masks), {"a": 1, "b": 2}, AFFINE, parts, {}, []).values(), masks):
        assert figures["voxels"] == mask.sum()
        assert (figures["mean_hu"], figures["sd_hu"]) == (round(HU[mask].mean(), 2), round(HU[mask].std(), 2))
        assert figures["first_voxel"] == np.argwhere(mask).min(axis=0).tolist()
        assert figures["last_voxel"] == np.argwhere(mask).max(axis=0).tolist()


def refusing(after):
    yield HU[..., :after]
    raise VolumeError("x.nii: truncated")


@pytest.mark.parametrize("hu, said", [(lambda: refusing(2), "x.nii: truncated"), (lambda: refusing(4), "truncated"),
                                      (lambda: iter([HU[..., :3]]), "fewer planes"),
                                      (lambda: iter([HU, HU]), "more planes")])
def test_a_ct_that_cannot_be_read_again_costs_the_hu_and_nothing_else(hu, said):
    warnings = []
    (figures,) = of_masks([(2, 1, 1), (4, 3, 2)], hu=hu(), warnings=warnings)
    assert (figures["voxels"], figures["mean_hu"], figures["sd_hu"]) == (2, None, None)
    assert len(warnings) == 1 and said in warnings[0] and "no HU of the classes" in warnings[0]


@pytest.mark.parametrize("orientation", [[(0, 1), (1, 1), (2, 1)], [(0, -1), (1, 1), (2, -1)],
                                         [(2, 1), (0, -1), (1, 1)]])
def test_the_centre_in_mm_is_the_same_point_however_an_oblique_ct_is_stored(tmp_path, orientation):
    """The middle of voxel (2, 1, 1) of the CT before it was stored along other axes."""
    turned = np.array([[0.96, -0.28, 0, 7.0], [0.28, 0.96, 0, -4.0], [0, 0, 1, 100.0], [0, 0, 0, 1]]) @ AFFINE
    flips = np.array(orientation)
    hu = np.full(SHAPE, -500, np.int16)
    hu[2, 1, 1] = 33
    stored, affine = apply_orientation(hu, flips), turned @ inv_ornt_aff(flips, SHAPE)
    write_volume(tmp_path / "ct.nii.gz", stored, affine)
    ct = read_ct(tmp_path / "ct.nii.gz")
    bits = from_ras(pack([ct.array == 33]), ct.geometry.orientation)
    (figures,) = measure(bits, {"a": 1}, affine_in_mm(ct.geometry), hu_planes(tmp_path / "ct.nii.gz"), {}, []).values()
    assert figures["centre_mm"] == pytest.approx((turned @ [2, 1, 1, 1])[:3], abs=0.01)
    assert (figures["mean_hu"], figures["sd_hu"]) == (33.0, 0.0)
    assert stored[tuple(figures["first_voxel"])] == 33 and figures["first_voxel"] == figures["last_voxel"]


def test_a_header_in_metres_gives_figures_in_mm(tmp_path):
    image = nib.Nifti1Image(HU, np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE)
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "ct.nii")
    ct = read_ct(tmp_path / "ct.nii")
    (figures,) = measure(pack([ct.array == 38]), {"a": 1}, affine_in_mm(ct.geometry), hu_planes(tmp_path / "ct.nii"),
                         {}, []).values()
    assert (figures["centre_mm"], figures["ml"]) == ([4.0, 3.0, 5.0], 0.03)


def test_the_planes_of_a_pair_of_files_are_found_by_either_name(tmp_path):
    nib.Nifti1Pair(HU, AFFINE).to_filename(tmp_path / "ct.hdr")
    for name in ("ct.hdr", "ct.img"):
        assert np.array_equal(np.concatenate(list(hu_planes(tmp_path / name)), axis=2), HU)


@pytest.mark.parametrize("dtype, slope, inter", [(np.int16, 1, 0), (np.uint16, 1, -1024), (np.float32, 1, 0),
                                                 (np.int32, 2, 10), (np.uint8, 0.5, -7)])
def test_the_planes_hold_the_hu_that_read_ct_gives(tmp_path, dtype, slope, inter):
    values = np.random.default_rng(1).integers(0, 200, SHAPE).astype(dtype)
    if dtype == np.int16:
        values[0, 0, 0] = -3000                                                    # a scanner's padding is air
    if dtype == np.float32:
        values[1, 1, 1] = np.nan
    image = nib.Nifti1Image(values, np.diag([1, 1, 1, 1.0]))
    image.header.set_slope_inter(slope, inter)
    nib.Nifti1Image.to_filename(image, tmp_path / "ct.nii.gz")
    raw = nib.load(tmp_path / "ct.nii.gz")
    for source in (tmp_path / "ct.nii.gz", raw):
        ct = read_ct(source)
        planes = np.concatenate(list(hu_planes(source)), axis=2)
        assert np.array_equal(planes, from_ras(ct.array, ct.geometry.orientation))
    in_memory = nib.Nifti1Image(np.nan_to_num(np.asarray(raw.dataobj)), raw.affine)
    assert np.array_equal(np.concatenate(list(hu_planes(in_memory)), axis=2), read_ct(in_memory).array)
