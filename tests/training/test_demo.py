"""`train --demo`: which datasets it makes, which options it has, and a much shortened run from end to end."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from uniseg import train
from uniseg.datasets.find import find_datasets
from uniseg.imaging.volume import read_label_map
from uniseg.phantom import make_phantom
from uniseg.taxonomy import resolve
from uniseg.training import demo

SHORT = ["--epochs", "1", "--steps-per-epoch", "2", "--spacing", "12", "--patch-size", "16", "16", "16",
         "--workers", "0", "--device", "cpu"]
CLASSES = {name for labels in demo.DATASETS.values() for label in labels for name in resolve(label)}


def test_no_dataset_labels_all_classes_and_one_class_is_labelled_in_two():
    assert len(CLASSES) == 11 and demo.most_labels() == 5
    assert demo.labelled_in("liver") == ["Chest", "Abdomen"] and demo.labelled_in("aorta") == ["Pelvis"]
    assert all(len(demo.labelled_in(name)) == 1 for name in CLASSES - {"liver"})


def test_its_options_are_a_small_recipe_that_typed_options_change():
    args = train.parse(["--demo"])
    assert (args.out, args.data_root) == (Path("runs/demo"), Path("runs/demo/data"))
    assert (args.backbone, args.width, args.epochs, args.folds) == ("unet", 8, 10, 4)
    args = train.parse(["--demo", "--out", "x", "--epochs", "3"])
    assert (args.data_root, args.epochs, args.width) == (Path("x/data"), 3, 8)


@pytest.mark.parametrize("option", [["--data-root", "x"], ["--dataset", "LiTS=x"], ["--val-root", "x"],
                                    ["--extend", "x.pt"]], ids=lambda o: o[0])
def test_data_of_ones_own_are_refused_with_one_line(option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--demo", *option]) == 2
    err = capsys.readouterr().err
    assert err == f"uniseg: error: --demo makes its own data and network. Leave {option[0]} out.\n"
    assert not list(tmp_path.iterdir())


def test_the_table_of_the_unseen_patient_says_which_dataset_taught_a_class():
    lines = list(demo.lines(Path("runs/demo"), {"liver": 0.9, "aorta": 0.5}, 4.21))
    assert lines[0] == "A patient that the network has not seen, runs/demo/unseen/ct.nii.gz, segmented in 4.2 s:"
    rows = [line.split() for line in lines[2:5]]
    assert rows == [["liver", "Chest,", "Abdomen", "0.90"], ["aorta", "Pelvis", "0.50"], ["mean", "0.70"]]


@pytest.mark.slow
def test_a_shortened_demonstration_makes_trains_and_tries(tmp_path, capsys, monkeypatch):
    """One epoch of two steps, patients of 12 mm: everything but the learning."""
    for name in ("SPACING_MM", "UNSEEN_MM"):
        monkeypatch.setattr(demo, name, 12.0)
    out = tmp_path / "run"
    assert train.main(["--demo", "--out", str(out), *SHORT]) == 0
    printed, err = capsys.readouterr()
    datasets = find_datasets(out / "data")
    assert {d.name: set(d.annotated) for d in datasets} == {
        name: {c for label in labels for c in resolve(label)} for name, labels in demo.DATASETS.items()}
    assert [len(d.cases) for d in datasets] == [4, 4, 4]
    assert "9 training and 3 validation cases, 11 classes" in err and "epoch 1 of 1  loss" in err
    assert "Chest     labels right lung, left lung, liver" in err
    assert {p.name for p in (out / "unseen").iterdir()} == {"ct.nii.gz", "ct_seg.nii.gz", "ct_seg.json",
                                                           "ct_preview.png"}
    assert (out / "progress.png").is_file() and len(list((out / "overlays").iterdir())) == 3
    rows = re.findall(r"^  (\w+) +(.*?) +(\d\.\d\d)$", printed, re.MULTILINE)
    assert {name for name, _, _ in rows} == CLASSES | {"mean"}
    scores = [float(score) for name, _, score in rows if name != "mean"]
    assert float(rows[-1][2]) == pytest.approx(np.mean(scores), abs=0.011)
    label = read_label_map(out / "data" / "Pelvis" / "labelsTr" / "patient08.nii.gz").array     # 1 bladder, 2 femur, 3
    masks = make_phantom((12.0,) * 3, 8)[1]
    assert np.array_equal(label == 1, masks["bladder"]) and np.array_equal(label == 3, masks["aorta"])
    assert np.array_equal(label == 2, masks["left_head_of_femur"] | masks["right_head_of_femur"])
    assert json.loads((out / "config.json").read_text())["command"][:3] == ["--demo", "--out", str(out)]
