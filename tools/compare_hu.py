"""Compare the HU of synthetic CTs with real ones, class by class: are organs painted with the HU that scanners measure?

    python -m tools.compare_hu ROOT LABELMAPS --draws 6 --spacing 3

ROOT holds datasets as for training, LABELMAPS the label maps of docs/synthetic.md. For each case of
tools/synthetic/hu.json that is in ROOT, --draws synthetic CTs of its contrast phase are drawn. The table has a row per
class: mean, 5th and 95th percentile of the inner voxels, real and synthetic; the standard deviation of the synthetic
means; and the overlap of the histograms (0 to 1, bins of 10 HU, clipped to -1050..650 HU). Exit code 1 if a solid class
is outside the bounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools import synthetic
from tools.measure_hu import MIN_VOXELS, TABLE, inner
from tools.synthetic.__main__ import read_map, read_maps
from uniseg.datasets.dataset import CaseFiles, Dataset
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.volume import read_ct

SOLID = ("spleen", "liver", "aorta", "postcava", "portal_and_splenic_vein", "pancreas", "right_lung", "left_lung",
         "gall_bladder", "bladder")
# The real mean lies within 30 HU, or 2.5 standard deviations, of the mean of the synthetic means.
BOUND_HU, BOUND_SPREADS = 30.0, 2.5
BINS = np.arange(-1050, 651, 10)


def core(hu: NDArray, mask: NDArray, spacing_mm: Sequence[float]) -> NDArray | None:
    """HU of the inner voxels of a mask, or None where there are too few."""
    box = bounding_box(mask, 4)
    if box is None:
        return None
    values = hu[box][inner(mask[box], spacing_mm)]
    return values if len(values) >= MIN_VOXELS else None


def histogram(values: NDArray) -> NDArray:
    """Share of the values in each of the BINS."""
    return np.histogram(np.clip(values, BINS[0], BINS[-1] - 1), BINS)[0] / len(values)


def drawn_hu(maps: dict[str, Path], names: dict[int, str], phase: str, draws: int,
             spacing_mm: float) -> dict[str, list[NDArray]]:
    """{class: inner HU of each synthetic CT that shows it} of one contrast phase."""
    found: dict[str, list[NDArray]] = {}
    for seed in range(draws):
        labels, affine = read_map(list(maps.values())[seed % len(maps)], names)
        hu, masks, _, _ = synthetic.draw(labels, affine, names, seed, spacing_mm, phase=phase, view="whole", kinds={})
        for name, mask in masks.items():
            if (values := core(hu, mask, [spacing_mm] * 3)) is not None:
                found.setdefault(name, []).append(values)
    return found


def compare_case(dataset: Dataset, case: CaseFiles, phase: str, drawn: dict[str, list[NDArray]]) -> list[str]:
    """Print a row per class of a real CT; returns the names of the solid classes that are outside the bounds."""
    ct, outside = read_ct(case.image), []
    for name, mask in case_masks(dataset, case, ct):
        real = core(ct.array, mask, voxel_size_mm(ct.affine))
        if real is None or len(drawn.get(name, ())) < 2:
            continue
        pooled, means = np.concatenate(drawn[name]), [values.mean() for values in drawn[name]]
        overlap = np.minimum(histogram(real), np.mean([histogram(v) for v in drawn[name]], axis=0)).sum()
        ours, theirs = (f"{hu.mean():.0f} ({np.percentile(hu, 5):.0f}, {np.percentile(hu, 95):.0f})"
                        for hu in (pooled, real))
        bound = max(BOUND_HU, BOUND_SPREADS * np.std(means))
        wrong = name in SOLID and abs(real.mean() - np.mean(means)) > bound
        outside += [name] if wrong else []
        print(f"| {case.id}, {phase} | {name}{' (outside)' if wrong else ''} | {theirs} | {ours} "
              f"| {np.std(means):.0f} | {overlap:.2f} |", flush=True)
    return outside


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_hu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with one sub-folder per dataset")
    parser.add_argument("maps", type=Path, metavar="LABELMAPS", help="folder with label maps and names.json")
    parser.add_argument("--draws", type=int, default=6, help="synthetic CTs per phase (default %(default)s)")
    parser.add_argument("--spacing", type=float, default=3.0, metavar="MM", help="voxel size (default %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code: 0, or 1 if a solid class is outside the bounds."""
    args = build_parser().parse_args(argv)
    maps, names = read_maps(args.maps)
    measured, outside = json.loads(TABLE.read_text(encoding="utf-8")), []
    print("| case, phase | class | real mean (5 %, 95 %) | synthetic mean (5 %, 95 %) | spread of means | overlap |")
    print("| --- " * 6 + "|")
    for dataset in find_datasets(args.root):
        for case in dataset.cases:
            if case.id in measured:
                phase = measured[case.id]["phase"]
                drawn = drawn_hu(maps, names, phase, args.draws, args.spacing)
                outside += [f"{case.id} {name}" for name in compare_case(dataset, case, phase, drawn)]
    print(f"\noutside the bounds: {', '.join(outside) or 'none'}")
    return int(bool(outside))


if __name__ == "__main__":
    sys.exit(main())
