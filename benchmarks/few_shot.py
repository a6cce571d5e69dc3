"""Does a text embedding help where all classes share a layer, and for a new class of which there are few cases?

    python benchmarks/few_shot.py --out runs/few_shot --seeds 3 [--steps 1000 200] [--shots 1 2 4] [--only NAME ...]
                                  [--new adrenal]

Table 7 of the paper in the form of the ICCV 2023 paper (--lpg shared), where a text embedding can carry something from
one class to another. Every row of START is trained on `partial`, the assembly of partial_labels.py, whose four datasets
each annotate other classes, and scored on phantoms that are labelled in full. Then it is extended (Eq. (5)) by new
classes, which resemble old ones, from 1, 2 or 4 other phantoms, and old and new classes are scored again. --new says
which classes of NEW these are.

`random` has vectors of many numbers without any meaning: what it learns as fast as V3, meaning does not explain. The
encoder is MiniLM, not the paper's CLIP; `centred` and `whitened` are made by tools/make_embeddings.py. The command
runs at the top of a checkout and may be called again: finished trainings are not repeated, interrupted ones are
resumed. Results are in docs/ablations.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from continual import mean_of, score, shown
from partial_labels import (
    AMP,
    CLASSES,
    LABELS,
    find_phantoms,
    names_of,
    phantoms,
    train,
    unfinished,
    whole_epochs,
    write_dataset,
)

from uniseg.taxonomy import BY_NAME, TUMOUR

ROOT = Path(__file__).resolve().parents[1]
SPACING_MM = 4.0
NEW = {                                                      # --new -> labels; which old classes they resemble
    "four": ("esophagus", "portal and splenic vein", "duodenum", "intestine"),          # stomach, postcava, colon twice
    "adrenal": ("right adrenal gland", "left adrenal gland"),                           # the kidneys, by side and place
}
FIRST_SHOT, FIRST_TEST, TESTS = 2000, 1000, 6                # seeds of phantoms: of the new cases, of the test patients
TRANSFORMS = ("centred", "whitened")
SHARED = ("--lpg", "shared", "--encoding")
START = {                                                    # row -> its options; {tables}: the folder of embeddings
    "shared, one-hot": (*SHARED, "one-hot"), "shared, random": (*SHARED, "random"), "shared, V3": (*SHARED, "v3"),
    **{f"shared, V3 {way}": (*SHARED, "v3", "--embeddings", f"{{tables}}/{way}.npy") for way in TRANSFORMS},
    "one MLP a class, V3": ("--lpg-hidden", "64", "--encoding", "v3"),
    "one MLP a class, V3, He start": ("--lpg-hidden", "64", "--encoding", "v3", "--head-start", "he"),
}
COMMON = (*("--folds 1 --batch-size 2 --balance 0.5 --weight-positives --prior 0.02 --overlays 0 "
            "--workers 0").split(), *AMP)
RECIPE = "--backbone unet --width 8 --spacing 6 --patch-size 32 32 32 --lr 2e-3 --warmup-epochs 2".split()
EXTEND = "--lr 1e-3 --warmup-epochs 1".split()

Scores = Mapping[str, float]                                 # {class: Dice}
Results = dict[str, dict[int, dict[int, Scores]]]            # {row: {shots, 0 for the first training: {seed: scores}}}


# ---------------------------------------------------------------------------------------------------------------- data

def shots_folder(new: str, shots: int) -> str:
    """The name of the folder with so many cases of some new classes."""
    return f"{new}-shots{shots}"


def find_data(out: Path, new: str, shots: Sequence[int], spacing_mm: float = SPACING_MM, tests: int = TESTS) -> None:
    """Write what is missing of OUT/partial, OUT/four-shots1, ..., OUT/every (the test) and OUT/tables.

    The case of 1 shot is also one of 2 and of 4. The test patients are those of partial_labels.py, with all of NEW
    labelled.
    """
    find_phantoms(out, ["partial"])
    every = (*LABELS, *(label for labels in NEW.values() for label in labels))
    for name, first, count, drawn in [(shots_folder(new, n), FIRST_SHOT, n, NEW[new]) for n in shots] + \
            [("every", FIRST_TEST, tests, every)]:
        if not (out / name / "Phantoms" / "dataset.json").is_file():
            write_dataset(out / name / "Phantoms", phantoms(first, count, spacing_mm), drawn, drawn, every)
    (out / "tables").mkdir(exist_ok=True)
    for way in TRANSFORMS:
        if not (out / "tables" / f"{way}.npy").is_file():
            subprocess.check_call([sys.executable, ROOT / "tools" / "make_embeddings.py", "--from",
                                   ROOT / "embeddings.npy", "--transform", way, "--out", out / "tables" / f"{way}.npy"],
                                  stdout=subprocess.DEVNULL)


# ----------------------------------------------------------------------------------------------------------- trainings

def chain(args: argparse.Namespace, row: str, seed: int) -> Iterator[tuple[int, Path, list[str]]]:
    """(shots, run folder, options) of the trainings of one row: the first one (0 shots), and its extensions."""
    options = [option.format(tables=args.out / "tables") for option in START[row]]
    name = "".join(c if c.isalnum() else "-" for c in row.lower())
    first = args.out / "runs" / f"{name}-seed{seed}"
    yield 0, first, [*COMMON, *RECIPE, *options]
    table = options[options.index("--embeddings"):][:2] if "--embeddings" in options else []
    for shots in args.shots:
        yield shots, args.out / "runs" / f"{name}-seed{seed}-{shots_folder(args.new, shots)}", [
            *COMMON, *EXTEND, *table, "--extend", str(first / "last.pt"), "--classes",
            ",".join(name for label in NEW[args.new] for name in names_of(label))]


def results_of(args: argparse.Namespace) -> Results:
    """Train and score all rows, seed by seed; with --finished only read what is there."""
    results: Results = {row: {shots: {} for shots in (0, *args.shots)} for row in args.only}
    for seed in range(args.seeds):
        for row in args.only:
            for shots, folder, options in chain(args, row, seed):
                if args.finished and unfinished(folder) is not None:
                    continue
                data = args.out / (shots_folder(args.new, shots) if shots else "partial")
                weights = train(data, folder, args.out / "cache", args.steps[shots > 0], seed, options)
                results[row][shots][seed] = score(weights, args.out / "every")
    return results


# -------------------------------------------------------------------------------------------------------------- tables

def first_trainings(results: Results) -> Iterator[str]:
    """Markdown lines: the first training of every row."""
    lesions = [name for name in CLASSES if BY_NAME[name].kind == TUMOUR]
    groups = {"organs": [name for name in CLASSES if name not in lesions], "lesions": lesions, "all 16": CLASSES}
    yield f"| | seeds | {' | '.join(groups)} | classes below 0.1 |"
    yield "|--" * (3 + len(groups)) + "|"
    for row, by_shots in results.items():
        if seeds := list(by_shots[0].values()):
            cells = [shown([float(np.mean([one[name] for name in names])) for one in seeds])
                     for names in groups.values()]
            late = [sum(one[name] < 0.1 for name in CLASSES) for one in seeds]
            yield f"| {row} | {len(seeds)} | {' | '.join(cells)} | {', '.join(map(str, late))} |"


def extensions(results: Results, new: Sequence[str]) -> Iterator[str]:
    """Markdown lines: each new class and their mean per number of cases, and the change of the old classes."""
    yield f"| | cases | seeds | {' | '.join(new)} | mean of new | change of old |"
    yield "|--" * (5 + len(new)) + "|"
    for row, by_shots in results.items():
        for shots, seeds in by_shots.items():
            if shots and seeds:
                groups = [*([label] for label in new), new]
                cells = [shown([mean_of(one, group) for one in seeds.values()]) for group in groups]
                change = [float(np.mean([one[name] - by_shots[0][seed][name] for name in CLASSES]))
                          for seed, one in seeds.items()]
                yield f"| {row} | {shots} | {len(seeds)} | {' | '.join(cells)} | {shown(change)} |"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot"),
                        help="folder for phantoms, tables and runs (default %(default)s)")
    parser.add_argument("--steps", type=whole_epochs, nargs=2, default=(1000, 200), metavar=("FIRST", "LATER"),
                        help="optimiser steps of a first training and of an extension (default 1000 200)")
    parser.add_argument("--seeds", type=int, default=3, help="with seeds 0, 1, ... (default %(default)s)")
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 2, 4],
                        help="cases of the new classes; none: no extension (default 1 2 4)")
    parser.add_argument("--new", choices=tuple(NEW), default="four",
                        help="the new classes: four that resemble stomach, postcava and colon, or the adrenal glands "
                        "(default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=tuple(START), default=tuple(START), help="rows (default: all)")
    parser.add_argument("--finished", action="store_true", help="train nothing, show what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score all rows and print the tables."""
    args = build_parser().parse_args(argv)
    find_data(args.out, args.new, args.shots)
    results = results_of(args)
    print("\n".join(["First trainings", "", *first_trainings(results), "", "Extensions", "",
                     *extensions(results, NEW[args.new])]))


if __name__ == "__main__":
    main()
