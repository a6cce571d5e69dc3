"""A case from its CT to the files of its result, for `infer` and `evaluate`, also where two runs make the same ones.

Read plan.py, finished.py and result.py first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..imaging.file_names import json_path
from ..machine.files import FileError, one_line, refused_in_one_line
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
