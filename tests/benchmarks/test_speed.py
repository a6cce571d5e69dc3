"""benchmarks/speed.py: the obvious forms compute the same, turns are kept and not repeated, and every side runs."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import inputs
import measuring
import peers
import speed
import works

from runs import IMITATES_BF16
from uniseg.heads import THETA, class_logits
from uniseg.losses import masked_loss


def spent(*seconds, others=0.0):
    return [[s, 2 * s, 1024.0, others] for s in seconds]


def results_of(tmp_path, rows, machine="here"):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}))
    return measuring.Results(path, "here")


# --- The obvious forms

def test_the_repeated_feature_map_gives_the_logits_of_the_class_heads():
    random = torch.Generator().manual_seed(0)
    features, theta = torch.randn(2, 8, 3, 4, 5, generator=random), torch.randn(2, 6, THETA, generator=random)
    assert torch.allclose(peers.repeated_class_logits(features, theta), class_logits(features, theta), atol=1e-4)


def test_the_loop_over_classes_gives_the_masked_loss():
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5, 6, generator=random), torch.rand(2, 3, 4, 5, 6, generator=random) > 0.5
    labelled = torch.tensor([[True, False, True], [False, True, False]])
    expected = masked_loss(logits, target.float(), labelled)
    assert torch.allclose(peers.looped_loss(logits, target, labelled), expected, atol=1e-6)


@pytest.mark.parametrize("backbone", works.BACKBONES.values())
def test_the_peer_has_the_logits_of_the_model_that_it_is_like(backbone):
    pytest.importorskip("monai")
    model = inputs.untrained(backbone, works.TINY["widths"][backbone], 3).eval()
    image = torch.rand(1, 1, *works.TINY["window"])
    with torch.no_grad():
        assert torch.allclose(peers.PeerModel.like(model).eval()(image), model(image), atol=1e-3)


# --- Turns and tables

def test_a_cell_has_medians_memory_and_the_gain_over_the_first_column(tmp_path):
    rows = [speed.Row("work", dict.fromkeys(("peer", "ours", "other")), units=2)]
    results = results_of(tmp_path, {"work": {"peer": spent(8.0, 4.0, 12.0), "ours": spent(2.0, 2.0)}})
    assert list(measuring.table(rows, results))[2:] == [
        "| work (n = 3) | 4 s (8 s CPU), 1.00 GiB | 1 s (2 s CPU), 1.00 GiB: **4.0 x** | not measured |"]


def test_sides_of_different_work_have_no_gain(tmp_path):
    results = results_of(tmp_path, {"work": {"small": spent(1.0), "large": spent(4.0)}})
    rows = [speed.Row("work", dict.fromkeys(("small", "large")), compared=False)]
    assert list(measuring.table(rows, results))[-1].endswith("| 4 s (8 s CPU), 1.00 GiB |")


def test_rows_with_other_sides_begin_another_table(tmp_path):
    rows = [speed.Row("one", {"a": None}), speed.Row("two", {"a": None}), speed.Row("three", {"b": None})]
    lines = list(measuring.table(rows, results_of(tmp_path, {})))
    assert [line.split(" (")[0] for line in lines] == ["| | a |", "|--|--|", "| one", "| two", "", "| | b |", "|--|--|",
                                                       "| three"]


def test_a_disturbed_turn_is_marked_and_can_be_measured_again(tmp_path):
    results = results_of(tmp_path, {"work": {"a": spent(4.0, others=1.5)}})
    assert list(measuring.table([speed.Row("work", {"a": None})], results))[-1].endswith("1.00 GiB (disturbed) |")
    results.forget_disturbed("work", "a")
    assert results.turns("work", "a") == []


def test_the_share_of_the_peak_is_that_of_the_precision(tmp_path):
    peak = next(speed.peak_rows())
    rows = [speed.Row("net: window", dict.fromkeys(("uniseg float32", "uniseg bf16")), gflops=lambda args: 50.0)]
    second = peak.gflops(None) / 100                                 # 100 GFLOP/s in float32, 400 in bf16
    results = results_of(tmp_path, {peak.name: {"float32": spent(second), "bf16": spent(second / 4)},
                                    "net: window": {"uniseg float32": spent(1.0), "uniseg bf16": spent(0.25)}})
    assert list(speed.share_lines(rows, results, None))[-1] == "| net: window | 50 | 50 % | 50 % |"


def test_results_of_another_machine_are_refused(tmp_path):
    with pytest.raises(ValueError, match="measured on another machine.*Give another --out"):
        results_of(tmp_path, {}, machine="elsewhere")


def test_finished_turns_are_not_repeated_and_peers_wait_for_monai(tmp_path):
    script = tmp_path / "turn.py"
    script.write_text("import sys\nopen(sys.argv[1], 'a').write(sys.argv[3] + '\\n')\nprint('[1.0, 2.0, 3.0, 0.0]')\n")
    rows = [speed.Row("work", {"peer": measuring.Side(None, peer=True), "ours": measuring.Side(None)}, turns=2)]
    command, log = [sys.executable, str(script), str(tmp_path / "log")], tmp_path / "log"
    results = measuring.Results(tmp_path / "results.json", "here")
    measuring.run_rows(rows, results, command, float("inf"), peers=False)
    assert log.read_text().split() == ["ours", "ours"]
    again = measuring.Results(tmp_path / "results.json", "here")
    measuring.run_rows(rows, again, command, float("inf"), peers=True)
    assert log.read_text().split() == ["ours", "ours", "peer", "peer"]
    assert again.median("work", "peer") == (1.0, 2.0, 3.0, 0.0)


def test_a_turn_that_fails_is_said_in_one_line_and_the_next_one_runs(tmp_path, capsys):
    script = tmp_path / "turn.py"
    script.write_text("import sys\nassert sys.argv[2] != 'peer'\nprint('[1.0, 2.0, 3.0, 0.0]')\n")
    rows = [speed.Row("work", {"peer": measuring.Side(None, peer=True), "ours": measuring.Side(None)}, turns=1)]
    results = measuring.Results(tmp_path / "results.json", "here")
    measuring.run_rows(rows, results, [sys.executable, str(script)], float("inf"), peers=True)
    assert "work, peer: failed with exit code 1" in capsys.readouterr().err
    assert results.turns("work", "peer") == [] and len(results.turns("work", "ours")) == 1


# --- Everything runs

@pytest.mark.slow
@pytest.mark.parametrize("row", speed.ROWS, ids=lambda row: row.name)
def test_every_side_runs_on_small_files(row, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "speed"
    args = argparse.Namespace(**works.TINY, work=folder, device=torch.device("cpu"), tiny=True, ct=None, data_root=None)
    folder.mkdir(exist_ok=True)
    for name, side in row.sides.items():
        if (peers.available() or not side.peer) and not (IMITATES_BF16 and "bf16" in name):
            assert speed.measure(side, args).seconds > 0


@pytest.mark.slow
def test_the_command_prints_a_table_and_goes_on_where_it_stopped(tmp_path, capsys):
    words = ["--tiny", "--only", "U-Net: window", "--threads", "1", "--out", str(tmp_path)]
    assert speed.main([*words, "--minutes", "0"]) == 0               # no turn begins
    assert "not measured | not measured" in capsys.readouterr().out
    assert speed.main(words) == 0
    row = capsys.readouterr().out.splitlines()[-2]
    assert row.startswith("| U-Net: window (n = 1) |") and row.split("|")[4].strip() != "not measured"
