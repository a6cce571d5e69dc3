"""What a process asks of its machine: a device, its fellow processes, signals, memory; and what to say when the machine fails."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


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

def launched():
    """(rank, world) of this process as torchrun or a scheduler's script set it; (0, 1) for one process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), world) if world > 1 else (0, 1)


def start_processes(device_name, timeout_minutes=30.0):
    """(rank, world, device) of a training; joins the process group where torchrun started several: NCCL on GPUs, gloo on CPUs.

    timeout_minutes: how long a process waits for the others before it gives up.
    """
    torch.backends.cudnn.benchmark = True          # patches are of one size: cuDNN tries its convolutions once and takes the fastest
    _, world = launched()
    if world == 1:
        return 0, 1, with_tensor_cores(choose_device(device_name))
    if not dist.is_available():
        raise ValueError("this build of PyTorch has no torch.distributed. Start one process, without torchrun.")
    on_gpu = device_name in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = choose_device("cpu" if device_name == "auto" else device_name)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
    return dist.get_rank(), world, with_tensor_cores(device)


def with_tensor_cores(device):
    """The device. On a GPU this process multiplies float32 matrices, those of the class heads, in TF32 from now on, as cuDNN convolves."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


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


def explain(error):
    """(one line for the user, exit code) of an exception; (None, 1) for a fault of this program, whose traceback says more.

    Exit codes: 2 bad input, 1 failure at work.
    """
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:          # from a process that draws patches
        text = text.splitlines()[-1].partition(": ")[2]
    elif isinstance(error, (ConnectionError, EOFError)) or isinstance(error, FileNotFoundError) and error.filename is None:
        error = RuntimeError(text := "DataLoader worker")        # the batch lies with the one that drew it, which is gone
    line = " ".join(text.split())
    if isinstance(error, ValueError):                  # DataError, VolumeError, CheckpointError, EmbeddingError
        return line, 2
    if isinstance(error, (FloatingPointError, OSError)):
        return line, 1
    if isinstance(error, MemoryError):
        line = "out of memory"
    if isinstance(error, (RuntimeError, MemoryError)):
        return next((said for pattern, said in KNOWN_FAILURES.items() if re.search(pattern, line, re.IGNORECASE)), None), 1
    return None, 1


# What torch, gloo and NCCL say, and what it means; the first that fits. torch.distributed raises plain RuntimeErrors for most.
KNOWN_FAILURES = {
    r"backend='\w+' raised": "torch.compile fails on this machine. Leave --compile out.",
    r"DataLoader worker.*(bus error|shared memory)":
        "shared memory (/dev/shm) is too small for the patches drawn. Give --workers 0, or more of it (docker: --shm-size).",
    r"DataLoader worker": "a process that draws patches was killed, mostly for lack of memory. Reduce --workers.",
    r"out of memory|allocate memory": "out of memory. Give a smaller --batch-size (and --accumulate) or --patch-size.",
    r"EADDRINUSE|address already in use":
        "the port for the processes to meet is taken. Let torchrun --standalone find one, or choose another --master-port.",
    r"timed? ?out|timeout":
        "another process did not answer within --timeout. Look for one that was killed or stalls, or give more minutes where a "
        "preprocessing or validation takes long; then go on with --resume.",
    r"closed by peer|connection (was )?(reset|closed|refused|aborted)|socket closed|broken pipe|remote process|NCCL|gloo":
        "another process of this run ended. Its own message says why; then go on with --resume.",
}


# ---------------------------------------------------------------------------------------------------------------- signals

class Stopped(Exception):
    """A signal came within a validation, which ends without a result."""


@contextlib.contextmanager
def signals_noted():
    """A list to which SIGTERM and SIGINT are appended; so a step ends before the process does.

    A second Ctrl-C ends it at once. torchrun passes on a signal that its processes may have had from the terminal or the
    scheduler as well, hence "second" means a second later.
    """
    noted, first = [], []

    def note(number, _):
        noted.append(number)
        first.append(time.monotonic())
        if number == signal.SIGINT and first[-1] - first[0] > 1:
            raise KeyboardInterrupt
    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_signals_to_main(worker):
    """A scheduler signals every process of a job; the one that trains still needs its workers to end its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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


def any_signal(noted, device):
    """Whether any process has noted a signal, the same on all ranks."""
    return sum_over_ranks(torch.tensor(float(bool(noted)), device=device)).item() > 0


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


# ----------------------------------------------------------------------------------------------------------------- memory

def workers_that_fit(workers, batch_bytes):
    """`workers`, or 0 where /dev/shm has no room for the batches they hand over (Docker gives 64 MiB by default).

    Each worker has two batches ready (DataLoader's prefetch_factor), one more is in use. torch's other sharing strategy,
    file_system, takes its room from /dev/shm as well.
    """
    shared = Path("/dev/shm")
    need = (2 * workers + 1) * batch_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not workers or not shared.is_dir() or (free := shutil.disk_usage(shared).free) > need:
        return workers
    print(f"uniseg: warning: {shared} has {free >> 20} MiB, {workers} --workers need {need >> 20}; patches are drawn without "
          "them. Give more shared memory (docker: --shm-size) to train faster.", file=sys.stderr)
    return 0


def keep_freed_memory():
    """Tell glibc not to hand every large block back to the kernel: 1.2 to 1.75 times faster networks on a Linux CPU.

    By default each tensor of 32 MiB or more is a fresh mmap whose pages fault in one by one. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # <malloc.h>
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def peak_memory_bytes():
    """Largest resident size of this process so far; 0 where the system does not say.

    VmHWM rather than ru_maxrss: the latter is inherited through fork and exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        try:
            import resource  # not on Windows
        except ImportError:
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
