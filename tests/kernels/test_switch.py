"""The switch between the fast forms of Eq. (2) and Eq. (4) and the readable ones: each runs everything, alone."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from uniseg import kernels
from uniseg.continual import Extension
from uniseg.kernels.class_heads import ClassHeads
from uniseg.kernels.masked_sum import MaskedSum
from uniseg.model import ModelConfig, UniversalModel
from uniseg.sliding_window import sliding_window
from uniseg.training.objective import PartialLabels

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("liver", "spleen", "liver_tumor")


def small_network(classes=CLASSES, seed=0):
    torch.manual_seed(seed)
    return UniversalModel(ModelConfig(classes, "unet", 4, text_width=5, lpg_hidden=8), torch.randn(len(classes), 5))


def batch(seed=1):
    """Two images of 16^3 voxels, their bits, and what their datasets annotate.

    The U-Net's deepest norm has 8 voxels. With two it would magnify the rounding, in which the forms differ.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, 16, 16, 16, generator=generator)
    bits = torch.randint(0, 8, (2, 16, 16, 16), generator=generator)
    return image, bits, torch.tensor([[True, False, True], [True, True, False]])


def trained(objective, steps=3):
    """The losses and the weights of a short training: [0-d tensor] per step, {name: tensor}."""
    network = small_network()
    optimiser, losses = torch.optim.SGD(network.parameters(), lr=0.05), []
    weight = torch.tensor([[1.0, 3.0, 2.0]]).expand(2, 3)
    for step in range(steps):
        image, bits, labelled = batch(step)
        loss = objective(network, image, bits, labelled, objective.pairs(labelled), weight, contextlib.nullcontext)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return losses, network.state_dict()


@pytest.fixture
def only(monkeypatch):
    """Run with one form of the equations; the other form fails the test if it is called."""
    def choose(form):
        def forbidden(*arguments, **options):
            raise AssertionError("the other form runs")

        monkeypatch.undo()
        monkeypatch.setattr(kernels, "ENABLED", form == "kernel")
        if form == "kernel":
            monkeypatch.setattr("uniseg.heads.plain_class_logits", forbidden)
            monkeypatch.setattr("uniseg.losses.plain_masked_sum", forbidden)
        else:
            monkeypatch.setattr(ClassHeads, "apply", forbidden)
            monkeypatch.setattr(MaskedSum, "apply", forbidden)
    return choose


@pytest.mark.parametrize("value, enabled", [(None, True), ("1", True), ("0", False)])
def test_the_environment_variable_chooses_the_form(value, enabled):
    environment = {name: v for name, v in os.environ.items() if name != "UNISEG_KERNELS"}
    environment |= {} if value is None else {"UNISEG_KERNELS": value}
    code = "from uniseg import kernels; print(kernels.ENABLED)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=60)
    assert done.stdout.strip() == str(enabled), done.stderr


def objective_of(kind):
    """(a loss of training, the sums that it reports or None)."""
    if kind == "partial labels":
        sums = torch.zeros(3, len(CLASSES))
        return PartialLabels(sums), sums
    if kind == "without the Dice of absent classes":
        return PartialLabels(dice_of_absent=False), None
    return Extension(small_network(CLASSES[:2], seed=7).eval().requires_grad_(False)), None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partial labels", "without the Dice of absent classes", "extension"])
def test_a_short_training_gives_the_same_numbers_with_either_form(kind, only):
    results = []
    for form in ("kernel", "readable form"):
        only(form)
        objective, sums = objective_of(kind)
        results.append((*trained(objective), sums))
    (fast_losses, fast_weights, fast_sums), (losses, weights, sums) = results
    torch.testing.assert_close(fast_losses, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast_weights, weights, rtol=1e-3, atol=1e-5)
    if sums is not None:
        torch.testing.assert_close(fast_sums, sums, rtol=1e-4, atol=1e-3)


def test_inference_gives_the_same_logits_with_either_form(only):
    network, results = small_network().eval(), []
    image = np.random.default_rng(0).random((20, 16, 12), np.float32)
    for form in ("kernel", "readable form"):
        only(form)
        with torch.inference_mode():
            slabs = [logits.clone() for _, logits in sliding_window(image, network, len(CLASSES), (16, 8, 8))]
        results.append(torch.cat(slabs, dim=3))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
