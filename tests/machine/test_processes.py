"""processes.py: which GPU a process of torchrun takes. No GPU is needed to say which."""

import pytest
import torch

from uniseg.machine.processes import device_here, start_processes


@pytest.fixture
def two_gpus(monkeypatch):
    """As if this machine had two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("rank, own, shared", [
    (0, "cuda:0", "cuda:0"), (1, "cuda:1", "cuda:1"), (2, "cuda:2", "cuda:0"), (5, "cuda:5", "cuda:1")])
def test_each_process_has_its_own_gpu_or_shares_one(two_gpus, monkeypatch, rank, own, shared):
    for name, value in (("WORLD_SIZE", 6), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    assert device_here("auto") == device_here("cuda") == own
    assert device_here("auto", shared=True) == shared
    assert device_here("cpu", shared=True) == "cpu" and device_here("cuda:1", shared=True) == "cuda:1"


def test_a_single_process_takes_what_its_user_names(two_gpus, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert device_here("auto") == "auto" and device_here("cuda", shared=True) == "cuda"


def test_a_training_with_more_processes_than_gpus_says_so(monkeypatch):
    """As far as a machine without a GPU can tell: the device is asked for before the processes join."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def no_such_gpu(*size, device):
        raise RuntimeError("CUDA error: invalid device ordinal")
    monkeypatch.setattr(torch, "empty", no_such_gpu)
    with pytest.raises(ValueError, match=r"--device cuda:1: not usable here \(there is 1 GPU, numbered from 0\)"):
        start_processes("auto")
