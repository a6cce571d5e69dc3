"""Overlap of a predicted and a reference mask."""

import numpy as np


def dice_from_counts(overlap, predicted, reference):
    """DSC = 2 |P and R| / (|P| + |R|); 1 where both are empty, 0 where one is.

    >>> dice_from_counts(1, 2, 2), dice_from_counts(0, 0, 0), dice_from_counts(0, 3, 0)
    (0.5, 1.0, 0.0)
    """
    return float(2 * overlap / (predicted + reference)) if predicted + reference else 1.0


def dice(predicted, reference):
    """DSC (Dice similarity coefficient) of two bool arrays of one shape."""
    if predicted.shape != reference.shape:
        raise ValueError(f"dice: shapes {predicted.shape} and {reference.shape} differ. Compare masks of one grid.")
    return dice_from_counts(np.count_nonzero(predicted & reference), np.count_nonzero(predicted),
                            np.count_nonzero(reference))
