"""The command `python -m uniseg.evaluate`: score predictions against references (Sections 4.2 to 4.5 and 4.7).

evaluation/options.py has the three ways to use it; docs/evaluation.md explains the numbers. How masks are compared is
in evaluation/scores.py and metrics.py. Read evaluation/readings.py first.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy

from . import taxonomy
from .datasets.dataset import DataError, few
from .datasets.dataset_json import read_map
from .evaluation import folder as evaluation_folder
from .evaluation.comparison import compare
from .evaluation.folds import fold_means, pool
from .evaluation.options import OUT, build_parser
from .evaluation.pairs import (
    HealthyReading,
    chosen_classes,
    find_predictions,
    healthy_predictions,
    match_readers,
    refuse_same_healthy,
    wanted_of_healthy,
    without_unannotated,
)
from .evaluation.readings import Reading, find_references, names_beyond_table_2, numbers_line
from .evaluation.rules import WHOLE, WITHOUT_TUMOURS, Rules, parse_tolerance
from .evaluation.score_tables import comparison_lines, detection_lines, fold_lines, reader_lines, summary_lines
from .evaluation.scores import Row, healthy_rows, readers, score_case, summarise
from .evaluation.segment import segmented, tell
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.console import fail, note, quietly, say, warn
from .machine.progress import each
from .paper.tables import table_lines
from .postprocess import asked_steps

Outcome = dict[str, Any]          # what summary.json says besides the scores: "notes", "failed" cases, counts


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and set the default of --out. Raises ValueError."""
    modes = [name for name, given in (("--pred with --ref", args.pred or args.ref), ("--data-root", args.data_root),
                                      ("--read", args.read)) if given]
    if len(modes) != 1:
        raise ValueError(f"{' and '.join(modes) or 'nothing to score'}: "
                         "give one of --pred with --ref, --data-root, --read.")
    if bool(args.pred) != bool(args.ref):
        raise ValueError("--pred and --ref go together: predictions and what they are compared with. Give both.")
    if args.weights and not args.data_root:
        raise ValueError("--weights: segments the cases of --data-root. Give that too.")
    if args.read and (args.healthy or args.against or args.classes or args.fold is not None or args.split
                      or args.tolerance is not None or args.organs != WHOLE):
        raise ValueError("--read: reads scores that exist and computes none. "
                         "Leave out --healthy, --against, --classes, --fold, --split, --tolerance and --organs.")
    if args.split and args.fold is not None:
        raise ValueError("--split and --fold: both divide the cases. Leave one out.")
    if (args.fold is None) != (args.folds is None) or (args.fold is not None and not 0 <= args.fold < args.folds):
        raise ValueError(f"--fold {args.fold} --folds {args.folds}: give both, --fold from 0 up to --folds - 1.")
    if not (math.isfinite(args.min_lesion_ml) and args.min_lesion_ml >= 0):
        raise ValueError(f"--min-lesion-ml {args.min_lesion_ml}: give a volume in ml, 0 or more.")
    parse_tolerance(args.tolerance)
    asked_steps(args.steps, args.no_postprocess)
    refuse_same_healthy(args.healthy)
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap {args.bootstrap}: give a number of resamples, 0 for no interval.")
    args.out = args.out or (None if args.read else OUT)
    if args.out:
        evaluation_folder.refuse_out(args.out, args.overwrite, [path for path in (args.compare, *(args.read or ()))
                                                                if path])


# -------------------------------------------------------------------------------------------------------------- scoring

def scored(args: argparse.Namespace) -> tuple[list[Row], Outcome]:
    """(rows of all cases, outcome) of the predictions and their references. Raises ValueError."""
    outcome: Outcome = {"notes": [], "failed": [], "warnings": {}}
    references, predictions, seconds, healthy = paired(args, outcome)
    outcome["notes"].append(numbers_line(references, predictions.values(), seconds.values()))
    classes = chosen_classes(args.classes, [*references, *predictions.values()])
    pairs = [(reference, predictions[reference.name]) for reference in references if reference.name in predictions]
    if args.organs == WITHOUT_TUMOURS:
        outcome["notes"].append("organs are scored without the tumours and cysts inside them (--organs)")
    rules = Rules(args.min_lesion_ml, parse_tolerance(args.tolerance), args.organs)
    jobs: list[tuple[Reading | None, Reading]] = [*pairs, *((None, prediction) for prediction, _ in healthy)]
    tumours_of = {(r.dataset, r.case): tumours for r, tumours in healthy}
    rows: list[Row] = []
    not_predicted: dict[str, int] = {}         # class -> cases
    for reference, prediction in each(jobs, "scoring: cases", len(jobs), leave=False):
        try:
            if reference is None:
                lacks = tumours_of[prediction.dataset, prediction.case]
                rows += healthy_rows(prediction, wanted_of_healthy(lacks, classes), rules)
                continue
            doubts: list[str] = []
            second = seconds.get(reference.name)
            case_rows, missing = score_case(reference, prediction, second, classes, rules, doubts)
            tell(reference.name, doubts, outcome)
        except (ValueError, OSError, MemoryError) as error:
            fail(error, 1, args.verbose, prediction.path)
            outcome["failed"].append(reference.name if reference else prediction.name)
            continue
        rows += [{**row, "fold": args.fold} for row in case_rows]
        for name in missing:
            not_predicted[name] = not_predicted.get(name, 0) + 1
    if not rows and not outcome["failed"]:
        offered = sorted({c for prediction in predictions.values() for c in prediction.classes})
        raise DataError(f"{args.pred or args.data_root}: no class of a case could be scored. "
                        f"The predictions offer {few(offered)}.")
    if not_predicted:
        listed = ", ".join(f"{name} ({cases} cases)" for name, cases in not_predicted.items())
        outcome["notes"].append(f"not in the predictions, not scored: {listed}")
    rows = without_unannotated(rows, references, seconds, classes, outcome["notes"])
    outcome |= {"cases": len({(r["dataset"], r["case"]) for r in rows} - set(tumours_of)),
                "healthy": len(healthy), "references": len(references), "second_reader": len(seconds)}
    return rows, outcome


def paired(args: argparse.Namespace,
           outcome: Outcome) -> tuple[list[Reading], dict[str, Reading], dict[str, Reading], list[HealthyReading]]:
    """(references, {name: prediction}, {name: label of the second reader}, pairs.healthy_predictions).

    outcome: its "notes" get entries, and with --data-root "weights" and "failed". Raises ValueError.
    """
    segmenter = None
    if args.data_root:
        from .machine.device import slow_precision  # imports torch, which scoring does not need
        from .segmenter import load

        segmenter = load(args.weights, args.device)
        if doubt := slow_precision("--precision", args.precision, segmenter.device):
            warn(doubt)
    more = set(segmenter.classes) - set(taxonomy.NAMES) if segmenter else names_beyond_table_2(args.pred)
    name_map: dict[str, str | None] = {key: name for name in more for key in (name, taxonomy.normalise_name(name))}
    name_map |= read_map(args.map) if args.map else {}
    references = find_references(args.data_root or args.ref, name_map, args.dataset, outcome["notes"],
                                 args.ref_numbers)
    references = held_out(references, args, outcome) if args.fold is not None or args.split else references
    seconds = match_readers(find_references(args.against, name_map), references) if args.against else {}
    if args.against and not seconds:
        raise DataError(f"{args.against}: no label of a case of {args.data_root or args.ref}. "
                        "Name the files as the cases.")
    if segmenter:
        predictions, healthy = segmented(args, segmenter, references, outcome)
        return references, predictions, seconds, healthy
    predictions = find_predictions(args.pred, references, name_map, args.pred_numbers, outcome["notes"])
    healthy = healthy_predictions(args.healthy, name_map, args.classes)
    missing = [reference.name for reference in references if reference.name not in predictions]
    if missing and not (args.allow_missing and predictions):
        raise DataError(f"{args.pred}: no prediction for {few(missing)} of {len(references)} cases. "
                        "Segment them, or give --allow-missing to score the others.")
    if missing:
        outcome["notes"].append(f"no prediction for {few(missing)} of {len(references)} cases")
    return references, predictions, seconds, healthy


def held_out(references: Sequence[Reading], args: argparse.Namespace, outcome: Outcome) -> list[Reading]:
    """The references that training with --fold and --folds, or --split, holds out. Raises DataError.

    outcome: its "notes" get what the file of --split leaves out
    """
    from .training.split import fold_of, split_by_file  # imports torch

    option = f"--split {args.split}" if args.split else f"--fold {args.fold}"
    sources = [reference.source for reference in references if reference.source]
    if len(sources) < len(references):
        raise DataError(f"{option}: {args.ref} holds no datasets, only labels. "
                        "Give the datasets that training was given.")
    datasets = list({dataset.name: dataset for dataset, _ in sources}.values())
    if args.split:
        validating = split_by_file(datasets, args.split, outcome["notes"])[1]
    else:
        validating = {case for case, fold in fold_of(datasets, args.folds).items() if fold == args.fold}
    chosen = [reference for reference, (dataset, case) in zip(references, sources)
              if (dataset.name, case.id) in validating]
    if not chosen:
        raise DataError(f"{option}: holds no case of {len(references)}. Give another one.")
    return chosen


# ------------------------------------------------------------------------------------------------ reading and comparing

def pooled(args: argparse.Namespace) -> tuple[list[Row], Outcome]:
    """(rows, outcome) of evaluations or training runs that exist already. Raises DataError."""
    rows, notes = pool(args.read, args.epoch)
    if not rows:
        raise DataError(f"{args.read[0]}: no case in it. Give an evaluation or a run with validation cases.")
    return rows, {"notes": notes, "failed": [], "cases": len({(row["dataset"], row["case"]) for row in rows})}


def compared(args: argparse.Namespace, rows: Iterable[Row],
             others: Iterable[Row]) -> tuple[dict[str, Any] | None, list[str]]:
    """(tests of comparison.compare, notes). Raises DataError with --read where no case is in both evaluations."""
    tests, notes = compare(rows, others, args.bootstrap, args.seed)
    if tests is None and args.read:
        raise DataError(f"--compare {args.compare}: no class of a case was scored in both. "
                        "Compare results on the same cases.")
    if tests is None:                                          # the scores are printed all the same
        return None, [f"--compare {args.compare}: no class of a case was scored in both, nothing is compared"]
    return tests, notes


# ------------------------------------------------------------------------------------------------------------ reporting

def finish(args: argparse.Namespace, rows: Sequence[Row], outcome: Outcome, tests: dict[str, Any] | None,
           began: float) -> None:
    """Summarise, write into --out, print. Raises OSError or ValueError where --out cannot be written.

    tests: of `compared`; began: time.monotonic() at the start
    """
    settings = {key: _plain(value) for key, value in vars(args).items() if key not in ("verbose", "overwrite")}
    result = {"disclaimer": NOT_A_MEDICAL_DEVICE,
              "versions": {"uniseg": __version__, "numpy": np.__version__, "scipy": scipy.__version__,
                           "nibabel": nibabel.__version__, "python": platform.python_version()},
              "settings": settings, **outcome, **summarise(rows, args.bootstrap, args.seed)}
    if args.read and len(args.read) > 1:
        result["folds"] = fold_means(rows)
    if args.against:
        result["readers"] = readers(rows)
    if tests:
        result["comparison"] = tests
    result["seconds"] = round(time.monotonic() - began, 1)
    if args.out:
        evaluation_folder.write(args.out, rows, result)
    for line in report_lines(args, rows, result):
        say(line)


def _plain(value: Any) -> Any:
    """The value of an option as JSON can store it."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, tuple):                               # of --healthy, --dataset
        return "=".join(",".join(v) if isinstance(v, tuple) else str(v) for v in value if v)
    return str(value) if isinstance(value, Path) else value


def report_lines(args: argparse.Namespace, rows: Sequence[Row], result: dict[str, Any]) -> Iterator[str]:
    """Yield all lines that are printed. result: the content of summary.json."""
    yield "".join([f"cases scored: {result['cases']}",
                   f", of {result['references']} with a reference" if "references" in result else "",
                   f"; patients without tumour: {result['healthy']}" if result.get("healthy") else "",
                   f"; FAILED: {', '.join(result['failed'])}" if result["failed"] else ""])
    for text in result["notes"]:
        yield f"note: {text}"
    yield ""
    yield from summary_lines(result)
    yield from detection_lines(result)
    if "folds" in result:
        yield from fold_lines(result["classes"], result["folds"])
    if "readers" in result:
        yield from reader_lines(result["readers"])
    if "comparison" in result:
        yield from comparison_lines(args.compare, result["comparison"])
    if args.tables:
        yield ""
        yield from table_lines(rows)
    yield ""
    yield f"{f'written to {args.out}. ' if args.out else ''}{NOT_A_MEDICAL_DEVICE}"


def main(argv: list[str] | None = None) -> int:
    """The command `python -m uniseg.evaluate`.

    Returns the exit code: 0 done, 1 a case failed or nothing can be written, 2 bad arguments or data, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    with quietly(args.quiet):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Score what the options ask for; returns the exit code of `main`."""
    began = time.monotonic()
    try:
        try:
            check(args)
            others = evaluation_folder.read(args.compare, args.epoch)[0] if args.compare else None
            rows, outcome = pooled(args) if args.read else scored(args)
            tests, notes = compared(args, rows, others) if others is not None and rows else (None, [])
        except (ValueError, OSError) as error:
            return fail(error, 2, args.verbose)
        outcome["notes"] += notes
        try:
            if not rows:
                raise ValueError(f"{args.pred or args.data_root}: no case could be scored. "
                                 "Correct the errors above first.")
            finish(args, rows, outcome, tests, began)
        except (ValueError, OSError) as error:
            return fail(error, 1, args.verbose)
        return 1 if outcome["failed"] else 0
    except KeyboardInterrupt:
        note("interrupted; finished predictions are kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
