"""A case from its CT to the files of its result, for `infer` and `evaluate`, also where two runs make the same ones.

Read plan.py, finished.py and result.py first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..imaging.file_names import json_path
from ..machine.console import warn
from ..machine.files import FileError, one_line, refused_in_one_line
from ..viewer.index_page import write_index
from .finished import why_not
from .outputs import Outputs
from .plan import Job
from .result import Segmentation


class MadeMeanwhile(Exception):
    """Another run has made the very result since this one began."""


def make(segmenter: Any, job: Job, outputs: Outputs, options: Mapping[str, Any], existing: str) -> Segmentation:
    """Segment a CT and write its result; returns the Segmentation.

    segmenter: a segmenter.Segmenter, which the caller makes: this file stands below it
    outputs:   what is written besides label map and JSON
    options:   arguments of Segmenter.segment
    existing:  what happens to a result that another run has made meanwhile: "refuse", "replace", or "keep" it if it is
               the one asked for
    Raises MadeMeanwhile where it is kept, FileError where it is refused or nothing can be written, and what
    Segmenter.segment raises.
    """
    check = _check_of(segmenter, job, outputs, options, existing)
    check()
    segmentation: Segmentation = segmenter.segment(job.ct, progress=True, **options)
    with refused_in_one_line(job.result.parent):
        job.result.parent.mkdir(parents=True, exist_ok=True)
    segmentation.save_if(check, job.result, outputs)
    return segmentation


def with_index(jobs: Sequence[Job], planned: Sequence[Job], outputs: Outputs) -> Iterator[Job]:
    """The jobs, one after the other. After each one, index.html of its folder is made anew where viewers are written.

    planned: all that the user named, also those whose results are kept; a single CT gets no index.html
    """
    wanted = outputs.view and len(planned) > 1
    for folder in sorted({job.result.parent for job in planned} if wanted else ()):
        _try_index(folder)
    for job in jobs:
        yield job
        if wanted:
            _try_index(job.result.parent)


def _try_index(folder: Path) -> None:
    """Write index.html; where it cannot be written, the results are worth no less, and a warning says so."""
    try:
        if folder.is_dir():
            write_index(folder)
    except FileError as error:
        warn(str(error))


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
