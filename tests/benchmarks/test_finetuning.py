"""benchmarks/finetuning.py: its groups, its table, and the whole command on phantoms of a few voxels."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import finetuning as benchmark
import partial_labels
from finetuning import TABLE_9, TOTAL_GROUPS, last_dice, table_9

from runs import first_as_it_is_then_forked
from uniseg.embeddings import class_embeddings


def test_every_class_of_totalsegmentators_groups_has_a_text_embedding_and_is_in_one_group():
    names = [name for group in TOTAL_GROUPS.values() for label in group for name in partial_labels.names_of(label)]
    assert len(names) == len(set(names)) == 24 + 17 + 22 + 14
    assert class_embeddings(names).shape[0] == len(names)                      # raises for a name without a row


def test_the_papers_rows_have_the_means_that_they_print_and_stand_below_its_own_groups():
    for method, (*four, mean, cardiac, organs, jhh, pdac, cyst, pannet, tumours) in TABLE_9.items():
        assert abs(np.mean(four) - mean) < 0.011 and abs((cardiac + organs) / 2 - jhh) < 0.011, method
        assert tumours is None or abs(np.mean([pdac, cyst, pannet]) - tumours) < 0.011, method
    scores = {method: {group: [value] for group in TOTAL_GROUPS} for method, value in (("Scratch", .5), ("Ours", .75))}
    lines = list(table_9(scores))
    assert lines[3] == "| Ours | 75.0 | 75.0 | 75.0 | 75.0 | 75.0 |"
    assert lines[-1] == "| Ours, paper | 86.49 | 89.57 | 94.43 | 88.95 | 89.86 |"
    assert len(list(table_9({"Scratch": {"vessels": [.1, .3]}, "Ours": {"vessels": [.2, .4]}}))) == 4    # other groups


def test_a_score_is_the_mean_over_classes_of_the_mean_over_cases_that_show_them(tmp_path):
    cases = {"a": {"aorta": {"dice": 0.5}, "postcava": {"dice": None}}, "b": {"aorta": {"dice": 0.7},
                                                                              "postcava": {"dice": 0.2}}}
    (tmp_path / "validation.json").write_text(json.dumps({"last": {"cases": cases}}))
    assert last_dice(tmp_path, ["aorta", "postcava"]) == pytest.approx((0.6 + 0.2) / 2)
    with pytest.raises(SystemExit, match="no held-out case shows liver"):
        last_dice(tmp_path, ["liver"])


@pytest.mark.parametrize("options, message", [(("--data", "x"), "go together"), (("--groups", "ribs"), "choose from")])
def test_options_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        benchmark.main(["--out", str(tmp_path), *options])


@pytest.mark.slow
def test_the_command_trains_both_starts_of_a_group_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(partial_labels.subprocess, "run", first_as_it_is_then_forked())
    monkeypatch.setattr(benchmark, "SPACING_MM", 12.0)
    monkeypatch.setattr(benchmark, "PATIENTS", {"first": (0, 1), "few": (1, 1), "held_out": (2, 1)})
    monkeypatch.setattr(benchmark, "RECIPE", ("--folds 1 --backbone unet --width 2 --lpg-hidden 8 --spacing 12 "
                                              "--patch-size 16 16 16 --batch-size 1 --warmup-epochs 0 --overlays 0 "
                                              "--workers 0").split())
    monkeypatch.setattr(partial_labels, "STEPS_PER_EPOCH", 2)
    command = ["--out", str(tmp_path), "--steps", "2", "2", "--groups", "vessels"]
    benchmark.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| start | vessels | mean |" and [line.split(" | ")[0] for line in lines[2:]] == ["| Scratch",
                                                                                                         "| Ours"]
    ran = {f: f.stat().st_mtime_ns for f in tmp_path.glob("runs/*/last.pt")}
    assert sorted(f.parent.name for f in ran) == ["first-seed0", "ours-vessels-seed0", "scratch-vessels-seed0"]
    benchmark.main(command)                                                          # nothing is trained again
    assert {f: f.stat().st_mtime_ns for f in ran} == ran
