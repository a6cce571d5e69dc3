"""What each ingredient of the default weights brings: trainings of the same length without it, from the same start.

Beyond the paper. The stage `ablate` is no part of the chain. It comes after `pseudo`. It takes the data and the recipe
of `finetune`, with fewer steps and without LABELLED: these datasets score all variants, as none of them trains on one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from uniseg.machine.console import say
from uniseg.machine.files import atomic_write

from .plan import LABELLED, REAL
from .running import call
from .scoring import NEVER_TRAIN, held_out, offered_classes, read_rows
from .stages import Work, draw, prepare_root, pseudo_names, run, ship_to

FOUR = ("ts_s0011", "ts_s0327", "ts_s0328", "ts_taskB")     # the label maps of the first edition
LARGE = ("liver", "spleen", "right_kidney", "left_kidney", "right_lung", "left_lung", "aorta")
Rows = Mapping[tuple[str, str], Mapping[str, str]]          # {(class, case): row of uniseg.evaluate}


class Variant(NamedTuple):
    """A training that lacks an ingredient."""

    name: str
    says: str                      # what the table calls it
    root: Path
    without: tuple[str, ...]       # datasets of the root that do not train


def ablate(work: Work) -> None:
    """Train the variants from `--start`, score them and the start; writes OUT/ablation/ablation.md."""
    folder = work.out / "ablation"
    root = held_out(work.data, folder / "held_out", [*LABELLED, *NEVER_TRAIN])
    weights = {"the start": work.start}
    for variant in variants(work):
        train(work, variant)
        weights[variant.says] = ship_to(work, folder / "weights" / variant.name,
                                         [folder / variant.name / "last.pt"])
    results = {}
    for says, path in weights.items():
        table = folder / "scores" / ("start" if path == work.start else path.parent.name)
        if not (table / "cases.csv").is_file():
            call("uniseg.evaluate", ["--data-root", str(root), "--weights", str(path), "--out", str(table),
                                     "--bootstrap", "0"], work.clock)
        results[says] = read_rows(table / "cases.csv")
    text = "\n".join([*table_of(results, offered_classes()), ""])
    with atomic_write(folder / "ablation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(text)


def variants(work: Work) -> list[Variant]:
    """All ingredients, and one of them missing in turn."""
    labelled, pseudo = tuple(LABELLED), tuple(pseudo_names(work))
    return [Variant("everything", "all ingredients", work.pseudo_root, labelled),
            Variant("four_maps", "four label maps", four_maps(work), labelled),
            Variant("no_unlabelled", "no unlabelled CTs", work.pseudo_root, (*labelled, *pseudo)),
            Variant("no_labels", "no labelled CTs", work.pseudo_root, (*labelled, *REAL))]


def four_maps(work: Work) -> Path:
    """A root as that of the fine-tuning, whose synthetic CTs are drawn from the maps of the first edition alone. A draw
    for which these are no use, such as that of women, is missing."""
    maps, out = work.out / "four" / "DATA" / "labelmaps", work.out / "four"
    maps.mkdir(parents=True, exist_ok=True)
    for path in (work.data / "labelmaps").iterdir():
        if path.name.startswith((*FOUR, "names.json")) and not (maps / path.name).exists():
            shutil.copyfile(path, maps / path.name)
    if not (maps.parent / "train").exists():
        (maps.parent / "train").symlink_to((work.data / "train").resolve())
    four = work._replace(data=maps.parent, out=out)
    draw(four)
    for name in pseudo_names(work):
        if not (four.root / name).exists():
            (four.root / name).symlink_to((work.pseudo_root / name).resolve())
    return four.root


def train(work: Work, variant: Variant) -> None:
    """The fine-tuning of a variant, from the start."""
    (work.out / "ablation").mkdir(exist_ok=True)
    prepare_root(work, variant.root)
    pseudo = [name for name in pseudo_names(work) if name not in variant.without]
    recipe = work.size.finetune._replace(steps=work.size.ablate_steps)
    run(work, f"ablation/{variant.name}", recipe, work.start, variant.root, pseudo,
        [name for name in variant.without if (variant.root / name / "dataset.json").is_file()])


def table_of(results: Mapping[str, Rows], classes: Sequence[str]) -> Iterator[str]:
    """Markdown lines: mean Dice of each class over the cases that show it, means, ml found where nothing is."""
    yield f"| class | cases | {' | '.join(results)} |"
    yield "|--" * (2 + len(results)) + "|"
    every = set.intersection(*(set(rows) for rows in results.values()))
    first = next(iter(results.values()))
    means: dict[str, list[float]] = {}
    for name in classes:
        cases = [key for key in sorted(every) if key[0] == name and int(first[key]["reference_voxels"] or 0)]
        if cases:
            means[name] = [sum(float(rows[key]["dice"]) for key in cases) / len(cases) for rows in results.values()]
            yield f"| {name} | {len(cases)} | {' | '.join(f'{mean:.3f}' for mean in means[name])} |"
    for says, names in (("mean of liver, spleen, kidneys, lungs, aorta", [name for name in means if name in LARGE]),
                        ("mean of the others", [name for name in means if name not in LARGE]),
                        ("**mean**", list(means))):
        if names:
            columns = zip(*(means[name] for name in names))
            yield f"| {says} | | {' | '.join(f'{sum(column) / len(names):.3f}' for column in columns)} |"
    absent = [key for key in every if key[0] in classes and not int(first[key]["reference_voxels"] or 0)]
    false_ml = [sum(float(rows[key]["predicted_ml"] or 0) for key in absent) for rows in results.values()]
    yield f"| ml found where nothing is | {len(absent)} | {' | '.join(f'{ml:.0f}' for ml in false_ml)} |"
