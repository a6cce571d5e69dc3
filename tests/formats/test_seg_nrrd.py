"""formats/seg_nrrd.py: a segmentation for 3D Slicer, read back by a reader of a few lines that knows the format only.

tests/formats/test_viewers.py (slow) gives the same files to SimpleITK and slicerio.
"""

import gzip
import itertools

import numpy as np
import pytest
from nibabel.orientations import inv_ornt_aff

from uniseg import taxonomy
from uniseg.formats.seg_nrrd import Segment, write_seg_nrrd
from uniseg.formats.snomed import STRUCTURES, terms_of
from uniseg.imaging.bits import pack

TYPES = {"unsigned char": np.uint8, "unsigned short": "<u2"}


def read_nrrd(path):
    """(fields, {segment's name: its mask (X, Y, Z)}, affine (4, 4) in RAS+ mm) of a .seg.nrrd."""
    head, _, data = path.read_bytes().partition(b"\n\n")
    lines = [line for line in head.decode().splitlines()[1:] if not line.startswith("#")]
    fields = dict(line.split(":=" if ":=" in line else ": ", 1) for line in lines)
    sizes = [int(n) for n in fields["sizes"].split()]
    voxels = np.frombuffer(gzip.decompress(data), TYPES[fields["type"]]).reshape(sizes, order="F")
    voxels = voxels if voxels.ndim == 4 else voxels[None]
    vectors = [v for v in fields["space directions"].split() if v != "none"] + [fields["space origin"]]
    lps = np.array([[float(n) for n in v.strip("()").split(",")] for v in vectors])
    affine = np.eye(4)
    affine[:3] = np.diag([-1, -1, 1]) @ lps.T                       # left-posterior-superior to right-anterior-superior
    count = sum(key.endswith("_Name") for key in fields)
    masks = {fields[f"Segment{n}_Name"]: voxels[int(fields[f"Segment{n}_Layer"])]
             == int(fields[f"Segment{n}_LabelValue"]) for n in range(count)}
    return fields, masks, affine


def box(shape, *corners):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in corners)] = True
    return mask


SHAPE = (7, 6, 5)
# The tumour lies in the liver and shares voxels with the aorta; the aorta lies beside the liver; nothing is spleen.
MASKS = {"liver": box(SHAPE, (0, 4), (0, 5), (1, 4)), "aorta": box(SHAPE, (4, 6), (2, 4), (0, 5)),
         "liver_tumor": box(SHAPE, (2, 5), (2, 4), (2, 3)), "spleen": np.zeros(SHAPE, bool)}
SEGMENTS = [Segment(k, taxonomy.BY_NAME[name].index, name, taxonomy.BY_NAME[name].color)
            for k, name in enumerate(MASKS)]


@pytest.fixture
def written(tmp_path):
    def write(masks=MASKS, segments=SEGMENTS, affine=np.diag([-2.0, -2, 3, 1])):
        write_seg_nrrd(tmp_path / "x.seg.nrrd", pack(list(masks.values())), segments, affine)
        return read_nrrd(tmp_path / "x.seg.nrrd")
    return write


def test_overlapping_masks_come_back_voxel_for_voxel_from_layers(written):
    fields, masks, _ = written()
    assert fields["sizes"] == "2 7 6 5" and fields["kinds"] == "list domain domain domain"
    assert set(masks) == {"liver", "aorta", "liver_tumor"}                              # an empty one is no segment
    for name, mask in masks.items():
        assert np.array_equal(mask, MASKS[name])
    assert [fields[f"Segment{n}_Layer"] for n in range(3)] == ["0", "0", "1"]           # liver and aorta share a layer


def test_masks_that_do_not_overlap_are_one_volume_of_three_axes(written):
    fields, masks, _ = written({name: MASKS[name] for name in ("liver", "aorta")}, SEGMENTS[:2])
    assert fields["sizes"] == "7 6 5" and fields["kinds"] == "domain domain domain" and len(masks) == 2


def test_names_colours_codes_and_extents_stand_in_the_header(written):
    fields, *_ = written()
    red, green, blue = (float(part) * 255 for part in fields["Segment0_Color"].split())
    assert (red, green, blue) == pytest.approx(taxonomy.BY_NAME["liver"].color, abs=1e-3)
    assert fields["Segment1_Extent"] == "4 5 2 3 0 4" and fields["Segment1_LabelValue"] == "8"
    assert "~SCT^123037004^Anatomical Structure~SCT^15825003^Aorta~^^~" in fields["Segment1_Tags"]
    assert "~SCT^49755003^Morphologically Altered Structure~SCT^108369006^Neoplasm~^^~" in fields["Segment2_Tags"]
    assert fields["Segment2_Tags"].endswith("~SCT^10200004^Liver~^^|")                  # where it lies


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3)))[::2])
def test_every_voxel_lies_where_the_ct_has_it_also_oblique_flipped_and_with_other_axes(written, axes):
    turn = np.radians(20)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    flips = np.array([[axis, sign] for axis, sign in zip(axes, (1, -1, -1))])
    affine = oblique @ np.diag([0.7, 0.8, 2.5, 1.0]) @ inv_ornt_aff(flips, SHAPE)
    affine[:3, 3] += [11.5, -20.25, 300.125]
    _, _, read = written(affine=affine)
    assert np.array_equal(read, affine)                                                 # to the last bit


def test_a_number_above_255_makes_it_16_bit(written):
    segments = [Segment(0, 300, "liver", (1, 2, 3)), Segment(1, 8, "aorta", (1, 2, 3))]
    fields, masks, _ = written({name: MASKS[name] for name in ("liver", "aorta")}, segments)
    assert (fields["type"], fields["endian"]) == ("unsigned short", "little")
    assert np.array_equal(masks["liver"], MASKS["liver"])


def test_an_empty_result_is_a_file_without_segments(written):
    fields, masks, _ = written({"spleen": MASKS["spleen"]}, [Segment(0, 1, "spleen", (1, 2, 3))])
    assert masks == {} and fields["sizes"] == "7 6 5"


def test_equal_masks_give_equal_bytes(written, tmp_path):
    written()
    first = (tmp_path / "x.seg.nrrd").read_bytes()
    written()
    assert (tmp_path / "x.seg.nrrd").read_bytes() == first


def test_every_class_but_prostate_or_uterus_has_codes_and_a_paired_one_its_side():
    assert set(taxonomy.NAMES) - set(STRUCTURES) == {"prostate_or_uterus"}
    assert terms_of("trachea") is None
    for c in taxonomy.CLASSES:
        if terms := terms_of(c.name):
            assert bool(terms.side) == bool(c.partner)
            assert bool(terms.region) == bool(c.parents)                # lesions and vessels lie inside an organ
