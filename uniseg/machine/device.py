"""What a process asks of its machine: a device, its fellow processes, signals, memory; and what to say when the machine fails."""


import torch


def choose_device(name="auto"):
    """torch.device for 'auto' (a CUDA GPU if there is one, else the CPU), 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises ValueError where the named device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not usable here ({str(error).splitlines()[0]}). Use --device cpu.") from None
    return device


# -------------------------------------------------------------------------------------------- several processes, one run


def with_tensor_cores(device):
    """The device. On a GPU this process multiplies float32 matrices, those of the class heads, in TF32 from now on, as cuDNN convolves."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device




# ---------------------------------------------------------------------------------------------------------------- signals


# ----------------------------------------------------------------------------------------------------------------- memory
