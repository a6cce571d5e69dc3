"""Which cases train, which validate, which classes are learned: five-fold cross-validation of Section 4.1.2."""

import fnmatch
import sys
from dataclasses import replace

from tqdm import tqdm

from ..datasets.cases import prepare
from ..datasets.dataset import DataError, in_order
from ..datasets.dataset_json import read_map
from ..datasets.find import find_datasets
from ..embeddings import PROMPTS, EmbeddingError, find_row, load_table
from ..imaging.preprocessing import Preprocessing
from ..machine.console import say
from ..machine.processes import from_all_ranks
from ..taxonomy import NAMES, normalise_name, resolve


def fold_of(datasets, folds):
    """{(dataset name, case id): fold}, stratified by dataset, by sorted case id: the same on every machine.

    The first case of the d-th dataset starts at fold d, so that datasets of one case do not all fall into one fold.
    """
    return {(d.name, case[0]): (j + start) % folds
            for start, d in enumerate(datasets) for j, case in enumerate(sorted(d.cases, key=lambda c: c[0]))}


def preprocessing_of(config):
    """The Preprocessing of a TrainConfig, or of the command's options."""
    return Preprocessing((config.spacing,) * 3, tuple(config.hu_window), config.antialias, config.pad)


def select_cases(datasets, include, exclude):
    """The datasets with the cases that match a pattern of `include` (None: all) and none of `exclude`.

    A pattern is a dataset's name, or dataset/case; * and ? stand for any letters. Raises DataError for one that matches nothing.
    """
    def hits(pattern, dataset, case):
        return any(fnmatch.fnmatchcase(name, pattern) for name in (dataset.name, f"{dataset.name}/{case[0]}"))

    every = [(d, c) for d in datasets for c in d.cases]
    for pattern in [*(include or ()), *(exclude or ())]:
        if not any(hits(pattern, d, c) for d, c in every):
            raise DataError(f"{pattern!r} of --include or --exclude matches no dataset and no case. The datasets are "
                            f"{', '.join(d.name for d in datasets)}; a case is DATASET/CASE.")

    def wanted(d, c):
        return (include is None or any(hits(p, d, c) for p in include)) and not any(hits(p, d, c) for p in exclude or ())
    kept = [replace(d, cases=tuple(c for c in d.cases if wanted(d, c))) for d in datasets]
    return [d for d in kept if d.cases]


def gather_cases(args, rank, world):
    """(training cases, validation cases), preprocessed; the work is shared among the processes. Third, {name: reason} of
    the cases left out because they cannot be read (--skip-bad, the same on all ranks; else that is an error)."""
    name_map = read_map(args.map) if args.map else {}
    if args.data_root is None and not args.dataset:
        raise ValueError("no data: give --data-root ROOT, --dataset NAME=FOLDER, or both.")
    notes = []
    allow = ("missing",) * args.skip_bad + ("outside",) * args.allow_outside + ("unknown",) * (args.classes is not None)
    learned = args.old["network"]["classes"] if args.old else ()
    name_map = {name: name for name in (*learned, *named_classes(args)) if name not in NAMES} | name_map
    datasets = find_datasets(args.data_root, name_map, args.dataset, notes, allow)
    if args.fold >= args.folds:
        raise ValueError(f"--fold {args.fold}: folds are numbered 0 to {args.folds - 1}.")
    held_out = set()
    if args.val_root is None and args.folds > 1 and args.overfit is None:
        held_out = {case for case, fold in fold_of(datasets, args.folds).items() if fold == args.fold}
    jobs = [(d, c, (d.name, c[0]) in held_out) for d in select_cases(datasets, args.include, args.exclude) for c in d.cases]
    if args.overfit is not None:
        jobs = jobs[:args.overfit]
    if args.val_root is not None:
        val = find_datasets(args.val_root, name_map, notes=notes, allow=(*allow, "unknown"))
        jobs += [(d, c, True) for d in val for c in d.cases]
    for note in notes if rank == 0 else ():
        say(f"uniseg: {note}", sys.stderr)
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
    if args.overfit is None:
        train = without_copies(train, val, args.drop_copies)
    if not train:
        raise DataError(f"{where(args)}: no training case is left beside fold {args.fold} of {args.folds}. "
                        "Give --folds 1 to train on every case.")
    return train, val, {f"{jobs[i][0].name}/{jobs[i][1][0]}": why for i, why in bad.items()}


def where(args):
    """What a message about all the data begins with."""
    return args.data_root or "--dataset"


def without_copies(train, val, drop):
    """The training cases; those whose CT also validates are dropped, or refused with a DataError unless `drop`.

    Published datasets share CTs: MSD Task03 is a part of LiTS, AbdomenCT-1K holds LiTS, KiTS and two MSD tasks.
    """
    held = {case.content: case.id for case in val}
    copies = [c for c in train if c.content in held]
    if copies and not drop:
        pairs = ", ".join(f"{c.id} = {held[c.content]}" for c in copies[:5])
        raise DataError(f"{len(copies)} training cases are the same CT as a validation case: {pairs}. Leave them out with "
                        "--drop-copies, or name what to leave out with --exclude.")
    return [c for c in train if c.content not in held]


def named_classes(args):
    """The classes that --classes names, () without it: Table 2's by name or alias, and others that have a text embedding.

    Raises ValueError for a name that is neither.
    """
    return [n for name in args.classes.split(",") for n in _named(name, args)] if args.classes is not None else []


def _named(name, args):
    try:
        return resolve(name)
    except ValueError as unknown:
        try:
            if args.encoding in PROMPTS:
                find_row(load_table(args.embeddings), name)
        except EmbeddingError:
            raise ValueError(f"--classes: {unknown} A class beyond Table 2 needs a text embedding: `python -m uniseg.embeddings` "
                             "prints the names that have one, tools/make_embeddings.py --names FILE makes a table with more, for "
                             "--embeddings.") from None
        return (normalise_name(name),)


def choose_classes(args, cases, old=()):
    """The model's class names: those annotated with at least one voxel in the training cases, in the order of Table 2.

    old: classes of the checkpoint of --extend, which come first and need no label
    A class that is never seen cannot be learned and would only be offered in vain. Raises DataError.
    """
    seen = {name for case in cases for name, n in case.voxels.items() if n > 0}
    if args.classes is not None:
        wanted = [n for name in args.classes.split(",") for n in ((name,) if name in seen else _named(name, args))]
        if known := [n for n in wanted if n in old]:
            raise DataError(f"--classes: the checkpoint of --extend has {', '.join(known)} already. Name new ones only.")
        if unseen := [c for c in wanted if c not in seen]:
            raise DataError(f"--classes: no training case has voxels of {', '.join(unseen)}. Leave them out.")
        seen = set(wanted)
    new = [name for name in in_order(seen) if name not in old]
    if old and not new:
        raise DataError(f"{where(args)}: the training cases label no class that the checkpoint of --extend lacks. It has "
                        f"{', '.join(old)}.")
    if len(old) + len(new) > 64:
        raise DataError(f"{where(args)}: {len(old) + len(new)} classes; one bit each, 64 fit. Choose some with --classes.")
    if not new:
        raise DataError(f"{where(args)}: the training cases have no labelled voxel. Check their labels.")
    return [*old, *new]
