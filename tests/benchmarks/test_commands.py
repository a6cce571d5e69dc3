"""Every benchmark that needs nothing but uniseg answers --help, and the short ones run."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel
import pytest

from runs import IMITATES_BF16
from uniseg.phantom import make_phantom

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OTHERS = {"parity_monai", "parity_surface_distance"}     # which import what they compare with
COMMANDS = sorted(path.stem for path in BENCHMARKS.glob("*.py")
                  if path.stem not in OTHERS and "ArgumentParser" in path.read_text(encoding="utf-8"))


def run(name, *arguments):
    """What a benchmark prints."""
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", *map(str, arguments)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_answers_help(name):
    assert run(name, "--help").startswith("usage: ")


@pytest.mark.slow
@pytest.mark.skipif(IMITATES_BF16, reason="this processor has no instructions for bf16, in which half of the times are")
def test_layers_prints_four_times_for_each_layer_and_backbone():
    row = re.compile(r"^\| (.+?) \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", re.MULTILINE)
    rows = row.findall(run("layers", "--size", 64, "--repeats", 1))
    assert len(rows) == 9 and rows[-3:] == ["backbone swin_unetr", "backbone unet", "backbone segresnet"]


@pytest.mark.slow
def test_start_prints_when_each_step_ends_and_they_follow_each_other():
    (row,) = re.findall(r"^\| seconds \| (.*) \|$", run("start", "--repeats", 1), re.MULTILINE)
    seconds = [float(text) for text in row.split(" | ")]
    assert len(seconds) == 6 and seconds == sorted(seconds)


@pytest.mark.slow
def test_focus_compares_the_two_runs_of_a_phantom(tmp_path):
    """On a grid of 1.5 mm: the phantom has so few windows that the liver is searched in the whole body."""
    hu, _, affine = make_phantom((4.0, 4.0, 4.0))
    nibabel.save(nibabel.Nifti1Image(hu, affine), tmp_path / "ct.nii.gz")
    row = run("focus", tmp_path / "ct.nii.gz", "--classes", "liver").splitlines()[-1].split(" | ")
    assert row[:2] == ["| ct", "liver"] and row[-1] == "1.0000 |" and int(row[3]) > 0
