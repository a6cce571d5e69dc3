"""How well a predicted mask agrees with a reference: overlap (DSC), surfaces (NSD, HD95), detection. Sections 4.2 to 4.7.

Arrays in, numbers out. Masks are bool arrays (D, H, W) on one grid, distances in mm, rates in 0..1. Where a class is absent:

    prediction  reference   DSC  NSD  HD95      patient (Section 4.3)  lesions
    empty       empty       1    1    0         true negative          none: sensitivity, precision and F1 None
    some        empty       0    0    infinite  false positive         all false: precision and F1 0, sensitivity None
    empty       some        0    0    infinite  false negative         all missed: sensitivity and F1 0, precision None

A mean over cases takes DSC, NSD and HD95 of the cases whose data set annotates the class and whose reference has it. The other
annotated cases enter false positives and specificity alone: the 1s of empty pairs would hide what is measured.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from .imaging.bits import bounding_box


def dice_from_counts(overlap, predicted, reference):
    """DSC = 2 |P and R| / (|P| + |R|); 1 where both are empty, 0 where one is.

    >>> dice_from_counts(1, 2, 2), dice_from_counts(0, 0, 0), dice_from_counts(0, 3, 0)
    (0.5, 1.0, 0.0)
    """
    return float(2 * overlap / (predicted + reference)) if predicted + reference else 1.0


def dice(predicted, reference):
    """DSC (Dice similarity coefficient) of two bool arrays of one shape."""
    _check_grid(predicted, reference, "dice")
    return dice_from_counts(np.count_nonzero(predicted & reference), np.count_nonzero(predicted),
                            np.count_nonzero(reference))


def _check_grid(predicted, reference, what):
    if predicted.shape != reference.shape:
        raise ValueError(f"{what}: shapes {predicted.shape} and {reference.shape} differ. Compare masks of one grid.")


# ------------------------------------------------------------------------------------------------------------ surfaces
# Nikolov et al., https://arxiv.org/abs/1809.04430, define NSD on surface elements. Eight voxel centres span a cube; its *code*
# has bit 4i + 2j + k set where the voxel at corner (i, j, k) is in the mask. The mask's surface within the cube goes through
# the middles of the edges that join a voxel inside with one outside (marching cubes); it is one element, at the cube's centre.

CORNERS = tuple(product((0, 1), repeat=3))
SQUARE = ((0, 0), (1, 0), (1, 1), (0, 1))
# The corners of each face of the cube in order, anticlockwise as seen from outside.
FACES = tuple([tuple(np.roll((side, u, v), axis).tolist()) for u, v in SQUARE[::1 if side else -1]]
              for axis in range(3) for side in (0, 1))


def surface_polygons(code):
    """The polygons of a code's surface in the unit cube: a list of (V, 3) arrays of corners, in order around each polygon.

    On each face, a line goes from where the face's border enters the mask to where it leaves it. An edge that one face follows
    into the mask its other face follows out of it, so that the lines of all faces join to closed polygons. Where opposite
    corners of a face are inside, they are kept apart; of more than four corners inside, the complement has the same surface.
    """
    inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(CORNERS)}
    if sum(inside.values()) > 4:
        inside = {corner: not value for corner, value in inside.items()}
    leaves = {}                                                       # middle of the edge that enters -> of the one that leaves
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
def surface_triangles(code):
    """The triangles of a code's surface: (T, 3), each a vector along its normal as long as its area, in the unit cube.

    A polygon is cut into triangles from one of its corners. It need not be flat, so that the choice matters: the cut with the
    largest area, that of surface-distance's table (https://github.com/google-deepmind/surface-distance).
    """
    triangles = [np.zeros((0, 3))]
    for polygon in surface_polygons(code):
        rays = [np.roll(polygon, -n, axis=0)[1:] - polygon[n] for n in range(len(polygon))]
        triangles.append(max((np.cross(r[:-1], r[1:]) / 2 for r in rays), key=lambda t: np.linalg.norm(t, axis=1).sum()))
    return np.concatenate(triangles)


@lru_cache(maxsize=64)
def surface_areas(spacing_mm):
    """The area in mm2 of each code's surface for a spacing, a tuple: (256,) float64.

    A triangle's share along one axis lies in the plane of the other two, and grows with their spacings.
    """
    planes = np.prod(spacing_mm) / np.array(spacing_mm)
    return np.array([np.linalg.norm(surface_triangles(code) * planes, axis=1).sum() for code in range(256)])


def surface_elements(mask, spacing_mm):
    """A mask's surface elements: their places (N, 3) int, and their areas in mm2 (N,). The array's border counts as outside.

    Element (i, j, k) is half a voxel before voxel (i, j, k) along each axis.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, corner in enumerate(CORNERS):
        codes |= padded[tuple(slice(start, start + n) for start, n in zip(corner, codes.shape))] << np.uint8(bit)
    places = np.argwhere((codes > 0) & (codes < 255))
    return places, surface_areas(tuple(float(s) for s in spacing_mm))[codes[tuple(places.T)]]


def surface_distances(predicted, reference, spacing_mm):
    """From each mask's surface to the other's: ((distances_mm, areas_mm2) of the predicted's elements, of the reference's).

    Each is (N,) float64, from the place of an element to that of the nearest one of the other mask. Both masks must have a
    voxel; raises ValueError otherwise.
    """
    _check_grid(predicted, reference, "surface_distances")
    box = bounding_box(predicted | reference)
    if box is None or not predicted.any() or not reference.any():
        raise ValueError("surface_distances: a mask is empty, it has no surface. Decide what that means before asking.")
    (ours, our_areas), (theirs, their_areas) = (surface_elements(mask[box], spacing_mm) for mask in (predicted, reference))
    shape = [side.stop - side.start + 1 for side in box]
    return (_to_nearest(ours, theirs, shape, spacing_mm), our_areas), (_to_nearest(theirs, ours, shape, spacing_mm), their_areas)


def _to_nearest(places, others, shape, spacing_mm):
    """Distances in mm from (N, 3) places to the nearest of (M, 3) others, all within `shape`.

    The transform gives which one is nearest, 12 bytes a voxel; its distances of all voxels would take 50.
    """
    elsewhere = np.ones(shape, bool)
    elsewhere[tuple(others.T)] = False
    nearest = ndimage.distance_transform_edt(elsewhere, sampling=spacing_mm, return_distances=False, return_indices=True)
    return np.linalg.norm((places - nearest[(slice(None), *places.T)].T) * spacing_mm, axis=1)


def agreement(predicted, reference, spacing_mm, tolerance_mm):
    """DSC, NSD and HD95 of two masks, {"dice", "nsd", "hd95"}, with their distances computed once.

    tolerance_mm: of a class, taxonomy.AnatomicalClass.tolerance_mm

    NSD is the share of both surfaces' area within `tolerance_mm` of the other surface. HD95 is the distance in mm within which
    95% of a surface's area lies from the other surface, the larger of the two directions. For empty masks, see the module.
    """
    overlap = dice(predicted, reference)
    if not (predicted.any() and reference.any()):
        return {"dice": overlap, "nsd": overlap, "hd95": 0.0 if overlap else float("inf")}
    sides = surface_distances(predicted, reference, spacing_mm)
    within = sum(areas[distances <= tolerance_mm].sum() for distances, areas in sides)
    return {"dice": overlap, "nsd": float(within / sum(areas.sum() for _, areas in sides)),
            "hd95": max(_percentile(distances, areas, 0.95) for distances, areas in sides)}


def _percentile(distances, areas, share):
    """The smallest distance within which at least `share` of the area lies."""
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order])
    return float(distances[order][np.searchsorted(covered / covered[-1], share)])


def nsd(predicted, reference, spacing_mm, tolerance_mm):
    """Normalised surface Dice, see `agreement`; 1 where both masks are empty, 0 where one is."""
    return agreement(predicted, reference, spacing_mm, tolerance_mm)["nsd"]


def hd95(predicted, reference, spacing_mm):
    """95th percentile of the Hausdorff distance in mm, see `agreement`; 0 where both masks are empty, infinite where one is."""
    return agreement(predicted, reference, spacing_mm, tolerance_mm=0.0)["hd95"]


# ----------------------------------------------------------------------------------------------------------- detection


def sensitivity_specificity(found, present):
    """Detection per patient (Section 4.3, Table 6): was a tumour found, and was there one? Two sequences of bool, a patient each.

    Sensitivity = TP / (TP + FN), specificity = TN / (TN + FP), and their harmonic mean; None where there is no such patient.

    >>> sensitivity_specificity([True, False, False], [True, True, False])["harmonic_mean"]
    0.6666666666666666
    """
    found, present = np.asarray(found, bool), np.asarray(present, bool)
    if found.shape != present.shape:
        raise ValueError(f"sensitivity_specificity: {found.size} and {present.size} patients. Give both for each patient.")
    tp, fn, tn, fp = (int(np.count_nonzero(patients)) for patients in
                      (found & present, ~found & present, ~found & ~present, found & ~present))
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    harmonic = None
    if sensitivity is not None and specificity is not None:
        total = sensitivity + specificity
        harmonic = 2 * sensitivity * specificity / total if total else 0.0
    return {"sensitivity": sensitivity, "specificity": specificity, "harmonic_mean": harmonic,
            "tp": tp, "fn": fn, "tn": tn, "fp": fp}


def lesion_detection(predicted, reference):
    """Detection per lesion: {"tp", "fn", "fp", "sensitivity", "precision", "f1"}; a rate of no lesions is None.

    A lesion is a component connected by faces, edges or corners (26 neighbours). One of the reference is found (tp) if any
    voxel of it is predicted, else missed (fn); a predicted one that touches none of the reference is false (fp): the rule of
    autoPET, https://autopet.grand-challenge.org/Evaluation/. One predicted lesion may find several of the reference, and of
    several on one lesion none is false. LiTS asks for more: pieces that overlap are merged, and their overlap has to be over
    half of their union, https://github.com/PatrickChrist/lits-challenge-scoring. Rates of the two rules do not compare.
    """
    _check_grid(predicted, reference, "lesion_detection")
    (tp, fn), (_, fp) = _touched(reference, predicted), _touched(predicted, reference)
    return {"tp": tp, "fn": fn, "fp": fp, "sensitivity": _ratio(tp, tp + fn), "precision": _ratio(tp, tp + fp),
            "f1": _ratio(2 * tp, 2 * tp + fn + fp)}


def _touched(mask, other):
    """(number of components of `mask` that touch `other`, number of those that do not)."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    touched = len(np.unique(labels[mask & other]))
    return touched, count - touched


def _ratio(part, whole):
    return part / whole if whole else None
