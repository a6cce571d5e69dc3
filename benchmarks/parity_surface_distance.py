"""Compare uniseg.metrics with DeepMind's surface-distance on the same masks: surface areas, NSD, HD95, mean distances.

    pip install surface-distance && python benchmarks/parity_surface_distance.py

The masks are ellipsoids that overlap in part; noise, whose neighbourhoods take all 256 codes, those with ambiguous
faces among them; and boxes that touch at edges and corners. Spacings are isotropic and anisotropic, and some distances
equal a tolerance exactly. Empty masks are not compared, as surface-distance 0.1 then calls names that numpy 2 has
dropped. Exit code 1 beyond the bound.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

import numpy as np
import scipy
import surface_distance
from numpy.typing import NDArray
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area as areas_of_codes

from uniseg.metrics import agreement, surface_areas, surface_distances

BOUND = 1e-9
SPACINGS_MM = ((1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (0.7, 0.7, 5.0), (1.0, 2.0, 4.0))
TOLERANCES_MM = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0)


def ellipsoids(rng: np.random.Generator) -> Sequence[NDArray[np.bool_]]:
    """Two ellipsoids whose centres are up to 4 voxels apart along each axis."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 36, 24)], indexing="ij"), axis=-1)
    centre = rng.uniform(8, 16, 3)
    return [(((grid - centre - shift) / rng.uniform(3, 11, 3)) ** 2).sum(-1) < 1
            for shift in (0, rng.uniform(-4, 4, 3))]


def noise(rng: np.random.Generator) -> Sequence[NDArray[np.bool_]]:
    """Two masks of independent voxels, each mask with its own probability."""
    return [rng.random((12, 11, 10)) < rng.uniform(0.02, 0.9) for _ in range(2)]


def touching(rng: np.random.Generator) -> Sequence[NDArray[np.bool_]]:
    """Boxes of 3 voxels that meet at corners and edges, as on a chessboard; the second mask lacks some of them."""
    whole = np.kron(np.indices((4, 4, 4)).sum(axis=0) % 2 == 0, np.ones((3, 3, 3), bool))
    return whole, whole & np.kron(rng.random((4, 4, 4)) < 0.7, np.ones((3, 3, 3), bool))


def differences(ours: NDArray, theirs: NDArray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """{measure: absolute difference between the two libraries} for one pair of masks."""
    distances = surface_distance.compute_surface_distances(theirs, ours, spacing_mm)
    theirs_hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
    theirs_mean = surface_distance.compute_average_surface_distance(distances)
    sides = surface_distances(ours, theirs, spacing_mm)
    area = max(abs(areas.sum() - distances[f"surfel_areas_{name}"].sum())
               for (_, areas), name in zip(sides, ("pred", "gt")))
    mean_mm = max(abs(np.average(d, weights=areas) - mean) for (d, areas), mean in zip(sides, theirs_mean[::-1]))
    nsd = 0.0
    for tolerance in TOLERANCES_MM:
        result = agreement(ours, theirs, spacing_mm, tolerance)
        theirs_nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        nsd = max(nsd, abs(result["nsd"] - theirs_nsd))
    return {"area, mm2": area, "mean distance, mm": mean_mm, "NSD": nsd, "HD95, mm": abs(result["hd95"] - theirs_hd95),
            "Dice": abs(result["dice"] - surface_distance.compute_dice_coefficient(theirs, ours))}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    version = importlib.metadata.version("surface-distance")
    print(f"surface-distance {version}, numpy {np.__version__}, scipy {scipy.__version__}\n")
    print("| masks | measure | largest difference | |\n|--|--|--|--|")
    mirrored = [int(f"{code:08b}"[::-1], 2) for code in range(256)]     # they number the corners in the opposite order
    rows = [("256 codes", "area of an element, mm2", max(
        np.abs(surface_areas(spacing) - areas_of_codes(spacing)[mirrored]).max() for spacing in SPACINGS_MM))]
    rng = np.random.default_rng(0)
    for make, count in ((ellipsoids, 10), (noise, 30), (touching, 10)):
        pairs = [(*make(rng), spacing) for spacing in SPACINGS_MM for _ in range(count)]
        results = [differences(*pair) for pair in pairs]
        rows += [(f"{len(pairs)} pairs, {make.__name__}", measure, max(result[measure] for result in results))
                 for measure in results[0]]
    for masks, measure, difference in rows:
        print(f"| {masks} | {measure} | {difference:.1e} | {'' if difference <= BOUND else f'MORE THAN {BOUND:g}'} |")
    return 1 if any(not difference <= BOUND for *_, difference in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
