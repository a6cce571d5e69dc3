"""Drawing on arrays of pixels: lines, a small stroke font, and PNG files."""

import struct
import zlib

import numpy as np

from ..machine.files import atomic_write


def write_png(path, rgb):
    """rgb (rows, columns, 3) uint8 -> an 8-bit RGB file (https://www.w3.org/TR/png-3/)."""
    rows, columns, _ = rgb.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    scanlines = np.concatenate([np.zeros((rows, 1), np.uint8), rgb.reshape(rows, -1)], axis=1)  # filter type 0 each
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
                              + chunk(b"IDAT", zlib.compress(scanlines.tobytes(), 6)) + chunk(b"IEND", b""))


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
