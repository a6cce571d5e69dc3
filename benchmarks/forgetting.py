"""What a method learns against what it forgets: the first extension of Section 5's protocols at several weights.

    python benchmarks/forgetting.py --out runs/continual --seeds 3 [--jobs 2] [--protocol body] [--finished]

trains step 1 and step 2 of continual.py's protocols, with the weight of the old classes, their Dice and the length of
step 2 changed (CURVES). Forgetting is the mean Dice of the old classes after step 1 minus that after step 2, learning
the mean Dice of the new classes after step 2. Methods that stand at different points of this trade do not compare, so
further tables have the learning of each curve at equal forgetting, over the seeds and seed by seed. The last one has
every class. OUT/PROTOCOL.png is a chart of all points.

With --scores FILE, the Dice of every class is kept in a table, which others can read and add to. A run that is in the
table is not trained again.

Two hospitals, whose CTs tools.synthetic draws (docs/forgetting.md has the commands), take the place of the phantoms
with --data STEP1 STEP2 TEST. Folders of OUT are those of continual.py, finished trainings are not repeated, and
interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import continual
import numpy as np
from continual import GROUPS, Scores, mean_of, shown
from partial_labels import unfinished

from uniseg.machine.files import atomic_write
from uniseg.pictures.canvas import FAINT, INK, blank, stroke, text, write_png
from uniseg.pictures.chart import axes, nice_ticks

Points = Mapping[str, Mapping[int, tuple[float, float]]]       # {method: {seed: (forgetting, learning)}}
AllScores = Mapping[str, Mapping[int, tuple[Scores, Scores]]]  # {method: {seed: after step 1, after step 2}}

STEPS = 2                                                      # of the protocol: the first training, one extension
CURVES = {                                                     # curve -> its methods, from much weight of the old on
    "LwF": ("LwF, old 100", "LwF, old 10", "LwF"),
    "ILT": ("ILT, old 100", "ILT, old 10", "ILT"),
    "PLOP": ("PLOP, old 100", "PLOP, old 10", "PLOP"),
    "Ours, as in Eq. (4)": ("Ours, old 3", "Ours (text)", "Ours, old 1", "Ours, old 0.3"),
    "Ours, squared Dice": ("Ours, old 3, squared Dice", "Ours, squared Dice", "Ours, old 1, squared Dice",
                           "Ours, old 0.3, squared Dice"),
    "Ours, no old Dice": ("Ours, old 3, no old Dice", "Ours, no old Dice", "Ours, old 1, no old Dice",
                          "Ours, old 0.3, no old Dice"),
}
OURS = tuple(method for name, methods in CURVES.items() if name.startswith("Ours") for method in methods)
LENGTHS = {name: tuple(f"{method}{length}" for length in (", half", "", ", double", ", longer"))
           for name, method in (("LwF", "LwF"), ("ILT", "ILT"), ("PLOP", "PLOP"), ("Ours", "Ours (text)"))}
EQUAL = (0.01, 0.05, 0.1, 0.15, 0.2)                           # forgetting at which curves are compared
COLORS = ((200, 80, 30), (120, 120, 120), (150, 90, 170), (20, 110, 190), (20, 150, 90), (190, 30, 90))
BOX = (90, 90, 470, 470)                                       # of the first panel; the second one stands beside it


# -------------------------------------------------------------------------------------------------------------- points

def trade(protocol: str, first: Scores, second: Scores) -> tuple[float, float]:
    """(forgetting, learning) of an extension from the scores after step 1 and after step 2."""
    old, new = GROUPS[protocol][:STEPS]
    before, after, learned = mean_of(first, old), mean_of(second, old), mean_of(second, new)
    if before is None or after is None or learned is None:
        raise ValueError(f"the test set shows no class of step 1 or step 2 of the {protocol} extension.")
    return before - after, learned


def learning_at(points: Sequence[tuple[float, float]], forgetting: float) -> float | None:
    """The most that a curve learns at this forgetting, None where all its points forget more.

    points: (forgetting, learning) in any order. Between two points the curve is straight; beyond its last point it
    stays, since nobody has to forget more. A point that forgets more and learns less than another does not count.
    """
    xs, ys = map(np.array, zip(*sorted(points)))
    if forgetting < xs[0]:
        return None
    return float(np.interp(forgetting, xs, np.maximum.accumulate(ys)))


# -------------------------------------------------------------------------------------------------- tables and a chart

def table(points: Points) -> Iterator[str]:
    """Markdown lines with a row per method."""
    yield "| method | seeds | forgetting | learning |"
    yield "|--" * 4 + "|"
    for method, seeds in points.items():
        forgetting, learning = zip(*seeds.values())
        yield f"| {method} | {len(seeds)} | {shown(forgetting)} | {shown(learning)} |"


def at_equal_forgetting(points: Points, curves: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Markdown lines: what each curve learns at equal forgetting, from the seeds that have all points of the curve."""
    yield "| learning at a forgetting of | points | " + " | ".join(f"{x:g}" for x in EQUAL) + " |"
    yield "|--" * (2 + len(EQUAL)) + "|"
    for name, methods in curves.items():
        there = [points[method] for method in methods if method in points]
        seeds = sorted(set.intersection(*(set(of) for of in there))) if there else []
        if seeds:
            values = ([learning_at([of[seed] for of in there], x) for seed in seeds] for x in EQUAL)
            yield f"| {name} | {len(there)} | {' | '.join(map(of_all, values))} |"


def of_all(values: Sequence[float | None]) -> str:
    """A cell: mean and range if every seed has a value; how many have one if not every seed has."""
    there = sum(value is not None for value in values)
    return shown(values) if there == len(values) else f"{there} of {len(values)} seeds" if there else "-"


def seed_by_seed(points: Points) -> Iterator[str]:
    """Markdown lines: what ours learns, by all its points of the same seed, where another method forgets as much."""
    yield "| seed | method | forgets | learns | ours learns there |"
    yield "|--" * 5 + "|"
    for seed in sorted({seed for seeds in points.values() for seed in seeds}):
        ours = [points[method][seed] for method in OURS if seed in points.get(method, {})]
        for method in (name for name in points if not name.startswith("Ours") and seed in points[name]):
            forgetting, learning = points[method][seed]
            there = learning_at(ours, forgetting) if ours else None
            yield (f"| {seed} | {method} | {forgetting:.3f} | {learning:.3f} | "
                   f"{'-' if there is None else f'{there:.3f}'} |")


def class_by_class(scores: AllScores, protocol: str) -> Iterator[str]:
    """Markdown lines: Dice of each old class after step 1 and after step 2, and of each new class after step 2."""
    old, new = GROUPS[protocol][:STEPS]
    yield f"| method | seed | {' | '.join((*old, *new))} |"
    yield "|--" * (2 + len(old) + len(new)) + "|"
    for method, seeds in scores.items():
        for seed, (first, second) in seeds.items():
            cells = [*(", ".join(shown([mean_of(step, [label])]) for step in (first, second)) for label in old),
                     *(shown([mean_of(second, [label])]) for label in new)]
            yield f"| {method} | {seed} | {' | '.join(cells)} |"


def picture(points: Points, protocol: str) -> np.ndarray:
    """Both kinds of curves as panels of one chart: (rows, columns, 3) uint8. Large dots are means over the seeds."""
    rgb = blank(650, 1480)
    every = [point for seeds in points.values() for point in seeds.values()]
    x_range = (min(0.0, *(x for x, _ in every)) - 0.01, max(x for x, _ in every) + 0.01)
    for number, (title, curves) in enumerate((("weights", CURVES), ("lengths", LENGTHS))):
        left, top, width, height = BOX
        box = (left + 720 * number, top, width, height)
        to_x, to_y = axes(rgb, box, x_range, (0, 1), f"{protocol} extension: {title}", nice_ticks(*x_range, 5),
                          nice_ticks(0, 1, 5))
        text(rgb, box[0] + width / 2, top + height + 48, "forgetting, Dice of old classes", FAINT, 1.75, align="centre")
        drawn = [(name, methods) for name, methods in curves.items() if any(m in points for m in methods)]
        for row, (name, methods) in enumerate(drawn):
            color = COLORS[list(CURVES).index(name if name in CURVES else "Ours, as in Eq. (4)")]
            draw_curve(rgb, [[(float(to_x(x)), float(to_y(y))) for x, y in points[m].values()]
                             for m in with_most_seeds(points, methods)], color)
            text(rgb, box[0] + width + 12, top + 24 + 28 * row, name, color, 1.6)
    text(rgb, BOX[0], 36, "learning, Dice of new classes", INK, 2.0, bold=True)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def with_most_seeds(points: Points, methods: Sequence[str]) -> list[str]:
    """The methods of a curve that were run with the most seeds, since a mean over fewer seeds is no point of it."""
    most = max(len(points[method]) for method in methods if method in points)
    return [method for method in methods if len(points.get(method, ())) == most]


def draw_curve(rgb: np.ndarray, points: Sequence[Sequence[tuple[float, float]]], color: tuple[int, int, int]) -> None:
    """A line through the means over the seeds, with small dots for the seeds. points: pixels, per point of the curve"""
    means = [(float(x), float(y)) for x, y in (np.mean(seeds, axis=0) for seeds in points)]
    if len(means) > 1:
        stroke(rgb, means, 2.0, color)
    for mean, seeds in zip(means, points):
        stroke(rgb, [mean] * 2, 11.0, color)
        for seed in seeds if len(seeds) > 1 else ():
            stroke(rgb, [seed] * 2, 4.0, color)


# ----------------------------------------------------------------------------------------------- scores kept in a table

COLUMNS = ("data", "protocol", "steps", "first", "method", "seed", "step", "class", "dice")
Setup = tuple[str, ...]                                        # the first six columns: what makes two runs the same


def setup_of(args: argparse.Namespace, protocol: str, method: str, seed: int) -> Setup:
    """The columns of a run. data: "phantoms", or the folders of --data; first: the seed of the first training"""
    data = " ".join(map(str, args.data)) if args.data else "phantoms"
    steps = "paper" if args.paper else " + ".join(map(str, args.steps))
    return data, protocol, steps, str(0 if args.one_start else seed), method, str(seed)


def read_scores(path: Path | None) -> dict[Setup, tuple[Scores, Scores]]:
    """The runs of a table, {} where there is none. Raises ValueError for a file that --scores has not written."""
    if path is None or not path.is_file():
        return {}
    kept: dict[Setup, dict[str, dict[str, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        for *setup, step, name, score in rows:
            kept.setdefault(tuple(setup), {"1": {}, "2": {}})[step][name] = float(score)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: no table of scores ({error}). Give one that --scores has written.") from None
    return {setup: (steps["1"], steps["2"]) for setup, steps in kept.items()}


def write_scores(path: Path, kept: Mapping[Setup, tuple[Scores, Scores]]) -> None:
    """The table of all runs, sorted, with four decimals."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for setup, steps in sorted(kept.items()):
            for step, scores in enumerate(steps, start=1):
                writer.writerows([*setup, step, name, f"{score:.4f}"] for name, score in scores.items())


# --------------------------------------------------------------------------------------------------------- the command

def build_parser() -> argparse.ArgumentParser:
    """The command's options: those of continual.py, but for --methods, which has every curve by default."""
    parser = continual.build_parser()
    parser.description = __doc__
    parser.set_defaults(protocol=["body"])
    parser.add_argument("--finished", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--scores", type=Path, metavar="FILE",
                        help="a table of scores (CSV): its runs are not trained again, and new ones are added")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score the methods, print the tables and draw the chart."""
    args = build_parser().parse_args(argv)
    if args.data and (len(args.protocol) > 1 or len(args.data) != STEPS + 1):
        sys.exit(f"--data: choose one --protocol and give {STEPS + 1} folders, for step 1, step 2 and the test.")
    methods = args.methods or list(dict.fromkeys(m for curves in (CURVES, LENGTHS) for of in curves.values()
                                                 for m in of))
    try:
        kept = read_scores(args.scores)
    except ValueError as error:
        sys.exit(str(error))
    for protocol in args.protocol:
        jobs = [(method, seed) for seed in range(args.seeds) for method in methods]
        todo = [job for job in jobs if setup_of(args, protocol, *job) not in kept]
        if args.finished:
            todo = [job for job in todo
                    if all(unfinished(run) is None for run in continual.folders(args, protocol, *job, STEPS))]
        if todo:
            test = continual.data_folders(args, protocol)[1]
            trained = continual.train_all(args, [(protocol, *job) for job in todo], STEPS)
            for job, weights in zip(todo, trained):
                first, second = (continual.score(one, test) for one in weights)
                kept[setup_of(args, protocol, *job)] = first, second
                if args.scores is not None:
                    write_scores(args.scores, kept)
        scores: dict[str, dict[int, tuple[Scores, Scores]]] = {}
        for method, seed in jobs:
            if found := kept.get(setup_of(args, protocol, method, seed)):
                scores.setdefault(method, {})[seed] = found
        show(scores, protocol, args.out)


def show(scores: AllScores, protocol: str, out: Path) -> None:
    """Print the tables and write the chart."""
    if not scores:
        sys.exit(f"{out}: no finished training of the {protocol} extension. Leave --finished out.")
    points = {method: {seed: trade(protocol, *steps) for seed, steps in seeds.items()}
              for method, seeds in scores.items()}
    weights = {**CURVES, "Ours, all points": OURS}
    print("\n".join([f"{protocol} extension, step 2", "", *table(points), "", "Weights", "",
                     *at_equal_forgetting(points, weights), "", "Lengths", "", *at_equal_forgetting(points, LENGTHS),
                     "", "Seed by seed", "", *seed_by_seed(points), "", "Class by class", "",
                     *class_by_class(scores, protocol)]))
    out.mkdir(parents=True, exist_ok=True)
    write_png(out / f"{protocol}.png", picture(points, protocol))


if __name__ == "__main__":
    main()
