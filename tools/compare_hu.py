"""HU of synthetic CTs beside real ones, class by class: does the painting hit what scanners measure?

    python -m tools.compare_hu ROOT LABELMAPS --draws 6 --spacing 3

For each case of tools/synthetic/hu.json (found in ROOT) as many synthetic CTs of its phase are drawn. A row per class: mean, 5th
and 95th percentile of the inner voxels, real and synthetic, the spread (standard deviation) of the synthetic means, and the overlap
of the histograms (0 to 1, bins of 10 HU, clipped to -1050..650 HU). Exit code 1 when a solid class is outside the bounds below.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from measure_hu import MIN_VOXELS, TABLE, inner

from tools import synthetic
from tools.synthetic.__main__ import read_map, read_maps
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.volume import read_ct, voxel_size_mm

SOLID = ("spleen", "liver", "aorta", "postcava", "portal_and_splenic_vein", "pancreas", "right_lung", "left_lung", "gall_bladder",
         "bladder")
BOUND_HU, BOUND_SPREADS = 30.0, 2.5       # a real mean lies within 30 HU, or 2.5 spreads, of the mean of the synthetic means
BINS = np.arange(-1050, 651, 10)


def core(hu, mask, spacing_mm):
    """HU of the inner voxels of a mask, or None where there are too few."""
    box = bounding_box(mask, 4)
    values = hu[box][inner(mask[box], spacing_mm)] if box else ()
    return values if len(values) >= MIN_VOXELS else None


def histogram(values):
    return np.histogram(np.clip(values, BINS[0], BINS[-1] - 1), BINS)[0] / len(values)


def drawn(maps, names, phase, draws, spacing_mm):
    """{class: list of inner HU, one entry a synthetic CT} for one phase."""
    found = {}
    for seed in range(draws):
        labels, affine = read_map(list(maps.values())[seed % len(maps)], names)
        hu, masks, _, _ = synthetic.draw(labels, affine, names, seed, spacing_mm, phase=phase, view="whole", kinds={})
        for name, mask in masks.items():
            if (values := core(hu, mask, [spacing_mm] * 3)) is not None:
                found.setdefault(name, []).append(values)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("maps", type=Path, metavar="LABELMAPS")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=3.0)
    args = parser.parse_args(argv)
    maps, names = read_maps(args.maps)
    outside = []
    print("| case, phase | class | real mean (5 %, 95 %) | synthetic mean (5 %, 95 %) | spread of means | overlap |")
    print("| --- " * 6 + "|")
    for dataset in find_datasets(args.root):
        for case in dataset.cases:
            entry = json.loads(TABLE.read_text()).get(case.id)
            if not entry:
                continue
            made = drawn(maps, names, entry["phase"], args.draws, args.spacing)
            ct = read_ct(case.image)
            for name, mask in case_masks(dataset, case, ct):
                real = core(ct.array, mask, voxel_size_mm(ct.affine))
                if real is None or len(made.get(name, ())) < 2:
                    continue
                pooled, means = np.concatenate(made[name]), [v.mean() for v in made[name]]
                overlap = np.minimum(histogram(real), np.mean([histogram(v) for v in made[name]], axis=0)).sum()
                row = [f"{v.mean():.0f} ({np.percentile(v, 5):.0f}, {np.percentile(v, 95):.0f})" for v in (real, pooled)]
                wrong = name in SOLID and abs(real.mean() - np.mean(means)) > max(BOUND_HU, BOUND_SPREADS * np.std(means))
                outside += [f"{case.id} {name}"] if wrong else []
                print(f"| {case.id}, {entry['phase']} | {name}{' (outside)' if wrong else ''} | {row[0]} | {row[1]} "
                      f"| {np.std(means):.0f} | {overlap:.2f} |", flush=True)
    print(f"\noutside the bounds: {', '.join(outside) or 'none'}")
    return int(bool(outside))


if __name__ == "__main__":
    raise SystemExit(main())
