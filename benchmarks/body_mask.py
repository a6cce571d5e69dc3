"""How much of the lungs the body mask loses: nothing is found outside of it, so every voxel that it costs is lost.

    python benchmarks/body_mask.py CT.nii.gz ... [--slim]

For each CT: the ml of voxels with the HU of lung (-950 to -500) within the closed outline of the body, and the share of
them that the mask leaves out. The outline is drawn by other means than the mask: tissue, closed by CLOSE_MM and filled
in each axial slice. It takes in clothes, cushions and what lies between the patient and the table, and voxels at the
skin that are half air, so that a small share is no loss of lung. --slim measures the CT with a chest wall of 6 mm as
well (perturbations.slim_chest): what of the same voxels its mask leaves out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from perturbations import NotPossible, slim_chest
from uniseg.imaging.body import body_mask
from uniseg.imaging.components import largest_components
from uniseg.imaging.grid import every_nth_voxel, voxel_size_mm
from uniseg.imaging.volume import read_ct
from uniseg.machine.console import fail

GRID_MM, CLOSE_MM = 4.0, 40.0
LUNG_HU = (-950, -500)


def outline(hu: NDArray, spacing_mm: NDArray) -> NDArray[np.bool_]:
    """The closed and filled outline of the body in each axial slice: (D, H, W) of a coarse grid -> bool."""
    in_plane = ndimage.generate_binary_structure(2, 1)[:, :, None]
    tissue = hu > -300
    body = largest_components(ndimage.binary_opening(tissue, in_plane, max(1, round(5.0 / spacing_mm[0]))))
    body = ndimage.binary_dilation(body, in_plane, 2, mask=tissue)
    margin = int(CLOSE_MM / min(spacing_mm[:2])) + 1
    closed = np.zeros_like(body)
    for k in np.flatnonzero(body.any(axis=(0, 1))):
        padded = np.pad(body[:, :, k], margin)
        wide = ndimage.distance_transform_edt(~padded, spacing_mm[:2]) <= CLOSE_MM
        narrow = ndimage.distance_transform_edt(wide, spacing_mm[:2]) > CLOSE_MM
        closed[:, :, k] = ndimage.binary_fill_holes(narrow | padded)[margin:-margin, margin:-margin]
    return closed


def lung_like(hu: NDArray, steps: Sequence[int], spacing_mm: NDArray) -> NDArray[np.bool_]:
    """What has the HU of lung within the outline, on every n-th voxel."""
    coarse = every_nth_voxel(hu, steps)
    return (coarse > LUNG_HU[0]) & (coarse < LUNG_HU[1]) & outline(coarse, spacing_mm * steps)


def lines(path: Path, slim: bool) -> list[str]:
    """Rows of the table for one CT."""
    ct, name = read_ct(path), path.name.removesuffix(".nii.gz")
    spacing_mm = voxel_size_mm(ct.affine)
    steps = [max(1, int(GRID_MM / s)) for s in spacing_mm]
    voxel_ml = float(np.prod(spacing_mm * steps)) / 1000
    outside = ct.outside_on(ct.array, ct.affine)
    inside, cts = lung_like(ct.array, steps, spacing_mm), {name: ct.array}
    if slim:
        try:
            cts[f"{name}, slim"] = slim_chest(ct.array, ct.affine, {})[0]
        except NotPossible as why:
            print(f"{path.name}: {why}", file=sys.stderr)
    rows = []
    for title, hu in cts.items():
        kept = inside & (every_nth_voxel(hu, steps) > LUNG_HU[0])             # the thin wall has cost none of it
        lost = kept & ~every_nth_voxel(body_mask(hu, spacing_mm, outside), steps)
        share = lost.sum() / max(1, kept.sum())
        rows.append(f"| {title} | {kept.sum() * voxel_ml:.0f} | {lost.sum() * voxel_ml:.1f} | {share:.3f} |")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 a CT cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", type=Path, nargs="+", metavar="CT")
    parser.add_argument("--slim", action="store_true", help="with a chest wall of 6 mm as well")
    args = parser.parse_args(argv)
    print("| CT | lung-like, ml | lost, ml | share lost |\n|--|--|--|--|")
    try:
        for path in args.cts:
            print("\n".join(lines(path, args.slim)), flush=True)
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
