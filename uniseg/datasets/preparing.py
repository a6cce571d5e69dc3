"""Many cases into the cache, in several processes at a time: what training does before its first step.

Each case has a process of its own, which ends with it: its memory is the system's again, and whatever ends the
training, no process works longer than on the case that it has begun. As many run at once as are asked for and as fit
into memory. Which process makes a case does not change its bytes. A case appears complete or not at all (cases.py), so
that a training which is started again makes those that are missing.

Read cases.py first.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from ..imaging.preprocessing import Preprocessing
from ..imaging.resampling import resampled_shape
from ..machine.console import note
from ..machine.memory import free_memory_bytes
from .cases import is_cached, prepare
from .dataset import CaseFiles, Dataset

FREE_SHARE = 0.8                   # of the free memory that is given to the processes; the rest is for the files read


class _Running(NamedTuple):
    number: int
    process: Any                   # multiprocessing's Process
    answer: Any                    # a Connection, from which the error comes, or None
    memory: int                    # bytes


def preparing_bytes(shape: Sequence[int], spacing_mm: np.ndarray, target_mm: Sequence[float] | float) -> int:
    """Bytes of memory that `cases.prepare` needs for a CT, an estimate. target_mm: voxel size of the model's grid"""
    native, model = math.prod(shape), math.prod(resampled_shape(shape, spacing_mm, target_mm))
    # Measured peaks: reading and splitting the labels at native size, or cropping and indexing at the model's.
    return int(60e6 + max(9 * native + 6 * model, 4 * native + 17 * model))


def prepare_each(cases: Sequence[tuple[Dataset, CaseFiles]], preprocessing: Preprocessing, cache: Path,
                 processes: int) -> Generator[tuple[int, Exception | None], None, None]:
    """Prepare the cases; gives the number of each one when it is done, and what is wrong with it.

    processes: the most that work at once; with 0 or 1 this process does the work
    Raises ChildProcessError where a process was killed.
    """
    missing = []
    for number, (dataset, files) in enumerate(cases):
        if is_cached(dataset, files, preprocessing, cache):
            yield number, None
        else:
            missing.append(number)
    if min(processes, len(missing)) > 1:
        yield from _in_processes(cases, deque(missing), preprocessing, cache, processes)
        return
    for number in missing:
        yield number, _error_of(*cases[number], preprocessing, cache)


def _error_of(dataset: Dataset, files: CaseFiles, preprocessing: Preprocessing, cache: Path) -> Exception | None:
    try:
        prepare(dataset, files, preprocessing, cache)
    except (ValueError, OSError) as error:
        return error
    return None


def _in_processes(cases: Sequence[tuple[Dataset, CaseFiles]], waiting: deque[int], preprocessing: Preprocessing,
                  cache: Path, processes: int) -> Iterator[tuple[int, Exception | None]]:
    """`prepare_each` of the waiting cases. Whatever ends this generator ends the processes too."""
    free, running, said = _free_bytes(), list[_Running](), False
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                need = _need(cases[waiting[0]][1], preprocessing)
                if running and sum(one.memory for one in running) + need > free:
                    if not said:
                        note(f"preprocessing: {len(running)} processes at a time instead of {processes}, as "
                             f"{free >> 20} MiB of memory are free and the next case needs {need >> 20}")
                    said = True
                    break
                running.append(_start(waiting.popleft(), need, cases, preprocessing, cache))
            ready = multiprocessing.connection.wait([one.answer for one in running])
            for one in [one for one in running if one.answer in ready]:
                error = _answer(one, cases[one.number][1])
                running.remove(one)
                yield one.number, error
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()


def _free_bytes() -> int:
    """What the processes may take together; each of several ranks on a machine has its share."""
    free = free_memory_bytes()
    return sys.maxsize if free is None else int(FREE_SHARE * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _need(files: CaseFiles, preprocessing: Preprocessing) -> int:
    """Bytes of memory that preparing a case takes; 0 for a file whose header cannot be read: it will be refused."""
    try:
        image: Any = nib.load(files.image)
        return preparing_bytes(image.shape[:3], np.array(image.header.get_zooms()[:3]), preprocessing.spacing_mm)
    except Exception:                                          # nibabel raises many kinds
        return 0


def _start(number: int, memory: int, cases: Sequence[tuple[Dataset, CaseFiles]], preprocessing: Preprocessing,
           cache: Path) -> _Running:
    # On Linux a fork, as the DataLoader's workers are: a fresh interpreter would import torch for every case.
    context: Any = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else None)
    answer, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, *cases[number], preprocessing, cache), daemon=True)
    process.start()
    theirs.close()                                             # so that the end of the process is seen here
    return _Running(number, process, answer, memory)


def _work(answer: Any, dataset: Dataset, files: CaseFiles, preprocessing: Preprocessing, cache: Path) -> None:
    """What a process does. Ctrl-C is left to the process that started it, which then ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        result: Exception | None = _error_of(dataset, files, preprocessing, cache)
    except Exception as error:                                 # as a MemoryError; raised again where it is received
        result = error
    with contextlib.suppress(BrokenPipeError):                 # nobody waits for it any more
        answer.send(result)


def _answer(one: _Running, files: CaseFiles) -> Exception | None:
    """What the process says at its end. Raises ChildProcessError where it says nothing, and what it did not expect."""
    try:
        error: Exception | None = one.answer.recv()
    except EOFError:
        raise ChildProcessError(f"{files.image}: the process that preprocesses it was killed, mostly for lack of "
                                "memory. Give fewer --workers.") from None
    finally:
        one.answer.close()
        one.process.join()
    if error is None or isinstance(error, (ValueError, OSError)):
        return error
    raise error
