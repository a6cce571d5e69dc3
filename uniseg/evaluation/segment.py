"""`python -m uniseg.evaluate --data-root`: segments the cases first and keeps the predictions beside the scores.

Read segmenter.py and pairs.py first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..datasets.dataset import DataError
from ..datasets.find import find_datasets
from ..imaging.file_names import RESULT, case_name, is_nifti, masks_folder, stem
from ..inference.finished import DAMAGED, UNFINISHED, Asked, why_not
from ..inference.making import make_each
from ..inference.outputs import Outputs
from ..inference.plan import Job
from ..machine.console import fail, note, printable, warn
from ..postprocess import asked_steps
from .pairs import HealthyReading, find_predictions, healthy_name
from .readings import Reading, as_folder_name, in_folder


def segmented(args: argparse.Namespace, segmenter: Any, references: Sequence[Reading],
              outcome: dict[str, Any]) -> tuple[dict[str, Reading], list[HealthyReading]]:
    """({name of a reference: its prediction}, pairs.healthy_predictions), made in --out and kept there.

    args: the options of the command
    segmenter: a segmenter.Segmenter, which the caller makes: this file stands below it
    outcome: its "notes", "warnings" and "failed" get entries, "weights" is set

    Predictions that a former run has finished are not made again. Raises ValueError.
    """
    folder = args.out / "predictions"
    healthy = [(tumours, cts, args.out / healthy_name(cts, len(args.healthy)).replace(" ", "/", 1))
               for tumours, cts in args.healthy]
    jobs = [(r.name, r.source[1].image, folder / as_folder_name(r.dataset) / f"{r.case}{RESULT}.nii.gz")
            for r in references if r.source]
    if len(jobs) < len(references):
        raise DataError(f"{args.data_root}: holds labels without CTs. Give datasets, or --pred with --ref.")
    for _, cts, results in healthy:
        jobs += [(case, ct, results / f"{case}{RESULT}.nii.gz") for case, ct in healthy_cts(cts)]
    outcome["weights"] = segmenter.weights
    if segmenter.experimental:
        outcome["notes"].append(
            f"experimental in these weights, computed all the same: {', '.join(segmenter.experimental)}")
    _refuse_one_result_for_two(jobs)
    options = {"postprocess": asked_steps(args.steps, args.no_postprocess), "precision": args.precision,
               "experimental": True}
    to_do = [job for job in jobs if not is_made(job[1], job[2], segmenter.asked(**options), args.overwrite)]
    if len(to_do) < len(jobs):
        note(f"{len(jobs) - len(to_do)} of {len(jobs)} predictions are complete and stay as they are")
    failed = set()
    planned = [Job(ct, result) for _, ct, result in to_do]
    made = make_each(segmenter, planned, planned, Outputs(masks=True), options, "keep")
    for (name, *_), (job, (stats, error)) in zip(to_do, made):
        if error is not None:
            fail(error, 1, args.verbose, job.ct)
            failed.add(masks_folder(job.result))
            outcome["failed"].append(name)
        elif stats is None:
            note(f"{printable(str(job.result))}: another run has made it meanwhile; it stays as it is")
        else:
            tell(name, stats["warnings"], outcome)
    predictions = find_predictions(folder, references) if folder.is_dir() else {}
    without_tumour = [(r._replace(dataset=healthy_name(cts, len(healthy))), tumours)
                      for tumours, cts, results in healthy if results.is_dir() for r in in_folder(results).values()]
    return ({name: r for name, r in predictions.items() if r.path not in failed},
            [(r, tumours) for r, tumours in without_tumour if r.path not in failed])


def tell(case: str, warnings: Iterable[str], outcome: dict[str, Any]) -> None:
    """Print the warnings about a case that were not printed before, and keep them in `outcome`."""
    told = outcome.setdefault("warnings", {})
    for text in warnings:
        if text not in told.get(case, []):
            told.setdefault(case, []).append(text)
            warn(f"{case}: {text}")


def _refuse_one_result_for_two(jobs: Iterable[tuple[str, Path, Path]]) -> None:
    """Raise DataError where two CTs would be written to one file. jobs: (case, CT, result)"""
    taken: dict[str, Path] = {}
    for _, ct, result in jobs:
        other = taken.setdefault(str(result).lower(), ct)
        if other != ct:
            raise DataError(f"{ct} and {other}: both would be segmented to {result}. Rename one.")


def healthy_cts(folder: Path) -> list[tuple[str, Path]]:
    """[(case, CT)] of a folder of CTs, or of datasets, whose labels are not read. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"--healthy {folder}: no such folder. Give the one with CTs of patients without tumour.")
    files = [f for f in sorted(folder.iterdir()) if is_nifti(f.name) and not f.name.startswith(".")
             and not stem(f).endswith(RESULT)]
    if files and not (folder / "dataset.json").is_file():
        return [(case_name(f.name), f) for f in files]
    return [(as_folder_name(f"{dataset.name}_{case.id}"), case.image)
            for dataset in find_datasets(folder) for case in dataset.cases]


def is_made(ct: Path, result: Path, asked: Asked, overwrite: bool) -> bool:
    """Whether a former run finished this prediction of this CT with the same weights and settings.

    Raises ValueError where it was made with others, unless it may be overwritten.
    """
    reason = why_not(ct, result, Outputs(masks=True), asked)
    if reason in (None, UNFINISHED, *DAMAGED) or overwrite:
        return reason is None
    raise ValueError(f"{result}: was made with other weights or settings ({reason}). "
                     "Give --overwrite to replace it, or another --out.")
