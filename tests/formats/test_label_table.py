"""formats/label_table.py: names and colours in the header of a NIfTI file, read back by nibabel, by an XML parser, and
by our own reader, which trusts nothing. Ids like F23 and F24 are those of docs/faults.md.
"""

import gzip
import struct
import xml.etree.ElementTree as ElementTree

import nibabel as nib
import numpy as np
import pytest

from uniseg.formats.label_table import LabelTable, description, parse, read_label_table, to_xml
from uniseg.formats.labels import LabelRow, label_rows
from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.volume import read_ct, read_label_map, write_label_map

ROWS = [LabelRow(1, "spleen", (255, 0, 51), ("spleen",)),
        LabelRow(4, "kidneys", (0, 102, 255), ("right_kidney", "left_kidney"))]
LABELS = (np.arange(60).reshape(3, 4, 5, order="F") % 2 * 4).astype(np.uint8)


@pytest.fixture(params=[nib.Nifti1Image, nib.Nifti2Image])
def geometry(request, tmp_path):
    """The grid of a CT in NIfTI-1 or NIfTI-2."""
    request.param(np.zeros(LABELS.shape, np.int16), np.diag([-2.0, 2, 3, 1])).to_filename(tmp_path / "ct.nii")
    return read_ct(tmp_path / "ct.nii").geometry


def as_totalsegmentator_reads(path):
    """{value: name}: nibabel's first extension, any XML parser, the elements that its reader looks for."""
    content = nib.load(path).header.extensions[0].get_content()
    root = ElementTree.fromstring(content.rstrip(b"\0").decode())
    labels = root.find("VolumeInformation").find("LabelTable").findall("Label")
    return {int(label.get("Key")): label.text for label in labels}, labels


def test_other_programs_read_names_and_colours(geometry, tmp_path):
    path = tmp_path / "x_seg.nii.gz"
    write_label_map(path, LABELS[::-1], geometry, extension=to_xml(ROWS, "kits"))
    names, labels = as_totalsegmentator_reads(path)
    assert names == {1: "spleen", 4: "kidneys"}
    assert [float(labels[0].get(part)) * 255 for part in ("Red", "Green", "Blue")] == pytest.approx([255, 0, 51])
    image = nib.load(path)
    assert np.array_equal(image.dataobj, LABELS) and image.header["intent_code"] == 1002
    assert len(image.header.extensions) == 1 and image.header.extensions[0].get_code() == 0


def test_the_bytes_before_the_voxels_are_those_of_the_standard(geometry, tmp_path):
    write_label_map(tmp_path / "x.nii", LABELS, geometry, extension=to_xml(ROWS))
    data = (tmp_path / "x.nii").read_bytes()
    header = struct.unpack_from("<i", data)[0]
    assert data[header:header + 4] == b"\1\0\0\0"
    size, code = struct.unpack_from("<2i", data, header + 4)
    assert size % 16 == 0 and code == 0
    assert len(data) == header + 4 + size + LABELS.size                       # the voxels begin right behind it
    offset = struct.unpack_from("<f", data, 108)[0] if header == 348 else struct.unpack_from("<q", data, 168)[0]
    assert offset == header + 4 + size


def test_equal_labels_give_equal_bytes_and_the_voxels_do_not_depend_on_the_names(geometry, tmp_path):
    for name, extension in (("a", to_xml(ROWS)), ("b", to_xml(ROWS)), ("plain", b"")):
        write_label_map(tmp_path / f"{name}.nii.gz", LABELS, geometry, extension=extension)
    a, b, plain = (gzip.decompress((tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("a", "b", "plain"))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert a == b and a[-LABELS.size:] == plain[-LABELS.size:] and len(a) > len(plain)


def test_our_own_reader_takes_such_maps_and_gives_the_table_back(geometry, tmp_path):
    write_label_map(tmp_path / "x.nii.gz", LABELS, geometry, extension=to_xml(ROWS, "kits"))
    assert np.array_equal(read_label_map(tmp_path / "x.nii.gz").array, LABELS)
    assert read_label_table(tmp_path / "x.nii.gz") == LabelTable(
        {1: "spleen", 4: "kidneys"}, {4: ("right_kidney", "left_kidney")}, "kits")


def test_a_map_without_a_table_says_nothing_and_one_that_lost_it_still_says_whose_numbers_it_has(geometry, tmp_path):
    for name, text in (("plain", "uniseg 0.1.0"), ("lost", description("0.1.0", "totalsegmentator")),
                       ("other", "numbers x"), ("mask", "uniseg liver")):
        write_label_map(tmp_path / f"{name}.nii", LABELS, geometry, text)
    tables = {name: read_label_table(tmp_path / f"{name}.nii") for name in ("plain", "lost", "other", "mask")}
    assert tables == {"plain": None, "lost": LabelTable({}, {}, "totalsegmentator"), "other": None, "mask": None}
    assert description("0.1.0", "table2") == "uniseg 0.1.0"


def test_f24_a_name_that_would_end_its_element_or_steer_a_terminal_does_neither(tmp_path, geometry):
    evil = 'x]]></Label><Label Key="9"><![CDATA[y\x1b[2J'
    content = to_xml([LabelRow(2, evil, (1, 2, 3), (evil,))])
    (label,) = ElementTree.fromstring(content.decode()).iter("Label")
    assert label.text == evil.replace("\x1b", "") and b"\x1b" not in content


def test_f23_entities_are_not_expanded_and_damaged_files_are_left_to_whoever_reads_the_voxels(tmp_path):
    bomb = b'<!DOCTYPE a [<!ENTITY b "lol">]><LabelTable><Label Key="1">&b;</Label></LabelTable>'
    assert parse(bomb, "x").names == {1: "&b;"}
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    assert read_label_table(tmp_path / "cut.nii.gz") is None and read_label_table(tmp_path / "none.nii") is None


def test_the_table_of_another_program_is_read_with_its_own_spelling():
    text = b"""<CaretExtension><VolumeInformation><LabelTable>
        <Label Key = "5" Red="1">liver &amp; more</Label> <Label Red="1" Key="7"><![CDATA[ a<b ]]></Label>
        </LabelTable></VolumeInformation></CaretExtension>\0\0\0"""
    assert parse(text, "x") == LabelTable({5: "liver & more", 7: "a<b"}, {}, "")


@pytest.mark.parametrize("text, said", [
    (b'<LabelTable><Label Key="1">a</Label><Label Key="1">b</Label></LabelTable>', "gives 1 two names"),
    (b'<LabelTable><Label Red="1">a</Label></LabelTable>', "an entry without a number"),
    (b"<LabelTable></LabelTable><MD><Name>uniseg pairs</Name><Value>[1]</Value></MD>", "nothing sensible about pairs")])
def test_a_table_that_contradicts_itself_is_refused(text, said):
    with pytest.raises(VolumeError, match=f"map.nii: the label table in its header .*{said}"):
        parse(text, "map.nii")


def test_rows_are_ascending_and_leave_out_classes_without_a_number():
    rows = label_rows({"liver": 2, "right_kidney": 1, "aorta": None, "left_kidney": 1}, lambda name: (len(name), 0, 0))
    assert rows == [LabelRow(1, "kidneys", (12, 0, 0), ("right_kidney", "left_kidney")),
                    LabelRow(2, "liver", (5, 0, 0), ("liver",))]
