"""Score predictions against references: Sections 4.2 to 4.5 and 4.7. docs/evaluation.md explains the numbers.

    python -m uniseg.evaluate --pred DIR --ref DIR            results of uniseg.infer, or of another tool, against labels
    python -m uniseg.evaluate --data-root ROOT                segments the cases of datasets (--weights W), then scores them
    python -m uniseg.evaluate --read RUN0 RUN1 ...            pools the held-out cases of cross-validation's folds

Prints a table of the classes and groups; writes cases.csv and summary.json. How masks are compared: scores.py, metrics.py.
"""

import argparse
import math
import os
import platform
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import scipy
from tqdm import tqdm

from . import taxonomy
from .datasets.dataset import DataError
from .datasets.dataset_json import read_map
from .datasets.find import named_folder
from .evaluation import folder as evaluation_folder
from .evaluation.readings import in_folder, names_beyond_table_2, predictions, references, with_empty
from .evaluation.score_tables import comparison_lines, detection_lines, fold_lines, reader_lines, summary_lines
from .evaluation.scores import GROUPS, healthy_rows, in_group, readers, score_case, summarise
from .evaluation.segment import segmented
from .evaluation.significance import paired_tests
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.console import Parser, fail, say
from .paper.tables import table_lines

OUT = Path("evaluation")


def build_parser():
    parser = Parser(prog="python -m uniseg.evaluate", epilog=NOT_A_MEDICAL_DEVICE, description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is scored")
    what.add_argument("--pred", type=Path, metavar="DIR", help="results of uniseg.infer, label maps, or a folder of masks a case")
    what.add_argument("--ref", type=Path, metavar="DIR", help="a dataset, a folder of datasets, or a folder in a form of --pred")
    what.add_argument("--data-root", type=Path, metavar="ROOT", help="datasets whose cases are segmented and scored")
    what.add_argument("--weights", type=Path, help="checkpoint for --data-root (default: the built-in weights)")
    what.add_argument("--read", type=Path, nargs="+", metavar="DIR",
                      help="score nothing: read evaluations or training runs (validation.json); several are folds")
    what.add_argument("--healthy", type=Path, metavar="DIR",
                      help="patients without tumour, for the specificity: predictions for them, or CTs with --data-root. No "
                      "label is read: they must be known to have none of the model's tumours (paper: CHAOS, Pancreas-CT)")
    what.add_argument("--against", type=Path, metavar="DIR", help="labels of a second reader, in a form of --ref (Section 4.7)")
    choice = parser.add_argument_group("which of it")
    choice.add_argument("--classes", help="only these, comma-separated; a plain folder of label maps then annotates all of them")
    choice.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                        help="beside --ref or --data-root, as in training; repeat for more")
    choice.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label}")
    choice.add_argument("--fold", type=int, help="only the cases that training with --fold K --folds N held out")
    choice.add_argument("--folds", type=int, help="N of --fold")
    choice.add_argument("--allow-missing", action="store_true", help="score the cases with a prediction, say how many have none")
    choice.add_argument("--epoch", choices=("last", "best"), default="last",
                        help="of a training run's validation.json; the best one was chosen on these very cases (default last)")
    more = parser.add_argument_group("what is made of it")
    more.add_argument("--out", type=Path, help=f"folder of cases.csv and summary.json (default {OUT}; with --read: none)")
    more.add_argument("--overwrite", action="store_true", help="replace what is in --out; predictions of the same weights stay")
    more.add_argument("--tables", action="store_true", help="the paper's Tables 3, 4, 6 and 8 with ours below")
    more.add_argument("--compare", type=Path, metavar="DIR", help="another evaluation or run: paired differences with a test")
    more.add_argument("--min-lesion-ml", type=float, default=0.0,
                      help="a tumour is found in a patient when a predicted lesion has at least this volume (default: one voxel)")
    more.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals (default %(default)s, 0: none)")
    more.add_argument("--seed", type=int, default=0, help="of the resamples (default %(default)s)")
    more.add_argument("--no-postprocess", action="store_true", help="with --data-root: as of uniseg.infer")
    more.add_argument("--device", default="auto", help="with --data-root: auto, cpu, cuda, cuda:1")
    more.add_argument("-v", "--verbose", action="store_true", help="show where an error came from")
    return parser


def main(argv=None):
    """Returns the exit code: 0 done, 1 a case failed or nothing can be written, 2 bad arguments or data, 130 interrupted."""
    args = build_parser().parse_args(argv)
    began = time.monotonic()
    try:
        try:
            check(args)
            other = evaluation_folder.read(args.compare, args.epoch)[0] if args.compare else None
            rows, about = pooled(args) if args.read else scored(args)
            tests, notes = compared(args, rows, other) if other is not None and rows else (None, [])
        except (ValueError, OSError) as error:
            return fail(error, 2, args.verbose)
        about["notes"] += notes
        try:
            if not rows:
                raise ValueError(f"{args.pred or args.data_root}: no case could be scored, as said above. Mend them first.")
            finish(args, rows, about, tests, began)
        except (ValueError, OSError) as error:
            return fail(error, 1, args.verbose)
        return 1 if about["failed"] else 0
    except KeyboardInterrupt:
        say("uniseg: interrupted; finished predictions are kept", sys.stderr)
        return 130


def check(args):
    """Refuse options that do not go together. Raises ValueError."""
    modes = [name for name, given in (("--pred with --ref", args.pred or args.ref), ("--data-root", args.data_root),
                                      ("--read", args.read)) if given]
    if len(modes) != 1:
        raise ValueError(f"{' and '.join(modes) or 'nothing to score'}: give one of --pred with --ref, --data-root, --read.")
    if bool(args.pred) != bool(args.ref):
        raise ValueError("--pred and --ref go together: predictions and what they are compared with. Give both.")
    if args.weights and not args.data_root:
        raise ValueError("--weights: segments the cases of --data-root. Give that too.")
    if args.read and (args.healthy or args.against or args.classes or args.fold is not None):
        raise ValueError("--read: scores nothing anew. Leave out --healthy, --against, --classes and --fold.")
    if (args.fold is None) != (args.folds is None) or (args.fold is not None and not 0 <= args.fold < args.folds):
        raise ValueError(f"--fold {args.fold} --folds {args.folds}: give both, --fold from 0 up to --folds - 1.")
    if not (math.isfinite(args.min_lesion_ml) and args.min_lesion_ml >= 0):
        raise ValueError(f"--min-lesion-ml {args.min_lesion_ml}: give a volume in ml, 0 or more.")
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap {args.bootstrap}: give a number of resamples, 0 for no interval.")
    args.out = args.out or (None if args.read else OUT)
    place = next(p for p in (args.out, *args.out.parents) if p.exists()) if args.out else None
    if place and not (place.is_dir() and os.access(place, os.W_OK)):
        raise ValueError(f"--out {args.out}: nothing can be written in {place}. Give another one.")
    if args.out and evaluation_folder.holds_one(args.out) and not args.overwrite:
        raise ValueError(f"{args.out}: holds an evaluation already. Give --overwrite to replace it, or another --out.")
    if args.out and args.out.resolve() in {p.resolve() for p in (args.compare, *(args.read or ())) if p}:
        raise ValueError(f"{args.out}: is read and would be written. Give another --out.")


def paired(args, about):
    """(references, {name: prediction}, {name: label of the second reader}, predictions of the healthy). Raises ValueError.

    about: gets notes, and what was segmented
    """
    segmenter = None
    if args.data_root:
        from .segmenter import load  # imports torch, which scoring does not need

        segmenter = load(args.weights, args.device)
    more = set(segmenter.classes) - set(taxonomy.NAMES) if segmenter else names_beyond_table_2(args.pred)
    name_map = {key: name for name in more for key in (name, taxonomy.normalise_name(name))}
    name_map |= read_map(args.map) if args.map else {}
    wanted = references(args.data_root or args.ref, name_map, args.dataset, about["notes"])
    wanted = of_fold(wanted, args) if args.fold is not None else wanted
    seconds = matched(references(args.against, name_map), wanted) if args.against else {}
    if args.against and not seconds:
        raise DataError(f"{args.against}: no label of a case of {args.data_root or args.ref}. Name the files as the cases.")
    if args.data_root:
        pairs, healthy = segmented(args, segmenter, wanted, about)
    else:
        pairs, healthy = predictions(args.pred, wanted, name_map), healthy_predictions(args, name_map) if args.healthy else []
        missing = [r.name for r in wanted if r.name not in pairs]
        if missing and not (args.allow_missing and pairs):
            raise DataError(f"{args.pred}: no prediction for {few(missing)} of {len(wanted)} cases. Segment them, or give "
                            "--allow-missing to score the others.")
        if missing:
            about["notes"].append(f"no prediction for {few(missing)} of {len(wanted)} cases")
    return wanted, pairs, seconds, healthy


def scored(args):
    """(rows of all cases, {"cases", "notes", "failed", ...}) of the pairs of predictions and references. Raises ValueError."""
    about = {"notes": [], "failed": []}
    wanted, pairs, seconds, healthy = paired(args, about)
    classes = chosen_classes(args, [*wanted, *pairs.values()])
    rows, absent = [], {}
    jobs = [(r, pairs[r.name]) for r in wanted if r.name in pairs] + [(None, r) for r in healthy]
    for reference, prediction in tqdm(jobs, desc="scoring", leave=False, disable=not sys.stderr.isatty()):
        try:
            if reference is None:
                rows += healthy_rows(prediction, classes, args.min_lesion_ml)
                continue
            own, left_out = score_case(reference, prediction, seconds.get(reference.name), classes, args.min_lesion_ml)
        except (ValueError, OSError, MemoryError) as error:
            fail(error, 1, args.verbose, prediction.path)
            about["failed"].append(reference.name if reference else prediction.name)
            continue
        rows += [{**row, "fold": args.fold} for row in own]
        for name in left_out:
            absent[name] = absent.get(name, 0) + 1
    if not rows and not about["failed"]:
        raise DataError(f"{args.pred or args.data_root}: no class of a case could be scored. The predictions offer "
                        f"{few(sorted({c for r in pairs.values() for c in r.classes}))}.")
    if absent:
        about["notes"].append(f"not in the predictions, not scored: {', '.join(f'{n} ({k} cases)' for n, k in absent.items())}")
    rows = without_unknown(rows, wanted, seconds, classes, about["notes"])
    about |= {"cases": len({(r["dataset"], r["case"]) for r in rows if r["dataset"] != "healthy"}), "healthy": len(healthy),
              "references": len(wanted), "second_reader": len(seconds)}
    return rows, about


def healthy_predictions(args, name_map):
    """The readings of --healthy beside --pred. Raises DataError where nobody says which tumours a label map could show."""
    if not args.healthy.is_dir():
        raise DataError(f"--healthy {args.healthy}: no such folder. Give the one with predictions for patients without tumour.")
    found = list(with_empty(in_folder(args.healthy, name_map=name_map)).values())
    if not found:
        raise DataError(f"--healthy {args.healthy}: no prediction in it. Give results for patients without tumour.")
    if args.classes is None and (unknown := [r for r in found if not r.known and r.masks is None]):
        raise DataError(f"{unknown[0].path}: a label map that does not say which tumours its model looks for. Name them with "
                        "--classes.")
    return found


def few(names):
    return f"{len(names)} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"


def of_fold(wanted, args):
    """The readings that training with --fold and --folds holds out. Raises DataError for references outside datasets."""
    from .training.split import fold_of  # imports torch

    if not all(r.source for r in wanted):
        raise DataError(f"--fold: {args.ref} holds no datasets, only labels. Give the datasets that training was given.")
    datasets = list({r.dataset: r.source[0] for r in wanted}.values())
    folds = fold_of(datasets, args.folds)
    kept = [r for r in wanted if folds[r.dataset, r.source[1].id] == args.fold]
    if not kept:
        raise DataError(f"--fold {args.fold}: holds no case of {len(wanted)}. Give another one.")
    return kept


def matched(others, wanted):
    """{name of a wanted reading: that of `others` of the same dataset and case, or of the same case alone if there is one}."""
    by_case = {}
    for reading in others:
        by_case.setdefault(reading.case, []).append(reading)
    pairs = {}
    for reading in wanted:
        same = by_case.get(reading.case, [])
        exact = [other for other in same if other.dataset == reading.dataset]
        if len(exact or same) == 1:
            pairs[reading.name] = (exact or same)[0]
    return pairs


def chosen_classes(args, readings):
    """The names of --classes, aliases resolved; None where the option is not given. Raises ValueError."""
    if args.classes is None:
        return None
    known, names = {c for r in readings for c in r.classes}, [name.strip() for name in args.classes.split(",")]
    return {c for name in names for c in ((name,) if name in known else taxonomy.resolve(name))}


def without_unknown(rows, wanted, seconds, classes, notes):
    """The rows less those of classes that a plain folder of label maps never has: nobody said that they are annotated."""
    if classes is not None:
        return rows
    plain = {(r.dataset, r.case) for r in wanted if not r.known and r.masks is None}
    seen = {row["class"] for row in rows if row["present"]}
    kept = [row for row in rows if (row["dataset"], row["case"]) not in plain or row["class"] in seen]
    if dropped := sorted({row["class"] for row in rows} - {row["class"] for row in kept}):
        notes.append(f"{len(dropped)} classes of Table 2 are in no label map of the references and count as not annotated; "
                     "--classes names those that are")
    if any(not r.known and r.masks is None for r in seconds.values()):
        drawn = {row["class"] for row in kept if row.get("reader2_voxels")}
        kept = [{k: v for k, v in row.items() if row["class"] in drawn or "reader" not in k} for row in kept]
    return kept


# ------------------------------------------------------------------------------------------------------------- segmenting


# ------------------------------------------------------------------------------------------------- reading, comparing, saying

def pooled(args):
    """(rows, about) of evaluations or training runs that are there already."""
    rows, notes = evaluation_folder.pool(args.read, args.epoch)
    if not rows:
        raise DataError(f"{args.read[0]}: no case in it. Give an evaluation or a run with validation cases.")
    return rows, {"notes": notes, "failed": [], "cases": len({(r["dataset"], r["case"]) for r in rows})}


def compared(args, rows, other):
    """({"classes", "groups"} of paired_tests, notes) of the rows and another evaluation's; (None, notes) without a pair."""
    by_class, notes = evaluation_folder.paired_differences(rows, other)
    if not by_class and args.read:
        raise DataError(f"--compare {args.compare}: no class of a case was scored in both. Compare results on the same cases.")
    if not by_class:                                           # what was scored is not thrown away
        return None, [f"--compare {args.compare}: no class of a case was scored in both, nothing is compared"]
    groups = {}
    for group in GROUPS:
        patients = {}
        for name in (n for n in by_class if in_group(group, n)):
            for patient, difference in by_class[name].items():
                patients.setdefault(patient, []).append(difference)
        groups[group] = [float(np.mean(differences)) for differences in patients.values()]
    return {part: paired_tests(found, args.bootstrap, args.seed) for part, found in
            (("classes", {name: list(found.values()) for name, found in by_class.items()}), ("groups", groups))}, notes


def finish(args, rows, about, tests, began):
    """Summarise, write into --out, print. Raises OSError or VolumeError where --out cannot be written."""
    summary = summarise(rows, args.bootstrap, args.seed)
    settings = {key: [str(v) for v in value] if isinstance(value, list) else str(value) if isinstance(value, Path) else value
                for key, value in vars(args).items() if key not in ("verbose", "overwrite")}
    result = {"disclaimer": NOT_A_MEDICAL_DEVICE,
              "versions": {"uniseg": __version__, "numpy": np.__version__, "scipy": scipy.__version__,
                           "nibabel": nibabel.__version__, "python": platform.python_version()},
              "settings": settings, **about, **summary}
    if args.read and len(args.read) > 1:
        result["folds"] = evaluation_folder.fold_means(rows)
    if args.against:
        result["readers"] = readers(rows)
    if tests:
        result["comparison"] = tests
    result["seconds"] = round(time.monotonic() - began, 1)
    if args.out:
        evaluation_folder.write(args.out, rows, result)
    for line in report_lines(args, rows, result):
        say(line)


def report_lines(args, rows, result):
    """Yield all that is printed."""
    yield "".join([f"cases scored: {result['cases']}",
                   f", of {result['references']} with a reference" if "references" in result else "",
                   f"; patients without tumour: {result['healthy']}" if result.get("healthy") else "",
                   f"; FAILED: {', '.join(result['failed'])}" if result["failed"] else ""])
    for note in result["notes"]:
        yield f"note: {note}"
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


if __name__ == "__main__":
    sys.exit(main())
