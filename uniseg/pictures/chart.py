"""Line charts as arrays of pixels: anti-aliased lines, axes with ticks, and a small stroke font, in numpy alone.

A picture is (rows, columns, 3) float32 from 0 to 255, drawn on in place; picture.write_png writes it. Positions are pixels
(x to the right, y down) and may lie between two. report.py draws a run's progress with this.
"""

import math

import numpy as np

from .canvas import FAINT, GRID, INK, bar, paint, text


def curve(picture, xs, ys, width, color):
    """A line of `width` pixels, drawn with a round pen, through points of ascending x.

    Its cost is that of its pixels, however many points it has. Each pixel column is cut into four strips, and the line
    into the heights (low, high) that the pen covers in each; where they begin and end a difference is noted, and the sum
    down the rows is the coverage.
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
    aside = range(-int(2 * width), int(2 * width) + 1)
    pen = [(d, math.sqrt(width ** 2 / 4 - d * d / 16)) for d in aside]         # half its height, so many strips aside
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


# --------------------------------------------------------------------------------------------------------------------- axes

def nice_ticks(low, high, most=6, whole=False):
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) from low to high.

    >>> nice_ticks(0, 10), nice_ticks(0, 3, whole=True), nice_ticks(0.0, 0.5)
    ([0, 2, 4, 6, 8, 10], [0, 1, 2, 3], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    """
    raw = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [int(i * step) if step == int(step) else round(i * step, 12) for i in count]


def log_ticks(low, high):
    """1, 2 and 5 times the powers of ten from low to high; the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = (1, 2, 5) if len(powers) < 5 else (1,)
    return [m * 10.0 ** p for p in powers for m in marks if low <= m * 10.0 ** p <= high]


def number(value):
    """As short as can be: 0, 0.25, 1500, 2e-5."""
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    if not exponent and 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = f"{float(mantissa):.6g}"
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def axes(picture, box, x_range, y_range, title, x_ticks, y_ticks, log=False):
    """Frame, grid, ticks and title of one panel; returns the functions that turn values into pixels: (to_x, to_y).

    box: (left, top, width, height) of the frame; the title stands above it, tick labels left of it and below it
    """
    left, top, width, height = box
    scale = np.log10 if log else np.asarray
    low, high = scale(y_range[0]), scale(y_range[1])

    def to_x(value):
        return left + width * (np.asarray(value, float) - x_range[0]) / (x_range[1] - x_range[0])

    def to_y(value):
        return np.clip(top + height * (high - scale(np.asarray(value, float))) / (high - low), top, top + height)
    bar(picture, left, top, width, height, (255, 255, 255))
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
