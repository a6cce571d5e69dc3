"""The picture of docs/pictures.md: the colour of each class, over a CT, on white, and as the colour blind see it.

    python -m tools.color_chart            # -> docs/colors.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from uniseg.pictures.blocks import Block, finished, on_page
from uniseg.pictures.canvas import FAINT, INK, Color, bar, blank, text, write_png
from uniseg.pictures.colors import linear
from uniseg.pictures.slices import FILL
from uniseg.taxonomy import CLASSES

DOCS = Path(__file__).resolve().parents[1] / "docs"

# Linear RGB as it appears without one kind of cone: Machado, Oliveira, Fernandes, A Physiologically-based Model for
# Simulation of Color Vision Deficiency, IEEE TVCG 15 (2009), https://doi.org/10.1109/TVCG.2009.113, severity 1.0.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]}
GREYS = (0, 110, 150, 220)                       # air or lung, muscle, an organ with contrast, bone
ROW, NAME, PATCH, GREY, GAP = 26, 260, 110, 76, 14   # pixels
TITLE = 34


def as_seen(color: Color, blindness: str) -> Color:
    """An sRGB colour as it appears without one kind of cone."""
    light = np.clip(np.array(BLINDNESS[blindness]) @ linear(np.array(color)), 0, 1)
    red, green, blue = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    return round(red), round(green), round(blue)


def chart() -> Block:
    """A row per class: name, colour on white, outline and fill over four greys, and three simulations."""
    columns = ["on white", "over air, muscle, organ, bone", *BLINDNESS]
    widths = [PATCH, GREY * len(GREYS), *[PATCH] * len(BLINDNESS)]
    lefts = np.cumsum([NAME, *(width + GAP for width in widths)])
    picture = blank(TITLE + ROW * len(CLASSES), int(lefts[-1]))
    for words, left in zip(columns, lefts):
        text(picture, left, 20, words, FAINT, 1.5)
    for i, c in enumerate(CLASSES):
        y = TITLE + i * ROW
        text(picture, 2, y + 17, f"{c.index} {c.name.replace('_', ' ')}", INK, 1.75)
        bar(picture, int(lefts[0]), y + 3, PATCH, ROW - 6, c.color)
        for k, grey in enumerate(GREYS):
            left = int(lefts[1]) + k * GREY
            bar(picture, left, y, GREY, ROW, (grey, grey, grey))
            bar(picture, left + 10, y + 4, GREY - 20, ROW - 8, c.color)
            inside = picture[y + 6:y + ROW - 6, left + 12:left + GREY - 12]
            inside[:] = (1 - FILL) * grey + FILL * np.array(c.color)
        for blindness, left in zip(BLINDNESS, lefts[2:]):
            bar(picture, int(left), y + 3, PATCH, ROW - 6, as_seen(c.color, blindness))
    return on_page(finished(picture))


def main(argv: list[str] | None = None) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="python -m tools.color_chart", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DOCS / "colors.png", help="where to write it")
    args = parser.parse_args(argv)
    write_png(args.out, chart())
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
