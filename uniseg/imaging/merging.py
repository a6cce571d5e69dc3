"""Merging binary masks into one label map: organs first, then vessels, then tumours (Section 4.1.2).

A later kind covers an earlier one, so that a tumour stays visible inside its organ. Where two classes of one kind
overlap, the paper compares their confidences. Masks without a confidence, such as those of a reference, are painted in
the given order instead. Read taxonomy.py first.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..taxonomy import MERGING_ORDER, kind_of


def merging_rank(name: str) -> int:
    """0 for an organ, 1 for a vessel, 2 for a tumour. A class with a higher rank covers one with a lower rank."""
    return MERGING_ORDER.index(kind_of(name))


def merging_groups(names: Sequence[str]) -> list[list[int]]:
    """The positions in `names` of the organs, of the vessels and of the tumours, each group in the given order.

    >>> merging_groups(["liver_tumor", "aorta", "spleen", "liver"])
    [[2, 3], [1], [0]]
    """
    ranks = [merging_rank(name) for name in names]
    return [[k for k, rank in enumerate(ranks) if rank == group] for group in range(len(MERGING_ORDER))]


def merging_order(names: Sequence[str]) -> list[int]:
    """The positions in `names` in the order in which their masks are painted; a later mask covers an earlier one.

    >>> merging_order(["liver_tumor", "aorta", "spleen", "liver"])
    [2, 3, 1, 0]
    """
    return [k for group in merging_groups(names) for k in group]


def merge_masks(names: Sequence[str], values: Sequence[int], mask_of: Callable[[int], np.ndarray],
                shape: Sequence[int]) -> np.ndarray:
    """A uint8 label map of the given shape from masks without a confidence: within a kind, a later class wins.

    values:  the label of each name, 1 to 255
    mask_of: position in `names` -> its mask, bool of that shape; called once per name, in the merging order
    """
    label_map = np.zeros(shape, np.uint8)
    for k in merging_order(names):
        label_map[mask_of(k)] = values[k]
    return label_map


def paint_where_surer(label_map: np.ndarray, surest: np.ndarray, value: int, confidence: np.ndarray) -> None:
    """Set label_map to `value` where `confidence` is larger than `surest`, and raise `surest` there. Both in place.

    All three arrays have one shape. For each group of `merging_groups`, `surest` starts at 0 in every voxel, so that
    the classes of one kind compete with each other only. At equal confidence the earlier class stays. A class has the
    confidence 0 outside its mask.
    """
    wins = confidence > surest
    np.copyto(label_map, value, where=wins, casting="unsafe")
    np.copyto(surest, confidence, where=wins)
