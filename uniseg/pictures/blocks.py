"""What surrounds slices: frames with letters and a scale bar, legends, paragraphs, and how they are put together.

A block is a finished piece of a picture, uint8 (rows, columns, 3), on white. Nothing is drawn over a slice: letters,
bars and names have their own place beside it. Read canvas.py first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .canvas import FAINT, INK, WHITE, bar, blank, plain, text, text_width
from .chart import nice_number_below
from .colors import Color

LETTER, CAPTION = 26, 26          # pixels around a slice for its letters, and below these for name and scale bar
WORDS, SMALL_WORDS = 1.75, 1.5    # pixels per unit of the letters (canvas.py)
ROW = 22                          # pixels from one line of a legend to the next
SWATCH = (20, 14)                 # pixels of a patch of colour
COLUMN_GAP = 30                   # pixels between two columns of a legend
LONGEST_NAME = 36                 # characters
TICK = 5                          # pixels of the marks where the other planes cut

Block = np.ndarray


class Entry(NamedTuple):
    """A line of a legend."""

    name: str
    color: Color
    amount: str = ""              # on the right, such as "1333 ml"
    filled: bool = True           # False: the class is in none of the slices that are shown


def finished(picture: np.ndarray) -> Block:
    """A picture of canvas.py as a block."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def empty(rows: int, columns: int) -> Block:
    """White."""
    return np.full((rows, columns, 3), 255, np.uint8)


def beside(blocks: Sequence[Block], gap: int = 12) -> Block:
    """Blocks from left to right, their upper edges on one line."""
    picture = empty(max(len(b) for b in blocks), sum(b.shape[1] for b in blocks) + gap * (len(blocks) - 1))
    left = 0
    for block in blocks:
        picture[:len(block), left:left + block.shape[1]] = block
        left += block.shape[1] + gap
    return picture


def below(blocks: Sequence[Block], gap: int = 6) -> Block:
    """Blocks from top to bottom, their left edges on one line."""
    return beside([block.swapaxes(0, 1) for block in blocks], gap).swapaxes(0, 1)


def on_page(block: Block, margin: int = 14) -> Block:
    """The block with a white margin around it."""
    page = empty(block.shape[0] + 2 * margin, block.shape[1] + 2 * margin)
    page[margin:-margin, margin:-margin] = block
    return page


def shortened(string: str, width: float, unit: float) -> str:
    """The string, or its beginning and its end with dots between them, where it is wider than `width` pixels."""
    string = plain(string)
    if text_width(string, unit) <= width:
        return string
    for kept in range(len(string) - 1, 1, -1):
        short = f"{string[:kept - kept // 2]}...{string[len(string) - kept // 2:]}"
        if text_width(short, unit) <= width:
            return short
    return ""


def paragraph(string: str, width: int, unit: float = SMALL_WORDS, color: Color = INK, bold: bool = False,
              most: int = 4) -> Block:
    """Text in lines of at most `width` pixels; what does not fit into `most` lines ends in dots."""
    lines: list[str] = []
    for word in plain(string).split():
        word = shortened(word, width, unit)
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, unit) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > most:
        words = lines[most - 1].split()
        while len(words) > 1 and text_width(" ".join(words) + " ...", unit) > width:
            words.pop()
        lines[most - 1:] = [" ".join([*words, "..."])]
    pitch = round(12 * unit)
    picture = blank(max(1, pitch * len(lines)), width)
    for i, line in enumerate(lines):
        text(picture, unit, i * pitch + 8.5 * unit, line, color, unit, bold)
    return finished(picture)


def framed(image: np.ndarray, letters: str, name: str, mm_per_pixel: float,
           marks: tuple[Sequence[float], Sequence[float]] = ((), ())) -> Block:
    """A slice with a letter on each side, and below it the name and a scale bar.

    image:   (rows, columns, 3) of slices.slice_picture; its first pixel is at (LETTER, LETTER) of the block
    letters: the sides of the patient on the left, right, top and bottom
    marks:   columns and rows of the slice at whose ends ticks say where the other planes cut
    """
    rows, columns = image.shape[:2]
    captions = _captions(columns, name, mm_per_pixel)
    width = max(columns + 2 * LETTER, captions.shape[1])
    picture = blank(rows + 2 * LETTER, width)
    picture[LETTER:LETTER + rows, LETTER:LETTER + columns] = image
    middle = LETTER + columns / 2, LETTER + rows / 2 + 3 * WORDS
    for letter, x, y in zip(letters, (LETTER / 2 - 5, columns + 1.5 * LETTER + 5, middle[0], middle[0]),
                            (middle[1], middle[1], LETTER - 12, rows + 2 * LETTER - 3)):
        text(picture, x, y, letter, INK, WORDS, bold=True, align="centre")
    for x in marks[0]:
        for y in (LETTER - TICK - 1, LETTER + rows + 1):
            bar(picture, LETTER + round(x - 0.5), y, 1, TICK, FAINT)
    for y in marks[1]:
        for x in (LETTER - TICK - 1, LETTER + columns + 1):
            bar(picture, x, LETTER + round(y - 0.5), TICK, 1, FAINT)
    return below([finished(picture), captions], gap=0)


def scale_bar_mm(columns: int, mm_per_pixel: float) -> float:
    """The length of the scale bar of a slice: a round number, at most 0.4 of its width and 100 mm."""
    return nice_number_below(min(100.0, 0.4 * columns * mm_per_pixel))


def _captions(columns: int, name: str, mm_per_pixel: float) -> Block:
    """The name on the left and the scale bar on the right of a slice; below each other where it is narrow."""
    length_mm = scale_bar_mm(columns, mm_per_pixel)
    pixels, words = max(1, round(length_mm / mm_per_pixel)), f"{length_mm:g} mm"
    needed = text_width(name, WORDS) + text_width(words, WORDS) + pixels + 30
    narrow = needed > columns
    right = LETTER + max(columns, round(text_width(words, WORDS)) + pixels + 8)
    picture = blank(CAPTION * (1 + narrow), max(right, round(LETTER + text_width(name, WORDS))) + LETTER)
    text(picture, LETTER, 17, name, FAINT, WORDS)
    y = 17 + CAPTION * narrow
    bar(picture, right - pixels, y - 7, pixels, 3, INK)
    for end in (right - pixels, right - 2):
        bar(picture, end, y - 10, 2, 9, INK)
    text(picture, right - pixels - 8, y, words, INK, WORDS, align="right")
    return finished(picture)


def indented(block: Block) -> Block:
    """The block, moved to the right so that it begins where a framed slice does."""
    return beside([empty(1, LETTER), block], gap=0)


def legend(entries: Sequence[Entry], width: int, unit: float = WORDS) -> Block:
    """Colour, name and amount of each class, in as many columns as `width` pixels hold, but at least one.

    unit: pixels per unit of the letters
    """
    entries = [entry._replace(name=_short_name(entry.name)) for entry in entries]
    if not entries:
        return empty(1, 1)
    names = max(text_width(entry.name, unit) for entry in entries)
    amounts = max(text_width(entry.amount, unit) for entry in entries)
    patch, row, gap = (round(part * unit / WORDS) for part in (SWATCH[0], ROW, COLUMN_GAP))
    column = round(patch + 10 + names + (14 + amounts if amounts else 0))
    count = max(1, min(len(entries), (width + gap) // (column + gap)))
    rows = -(-len(entries) // count)
    picture = blank(row * rows, (column + gap) * -(-len(entries) // rows) - gap)
    for i, entry in enumerate(entries):
        x, y = i // rows * (column + gap), i % rows * row
        swatch(picture, x, y + row // 5, (patch, round(SWATCH[1] * unit / WORDS)), entry)
        text(picture, x + patch + 10, y + 0.75 * row, entry.name, INK, unit)
        text(picture, x + column - unit, y + 0.75 * row, entry.amount, INK, unit, align="right")
    return finished(picture)


def _short_name(name: str) -> str:
    """The name of a class as words, without what is too long for a legend."""
    name = plain(name.replace("_", " "))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME - 13]}...{name[-10:]}"


def swatch(picture: np.ndarray, x: int, y: int, size: tuple[int, int], entry: Entry) -> None:
    """A patch of the class's colour with a thin rim; only its frame where the class is in none of the slices."""
    for rim, color in ((0, FAINT), (1, entry.color), (4, WHITE)):
        if rim < 4 or not entry.filled:
            bar(picture, x + rim, y + rim, size[0] - 2 * rim, size[1] - 2 * rim, color)
