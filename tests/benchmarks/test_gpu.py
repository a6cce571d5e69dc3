"""benchmarks/gpu.py: a dry run of all its parts on a CPU, a part that fails, and what it says without MONAI."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu as benchmark


@pytest.fixture
def printed(monkeypatch, capsys):
    """Run the command and return what it prints. It switches TF32 on and off, which is undone for other tests."""
    multiplies, convolves = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(benchmark.peers, "available", lambda: False)

    def run(*words):
        assert benchmark.main(["--device", "cpu", "--tiny", *words]) == 0
        return capsys.readouterr().out
    yield run
    torch.set_float32_matmul_precision(multiplies)
    torch.backends.cudnn.allow_tf32 = convolves


def test_without_monai_it_says_so_and_measures_uniseg_alone(printed):
    out = printed("--only", "peak")
    assert "MONAI is not installed: uniseg alone (pip install monai einops, or --monai FOLDER)" in out
    assert "| 256^2, TF32 |" in out and "Windows" not in out


def test_a_folder_with_monai_is_put_on_the_path(printed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    printed("--only", "nothing", "--monai", str(tmp_path))
    assert sys.path[0] == str(tmp_path)


def test_a_part_that_fails_says_so_and_the_next_one_is_measured(printed, monkeypatch):
    def out_of_memory(args, peaks):
        yield "| a table |"
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(benchmark, "PARTS", {"first": out_of_memory, "second": lambda args, peaks: iter(["| done |"])})
    out = printed()
    assert "\nnot measured: out of memory\n" in out and out.endswith("**Second**\n\n| done |\n")


def test_no_part_begins_after_the_minutes(printed):
    out = printed("--minutes", "0")
    assert out.count("\n| ") == 1 and out.endswith("The minutes are over; the rest is not measured.\n")


def test_a_device_that_does_not_exist_is_refused_in_one_line(capsys):
    assert benchmark.main(["--device", "cuda:77", "--tiny"]) == 2
    assert capsys.readouterr().err.startswith("gpu.py: error: --device cuda:77: not usable here")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(printed, monkeypatch):
    monkeypatch.setattr(benchmark.torch, "compile", lambda module: module)       # needs a compiler and minutes
    monkeypatch.setattr(benchmark, "AT_ONCE", (1, 2))
    out = printed()
    assert all(f"**{name[0].upper()}{name[1:]}**" in out for name in benchmark.PARTS)
    assert "not measured" not in out and "nan" not in out
    assert "| Swin UNETR | uniseg, 2 at once | bf16 |" in out and "| masked loss | TF32 |" in out
