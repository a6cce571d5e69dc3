"""benchmarks/old_pull.py: its terms are those of Eq. (4); which of them pull where student and teacher are equal."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))      # as for the script, which imports its neighbours
import old_pull
from old_pull import terms

from conftest import Patient, write_dataset
from runs import TINY
from uniseg import train
from uniseg.losses import masked_loss
from uniseg.phantom import make_phantom


def test_terms_add_up_to_eq_4_and_at_equality_the_linear_dice_alone_pulls():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    target = torch.sigmoid(logits.detach())                # two old classes, for which the student is the teacher
    target[:, 2] = target[:, 2].round()
    found = terms(logits, target, 2, None)
    total = found["new classes"] + found["old, linear Dice"] + found["old, BCE"]
    assert total.item() == pytest.approx(masked_loss(logits, target, torch.ones(2, 3, dtype=torch.bool)).item())
    length = {name: torch.autograd.grad(term, logits, retain_graph=True)[0][:, :2].norm().item()
              for name, term in found.items()}
    assert length.pop("old, linear Dice") > 1e-3
    assert list(length.values()) == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.slow                                                                               # a training
def test_the_command_prints_a_row_for_each_term(tmp_path, capsys):
    patient = Patient(*make_phantom((12.0, 12.0, 12.0), 0))
    write_dataset(tmp_path / "old" / "Old", {"spleen": ("spleen",), "liver": ("liver",)}, {"a": patient})
    write_dataset(tmp_path / "new" / "New", {"stomach": ("stomach",)}, {"b": patient})
    assert train.main(["--data-root", str(tmp_path / "old"), "--out", str(tmp_path / "run"), *TINY, "--folds", "1",
                       "--fold", "0", "--epochs", "2"]) == 0
    capsys.readouterr()
    old_pull.main([str(tmp_path / "run" / "last.pt"), "--data", str(tmp_path / "new"), "--classes", "stomach",
                   "--batches", "1", "--cache", str(tmp_path / "cache")])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["new classes", "old, linear Dice", "old, squared Dice", "old, BCE"]
    assert float(rows[1][1]) > 0 and rows[0][3] == "+1.00"
