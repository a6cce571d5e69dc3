"""The small Python interface, typed as a user types it: text for classes, arrays, many CTs, what is printed.

The network is the stand-in of test_segmenter.py, which knows an organ by its HU.
"""

import json
import re

import nibabel as nib
import numpy as np
import pytest

from test_segmenter import image, of_any_size, paint, stand_in  # noqa: F401
from uniseg import taxonomy
from uniseg.imaging.arrays import as_source
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.inference.outputs import outputs_named
from uniseg.inference.summary import class_lines

GOOD = np.diag([4.0, 4.0, 4.0, 1.0])               # an affine


@pytest.fixture(scope="module")
def painted():
    return paint()


@pytest.fixture
def model():
    return stand_in()


@pytest.fixture(scope="module")
def seg(painted):
    """A result. Not to be changed."""
    hu, _, affine = painted
    return stand_in().segment(image(hu, affine))


# ------------------------------------------------------------------------------------------------------ what is printed

def test_repr_is_one_short_line_and_print_is_the_table(seg):
    assert repr(seg) == "<Segmentation of image in memory: 32 x 28 x 30 voxels, 4 of 4 classes found>"
    first, *lines = str(seg).splitlines()
    assert re.fullmatch(r"image in memory: 32 x 28 x 30 voxels of 4 x 4 x 4 mm, segmented by stand-in in [\d.]+ s",
                        first)
    rows = [line.split() for line in lines if not line.startswith("  warning: ")]
    assert [row[1] for row in rows] == ["spleen", "liver", "aorta", "liver_tumor"]
    for number, name, ml, unit, *_ in rows:
        assert int(number) == taxonomy.BY_NAME[name].index and unit == "ml"
        assert float(ml) == pytest.approx(np.count_nonzero(seg.mask(name)) * 0.064, abs=0.051)     # 4 mm: 0.064 ml
    assert [line for line in lines if "warning" in line] == [f"  warning: {text}" for text in seg.stats["warnings"]]


def test_a_result_in_which_nothing_is_found_says_so(model):
    seg = model.segment(np.full((20, 20, 20), -1000, np.int16), affine=np.diag([4.0, 4, 4, 1]))
    assert repr(seg).endswith("20 x 20 x 20 voxels, 0 of 4 classes found>") and "  nothing found\n" in f"{seg}\n"


def test_a_segmenter_says_what_it_offers_and_why_it_does_not_offer_the_rest(model):
    model.experimental = {"liver_tumor": "never scored on real CT"}
    assert repr(model) == "<Segmenter stand-in: 3 of 4 classes offered, unet at 4 x 4 x 4 mm, cpu>"
    lines = str(model).splitlines()
    assert lines[0] == repr(model)[1:-1] and lines[1] == "  offered (computed by default): spleen, liver, aorta"
    assert lines[2:] == ["  experimental (scored too low to be offered; experimental=True computes them too):",
                         "    liver_tumor: never scored on real CT"]


def test_postcava_is_also_called_inferior_vena_cava_wherever_a_person_reads_it(seg):
    stats = {"classes": {"postcava": {**seg.stats["classes"]["aorta"], "label": 9}}, "empty": False, "not_found": []}
    [row] = class_lines(stats)
    assert row.startswith("    9  postcava (inferior vena cava)  ")
    assert all(name in taxonomy.BY_NAME and taxonomy.resolve(word) == (name,) for name, word in taxonomy.SPOKEN.items())


# ----------------------------------------------------------------------------------------------------- image and masks

def test_the_image_is_the_label_map_on_the_grid_of_the_ct_as_save_writes_it(model, tmp_path):
    hu, _, affine = paint()
    turned = nib.Nifti1Image(hu, affine).as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    seg = model.segment(turned)
    assert np.array_equal(seg.image.dataobj, seg.label_map) and np.array_equal(seg.image.affine, turned.affine)
    nib.save(seg.image, tmp_path / "by_nibabel.nii.gz")
    seg.save(tmp_path / "ours.nii.gz")
    ours, by_nibabel = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("ours", "by_nibabel"))
    assert ours.header.extensions[0].get_content().strip(b"\0") == \
        by_nibabel.header.extensions[0].get_content().strip(b"\0") != b""
    assert np.array_equal(ours.dataobj, by_nibabel.dataobj) and np.array_equal(ours.affine, by_nibabel.affine)
    for field in ("datatype", "intent_code", "sform_code", "qform_code", "descrip", "cal_max"):
        assert ours.header[field] == by_nibabel.header[field], field
    assert np.array_equal(read_label_map(seg.image).array, read_label_map(tmp_path / "ours.nii.gz").array)


def test_masks_are_those_of_mask_by_name_and_keep_overlaps(seg):
    masks = seg.masks()
    assert tuple(masks) == seg.classes
    assert {(m.dtype, m.shape) for m in masks.values()} == {(np.dtype(bool), seg.label_map.shape)}
    assert all(np.array_equal(masks[name], seg.mask(name)) for name in seg.classes)
    assert masks["liver_tumor"].any() and (masks["liver"] >= masks["liver_tumor"]).all()


# ---------------------------------------------------------------------------------------------------- what is taken

def test_classes_may_be_one_text(model):
    assert model.select("liver") == model.select(["liver"]) == ("liver",)
    assert model.select("aorta, Liver") == ("liver", "aorta")
    assert model.segment(np.zeros((9, 9, 9), np.int16), "liver", affine=GOOD).classes == ("liver",)


def test_a_text_that_names_no_class_is_refused_with_a_suggestion(model):
    with pytest.raises(ValueError, match="unknown class name 'livr'. Did you mean liver"):
        model.select("livr")
    with pytest.raises(ValueError, match="unknown class name ''"):
        model.select("liver,")


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.int64, np.float16, np.float32, np.float64, np.longdouble])
def test_every_type_of_array_becomes_an_image_with_its_values(kind):
    array = np.arange(27).reshape(3, 3, 3).astype(kind)
    picture = as_source(array, GOOD)
    assert np.array_equal(picture.dataobj, array) and np.array_equal(picture.affine, GOOD)
    assert picture.header.get_xyzt_units()[0] == "mm"
    assert read_ct(picture).array.max() == 26


def test_an_array_with_its_affine_is_segmented_like_the_image(model, seg, painted):
    hu, _, affine = painted
    array = hu.astype(np.int64)
    found = model.segment(array, affine=affine)
    assert np.array_equal(found.label_map, seg.label_map) and np.array_equal(found.affine, affine)
    assert np.array_equal(array, hu) and found.stats["input"] == "image in memory"


def test_the_affine_decides_where_left_is(painted):
    """The same voxels with a mirrored x axis lie on the other side of the patient."""
    hu, _, affine = painted
    right = read_ct(as_source(hu, affine)).array
    left = read_ct(as_source(hu, np.diag([-1.0, 1, 1, 1]) @ affine)).array
    assert np.array_equal(left, right[::-1]) and not np.array_equal(left, right)


def test_an_array_whose_values_are_no_hu_is_warned_about_as_a_file_is(model, painted):
    """Scanner values without their intercept: HU + 1024."""
    hu, _, affine = painted
    stored = hu + np.int16(1024)
    warnings = model.segment(stored, "liver", affine=affine).stats["warnings"]
    assert warnings == model.segment(image(stored, affine), "liver").stats["warnings"] and warnings


@pytest.mark.parametrize("array, affine, words", [
    (np.zeros((9, 9, 9)), None, "an array says nothing about its voxel size and orientation. Give affine="),
    (np.zeros((9, 9, 9)), np.eye(3), "affine: not an invertible (4, 4) matrix of finite numbers"),
    (np.zeros((9, 9, 9)), np.zeros((4, 4)), "affine: not an invertible"),
    (np.zeros((9, 9, 9)), GOOD * np.nan, "affine: not an invertible"),
    (np.zeros((9, 9, 9)), np.diag([4.0, 4, 4, 2]), "affine: not an invertible"),
    (np.zeros((9, 9, 9)), "RAS", "affine: not an invertible"),
    (np.zeros((9, 9, 9), bool), GOOD, "an array of type bool: no CT in Hounsfield units."),
    (np.zeros((9, 9, 9), complex), GOOD, "an array of type complex128: no CT"),
    (np.zeros((9, 9)), GOOD, "image in memory"), (np.zeros((2, 9, 9, 9)), GOOD, "image in memory"),
    (np.zeros((1, 40_000, 1), np.int8), GOOD, "an array of shape (1, 40000, 1): no axis of a CT is that long. Cut it."),
    (nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), GOOD), GOOD, "affine: is for arrays; a file and an image have"),
    ("ct.nii.gz", GOOD, "affine: is for arrays"), ([[0]], None, "a CT given as list: not one of the forms"),
    (None, None, "a CT given as NoneType")], ids=range(15))
def test_what_cannot_be_segmented_is_one_line(model, array, affine, words):
    with pytest.raises(ValueError) as error:
        model.segment(array, affine=affine)
    assert str(error.value).startswith(words) or words in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ many CTs

@pytest.fixture
def folder(tmp_path, painted):
    """Two CTs, one of them in a folder below, and one that is cut off."""
    hu, _, affine = painted
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_volume(tmp_path / "in" / "a.nii.gz", hu, affine)
    write_volume(tmp_path / "in" / "deep" / "a.nii.gz", hu, affine)
    (tmp_path / "in" / "b.nii.gz").write_bytes((tmp_path / "in" / "a.nii.gz").read_bytes()[:300])
    return tmp_path


def test_segment_all_writes_what_infer_writes_and_a_bad_case_does_not_stop_the_others(model, folder, capsys):
    cases = model.segment_all(folder / "in", folder / "out", classes="liver", outputs=["masks"], recursive=True)
    assert [c.ct.relative_to(folder / "in").as_posix() for c in cases] == ["a.nii.gz", "b.nii.gz", "deep/a.nii.gz"]
    assert [bool(case.stats) for case in cases] == [True, False, True]
    assert cases[1].error.startswith(f"{folder / 'in' / 'b.nii.gz'}: truncated") and "\n" not in cases[1].error
    written = sorted(p.relative_to(folder / "out").as_posix() for p in (folder / "out").rglob("*") if p.is_file())
    assert written == ["a_seg.json", "a_seg.nii.gz", "a_seg/liver.nii.gz", "deep/a_seg.json", "deep/a_seg.nii.gz",
                       "deep/a_seg/liver.nii.gz", "statistics.csv"]
    assert cases[2].label_map == folder / "out" / "deep" / "a_seg.nii.gz"
    assert cases[0].stats == json.loads((folder / "out" / "a_seg.json").read_text())
    assert capsys.readouterr() == ("", "")


def test_segment_all_refuses_keeps_or_replaces_what_is_there(model, folder):
    (folder / "in" / "b.nii.gz").unlink()
    first = model.segment_all([folder / "in"], folder / "out")
    stamp = first[0].label_map.stat().st_mtime_ns
    with pytest.raises(ValueError, match="a_seg.nii.gz: exists already"):
        model.segment_all(folder / "in", folder / "out")
    kept = model.segment_all(folder / "in", folder / "out", existing="keep")
    assert kept == first and first[0].label_map.stat().st_mtime_ns == stamp
    model.segment_all(folder / "in", folder / "out", existing="replace")
    assert first[0].label_map.stat().st_mtime_ns > stamp


@pytest.mark.parametrize("wrong, words", [
    ({"outputs": ["mask"]}, "outputs: 'mask' is none. Choose among masks, "),
    ({"existing": "skip"}, "existing='skip': choose one of refuse, keep, replace."),
    ({"classes": "livr"}, "unknown class name 'livr'"), ({"inputs": "nowhere"}, "nowhere: no such file")])
def test_segment_all_refuses_arguments_before_any_work(model, folder, wrong, words):
    with pytest.raises(ValueError) as error:
        model.segment_all(**{"inputs": folder / "in" / "a.nii.gz", "out": folder / "out", **wrong})
    assert str(error.value).startswith(words) and not (folder / "out").exists()


def test_outputs_may_be_one_name():
    assert outputs_named("masks") == outputs_named(["masks"]) and outputs_named(()) == outputs_named([])
