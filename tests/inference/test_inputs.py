"""Which files are taken as CTs, where the result of each lies, and what is said about a folder that holds none."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.volume import read_ct
from uniseg.inference.inputs import LABELS, find_cts
from uniseg.inference.plan import plan

DICOM = bytes(128) + b"DICM" + bytes(400)


def files(root, *names, content=b""):
    """Make files of these names below a folder; returns the folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def taken(root):
    return [(found.ct.relative_to(root).as_posix(), found.below.as_posix()) for found in find_cts([root], True)]


# -------------------------------------------------------------------------------------------------------- folders below

def test_recursive_takes_the_ct_of_every_folder_and_no_labels(tmp_path, capsys):
    """As TotalSegmentator, KiTS and the Decathlon lay them out, with a former result and its masks."""
    root = files(tmp_path, "top.nii.gz", "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0002/ct.nii.gz",
                 "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz", "Task03/imagesTr/liver_0.nii.gz",
                 "Task03/labelsTr/liver_0.nii.gz", "s0001/ct_seg.nii.gz", "s0001/ct_seg/spleen.nii.gz",
                 ".cache/old.nii.gz", "s0002/notes.txt")
    assert taken(root) == [("top.nii.gz", "."), ("Task03/imagesTr/liver_0.nii.gz", "Task03/imagesTr"),
                           ("case_00000/imaging.nii.gz", "case_00000"), ("s0001/ct.nii.gz", "s0001"),
                           ("s0002/ct.nii.gz", "s0002")]
    assert capsys.readouterr().err == (
        f"uniseg: {root}: 4 NIfTI files are left out, as their names or folders are those of labels, such as "
        "Task03/labelsTr/liver_0.nii.gz\n")


def test_results_mirror_the_folders_so_that_equal_names_do_not_collide(tmp_path):
    root = files(tmp_path / "in", "s0001/ct.nii.gz", "s0002/ct.nii.gz", "s0002/late/ct.nii.gz")
    results = [job.result for job in plan([root], tmp_path / "out", recursive=True)]
    assert results == [tmp_path / "out" / name for name in (
        "s0001/ct_seg.nii.gz", "s0002/ct_seg.nii.gz", "s0002/late/ct_seg.nii.gz")]
    beside = [job.result for job in plan([root], None, recursive=True)]
    assert beside == [root / name for name in (
        "s0001/ct_seg.nii.gz", "s0002/ct_seg.nii.gz", "s0002/late/ct_seg.nii.gz")]


def test_two_trees_with_the_same_folders_are_refused_before_any_work(tmp_path):
    for name in ("a", "b"):
        files(tmp_path / name, "s1/ct.nii.gz")
    with pytest.raises(ValueError, match="both would be written to .*out/s1/ct_seg.nii.gz. Run them apart."):
        plan([tmp_path / "a", tmp_path / "b"], tmp_path / "out", recursive=True)


def test_a_circle_of_links_ends_and_a_linked_folder_is_searched(tmp_path):
    root = files(tmp_path / "in", "s1/ct.nii.gz")
    files(tmp_path / "elsewhere", "ct.nii.gz")
    (root / "s2").symlink_to(tmp_path / "elsewhere")
    (root / "s1" / "up").symlink_to(root)
    assert taken(root) == [("s1/ct.nii.gz", "s1"), ("s2/ct.nii.gz", "s2")]


@pytest.mark.parametrize("name, is_label", [
    ("segmentations", True), ("labelsTr", True), ("ct_seg", True), ("patient1-label", True), ("masks", True),
    ("ct", False), ("imaging", False), ("imagesTr", False), ("segmented_later_ct", False), ("label_study_ct", False)])
def test_a_name_is_that_of_labels_by_its_last_word(name, is_label):
    assert bool(LABELS.fullmatch(name)) is is_label


# --------------------------------------------------------------------------------------------------- what is no NIfTI

def refusal(*arguments):
    with pytest.raises(ValueError) as error:
        find_cts(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nested_folders_without_recursive_are_one_line_that_names_it(tmp_path):
    root = files(tmp_path, "s0001/ct.nii.gz", "s0002/ct.nii.gz", "s0001/segmentations/liver.nii.gz")
    assert refusal([root]) == (f"{root}: no NIfTI file in this folder itself, but 2 in folders below, such as "
                               "s0001/ct.nii.gz. Give --recursive to take them.")


@pytest.mark.parametrize("names", [["IM0001", "IM0002", "DICOMDIR"], ["series/a.dcm"]], ids=["here", "below"])
@pytest.mark.parametrize("recursive", [False, True])
def test_a_folder_of_dicom_files_is_one_line_with_the_command_that_converts_it(tmp_path, names, recursive):
    root = files(tmp_path / "scan of today", *names, content=DICOM)
    assert refusal([root], recursive) == (
        f"{root}: a folder of DICOM files, which uniseg does not read. Convert them first: `mkdir -p nifti && dcm2niix "
        f"-z y -o nifti '{root}'`.")


@pytest.mark.parametrize("name, content, what", [("ct.nrrd", b"", "an NRRD file"), ("ct.mha", b"", "a MetaImage file"),
                                                 ("unnamed", b"NRRD0004\n", "an NRRD file")])
def test_a_folder_of_other_images_names_one_and_the_command_that_converts_it(tmp_path, name, content, what):
    line = refusal([files(tmp_path, "readme.txt", content=b"text") and files(tmp_path, name, content=content)])
    assert line.startswith(f"{tmp_path}: no NIfTI file, but {what}, {name}. Convert it first, with SimpleITK for "
                           "example: `python -c \"import sys, SimpleITK as s; ")
    assert line.endswith(f" {tmp_path / name} {(tmp_path / name).with_suffix('.nii.gz')}`.")


def test_a_folder_of_nothing_and_one_of_labels_alone_say_so(tmp_path):
    empty, labels = files(tmp_path / "empty", "notes.txt"), files(tmp_path / "l", "s1/masks/liver.nii.gz")
    assert refusal([empty]) == f"{empty}: no .nii or .nii.gz file in this folder. Name another one."
    assert refusal([empty], True) == (f"{empty}: no .nii or .nii.gz file of a CT in this folder or below it. Name "
                                      "another one.")
    assert refusal([labels], True) == (f"{labels}: only NIfTI files with the names or folders of labels, such as "
                                       "s1/masks/liver.nii.gz. Name the CTs themselves.")


@pytest.mark.parametrize("name, content, words", [
    ("IM0001", DICOM, "a DICOM file. Convert its series first: `mkdir -p nifti && dcm2niix -z y -o nifti "),
    ("ct.nrrd", b"NRRD0004\ntype: short\n" + bytes(999), "an NRRD file, not NIfTI. Convert it first, with SimpleITK"),
    ("ct.mha", b"ObjectType = Image\nNDims = 3\n" + bytes(999), "a MetaImage file, not NIfTI. Convert it first, ")])
def test_a_file_of_another_format_is_named_with_its_command_from_python_too(tmp_path, name, content, words):
    path = files(tmp_path, name, content=content) / name
    with pytest.raises(VolumeError) as error:
        read_ct(path)
    assert str(error.value).startswith(f"{path}: {words}") and str(error.value).endswith("`.")
    assert find_cts([path])[0].ct == path                        # the case itself is refused, not the others


def test_the_command_for_nrrd_and_metaimage_is_one_that_a_shell_takes_as_it_is(tmp_path):
    """SimpleITK is stood in for: what reaches it are the two names, with their blanks."""
    import os
    import re
    import subprocess

    (tmp_path / "SimpleITK.py").write_text("ReadImage = str\ndef WriteImage(image, name): print(repr((image, name)))\n")
    line = refusal([files(tmp_path / "my scans", "ct 1.mha")])
    command = re.search(r"`(.*)`", line)[1].replace("python ", "python3 ", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    folder = tmp_path / "my scans"
    assert done.stdout == f"{(str(folder / 'ct 1.mha'), str(folder / 'ct 1.nii.gz'))!r}\n", done.stderr


def test_a_nifti_file_is_no_other_format(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([5.0, 5, 5, 1])), tmp_path / "ct.nii.gz")
    assert read_ct(tmp_path / "ct.nii.gz").array.shape == (4, 4, 4)
    assert find_cts([tmp_path]) == [(tmp_path / "ct.nii.gz", Path("."))]
