"""A case from its CT to the files of its result, for `infer` and `evaluate`, also where two runs make the same ones.

Read plan.py, finished.py and result.py first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..imaging.file_names import json_path
from ..machine.console import one_error_line, warn
from ..machine.files import FileError, one_line, refused_in_one_line
from ..machine.json_files import read_json
from ..machine.seldom import Seldom
from ..viewer.index_page import write_index
from .disk import check_disk
from .finished import remaining, why_not
from .outputs import Outputs
from .plan import Job, plan
from .result import Segmentation
from .table import folder_of_all, table_of

EXISTING = ("refuse", "keep", "replace")     # what happens to former results
# What makes a case fail without an end to the others.
FAULTS = (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError)


class MadeMeanwhile(Exception):
    """Another run has made the very result since this one began."""


def make(segmenter: Any, job: Job, outputs: Outputs, options: Mapping[str, Any], existing: str,
         progress: bool | str = True) -> Segmentation:
    """Segment a CT and write its result; returns the Segmentation.

    segmenter: a segmenter.Segmenter, which the caller makes: this file stands below it
    outputs:   what is written besides label map and JSON
    options:   arguments of Segmenter.segment
    existing:  what happens to a result that another run has made meanwhile: "refuse", "replace", or "keep" it if it is
               the one asked for
    progress:  whether to show how far the work is; a text stands in front of it
    Raises MadeMeanwhile where it is kept, FileError where it is refused or nothing can be written, and what
    Segmenter.segment raises.
    """
    check = _check_of(segmenter, job, outputs, options, existing)
    check()
    segmentation: Segmentation = segmenter.segment(job.ct, progress=progress, **options)
    with refused_in_one_line(job.result.parent):
        job.result.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_if(check, job.result, outputs)
    return segmentation


def with_index(jobs: Sequence[Job], planned: Sequence[Job], outputs: Outputs, folder: Path | None) -> Iterator[Job]:
    """The jobs, one after the other. As they go on, index.html is made anew where viewers are written.

    planned: all that the user named, also those whose results are kept; a single CT gets no index.html
    folder:  of all results (table.folder_of_all), which gets one page; None: each folder of results gets its own
    """
    wanted = outputs.view and len(planned) > 1
    folders = sorted({job.result.parent for job in planned} if folder is None else {folder}) if wanted else []
    pages = [Seldom(partial(_try_index, folder)) for folder in folders]
    try:
        for page in pages:
            page()
        for job in jobs:
            yield job
            for page in pages:
                page()
    finally:
        for page in pages:
            page(surely=True)


def _try_index(folder: Path) -> None:
    """Write index.html; where it cannot be written, the results are worth no less, and a warning says so."""
    try:
        if folder.is_dir():
            write_index(folder)
    except FileError as error:
        warn(str(error))


class Outcome(NamedTuple):
    """What became of a case. Where both are None, another run has made the very result meanwhile, and it stays.

    The Segmentation itself is not kept: its masks would take memory while the next case is segmented.
    """

    stats: dict[str, Any] | None = None
    error: Exception | None = None


def make_each(segmenter: Any, jobs: Sequence[Job], planned: Sequence[Job], outputs: Outputs, options: Mapping[str, Any],
              existing: str, progress: bool = True, folder: Path | None = None) -> Iterator[tuple[Job, Outcome]]:
    """`make` for one job after the other. One that fails does not stop the others.

    jobs:    those to make
    planned: all that the user named, also those whose results are kept
    folder:  of all results, for index.html; None: each folder of results gets its own
    """
    for number, job in enumerate(with_index(jobs, planned, outputs, folder), start=1):
        place = place_of(job, number, len(jobs)) if progress else False
        try:
            outcome = Outcome(make(segmenter, job, outputs, options, existing, place).stats)
        except MadeMeanwhile:
            outcome = Outcome()
        except FAULTS as error:
            outcome = Outcome(error=error)
        yield job, outcome


class Case(NamedTuple):
    """What became of one CT of many."""

    ct: Path
    label_map: Path
    stats: dict[str, Any] | None   # the content of its JSON; None where it failed
    error: str = ""                # one line


def make_all(segmenter: Any, inputs: Sequence[Path], out: Path | None, outputs: Outputs, options: Mapping[str, Any],
             existing: str, recursive: bool, progress: bool) -> list[Case]:
    """What Segmenter.segment_all returns: the work of `infer`, case by case, whose failures do not stop the others."""
    if existing not in EXISTING:
        raise ValueError(f"existing={existing!r}: choose one of {', '.join(EXISTING)}.")
    jobs = plan(inputs, out, outputs, existing != "refuse", recursive)
    table, asked = table_of(inputs, out, jobs), segmenter.asked(**options)
    to_do = remaining(jobs, outputs, asked) if existing == "keep" else jobs
    check_disk(to_do, len(asked.classes) if outputs.masks else 0, outputs.most_bytes)
    cases: dict[Job, Case] = {}
    write_table = Seldom(table.write if table is not None else lambda: None)
    try:
        write_table()
        for job, (stats, error) in make_each(segmenter, to_do, jobs, outputs, options, existing, progress,
                                             folder_of_all(inputs, out, jobs)):
            if error is not None:
                cases[job] = Case(job.ct, job.result, None, one_error_line(error, job.ct))
            elif stats is not None:
                cases[job] = Case(job.ct, job.result, stats)
            write_table()
    finally:
        write_table(surely=True)
    return [cases.get(job) or Case(job.ct, job.result, read_json(json_path(job.result))) for job in jobs]


def place_of(job: Job, number: int, of: int) -> str:
    """What stands in front of the progress of a case: "case 3 of 12 s0003/ct.nii.gz", "ct.nii.gz" where it is alone."""
    return f"case {number} of {of} {Path(job.ct.parent.name, job.ct.name)}" if of > 1 else job.ct.name


def _check_of(segmenter: Any, job: Job, outputs: Outputs, options: Mapping[str, Any],
              existing: str) -> Callable[[], None]:
    """The function that looks whether another run has made the result meanwhile."""
    def check() -> None:
        if existing == "keep" and why_not(job.ct, job.result, outputs, segmenter.asked(**options)) is None:
            raise MadeMeanwhile
        if existing == "refuse" and (there := _first_that_exists(job.result, json_path(job.result))):
            raise FileError(one_line(there, "exists already, another run has made it meanwhile",
                                     "Give --overwrite to replace it, or --resume to keep what is complete"))
    return check


def _first_that_exists(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)
