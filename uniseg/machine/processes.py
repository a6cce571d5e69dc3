"""Several processes, one run: plain torch.distributed, started by torchrun."""

import contextlib
import os
import sys
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from .device import choose_device, with_tensor_cores


class Process(NamedTuple):
    """One process of a training: its number, how many there are, and the device on which it computes."""

    rank: int
    world: int
    device: torch.device


def launched():
    """(rank, world) of this process as torchrun or a scheduler's script set it; (0, 1) for one process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), world) if world > 1 else (0, 1)


def start_processes(device_name: str, timeout_minutes: float = 30.0) -> Process:
    """The Process of a training. Where torchrun started several they join a group: NCCL on GPUs, gloo on CPUs.

    timeout_minutes: how long a process waits for the others before it gives up.
    """
    torch.backends.cudnn.benchmark = True          # patches are of one size: cuDNN tries its convolutions once and takes the fastest
    _, world = launched()
    if world == 1:
        return Process(0, 1, with_tensor_cores(choose_device(device_name)))
    if not dist.is_available():
        raise ValueError("this build of PyTorch has no torch.distributed. Start one process, without torchrun.")
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = choose_device("cpu" if device_name == "auto" else device_name)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
    return Process(dist.get_rank(), world, with_tensor_cores(device))


def several_processes():
    return dist.is_available() and dist.is_initialized()


def sum_over_ranks(tensor):
    """The tensor summed over all processes, in place; itself where there is one."""
    if several_processes():
        dist.all_reduce(tensor)
    return tensor


def from_all_ranks(value):
    """[the value of rank 0, of rank 1, ...], the same on every rank."""
    if not several_processes():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier():
    if several_processes():
        dist.barrier()


def end_processes():
    if several_processes():
        dist.destroy_process_group()


@contextlib.contextmanager
def workers_end_with(batches):
    """When the block ends the processes that draw the patches of a DataLoader's iterator do; they do not heed SIGTERM.

    An exception keeps the iterator alive until the interpreter exits, which waits for them.
    """
    try:
        yield batches
    finally:
        if hasattr(batches, "_shutdown_workers"):          # there are such processes; DataLoader has no public word for it
            batches._shutdown_workers()


def leave(code):
    """End the process with this exit code; where torchrun started several, without taking the interpreter down first.

    DistributedDataParallel keeps gloo's threads alive beyond destroy_process_group; one that meets the dying interpreter
    aborts the process now and then, after all its work is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def any_signal(noted, device):
    """Whether any process has noted a signal, the same on all ranks."""
    return sum_over_ranks(torch.tensor(float(bool(noted)), device=device)).item() > 0
