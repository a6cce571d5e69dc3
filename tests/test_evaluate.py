"""The command `python -m uniseg.evaluate` from end to end.

Label maps are drawn by hand, so that every score can be worked out on paper.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from conftest import Patient, write_dataset
from uniseg import NOT_A_MEDICAL_DEVICE
from uniseg.evaluate import build_parser, main
from uniseg.evaluation.folder import write
from uniseg.evaluation.masks import open_masks
from uniseg.evaluation.readings import in_folder
from uniseg.evaluation.rules import Rules, parse_tolerance
from uniseg.imaging.volume import write_volume
from uniseg.phantom import make_phantom
from uniseg.taxonomy import BY_NAME, NAMES

ROOT = Path(__file__).resolve().parents[1]
AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])        # a voxel is 1 ml
SHAPE = (12, 6, 6)
LIVER = BY_NAME["liver"].index


def drawn(**boxes):
    """A label map in which each class is a run of voxels `start:stop` along one line of the first axis.

    Later classes cover earlier ones.
    """
    labels = np.zeros(SHAPE, np.uint8)
    for name, (start, stop) in boxes.items():
        labels[start:stop, 2, 2] = BY_NAME[name].index
    return labels


def save(path, labels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, labels, affine)
    return path


def save_result(folder, case, labels, classes):
    """What uniseg.infer writes for a label map: CASE_seg.nii.gz and the classes of its JSON."""
    save(folder / f"{case}_seg.nii.gz", labels)
    numbers = {n: i + 33 for i, n in enumerate(n for n in classes if n not in BY_NAME)}
    content = {"classes": {n: {"label": BY_NAME[n].index if n in BY_NAME else numbers[n]} for n in classes}}
    (folder / f"{case}_seg.json").write_text(json.dumps(content))


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Run the command in tmp_path: (rows by case and class, summary, what was printed)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, out="evaluation"):
        assert main([*map(str, arguments), "--out", out, "--bootstrap", "50"]) == code, capsys.readouterr().err
        with open(Path(out) / "cases.csv", newline="") as file:
            rows = {(row["case"], row["class"]): row for row in csv.DictReader(file)}
        return rows, json.loads((Path(out) / "summary.json").read_text()), capsys.readouterr().out
    return run


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command, which refuses: its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=2):
        assert main([str(a) for a in arguments]) == code
        [line] = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("uniseg: error: ")
        return line.removeprefix("uniseg: error: ")
    return run


@pytest.fixture
def two_cases(tmp_path):
    """Two cases as plain label maps, references and predictions. Liver: DSC 2*3/(4+4) = 0.75 and 2*4/(4+4) = 1."""
    save(tmp_path / "ref" / "a.nii.gz", drawn(liver=(0, 4), spleen=(6, 8)))
    save(tmp_path / "ref" / "b.nii.gz", drawn(liver=(0, 4)))
    save(tmp_path / "pred" / "a.nii.gz", drawn(liver=(1, 5)))
    save(tmp_path / "pred" / "b.nii.gz", drawn(liver=(0, 4), spleen=(6, 8)))
    return tmp_path


# --------------------------------------------------------------------------------------------------- what is computed

def test_scores_worked_out_by_hand_reach_table_csv_and_json(two_cases, evaluate):
    rows, summary, printed = evaluate("--pred", "pred", "--ref", "ref")
    assert float(rows["a", "liver"]["dice"]) == 0.75 and float(rows["b", "liver"]["dice"]) == 1
    assert rows["a", "liver"]["reference_voxels"] == "4" and rows["a", "liver"]["predicted_ml"] == "4.0"
    assert rows["a", "liver"]["tolerance_mm"] == "7.0"                                 # Table 3's, of taxonomy.py
    liver = summary["classes"]["liver"]
    assert (liver["present"], liver["dice_mean"]) == (2, 0.875)
    assert liver["dice_ci"] == [0.75, 1.0]  # 4 resamples: (a,a), (a,b), (b,a), (b,b)
    line = next(line for line in printed.splitlines() if line.startswith("liver"))
    assert line.split()[:5] == ["liver", "2", "0.875", "[0.750,", "1.000]"]
    assert max(map(len, printed.splitlines())) <= 130 and NOT_A_MEDICAL_DEVICE in printed
    assert summary["disclaimer"] == NOT_A_MEDICAL_DEVICE and summary["cases"] == 2 and summary["versions"]["uniseg"]


def test_present_and_missed_is_zero_absent_and_predicted_is_a_false_positive_without_dice(two_cases, evaluate):
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref")
    missed, false = rows["a", "spleen"], rows["b", "spleen"]
    assert (missed["dice"], missed["nsd"], missed["hd95_mm"], missed["found"]) == ("0.0", "0.0", "inf", "0")
    assert (false["dice"], false["nsd"], false["hd95_mm"], false["present"], false["found"]) == ("", "", "", "0", "1")
    spleen = summary["classes"]["spleen"]
    assert (spleen["present"], spleen["absent"], spleen["false_positives"]) == (1, 1, 1)
    # one case: no interval
    assert (spleen["hd95_infinite"], spleen["hd95_median_mm"], spleen["dice_ci"]) == (1, None, None)
    assert summary["groups"]["organs"]["dice_mean"] == (0.875 + 0) / 2


@pytest.mark.parametrize("axes", ("LPS", "SRA", "AIL"))
def test_a_prediction_stored_along_other_axes_scores_the_same(two_cases, evaluate, axes):
    import nibabel as nib

    labels = drawn(liver=(1, 5))
    ornt = nib.orientations.axcodes2ornt(axes)
    there = nib.orientations.ornt_transform(nib.orientations.io_orientation(AFFINE), ornt)
    stored = nib.orientations.apply_orientation(labels, there)
    save(two_cases / "pred" / "a.nii.gz", stored, AFFINE @ nib.orientations.inv_ornt_aff(there, labels.shape))
    rows, _, _ = evaluate("--pred", "pred", "--ref", "ref")
    assert float(rows["a", "liver"]["dice"]) == 0.75


def test_a_class_that_no_plain_reference_has_is_not_annotated_unless_it_is_named(two_cases, evaluate):
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref")
    assert {name for _, name in rows} == {"liver", "spleen"} and "30 classes of Table 2" in summary["notes"][-1]
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref", "--classes", "liver,IVC", out="named")
    assert {name for _, name in rows} == {"liver", "postcava"}
    assert summary["classes"]["postcava"]["absent"] == 2


# ----------------------------------------------------------------------------------------------------- forms of input

def test_a_tumour_of_a_label_map_is_part_of_its_organ_and_a_kidneys_of_the_kidney_of_its_side(tmp_path):
    labels = drawn(left_kidney=(0, 4), right_kidney=(7, 11), kidney_tumor=(9, 12), liver=(5, 6))
    save(tmp_path / "a.nii.gz", labels)
    _, mask_of = open_masks(in_folder(tmp_path)["a"])
    assert mask_of("right_kidney")[:, 2, 2].nonzero()[0].tolist() == [7, 8, 9, 10, 11]
    assert mask_of("left_kidney").sum() == 4 and mask_of("kidney_tumor").sum() == 3 and mask_of("liver").sum() == 1


def test_results_of_infer_with_masks_keep_overlaps_and_win_over_the_label_map(tmp_path, evaluate):
    save(tmp_path / "ref" / "a" / "liver.nii.gz", (drawn(liver=(0, 4)) > 0).astype(np.uint8))
    save(tmp_path / "ref" / "a" / "spleen.nii.gz", (drawn(liver=(2, 4)) > 0).astype(np.uint8))      # overlaps the liver
    save(tmp_path / "ref" / "a" / "ct.nii.gz", drawn())  # no class: left alone
    save_result(tmp_path / "pred", "a", drawn(liver=(0, 2), spleen=(2, 4)), ("liver", "spleen"))
    rows, _, _ = evaluate("--pred", "pred", "--ref", "ref")
    assert round(float(rows["a", "liver"]["dice"]), 3) == round(2 * 2 / (2 + 4), 3)
    for name, labels in (("liver", drawn(liver=(0, 4))), ("spleen", drawn(liver=(2, 4)))):
        save(tmp_path / "pred" / "a_seg" / f"{name}.nii.gz", (labels > 0).astype(np.uint8))
    rows, _, _ = evaluate("--pred", "pred", "--ref", "ref", "--overwrite")
    assert [float(rows["a", name]["dice"]) for name in ("liver", "spleen")] == [1, 1]


def test_a_class_that_the_json_of_a_result_does_not_name_is_not_scored_and_said(two_cases, evaluate):
    for case, labels in (("a", drawn(liver=(1, 5))), ("b", drawn(liver=(0, 4)))):
        save_result(two_cases / "results", case, labels, ("liver", "aorta"))
    rows, summary, _ = evaluate("--pred", "results", "--ref", "ref")
    assert {name for _, name in rows} == {"liver"}
    assert "not in the predictions, not scored: spleen (2 cases)" in summary["notes"][1]


def test_beside_results_cts_are_left_alone_and_so_are_masks_that_the_json_of_a_result_does_not_name(two_cases,
                                                                                                    evaluate):
    for case, labels in (("a", drawn(liver=(1, 5))), ("b", drawn(liver=(0, 4)))):
        save(two_cases / "results" / f"{case}.nii.gz", np.full(SHAPE, -1000, np.int16))
        save_result(two_cases / "results", case, labels, ("liver",))
        for name in ("liver", "spleen"):  # the spleen's is of a former run with other weights
            save(two_cases / "results" / f"{case}_seg" / f"{name}.nii.gz", (labels > 0).astype(np.uint8))
    rows, _, _ = evaluate("--pred", "results", "--ref", "ref")
    assert {key: row["dice"] for key, row in rows.items()} == {("a", "liver"): "0.75", ("b", "liver"): "1.0"}


def test_two_predictions_for_one_case_are_refused(two_cases, refused):
    save(two_cases / "pred" / "a_0000.nii.gz", drawn())
    line = refused("--pred", "pred", "--ref", "ref")
    assert line == "pred/a_0000.nii.gz: the same case as pred/a.nii.gz. Keep one of them."


def test_predictions_of_a_tool_that_writes_no_file_for_an_empty_class_count_as_empty(two_cases, evaluate):
    save(two_cases / "tool" / "a" / "liver.nii.gz", (drawn(liver=(0, 4)) > 0).astype(np.uint8))
    save(two_cases / "tool" / "b" / "liver.nii.gz", (drawn(liver=(0, 4)) > 0).astype(np.uint8))
    save(two_cases / "tool" / "b" / "spleen.nii.gz", drawn())
    rows, _, _ = evaluate("--pred", "tool", "--ref", "ref")
    assert rows["a", "spleen"]["dice"] == "0.0"


def test_classes_beyond_table_2_are_found_by_the_names_of_the_json(tmp_path, evaluate):
    labels = drawn(liver=(0, 4))
    labels[6:8, 2, 2] = 33
    for folder in ("ref", "pred"):
        save_result(tmp_path / folder, "a", labels, ("liver", "superior_mesenteric_artery"))
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref")
    row = rows["a", "superior_mesenteric_artery"]
    assert (row["dice"], row["tolerance_mm"]) == ("1.0", "2.0")
    assert list(summary["classes"]) == ["liver", "superior_mesenteric_artery"]


@pytest.mark.slow
def test_a_dataset_s_label_is_the_class_beyond_table_2_that_the_predictions_name(tmp_path, patients, evaluate):
    write_dataset(tmp_path / "Set", {"Superior mesenteric artery": ("aorta",), "left elbow": ("rectum",)},
                  {"c0": patients[0]})
    labels = patients[0].masks["aorta"].astype(np.uint8) * 33
    save(tmp_path / "pred" / "c0_seg.nii.gz", labels, patients[0].affine)
    content = {"classes": {"superior_mesenteric_artery": {"label": 33}}}
    (tmp_path / "pred" / "c0_seg.json").write_text(json.dumps(content))
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "Set")
    assert {key: row["dice"] for key, row in rows.items()} == {("c0", "superior_mesenteric_artery"): "1.0"}
    assert "label 'left elbow' is left out" in summary["notes"][0]


def test_an_nnunet_folder_of_predictions_takes_its_numbers_from_the_dataset_json_beside_it(two_cases, evaluate):
    for case, run in (("a", (1, 5)), ("b", (0, 4))):
        save(two_cases / "nnunet" / f"{case}.nii.gz", (drawn(liver=run) > 0).astype(np.uint8))
    (two_cases / "nnunet" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    rows, _, _ = evaluate("--pred", "nnunet", "--ref", "ref")
    assert [float(rows[case, "liver"]["dice"]) for case in "ab"] == [0.75, 1]


def nnunet_reference(folder, **labels):
    """labelsTr of a dataset whose dataset.json numbers the liver 1 and the spleen 2; a and b as in two_cases."""
    for case, boxes in (("a", {"liver": (0, 4), "spleen": (6, 8)}), ("b", {"liver": (0, 4)})):
        labels_of_table_2 = drawn(**boxes)
        save(folder / "labelsTr" / f"{case}.nii.gz",
             ((labels_of_table_2 == LIVER) + 2 * (labels_of_table_2 == BY_NAME["spleen"].index)).astype(np.uint8))
    content = {"labels": labels or {"background": 0, "liver": 1, "spleen": 2}}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_d32_labels_tr_takes_its_numbers_from_the_dataset_json_one_folder_up(two_cases, evaluate):
    """By Table 2 the 1 would be a spleen and the 2 a right kidney; the predictions have its numbers."""
    nnunet_reference(two_cases / "Set")
    rows, summary, printed = evaluate("--pred", "pred", "--ref", "Set/labelsTr", "--classes", "liver")
    assert [float(rows[case, "liver"]["dice"]) for case in "ab"] == [0.75, 1]
    line = f"label numbers: references by {two_cases / 'Set' / 'dataset.json'}; predictions by Table 2"
    assert line in summary["notes"] and f"note: {line}" in printed


def test_d32_an_option_says_what_the_numbers_mean(two_cases, evaluate, refused):
    nnunet_reference(two_cases / "Set")
    both = ("--ref", "Set/labelsTr", "--pred", "Set/labelsTr")
    rows, summary, _ = evaluate(*both, "--ref-numbers", "table-2", "--pred-numbers", "table-2")
    assert {name for _, name in rows} >= {"spleen", "right_kidney"}
    assert summary["notes"][0] == "label numbers: references by Table 2; predictions by Table 2"
    for given in ("Set", "Set/dataset.json"):
        rows, _, _ = evaluate("--ref", "Set/labelsTr", "--pred", "Set/labelsTr", "--pred-numbers", given, "--overwrite")
        assert {name for _, name in rows} == {"liver", "spleen"} and rows["a", "liver"]["dice"] == "1.0"
    assert "nowhere: no such file" in refused(*both, "--ref-numbers", "nowhere", "--overwrite")


def test_d32_a_dataset_json_one_folder_up_that_cannot_be_read_is_refused_with_the_option(two_cases, refused):
    nnunet_reference(two_cases / "Set")
    (two_cases / "Set" / "dataset.json").write_text("{")
    message = refused("--pred", "pred", "--ref", "Set/labelsTr")
    assert "dataset.json: not JSON" in message and "Or say what the numbers in Set/labelsTr mean: --ref-num" in message


def test_d30_a_case_with_ignored_voxels_is_not_scored_and_says_so(two_cases, capsys, monkeypatch):
    monkeypatch.chdir(two_cases)
    nnunet_reference(two_cases / "Set", background=0, liver=1, ignore=2)      # case a has voxels of 2
    assert main(["--pred", "pred", "--ref", "Set/labelsTr", "--bootstrap", "0"]) == 1
    assert 'Set/labelsTr/a.nii.gz: has voxels with the label "ignore"' in capsys.readouterr().err
    assert json.loads(Path("evaluation/summary.json").read_text())["failed"] == ["a"]


def test_d28_references_that_differ_by_case_only_are_refused(two_cases, refused):
    save(two_cases / "ref" / "A.nii.gz", drawn(liver=(0, 4)))
    assert "ref/a.nii.gz: the same case as ref/A.nii.gz" in refused("--pred", "pred", "--ref", "ref")


@pytest.mark.parametrize("content, said", [
    ('{"fold": 0, "folds": 5, "last": {"cases": {"S/a": {"liver": 5}}}}', "not the validation.json of a training run"),
    ('{"fold": 0, "folds": 5, "last": {"cases": {"S/a": [1]}}}', "not the validation.json"),
    ('{"folds": 5, "last": {"cases": {}}}', "fold None of 5 are no numbers"),
    ('{"last": {"cases": {}}, "last": {"cases": {}}}', "the key 'last' stands twice"),
    ("[1]", "no scores of the last epoch"), ("{", "not JSON")])
def test_d01_a_validation_json_that_is_none_is_refused(two_cases, refused, content, said):
    (two_cases / "run").mkdir()
    (two_cases / "run" / "validation.json").write_text(content)
    assert said in refused("--read", "run")


@pytest.fixture(scope="module")
def patients():
    return [Patient(*make_phantom((12.0, 12.0, 12.0), seed=seed)) for seed in range(3)]


@pytest.mark.slow
def test_a_dataset_is_scored_only_where_it_is_annotated_and_its_merged_pairs_are_split(tmp_path, patients, evaluate):
    """The prediction is the phantom's own masks in one label map, in which the tumour covers its kidney."""
    write_dataset(tmp_path / "Kidneys", {"kidneys": ("right_kidney", "left_kidney"), "kidney tumor": ("kidney_tumor",)},
                  {"k0": patients[0], "k1": patients[1]}, nnunet=True)
    for i in range(2):
        masks, labels = patients[i].masks, np.zeros(patients[i].hu.shape, np.uint8)
        for name in NAMES:
            if name in masks:
                labels[masks[name]] = BY_NAME[name].index
        save(tmp_path / "pred" / f"k{i}_0000_seg.nii.gz", labels, patients[i].affine)
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "Kidneys")
    assert {name for _, name in rows} == {"right_kidney", "left_kidney", "kidney_tumor"}
    assert rows["k0", "kidney_tumor"]["dataset"] == "Kidneys"
    assert {row["dice"] for row in rows.values() if row["dice"]} == {"1.0"}


def test_one_class_of_two_datasets_is_looked_for_in_the_folders_of_their_names(tmp_path, patients, evaluate, refused):
    for name in ("One", "Two"):
        write_dataset(tmp_path / "root" / name, {"liver": ("liver",)}, {"c0": patients[0]})
    labels = patients[0].masks["liver"].astype(np.uint8) * LIVER
    save(tmp_path / "pred" / "c0.nii.gz", labels, patients[0].affine)
    assert "may be One/c0 or Two/c0. Put the predictions of each dataset" in refused("--pred", "pred", "--ref", "root")
    for name in ("One", "Two"):
        save(tmp_path / "pred" / name / "c0.nii.gz", labels, patients[0].affine)
    _, summary, _ = evaluate("--pred", "pred", "--ref", "root")
    assert summary["cases"] == 2 and summary["classes"]["liver"]["dice_mean"] == 1


def test_both_sides_in_one_label_of_a_prediction_take_a_ct_to_be_split(two_cases, evaluate, refused):
    save(two_cases / "merged" / "a.nii.gz", np.ones(SHAPE, np.uint8))
    save(two_cases / "merged" / "b.nii.gz", np.ones(SHAPE, np.uint8))
    (two_cases / "merged" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "kidneys": 1}}))
    assert main(["--pred", "merged", "--ref", "ref", "--classes", "right_kidney"]) == 1
    assert not Path("evaluation").exists()


# ------------------------------------------------------------------------------------------------ the rules of scoring

@pytest.mark.parametrize("text, expected", [
    (None, {}), ("3", {"": 3.0}), ("liver=5,ivc=4.5", {"liver": 5.0, "postcava": 4.5}),
    ("kidneys=1", {"right_kidney": 1.0, "left_kidney": 1.0}),
    ("decathlon", {"liver": 7, "liver_tumor": 7, "lung_tumor": 2, "pancreas": 5, "pancreatic_tumor": 5,
                   "hepatic_vessel": 3, "hepatic_vessel_tumor": 3, "spleen": 3, "colon_tumor": 4})])
def test_the_tolerance_is_given_for_all_classes_or_for_some_or_as_the_decathlon_has_it(text, expected):
    assert parse_tolerance(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "liver", "liver=", "2,liver=3", "lever=2"])
def test_a_tolerance_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        parse_tolerance(text)


def test_in_a_task_of_the_decathlon_organ_and_tumour_have_the_tasks_tolerance():
    """Task10 labels the tumour alone, so that the colon's 4 mm are its tumour's."""
    rules = Rules()
    assert [rules.tolerance_of(name, "MSD Task03 Liver") for name in ("liver", "liver_tumor")] == [7, 7]
    assert [rules.tolerance_of(name, "MSD Task07 Pancreas") for name in ("pancreas", "pancreatic_tumor")] == [5, 5]
    assert rules.tolerance_of("colon_tumor", "MSD Task10 Colon") == 4
    assert [rules.tolerance_of(name) for name in ("liver", "liver_tumor", "colon_tumor", "heart")] == [7, 2, 2, 2]
    assert Rules(tolerance_mm={"": 1.0}).tolerance_of("liver", "MSD Task03 Liver") == 1         # the option comes first
    assert Rules(tolerance_mm={"liver": 1.0}).tolerance_of("liver_tumor", "MSD Task03 Liver") == 7


def test_the_cases_that_a_file_of_a_division_lets_validate_are_scored_alone(two_cases, evaluate, refused):
    two_cases.joinpath("root").mkdir()
    patient = Patient(*make_phantom((20.0, 20.0, 20.0)))
    write_dataset(two_cases / "root" / "Set", {"liver": ("liver",)}, {"a": patient, "b": patient})
    for case in "ab":
        save(two_cases / "found" / f"{case}.nii.gz", np.where(patient.masks["liver"], LIVER, 0).astype(np.uint8),
             patient.affine)
    (two_cases / "split.json").write_text(json.dumps({"training": ["Set/a"], "validation": ["Set/b"]}))
    rows, summary, _ = evaluate("--pred", "found", "--ref", "root", "--pred-numbers", "table-2", "--split",
                                "split.json")
    assert {case for case, _ in rows} == {"b"} and summary["references"] == 1 and float(rows["b", "liver"]["dice"]) == 1
    assert "both divide the cases" in refused("--pred", "found", "--ref", "root", "--out", "x", "--split", "split.json",
                                              "--fold", 0, "--folds", 2)


def test_the_option_sets_the_tolerance_of_nsd(two_cases, evaluate):
    """In case a, the liver is predicted one voxel of 10 mm further on: within 25 mm every surface agrees."""
    for options, mm, agrees in (((), "7.0", False), (("--tolerance", "liver=25"), "25.0", True)):
        rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref", *options, out=f"out{mm}")
        assert (rows["a", "liver"]["tolerance_mm"], rows["a", "spleen"]["tolerance_mm"]) == (mm, "3.0")
        assert (rows["a", "liver"]["nsd"] == "1.0") == agrees
    assert summary["settings"]["tolerance"] == "liver=25"


def test_organs_are_scored_with_their_tumours_or_as_a_label_map_has_them(tmp_path, evaluate):
    """A row of six voxels: the liver is all of them, its tumour the last two; the prediction has one voxel of tumour.

    As one organ, all six agree. As drawn, the reference's liver has voxels 0 to 3, the prediction's 0 to 3 and 5:
    2 * 4 / (4 + 5). A cyst that the reference does not annotate takes nothing away.
    """
    save_result(tmp_path / "ref", "a", drawn(liver=(0, 6), liver_tumor=(4, 6)), ("liver", "liver_tumor"))
    predicted = {"liver": (0, 6), "liver_tumor": (4, 5), "hepatic_vessel_tumor": (0, 1)}
    save_result(tmp_path / "pred", "a", drawn(**predicted), tuple(predicted))
    for options, expected in (((), 1), (("--organs", "without-tumours"), 8 / 9)):
        rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref", *options, out=f"out{len(options)}")
        assert float(rows["a", "liver"]["dice"]) == pytest.approx(expected)
        assert float(rows["a", "liver_tumor"]["dice"]) == pytest.approx(2 / 3)
        assert summary["settings"]["organs"] == (options[1] if options else "whole")


# ---------------------------------------------------------------------------------------------------------- detection

def test_healthy_patients_count_every_tumour_of_the_model_as_absent_and_give_the_specificity(tmp_path, evaluate):
    """Of two patients with a tumour, one is found: 50 %. Of four without, one is a false alarm: 75 %; together 60 %."""
    classes = ("liver", "liver_tumor", "kidney_cyst")
    for case, found in (("a", True), ("b", False)):
        save_result(tmp_path / "ref", case, drawn(liver=(0, 4), liver_tumor=(2, 3)), classes)
        save_result(tmp_path / "pred", case, drawn(liver=(0, 4), **({"liver_tumor": (2, 3)} if found else {})), classes)
    for case in "wxyz":
        spot = {"liver_tumor": (1, 2)} if case == "w" else {}
        save_result(tmp_path / "normal", case, drawn(liver=(0, 4), kidney_cyst=(9, 10), **spot), classes)
    rows, summary, printed = evaluate("--pred", "pred", "--ref", "ref", "--healthy", "normal", "--tables")
    detection = summary["classes"]["liver_tumor"]["detection"]
    assert (detection["sensitivity"], detection["specificity"]) == (0.5, 0.75) and round(detection["harmonic_mean"],
                                                                                         9) == 0.6
    assert ("w", "kidney_cyst") not in rows and ("w", "liver") not in rows  # cysts are common, and no tumour
    assert (summary["cases"], summary["healthy"]) == (2, 4)
    ours = printed.split("Table 6.")[1].split("ours ")[1].split("\n")[0].split()
    assert ours == ["50.00", "75.00", "60.00"] + ["-"] * 6
    assert summary["classes"]["liver_tumor"]["lesions"] == {"tp": 1, "fn": 1, "fp": 1}


# D37
def test_healthy_patients_count_only_for_the_tumours_that_they_are_known_to_lack(tmp_path, evaluate, refused):
    """The paper takes CHAOS for liver and kidney, Pancreas-CT for the pancreas. Both have a patient called `w`."""
    tumours = ("liver_tumor", "kidney_tumor", "pancreatic_tumor")
    save_result(tmp_path / "ref", "a", drawn(liver=(0, 4), liver_tumor=(2, 3)), ("liver", *tumours))
    save_result(tmp_path / "pred", "a", drawn(liver=(0, 4), liver_tumor=(2, 3)), ("liver", *tumours))
    for folder, case, spot in (("chaos", "w", "liver_tumor"), ("chaos", "x", "pancreatic_tumor"), ("nih", "w", None)):
        spots = {spot: (1, 2)} if spot else {}
        save_result(tmp_path / folder, case, drawn(liver=(0, 4), **spots), ("liver", *tumours))
    both = ("--healthy", "liver_tumor,kidney_tumor=chaos", "--healthy", "pancreatic_tumor=nih")
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref", *both)
    absent = {name: summary["classes"][name]["absent"] - (name != "liver_tumor") for name in tumours}     # less case a
    assert absent == {"liver_tumor": 2, "kidney_tumor": 2, "pancreatic_tumor": 1}
    assert summary["classes"]["liver_tumor"]["detection"]["specificity"] == 0.5
    assert summary["classes"]["pancreatic_tumor"]["detection"]["specificity"] == 1       # x is no patient for it
    assert (summary["cases"], summary["healthy"]) == (1, 3)
    assert summary["settings"]["healthy"] == ["liver_tumor,kidney_tumor=chaos", "pancreatic_tumor=nih"]
    _, summary, _ = evaluate("--pred", "pred", "--ref", "ref", *both, "--classes", "liver,kidney_tumor", out="fewer")
    assert {name: scores["absent"] for name, scores in summary["classes"].items()} == {"liver": 0, "kidney_tumor": 3}
    assert "share their name" in refused("--pred", "pred", "--ref", "ref", "--out", "x", "--healthy",
                                         "liver_tumor=chaos", "--healthy", "kidney_tumor=chaos")
    with pytest.raises(SystemExit, match="2"):
        main(["--pred", "pred", "--ref", "ref", "--healthy", "liver=chaos"])


def test_a_label_map_that_names_no_tumour_gives_no_specificity_unless_the_tumours_are_named(two_cases, evaluate,
                                                                                            refused):
    assert "does not say which tumours its model looks for" in refused("--pred", "pred", "--ref", "ref", "--healthy",
                                                                       "pred")
    save(two_cases / "normal" / "n.nii.gz", drawn(liver=(0, 4)))
    rows, summary, _ = evaluate("--pred", "pred", "--ref", "ref", "--healthy", "normal", "--classes",
                                "liver,liver_tumor")
    assert {key: row["dataset"] for key, row in rows.items() if key[0] == "n"} == {("n", "liver_tumor"): "healthy"}
    assert summary["classes"]["liver_tumor"]["detection"]["specificity"] == 1


def test_a_smallest_lesion_makes_a_spot_no_finding(tmp_path, evaluate):
    save_result(tmp_path / "ref", "a", drawn(liver=(0, 4)), ("liver", "liver_tumor"))
    # 2 voxels of 1 ml
    save_result(tmp_path / "pred", "a", drawn(liver=(0, 8), liver_tumor=(2, 4)), ("liver", "liver_tumor"))
    for least, found in ((0, "1"), (2, "1"), (2.5, "0")):
        rows, _, _ = evaluate("--pred", "pred", "--ref", "ref", "--min-lesion-ml", least, out=f"out{least}")
        assert rows["a", "liver_tumor"]["found"] == found


# -------------------------------------------------------------------------------------------------------- two readers

def test_mutual_dice_of_prediction_and_two_readers_as_in_section_4_7(two_cases, evaluate):
    save(two_cases / "second" / "a.nii.gz", drawn(liver=(2, 6)))  # DSC with the prediction 1:5 is 0.75, with 0:4 is 0.5
    save(two_cases / "second" / "b.nii.gz", drawn(liver=(0, 4)))
    rows, summary, printed = evaluate("--pred", "pred", "--ref", "ref", "--against", "second")
    assert (rows["a", "liver"]["dice_reader2"], rows["a", "liver"]["dice_readers"]) == ("0.75", "0.5")
    liver = summary["readers"]["liver"]
    pairs = ("prediction_reader1", "prediction_reader2", "reader1_reader2")
    assert [liver[pair]["mean"] for pair in pairs] == [0.875, 0.875, 0.75]
    assert round(liver["reader1_reader2"]["sd"], 6) == round(np.sqrt(2 * 0.25 ** 2), 6)
    assert "spleen" not in summary["readers"]                                # the second reader drew none in any case
    assert "AI <-> reader 1" in printed


def test_a_dataset_may_be_the_second_reader(tmp_path, patients, evaluate):
    patient = patients[0]
    for name in ("First", "Second"):
        write_dataset(tmp_path / name, {"liver": ("liver",), "spleen": ("spleen",)}, {"c0": patient})
    save(tmp_path / "pred" / "c0.nii.gz", patient.masks["liver"].astype(np.uint8) * LIVER, patient.affine)
    _, summary, _ = evaluate("--pred", "pred", "--ref", "First", "--against", "Second")
    assert summary["readers"]["liver"]["prediction_reader2"]["mean"] == 1
    assert summary["readers"]["liver"]["reader1_reader2"]["mean"] == 1


# ---------------------------------------------------------------------------------------------------------- two results

def seven_cases(tmp_path):
    """Seven cases: the first result misses a voxel of four in every liver, the second none in six and two in one."""
    for i in range(7):
        save(tmp_path / "ref" / f"c{i}.nii.gz", drawn(liver=(0, 4), spleen=(6, 8)))
        save(tmp_path / "one" / f"c{i}.nii.gz", drawn(liver=(0, 3), spleen=(6, 8)))
        save(tmp_path / "two" / f"c{i}.nii.gz", drawn(liver=(0, 4 if i else 2), spleen=(6, 8)))


@pytest.mark.slow
def test_two_evaluations_are_compared_patient_by_patient_and_the_assumptions_are_said(tmp_path, evaluate, refused):
    seven_cases(tmp_path)
    evaluate("--pred", "one", "--ref", "ref", out="first")
    _, summary, printed = evaluate("--pred", "two", "--ref", "ref", "--compare", "first", out="second")
    liver = summary["comparison"]["classes"]["liver"]
    differences = [2 * 2 / 6 - 6 / 7] + [1 - 6 / 7] * 6
    assert liver["patients"] == 7 and np.isclose(liver["mean"], np.mean(differences))
    assert np.isclose(liver["p"], wilcoxon(differences).pvalue)
    assert summary["comparison"]["classes"]["spleen"]["p"] is None            # all differences are 0
    assert liver["p_holm"] == liver["p"]                                      # one test was made
    assert "paired by patient" in printed and "symmetric" in printed and "independent" in printed
    assert max(map(len, printed.splitlines())) <= 130
    _, again, _ = evaluate("--read", "second", "--compare", "first", out="read")        # nothing is scored anew
    assert np.isclose(again["comparison"]["classes"]["liver"]["mean"], liver["mean"])
    other = other_evaluation(tmp_path)
    assert "no class of a case was scored in both" in refused("--read", other, "--compare", "first")
    _, alone, _ = evaluate("--pred", "two", "--ref", "ref", "--compare", other, out="third")  # what was scored is kept
    assert "nothing is compared" in alone["notes"][-1] and "comparison" not in alone


def other_evaluation(tmp_path):
    write(tmp_path / "other", [{"dataset": "", "case": "z", "class": "liver", "kind": "organ", "present": True,
                                                  "found": True, "dice": 0.5, "reference_voxels": 1,
                                                  "predicted_voxels": 1}], {})
    return tmp_path / "other"


# -------------------------------------------------------------------------------------------------------------- folds

def write_run(folder, fold, folds=5, cases=None):
    """A training run's validation.json; case c of fold k has Dice k / 10 in the liver."""
    folder.mkdir()
    scored = {f"Set/{case}": {"liver": {"dice": fold / 10, "predicted": 5, "reference": 5}} for case in cases
              or (f"c{fold}",)}
    content = {"fold": fold, "folds": folds, "best": None, "last": {"epoch": 3, "cases": scored}}
    (folder / "validation.json").write_text(json.dumps(content))
    return folder


def test_five_folds_give_the_mean_over_held_out_cases_and_over_folds(tmp_path, evaluate):
    """Dice 0, 0.1, 0.2, 0.3 of a case each and 0.4 of two: the mean of six cases is 1.4 / 6, of five folds 0.2."""
    runs = [write_run(tmp_path / f"run{k}", k, cases=("c4", "c5") if k == 4 else None) for k in range(5)]
    _, summary, printed = evaluate("--read", *runs)
    assert np.isclose(summary["classes"]["liver"]["dice_mean"], 1.4 / 6)
    fold = summary["folds"]["liver"]
    assert fold["folds"] == 5 and np.isclose(fold["mean"], 0.2) and np.isclose(fold["sd"], np.sqrt(0.025))
    assert summary["notes"] == [] and "mean of folds" in printed


def test_a_missing_fold_is_said_a_case_in_two_folds_and_folds_of_other_divisions_are_refused(tmp_path, evaluate,
                                                                                             refused):
    runs = [write_run(tmp_path / f"run{k}", k) for k in range(4)]
    _, summary, _ = evaluate("--read", *runs)
    assert summary["notes"] == ["fold 4 is missing: means are not over all cases"]
    assert "case Set/c1 is in" in refused("--read", *runs, write_run(tmp_path / "twice", 4, cases=("c1",)))
    assert "different divisions (3, 5 folds)" in refused("--read", *runs,
                                                         write_run(tmp_path / "third", 2, folds=3, cases=("x",)))
    assert "holds neither cases.csv nor validation.json" in refused("--read", tmp_path)


def test_a_real_run_is_read(finished, evaluate):
    rows, summary, _ = evaluate("--read", finished)
    held = json.loads((finished / "validation.json").read_text())["last"]["cases"]
    assert summary["cases"] == len(held) and len(rows) == sum(map(len, held.values()))


def test_an_evaluation_read_again_gives_the_same_numbers(two_cases, evaluate):
    _, before, _ = evaluate("--pred", "pred", "--ref", "ref")
    _, after, _ = evaluate("--read", "evaluation", out="again")
    assert after["classes"] == before["classes"] and after["groups"] == before["groups"]


# --------------------------------------------------------------------------------------------- segmenting and scoring

def test_weights_and_a_data_root_are_segmented_once_and_scored(finished, phantom_root, evaluate, refused):
    options = ("--weights", finished / "best.pt", "--data-root", phantom_root, "--device", "cpu")
    rows, summary, _ = evaluate(*options, "--fold", 1, "--folds", 3)
    held = set(json.loads((finished / "validation.json").read_text())["last"]["cases"])
    assert {f"{row['dataset']}/{case}" for (case, _), row in rows.items()} == held  # those training held out
    assert summary["weights"]["file"] == "best.pt" and all(row["fold"] == "1" for row in rows.values())
    made = {f: f.stat().st_mtime_ns for f in Path("evaluation/predictions").rglob("*.nii.gz")}
    assert made
    again, _, _ = evaluate(*options, "--fold", 1, "--folds", 3, "--overwrite")
    assert again == rows and {f: f.stat().st_mtime_ns for f in made} == made
    (Path("evaluation") / "summary.json").unlink()
    (Path("evaluation") / "cases.csv").unlink()
    assert "was made with other weights or settings" in refused(*options, "--fold", 1, "--folds", 3, "--no-postprocess")


def test_bf16_on_a_processor_that_imitates_it_is_a_warning_before_any_work(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: False)
    assert main(["--weights", str(finished / "best.pt"), "--data-root", str(tmp_path / "nowhere"), "--device", "cpu",
                 "--precision", "bf16"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("uniseg: warning: --precision bf16: this processor has no instructions for it")
    assert "nowhere: no such folder" in error


@pytest.mark.slow
def test_healthy_cts_are_segmented_without_a_label(finished, phantom_root, evaluate, tmp_path, patients):
    save(tmp_path / "normal" / "n0.nii.gz", patients[2].hu, patients[2].affine)
    rows, summary, _ = evaluate("--weights", finished / "best.pt", "--data-root", phantom_root / "Abdomen", "--healthy",
                                "normal",
                                "--device", "cpu")
    names = {name for case, name in rows if case == "n0"}
    assert summary["healthy"] == 1 and {BY_NAME[name].kind for name in names} == {"tumour"}
    assert rows["n0", "kidney_tumor"]["present"] == "0" and rows["n0", "kidney_tumor"]["dataset"] == "healthy"
    save(tmp_path / "other" / "n0.nii.gz", patients[2].hu, patients[2].affine)             # two folders, one file name
    rows, summary, _ = evaluate("--weights", finished / "best.pt", "--data-root", phantom_root / "Abdomen", "--healthy",
                                "kidney_tumor=normal", "--healthy", "liver_tumor=other", "--device", "cpu", out="both")
    assert summary["healthy"] == 2 and rows["n0", "kidney_tumor"]["dataset"] == "healthy normal"
    assert {name for case, name in rows if case == "n0"} <= {"kidney_tumor", "liver_tumor"}
    assert [f.parent.name for f in sorted(Path("both").glob("healthy/*/n0_seg.nii.gz"))] == ["normal", "other"]


@pytest.mark.slow
def test_a_case_that_cannot_be_segmented_does_not_stop_the_others_and_ends_with_1(finished, tmp_path, patients,
                                                                                  evaluate):
    write_dataset(tmp_path / "Set", {"liver": ("liver",)}, {"c0": patients[0], "c1": patients[1]})
    options = ("--weights", finished / "best.pt", "--data-root", "Set", "--device", "cpu")
    assert {case for case, _ in evaluate(*options)[0]} == {"c0", "c1"}
    (tmp_path / "Set" / "imagesTr" / "c1.nii.gz").write_bytes(b"no CT")
    rows, summary, printed = evaluate(*options, "--overwrite", "--no-postprocess", code=1)  # both are to be made again
    assert {case for case, _ in rows} == {"c0"} and summary["failed"] == ["Set/c1"] and "FAILED: Set/c1" in printed


# ----------------------------------------------------------------------------------------------------------- refusals

def test_cases_without_a_prediction_are_listed_or_left_out_when_asked(two_cases, evaluate, refused):
    (two_cases / "pred" / "b.nii.gz").unlink()
    assert refused("--pred", "pred", "--ref", "ref") == (
        "pred: no prediction for 1 (b) of 2 cases. Segment them, or give --allow-missing to score the others.")
    _, summary, printed = evaluate("--pred", "pred", "--ref", "ref", "--allow-missing")
    assert "no prediction for 1 (b) of 2 cases" in summary["notes"]
    assert "cases scored: 1, of 2 with a reference" in printed


def test_other_grids_values_and_broken_files_are_errors_of_that_case_in_one_line(two_cases, capsys, monkeypatch):
    monkeypatch.chdir(two_cases)
    for wrong, said in (((np.zeros((12, 6, 7), np.uint8), AFFINE), "shape (12, 6, 7) differs"),
                        ((drawn(), np.diag([10, 10, 11, 1.0])), "its affine places voxels up to"),
                        ((np.full(SHAPE, 77, np.uint8), AFFINE), "label values 77, which Table 2 does not have")):
        save(Path("pred/a.nii.gz"), *wrong)
        assert main(["--pred", "pred", "--ref", "ref", "--overwrite"]) == 1
        [line] = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("uniseg: error: pred/a.nii.gz: ") and said in line
        assert json.loads(Path("evaluation/summary.json").read_text())["failed"] == ["a"]                 # b was scored
    Path("pred/a.nii.gz").write_bytes(b"")
    assert main(["--pred", "pred", "--ref", "ref", "--overwrite"]) == 1
    assert "empty file" in capsys.readouterr().err


def test_d33_warnings_of_the_reader_are_printed_once_with_the_case_and_kept(tmp_path, evaluate, capsys):
    hu, masks, affine = make_phantom((20.0, 20.0, 20.0))
    write_dataset(tmp_path / "Set", {"liver": ("liver",)}, {"c0": Patient(hu.astype(np.int16) + 1024, masks, affine)})
    save(tmp_path / "pred" / "c0.nii.gz", (masks["liver"] * LIVER).astype(np.uint8), affine)
    _, summary, _ = evaluate("--pred", "pred", "--ref", "Set")
    (case, [text]), = summary["warnings"].items()
    assert case == "Set/c0" and "look like HU + 1024" in text


def test_a_json_that_is_no_result_is_refused(two_cases, refused):
    (two_cases / "pred" / "a.json").write_text("{")
    assert "a.json: not the JSON of a result" in refused("--pred", "pred", "--ref", "ref")


BOTH = ("--pred", "pred", "--ref", "ref")


@pytest.mark.slow
@pytest.mark.parametrize("options, said", [
    ((), "nothing to score: give one of"),
    (("--pred", "pred"), "--pred and --ref go together"),
    (("--ref", "ref"), "--pred and --ref go together"),
    ((*BOTH, "--read", "x"), "--pred with --ref and --read: give one of"),
    (("--pred", "pred", "--ref", "nowhere"), "nowhere: no such folder"),
    (("--pred", "nowhere", "--ref", "ref"), "nowhere: no such folder"),
    (("--data-root", "nowhere"), "nowhere: no such folder"),
    (("--data-root", "ref"), "ref: holds labels without CTs"),
    (("--data-root", "ref", "--weights", "nowhere.pt"), "nowhere.pt"),
    ((*BOTH, "--weights", "w"), "--weights: segments the cases of --data-root"),
    ((*BOTH, "--fold", 1), "give both"),
    ((*BOTH, "--fold", 5, "--folds", 5), "from 0 up to"),
    ((*BOTH, "--fold", 1, "--folds", 5), "ref holds no datasets"),
    ((*BOTH, "--classes", "lever"), "unknown class name 'lever'. Did you mean liver"),
    ((*BOTH, "--bootstrap", -1), "--bootstrap -1"),
    ((*BOTH, "--min-lesion-ml", "nan"), "--min-lesion-ml nan"),
    ((*BOTH, "--compare", "nowhere"), "nowhere: holds neither"),
    ((*BOTH, "--healthy", "nowhere"), "nowhere: no such folder"),
    ((*BOTH, "--healthy", "empty"), "empty: no prediction in it"),
    ((*BOTH, "--against", "empty"), "empty: no dataset.json in it"),
    ((*BOTH, "--against", "other"), "other: no label of a case of ref"),
    (("--pred", "empty", "--ref", "ref"), "no prediction for 2 (a, b)"),
    (("--pred", "pred", "--ref", "empty"), "empty: no dataset.json in it"),
    (("--read", "x", "--healthy", "y"), "reads scores that exist and computes none"),
    ((*BOTH, "--out", "ref/a.nii.gz"), "nothing can be written in ref/a.nii.gz"),
    ((*BOTH, "--out", "ref/a.nii.gz/deeper"), "nothing can be written in ref/a.nii.gz"),
    ((*BOTH, "--map", "nowhere"), "nowhere: no such file"),
    ((*BOTH, "--dataset", "Set=empty"), "ref: no dataset.json")])
def test_every_wrong_option_is_one_line_and_exit_code_2(two_cases, refused, options, said):
    (two_cases / "empty").mkdir()
    save(two_cases / "other" / "z.nii.gz", drawn())
    assert said in refused(*options)
    assert not Path("evaluation").exists()


def test_an_evaluation_is_not_written_over_unasked(two_cases, evaluate, refused):
    evaluate("--pred", "pred", "--ref", "ref")
    before = Path("evaluation/cases.csv").read_bytes()
    assert "evaluation: holds an evaluation already" in refused("--pred", "one", "--ref", "ref", "--out", "evaluation")
    assert "is read and would be written" in refused("--read", "evaluation", "--out", "evaluation", "--overwrite")
    assert Path("evaluation/cases.csv").read_bytes() == before


def test_a_damaged_evaluation_is_refused(two_cases, evaluate, refused):
    evaluate("--pred", "pred", "--ref", "ref")
    path = Path("evaluation/cases.csv")
    path.write_text(path.read_text().replace(",0.75,", ",three quarters,", 1))
    assert "cases.csv: cannot be read (could not convert string to float" in refused("--read", "evaluation")
    path.write_text("a,b\n1,2\n")
    assert "its columns are not dataset, case" in refused("--read", "evaluation")


@pytest.mark.slow
def test_the_module_runs_as_a_command_needs_no_torch_to_score_and_says_that_this_is_no_medical_device(two_cases):
    code = "import sys, uniseg.evaluate as e; e.main(['--pred', 'pred', '--ref', 'ref']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=two_cases,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.endswith("False\n") and done.stderr == ""
    help_text = " ".join(build_parser().format_help().split())
    assert NOT_A_MEDICAL_DEVICE in help_text and "must be known to have none" in help_text
