"""Devices by name, the number type that a block computes in, and the smallest numbers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uniseg.machine.device import (
    OLDEST_TORCH,
    PRECISIONS,
    autocast,
    choose_device,
    choose_precision,
    denormals_as_zero,
    imitates_bf16,
    multiplies_in_bf16,
    slow_precision,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision, dtype", [
    ("float32", torch.float32), ("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_block_multiplies_in_the_precision_it_is_given(precision, dtype):
    matrix = torch.eye(4)
    with autocast(CPU, precision):
        assert (matrix @ matrix).dtype == dtype
    assert (matrix @ matrix).dtype == torch.float32


def test_the_commands_offer_precisions_that_exist():
    from uniseg import infer
    from uniseg.evaluation import options as evaluation
    from uniseg.training import options

    for parser, option in ((infer.build_parser(), "precision"), (evaluation.build_parser(), "precision"),
                           (options.build_parser(), "amp")):
        [choices] = [action.choices for action in parser._actions if action.dest == option]
        assert set(choices) <= {"auto", *PRECISIONS}


@pytest.mark.parametrize("flags, bf16", [
    ("fpu avx512f avx512_bf16 avx512vl", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx2 fma", False),
    ("fpu avx512f not_avx512_bf16", False), ("", False)])
def test_linux_tells_whether_a_processor_multiplies_in_bf16(flags, bf16, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\nmodel name : A\nflags\t\t: {flags}\nprocessor : 1\nflags\t\t: {flags}\n")
    assert multiplies_in_bf16(file) is bf16


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"Features : fp asimd bf16\n"])
def test_a_system_that_does_not_tell_is_neither_with_bf16_nor_without(content, tmp_path):
    if content is not None:
        (tmp_path / "cpuinfo").write_bytes(content)
    assert multiplies_in_bf16(tmp_path / "cpuinfo") is None


@pytest.mark.parametrize("name, device, bf16, chosen", [
    ("auto", "cpu", True, "bf16"), ("auto", "cpu", False, "float32"), ("auto", "cuda", True, "float32"),
    ("auto", "mps", True, "float32"), ("float32", "cpu", True, "float32"), ("bf16", "cpu", False, "bf16")])
def test_bf16_is_the_default_on_a_cpu_that_has_it(name, device, bf16, chosen, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: bf16)
    assert choose_precision(name, torch.device(device)) == chosen


def test_bf16_is_the_default_nowhere_else(monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: None)
    assert choose_precision("auto", CPU) == "float32"


@pytest.mark.parametrize("bf16, precision, device, warned", [
    (False, "bf16", "cpu", True), (False, "float32", "cpu", False), (False, "off", "cpu", False),
    (False, "auto", "cpu", False), (True, "bf16", "cpu", False), (None, "bf16", "cpu", False),
    (False, "bf16", "cuda", False)])
def test_a_cpu_that_imitates_bf16_is_a_warning(bf16, precision, device, warned, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: bf16)
    assert imitates_bf16(torch.device(device)) == (bf16 is False and device == "cpu")
    line = slow_precision("--amp", precision, torch.device(device))
    assert line.startswith("--amp bf16: this processor has no instructions for it") == warned == bool(line)


@pytest.mark.parametrize("name", ["mps", "vulkan", "cuda:99", "xpu", "hpu", "cuda:99999999999", "cpu:-1", "meta", "",
                                  "\x1b[2J", "n" * 5000])
def test_the_refusal_of_a_device_is_a_short_line_without_the_library_s_own_text(name):
    with pytest.raises(ValueError) as error:
        choose_device(name)
    message = str(error.value)
    assert message.startswith("--device ") and message.endswith("Use --device cpu.") and len(message) < 250
    assert message.isprintable() and "registered at" not in message


@pytest.mark.parametrize("version, accepted", [("1.13.1", False), ("2.5.1+cu121", False), ("2.6.0", True),
                                               ("2.13.0a0", True), ("3.0", True)])
def test_w12_a_torch_older_than_the_requirement_is_refused_in_one_line(version, accepted, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    if accepted:
        assert choose_device("cpu") == CPU
    else:
        with pytest.raises(ValueError, match=f"^torch {re.escape(version)}: too old, uniseg needs 2.6 or later"):
            choose_device("auto")


def test_w12_the_oldest_torch_is_that_of_the_requirement():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'"torch>={".".join(map(str, OLDEST_TORCH))},' in text


def test_a_device_that_does_not_exist_is_refused_with_the_reason():
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="--device banana: not usable here .*Use --device cpu"):
        choose_device("banana")


DENORMAL, SMALLEST = 1e-39, 1.2e-38        # float32


def half_of(number):
    """The bits of half a float32. Compared as numbers, a denormal would equal 0 within the block."""
    return (torch.tensor([number]) * 0.5).view(torch.int32).item()


def test_denormals_are_zero_within_the_block_alone():
    assert half_of(DENORMAL) != 0
    with denormals_as_zero():
        assert half_of(DENORMAL) == 0 and half_of(4 * SMALLEST) != 0
    assert half_of(DENORMAL) != 0


def test_denormals_are_kept_again_after_an_error():
    with pytest.raises(ZeroDivisionError), denormals_as_zero():
        1 / 0
    assert half_of(DENORMAL) != 0


def test_threads_that_begin_within_the_block_inherit_it():
    """In a process of its own, as the threads of this one have begun."""
    code = """
import torch
from uniseg.machine.device import denormals_as_zero
torch.set_num_threads(2)
with denormals_as_zero():
    halves = torch.full((1 << 22,), 1.2e-38) * 0.5
print(halves.view(torch.int32).count_nonzero().item())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"
