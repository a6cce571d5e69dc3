"""Which cases train, which validate, which classes are learned: five-fold cross-validation of Section 4.1.2."""

import sys

from tqdm import tqdm

from .data import Preprocessing, prepare
from .datasets import DataError, find_datasets, read_map
from .runtime import from_all_ranks
from .taxonomy import NAMES, resolve


def fold_of(datasets, folds):
    """{(dataset name, case id): fold}, stratified by dataset, by sorted case id: the same on every machine.

    The first case of the d-th dataset starts at fold d, so that datasets of one case do not all fall into one fold.
    """
    return {(d.name, case[0]): (j + start) % folds
            for start, d in enumerate(datasets) for j, case in enumerate(sorted(d.cases, key=lambda c: c[0]))}


def preprocessing_of(config):
    """The Preprocessing of a TrainConfig, or of the command's options."""
    return Preprocessing((config.spacing,) * 3, tuple(config.hu_window), config.antialias)


def gather_cases(args, rank, world):
    """(training cases, validation cases), preprocessed; the work is shared among the processes. Third, {name: reason} of
    the cases left out because they cannot be read (--skip-bad, the same on all ranks; else that is an error)."""
    name_map = read_map(args.map) if args.map else None
    datasets = find_datasets(args.data_root, name_map)
    if args.fold >= args.folds:
        raise ValueError(f"--fold {args.fold}: folds are numbered 0 to {args.folds - 1}.")
    held_out = set()
    if args.val_root is None and args.folds > 1 and args.overfit is None:
        held_out = {case for case, fold in fold_of(datasets, args.folds).items() if fold == args.fold}
    jobs = [(d, c, (d.name, c[0]) in held_out) for d in datasets for c in d.cases]
    if args.overfit is not None:
        jobs = jobs[:args.overfit]
    if args.val_root is not None:
        jobs += [(d, c, True) for d in find_datasets(args.val_root, name_map) for c in d.cases]
    preprocessing, cache = preprocessing_of(args), args.cache or args.out / "cache"
    bad = {}                                                                       # number of the job: why
    for i in tqdm(range(rank, len(jobs), world), desc="preprocessing", disable=rank > 0 or not sys.stderr.isatty()):
        try:
            prepare(*jobs[i][:2], preprocessing, cache)
        except (ValueError, OSError) as error:
            if not args.skip_bad:
                raise
            bad[i] = str(error)
    bad = {i: why for found in from_all_ranks(bad) for i, why in sorted(found.items())}
    cases = [(prepare(d, c, preprocessing, cache), held) for i, (d, c, held) in enumerate(jobs) if i not in bad]
    train = [c for c, held in cases if not held]
    val = train if args.overfit is not None else [c for c, held in cases if held]
    if not train:
        raise DataError(f"{args.data_root}: no training case is left beside fold {args.fold} of {args.folds}. "
                        "Give --folds 1 to train on every case.")
    return train, val, {f"{jobs[i][0].name}/{jobs[i][1][0]}": why for i, why in bad.items()}


def choose_classes(args, cases):
    """Class names in the order of Table 2: those annotated with at least one voxel in the training cases.

    A class that is never seen cannot be learned and would only be offered in vain.
    """
    seen = {name for case in cases for name, n in case.voxels.items() if n > 0}
    if args.classes is not None:
        wanted = [c for name in args.classes.split(",") for c in ((name,) if name in seen else resolve(name))]
        if unseen := [c for c in wanted if c not in seen]:
            raise DataError(f"--classes: no training case has voxels of {', '.join(unseen)}. Leave them out.")
        seen = set(wanted)
    if len(seen) > 64:
        raise DataError(f"{args.data_root}: {len(seen)} classes; one bit each, 64 fit. Choose some with --classes.")
    if not seen:
        raise DataError(f"{args.data_root}: the training cases have no labelled voxel. Check their labels.")
    return [n for n in NAMES if n in seen] + sorted(seen - set(NAMES))
