"""Figures in the form of the paper's: contours of readers and models on one CT, lesions from small to large.

`python -m uniseg figures` draws them; figure_options.py has its options. A reading is a label map, a result of
uniseg.infer or a folder of masks of the CT. Contours are those of Fig. 5(a), lesions those of Fig. 2 and Fig. 4(b).
Slices are axial, seen from below: the patient's right is on the left. Read readings.py, masks.py and
pictures/canvas.py first.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..datasets.dataset import DataError
from ..datasets.masks import check_same_grid
from ..imaging.bits import bounding_box
from ..imaging.components import CONNECTED_26
from ..imaging.grid import voxel_size_mm, voxel_volume_mm3
from ..imaging.volume import Volume, read_ct, scale_hu
from ..machine.console import fail, note, say
from ..pictures.canvas import BLACK, Color, blank, paint, text, write_png
from .figure_options import build_parser
from .masks import MaskOf, open_masks
from .readings import meaning_in, reading_at

# Of the readings, in their order; the first three are those of Fig. 5(a).
COLORS: tuple[Color, ...] = ((230, 40, 40), (40, 200, 70), (70, 120, 255), (250, 210, 40), (230, 80, 230),
                             (60, 220, 230))
PANEL, GAP, TITLE = 240, 6, 26          # pixels: a slice, between slices, a line of text above them
PEN = 1.6                               # pixels: width of a contour
MARGIN_MM = 15.0                        # of a slice around what it shows
WINDOW = (-175.0, 250.0)                # HU, Section 4.1.2


class Opened(NamedTuple):
    """One reading of the CT."""

    name: str
    color: Color
    classes: tuple[str, ...]
    mask_of: MaskOf

    def mask(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """The mask of a class, (D, H, W) bool; empty where the reading does not have the class."""
        return self.mask_of(name) if name in self.classes else np.zeros(shape, bool)


def open_reading(name: str, path: Path, color: Color, ct: Volume, ct_path: Path) -> Opened:
    """Raises DataError or VolumeError where the path is no reading of this CT."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give a label map or a folder of masks.")
    reading = reading_at(path, "", meaning_in(path.parent))
    if reading is None:
        raise DataError(f"{path}: no mask of a known class in it. Give a label map or a folder of masks.")
    volume, mask_of = open_masks(reading, ct)
    check_same_grid(ct, volume, ct_path, path)
    return Opened(name, color, reading.classes, mask_of)


# -------------------------------------------------------------------------------------------------------------- drawing

Box = tuple[slice, ...]


def slice_panel(ct: Volume, masks: Sequence[tuple[np.ndarray, Color]], box: Box, z: int) -> np.ndarray:
    """One axial slice with contours: (PANEL, PANEL, 3) float32.

    masks: (mask (D, H, W) bool, colour); box: the part of the first two axes that is shown
    """
    across, down = (float(mm) for mm in voxel_size_mm(ct.affine)[:2])
    mm_per_pixel = max(across * (box[0].stop - box[0].start), down * (box[1].stop - box[1].start)) / PANEL
    factors = down / mm_per_pixel, across / mm_per_pixel              # of rows and columns

    def fitted(plane: np.ndarray) -> np.ndarray:
        seen = plane[::-1, ::-1].T.astype(np.float32)                # anterior up, the patient's right on the left
        return ndimage.zoom(seen, factors, order=1, mode="nearest", grid_mode=True)[:PANEL, :PANEL]

    grey = np.clip(fitted(scale_hu(ct.array[box[0], box[1], z], WINDOW)), 0, 1) * 255
    picture = blank(PANEL, PANEL, BLACK)
    top, left = (PANEL - grey.shape[0]) // 2, (PANEL - grey.shape[1]) // 2
    picture[top:top + grey.shape[0], left:left + grey.shape[1]] = grey[..., None]
    for mask, color in masks:
        if mask[box[0], box[1], z].any():
            paint(picture, left, top, contour(fitted(mask[box[0], box[1], z])), color)
    text(picture, 6, PANEL / 2, "R", (220, 224, 230), 1.6)
    return picture


def contour(share: np.ndarray) -> np.ndarray:
    """Coverage (h, w) of a line of PEN pixels where an interpolated mask passes 1/2; outside the array it is 0."""
    padded = np.pad(share, 1)
    rows, columns = np.gradient(padded)
    distance = np.abs(padded - 0.5) / np.maximum(np.hypot(rows, columns), 1e-6)       # in pixels, near the line
    return np.clip(PEN / 2 + 0.5 - distance, 0, 1)[1:-1, 1:-1]


def around(mask: np.ndarray, ct: Volume) -> Box:
    """The box of a mask with MARGIN_MM around it in the axial plane."""
    box = bounding_box(mask)
    assert box is not None
    margins = [math.ceil(MARGIN_MM / mm) for mm in voxel_size_mm(ct.affine)[:2]]
    grown = [slice(max(0, part.start - m), min(n, part.stop + m)) for part, m, n in zip(box, margins, mask.shape)]
    return (*grown, box[2])


def grid_of(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str],
            heads: Sequence[tuple[str, Color]]) -> np.ndarray:
    """Panels in rows, a title above each row, and a first line with names in their colours: (h, w, 3) uint8."""
    columns = max(len(row) for row in rows)
    picture = blank(TITLE + len(rows) * (TITLE + PANEL), columns * PANEL + (columns - 1) * GAP, BLACK)
    width = picture.shape[1] / max(1, len(heads))
    for n, (name, color) in enumerate(heads):
        text(picture, n * width + 6, 18, name, color, 1.8)
    for i, (row, title) in enumerate(zip(rows, titles)):
        top = TITLE + i * (TITLE + PANEL)
        text(picture, 6, top + 18, title, (220, 224, 230), 1.6)
        for j, panel in enumerate(row):
            picture[top + TITLE:top + TITLE + PANEL, j * (PANEL + GAP):j * (PANEL + GAP) + PANEL] = panel
    return picture.round().astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- the figures

def contours(ct: Volume, readings: Sequence[Opened], classes: Sequence[str], slices: int) -> np.ndarray:
    """Fig. 5(a): a row for each class, `slices` axial slices from bottom to top, the contours of all readings.

    Raises DataError for a class that no reading shows.
    """
    rows = []
    for name in classes:
        masks = [(reading.mask(name, ct.array.shape), reading.color) for reading in readings]
        union = np.logical_or.reduce([mask for mask, _ in masks])
        if not union.any():
            raise DataError(f"no reading shows {name}. Name classes with --of that one of them has.")
        for reading in readings:
            if name not in reading.classes:
                note(f"{reading.name}: does not have {name}")
        box = around(union, ct)
        inside = np.linspace(box[2].start, box[2].stop - 1, slices + 2)[1:-1]
        rows.append([slice_panel(ct, masks, box, round(z)) for z in inside])
    return grid_of(rows, classes, [(reading.name, reading.color) for reading in readings])


def lesions(ct: Volume, truth: Opened, readings: Sequence[Opened], name: str, most: int) -> np.ndarray:
    """Fig. 2 and 4(b): a row for each lesion of the truth, from small to large; a column for truth and each reading.

    The slice is the one with most of the lesion. The title has its volume, and for each reading whether it found it:
    one voxel is enough (metrics.lesion_detection). Of more than `most` lesions, some sizes are left out.
    """
    shape, ml = ct.array.shape, voxel_volume_mm3(ct.affine) / 1000
    labels, count = ndimage.label(truth.mask(name, shape), structure=CONNECTED_26)
    if not count:
        raise DataError(f"the truth shows no {name}. Name a class with --of that it has.")
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(sizes, kind="stable")
    chosen = order[np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))]
    masks = [reading.mask(name, shape) for reading in readings]
    rows, titles = [], []
    for k in chosen:
        lesion = labels == k + 1
        box = around(lesion, ct)
        z = int(lesion.sum(axis=(0, 1)).argmax())
        rows.append([slice_panel(ct, [(truth.mask(name, shape), truth.color)], box, z),
                     *(slice_panel(ct, [(mask, reading.color)], box, z) for mask, reading in zip(masks, readings))])
        found = [f"{reading.name} {'found' if (mask & lesion).any() else 'missed'}"
                 for mask, reading in zip(masks, readings)]
        titles.append(", ".join([f"{sizes[k] * ml:.2f} ml", *found]))
    if len(chosen) < count:
        note(f"{len(chosen)} of {count} lesions are shown, from the smallest to the largest")
    return grid_of(rows, titles, [(truth.name, truth.color), *((r.name, r.color) for r in readings)])


# ---------------------------------------------------------------------------------------------------------- the command

def main(argv: list[str] | None = None) -> int:
    """Draw the figure. Returns the exit code: 0 done, 1 it cannot be drawn or written, 2 bad arguments."""
    args = build_parser().parse_args(argv)
    output = args.output or Path(f"{args.figure}.png")
    try:
        classes = [name for part in args.of.split(",") for name in taxonomy.resolve(part.strip())]
        _check(args, classes, output)
    except (ValueError, OSError) as error:
        return fail(error, 2, args.verbose)
    try:
        ct = read_ct(args.ct)
        named = [*([("truth", args.truth)] if args.figure == "lesions" else []), *args.reading]
        opened = [open_reading(name, path, color, ct, args.ct) for (name, path), color in zip(named, COLORS)]
        picture = (contours(ct, opened, classes, args.slices) if args.figure == "contours"
                   else lesions(ct, opened[0], opened[1:], classes[0], args.most))
        write_png(output, picture)
    except (ValueError, OSError, MemoryError) as error:
        return fail(error, 1, args.verbose, args.ct)
    say(f"{output}: {picture.shape[1]} x {picture.shape[0]} pixels")
    return 0


def _check(args: argparse.Namespace, classes: Sequence[str], output: Path) -> None:
    """Raise ValueError for options that do not go together, and for a file that exists."""
    if (args.figure == "lesions") != (args.truth is not None):
        raise ValueError("lesions needs --truth, contours has none. Give the label map whose lesions are shown.")
    if args.figure == "contours" and not args.reading:
        raise ValueError("contours: nothing to draw. Give --reading NAME=PATH.")
    if args.figure == "lesions" and len(classes) != 1:
        raise ValueError(f"--of {args.of}: lesions are of one class. Name one.")
    if len(args.reading) + (args.truth is not None) > len(COLORS):
        raise ValueError(f"--reading: there are {len(COLORS)} colours, the truth's among them. Give fewer.")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output}: exists already. Give --overwrite to replace it, or another -o.")


if __name__ == "__main__":
    sys.exit(main())
