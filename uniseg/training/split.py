"""Which cases train, which validate, which classes are learned: the five-fold cross-validation of Section 4.1.2.

Read datasets/find.py and datasets/cases.py first.
"""

import argparse
import fnmatch
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..datasets.cases import Case, prepare
from ..datasets.dataset import CaseFiles, DataError, Dataset, few, in_order
from ..datasets.dataset_json import read_map
from ..datasets.find import find_datasets
from ..datasets.preparing import prepare_each
from ..embeddings import PROMPTS, EmbeddingError, find_row, load_table
from ..machine.console import note, warn
from ..machine.json_files import read_json
from ..machine.processes import from_all_ranks
from ..machine.progress import each
from ..machine.signals import ends_at_signals
from ..taxonomy import NAMES, normalise_name, resolve
from .options import preprocessing_of

MOST_CLASSES = 63                  # one bit each, of an int64; the last one is that of ignored voxels


class Job(NamedTuple):
    """A case that is to be prepared."""

    dataset: Dataset
    files: CaseFiles
    validates: bool                # else it trains

    @property
    def name(self) -> str:
        """As messages name it: dataset/case."""
        return f"{self.dataset.name}/{self.files.id}"


def gather_cases(args: argparse.Namespace, rank: int, world: int) -> tuple[list[Case], list[Case], dict[str, str]]:
    """(training cases, validation cases, {case: reason} of the cases left out), the same on all ranks.

    The cases are prepared, and the processes share the work. Rank 0 prints what is doubtful about a case. With
    --skip-bad a case that cannot be read is left out.
    Raises ValueError (also DataError, VolumeError) and OSError.
    """
    jobs = _find_jobs(args, rank)
    cases, left_out = _prepare_all(args, jobs, rank, world)
    for case in [case for case, _ in cases] if rank == 0 else ():
        for text in case.warnings:
            warn(f"{case.id}: {text}")
    train = [case for case, job in cases if not job.validates]
    if args.overfit is not None:
        val = train
    else:
        val = [case for case, job in cases if job.validates]
        train = without_copies(train, val, args.drop_copies)
    if not train:
        beside = f"--split {args.split}" if args.split is not None else f"fold {args.fold} of {args.folds}"
        raise DataError(f"{where(args)}: no training case is left beside {beside}. "
                        "Give --folds 1 to train on every case.")
    return train, val, left_out


def _find_jobs(args: argparse.Namespace, rank: int) -> list[Job]:
    """The cases that the options choose, and whether each validates. Rank 0 prints notes about the datasets."""
    name_map = read_map(args.map) if args.map else {}
    if args.data_root is None and not args.dataset:
        raise ValueError("no data: give --data-root ROOT, --dataset NAME=FOLDER, or both.")
    notes: list[str] = []
    allow = ("missing",) * args.skip_bad + ("outside",) * args.allow_outside + ("unknown",) * (args.classes is not None)
    learned = args.old["network"]["classes"] if args.old else ()
    name_map = {name: name for name in (*learned, *named_classes(args)) if name not in NAMES} | name_map
    datasets = find_datasets(args.data_root, name_map, args.dataset, notes, allow)
    if args.fold >= args.folds:
        raise ValueError(f"--fold {args.fold}: folds are numbered 0 to {args.folds - 1}.")
    held_out: set[tuple[str, str]] = set()
    if args.split is not None:
        datasets, held_out = split_by_file(datasets, args.split, notes)
    elif args.val_root is None and args.folds > 1 and args.overfit is None:
        held_out = {case for case, fold in fold_of(datasets, args.folds).items() if fold == args.fold}
    jobs = [Job(dataset, files, (dataset.name, files.id) in held_out)
            for dataset in select_cases(datasets, args.include, args.exclude) for files in dataset.cases]
    if args.overfit is not None:
        jobs = jobs[:args.overfit]
    if args.val_root is not None:
        datasets = find_datasets(args.val_root, name_map, notes=notes, allow=(*allow, "unknown"))
        jobs += [Job(dataset, files, True) for dataset in datasets for files in dataset.cases]
    for line in notes if rank == 0 else ():
        note(line)
    return jobs


def _prepare_all(args: argparse.Namespace, jobs: Sequence[Job], rank: int,
                 world: int) -> tuple[list[tuple[Case, Job]], dict[str, str]]:
    """Every job with its prepared case, and {case: reason} of those that cannot be read."""
    preprocessing, cache = preprocessing_of(args), args.cache or args.out / "cache"
    bad = {}                                                                       # number of the job: reason
    mine = range(rank, len(jobs), world)
    files = [(jobs[i].dataset, jobs[i].files) for i in mine]
    with ends_at_signals(), closing(prepare_each(files, preprocessing, cache, args.workers)) as done:
        for k, error in each(done, "preprocessing: cases", len(mine), shown=rank == 0):
            if error is not None and not args.skip_bad:
                raise error
            if error is not None:
                bad[mine[k]] = str(error)
    bad = {i: reason for of_rank in from_all_ranks(bad) for i, reason in sorted(of_rank.items())}
    cases = [(prepare(job.dataset, job.files, preprocessing, cache), job) for i, job in enumerate(jobs) if i not in bad]
    return cases, {jobs[i].name: reason for i, reason in bad.items()}


def fold_of(datasets: Sequence[Dataset], folds: int) -> dict[tuple[str, str], int]:
    """{(dataset name, case id): fold}, the same on every machine.

    The cases of each dataset are dealt out in the order of their ids. The first case of the d-th dataset goes to fold
    d, so that datasets of one case do not all fall into one fold.
    """
    return {(d.name, case.id): (j + start) % folds
            for start, d in enumerate(datasets) for j, case in enumerate(sorted(d.cases, key=lambda c: c.id))}


def matches(pattern: str, dataset: Dataset, case: CaseFiles) -> bool:
    """Whether a pattern is the name of the dataset or dataset/case; * and ? stand for any letters."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (dataset.name, f"{dataset.name}/{case.id}"))


def refuse_unmatched(patterns: Iterable[str], datasets: Sequence[Dataset], where: str) -> None:
    """Raise DataError for a pattern that matches no case. where: who gave the patterns"""
    for pattern in patterns:
        if not any(matches(pattern, d, case) for d in datasets for case in d.cases):
            raise DataError(f"{pattern!r} of {where} matches no dataset and no case. The datasets are "
                            f"{', '.join(d.name for d in datasets)}; a case is DATASET/CASE.")


def select_cases(datasets: Sequence[Dataset], include: Sequence[str] | None,
                 exclude: Sequence[str] | None) -> list[Dataset]:
    """The datasets with the cases that match a pattern of `include` (None: all) and no pattern of `exclude`.

    Raises DataError for a pattern that matches nothing.
    """
    def is_chosen(dataset: Dataset, case: CaseFiles) -> bool:
        included = include is None or any(matches(p, dataset, case) for p in include)
        return included and not any(matches(p, dataset, case) for p in exclude or ())

    refuse_unmatched([*(include or ()), *(exclude or ())], datasets, "--include or --exclude")
    chosen = [replace(d, cases=tuple(case for case in d.cases if is_chosen(d, case))) for d in datasets]
    return [d for d in chosen if d.cases]


def split_by_file(datasets: Sequence[Dataset], path: Path,
                  notes: list[str]) -> tuple[list[Dataset], set[tuple[str, str]]]:
    """(the datasets with the cases that the file of --split names, {(dataset, case id)} of those that validate).

    path:  {"training": [...], "validation": [...]}, lists of patterns (`matches`), as the paper divides its 3410 CTs
           into 2100 and 1310
    notes: gets a line about the cases that neither list names

    Raises DataError for another content, a pattern that matches nothing, and a case of both lists.
    """
    content = read_json(path, DataError)
    form = 'give {"training": [...], "validation": [...]}, lists of datasets or DATASET/CASEs'
    if not isinstance(content, dict) or set(content) != {"training", "validation"}:
        raise DataError(f"{path}: not a division into training and validation; {form}.")
    patterns: dict[str, list[str]] = content
    if not all(isinstance(of, list) and all(isinstance(p, str) for p in of) for of in patterns.values()):
        raise DataError(f"{path}: one of the two is no list of names; {form}.")
    parts: dict[str, set[tuple[str, str]]] = {}
    for part, of_part in patterns.items():
        refuse_unmatched(of_part, datasets, f"{part!r} in {path}")
        parts[part] = {(d.name, case.id) for d in datasets for case in d.cases
                       if any(matches(p, d, case) for p in of_part)}
    if both := sorted(parts["training"] & parts["validation"]):
        raise DataError(f"{path}: {few(['/'.join(case) for case in both], 'cases')} in both lists. Name each once.")
    named = parts["training"] | parts["validation"]
    chosen = [replace(d, cases=tuple(case for case in d.cases if (d.name, case.id) in named)) for d in datasets]
    if unnamed := sum(len(d.cases) for d in datasets) - len(named):
        notes.append(f"{path}: {unnamed} cases are in neither list and are left out")
    return [d for d in chosen if d.cases], parts["validation"]


def where(args: argparse.Namespace) -> Path | str:
    """What a message about all the data begins with."""
    return args.data_root or "--dataset"


def without_copies(train: Sequence[Case], val: Sequence[Case], drop: bool) -> list[Case]:
    """The training cases without those whose CT also validates. Raises DataError if there are any, unless `drop`.

    Published datasets share CTs: MSD Task03 is a part of LiTS; AbdomenCT-1K holds LiTS, KiTS and two MSD tasks.
    """
    validates = {case.content: case.id for case in val}
    copies = [c for c in train if c.content in validates]
    if copies and not drop:
        pairs = ", ".join(f"{c.id} = {validates[c.content]}" for c in copies[:5])
        raise DataError(f"{len(copies)} training cases are the same CT as a validation case: {pairs}. Leave them out "
                        "with --drop-copies, or name what to leave out with --exclude.")
    return [c for c in train if c.content not in validates]


def named_classes(args: argparse.Namespace) -> list[str]:
    """The classes that --classes names ([] without it): those of Table 2 by name or alias, others by their embedding.

    Raises ValueError for a name that is neither.
    """
    return [n for name in args.classes.split(",") for n in _named(name, args)] if args.classes is not None else []


def _named(name: str, args: argparse.Namespace) -> tuple[str, ...]:
    try:
        return resolve(name)
    except ValueError as unknown:
        try:
            if args.encoding in PROMPTS:
                find_row(load_table(args.embeddings), name)
        except EmbeddingError:
            raise ValueError(f"--classes: {unknown} A class beyond Table 2 needs a text embedding: `python -m "
                             "uniseg.embeddings` prints the names that have one, tools/make_embeddings.py --names FILE "
                             "makes a table with more, for --embeddings.") from None
        return (normalise_name(name),)


def choose_classes(args: argparse.Namespace, cases: Sequence[Case], old: Collection[str] = ()) -> list[str]:
    """The names of the model's classes in the order of Table 2: those with at least one voxel in the training cases.

    A class that is never seen cannot be learned, and it would be offered in vain.
    old: classes of the checkpoint of --extend; they come first and need no label
    Raises DataError.
    """
    seen = {name for case in cases for name, n in case.voxels.items() if n > 0}
    if args.classes is not None:
        wanted = [n for name in args.classes.split(",") for n in ((name,) if name in seen else _named(name, args))]
        if known := [n for n in wanted if n in old]:
            raise DataError(f"--classes: the checkpoint of --extend has {', '.join(known)} already. Name new ones "
                            "only.")
        if unseen := [c for c in wanted if c not in seen]:
            raise DataError(f"--classes: no training case has voxels of {', '.join(unseen)}. Leave them out.")
        seen = set(wanted)
    new = [name for name in in_order(seen) if name not in old]
    if old and not new:
        raise DataError(f"{where(args)}: the training cases label no class that the checkpoint of --extend lacks. It "
                        f"has {', '.join(old)}.")
    if len(old) + len(new) > MOST_CLASSES:
        raise DataError(f"{where(args)}: {len(old) + len(new)} classes; one bit each, {MOST_CLASSES} fit. Choose some "
                        "with --classes.")
    if not new:
        raise DataError(f"{where(args)}: the training cases have no labelled voxel. Check their labels.")
    return [*old, *new]
