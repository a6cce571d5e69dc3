"""Memory: what the process has used, what the C library keeps, and what shared memory has room for."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

from .console import warn


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """`workers`, or 0 with a warning where /dev/shm has no room for their batches (Docker gives it 64 MiB by default).

    Each worker has two batches ready (DataLoader's prefetch_factor), and one more is in use. torch's other way of
    sharing, file_system, takes its room from /dev/shm as well.

    workers:     DataLoader workers asked for
    batch_bytes: size of one batch
    """
    shared = Path("/dev/shm")
    need = (2 * workers + 1) * batch_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not workers or not shared.is_dir() or (free := shutil.disk_usage(shared).free) > need:
        return workers
    warn(f"{shared} has {free >> 20} MiB, {workers} --workers need {need >> 20}; patches are drawn without them. "
         "Give more shared memory (docker: --shm-size) to train faster.")
    return 0


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning each one to the kernel. Does nothing outside Linux.

    By default each tensor of 32 MiB or more is a fresh mmap whose pages fault in one by one. Keeping them makes
    networks 1.2 to 1.75 times faster on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):                     # musl has no mallopt
        return
    m_trim_threshold, m_mmap_threshold = -1, -3           # <malloc.h>
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not tell.

    Linux's VmHWM is used where it exists, because ru_maxrss is inherited through fork and exec.
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
