"""The picture of a result, whatever the CT: thin, narrow, oblique, empty, none at all, with many classes."""

import numpy as np
import pytest

from uniseg import taxonomy
from uniseg.phantom import make_phantom
from uniseg.pictures import blocks
from uniseg.pictures import preview as module
from uniseg.pictures.blocks import LETTER
from uniseg.pictures.preview import comparison, degrees_oblique, mm_per_pixel, preview
from uniseg.pictures.slices import PLANES, make_case

ALL = {c.name: {"label": c.index, "voxels": 1000, "ml": 27.0, "touches_border": False} for c in taxonomy.CLASSES}


@pytest.fixture(scope="module")
def phantom():
    """(hu, label map, affine) of 5 mm."""
    hu, masks, affine = make_phantom((5.0, 5.0, 5.0))
    labels = np.zeros(hu.shape, np.uint8)
    for c in taxonomy.CLASSES:
        if c.name in masks:
            labels[masks[c.name]] = c.index
    return hu, labels, affine


@pytest.fixture
def written(monkeypatch):
    """What is written into a picture, in its order, without drawing the letters."""
    words = []
    monkeypatch.setattr(blocks, "text", lambda picture, x, y, string, *more, **options: words.append(string))
    return words


def share_of(picture, value):
    return (picture == value).all(axis=2).mean()


def test_the_picture_has_names_volumes_and_marks_of_what_was_found(phantom, written):
    hu, labels, affine = phantom
    figures = {"liver": {"label": 6, "voxels": 9, "ml": 1333.4, "touches_border": True},
               "spleen": {"label": 1, "voxels": 9, "ml": 98.76, "touches_border": False},
               "liver_tumor": {"label": 27, "voxels": 9, "ml": 0.123, "touches_border": False,
                               "experimental": "found little"},
               "colon_tumor": {"label": 31, "voxels": 0, "ml": 0.0, "touches_border": False}}
    rgb = preview(hu, labels, affine, figures, "patient_7", ["the spine was not found"], least=150)
    assert rgb.dtype == np.uint8 and rgb.ndim == 3
    for words in ("patient_7", "liver", "> 1333 ml", "spleen", "98.8 ml", "liver tumor *", "0.12 ml"):
        assert words in written
    everything = " ".join(written)
    assert "Warning: the spine was not found" in everything and "Looked for, not found: colon tumor." in everything
    assert "> touches the border of the CT" in everything and "* experimental" in everything


def test_classes_that_no_slice_shows_are_told_from_those_that_one_shows(phantom, written):
    hu, labels, affine = phantom
    figures = {name: ALL[name] for name in ("liver", "prostate_or_uterus")}
    rgb = preview(hu, labels, affine, figures, least=150)
    assert "White inside: in none of these slices." in " ".join(written)
    patches = {name: (rgb == taxonomy.BY_NAME[name].color).all(axis=2).sum() for name in figures}
    assert patches["liver"] > 18 * 12 > patches["prostate_or_uterus"] > 0


def test_the_longer_side_of_every_slice_has_600_pixels_and_the_scale_is_one_where_it_can_be(phantom):
    case = make_case(*phantom)
    scales = mm_per_pixel(case, PLANES)
    assert len(set(scales)) == 1 and min(max(case.extent_mm(p)) / s for p, s in zip(PLANES, scales)) == 600
    tall = case._replace(spacing_mm=np.array([1.0, 1.0, 20.0]))
    sizes = [max(tall.extent_mm(p)) / s for p, s in zip(PLANES, mm_per_pixel(tall, PLANES))]
    assert min(sizes) == pytest.approx(600) and max(sizes) == pytest.approx(1200)


@pytest.mark.parametrize("part, panels", [
    (np.s_[:, :, 30:50], 3), (np.s_[:, :, 30:32], 3), (np.s_[:, :, 30:31], 1), (np.s_[30:31], 1), (np.s_[:, 30:31], 1),
    (np.s_[30:45, 20:35], 3), (np.s_[30:31, 20:21], 1), (np.s_[30:31, 20:21, 30:31], 1), (np.s_[:], 3)],
    ids=["slab", "two slices", "one slice", "one sagittal", "one coronal", "narrow", "a line", "a voxel", "whole"])
def test_any_shape_gives_a_picture_that_is_no_more_than_a_third_black(phantom, part, panels, monkeypatch, written):
    hu, labels, affine = phantom
    drawn = []
    real = module._panel
    monkeypatch.setattr(module, "_panel", lambda *given: drawn.append(real(*given)) or drawn[-1])
    rgb = preview(hu[part], labels[part], affine, ALL, "case", least=150)
    assert len(drawn) == panels and share_of(rgb, 0) < 1 / 3 and max(rgb.shape) < 1100
    assert all(max(panel.shape) >= 150 for panel in drawn)


def test_an_empty_result_a_ct_without_a_body_and_labels_without_a_ct_are_drawn(phantom, written):
    hu, labels, affine = phantom
    missing = {name: {**one, "voxels": 0} for name, one in ALL.items()}
    assert preview(hu, np.zeros_like(labels), affine, missing, least=150).std() > 0
    assert "Nothing found." in " ".join(written)
    assert preview(np.full_like(hu, -1000), np.zeros_like(labels), affine, {}, least=150).std() > 0
    assert preview(None, labels, affine, ALL, least=150).std() > 0 and "Labels without a CT." in " ".join(written)


def test_many_classes_long_names_and_any_characters_are_drawn(phantom):
    hu, labels, affine = phantom
    figures = {**ALL, **{f"a name of 64 letters, as long as one may be, and more {i}": {
        "label": 33 + i, "voxels": 1, "ml": 1234.5} for i in range(8)}}
    rgb = preview(hu, labels, affine, figures, "Müller\n中文 \x00" + "x" * 300, ["a sentence " * 40], least=150)
    assert max(rgb.shape) < 3500


def test_an_oblique_ct_says_so(phantom, written):
    hu, labels, affine = phantom
    cos, sin = np.cos(np.radians(17)), np.sin(np.radians(17))
    turned = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1.0]]) @ affine
    assert degrees_oblique(turned) == pytest.approx(17) and degrees_oblique(affine) == 0
    straight, oblique = (preview(hu, labels, grid, ALL, least=150) for grid in (affine, turned))
    assert "up to 17 degrees from the patient's" in " ".join(written)
    assert np.array_equal(straight[:150], oblique[:150])                       # but for the last line it is the same


def test_a_comparison_has_a_row_for_each_label_map_in_the_same_slices(phantom, written):
    hu, labels, affine = phantom
    other = np.where(labels == 6, 1, 0).astype(np.uint8)
    rgb = comparison(hu, [("Reference", labels), ("Prediction", other)], affine, {"liver": 6, "spleen": 1, "colon": 18},
                     "case", least=150)
    assert {"case", "Reference", "Prediction", "liver", "spleen", "colon"} <= set(written)
    assert len({words for words in written if words.startswith("axial")}) == 1        # one slice in both
    assert rgb.shape[1] > 400 and rgb.shape[0] > 2 * (150 + LETTER)
