"""The device that computes, and the precision it computes in."""

import re

import torch

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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: not usable here ({reason}). Use --device cpu.") from None
    return device


def with_tensor_cores(device: torch.device) -> torch.device:
    """Return `device`; if it is a GPU, let this process multiply float32 matrices in TF32 as well.

    cuDNN's convolutions use TF32 by default, matrix products do not. Those of the class heads then use it too.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which convolutions and matrix products run in `precision`, a key of PRECISIONS.

    Does nothing for float32. Used in training, in validation and at inference.
    """
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
