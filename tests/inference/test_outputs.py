"""What is written beside a result: names, and which files a result's JSON may claim as its own."""

from pathlib import Path

import pytest

from uniseg.inference.outputs import EVERYTHING, Outputs, belongs_to

RESULT = Path("out/ct_seg.nii.gz")


def test_the_names_of_all_files_that_can_be_asked_for():
    files = EVERYTHING.files(RESULT, ["liver", "spleen"])
    assert {kind: [path.as_posix() for path in paths] for kind, paths in files.items()} == {
        "masks": ["out/ct_seg/liver.nii.gz", "out/ct_seg/spleen.nii.gz"],
        "a preview": ["out/ct_preview.png"],
        "a view": ["out/ct_view.html"],
        "viewer files": ["out/ct_seg.seg.nrrd", "out/ct_seg.ctbl", "out/ct_seg_itksnap.txt", "out/ct_seg_niivue.json",
                         "out/ct_seg.nii.lut", "out/ct_seg.nii.txt"]}
    assert Outputs().files(RESULT, ["liver"]) == {}


@pytest.mark.parametrize("name, own", [
    ("ct_seg/liver.nii.gz", True), ("ct_preview.png", True), ("ct_view.html", True),
    ("ct_seg.seg.nrrd", True), ("ct_seg_niivue.json", True),
    ("ct_seg.nii.gz", False),                       # the label map is replaced by the next one, not removed before it
    ("ct.nii.gz", False), ("other_preview.png", False), ("ct_seg/notes.txt", False),
    ("ct_seg/../ct.nii.gz", False), ("../ct_preview.png", False), ("/etc/passwd", False)])
def test_a_json_can_only_claim_files_of_its_own_result(name, own):
    """What it claims is removed when the result is replaced, so a forged JSON must not name somebody else's file."""
    assert belongs_to(RESULT.parent / name, RESULT) is own
