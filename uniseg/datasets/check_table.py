"""What `python -m uniseg.data ROOT` prints: the dicts of check.py as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LINE = 120                        # characters

Cell = tuple[Any, int]            # content and width, negative to align it at the right


def problems_of(result: Mapping[str, Any]) -> list[str]:
    """Every "error: ..." and "warning: ..." of a result of check.check_root."""
    parts = [part for block in result["datasets"] for part in (block, *block["cases"])]
    return result["problems"] + [problem for part in parts for problem in part["problems"]]


def table(block: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one dataset, a dict of check.check_dataset."""
    rows, labels = block["cases"], block["labels"]
    yield f"{block['dataset']}: cases {len(rows)}, annotated classes {len(block['classes'])}"
    if rows:
        width = max(4, *(min(40, len(row["case"])) for row in rows))
        yield _line(("case", width), ("shape RAS+", -13), ("spacing mm", -16), ("axes", 4), ("HU", -13),
                    ("99 % of them", -13), ("labelled voxels", -15))
    for row in rows:
        labelled = row.get("labelled", sum(n for v, n in row["values"].items() if v) if row["values"] else "-")
        yield _line((row["case"], width), *_image_cells(row), (labelled, -15))
        yield from _wrapped(row["problems"], 6)
    if not labels and block["classes"]:
        counts = {name: [row["voxels"].get(name, 0) for row in rows] for name in block["classes"]}
        yield _line(("no. class", 32), ("voxels", -14), ("cases", -5))
        for name, n in counts.items():
            yield _line((f"{block['classes'][name]:>2} {name}", 32), (sum(n), -14), (sum(map(bool, n)), -5))
    if labels:
        shown = [" + ".join(f"{block['classes'][name]:>2} {name}" for name in entry["classes"]) or "-"
                 for entry in labels]
        width = max(9, *map(len, shown))
        yield _line(("value", -8), ("label", 24), ("no. class", width), ("voxels", -14), ("cases", -5))
        for entry, classes in zip(labels, shown):
            yield _line((",".join(map(str, entry["values"])), -8), (entry["name"][:24], 24), (classes, width),
                        (entry["voxels"], -14), (entry["cases"], -5))
    yield from _wrapped(block["problems"], 2)
    yield ""


def _wrapped(problems: Iterable[str], indent: int) -> Iterator[str]:
    """Yield lines of at most LINE characters; paths are not broken."""
    for problem in problems:
        yield from textwrap.wrap(problem, LINE, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2),
                                 break_long_words=False, break_on_hyphens=False)


def _line(*cells: Cell) -> str:
    """One line of cells."""
    texts = [f"{content:,}" if isinstance(content, int) else content for content, _ in cells]
    return "  " + "  ".join(t.rjust(-w) if w < 0 else t.ljust(w) for t, (_, w) in zip(texts, cells)).rstrip()


def _image_cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Shape, spacing, axes and HU of a case; dashes where its image could not be read."""
    if "shape" not in row:
        return ("-", -13), ("-", -16), ("-", 4), ("-", -13), ("-", -13)
    low, half, most, high = (f"{value:.0f}" for value in row["hu"])
    return (("x".join(map(str, row["shape"])), -13), ("x".join(f"{s:.3g}" for s in row["spacing_mm"]), -16),
            (row["orientation"], 4), (f"{low}..{high}", -13), (f"{half}..{most}", -13))


def totals(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the last lines: totals of all datasets, a dict of check.check_root."""
    rows = [(f"{block['dataset']}/{row['case']}", row) for block in result["datasets"] for row in block["cases"]]
    levels = [p.partition(":")[0] for p in problems_of(result)]
    classes = {name for _, row in rows for name, n in row["voxels"].items() if n}
    empty = sum(set(row["values"]) == {0} or row.get("labelled") == 0 for _, row in rows)
    yield from _wrapped(result["problems"], 0)
    yield (f"datasets {len(result['datasets'])}, cases {len(rows)} (with an empty label map {empty}), "
           f"classes with voxels {len(classes)}; errors {levels.count('error')}, warnings {levels.count('warning')}")
    sized = [(row["memory_bytes"], name) for name, row in rows if "memory_bytes" in row]
    if sized:
        memory, name = max(sized)
        yield (f"estimate at {result['spacing_mm']:g} mm: {result['cache_bytes'] / 1e6:,.0f} MB of cache for "
               f"{len(sized)} of {len(rows)} cases, {memory / 1e6:,.0f} MB of memory to preprocess {name}")
