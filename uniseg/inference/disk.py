"""Whether the results of all planned CTs will fit on the disk: asked before any work, not after hours of it.

Read plan.py first.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from ..imaging.byte_stream import ByteStream
from ..machine.console import printable, warn
from ..machine.files import FileError, one_line
from .plan import Job

# Voxels per compressed byte of a label map and of a mask. The 9 published label maps of whole bodies that these were
# measured on have 11 to 49 and 160 to 230: the estimate is an upper bound. Deflate never reaches more than 1032.
LABEL_MAP, MASK, MOST = 10, 100, 1032
OF_A_JSON = 1 << 14                # bytes


def check_disk(jobs: Sequence[Job], masks: int, further: int = 0) -> None:
    """Warn where the results may not fit on their disk, refuse where they cannot.

    masks:   the number of masks written beside each label map
    further: bytes of what else is written beside it, at most
    Raises FileError. CTs whose size cannot be read count nothing: their error comes with the segmentation.
    """
    for folder, of_disk in _by_disk(jobs).items():
        free = shutil.disk_usage(folder).free
        least = most = 0
        for job in of_disk:
            voxels = voxels_of(job.ct)
            compressed = job.result.name.endswith(".gz")
            least += voxels // MOST * (1 + masks) if compressed else voxels
            most += OF_A_JSON + further + (voxels // LABEL_MAP if compressed else voxels) + voxels // MASK * masks
        if least > free:
            what = f"the disk has {_size(free)} free, {_results(of_disk)} at least {_size(least)}"
            raise FileError(one_line(folder, what, "Make room, or give -o on another disk"))
        if most > free:
            warn(f"{printable(str(folder))}: the disk has {_size(free)} free, {_results(of_disk)} up to {_size(most)}. "
                 "Make room, or give -o on another disk.")


def _by_disk(jobs: Sequence[Job]) -> dict[Path, list[Job]]:
    """{a folder that exists: the jobs whose results are written to its disk}"""
    folders: dict[int, Path] = {}
    found: dict[Path, list[Job]] = {}
    for job in jobs:
        folder = next(p for p in (job.result.parent, *job.result.parent.parents) if p.exists())
        found.setdefault(folders.setdefault(folder.stat().st_dev, folder), []).append(job)
    return found


def _results(jobs: Sequence[Job]) -> str:
    return "the result needs" if len(jobs) == 1 else f"{len(jobs)} results need"


def _size(size: int) -> str:
    return f"{size / 2 ** 30:.1f} GiB" if size >= 2 ** 30 else f"{size / 2 ** 20:.1f} MiB"


def voxels_of(ct: Path) -> int:
    """The voxels that a NIfTI file's header states; 0 for a file that cannot be read. Nothing else of it is read."""
    try:
        with ByteStream(ct, []) as stream:
            head = stream.read(348)
        for order in "<>":
            if head[:4] == struct.pack(order + "i", 348):
                return math.prod(max(n, 1) for n in struct.unpack_from(order + "3h", head, 42))
            if head[:4] == struct.pack(order + "i", 540):
                return math.prod(max(n, 1) for n in struct.unpack_from(order + "3q", head, 24))
    except (OSError, ValueError, EOFError, struct.error):
        pass
    return 0
