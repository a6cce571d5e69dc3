"""Memory: what the process has used, what the C library keeps, and what shared memory has room for."""

import contextlib
import ctypes
import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from .console import warn

Given = ParamSpec("Given")
Result = TypeVar("Result")


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
    networks 1.2 to 1.75 times faster on a CPU. All threads take memory from one arena, so that each can use what
    another has freed. With an arena for each, two threads keep 0.3 GiB more (docs/performance.md).
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8           # <malloc.h>
    _of_glibc("mallopt", m_arena_max, 1)
    _of_glibc("mallopt", m_mmap_threshold, 1 << 30)
    _of_glibc("mallopt", m_trim_threshold, (1 << 31) - 1)


def returning_freed_memory(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorator: when the function has ended, the system gets back what keep_freed_memory has kept meanwhile.

    That takes a tenth of a second for a gigabyte. Does nothing outside Linux.
    """
    @functools.wraps(function)
    def run(*arguments: Given.args, **options: Given.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        finally:
            _of_glibc("malloc_trim", 0)
    return run


def _of_glibc(name: str, *arguments: int) -> None:
    """Call a function of the C library where it is glibc; musl has none of these."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*arguments)


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


def free_memory_bytes() -> int | None:
    """Bytes that this process can still take before the kernel kills it; None where the system does not tell.

    The least of what the machine has free (or can free), what the control groups of a container or a scheduler's job
    leave, and what the process's own limit (`ulimit -v`) leaves.
    """
    found = [_available(), *_left_in_groups(), _left_of_limit()]
    return min((size for size in found if size is not None), default=None)


def _available() -> int | None:
    """MemAvailable of Linux; elsewhere the whole memory of the machine, which is at least an upper bound."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):                       # Windows has no sysconf
        return None


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What each control group that this process is in leaves of its memory limit, versions 1 and 2.

    A container sees its own group as the root, a scheduler's job is some folders below it: all on the way count.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            top, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
        left += [size for group in groups if (size := _left_in_group(top / group, limit, used)) is not None]
    return left


def _left_in_group(group: Path, limit: str, used: str) -> int | None:
    """The limit of a control group less what it uses, without the cached files that the kernel drops first."""
    try:
        most = int((group / limit).read_text())                         # "max" where there is no limit: ValueError
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        return max(0, most - int((group / used).read_text()) + cached)
    except (OSError, ValueError):
        return None


def _left_of_limit() -> int | None:
    """What `ulimit -v` leaves of this process's address space."""
    try:
        import resource  # not on Windows

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None
    return None if most == resource.RLIM_INFINITY else max(0, most - used)
