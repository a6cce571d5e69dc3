"""How well a predicted mask agrees with a reference: overlap (DSC), surfaces (NSD, HD95) and detection.

DSC and NSD are the metrics of Section 4.2 (Table 3), DSC also of Sections 4.4 to 4.7, detection per patient of Section
4.3 (Table 6). HD95 and detection per lesion are beyond the paper.

Masks are bool arrays (D, H, W) on one grid, distances are in mm, rates from 0 to 1. If a class is absent:

    prediction  reference   DSC  NSD  HD95      patient (Section 4.3)  lesions
    empty       empty       1    1    0         true negative          none: sensitivity, precision and F1 None
    some        empty       0    0    infinite  false positive         all false: precision and F1 0, sensitivity None
    empty       some        0    0    infinite  false negative         all missed: sensitivity and F1 0, precision None

evaluation/scores.py averages DSC, NSD and HD95 over the cases whose dataset annotates the class and whose reference
contains it. The other annotated cases count only for false positives and specificity, because the many values of 1 of
empty pairs would hide the rest.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from scipy import ndimage

from .imaging.bits import bounding_box
from .imaging.components import CONNECTED_26


def dice_from_counts(overlap: float, predicted: float, reference: float) -> float:
    """DSC = 2 |P and R| / (|P| + |R|) from numbers of voxels; 1 if both masks are empty, 0 if one of them is.

    >>> dice_from_counts(1, 2, 2), dice_from_counts(0, 0, 0), dice_from_counts(0, 3, 0)
    (0.5, 1.0, 0.0)
    """
    return float(2 * overlap / (predicted + reference)) if predicted + reference else 1.0


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """DSC (Dice similarity coefficient) of two bool arrays (D, H, W). Raises ValueError if their shapes differ."""
    _check_grid(predicted, reference, "dice")
    overlap, predicted_voxels, reference_voxels = (
        int(np.count_nonzero(mask)) for mask in (predicted & reference, predicted, reference))
    return dice_from_counts(overlap, predicted_voxels, reference_voxels)


def _check_grid(predicted: np.ndarray, reference: np.ndarray, what: str) -> None:
    if predicted.shape != reference.shape:
        raise ValueError(f"{what}: shapes {predicted.shape} and {reference.shape} differ. Compare masks of one grid.")


# ------------------------------------------------------------------------------------------------------------ surfaces
# Nikolov et al., https://arxiv.org/abs/1809.04430, define NSD on surface elements. Eight neighbouring voxel centres
# span a cube. Its code has bit 4i + 2j + k set if the voxel at corner (i, j, k) is in the mask. The surface of the
# mask inside the cube passes through the middle of each edge that joins a voxel inside with a voxel outside (marching
# cubes). It is one surface element, located at the centre of the cube.

CORNERS = tuple(product((0, 1), repeat=3))
SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))
# The corners of each face of the cube, anticlockwise as seen from outside.
FACES = tuple([tuple(np.roll((side, u, v), axis).tolist()) for u, v in SQUARE[::1 if side else -1]]
              for axis in range(3) for side in (0, 1))


def surface_polygons(code: int) -> list[np.ndarray]:
    """The polygons of a code's surface in the unit cube: a list of (V, 3) arrays of vertices in order.

    On each face, connect where its boundary enters the mask to where it leaves. Neighbouring faces run their shared
    edge in opposite directions, so the lines close into polygons. If two opposite corners of a face are inside, they
    are kept apart. If more than four corners are inside, the complement is used, which has the same surface.
    """
    inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(CORNERS)}
    if sum(inside.values()) > 4:
        inside = {corner: not value for corner, value in inside.items()}
    leaves = {}                                      # middle of the edge that enters -> middle of the edge that leaves
    for face in FACES:
        middles = [tuple((np.add(face[n - 1], face[n]) / 2).tolist()) for n in range(4)]
        for n in range(4):
            if inside[face[n]] and not inside[face[n - 1]]:
                out = next(m % 4 for m in range(n + 1, n + 4) if not inside[face[m % 4]])
                leaves[middles[n]] = middles[out]
    polygons = []
    while leaves:
        polygon = [next(iter(leaves))]
        while polygon[-1] in leaves:
            polygon.append(leaves.pop(polygon[-1]))
        polygons.append(np.array(polygon[1:]))
    return polygons


@lru_cache(maxsize=None)
def surface_triangles(code: int) -> np.ndarray:
    """The triangles of a code's surface in the unit cube: (T, 3), each as a normal vector whose length is its area.

    A polygon is cut into triangles from one of its vertices. It need not be flat, so the choice of the vertex matters:
    the cut with the largest area is taken, as in https://github.com/google-deepmind/surface-distance.
    """
    def area(triangles: np.ndarray) -> float:
        return np.linalg.norm(triangles, axis=1).sum()

    chosen = [np.zeros((0, 3))]
    for polygon in surface_polygons(code):
        rays = [np.roll(polygon, -n, axis=0)[1:] - polygon[n] for n in range(len(polygon))]
        chosen.append(max((np.cross(r[:-1], r[1:]) / 2 for r in rays), key=area))
    return np.concatenate(chosen)


@lru_cache(maxsize=64)
def surface_areas(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The area in mm2 of each code's surface, for voxels of this spacing: (256,) float64.

    The part of a triangle's normal along one axis is an area in the plane of the other two, so it scales with them.
    """
    planes = np.prod(spacing_mm) / np.array(spacing_mm)
    return np.array([np.linalg.norm(surface_triangles(code) * planes, axis=1).sum() for code in range(256)])


def surface_elements(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface elements of a mask: their positions (N, 3) int and their areas in mm2 (N,).

    The element at (i, j, k) lies half a voxel before voxel (i, j, k) along each axis. Outside the array there is no
    mask.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, corner in enumerate(CORNERS):
        codes |= padded[tuple(slice(start, start + n) for start, n in zip(corner, codes.shape))] << np.uint8(bit)
    positions = np.argwhere((codes > 0) & (codes < 255))
    return positions, surface_areas(tuple(float(s) for s in spacing_mm))[codes[tuple(positions.T)]]


Sides = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def surface_distances(predicted: np.ndarray, reference: np.ndarray,
                      spacing_mm: Sequence[float] | np.ndarray) -> Sides:
    """The distance of each surface element of one mask to the nearest surface element of the other mask.

    returns: (distances_mm, areas_mm2) of the predicted surface, and the same two of the reference's; (N,) float64 each

    Raises ValueError if the shapes differ or a mask is empty.
    """
    _check_grid(predicted, reference, "surface_distances")
    box = bounding_box(predicted | reference)
    if box is None or not predicted.any() or not reference.any():
        raise ValueError("surface_distances: a mask is empty, it has no surface. Decide what that means before asking.")
    predicted_at, predicted_areas = surface_elements(predicted[box], spacing_mm)
    reference_at, reference_areas = surface_elements(reference[box], spacing_mm)
    shape = [side.stop - side.start + 1 for side in box]
    return ((_to_nearest(predicted_at, reference_at, shape, spacing_mm), predicted_areas),
            (_to_nearest(reference_at, predicted_at, shape, spacing_mm), reference_areas))


def _to_nearest(positions: np.ndarray, others: np.ndarray, shape: Sequence[int],
                spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """The distance in mm from each of (N, 3) positions to the nearest of (M, 3) others, all inside an array of `shape`.

    The distance transform returns indices, which take 12 bytes per voxel. Its distances would take 50 bytes per voxel.
    """
    outside = np.ones(shape, bool)
    outside[tuple(others.T)] = False
    nearest = ndimage.distance_transform_edt(outside, sampling=spacing_mm, return_distances=False, return_indices=True)
    at_positions = (slice(None), *positions.T)
    return np.linalg.norm((positions - nearest[at_positions].T) * spacing_mm, axis=1)


def agreement(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | np.ndarray,
              tolerance_mm: float) -> dict[str, float]:
    """DSC, NSD and HD95 of two masks, {"dice", "nsd", "hd95"}, which share one computation of the distances.

    tolerance_mm: tolerance of NSD; taxonomy.AnatomicalClass.tolerance_mm has one for each class

    NSD is the share of the area of both surfaces that lies within `tolerance_mm` of the other surface. HD95 is the
    distance in mm from the other surface within which 95 % of a surface's area lies, for the worse of the two
    directions. The module's docstring says what holds for empty masks. Raises ValueError if the shapes differ.
    """
    overlap = dice(predicted, reference)
    if not (predicted.any() and reference.any()):
        return {"dice": overlap, "nsd": overlap, "hd95": 0.0 if overlap else float("inf")}
    sides = surface_distances(predicted, reference, spacing_mm)
    within = sum(areas[distances <= tolerance_mm].sum() for distances, areas in sides)
    return {"dice": overlap, "nsd": float(within / sum(areas.sum() for _, areas in sides)),
            "hd95": max(_percentile(distances, areas, 0.95) for distances, areas in sides)}


def _percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """The smallest distance within which at least `share` of the area lies."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order])
    return float(distances[order][np.searchsorted(covered / covered[-1], share)])


def nsd(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | np.ndarray,
        tolerance_mm: float) -> float:
    """Normalised surface Dice, see `agreement`; 1 if both masks are empty, 0 if one of them is."""
    return agreement(predicted, reference, spacing_mm, tolerance_mm)["nsd"]


def hd95(predicted: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> float:
    """HD95 in mm: 95th percentile of surface distances, see `agreement`; 0 if both are empty, infinite if one is."""
    return agreement(predicted, reference, spacing_mm, tolerance_mm=0.0)["hd95"]


# ----------------------------------------------------------------------------------------------------------- detection


def sensitivity_specificity(found: Sequence[bool] | np.ndarray, present: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Detection per patient (Section 4.3, Table 6).

    found:   for each patient, whether a tumour was found
    present: for each patient, whether there was one
    returns: {"sensitivity", "specificity", "harmonic_mean", "tp", "fn", "tn", "fp"}, with sensitivity = TP / (TP + FN)
             and specificity = TN / (TN + FP); a rate is None if no patient counts for it

    Raises ValueError for sequences of different lengths.

    >>> sensitivity_specificity([True, False, False], [True, True, False])["harmonic_mean"]
    0.6666666666666666
    """
    found, present = np.asarray(found, bool), np.asarray(present, bool)
    if found.shape != present.shape:
        raise ValueError(f"sensitivity_specificity: {found.size} and {present.size} patients. "
                         "Give both for each patient.")
    tp, fn, tn, fp = (int(np.count_nonzero(patients)) for patients in
                      (found & present, ~found & present, ~found & ~present, found & ~present))
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    harmonic = None
    if sensitivity is not None and specificity is not None:
        total = sensitivity + specificity
        harmonic = 2 * sensitivity * specificity / total if total else 0.0
    return {"sensitivity": sensitivity, "specificity": specificity, "harmonic_mean": harmonic,
            "tp": tp, "fn": fn, "tn": tn, "fp": fp}


def lesion_detection(predicted: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Detection per lesion: {"tp", "fn", "fp", "sensitivity", "precision", "f1"}; a rate without lesions is None.

    A lesion is a component connected by faces, edges or corners (26 neighbours). A reference lesion is found (tp) if
    any of its voxels is predicted, otherwise missed (fn). A predicted lesion that touches no reference lesion is
    false (fp). This is the rule of autoPET, https://autopet.grand-challenge.org/Evaluation/. One predicted lesion may
    find several reference lesions, and several predicted lesions may touch the same one; none of them is false.

    LiTS has a stricter rule: overlapping pieces are merged, and their overlap must be more than half of their union,
    https://github.com/PatrickChrist/lits-challenge-scoring. Rates of the two rules cannot be compared.
    """
    _check_grid(predicted, reference, "lesion_detection")
    (tp, fn), (_, fp) = _touched(reference, predicted), _touched(predicted, reference)
    return {"tp": tp, "fn": fn, "fp": fp, "sensitivity": _ratio(tp, tp + fn), "precision": _ratio(tp, tp + fp),
            "f1": _ratio(2 * tp, 2 * tp + fn + fp)}


def _touched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The number of components of `mask` that touch `other`, and the number of those that do not."""
    labels, count = ndimage.label(mask, structure=CONNECTED_26)
    touched = len(np.unique(labels[mask & other]))
    return touched, count - touched


def _ratio(part: int, whole: int) -> float | None:
    """part / whole; None if `whole` is 0."""
    return part / whole if whole else None


# --------------------------------------------------------------------------------------------------------------- means

def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values; None where there are none, or where one is missing: fewer have another mean.

    >>> complete_mean([1.0, 2.0]), complete_mean([1.0, None]), complete_mean([])
    (1.5, None, None)
    """
    values = list(values)
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers and len(numbers) == len(values) else None


def sample_sd(values: Sequence[float] | np.ndarray) -> float | None:
    """The standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
