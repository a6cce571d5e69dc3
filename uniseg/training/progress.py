"""progress.png of a training run: loss, learning rate, and the probability and Dice of every class over the epochs.

Each class has its colour of taxonomy.py. Its name stands at the end of its line, from the best score to the worst.
pictures/chart.py draws axes and curves: read that first.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import taxonomy
from ..pictures.canvas import FAINT, INK, blank, stroke, text
from ..pictures.chart import axes, curve, log_ticks, nice_ticks
from ..pictures.colors import class_color, on_white

ROWS, COLUMNS = 900, 1400         # pixels
LOSS_COLOR, PALE_LOSS, RATE_COLOR = (31, 92, 153), (170, 196, 222), (96, 100, 108)


def best_record(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the epoch that best.pt holds, the first with the highest mean Dice; None before any validation."""
    return max((r for r in records if r.get("mean_dice") is not None), key=lambda r: r["mean_dice"], default=None)


def progress_picture(records: Sequence[dict[str, Any]], classes: Sequence[str], name: str, epochs: int) -> np.ndarray:
    """Loss, learning rate, and the probability (where it was logged) and Dice of every class: (900, 1400, 3) uint8.

    records: of metrics.jsonl; name: of the run; epochs: how many the whole run has
    """
    picture = blank(ROWS, COLUMNS, (250, 250, 251))
    done = records[-1]["epoch"] if records else 0
    text(picture, 30, 42, name[:45], INK, 2.75, bold=True)
    best = best_record(records)
    score = f"   best mean Dice {best['mean_dice']:.3f} at epoch {best['epoch']}" if best else ""
    text(picture, COLUMNS - 24, 42, f"epoch {done} of {epochs}{score}", FAINT, 2.0, align="right")
    span = (0, max(done, 1))
    x_ticks = nice_ticks(*span, 5, whole=True)
    learned = [{**{name: one["probability"] for name, one in r["learning"].items()}, "epoch": r["epoch"]}
               for r in records if "learning" in r]
    _loss_panel(picture, (85, 110, 395, 200 if learned else 440), span, x_ticks, records)
    if learned:
        _learning_panel(picture, (85, 390, 395, 230), span, x_ticks, learned, classes)
    rates = _series(records, "lr")
    top = max([y for _, y in rates], default=0) or 1.0
    box = (85, 700, 395, 140) if learned else (85, 640, 395, 200)
    to_x, to_y = axes(picture, box, span, (0, top * 1.06), "learning rate", x_ticks, nice_ticks(0, top, 5))
    _draw(picture, to_x, to_y, rates, 2.0, RATE_COLOR)
    _dice_panel(picture, (555, 110, 460, 730), span, x_ticks, records, classes)
    for middle in (85 + 395 / 2, 555 + 460 / 2):
        text(picture, middle, 882, "epoch", FAINT, 1.75, align="centre")
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _series(records: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """[(epoch, value)] of the records that have a finite value."""
    return [(r["epoch"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]


def _draw(picture, to_x, to_y, series, width, color):
    """A series as a line, with dots where the points are few enough to be told apart."""
    if not series:
        return
    xs, ys = (f(values) for f, values in zip((to_x, to_y), zip(*series)))
    curve(picture, xs, ys, width, color)
    if len(series) <= 25:
        for x, y in zip(xs, ys):
            stroke(picture, [(x, y)] * 2, width + 3.5, color)


def _loss_panel(picture, box, span, x_ticks, records):
    """The loss, on a logarithmic axis where it falls below a quarter; from 60 epochs on with its moving mean."""
    losses = _series(records, "loss")
    values = [y for _, y in losses] or [0.0, 1.0]
    log = min(values) > 0 and max(values) > 4 * min(values)
    margin = 0.05 * (max(values) - min(values)) or 0.1
    limits = (min(values) / 1.08, max(values) * 1.08) if log else (max(0.0, min(values) - margin), max(values) + margin)
    ticks = log_ticks(*limits) if log else nice_ticks(*limits)
    title = "training loss, logarithmic" if log else "training loss"
    to_x, to_y = axes(picture, box, span, limits, title, x_ticks, ticks, log)
    window = len(losses) // 30
    if window < 2:
        return _draw(picture, to_x, to_y, losses, 2.0, LOSS_COLOR)
    _draw(picture, to_x, to_y, losses, 1.2, PALE_LOSS)
    means = np.convolve([y for _, y in losses], np.ones(window) / window, "valid")
    middles = np.convolve([x for x, _ in losses], np.ones(window) / window, "valid")
    _draw(picture, to_x, to_y, list(zip(middles, means)), 2.5, LOSS_COLOR)


def _learning_panel(picture, box, span, x_ticks, learned, classes):
    """A line per class, on a logarithmic axis from the lowest probability, but at least 0.001, to 1.

    learned: [{class: mean probability in its voxels, "epoch"}], from steps.learning
    """
    learned = [{name: max(value, 1e-3) for name, value in r.items()} for r in learned]
    low = min(0.5, *(value for r in learned for value in r.values()))
    to_x, to_y = axes(picture, box, span, (low, 1), "training: probability in own voxels", x_ticks, log_ticks(low, 1),
                      log=True)
    for name, value in taxonomy.label_values(classes).items():
        _draw(picture, to_x, to_y, _series(learned, name), 1.5, on_white(class_color(value)))


def _dice_panel(picture, box, span, x_ticks, records, classes):
    """A line per class, and the mean in black. Names and last scores stand at the ends of the lines, best first."""
    left, top, width, height = box
    to_x, to_y = axes(picture, box, span, (0, 1), "validation Dice", x_ticks, nice_ticks(0, 1, 10))
    validated = [{**r["dice"], "": r.get("mean_dice"), "epoch": r["epoch"]} for r in records if "dice" in r]
    entries = []                                                   # (last score, name or "" for the mean, color)
    for name, value in [*taxonomy.label_values(classes).items(), ("", 0)]:
        color = on_white(class_color(value)) if name else INK
        series = _series(validated, name)
        _draw(picture, to_x, to_y, series, (1.8 if len(series) <= 60 else 1.3) if name else 3.5, color)
        entries.append((series[-1][1] if series else -1.0, name, color))
    if best := best_record(records):
        at = float(to_x(best["epoch"])), float(to_y(best["mean_dice"]))
        for size, color in ((15, INK), (10, (255, 255, 255)), (6, INK)):
            stroke(picture, [at] * 2, size, color)
    entries.sort(key=lambda e: -e[0])
    if not validated:
        text(picture, left + width / 2, top + height / 2, "not validated", FAINT, 2.0, align="centre")
    pitch = min(24.0, (height + 12) / len(entries))
    unit = pitch / 12
    heights = spread([float(to_y(score)) for score, _, _ in entries], pitch, top - 4, top + height + 4)
    for (score, name, color), y in zip(entries, heights):
        measured, end = score >= 0, left + width
        if measured:
            stroke(picture, [(end + 2, float(to_y(score))), (end + 30, y), (end + 44, y)], 2.0 if name else 3.5, color)
        label, ink = name.replace("_", " ")[:26] or "mean", INK if measured else FAINT
        text(picture, end + 52, y + 3 * unit, label, ink, unit, bold=not name)
        shown = f"{score:.3f}" if measured else "-"
        text(picture, COLUMNS - 24, y + 3 * unit, shown, ink, unit, bold=not name, align="right")


def spread(wanted: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones (both ascending), at least `pitch` apart, from low to high if they fit there."""
    positions: list[float] = []
    for y in wanted:
        positions.append(max(y, positions[-1] + pitch if positions else low))
    limit = high
    for i in reversed(range(len(positions))):
        positions[i] = min(positions[i], limit)
        limit = positions[i] - pitch
    return positions
