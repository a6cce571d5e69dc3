"""What the numbers of a label map mean to evaluation and training: by its JSON, by the names in its header, by what its
header says of its numbers, and never silently something else. Ids like D34 are those of docs/faults.md.
"""

import json

import nibabel as nib
import numpy as np
import pytest

from uniseg import taxonomy
from uniseg.datasets.dataset import DataError
from uniseg.datasets.dataset_json import read_dataset
from uniseg.datasets.masks import case_masks
from uniseg.evaluation.masks import open_masks
from uniseg.evaluation.readings import in_folder
from uniseg.formats.label_table import description, to_xml
from uniseg.formats.labels import label_rows
from uniseg.formats.numbers import numbers_in
from uniseg.imaging.volume import read_ct, write_label_map, write_volume
from uniseg.phantom import make_phantom

AFFINE = np.diag([4.0, 4, 4, 1])
SHAPE = (8, 4, 4)


@pytest.fixture
def save(tmp_path):
    """Write a label map whose plane n holds values[n], as `infer --numbers` would; parts of that may be lost."""

    def write(numbering="totalsegmentator", classes=taxonomy.NAMES[:14], table=True, text=True, json_too=False,
              values=range(8)):
        folder = tmp_path / "maps"
        folder.mkdir(exist_ok=True)
        nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE).to_filename(tmp_path / "ct.nii.gz")
        labels = np.repeat(np.array(list(values), np.uint8), 16).reshape(SHAPE)
        numbers = numbers_in(numbering, classes)
        rows = label_rows(numbers, lambda name: (1, 2, 3))
        write_label_map(folder / "a_seg.nii.gz", labels, read_ct(tmp_path / "ct.nii.gz").geometry,
                        description("0.1.0", numbering) if text else "", to_xml(rows, numbering) if table else b"")
        if json_too:
            content = {"classes": {name: {"label": value} for name, value in numbers.items()}}
            (folder / "a_seg.json").write_text(json.dumps(content))
        return folder
    return write


def planes(folder, name, **options):
    """The planes in which the class is, after the map was read as evaluation reads it."""
    reading = in_folder(folder, **options)["a"]
    _, mask_of = open_masks(reading)
    return np.flatnonzero(mask_of(name).any(axis=(1, 2))).tolist()


@pytest.mark.parametrize("left", [{"json_too": True}, {}, {"text": False}, {"table": False}])
def test_d38_a_map_with_the_numbers_of_others_is_read_for_what_it_is_while_anything_still_says_so(save, left):
    """TotalSegmentator's 5 is the liver; the 5 of Table 2 is the esophagus."""
    folder = save(**left)
    assert planes(folder, "liver") == [5] and planes(folder, "stomach") == [6] and planes(folder, "pancreas") == [7]
    assert planes(folder, "esophagus") == []


def test_d38_a_map_that_lost_all_that_says_so_is_a_plain_one_and_an_option_says_what_it_holds(save):
    folder = save(table=False, text=False)
    assert planes(folder, "esophagus") == [5]
    assert planes(folder, "liver", numbers="totalsegmentator") == [5]
    assert in_folder(folder)["a"].numbers == "Table 2" and not in_folder(folder)["a"].classes_known


def test_d38_numbers_that_nobody_knows_are_refused(save, monkeypatch):
    monkeypatch.setattr("uniseg.evaluation.numbers.NUMBERINGS", ("table2",))
    with pytest.raises(DataError, match="its numbers are those of 'totalsegmentator', and its names are lost. Say"):
        in_folder(save(table=False))


def test_the_header_says_which_classes_were_looked_for_and_what_was_read(save):
    reading = in_folder(save("table2", ["liver", "spleen"], values=[0, 1, 6, 0, 0, 0, 0, 0]))["a"]
    assert reading.classes == ("spleen", "liver") and reading.classes_known
    assert reading.numbers == "the names in the header of each"


def test_a_value_that_the_table_does_not_have_is_refused(save):
    with pytest.raises(DataError, match="label values 2, 3, 4, 5, 7, which its JSON, header or dataset.json does"):
        planes(save("table2", ["liver", "spleen"]), "liver")


def test_a_class_beyond_table_2_is_not_taken_for_the_one_that_it_is_called_like(save):
    """A model may have a class "Spleen" of its own with the number 33 (taxonomy.remarks_on)."""
    reading = in_folder(save("table2", ["liver", "Spleen"], values=[0, 6, 33, 0, 0, 0, 0, 0]))["a"]
    assert reading.classes == ("liver", "Spleen")


@pytest.mark.parametrize("json_too", [True, False])
def test_both_sides_under_one_number_are_the_pair_and_need_a_ct_to_be_told_apart(save, json_too):
    folder = save("kits", ("right_kidney", "left_kidney", "liver"), json_too=json_too, values=[0, 1, 1, 0, 0, 0, 1, 1])
    reading = in_folder(folder)["a"]
    assert [label.classes for label in reading.labels] == [("right_kidney", "left_kidney")]
    with pytest.raises(DataError, match="'kidneys' covers both sides; splitting it needs the CT"):
        planes(folder, "left_kidney")


def test_names_of_totalsegmentator_in_a_header_are_its_own_spelling_and_unknown_ones_are_left_out(tmp_path):
    """As its nifti_ext_header.py writes them, ecode 0."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1], labels[2], labels[3] = 2, 5, 27
    image = nib.Nifti1Image(labels, AFFINE)
    body = "".join(f'<Label Key="{key}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>\n'
                   for key, name in ((2, "kidney_right"), (5, "liver"), (27, "vertebrae_L5")))
    xml = ('<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <VolumeInformation Index="0">   <LabelTable>\n'
           f'{body}  </LabelTable>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>')
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml.encode()))
    image.to_filename(tmp_path / "a.nii.gz")
    assert planes(tmp_path, "right_kidney") == [1] and planes(tmp_path, "liver") == [2]
    assert in_folder(tmp_path)["a"].classes == ("right_kidney", "liver")


def test_a_mask_of_one_class_is_that_class_also_where_it_is_taken_for_a_label_map(tmp_path):
    """By Table 2 the 1 in it would be a spleen."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    rows = label_rows({"liver": 1}, lambda name: (1, 2, 3))
    image.to_filename(tmp_path / "ct.nii.gz")
    (tmp_path / "ct_seg").mkdir()
    write_label_map(tmp_path / "ct_seg" / "liver.nii.gz", np.ones(SHAPE, np.uint8),
                    read_ct(tmp_path / "ct.nii.gz").geometry, "uniseg liver", to_xml(rows, "mask"))
    assert [reading.classes for reading in in_folder(tmp_path / "ct_seg").values()] == [("liver",)]


@pytest.fixture
def pseudo_labels(tmp_path):
    """A dataset whose one label map was written by `infer --numbers NUMBERING`; its dataset.json says 5 is liver."""
    def write(numbering):
        hu, masks, affine = make_phantom((12.0, 12.0, 12.0))
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir()
        write_volume(tmp_path / "imagesTr" / "a.nii.gz", hu, affine)
        ct = read_ct(tmp_path / "imagesTr" / "a.nii.gz")
        numbers = numbers_in(numbering, ["liver", "esophagus"])
        write_label_map(tmp_path / "labelsTr" / "a.nii.gz", masks["liver"] * np.uint8(5), ct.geometry, "",
                        to_xml(label_rows(numbers, lambda name: (1, 2, 3)), numbering))
        content = {"labels": {"background": 0, "liver": 5},
                   "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        dataset = read_dataset(tmp_path)
        return {name: int(mask.sum()) for name, mask in case_masks(dataset, dataset.cases[0], ct)}, masks
    return write


def test_training_takes_label_maps_with_names_in_their_header(pseudo_labels):
    found, masks = pseudo_labels("totalsegmentator")
    assert found == {"liver": masks["liver"].sum()}


def test_d39_training_refuses_a_map_whose_own_names_contradict_its_dataset(pseudo_labels):
    with pytest.raises(DataError, match="its header says that 5 is esophagus, and in .* it is liver. Correct the numb"):
        pseudo_labels("table2")
