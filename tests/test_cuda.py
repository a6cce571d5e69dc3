"""The same on a CUDA GPU as on a CPU: heads, losses, backbones, a training run, an interrupted one, inference. Skipped
where no GPU is.

cuDNN's convolutions are in TF32, and not always summed in the same order, unless both are turned off, as here
(https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html); then 1e-3 of the largest value is rounding.
"""

import pytest
import torch

import uniseg
from runs import batch_of, ended, metrics, small_network, torchrun
from uniseg import checkpoint, train
from uniseg.backbones import BACKBONES
from uniseg.heads import SIZES
from uniseg.kernels import class_heads
from uniseg.losses import masked_loss, unpack_bits
from uniseg.sliding_window import sliding_window
from uniseg.training.steps import training_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def full_precision():
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")              # a training in this process turns it down
        yield


def close(on_gpu, on_cpu, tolerance=1e-3):
    difference, largest = (on_gpu.detach().cpu() - on_cpu.detach()).abs().max(), on_cpu.detach().abs().max()
    assert difference <= tolerance * largest, f"{difference} of {largest}"


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_gives_the_same_features(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name](width={"swin_unetr": 12}.get(name, 8)).eval()
    image = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        expected = backbone(image)
        found = backbone.cuda()(image.cuda())
    for a, b in zip(found, expected):
        close(a, b)


@pytest.mark.parametrize("classes", [5, 34, 37])                       # in one matrix product, in two, each in its own
def test_the_class_heads_give_the_same_logits_and_gradients(classes):
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 8, 9, 10, 11, generator=g), torch.randn(2, classes, 153, generator=g)
    grad = torch.randn(2, classes, 9, 10, 11, generator=g)
    results = []
    for device in ("cuda", "cpu"):
        features, theta = (t.to(device).requires_grad_() for t in inputs)
        logits = class_heads.class_logits(features, theta, SIZES, chunk=100)  # chunks that do not divide the 990 voxels
        logits.backward(grad.to(device))
        results.append((logits, features.grad, theta.grad))
    for a, b in zip(*results):
        close(a, b, 1e-5)


@pytest.mark.parametrize("dice_of_absent", [True, False])
def test_the_loss_and_its_gradient_are_the_same(dice_of_absent):
    batch = batch_of(0, "101", "010")
    logits, results = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(1)), []
    for device in ("cuda", "cpu"):
        x = logits.to(device).requires_grad_()
        loss = masked_loss(x, unpack_bits(batch["bits"].to(device), 3), batch["labelled"].to(device),
                           dice_of_absent=dice_of_absent)
        loss.backward()
        results.append((loss, x.grad))
    for a, b in zip(*results):
        close(a, b, 1e-5)


def test_a_step_moves_the_weights_alike():
    gradients = []
    for device in ("cuda", "cpu"):
        network = small_network().to(device)
        config = type("Config", (), {"amp": "off"})
        training_step(network, [batch_of(0, "101", "110")], config)
        gradients.append(torch.cat([p.grad.flatten().cpu() for n, p in network.named_parameters()
                                    if "conv1.bias" not in n]))
    close(*gradients)                                 # a bias before a normalisation has no gradient but rounding


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_learns_and_its_checkpoint_works_on_a_cpu(flags, tmp_path, amp):
    assert train.main(flags(tmp_path / "run", "--device", "cuda", "--amp", amp)) == 0
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    assert len(losses) == 10 and losses[-1] < losses[0]
    weights = checkpoint.read(tmp_path / "run" / "last.pt")["weights"]
    assert all(t.device.type == "cpu" and t.isfinite().all() for t in weights.values() if t.is_floating_point())
    assert uniseg.load(tmp_path / "run" / "last.pt", "cpu").device.type == "cpu"


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(flags, tmp_path, monkeypatch):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert train.main(flags(whole, "--device", "cuda")) == 0
    real = train.log

    def stop(path, record):
        real(path, record)
        if record["epoch"] == 4:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(train, "log", stop)
        assert train.main(flags(parted, "--device", "cuda")) == 130
    assert train.main(flags(parted, "--device", "cuda", "--resume")) == 0
    one, other = (checkpoint.read(out / "last.pt")["weights"] for out in (whole, parted))
    for name, weights in one.items():
        if weights.is_floating_point() and "conv1.bias" not in name:
            close(other[name], weights, 1e-2)
    assert [r["step"] for r in metrics(whole)] == [r["step"] for r in metrics(parted)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train(flags, tmp_path):
    process = torchrun(*flags(tmp_path / "run", "--device", "cuda"))
    err = ended(process)
    assert process.returncode == 0, err
    assert metrics(tmp_path / "run")[-1]["step"] == 20


def test_windows_add_up_to_the_same_bits_on_a_gpu_and_on_a_cpu(monkeypatch):
    image, found = torch.randn(40, 36, 50, generator=torch.Generator().manual_seed(0)), {}
    for place in ("cuda", "cpu"):
        monkeypatch.setattr("uniseg.sliding_window.place_of_sums", lambda values, device: torch.device(place))
        slabs = sliding_window(image, lambda x: torch.cat([x, -x], 1), 2, (16, 16, 16), device="cuda")
        found[place] = torch.cat([slab.clone() for _, slab in slabs], dim=3)
    assert torch.equal(found["cuda"], found["cpu"])


def test_a_ct_is_segmented_alike(phantom_ct):
    """Of a million voxels a handful lie on a boundary so exactly that rounding decides."""
    labels = []
    for device in ("cuda", "cpu"):
        result = uniseg.load(device=device).segment(phantom_ct.path)
        labels.append(result.label_map)
    assert labels[1].any()
    assert (labels[0] != labels[1]).mean() < 1e-3
