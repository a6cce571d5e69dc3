"""The picture at the top of README.md: a slice of a CT, and beside it the result over the same slice, with names.

    python -m tools.readme_picture DATA        # DATA/unlabelled/crlm1006.nii.gz -> docs/readme.png

The CT is crlm1006 (CC BY 4.0, TCIA Colorectal-Liver-Metastases), not trained on. The built-in weights segment
it as `python -m uniseg.infer` does. Grey values have 64 steps, so that the file stays small.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

import uniseg
from uniseg.imaging.body import body_mask
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.volume import read_ct, scale_hu
from uniseg.pictures.canvas import blank, stroke, text, write_png
from uniseg.pictures.colors import class_color

ROOT = Path(__file__).resolve().parents[1]
HEIGHT = 0.46             # of the CT: the axial slice that is shown, as a share from the lowest slice to the highest
PANEL_WIDTH = 470         # pixels of one slice
MARGIN = 8                # pixels of air around the body
NAMES_WIDTH = 150         # pixels on either side of the second slice
UNIT = 1.9                # pixels of a unit of the stroke font: capitals are 6 units high
LINE = 20                 # pixels from one line of writing to the next
LONGEST = 14              # characters: a longer name is broken into two lines
TITLE = 34                # pixels above the slices
LEAST_AREA = 60           # pixels: smaller pieces of a class get no name
WHITE, BACKGROUND, LEADER = (245, 245, 245), (0, 0, 0), (150, 156, 164)


class Name(NamedTuple):
    """A class in the slice: where its leader points to, in pixels of the slice, and what is written."""

    words: str
    color: tuple[int, int, int]
    row: float
    column: float


def as_seen(plane: np.ndarray) -> np.ndarray:
    """An axial slice of a RAS+ volume as a radiologist looks at it: anterior up, the patient's right on the left."""
    return plane[::-1, ::-1].T


def box_of(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around a mask of two axes."""
    return ndimage.find_objects(mask.astype(int))[0]


def enlarged(plane: np.ndarray, factor: float) -> np.ndarray:
    """A slice with `factor` times as many pixels along each axis, interpolated linearly."""
    return ndimage.zoom(plane.astype(np.float32), factor, order=1, mode="nearest", grid_mode=True)


def painted(grey: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    """The slice (rows, columns, 3) with every class tinted and outlined in its own colour."""
    rgb = np.repeat(grey[..., None], 3, axis=2)
    for value, mask in masks.items():
        color = np.float32(class_color(value))
        rgb[mask] = 0.65 * rgb[mask] + 0.35 * color
        rgb[mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)] = color
    return rgb


def names_of(masks: dict[int, np.ndarray]) -> list[Name]:
    """One name per class, at the innermost pixel of its largest piece."""
    names = []
    for value, mask in masks.items():
        pieces, count = ndimage.label(mask)
        if not count:
            continue
        largest = pieces == 1 + np.argmax(ndimage.sum_labels(mask, pieces, range(1, count + 1)))
        if largest.sum() < LEAST_AREA:
            continue
        depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        words = uniseg.CLASSES[value - 1].name.replace("_", " ")
        names.append(Name(words, class_color(value), float(row), float(column)))
    return names


def lighter(color: tuple[int, int, int]) -> tuple[int, ...]:
    """A colour that can be read on black."""
    return tuple(round(0.65 * c + 0.35 * 255) for c in color)


def in_lines(words: str) -> list[str]:
    """A name in one line, or broken at the space that leaves two lines of about the same length.

    >>> in_lines("liver"), in_lines("portal and splenic vein")
    (['liver'], ['portal and', 'splenic vein'])
    """
    if len(words) <= LONGEST:
        return [words]
    spaces = [i for i, character in enumerate(words) if character == " "]
    at = min(spaces, key=lambda i: abs(2 * i - len(words)))
    return [words[:at], words[at + 1:]]


def spread(centres: list[float], heights: list[float], low: float, high: float) -> list[float]:
    """Move the centres of blocks, given from the top down, so that none overlap and all lie between two rows."""
    placed: list[float] = []
    for centre, height in zip(centres, heights):                       # downwards, away from the block above
        low = max(centre - height / 2, low) + height
        placed.append(low - height / 2)
    for i in reversed(range(len(placed))):                             # upwards, away from the lower border
        high = min(placed[i] + heights[i] / 2, high) - heights[i]
        placed[i] = high + heights[i] / 2
    return placed


def write_names(picture: np.ndarray, names: list[Name], left: int, width: int) -> None:
    """Write the names on both sides of the slice that begins at column `left`, each with a line to its organ."""
    middle = np.median([name.column for name in names])
    for on_the_right in (False, True):
        side = sorted((n for n in names if (n.column > middle) == on_the_right), key=lambda n: n.row)
        lines = [in_lines(name.words) for name in side]
        heights = [LINE * len(each) + 8.0 for each in lines]
        centres = spread([name.row for name in side], heights, TITLE, picture.shape[0] - MARGIN)
        edge = left + width + 4 if on_the_right else left - 4
        for name, each, centre in zip(side, lines, centres):
            end = left + name.column
            stroke(picture, [(edge, centre), (end, name.row)], 1.4, LEADER)
            stroke(picture, [(end, name.row), (end, name.row)], 6, WHITE)
            for number, words in enumerate(each):
                baseline = centre + (number - (len(each) - 1) / 2) * LINE + 3 * UNIT
                text(picture, edge + (8 if on_the_right else -8), baseline, words, lighter(name.color), UNIT,
                     align="left" if on_the_right else "right")


def picture_of(hu: np.ndarray, label_map: np.ndarray, spacing_mm: tuple[float, ...], at: int) -> np.ndarray:
    """The axial slice `at` of a CT and its result side by side, uint8 (rows, columns, 3).

    hu, label_map: (D, H, W) RAS+; the first two axes have equal spacings
    """
    plane, labels = as_seen(hu[:, :, at]), as_seen(label_map[:, :, at])
    box = box_of(as_seen(body_mask(hu, spacing_mm)[:, :, at]))
    factor = (PANEL_WIDTH - 2 * MARGIN) / (box[1].stop - box[1].start)
    grey = enlarged(plane[box], factor)
    grey = (scale_hu(grey, (-150.0, 250.0)) * 255 // 4 * 4).astype(np.float32)
    values = [int(v) for v in np.unique(labels[box]) if v]
    masks = {value: enlarged(labels[box] == value, factor) > 0.5 for value in values}

    rows, columns = grey.shape
    picture = blank(TITLE + rows + MARGIN, 2 * PANEL_WIDTH + 2 * NAMES_WIDTH, BACKGROUND)
    second = PANEL_WIDTH + NAMES_WIDTH + MARGIN
    for left, panel, title in ((MARGIN, painted(grey, {}), "CT"), (second, painted(grey, masks), "uniseg")):
        picture[TITLE:TITLE + rows, left:left + columns] = panel
        text(picture, left + columns / 2, TITLE - 10, title, WHITE, 2.0, align="centre")
    names = [name._replace(row=name.row + TITLE) for name in names_of(masks)]
    write_names(picture, names, second, columns)
    return np.round(picture).astype(np.uint8)


def main(argv: list[str] | None = None) -> int:
    """Write the picture and print its size."""
    parser = argparse.ArgumentParser(prog="python -m tools.readme_picture", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that holds unlabelled/crlm1006.nii.gz")
    parser.add_argument("--slice", type=int, help="axial slice, counted from the lowest (default: in the middle)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "readme.png", help="where to write the picture")
    args = parser.parse_args(argv)
    path = args.data / "unlabelled" / "crlm1006.nii.gz"
    ct = read_ct(path)
    segmentation = uniseg.load().segment(path)
    at = round(HEIGHT * (ct.array.shape[2] - 1)) if args.slice is None else args.slice
    write_png(args.out, picture_of(ct.array, segmentation.label_map, voxel_size_mm(ct.affine), at))
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB, slice {at}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
