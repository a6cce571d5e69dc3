"""Training in several processes: plain torch.distributed, started by torchrun."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from .device import choose_device, with_tensor_cores
from .ranks import launched, local_rank

Batches = TypeVar("Batches")


class Process(NamedTuple):
    """One process of a training: its number, how many there are, and the device on which it computes."""

    rank: int
    world: int
    device: torch.device


def device_here(name: str, shared: bool = False) -> str:
    """The name of the device of this process: of several that torchrun started on a machine, each has its own GPU.

    name:   of --device
    shared: whether processes share the GPUs where there are fewer
    """
    _, world = launched()
    if world == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{local_rank() % torch.cuda.device_count() if shared else local_rank()}"


def wait_for_all() -> None:
    """Wait until all processes of torchrun have come here; nothing without torchrun.

    torchrun ends the others as soon as one ends with an exit code other than 0, such as after a case that failed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and launched()[1] > 1 and dist.is_available():
        dist.init_process_group("gloo", timeout=timedelta(days=30))
        dist.barrier()
        dist.destroy_process_group()


def start_processes(device_name: str, timeout_minutes: float = 30.0) -> Process:
    """The Process of a training. Where torchrun started several, they join a group: NCCL on GPUs, gloo on CPUs.

    device_name:     of --device
    timeout_minutes: how long a process waits for the others before it gives up
    Raises ValueError for a device that does not exist, or where this build of PyTorch has no torch.distributed.
    """
    torch.backends.cudnn.benchmark = True          # all patches have one size: cuDNN times its algorithms once
    _, world = launched()
    if world == 1:
        return Process(0, 1, with_tensor_cores(choose_device(device_name)))
    if not dist.is_available():
        raise ValueError("this build of PyTorch has no torch.distributed. Start one process, without torchrun.")
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        device = choose_device(device_here(device_name))
        torch.cuda.set_device(device)
    else:
        device = choose_device("cpu" if device_name == "auto" else device_name)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
    return Process(dist.get_rank(), world, with_tensor_cores(device))


def several_processes() -> bool:
    """Whether this process belongs to a group of several."""
    return dist.is_available() and dist.is_initialized()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensor over all processes, in place; the tensor itself in a single process."""
    if several_processes():
        dist.all_reduce(tensor)
    return tensor


def from_all_ranks(value: Any) -> list[Any]:
    """[value of rank 0, value of rank 1, ...], the same list on every rank."""
    if not several_processes():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def any_signal(noted: Sequence[int], device: torch.device) -> bool:
    """Whether any process has noted a signal; the same answer on all ranks."""
    return sum_over_ranks(torch.tensor(float(bool(noted)), device=device)).item() > 0


def barrier() -> None:
    """Wait until all processes have come here."""
    if several_processes():
        dist.barrier()


def end_processes() -> None:
    """Leave the process group, if there is one."""
    if several_processes():
        dist.destroy_process_group()


@contextlib.contextmanager
def workers_end_with(batches: Batches) -> Iterator[Batches]:
    """Stop the DataLoader's workers when the block ends; `batches` is the DataLoader's iterator.

    They ignore SIGTERM, and after an exception the interpreter would wait for them forever.
    """
    try:
        yield batches
    finally:
        if hasattr(batches, "_shutdown_workers"):    # only iterators with workers have this; there is no public API
            batches._shutdown_workers()


def leave(code: int) -> NoReturn:
    """End the process with this exit code. Where torchrun started several, the interpreter is not taken down first.

    DistributedDataParallel keeps gloo's threads alive beyond destroy_process_group. A thread that meets the dying
    interpreter sometimes aborts the process after all its work is done
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
