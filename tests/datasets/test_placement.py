"""placement.py: label maps that were flipped or moved are refused, and those that fit are not."""

import numpy as np
import pytest

from conftest import Patient, write_dataset
from uniseg.datasets.cases import prepare
from uniseg.datasets.check import check_root
from uniseg.datasets.dataset import DataError
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.datasets.placement import Placement
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import Volume, read_ct
from uniseg.phantom import make_phantom

MAP = ("liver", "spleen", "right_kidney", "left_kidney", "aorta", "right_lung", "left_lung", "stomach", "pancreas")


@pytest.fixture(scope="module")
def patient():
    """A phantom of 12 mm voxels. Not to be written to."""
    return Patient(*make_phantom((12.0, 12.0, 12.0)))


def problem(hu, affine, masks):
    placement = Placement(Volume(hu, affine, None, []))
    for name, mask in masks.items():
        placement.add(name, mask)
    return placement.problem()


@pytest.mark.parametrize("axes, words", [
    ((), None), ((0,), "left to right"), ((1,), "front to back"), ((2,), "head to feet"),
    ((0, 1), "left to right and front to back")])
def test_d31_a_flip_is_named_with_both_shares(patient, axes, words):
    masks = {name: np.flip(patient.masks[name], axes) for name in MAP}
    found = problem(patient.hu, patient.affine, masks)
    assert found == "" if words is None else f"if the labels are flipped {words}. Save them along the axes" in found


def by_hand(hu_of_organ, hu_behind, name="liver"):
    """A cube of 1 litre in front of its mirror image of other HU, and the organ's mask; 5 mm voxels."""
    hu = np.full((40, 60, 40), -1000, np.int16)
    hu[5:35, 5:55, 5:35] = 20
    mask = np.zeros(hu.shape, bool)
    mask[10:30, 32:52, 10:30] = True
    hu[mask], hu[mask[:, ::-1]] = hu_of_organ, hu_behind
    return hu, np.diag([5.0, 5.0, 5.0, 1.0]), {name: mask}


@pytest.mark.parametrize("hu_of_organ, hu_behind, words", [
    (60, -100, ""), (-100, 60, "100% of their voxels have HU that their organ cannot have, 0% if the labels are"),
    (-100, -100, ""),                                          # as bad either way: no flip, and fat is no air
    (-700, -700, "labels lie in air or outside the body: liver (100%)"), (60, -900, "")])
def test_d31_shares_worked_out_by_hand(hu_of_organ, hu_behind, words):
    found = problem(*by_hand(hu_of_organ, hu_behind))
    assert (words in found) if words else found == ""


@pytest.mark.parametrize("name", ["colon", "stomach", "lung_tumor", "pancreatic_duct"])
def test_d31_gas_within_the_body_is_no_fault_of_bowel_and_of_classes_that_nobody_knows(name):
    assert problem(*by_hand(-990, 20, name)) == ""


@pytest.mark.parametrize("name", ["colon", "right_lung"])
def test_d31_bowel_and_lungs_beside_the_body_are_refused(name):
    hu = np.full((40, 70, 40), -1000, np.int16)
    hu[5:35, 5:35, 5:35] = 20
    mask = np.zeros(hu.shape, bool)
    mask[10:30, 30:50, 10:30] = True                           # 5 of its 20 planes lie in the body
    found = problem(hu, np.diag([5.0, 5.0, 5.0, 1.0]), {name: mask})
    assert f"labels lie in air or outside the body: {name} (75%)" in found


def test_d31_a_crumb_decides_nothing(patient):
    crumb = np.zeros(patient.hu.shape, bool)
    crumb[0, 0, :3] = True                                     # in the air; 3 voxels of 1.7 ml
    assert problem(patient.hu, patient.affine, {"liver": crumb}) == ""


def test_d31_check_and_training_refuse_a_flipped_case_and_name_its_label(patient, tmp_path):
    shown = {name: (name,) for name in MAP}
    flipped = {name: mask[:, ::-1] for name, mask in patient.masks.items()}
    write_dataset(tmp_path / "data" / "Good", shown, {"good": patient})
    write_dataset(tmp_path / "data" / "Bad", shown, {"bad": patient._replace(masks=flipped)})
    result = check_root(tmp_path / "data", show=lambda text: None)
    problems = {row["case"]: [p for p in row["problems"] if p.startswith("error")]
                for block in result["datasets"] for row in block["cases"]}
    label = tmp_path / "data" / "Bad" / "labelsTr" / "bad.nii.gz"
    assert problems["good"] == [] and problems["bad"][0].startswith(f"error: {label}: the labels do not lie where")
    bad, good = find_datasets(tmp_path / "data")
    prepare(good, good.cases[0], Preprocessing(spacing_mm=(12.0, 12.0, 12.0)), tmp_path / "cache")
    with pytest.raises(DataError, match=f"{label}: the labels do not lie where the image shows their organs"):
        prepare(bad, bad.cases[0], Preprocessing(spacing_mm=(12.0, 12.0, 12.0)), tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train/AortaReport", "train/TotalSegExample", "train/TotalSegNeck",
                                  "train/TotalSegS0009", "train/TotalSegDicom"])
def test_d31_real_labels_fit_and_their_flips_front_to_back_do_not(shared_data, name):
    (dataset,) = find_datasets(shared_data / name)
    for case in dataset.cases:
        ct = read_ct(case.image)
        masks = dict(case_masks(dataset, case, ct))
        assert problem(ct.array, ct.affine, masks) == ""
        assert "front to back" in problem(ct.array, ct.affine, {n: m[:, ::-1] for n, m in masks.items()})
