"""The device that computes, and the precision it computes in."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from .console import printable, short_reason

OLDEST_TORCH = (2, 6)              # as in pyproject.toml
# Number type of autocast by the name that users give it. None: no autocast, everything stays float32.
PRECISIONS = {"float32": None, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device called 'auto' (a CUDA GPU if there is one, else the CPU), 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises ValueError where the named device does not exist, or where torch is too old for this package.
    """
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ValueError(f"torch {torch.__version__}: too old, uniseg needs {oldest} or later. Install it again, with "
                         "its requirements: pip install -U uniseg.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device {printable(name)[:40]}: not usable here ({_reason(name, error)}). "
                         "Use --device cpu.") from None
    if device.type == "meta":
        raise ValueError("--device meta: computes nothing. Use --device cpu.")
    return device


def _reason(name: str, error: BaseException) -> str:
    """Why PyTorch cannot use the device of this name. Its own messages hold lists of its operators, and paths."""
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if kind == "cuda" and number.isdecimal() and int(number) >= (count := torch.cuda.device_count()):
        return f"there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}, numbered from 0"
    if kind == "mps":
        return "PyTorch finds no GPU of Apple"
    if "device string" in str(error) or str(error).startswith("Expected one of"):
        return "no device has this name"
    return printable(short_reason(error))


def with_tensor_cores(device: torch.device) -> torch.device:
    """Return `device`; if it is a GPU, let this process multiply float32 matrices in TF32 as well.

    cuDNN's convolutions use TF32 by default, matrix products do not. Those of the class heads then use it too.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Within the block, a CPU takes float32 values below 1.2e-38 (denormals) as 0.

    Gradients of voxels that a network is sure of are full of them, and an Intel CPU needs many times as long for each
    (docs/performance.md, "Heads and loss"). Threads inherit this from the one that starts them, so begin the block
    before torch computes anything.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def has_bf16() -> bool | None:
    """Whether this processor multiplies in bfloat16. None where the system does not tell; only Linux on x86 does."""
    return multiplies_in_bf16(Path("/proc/cpuinfo"))


def multiplies_in_bf16(cpuinfo: Path) -> bool | None:
    """Whether Linux lists the instructions for it, AVX512_BF16 or AMX; None where it lists no flags."""
    try:
        line = next(line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("flags"))
    except (OSError, ValueError, StopIteration):
        return None
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())


def imitates_bf16(device: torch.device) -> bool:
    """Whether PyTorch computes bfloat16 without instructions for it, often many times slower than float32."""
    return device.type == "cpu" and has_bf16() is False


def slow_precision(option: str, precision: str, device: torch.device) -> str:
    """A warning for a user whose option asks for bf16 where PyTorch imitates it, else ""."""
    if precision != "bf16" or not imitates_bf16(device):
        return ""
    return (f"{option} bf16: this processor has no instructions for it, and PyTorch imitates them, often many times "
            "slower than float32. Leave the option out.")


def choose_precision(name: str, device: torch.device) -> str:
    """A key of PRECISIONS for "auto": bf16 on a CPU that has it, else float32. Other names stay as they are.

    A GPU keeps float32, in which its convolutions run in TF32: fast enough, and what results were scored with.
    """
    if name != "auto":
        return name
    return "bf16" if device.type == "cpu" and has_bf16() else "float32"


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Turn autocast off within the block. Some devices, such as meta, have none; nothing is turned off there."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def autocast_type(device: str) -> torch.dtype | None:
    """The number type that autocast has on this kind of device now; None where it is off, or where there is none."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which convolutions and matrix products run in `precision`, a key of PRECISIONS.

    Does nothing for float32. Used in training, in validation and at inference.
    """
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
