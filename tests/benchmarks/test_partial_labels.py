"""benchmarks/partial_labels.py: its three assemblies hold the same CTs and differ in their labels as it says."""

import runpy

import numpy as np
import pytest
import torch

from benchmarks import partial_labels
from benchmarks.partial_labels import CLASSES, DATASETS, ROOTS, table, write_phantoms
from uniseg.data import PatchDataset
from uniseg.datasets.cases import prepare
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import class_masks
from uniseg.imaging.volume import read_ct, read_label_map
from uniseg.taxonomy import resolve
from uniseg.training.recipe import TrainConfig


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One patient a dataset, 12 mm voxels. Not to be written to."""
    folder = tmp_path_factory.mktemp("partial_labels")
    write_phantoms(folder, patients=1, test_patients=1, spacing_mm=12.0)
    return folder


@pytest.fixture(scope="module")
def roots(out):
    return {root: find_datasets(out / root) for root in ROOTS}


def masks_of(dataset):
    """{class: mask} of the dataset's first case."""
    _, ct_path, label_path, _ = dataset.cases[0]
    ct = read_ct(ct_path)
    return dict(class_masks(dataset, read_label_map(label_path).array, ct.array, ct.affine))


@pytest.mark.parametrize("has_bf16, amp", [(True, ("--amp", "bf16")), (False, ()), (None, ("--amp", "bf16"))])
def test_trainings_are_in_bf16_but_where_the_processor_imitates_it(has_bf16, amp, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: has_bf16)
    script = runpy.run_path(partial_labels.__file__)
    assert script["AMP"] == amp and script["RECIPE"][-2:] == (amp or ("--workers", "1"))


@pytest.mark.slow
def test_the_three_roots_hold_the_same_cts_and_the_test_set_holds_others(out, roots):
    volumes = {root: [read_ct(image).array for d in datasets for _, image, *_ in d.cases]
               for root, datasets in roots.items()}
    assert [[case[0] for d in datasets for case in d.cases] for datasets in roots.values()] == \
        [["patient001", "patient000", "patient002", "patient003"]] * 3  # Kidneys, Liver, Pancreas, Trunk
    for ours, partial in zip(volumes["full"] + volumes["background"], volumes["partial"] * 2):
        assert np.array_equal(ours, partial)
    (test,) = find_datasets(out / "test")
    assert set(test.annotated) == set(CLASSES)
    assert not any(np.array_equal(read_ct(test.cases[0][1]).array, ct) for ct in volumes["full"])


def test_full_and_background_annotate_every_class_and_partial_each_dataset_its_own(roots):
    for root in ("full", "background"):
        assert [d.annotated for d in roots[root]] == [tuple(CLASSES)] * 4
    for dataset in roots["partial"]:
        assert set(dataset.annotated) == {name for label in DATASETS[dataset.name] for name in resolve(label)}
    assert {name for d in roots["partial"] for name in d.annotated} == set(CLASSES)


@pytest.mark.slow
def test_where_a_class_is_annotated_all_three_have_its_mask_and_where_it_is_not_background_has_none(roots):
    for full, partial, background in zip(*(roots[root] for root in ROOTS)):
        masks, own, taken_for_background = masks_of(full), masks_of(partial), masks_of(background)
        assert set(own) < set(masks) == set(taken_for_background) == set(CLASSES)
        for name in CLASSES:
            assert masks[name].any()
            if name in own:
                assert np.array_equal(own[name], masks[name]), name
                assert np.array_equal(taken_for_background[name], masks[name]), name
            else:
                assert not taken_for_background[name].any(), name


@pytest.mark.slow
def test_partial_and_background_draw_the_same_patches_and_only_the_labelled_classes_differ(roots, tmp_path):
    config = TrainConfig(spacing=12.0, patch_size=(16, 16, 16))
    ours, theirs = (PatchDataset([prepare(d, c, config.preprocessing, tmp_path) for d in roots[root] for c in d.cases],
                                 CLASSES, config) for root in ("partial", "background"))
    cases = set()
    for number in range(24):
        partial, background = ours[number], theirs[number]
        assert partial["case"] == background["case"]
        assert np.array_equal(partial["image"], background["image"])
        assert np.array_equal(partial["bits"], background["bits"])
        assert background["labelled"].all() and not partial["labelled"].all()
        cases.add(partial["case"])
    assert len(cases) == 4


def test_the_table_has_a_row_a_class_and_the_means_of_organs_and_lesions(monkeypatch):
    monkeypatch.setattr(partial_labels, "CLASSES", ["liver", "colon", "liver_tumor"])
    scores = {root: [{"liver": 0.9, "colon": 0.7, "liver_tumor": 0.2}, {"liver": 1.0, "colon": 0.5, "liver_tumor": 0.0}]
              for root in ROOTS}
    lines = list(table(scores, {"liver": 2, "colon": 1, "liver_tumor": 1}))
    both = "0.95 (0.90 to 1.00)"
    assert lines[2] == f"| liver | 2 of 4 | {both} | {both} | {both} |"
    assert lines[5].startswith("| **mean of organs** |  | 0.78 (0.75 to 0.80) |")
    assert lines[6].startswith("| **mean of lesions** |  | 0.10 (0.00 to 0.20) |")
    assert lines[7].startswith("| **mean of all** |  | 0.55 (0.50 to 0.60) |")


@pytest.mark.parametrize("reached, started, resumed", [(100, False, False), (50, True, True), (None, True, False)])
def test_a_finished_training_is_not_repeated_and_an_interrupted_one_is_resumed(tmp_path, monkeypatch, reached, started,
                                                                               resumed):
    folder, commands = tmp_path / "run", []
    folder.mkdir()
    (folder / "config.json").write_text("{}")  # written when a run starts; uniseg.train refuses such a folder
    if reached is not None:
        torch.save({"training": {"step": reached, "epoch": reached // 50, "config": {"epochs": 2}}}, folder / "last.pt")
    monkeypatch.setattr(partial_labels.checkpoint, "read", lambda path: torch.load(path, weights_only=True))
    monkeypatch.setattr(partial_labels.subprocess, "run", lambda command, check: commands.append(command))
    assert partial_labels.train(tmp_path / "partial", folder, tmp_path / "cache", 100, 0) == folder / "last.pt"
    assert len(commands) == started
    assert any("--resume" in command for command in commands) == resumed
    assert folder.exists() == (reached is not None)
