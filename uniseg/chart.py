"""Line charts as arrays of pixels: anti-aliased lines, axes with ticks, and a small stroke font, in numpy alone.

A picture is (rows, columns, 3) float32 from 0 to 255, drawn on in place; picture.write_png writes it. Positions are pixels
(x to the right, y down) and may lie between two. report.py draws a run's progress with this.
"""

import math

import numpy as np

INK, FAINT, GRID = (30, 34, 40), (120, 126, 134), (226, 229, 233)

# Strokes of each letter as points "xy" on a grid: baseline y 2, small letters up to 6, capitals and digits up to 8.
GLYPHS = {
    "0": "12 32 43 47 38 18 07 03 12", "1": "16 28 22/12 32", "2": "07 18 38 47 46 02 42",
    "3": "07 18 38 47 46 35 15/35 44 43 32 12 03",
    "4": "32 38 04 44", "5": "48 08 05 35 44 43 32 12 03", "6": "47 38 18 07 03 12 32 43 44 35 15 04", "7": "08 48 12",
    "8": "15 06 07 18 38 47 46 35 15 04 03 12 32 43 44 35", "9": "03 12 32 43 47 38 18 07 06 15 35 46",
    "a": "45 36 16 05 03 12 32 43/46 42", "b": "08 02/05 16 36 45 43 32 12 03", "c": "45 36 16 05 03 12 32 43",
    "d": "48 42/45 36 16 05 03 12 32 43", "e": "04 44 45 36 16 05 03 12 32 43", "f": "38 28 17 12/06 36",
    "g": "46 41 30 10 01/45 36 16 05 03 12 32 43", "h": "08 02/05 16 36 45 42", "i": "06 02/08 08", "j": "16 11 00/18 18",
    "k": "08 02/36 04/15 32", "l": "08 03 12", "m": "06 02/05 16 26 35 32/35 46 56 65 62", "n": "06 02/05 16 36 45 42",
    "o": "16 36 45 43 32 12 03 05 16", "p": "06 00/05 16 36 45 43 32 12 03", "q": "46 40/45 36 16 05 03 12 32 43",
    "r": "06 02/05 16 36", "s": "45 36 16 05 14 34 43 32 12 03", "t": "18 13 22 32/06 36", "u": "06 03 12 32 43/46 42",
    "v": "06 22 46", "w": "06 22 35 42 66", "x": "06 42/02 46", "y": "06 22/46 10", "z": "06 46 02 42",
    "A": "02 28 42/14 34", "B": "02 08 38 47 46 35 05/35 44 43 32 02", "C": "47 38 18 07 03 12 32 43",
    "D": "02 08 28 46 44 22 02", "E": "48 08 02 42/05 35", "F": "48 08 02/05 35", "G": "47 38 18 07 03 12 32 43 45 25",
    "H": "08 02/48 42/05 45", "I": "08 02", "J": "38 33 22 12 03", "K": "08 02/48 04/15 42", "L": "08 02 42",
    "M": "02 08 34 68 62", "N": "02 08 42 48", "O": "12 42 53 57 48 18 07 03 12", "P": "02 08 38 47 45 34 04",
    "Q": "12 42 53 57 48 18 07 03 12/34 52", "R": "02 08 38 47 46 35 05/25 42", "S": "47 38 18 07 06 15 35 44 43 32 12 03",
    "T": "08 48/28 22", "U": "08 03 12 32 43 48", "V": "08 22 48", "W": "08 12 36 52 68", "X": "08 42/02 48",
    "Y": "08 25 48/25 22", "Z": "08 48 02 42",
    " ": "", ".": "02 02", ",": "12 01", ":": "02 02/05 05", "-": "05 35", "+": "05 45/23 27", "=": "04 44/06 46", "_": "01 41",
    "/": "02 38", "(": "18 07 03 12", ")": "08 17 13 02", "[": "18 08 02 12", "]": "08 18 12 02", "%": "02 48/07 07/43 43",
    "'": "08 07", "&": "42 07 18 27 04 03 12 22 44", "<": "36 04 32", ">": "06 34 02", "*": "06 44/04 46/27 23",
}
MISSING = "02 08 38 32 02"                                 # a box, for every other character


def blank(rows, columns, color=(255, 255, 255)):
    return np.full((rows, columns, 3), color, np.float32)


def paint(picture, x, y, coverage, color):
    """Lay a colour over the pixels from column x, row y on; coverage (h, w) from 0 to 1, cut off at the picture's border."""
    top, left = max(0, -y), max(0, -x)
    coverage = coverage[top:max(0, picture.shape[0] - y), left:max(0, picture.shape[1] - x)]
    part = picture[y + top:, x + left:][:coverage.shape[0], :coverage.shape[1]]
    touched = np.nonzero(coverage > 1 / 16)
    share = np.round(coverage[touched] * 8)[:, None] / 8       # the eye asks for no more shades, and the file is a third smaller
    part[touched] += share * (np.float32(color) - part[touched])


def bar(picture, x, y, width, height, color):
    """A filled rectangle on whole pixels."""
    picture[max(0, y):max(0, y + height), max(0, x):max(0, x + width)] = color


def stroke(picture, points, width, color):
    """A short line through `points` [(x, y), ...] with round ends; one point twice is a dot of that diameter."""
    points = np.float32(points)
    low = np.floor(points.min(axis=0) - width).astype(int)
    columns, rows = np.ceil(points.max(axis=0) + width).astype(int) - low
    y, x = np.mgrid[:rows, :columns].astype(np.float32) + 0.5
    at = np.stack([x, y], axis=-1)[:, :, None] + np.float32(low)                              # (h, w, 1, 2) centres of pixels
    start, along = points[:-1], points[1:] - points[:-1]
    share = np.clip(((at - start) * along).sum(-1) / np.maximum((along ** 2).sum(-1), 1e-6), 0, 1)
    distance = np.linalg.norm(at - start - share[..., None] * along, axis=-1).min(axis=-1)
    paint(picture, *low, np.clip(width / 2 + 0.5 - distance, 0, 1), color)


def _strokes(character):
    """(strokes, width) of one character in units of the grid; digits are equally wide."""
    lines = [[(int(p[0]), int(p[1])) for p in part.split()] for part in GLYPHS.get(character, MISSING).split("/") if part]
    return lines, 4 if character.isdigit() else max((x for line in lines for x, _ in line), default=1)


def text_width(string, unit=2.0):
    """Columns that `text` needs."""
    return sum(_strokes(c)[1] + 2 for c in string) * unit


def text(picture, x, y, string, color=INK, unit=2.0, bold=False, align="left"):
    """Write in one line; y is the baseline, capitals are 6 units high, a unit is that many pixels."""
    x -= {"left": 0.0, "centre": 0.5, "right": 1.0}[align] * (text_width(string, unit) - 2 * unit)
    for character in string:
        lines, width = _strokes(character)
        for line in lines:
            stroke(picture, [(x + px * unit, y - (py - 2) * unit) for px, py in line], unit * (1.15 if bold else 0.75), color)
        x += (width + 2) * unit


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
