"""benchmarks/six_models.py: its table from made-up seconds, and the whole command on a phantom of a few voxels."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import six_models as benchmark

from uniseg.taxonomy import DATASETS, NAMES


def test_the_tasks_are_the_decathlons_with_their_labels():
    labels = {d.name: tuple(NAMES[number - 1] for number in d.transfer) for d in DATASETS if d.tolerance_mm}
    assert sorted(benchmark.TASKS.values()) == sorted(labels.values()) and len(benchmark.CLASSES) == 9


def test_the_table_has_medians_and_how_many_times_six_take_longer():
    six, one = [(12.0, 8.0), (18.0, 9.0), (13.0, 10.0)], [(2.0, 1.0), (4.0, 3.0), (3.0, 2.0)]
    lines = benchmark.lines({"six": six, "one": one})
    assert lines[2:] == ["| six dataset-specific models | 13.00 (12.00 to 18.00) | 9.00 (8.00 to 10.00) |",
                         "| one universal model, nine heads | 3.00 (2.00 to 4.00) | 2.00 (1.00 to 3.00) |",
                         "| six take longer by | 4.33 | 4.50 |"]


@pytest.mark.slow
def test_the_command_segments_with_seven_networks_and_prints_the_table(capsys, monkeypatch):
    made = []
    real = benchmark.segmenter
    monkeypatch.setattr(benchmark, "segmenter", lambda classes, args, universal: made.append((classes, universal))
                        or real(classes, args, universal))
    benchmark.main("--backbone unet --width 2 --spacing 24 --window 16 --turns 1 --device cpu".split())
    assert [universal for _, universal in made] == [False] * 6 + [True] and made[-1][0] == benchmark.CLASSES
    printed = capsys.readouterr().out
    assert "phantom.nii.gz, unet of width 2, 24 mm, windows of 16^3, cpu" in printed
    assert float(printed.splitlines()[-1].split("|")[2]) > 1
