"""The files for other viewers, read by programs that are not ours: SimpleITK (ITK, as in Slicer, ITK-SNAP), slicerio.

They are no dependencies of the package. In an environment that lacks them these tests are skipped:
`pip install SimpleITK slicerio`.
"""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from uniseg.formats.label_table import read_label_table, to_xml
from uniseg.formats.labels import label_rows
from uniseg.formats.seg_nrrd import Segment, write_seg_nrrd
from uniseg.imaging.bits import pack
from uniseg.imaging.volume import affine_in_mm, from_ras, read_ct, write_label_map, write_volume
from uniseg.taxonomy import BY_NAME

pytestmark = pytest.mark.slow
SHAPE = (9, 8, 7)
NAMES = ("left_kidney", "kidney_tumor", "spleen")


def color_of(name):
    return BY_NAME[name].color


@pytest.fixture(params=[[(0, 1), (1, 1), (2, 1)], [(0, -1), (1, -1), (2, 1)], [(2, -1), (0, 1), (1, -1)]])
def written(request, tmp_path):
    """An oblique CT stored along some axes, and its result: (folder, {class: mask as stored}, affine as stored)."""
    turned = np.array([[0.96, -0.28, 0, 31.0], [0.28, 0.96, 0, -14.5], [0, 0, 1, 208.25], [0, 0, 0, 1]])
    affine = turned @ np.diag([0.75, 0.75, 2.5, 1.0])
    orientation = np.array(request.param)
    hu = np.random.default_rng(0).integers(-100, 100, SHAPE).astype(np.int16)
    write_volume(tmp_path / "ct.nii.gz", apply_orientation(hu, orientation), affine @ inv_ornt_aff(orientation, SHAPE))
    ct = read_ct(tmp_path / "ct.nii.gz")
    masks = {name: np.zeros(ct.array.shape, bool, order="F") for name in NAMES}
    masks["left_kidney"][1:4, 2:6, 1:5] = True
    masks["kidney_tumor"][3:5, 3:5, 2:4] = True                                     # half of it inside the kidney
    masks["spleen"][6:8, 1:3, 3:6] = True
    segments = [Segment(k, BY_NAME[name].index, name, color_of(name)) for k, name in enumerate(NAMES)]
    bits = from_ras(pack(list(masks.values())), ct.geometry.orientation)
    write_seg_nrrd(tmp_path / "ct_seg.seg.nrrd", bits, segments, affine_in_mm(ct.geometry))
    labels = sum(np.uint8(BY_NAME[name].index) * mask for name, mask in masks.items() if name != "kidney_tumor")
    rows = label_rows({name: BY_NAME[name].index for name in NAMES}, color_of)
    write_label_map(tmp_path / "ct_seg.nii.gz", labels, ct.geometry, "uniseg 0.1.0", to_xml(rows))
    stored = {name: from_ras(mask, ct.geometry.orientation) for name, mask in masks.items()}
    return tmp_path, stored, ct.geometry.affine


def assert_same_world(image, affine, shape):
    """An image of SimpleITK has its voxels where the CT has them; ITK's axes are left, posterior, superior."""
    for index in ((0, 0, 0), tuple(n - 1 for n in shape), (3, 1, 2)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert lps * (-1, -1, 1) == pytest.approx((affine @ [*index, 1])[:3], abs=1e-4)


def test_simpleitk_finds_every_voxel_of_segmentation_and_label_map_where_the_ct_has_it(written):
    sitk = pytest.importorskip("SimpleITK", reason="reading the files back needs SimpleITK: pip install SimpleITK")
    folder, masks, affine = written
    shape = masks["spleen"].shape
    image = sitk.ReadImage(folder / "ct_seg.seg.nrrd")
    assert image.GetSize() == shape and image.GetNumberOfComponentsPerPixel() == 2   # two layers: the tumour overlaps
    assert_same_world(image, affine, shape)
    layers = np.moveaxis(sitk.GetArrayFromImage(image), -1, 0).transpose(0, 3, 2, 1)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    for n, name in enumerate(NAMES):
        assert fields[f"Segment{n}_Name"] == name
        layer, value = int(fields[f"Segment{n}_Layer"]), int(fields[f"Segment{n}_LabelValue"])
        assert np.array_equal(layers[layer] == value, masks[name])
    label_map = sitk.ReadImage(folder / "ct_seg.nii.gz")
    assert_same_world(label_map, affine, shape)
    assert np.array_equal(sitk.GetArrayFromImage(label_map).T == BY_NAME["spleen"].index, masks["spleen"])


def test_slicerio_reads_names_colours_codes_and_masks(written):
    slicerio = pytest.importorskip("slicerio", reason="reading the files back needs slicerio: pip install slicerio")
    folder, masks, affine = written
    read = slicerio.read_segmentation(str(folder / "ct_seg.seg.nrrd"))
    assert np.diag([-1, -1, 1, 1]) @ read["ijkToLPS"] == pytest.approx(affine, abs=1e-6)
    kidney, tumour, spleen = read["segments"]
    assert [segment["name"] for segment in read["segments"]] == list(NAMES)
    assert np.array(kidney["color"]) * 255 == pytest.approx(color_of("left_kidney"), abs=1e-3)
    assert kidney["terminology"]["type"][1:] == ["64033007", "Kidney"]
    assert kidney["terminology"]["typeModifier"][1:] == ["7771000", "Left"]
    assert tumour["terminology"]["anatomicRegion"][1:] == ["64033007", "Kidney"]
    voxels = read["voxels"]
    for segment in (kidney, tumour, spleen):
        assert np.array_equal(voxels[segment["layer"]] == segment["labelValue"], masks[segment["name"]])


def test_simpleitk_drops_the_names_and_keeps_the_description(written):
    """A map that went through ITK still says whose numbers it has (label_table.py)."""
    sitk = pytest.importorskip("SimpleITK", reason="reading the files back needs SimpleITK: pip install SimpleITK")
    folder, _, _ = written
    ct = read_ct(folder / "ct.nii.gz")
    write_label_map(folder / "lits_seg.nii.gz", np.ones(ct.array.shape, np.uint8), ct.geometry,
                    "uniseg 0.1.0, numbers lits", to_xml(label_rows({"liver": 1}, color_of), "lits"))
    sitk.WriteImage(sitk.ReadImage(folder / "lits_seg.nii.gz"), folder / "again.nii.gz")
    table = read_label_table(folder / "again.nii.gz")
    assert (table.names, table.numbers) == ({}, "lits")
