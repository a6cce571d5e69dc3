"""Drawing on arrays of pixels: lines, a small stroke font, and PNG files.

A picture is (rows, columns, 3) float32 from 0 to 255 and is drawn on in place. Positions are in pixels, x to the right
and y down, and may lie between two pixels. chart.py and slices.py draw with this.
"""

import functools
import math
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..machine.files import atomic_write

Color = tuple[int, int, int]                                # RGB, 0 to 255


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write an 8-bit RGB file. rgb: (rows, columns, 3) uint8. Raises FileError where the file cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(rgb))


def png_bytes(rgb: np.ndarray) -> bytes:
    """The bytes of an 8-bit RGB file (https://www.w3.org/TR/png-3/). rgb: (rows, columns, 3) uint8"""
    rows, columns, _ = rgb.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    scanlines = np.concatenate([np.zeros((rows, 1), np.uint8), rgb.reshape(rows, -1)], axis=1)  # filter type 0 each
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines.tobytes(), 6))
            + chunk(b"IEND", b""))


INK, FAINT, GRID = (30, 34, 40), (120, 126, 134), (226, 229, 233)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# The strokes of each character, separated by "/", as points "xy" on a grid. The baseline is y = 2; small letters reach
# up to 6, capitals and digits up to 8.
GLYPHS = {
    "0": "12 32 43 47 38 18 07 03 12", "1": "16 28 22/12 32", "2": "07 18 38 47 46 02 42",
    "3": "07 18 38 47 46 35 15/35 44 43 32 12 03",
    "4": "32 38 04 44", "5": "48 08 05 35 44 43 32 12 03", "6": "47 38 18 07 03 12 32 43 44 35 15 04", "7": "08 48 12",
    "8": "15 06 07 18 38 47 46 35 15 04 03 12 32 43 44 35", "9": "03 12 32 43 47 38 18 07 06 15 35 46",
    "a": "45 36 16 05 03 12 32 43/46 42", "b": "08 02/05 16 36 45 43 32 12 03", "c": "45 36 16 05 03 12 32 43",
    "d": "48 42/45 36 16 05 03 12 32 43", "e": "04 44 45 36 16 05 03 12 32 43", "f": "38 28 17 12/06 36",
    "g": "46 41 30 10 01/45 36 16 05 03 12 32 43", "h": "08 02/05 16 36 45 42", "i": "06 02/08 08",
    "j": "16 11 00/18 18", "k": "08 02/36 04/15 32", "l": "08 03 12", "m": "06 02/05 16 26 35 32/35 46 56 65 62",
    "n": "06 02/05 16 36 45 42",
    "o": "16 36 45 43 32 12 03 05 16", "p": "06 00/05 16 36 45 43 32 12 03", "q": "46 40/45 36 16 05 03 12 32 43",
    "r": "06 02/05 16 36", "s": "45 36 16 05 14 34 43 32 12 03", "t": "18 13 22 32/06 36", "u": "06 03 12 32 43/46 42",
    "v": "06 22 46", "w": "06 22 35 42 66", "x": "06 42/02 46", "y": "06 22/46 10", "z": "06 46 02 42",
    "A": "02 28 42/14 34", "B": "02 08 38 47 46 35 05/35 44 43 32 02", "C": "47 38 18 07 03 12 32 43",
    "D": "02 08 28 46 44 22 02", "E": "48 08 02 42/05 35", "F": "48 08 02/05 35", "G": "47 38 18 07 03 12 32 43 45 25",
    "H": "08 02/48 42/05 45", "I": "08 02", "J": "38 33 22 12 03", "K": "08 02/48 04/15 42", "L": "08 02 42",
    "M": "02 08 34 68 62", "N": "02 08 42 48", "O": "12 42 53 57 48 18 07 03 12", "P": "02 08 38 47 45 34 04",
    "Q": "12 42 53 57 48 18 07 03 12/34 52", "R": "02 08 38 47 46 35 05/25 42",
    "S": "47 38 18 07 06 15 35 44 43 32 12 03", "T": "08 48/28 22", "U": "08 03 12 32 43 48", "V": "08 22 48",
    "W": "08 12 36 52 68", "X": "08 42/02 48",
    "Y": "08 25 48/25 22", "Z": "08 48 02 42",
    " ": "", ".": "02 02", ",": "12 01", ":": "02 02/05 05", "-": "05 35", "+": "05 45/23 27", "=": "04 44/06 46",
    "_": "01 41", "/": "02 38", "(": "18 07 03 12", ")": "08 17 13 02", "[": "18 08 02 12", "]": "08 18 12 02",
    "%": "02 48/07 07/43 43",
    "'": "08 07", "&": "42 07 18 27 04 03 12 22 44", "<": "36 04 32", ">": "06 34 02", "*": "06 44/04 46/27 23",
    "!": "08 04/02 02", '"': "08 06/28 26", "#": "12 18/32 38/04 44/06 46", "?": "07 18 38 47 46 24/22 22",
    "$": "47 38 18 07 06 15 35 44 43 32 12 03/29 21", ";": "15 15/12 01",
    "@": "34 14 16 36 33 43 54 57 48 18 07 03 12 42",
    "\\": "08 32", "^": "06 28 46", "`": "08 17", "{": "28 17 16 05 14 13 22", "}": "08 17 16 25 14 13 02",
    "|": "09 01", "~": "05 16 34 45",
}
MISSING = "02 08 38 32 02"                                 # a box, for every other character


def blank(rows: int, columns: int, color: Color = WHITE) -> np.ndarray:
    """A picture of one colour."""
    return np.full((rows, columns, 3), color, np.float32)


def paint(picture: np.ndarray, x: int, y: int, coverage: np.ndarray, color: Color) -> None:
    """Lay a colour over the pixels from column x, row y on; what lies outside the picture is cut off.

    coverage: (h, w) from 0 (the pixel stays) to 1 (it gets the colour)
    """
    top, left = max(0, -y), max(0, -x)
    coverage = coverage[top:max(0, picture.shape[0] - y), left:max(0, picture.shape[1] - x)]
    part = picture[y + top:, x + left:][:coverage.shape[0], :coverage.shape[1]]
    touched = np.nonzero(coverage > 1 / 16)
    share = np.round(coverage[touched] * 8)[:, None] / 8      # nobody sees more shades, and the file is a third smaller
    part[touched] += share * (np.array(color, np.float32) - part[touched])


def bar(picture: np.ndarray, x: int, y: int, width: int, height: int, color: Color) -> None:
    """A filled rectangle on whole pixels."""
    picture[max(0, y):max(0, y + height), max(0, x):max(0, x + width)] = color


def stroke(picture: np.ndarray, points: Sequence[tuple[float, float]], width: float, color: Color) -> None:
    """A short line through `points` [(x, y), ...] with round ends; the same point twice is a dot of that diameter."""
    corners = np.array(points, np.float32)
    low = np.floor(corners.min(axis=0) - width).astype(int)
    columns, rows = np.ceil(corners.max(axis=0) + width).astype(int) - low
    y, x = np.mgrid[:rows, :columns].astype(np.float32) + 0.5
    pixels = np.stack([x, y], axis=-1)[:, :, None] + low.astype(np.float32)    # (h, w, 1, 2) their centres
    start, along = corners[:-1], corners[1:] - corners[:-1]
    share = np.clip(((pixels - start) * along).sum(-1) / np.maximum((along ** 2).sum(-1), 1e-6), 0, 1)
    distance = np.linalg.norm(pixels - start - share[..., None] * along, axis=-1).min(axis=-1)
    paint(picture, int(low[0]), int(low[1]), np.clip(width / 2 + 0.5 - distance, 0, 1), color)


def plain(string: str) -> str:
    """The text that can be written: accents are left out; what the font lacks beyond that is drawn as a box.

    >>> plain("Müller, André")
    'Muller, Andre'
    """
    return "".join(c for c in unicodedata.normalize("NFKD", string) if not unicodedata.combining(c))


def _strokes(character: str) -> tuple[list[list[tuple[int, int]]], int]:
    """(strokes, width) of one character in units of the grid. All digits have the same width."""
    strokes = GLYPHS.get(character, MISSING).split("/")
    lines = [[(int(p[0]), int(p[1])) for p in points.split()] for points in strokes if points]
    return lines, 4 if character.isdigit() else max((x for line in lines for x, _ in line), default=1)


def text_width(string: str, unit: float = 2.0) -> float:
    """Columns that `text` needs, with the gap behind the last character."""
    return sum(_strokes(c)[1] + 2 for c in plain(string)) * unit


def text(picture: np.ndarray, x: float, y: float, string: str, color: Color = INK, unit: float = 2.0,
         bold: bool = False, align: str = "left") -> None:
    """Write one line of text.

    x, y:  of the left end, the centre or the right end (`align`) of the baseline
    unit:  pixels per unit of the glyphs; capitals are 6 units high
    """
    x -= {"left": 0.0, "centre": 0.5, "right": 1.0}[align] * (text_width(string, unit) - 2 * unit)
    _write(picture, x, y, string, color, unit, pen=unit * (1.15 if bold else 0.75))


def _write(picture: np.ndarray, x: float, y: float, string: str, color: Color, unit: float, pen: float) -> None:
    """Write with a pen of that many pixels, from the left end of the baseline on; y is rounded to a whole pixel."""
    for character in plain(string):
        column = round(x * 4)
        left, top, coverage = _glyph(character, unit, pen, column % 4 / 4)
        paint(picture, column // 4 + left, round(y) + top, coverage, color)
        x += (_strokes(character)[1] + 2) * unit


@functools.lru_cache(maxsize=4096)
def _glyph(character: str, unit: float, pen: float, x: float) -> tuple[int, int, np.ndarray]:
    """Column and row of the upper left pixel of a character at (x, 0), and how much it covers of each pixel, (h, w)."""
    lines, width = _strokes(character)
    reach = math.ceil(pen) + 1
    drawn = blank(math.ceil(10 * unit) + 2 * reach, math.ceil((width + 1) * unit) + 2 * reach, BLACK)
    top = math.ceil(7 * unit) + reach                         # the highest point is 7 units above the baseline
    for line in lines:
        stroke(drawn, [(reach + x + px * unit, top - (py - 2) * unit) for px, py in line], pen, WHITE)
    return -reach, -top, drawn[..., 0] / 255
