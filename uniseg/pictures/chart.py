"""Line charts as arrays of pixels: anti-aliased lines, and axes with ticks. Read canvas.py first.

training/progress.py draws the progress of a run with this.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .canvas import FAINT, GRID, INK, WHITE, Color, bar, paint, text

ToPixels = Callable[[float | Sequence[float] | np.ndarray], np.ndarray]      # values -> pixels along one axis


def curve(picture: np.ndarray, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, width: float,
          color: Color) -> None:
    """Draw a line of `width` pixels, with a round pen, through points of ascending x.

    The time depends on the number of pixels, not of points. Each pixel column is cut into four strips. For each strip
    we compute the heights (low, high) between which the pen covers it, mark in `change` where that stretch begins and
    ends, and sum down the rows: the result is the share of each pixel that is covered.
    """
    xs, ys = np.asarray(xs, float), np.asarray(ys, float)
    reach = math.ceil(width / 2) + 1
    first, last = math.floor(xs[0]) - reach, math.ceil(xs[-1]) + reach
    edges = np.arange(4 * (last - first) + 1) / 4 + first
    values = np.interp(edges, xs, ys)
    low, high = np.minimum(values[1:], values[:-1]), np.maximum(values[1:], values[:-1])
    strip = ((xs - first) * 4).astype(int)
    np.minimum.at(low, strip, ys)
    np.maximum.at(high, strip, ys)
    outside = (edges[1:] < xs[0]) | (edges[:-1] > xs[-1])
    low[outside], high[outside] = np.inf, -np.inf
    strips = range(-int(2 * width), int(2 * width) + 1)
    pen = [(d, math.sqrt(width ** 2 / 4 - d * d / 16)) for d in strips]        # half the pen's height, d strips away
    low, high = (np.min([np.roll(side, d) - half for d, half in pen], axis=0) for side in (low, -high))
    drawn = np.isfinite(low)
    low, high, columns = low[drawn], -high[drawn], np.arange(len(low))[drawn] // 4
    top = math.floor(low.min())
    change = np.zeros((math.ceil(high.max()) - top + 2, last - first), np.float32)
    for edge, sign in ((low - top, 0.25), (high - top, -0.25)):
        whole = edge.astype(int)
        np.add.at(change, (whole, columns), sign * (1 - (edge - whole)))
        np.add.at(change, (whole + 1, columns), sign * (edge - whole))
    paint(picture, first, top, np.clip(np.cumsum(change, axis=0), 0, 1), color)


# ------------------------------------------------------------------------------------------------------------- axes

def nice_ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """At most `most` + 1 round numbers from low to high; they are 1, 2 or 5 times a power of ten apart.

    whole: only integers

    >>> nice_ticks(0, 10), nice_ticks(0, 3, whole=True), nice_ticks(0.0, 0.5)
    ([0, 2, 4, 6, 8, 10], [0, 1, 2, 3], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    """
    raw = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
    multiples = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [int(i * step) if step == int(step) else round(i * step, 12) for i in multiples]


def nice_number_below(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `most` (above 0).

    >>> nice_number_below(130.0), nice_number_below(49.0), nice_number_below(0.7)
    (100.0, 20.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(most))
    return max(m * power for m in (1, 2, 5) if m * power <= most * (1 + 1e-9))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; only the powers of ten where there are five or more."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = (1, 2, 5) if len(powers) < 5 else (1,)
    return [m * 10.0 ** p for p in powers for m in marks if low <= m * 10.0 ** p <= high]


def number(value: float) -> str:
    """A number as short as possible: 0, 0.25, 1500, 2e-5."""
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    if not exponent and 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = f"{float(mantissa):.6g}"
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def axes(picture: np.ndarray, box: tuple[int, int, int, int], x_range: tuple[float, float],
         y_range: tuple[float, float], title: str, x_ticks: Sequence[float], y_ticks: Sequence[float],
         log: bool = False) -> tuple[ToPixels, ToPixels]:
    """Draw the frame, grid, ticks and title of one panel.

    box:     (left, top, width, height) of the frame; the title stands above it, tick labels left of it and below it
    log:     whether the y axis is logarithmic
    returns: the functions that turn values into pixels, (to_x, to_y); to_y keeps inside the frame
    """
    left, top, width, height = box
    scale = np.log10 if log else np.asarray
    low, high = scale(y_range[0]), scale(y_range[1])

    def to_x(value: float | Sequence[float] | np.ndarray) -> np.ndarray:
        return left + width * (np.asarray(value, float) - x_range[0]) / (x_range[1] - x_range[0])

    def to_y(value: float | Sequence[float] | np.ndarray) -> np.ndarray:
        return np.clip(top + height * (high - scale(np.asarray(value, float))) / (high - low), top, top + height)

    bar(picture, left, top, width, height, WHITE)
    for tick in y_ticks:
        y = round(float(to_y(tick)))
        bar(picture, left, y, width, 1, GRID)
        text(picture, left - 9, y + 5, number(tick), FAINT, 1.75, align="right")
    for tick in x_ticks:
        x = round(float(to_x(tick)))
        bar(picture, x, top, 1, height, GRID)
        text(picture, x, top + height + 20, number(tick), FAINT, 1.75, align="centre")
    bar(picture, left, top, 1, height + 1, FAINT)
    bar(picture, left, top + height, width + 1, 1, FAINT)
    text(picture, left, top - 14, title, INK, 2.0, bold=True)
    return to_x, to_y
