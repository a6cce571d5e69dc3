"""O24: whether a training fits into memory, asked before any work. What is free is faked; the estimate is not."""

import dataclasses

import pytest
import torch

from uniseg.machine import memory
from uniseg.machine.memory import free_memory_bytes
from uniseg.training import enough_memory
from uniseg.training.enough_memory import check_memory, remedies, rough_bytes, step_bytes
from uniseg.training.recipe import TrainConfig

PAPER = TrainConfig(steps_per_epoch=1)
SMALL = dataclasses.replace(PAPER, backbone="unet", width=8, batch_size=4, patch_size=(64, 64, 64))
GIB = 2 ** 30
CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """Set what is free, in GiB."""
    def of(gib):
        monkeypatch.setattr(enough_memory, "free_memory_bytes", lambda: None if gib is None else int(gib * GIB))
    return of


def test_o24_the_recipe_of_the_paper_is_refused_where_a_step_cannot_fit(free, monkeypatch):
    monkeypatch.setattr(enough_memory, "step_bytes", lambda *_: 20 * GIB)
    free(19)
    with pytest.raises(ValueError) as error:
        check_memory(PAPER, 32, CPU)
    assert str(error.value) == (
        "a step of swin_unetr with --batch-size 6 and --patch-size 96 96 96 needs about 30.0 GiB, this process can "
        "have 19.0 GiB. Give one or several of --batch-size 1 --accumulate 6, --activation-checkpointing, --amp bf16, "
        "--patch-size 64 64 64, --backbone segresnet.")


@pytest.mark.parametrize("gib, said", [(None, ""), (100, ""), (1.0, "warning"), (0.1, "refused")])
def test_o24_a_step_that_may_not_fit_is_a_warning_in_one_line(free, capsys, gib, said):
    """A U-Net of 8 channels, 4 patches of 64^3, 5 classes: 0.6 GiB of activations, 0.2 of logits."""
    free(gib)
    assert 0.5 * GIB < step_bytes(SMALL, 5) < 1.5 * GIB < rough_bytes(SMALL, 5)
    if said == "refused":
        with pytest.raises(ValueError, match="Give one or several of --batch-size 1 --accumulate 4, --amp bf16"):
            check_memory(SMALL, 5, CPU)
    else:
        if said == "warning":
            free(step_bytes(SMALL, 5) / GIB + 0.01)
        check_memory(SMALL, 5, CPU)
        assert capsys.readouterr().err.count("uniseg: warning: a step of unet with --batch-size 4") == (said != "")


def test_o24_what_makes_a_step_smaller_is_counted(monkeypatch):
    """Each change that a message names lowers the estimate."""
    whole = step_bytes(SMALL, 5)
    for change in ({"batch_size": 1}, {"amp": "bf16"}, {"patch_size": (32, 32, 32)}, {"freeze": "backbone"}):
        assert step_bytes(dataclasses.replace(SMALL, **change), 5) < whole
    assert step_bytes(dataclasses.replace(SMALL, ema=0.9), 5) > whole
    swin = dataclasses.replace(PAPER, width=12, batch_size=1, patch_size=(64, 64, 64))
    assert step_bytes(dataclasses.replace(swin, activation_checkpointing=True), 5) < 0.8 * step_bytes(swin, 5)
    assert remedies(dataclasses.replace(SMALL, backbone="segresnet", batch_size=1, amp="bf16"), CPU) == [
        "a smaller --width"]


def test_bf16_is_no_remedy_on_a_cpu_that_imitates_it(monkeypatch):
    assert "--amp bf16" in remedies(SMALL, CPU)
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: False)
    assert "--amp bf16" not in remedies(SMALL, CPU) and "--amp bf16" in remedies(SMALL, torch.device("cuda"))


def test_o24_the_memory_of_a_gpu_is_that_of_its_own(monkeypatch, free):
    free(1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB // 10, 80 * GIB))
    with pytest.raises(ValueError, match="cuda:1 has 0.1 GiB"):
        check_memory(SMALL, 5, torch.device("cuda", 1))


def test_o24_the_command_refuses_before_it_reads_a_case(refused, monkeypatch):
    from uniseg import train

    monkeypatch.setattr(enough_memory, "free_memory_bytes", lambda: 1000)
    monkeypatch.setattr(train, "gather_cases", None)
    assert refused().startswith("a step of unet with --batch-size 2 and --patch-size 16 16 16 needs about 0.0 GiB")


# --- What is free

def group(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_o24_the_least_limit_of_all_groups_on_the_way_counts(tmp_path, version):
    """A job may have 500, the user 300 of which 250 are in use; 40 of those are cached files."""
    if version == 2:
        own, top = "0::/user/job\n", tmp_path
        group(top / "user", memory__max="300\n", memory__current="250\n", memory__stat="anon 9\ninactive_file 40\n")
        group(top / "user" / "job", memory__max="500", memory__current="100", memory__stat="inactive_file 0\n")
        group(top, memory__max="max\n", memory__current="7", memory__stat="")
    else:
        own, top = "3:cpu:/\n4:memory:/user/job\n0::/\n", tmp_path / "memory"
        group(top / "user", memory__limit_in_bytes="300", memory__usage_in_bytes="250",
              memory__stat="total_inactive_file 40\n")
        group(top / "user" / "job", memory__limit_in_bytes="500", memory__usage_in_bytes="100", memory__stat="")
    (tmp_path / "own").write_text(own)
    assert sorted(memory._left_in_groups(tmp_path, tmp_path / "own")) == [90, 400]
    assert memory._left_in_groups(tmp_path, tmp_path / "missing") == []


def test_o24_free_memory_is_the_least_of_machine_groups_and_limit(monkeypatch):
    assert free_memory_bytes() is None or free_memory_bytes() > 2 ** 20
    monkeypatch.setattr(memory, "_left_in_groups", lambda: [7, 5])
    monkeypatch.setattr(memory, "_left_of_limit", lambda: None)
    assert free_memory_bytes() == 5
    monkeypatch.setattr(memory, "_left_in_groups", lambda: [])
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert free_memory_bytes() is None


def test_a_limit_on_the_address_space_counts(monkeypatch):
    resource = pytest.importorskip("resource")
    if memory._left_of_limit() is None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this system does not tell how much address space is used")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 ** 50, 2 ** 50))
    left = memory._left_of_limit()
    assert left is None or 0 < left < 2 ** 50
