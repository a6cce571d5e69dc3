"""benchmarks/continual.py: what each step's data hold, and its tables with the paper's numbers and made-up ones."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

# as where the script is started: it imports its neighbour
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import continual as benchmark
import partial_labels
from continual import (
    GROUPS,
    IN_TABLE,
    LENGTHS,
    METHODS,
    TABLE_10,
    TABLE_11,
    change,
    names_of,
    order,
    table_10,
    table_11,
    write_phantoms,
)

from runs import make_trainings_small
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import read_ct
from uniseg.training.options import build_parser

NAMED = {name: name for groups in GROUPS.values() for group in groups for label in group for name in names_of(label)}


@pytest.fixture(scope="module", params=["tumour", "body"])
def assembly(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    write_phantoms(out, request.param, patients=1, test_patients=1, spacing_mm=12.0)
    folders = [f"step{i + 1}" for i in range(len(GROUPS[request.param]))] + ["test"]
    return request.param, {f: find_datasets(out / request.param / f, NAMED)[0] for f in folders}


@pytest.mark.slow
def test_each_step_labels_its_own_classes_and_the_test_set_all(assembly):
    protocol, datasets = assembly
    for i, group in enumerate(GROUPS[protocol], 1):
        own = {name for label in group for name in names_of(label)}
        beside = {"liver"} if (protocol, i) == ("tumour", 2) else set()  # LiTS labels the liver too
        assert set(datasets[f"step{i}"].annotated) == own | beside
    every = {name for group in GROUPS[protocol] for label in group for name in names_of(label)}
    assert set(datasets["test"].annotated) == every


@pytest.mark.slow
def test_patients_are_others_in_every_step_and_carry_every_class_that_is_learned(assembly):
    protocol, datasets = assembly
    volumes = {}
    for name, dataset in datasets.items():
        ct = read_ct(dataset.cases[0].image)
        volumes[name] = ct.array
        empty = [n for n, mask in case_masks(dataset, dataset.cases[0], ct) if not mask.any()]
        # thinner than these 12 mm voxels
        assert not set(empty) - {"celiac_trunk", "right_adrenal_gland", "left_adrenal_gland"}
    values = list(volumes.values())
    assert not any(np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


def made_up(protocol, better):
    """Results as `main` collects them: every class of a step scores alike, the method `better` a tenth more."""
    results = {}
    for method in IN_TABLE[protocol]:
        steps = []
        for i in range(len(GROUPS[protocol])):
            classes = [n for group in GROUPS[protocol][:i + 1] for label in group for n in names_of(label)]
            steps.append({n: 0.5 - 0.1 * i + 0.1 * (method == better) for n in classes})
        results[method] = [tuple(steps)]
    return results


def cells(lines, start):
    return [row.strip("| ").split(" | ") for row in lines if row.startswith(f"| {start} |")]


def test_table_10_has_two_steps_a_class_the_means_and_the_papers_row_below():
    lines = list(table_10(made_up("tumour", "Ours (text)")))
    first, second = cells(lines, "Ours (text)")
    assert first == ["Ours (text)"] + ["0.600 / 0.500"] * 8
    assert second == ["Ours (text)"] + ["0.600 / 0.500"] * 5 + ["N/A / 0.500", "0.600 / 0.500", "N/A / 0.500"]
    paper_first, paper_second = cells(lines, "ILT, paper")
    assert paper_first[1:3] == ["0.955 / 0.950", "0.819 / 0.687"]                              # the first step is LwF's
    assert paper_second[-3:] == ["N/A / 0.335", "0.828 / 0.786", "N/A / 0.754"]


def test_table_11_has_the_means_of_each_body_part_after_each_step():
    lines = list(table_11(made_up("body", "PLOP")))
    assert cells(lines, "PLOP") == [["PLOP", "0.600", "0.500", "0.400", "0.500", "0.400", "0.400"]]
    assert cells(lines, "Ours (1-hot), paper") == [["Ours (1-hot), paper", "0.882", "0.767", "0.777", "0.674", "0.665",
                                                    "0.452"]]


def test_the_spread_over_seeds_stands_beside_the_mean():
    results = made_up("body", "PLOP")
    results["PLOP"].append(tuple({name: 0.1 for name in step} for step in results["PLOP"][0]))
    assert cells(list(table_11(results)), "PLOP")[0][1] == "0.350 (0.100 to 0.600)"


def test_an_order_other_than_the_papers_is_said():
    assert "The order is NOT the same." in order("tumour", made_up("tumour", "LwF"))
    paper = {m: [({}, {n: TABLE_10[m][5] for group in GROUPS["tumour"] for label in group for n in names_of(label)})]
             for m in IN_TABLE["tumour"]}
    text = order("tumour", paper)
    assert "The order is the same." in text and "Ours (text) 0.792 > PLOP 0.768 > ILT 0.754 > LwF 0.748" in text


def test_the_change_of_old_classes_is_from_the_step_that_learned_them_to_the_last():
    # 7 classes 0.5 -> 0.4 -> 0.3, 3 classes 0.4 -> 0.3: (7 x -0.2 + 3 x -0.1) / 10
    text = change("body", made_up("body", "PLOP"))
    assert text.count("-0.170") == 5
    text = change("tumour", made_up("tumour", "LwF"))
    assert text.count("-0.100") == 4


def test_the_papers_means_are_those_of_its_rows():
    """To the three digits that are printed; organ means of 13 classes, means of 14.

    PLOP's mean is 0.767; 0.768 is printed.
    """
    for method, (one, two, tumour, organ_1, organ_2, mean) in TABLE_10.items():
        assert np.mean(two) == pytest.approx(organ_2, abs=6e-4), method
        assert round(np.mean([*two, tumour]), 3) == (0.767 if method == "PLOP" else mean), method
        if one:
            assert np.mean(one) == pytest.approx(organ_1, abs=6e-4), method


def test_the_papers_numbers_are_those_of_the_specification():
    assert TABLE_11["Ours (text)"][2:] == (.787, .695, .692, .636)
    assert TABLE_11["LwF"] == (.891, .777, .767, .530, .486, .360)
    assert set(IN_TABLE["tumour"]) == set(TABLE_10) and set(IN_TABLE["body"]) == set(TABLE_11)


def test_methods_beyond_the_paper_change_what_their_names_say():
    shown = {"--old-weight": "old {}", "--head-start": "He start"}
    dice = {"linear": "", "squared": "squared Dice", "none": "no old Dice"}
    for name, (first, later) in METHODS.items():
        base, *changes = name.split(", ")
        if base != "Ours":
            assert first == METHODS[base][0] and later[:2] == METHODS[base][1]
            later = later[2:]
        said = [dice[value] if option == "--old-dice" else shown[option].format(value)
                for option, value in zip(later[::2], later[1::2])]
        assert [text for text in said if text] == [text for text in changes if text not in LENGTHS], name
        build_parser().parse_args([*later, "--extend", "x.pt"])                       # the options exist


def test_lengths_change_the_steps_of_the_extensions_alone(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(benchmark, "train", lambda root, folder, cache, steps, *more: ran.append(steps) or folder)
    args = benchmark.build_parser().parse_args(["--out", str(tmp_path), "--data", "A", "B", "TEST"])
    for method in ("LwF", "LwF, half", "LwF, double", "LwF, longer"):
        benchmark.chain(args, "tumour", method, 0)
    assert ran == [1500, 800, 1500, 400, 1500, 1600, 1500, 2400]


def test_with_one_start_every_seed_extends_the_first_training_of_seed_0(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(benchmark, "train", lambda root, folder, cache, steps, seed, *more:
                        ran.append((folder.name, seed)) or folder)
    args = benchmark.build_parser().parse_args(["--out", str(tmp_path), "--data", "A", "B", "TEST", "--one-start"])
    for seed in (0, 1):
        benchmark.chain(args, "tumour", "LwF", seed)
    first = ("tumour-softmax-seed0-step1", 0)
    assert ran == [first, ("tumour-lwf-seed0-step2", 0), first, ("tumour-lwf-seed1-from0-step2", 1)]


def test_scores_are_kept_beside_the_checkpoint_until_it_changes(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(benchmark, "measure", lambda weights, test: measured.append(test.name) or {"liver": 0.5})
    weights = tmp_path / "last.pt"
    weights.touch()
    for test in ("test", "test", "other"):
        assert benchmark.score(weights, tmp_path / test) == {"liver": 0.5}
    assert measured == ["test", "other"]
    os.utime(weights, (2e9, 2e9))                                                            # trained on, in 2033
    benchmark.score(weights, tmp_path / "test")
    assert measured == ["test", "other", "test"]


def test_own_data_takes_the_place_of_the_phantoms_step_by_step(tmp_path, monkeypatch):
    ran = []

    def train(root, folder, cache, steps, seed, options):
        ran.append((root, options))
        return folder / "last.pt"

    monkeypatch.setattr(benchmark, "train", train)
    args = benchmark.build_parser().parse_args(["--protocol", "tumour", "--data", "BTCV", "LITS", "TEST", "--paper",
                                                "--out", str(tmp_path)])
    assert benchmark.data_folders(args, "tumour") == ([Path("BTCV"), Path("LITS")], Path("TEST"))
    last = benchmark.chain(args, "tumour", "PLOP", 0)
    (first_root, first), (second_root, second) = ran
    assert (str(first_root), str(second_root)) == ("BTCV", "LITS") and not list(tmp_path.iterdir())
    assert " ".join(map(str, first)).startswith(
        "--folds 1 --epochs 100 --warmup-epochs 0 --batch-size 2 --lr 1e-4 --weight-decay 1e-5 "
        "--head softmax --classes spleen,right_kidney,")
    assert list(map(str, second)) == ["--folds", "1", "--baseline", "plop", "--extend", str(last[0]),
                                      "--classes", "liver_tumor"]


@pytest.mark.slow
def test_the_command_trains_every_method_and_prints_the_table(tmp_path, monkeypatch, capsys):
    make_trainings_small(monkeypatch, benchmark, partial_labels, write_phantoms)
    monkeypatch.setattr(benchmark, "SPACING_MM", 8.0)
    benchmark.main(["--out", str(tmp_path), "--protocol", "body", "--steps", "2", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(cells(lines, "Ours (text)")[0]) == 7 and any("order is" in line for line in lines)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/last.pt")}
    assert len(before) == 3 + 5 + 5
    benchmark.main(["--out", str(tmp_path), "--protocol", "body", "--steps", "2", "2"])  # nothing is trained again
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/last.pt")}
