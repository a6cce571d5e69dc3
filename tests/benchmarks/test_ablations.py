"""benchmarks/ablations.py: its tables of made-up scores with known answers, the paper's numbers, a run of two steps."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))      # as for the script, which imports its neighbour
import ablations
import partial_labels
from ablations import (
    CLASSES,
    CONFIGURATIONS,
    FIG_3,
    LESIONS,
    PAPER_COLUMNS,
    PAPER_MEAN,
    TABLE_7,
    WIDTHS,
    differences,
    fig_3,
    table_7,
)
from partial_labels import write_phantoms

from runs import first_as_it_is_then_forked

ROOT = Path(__file__).parents[2]


def seeds(organs, lesions, cpu_minutes=(2.0, 4.0)):
    """Results as `run` returns them, one a seed: every organ and every lesion scored alike."""
    return [{"dice": {name: lesion if name in LESIONS else organ for name in CLASSES}, "parameters": 1_130_000,
             "backbone_parameters": 250_000, "cpu_minutes": minutes}
            for organ, lesion, minutes in zip(organs, lesions, cpu_minutes)]


def row_of(lines, start):
    (row,) = (line for line in lines if line.startswith(f"| {start}"))
    return [field.strip() for field in row.strip("|").split("|")]


def test_five_encodings_and_three_backbones_are_seven_configurations_with_v3_of_the_unet_in_both_tables():
    assert list(TABLE_7) == ["one-hot", "random", "v1", "v2", "v3"]
    assert list(FIG_3) == ["swin_unetr", "unet", "segresnet"]
    assert len(CONFIGURATIONS) == len(set(CONFIGURATIONS)) == 7
    assert TABLE_7["v3"] == FIG_3["unet"] == ("unet", "v3")


@pytest.mark.parametrize("encoding, mean", [("one-hot", 70.42), ("biobert", 71.55), ("v1", 72.60), ("v2", 75.67),
                                            ("v3", 76.12)])
def test_the_papers_32_columns_have_the_mean_that_it_prints_but_for_v1(encoding, mean):
    columns = PAPER_COLUMNS[encoding]
    assert len(columns) == 32 and np.mean(columns) == pytest.approx(mean, abs=0.005)
    assert (abs(float(PAPER_MEAN[encoding].split()[0]) - np.mean(columns)) < 0.015) == (encoding != "v1")
    assert np.mean(PAPER_COLUMNS["v3"][:25]) == pytest.approx(79.56, abs=0.005)           # Fig. 3, organs of Swin UNETR
    assert np.mean(PAPER_COLUMNS["v3"][25:31]) == pytest.approx(69.39, abs=0.005)         # Fig. 3 prints 65.79


def test_table_7_has_a_row_an_encoding_with_ours_and_the_papers():
    lines = list(table_7({"one-hot": seeds([80, 90], [20, 40]), "random": seeds([80], [20])}))
    # 13 organs and 3 lesions: (13 * 80 + 3 * 20) / 16 = 68.75, (13 * 90 + 3 * 40) / 16 = 80.625
    assert row_of(lines, "one-hot")[1:5] == ["1.13 M", "85.0 (80.0 to 90.0)", "30.0 (20.0 to 40.0)",
                                             "74.7 (68.8 to 80.6)"]
    # the paper's 16 of its 32: 13 organs, kidney tumour, liver tumour, cyst
    organs = 91.92 + 91.98 + 92.14 + 71.75 + 95.10 + 80.52 + 83.57 + 82.71 + 74.06 + 79.63 + 66.75 + 69.22 + 76.74
    assert row_of(lines, "one-hot")[5:] == [f"{(organs + 63.84 + 68.02 + 35.81) / 16:.2f}", "70.42"]
    assert row_of(lines, "random")[4:] == ["68.8", "", "not run"]
    assert row_of(lines, "biobert")[4] == "not run" and row_of(lines, "biobert")[6] == "71.55"
    assert row_of(lines, "v1")[6] == "73.49 [1]"


def test_fig_3_has_a_row_a_backbone_with_parameters_and_cpu_minutes():
    lines = list(fig_3({"swin_unetr": seeds([80, 90], [20, 40]), "segresnet": seeds([80, 80], [20, 20], (None, None))}))
    assert row_of(lines, "swin_unetr, width 12")[1:] == ["1.13 M", "0.25 M", "3.0 (2.0 to 4.0)", "85.0 (80.0 to 90.0)",
                                                         "30.0 (20.0 to 40.0)", "62.19 M", "79.56", "65.79 [2]"]
    assert row_of(lines, "segresnet")[3] == "not measured"


@pytest.mark.parametrize("theirs, answer", [([70, 74], "yes"), ([77, 79], "no")])
def test_a_difference_counts_where_it_is_larger_than_the_spread_of_either_over_its_seeds(theirs, answer):
    # means 82 and 72 or 78, spreads 4 and 4 or 2: differences 10 > 4 and 4 = 4
    lines = list(differences({"v3": seeds([80, 84], [0, 0]), "v1": seeds(theirs, [0, 0])}, ["organs"]))
    mean = 82 - sum(theirs) / 2
    assert row_of(lines, "organs") == ["organs", "v3 - v1", f"{mean:.1f} ({80 - theirs[0]:.1f} to {84 - theirs[1]:.1f})"
                                       if answer == "yes" else "4.0 (3.0 to 5.0)", "4.0", answer]


def test_the_report_has_both_tables_their_classes_the_differences_and_the_encoder():
    results = {configuration: seeds([80, 90], [20, 40]) for configuration in CONFIGURATIONS}
    text = "\n".join(ablations.report(results, dict.fromkeys(CLASSES, 1)))
    assert "MiniLM, not by CLIP" in text and text.count("| liver_tumor | 1 of 4 |") == 2
    assert text.count("\n| all | ") == 10 and text.count("\n| lesions | ") == 3           # pairs of 5 and of 3
    one_seed = {configuration: seeds[:1] for configuration, seeds in results.items()}
    assert "exceed" not in "\n".join(ablations.report(one_seed, dict.fromkeys(CLASSES, 1)))


def test_a_scored_configuration_is_read_and_not_trained_again(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "unet-v3-50-0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"dice": {}}')
    monkeypatch.setattr(ablations, "train", lambda *arguments: pytest.fail("trained again"))
    assert ablations.run(tmp_path, ("unet", "v3"), 50, 0, None) == {"dice": {}}


@pytest.mark.slow                                                                          # seven trainings
def test_the_command_trains_scores_and_prints_and_called_again_only_prints(tmp_path, monkeypatch, capsys):
    """A phantom of 12 mm a dataset. The first training is a process as users start it, the others are forked."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(partial_labels.subprocess, "run", first_as_it_is_then_forked())
    monkeypatch.setattr(partial_labels, "write_phantoms", lambda out, roots: write_phantoms(out, 1, 1, 12.0, roots))
    monkeypatch.setattr(ablations, "RECIPE", " ".join(ablations.RECIPE).replace("--spacing 6", "--spacing 12").split())
    for module in (ablations, partial_labels):
        monkeypatch.setattr(module, "STEPS_PER_EPOCH", 2)
    command = ["--out", str(tmp_path), "--steps", "2", "--seeds", "1"]
    ablations.main(command)
    printed = capsys.readouterr().out
    assert row_of(printed.splitlines(), "segresnet, width 8")[1].endswith(" M")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "partial", "runs", "test"]
    assert len(list((tmp_path / "runs").iterdir())) == len(TABLE_7) + len(WIDTHS) - 1
    monkeypatch.setattr(partial_labels.subprocess, "run", lambda *arguments, **options: pytest.fail("trained again"))
    ablations.main(command)
    assert capsys.readouterr().out == printed
