"""benchmarks/forgetting.py: forgetting and learning by hand, curves at equal forgetting, tables, chart, a small run."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))      # as for the script, which imports its neighbours
import continual
import forgetting
import partial_labels
from continual import METHODS, write_phantoms
from forgetting import (
    COLORS,
    CURVES,
    LENGTHS,
    at_equal_forgetting,
    class_by_class,
    learning_at,
    picture,
    read_scores,
    seed_by_seed,
    table,
    trade,
    with_most_seeds,
    write_scores,
)

from runs import make_trainings_small
from uniseg.training.options import build_parser


def test_forgetting_is_what_old_classes_lose_and_learning_what_new_ones_reach():
    old = ("spleen", "right_kidney", "left_kidney", "gall_bladder", "liver", "postcava", "pancreas")
    first = dict.fromkeys(old, 0.9)
    second = {**dict.fromkeys(old, 0.9), "liver": 0.55, "stomach": 0.9, "colon": 0.6, "intestine": 0.3}
    assert trade("body", first, second) == pytest.approx((0.05, 0.6))                # 0.35 of one class in seven
    with pytest.raises(ValueError, match="the test set shows no class of step 1 or step 2 of the body extension"):
        trade("body", first, first)


def test_a_curve_is_straight_between_its_points_and_stays_beyond_the_last_one():
    points = [(0.3, 0.9), (0.1, 0.5)]
    assert [learning_at(points, x) for x in (0.1, 0.2, 0.3, 0.5)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    assert learning_at(points, 0.05) is None                                          # all points forget more
    assert learning_at([*points, (0.2, 0.1)], 0.2) == pytest.approx(0.5)   # forgets more and learns less than the first


def test_every_curve_goes_from_much_weight_of_the_old_classes_to_little():
    assert {method for curves in (CURVES, LENGTHS) for of in curves.values() for method in of} <= set(METHODS)
    for methods in CURVES.values():
        options = [build_parser().parse_args([*METHODS[m][1], "--extend", "x.pt"]) for m in methods]
        assert len({(o.baseline, o.old_dice) for o in options}) == 1
        default = 1 if options[0].baseline != "none" else 7 / 3                       # 7 old classes and 3 new ones
        weights = [o.old_weight or default for o in options]
        assert weights == sorted(weights, reverse=True)


def test_tables_have_mean_and_range_and_say_where_a_curve_does_not_reach():
    points = {"ILT, old 10": {0: (0.0, 0.2), 1: (0.04, 0.4)}, "ILT": {0: (0.1, 0.6), 1: (0.1, 0.8)}}
    assert list(table(points))[2:] == ["| ILT, old 10 | 2 | 0.020 (0.000 to 0.040) | 0.300 (0.200 to 0.400) |",
                                       "| ILT | 2 | 0.100 (0.100 to 0.100) | 0.700 (0.600 to 0.800) |"]
    (row,) = list(at_equal_forgetting(points, CURVES))[2:]
    # seed 0: 0.2 + 4 x; seed 1 begins at 0.04: 0.4 + (x - 0.04) / 0.06 * 0.4
    assert row == ("| ILT | 2 | 1 of 2 seeds | 0.433 (0.400 to 0.467) | 0.700 (0.600 to 0.800) "
                   "| 0.700 (0.600 to 0.800) | 0.700 (0.600 to 0.800) |")


def test_seed_by_seed_ours_learns_where_another_method_forgets_as_much():
    points = {"LwF": {0: (0.2, 0.7), 1: (0.0, 0.3)}, "Ours (text)": {0: (0.1, 0.5), 1: (0.1, 0.5)},
              "Ours, old 0.3": {0: (0.3, 0.9)}}
    assert list(seed_by_seed(points))[2:] == ["| 0 | LwF | 0.200 | 0.700 | 0.700 |",    # half way from 0.5 to 0.9
                                              "| 1 | LwF | 0.000 | 0.300 | - |"]        # ours forgets more there


def test_class_by_class_old_classes_have_both_steps_and_new_ones_the_second():
    old = ("spleen", "right_kidney", "left_kidney", "gall_bladder", "liver", "postcava", "pancreas")
    first, second = dict.fromkeys(old, 0.9), dict.fromkeys((*old, "stomach", "colon", "intestine"), 0.5)
    head, _, row = class_by_class({"LwF": {2: (first, {**second, "liver": 0.75, "colon": 0.125})}}, "body")
    assert head.startswith("| method | seed | spleen | ") and head.endswith(" | stomach | colon | intestine |")
    assert row == ("| LwF | 2 | 0.900, 0.500 | 0.900, 0.500 | 0.900, 0.500 | 0.900, 0.500 | 0.900, 0.750 | "
                   "0.900, 0.500 | 0.900, 0.500 | 0.500 | 0.125 | 0.500 |")


def test_the_chart_has_a_dot_of_the_curves_color_at_the_mean_of_each_method():
    rgb = picture({"LwF": {0: (0.0, 0.4), 1: (0.2, 0.6)}}, "body")
    # x from -0.01 to 0.21 over 470 pixels from 90 on, y from 1 to 0 over 470 from 90 on: the mean is (0.1, 0.5)
    assert rgb.shape == (650, 1480, 3) and tuple(rgb[90 + 235, 90 + 235]) == COLORS[0]
    assert tuple(rgb[90 + 235, 90 + 720 + 235]) == COLORS[0]                   # the default length is in both panels
    seed_0 = rgb[round(90 + 0.6 * 470), round(90 + 0.01 / 0.22 * 470)]
    assert tuple(seed_0) == COLORS[0]


def test_a_method_of_fewer_seeds_than_the_others_is_no_point_of_its_curve():
    of_three, of_one = {seed: (0.1, 0.5) for seed in range(3)}, {0: (0.1, 0.9)}
    assert with_most_seeds({"half": of_three, "longer": of_one, "": of_three}, ["half", "", "longer"]) == ["half", ""]
    assert with_most_seeds({"longer": of_one}, ["half", "", "longer"]) == ["longer"]


def test_scores_kept_in_a_table_are_not_trained_again(tmp_path, monkeypatch, capsys):
    old = ("spleen", "right_kidney", "left_kidney", "gall_bladder", "liver", "postcava", "pancreas")
    first, second = dict.fromkeys(old, 0.9), dict.fromkeys((*old, "stomach", "colon", "intestine"), 0.5)
    file = tmp_path / "scores.csv"
    kept = {("phantoms", "body", "1500 + 600", "0", "LwF", "1"): (first, second)}
    write_scores(file, kept)
    lines = file.read_text().splitlines()
    assert lines[0] == "data,protocol,steps,first,method,seed,step,class,dice" and len(lines) == 1 + 7 + 10
    assert lines[1] == "phantoms,body,1500 + 600,0,LwF,1,1,spleen,0.9000"
    assert read_scores(file) == kept and read_scores(tmp_path / "none.csv") == read_scores(None) == {}
    monkeypatch.setattr(continual, "train_all", lambda *arguments: pytest.fail("trained again"))
    command = ["--out", str(tmp_path / "out"), "--steps", "1500", "600", "--seeds", "2", "--methods", "LwF",
               "--finished", "--scores", str(file)]
    forgetting.main([*command, "--one-start"])
    assert "| LwF | 1 | 0.400 | 0.500 |" in capsys.readouterr().out
    for other in ([], ["--one-start", "--data", "A", "B", "C"], ["--one-start", "--paper"]):    # these are other runs
        with pytest.raises(SystemExit, match="no finished training"):
            forgetting.main([*command, *other])


@pytest.mark.parametrize("content", ["a,b\n", "", "{header}\nphantoms,body,2 + 2,0,LwF,0,3,liver,0.5\n",
                                     "{header}\nphantoms,body,2 + 2,0,LwF,0,1,liver,much\n", "{header}\nliver,0.5\n"])
def test_another_table_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "other.csv"
    file.write_text(content.format(header=",".join(forgetting.COLUMNS)))
    with pytest.raises(SystemExit, match=r"other.csv: no table of scores \(.*Give one that --scores has written"):
        forgetting.main(["--out", str(tmp_path), "--finished", "--scores", str(file)])


@pytest.mark.parametrize("arguments, message", [
    (["--data", "A", "B"], "--data: choose one --protocol and give 3 folders, for step 1, step 2 and the test."),
    (["--finished"], "no finished training of the body extension. Leave --finished out.")])
def test_what_cannot_be_shown_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(continual, "write_phantoms", lambda out, protocol: None)
    with pytest.raises(SystemExit, match=re.escape(message)):
        forgetting.main(["--out", str(tmp_path), *arguments])


@pytest.mark.slow                                                                               # four trainings
def test_the_command_trains_two_steps_prints_and_draws(tmp_path, monkeypatch, capsys):
    make_trainings_small(monkeypatch, continual, partial_labels, write_phantoms)
    command = ["--out", str(tmp_path), "--steps", "2", "2", "--methods", "LwF", "Ours, old 1", "--scores",
               str(tmp_path / "scores.csv")]
    forgetting.main(command)
    printed = capsys.readouterr().out
    assert "| LwF | 1 | " in printed and "| Ours, old 1 | 1 | " in printed
    assert (tmp_path / "body.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.glob("runs/*/last.pt"))) == 4
    monkeypatch.setattr(partial_labels.subprocess, "run", lambda *arguments, **options: pytest.fail("trained again"))
    forgetting.main([*command[:-2], "--finished", "--seeds", "2"])             # from the checkpoints
    assert capsys.readouterr().out == printed
    assert len(read_scores(tmp_path / "scores.csv")) == 2
