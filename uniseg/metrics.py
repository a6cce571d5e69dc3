"""How well a predicted mask agrees with a reference: overlap (DSC) and distance of surfaces (NSD, HD95). Sections 4.2 to 4.7.

Arrays in, numbers out. Masks are bool arrays (D, H, W) on one grid, distances in mm. Where both masks are empty they agree
perfectly; where one is, they disagree as far as can be: DSC and NSD 0, HD95 infinite.
"""

import numpy as np
from scipy import ndimage

from .bits import bounding_box


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


def surface(mask):
    """The voxels of a mask with a face neighbour outside it; the array's border counts as outside: bool, same shape."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(predicted, reference, spacing_mm):
    """Distances in mm from each mask's surface voxels to the nearest one of the other: (P,), (R,) float64.

    Measured between centres of voxels. Both masks must have a voxel; raises ValueError otherwise.
    """
    _check_grid(predicted, reference, "surface_distances")
    box = bounding_box(predicted | reference, margin=1)     # the margin keeps a border that is not the array's own open
    if box is None or not predicted.any() or not reference.any():
        raise ValueError("surface_distances: a mask is empty, it has no surface. Decide what that means before asking.")
    ours, theirs = surface(predicted[box]), surface(reference[box])
    to_theirs, to_ours = (ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in (theirs, ours))
    return to_theirs[ours], to_ours[theirs]


def nsd(predicted, reference, spacing_mm, tolerance_mm):
    """Normalised surface Dice: the share of both surfaces' voxels that lie within `tolerance_mm` of the other surface.

    tolerance_mm: of a class, taxonomy.AnatomicalClass.tolerance_mm

    Nikolov et al., https://arxiv.org/abs/1809.04430, with surface voxels for surface elements, each counted once.
    1 where both masks are empty, 0 where one is.
    """
    if not (predicted.any() and reference.any()):
        _check_grid(predicted, reference, "nsd")
        return float(predicted.any() == reference.any())
    from_ours, from_theirs = surface_distances(predicted, reference, spacing_mm)
    within = np.count_nonzero(from_ours <= tolerance_mm) + np.count_nonzero(from_theirs <= tolerance_mm)
    return float(within / (len(from_ours) + len(from_theirs)))


def hd95(predicted, reference, spacing_mm):
    """95th percentile of the Hausdorff distance in mm: the larger of the two directions' percentiles.

    0 where both masks are empty, infinite where one is.
    """
    if not (predicted.any() and reference.any()):
        _check_grid(predicted, reference, "hd95")
        return 0.0 if predicted.any() == reference.any() else float("inf")
    return float(max(np.percentile(d, 95) for d in surface_distances(predicted, reference, spacing_mm)))


def _check_grid(predicted, reference, what):
    if predicted.shape != reference.shape:
        raise ValueError(f"{what}: shapes {predicted.shape} and {reference.shape} differ. Compare masks of one grid.")
