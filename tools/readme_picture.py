"""The pictures of README.md and MODEL_CARD.md: what the built-in weights make of CTs that they were not trained on.

    python -m tools.readme_picture DATA                   # all of them -> docs/
    python -m tools.readme_picture DATA --only readme     # one of them

DATA holds the folder `unlabelled` with the CTs of PICTURES (TCIA; the captions name their sources and licences). The
first picture has a slice of a CT beside the same slice with its result; the others are those of `infer --preview`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

import uniseg
from uniseg.imaging.volume import Volume
from uniseg.inference.result import Segmentation
from uniseg.pictures.blocks import LETTER, Block, Entry, below, beside, framed, indented, legend, on_page
from uniseg.pictures.canvas import write_png
from uniseg.pictures.colors import class_color
from uniseg.pictures.preview import preview
from uniseg.pictures.slices import AXIAL, make_case, slice_picture

DOCS = Path(__file__).resolve().parents[1] / "docs"
PANEL_WIDTH = 560                    # pixels of a slice in the first picture
WORDS = 2.25                         # pixels per unit of its letters: README shows it smaller than it is


class Picture(NamedTuple):
    """A picture of a result."""

    ct: str                          # the CT's file in DATA/unlabelled, without its ending
    slices: tuple[int | None, int | None] = (None, None)     # first, and one after the last, that are segmented
    experimental: bool = False       # with the classes that are not offered


PICTURES = {"readme": Picture("crlm1006"), "overlay": Picture("crlm1004"),
            "overlay_chest": Picture("acrin_flt_013", experimental=True),
            "overlay_slab": Picture("crlm1004", (13, 21))}


def side_by_side(hu: np.ndarray, label_map: np.ndarray, affine: np.ndarray, names: dict[str, int],
                 at: int | None = None) -> Block:
    """An axial slice of a CT, beside it the result over the same slice, and below the names of what is seen.

    hu, label_map: (D, H, W) RAS+
    names:         {class: its value}
    at:            slice, counted from the lowest (default: the one that shows most)
    """
    case = make_case(hu, label_map, affine)
    if at is not None:
        case = make_case(hu, label_map, affine, (*case.at[:2], at))
    mm_per_pixel = case.extent_mm(AXIAL)[0] / PANEL_WIDTH
    panels = beside([framed(slice_picture(case, AXIAL, mm_per_pixel, labels), AXIAL.letters, title, mm_per_pixel)
                     for title, labels in (("CT", False), ("uniseg", True))])
    seen = np.unique(label_map[:, :, case.at[2]])
    entries = [Entry(name, class_color(value)) for name, value in names.items() if value in seen]
    words = indented(legend(entries, panels.shape[1] - 2 * LETTER, WORDS))
    return on_page(below([panels, words], 10))


def draw(name: str, ct: Volume, segmentation: Segmentation, label_map: np.ndarray, at: int | None) -> Block:
    """One of PICTURES. label_map: (D, H, W) RAS+"""
    figures = segmentation.stats["classes"]
    if name == "readme":
        return side_by_side(ct.array, label_map, ct.affine, {n: one["label"] for n, one in figures.items()}, at)
    return preview(ct.array, label_map, ct.affine, figures, PICTURES[name].ct, segmentation.stats["warnings"])


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m tools.readme_picture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder that holds the folder unlabelled")
    parser.add_argument("--only", choices=PICTURES, action="append", help="draw this one; repeat for more")
    parser.add_argument("--slice", type=int, metavar="N",
                        help="axial slice of the first picture, counted from the lowest (default: the most telling)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (default: docs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the pictures and print their sizes."""
    args = build_parser().parse_args(argv)
    model, done = uniseg.load(), {}
    for name in args.only or PICTURES:
        picture = PICTURES[name]
        if picture not in done:
            image = nibabel.Nifti1Image.from_filename(args.data / "unlabelled" / f"{picture.ct}.nii.gz")
            segmentation = model.segment(image.slicer[:, :, slice(*picture.slices)], experimental=picture.experimental)
            ct = segmentation.ct()
            stored = nibabel.Nifti1Image(segmentation.label_map, segmentation.affine)
            done[picture] = ct, segmentation, np.asarray(nibabel.as_closest_canonical(stored).dataobj)
        file = args.out / f"{name}.png"
        write_png(file, draw(name, *done[picture], args.slice))
        print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
