"""The error of the mid-sagittal plane where a CT shows one side of the patient alone, and whether it is called sure.

    python benchmarks/sides.py CT.nii.gz ... [--all-crops]

Each CT is cut by 0 to 80 % of the body's width, on the patient's left (L) and on the right (R). The error is the mean
distance (mm, along x) between the plane found in what is left and that of the whole CT, over the middle 60 % of the
depth and all of the height. A plane in brackets is not sure: nothing is divided by it. With --all-crops there are also
columns of a third of the width (x) and quarters of the height (z). The last lines count what matters: planes that are
sure and more than 10 mm off, by which an organ could change its side.

To spare time, the CT is first sampled at about 2 mm in plane; the plane is fitted on about 5 mm in any case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniseg.imaging.anatomy import Plane, midsagittal_plane
from uniseg.imaging.bits import Box, bounding_box
from uniseg.imaging.body import body_mask
from uniseg.imaging.grid import every_nth_affine, every_nth_voxel, voxel_size_mm
from uniseg.imaging.volume import read_ct
from uniseg.machine.console import fail

IN_PLANE_MM = 2.0
SHARES = range(0, 90, 10)         # per cent of the body's width that is cut off
HARMFUL_MM = 10.0                 # an organ of a pair lies farther than this from the middle


def sampled(path: Path) -> tuple[NDArray, NDArray]:
    """HU (D, H, W) of a CT on every n-th voxel in plane, and the affine (4, 4) of that grid."""
    ct = read_ct(path)
    steps = [max(1, int(IN_PLANE_MM / s)) for s in voxel_size_mm(ct.affine)[:2]] + [1]
    return every_nth_voxel(ct.array, steps), every_nth_affine(ct.affine, steps)


def crops(body: Box, all_crops: bool) -> Iterator[tuple[str, Box]]:
    """Yield (name, slices) of the parts of a CT that are tried; body: slices of its bounding box"""
    x, _, z = body
    width, height, whole = x.stop - x.start, z.stop - z.start, slice(None)
    for share in SHARES:
        cut = round(width * share / 100)
        yield f"L{share}", (slice(x.start + cut if cut else None, None), whole, whole)
        if cut:
            yield f"R{share}", (slice(None, x.stop - cut), whole, whole)
    if all_crops:
        for start in range(0, 80, 10):
            part = slice(x.start + width * start // 100, x.start + width * (start + 33) // 100)
            yield f"x{start}", (part, whole, whole)
        for start in range(0, 100, 25):
            part = slice(z.start + height * start // 100, z.start + height * (start + 25) // 100)
            yield f"z{start}", (whole, whole, part)


def error_mm(found: Plane, true: Plane, shape: Sequence[int], affine: NDArray) -> float:
    """The mean distance along x of two planes in a CT of this shape, over the middle of its depth."""
    y, z = np.meshgrid(np.linspace(0.2, 0.8, 5) * (shape[1] - 1), np.linspace(0, 1, 5) * (shape[2] - 1))
    points = np.stack([np.zeros_like(y), y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return float(np.mean(abs(found.x_at(points) - true.x_at(points))))


def errors(hu: NDArray, affine: NDArray, all_crops: bool) -> dict[str, tuple[float, bool]]:
    """{name of the crop: (error in mm, whether the plane is sure)} of a CT. Raises ValueError without a body."""
    body = bounding_box(body_mask(hu, voxel_size_mm(affine)))
    if body is None:
        raise ValueError("no body found. Give a CT in HU.")
    true, found = midsagittal_plane(hu, affine), {}
    for name, part in crops(body, all_crops):
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ [p.start or 0 for p in part]
        plane = midsagittal_plane(hu[part], moved)
        found[name] = error_mm(plane, true, hu[part].shape, moved), plane.sure
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code: 0 done, 2 bad arguments or data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", type=Path, nargs="+", metavar="CT", help="NIfTI files in HU")
    parser.add_argument("--all-crops", action="store_true", help="also narrow columns and parts of the height")
    args = parser.parse_args(argv)
    rows: dict[str, dict[str, tuple[float, bool]]] = {}
    try:
        for path in args.cts:
            row = rows[path.name] = errors(*sampled(path), args.all_crops)
            if len(rows) == 1:
                print(f"| CT | {' | '.join(row)} |\n{'|--' * (len(row) + 1)}|")
            cells = [f"{mm:.0f}" if sure else f"({mm:.0f})" for mm, sure in row.values()]
            print(f"| {path.name.removesuffix('.nii.gz')} | {' | '.join(cells)} |", flush=True)
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    planes = [cell for row in rows.values() for cell in row.values()]
    sure = [mm for mm, is_sure in planes if is_sure]
    print(f"\nplanes {len(planes)}, sure {len(sure)}, sure and more than {HARMFUL_MM:g} mm off "
          f"{sum(mm > HARMFUL_MM for mm in sure)}; all that are: {sum(mm > HARMFUL_MM for mm, _ in planes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
