"""A coarse first pass: where the organs asked for are, so that the windows need not cover the whole body.

This is beyond the paper. Weights on a fine grid, 1.5 mm say, need a hundred windows and more for a torso, also where
--classes asks for the spleen alone. The built-in weights see the same torso at 3 mm in a dozen. So they locate the
organs, and the fine weights run on the windows that touch the boxes of these organs. All windows of the whole run that
touch a box are run, so within it the logits are those of the whole run. Where the coarse pass may have erred, the
whole body is searched all the same: `found_whole` says when. Read second_view.py and native_grid.py first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..imaging.bits import Box, bounding_box, get_bit
from ..imaging.components import CONNECTED_26, largest_components
from ..imaging.grid import voxel_size_mm, voxel_volume_mm3
from ..sliding_window import count_windows, plan_windows
from ..taxonomy import BY_NAME
from .native_grid import AT_THRESHOLD, Crop, box_slices

MARGIN_MM = 10.0         # around the box of an organ
LEAST_SAVING = 4         # times as many windows as the coarse pass; with fewer, the coarse pass costs what it saves
MOST_WINDOWS = 0.6       # of those of the whole body; with more, little would be saved
LEAST_ML = 1.0           # a smaller organ is not believed
ADULT_SHARE = 0.2        # of an adult's organ, where taxonomy.py knows its volume; a smaller one is not believed
AGREEING_SHARE = 0.5     # of the volume of the coarse pass, which the fine one has to find
CUT_SHARE = 0.01         # of its volume that a class may be estimated to have where the fine pass did not look


class Organ(NamedTuple):
    """An organ as the coarse pass found it."""

    box: Box             # on the coarse grid
    ml: float


def organs_of(names: Sequence[str]) -> set[str]:
    """The organs in which the classes lie: of a tumour or an inner vessel its parents, of an organ itself.

    >>> sorted(organs_of(["spleen", "kidney_tumor"]))
    ['left_kidney', 'right_kidney', 'spleen']
    """
    return {organ for name in names for organ in (name in BY_NAME and BY_NAME[name].parents or (name,))}


def is_worth_it(shape: Sequence[int], window: Sequence[int], spacing_mm: Sequence[float], overlap: float,
                coarse_window: Sequence[int], coarse_spacing_mm: Sequence[float]) -> bool:
    """Whether the whole run has so many windows that the coarse pass, without overlap, can save time.

    shape: (3,) of the box of the windows on the fine grid
    """
    coarse_shape = [round(n * mm / coarse_mm) for n, mm, coarse_mm in zip(shape, spacing_mm, coarse_spacing_mm)]
    fine, coarse = plan_windows(shape, window, overlap), plan_windows(coarse_shape, coarse_window, 0.0)
    return count_windows(fine) >= LEAST_SAVING * count_windows(coarse)


def saves_windows(near: np.ndarray, body: np.ndarray, window: Sequence[int], overlap: float) -> bool:
    """Whether few enough windows touch `near`. near, body: (D, H, W) bool, in the box of the windows"""
    some, whole = (count_windows(plan_windows(body.shape, window, overlap, part)) for part in (body & near, body))
    return some <= MOST_WINDOWS * whole


def located(bits: np.ndarray, names: Sequence[str], affine: np.ndarray,
            in_pieces: Collection[str]) -> dict[str, Organ]:
    """The organs that the coarse pass found, without those that are too small to be believed.

    bits:      (D, H, W) its masks, one bit per class
    affine:    (4, 4) of its grid
    in_pieces: classes of which all components count; of the others the largest one does
    """
    found = {}
    for k, name in enumerate(names):
        mask = get_bit(bits, k)
        if name not in in_pieces:
            mask = largest_components(mask)
        box, ml = bounding_box(mask), float(mask.sum() * voxel_volume_mm3(affine) / 1000)
        if box is not None and ml >= max(LEAST_ML, ADULT_SHARE * BY_NAME[name].adult_ml):
            found[name] = Organ(box, ml)
    return found


def around(organs: Collection[Organ], coarse_affine: np.ndarray, affine: np.ndarray,
           shape: Sequence[int]) -> np.ndarray:
    """The boxes of the organs with a margin of MARGIN_MM on the fine grid, (D, H, W) bool.

    Both grids have the same directions (imaging/resampling.py).
    """
    near = np.zeros(shape, bool, order="F")
    to_fine = np.linalg.inv(affine) @ coarse_affine
    margin = MARGIN_MM / voxel_size_mm(affine)
    for organ in organs:
        faces = [[side - 0.5 for side in (part.start, part.stop)] for part in organ.box]      # voxels reach +-0.5
        low, high = (to_fine[:3, :3] @ side + to_fine[:3, 3] + 0.5 for side in np.transpose(faces))
        first, last = np.floor(low - margin).astype(int), np.ceil(high + margin).astype(int)
        near[tuple(slice(max(0, a), max(0, b)) for a, b in zip(first, last))] = True
    return near


def found_whole(crops: Mapping[str, Crop | None], organs: Mapping[str, Organ], near: np.ndarray, body: np.ndarray,
                affine: np.ndarray, in_pieces: Collection[str]) -> bool:
    """Whether the fine pass found every class, as the coarse pass did, and none goes on where it did not look.

    crops:  the bytes of each class on the fine grid (D, H, W)
    organs: what the coarse pass found, also the parents of tumours
    near:   (D, H, W) bool, where the fine pass looked, within the body
    returns: False where a class that the coarse pass found is missing or has less than AGREEING_SHARE of its volume, or
             where more than CUT_SHARE of its largest component is estimated to be cut off
    """
    for name, crop in crops.items():
        if crop is None:
            if name in organs:
                return False
            continue
        mask = crop.values > AT_THRESHOLD
        if name not in in_pieces:
            mask = largest_components(mask)
        if name in organs and mask.sum() * voxel_volume_mm3(affine) / 1000 < AGREEING_SHARE * organs[name].ml:
            return False
        if cut_off(mask & _at_side(near, body, box_slices(crop.start, mask.shape))) > CUT_SHARE * mask.sum():
            return False
    return True


def _at_side(near: np.ndarray, body: np.ndarray, part: Box) -> np.ndarray:
    """The voxels of a part of the grid that have a neighbour in the body where the fine pass did not look, bool."""
    wider = tuple(slice(max(0, one.start - 1), one.stop + 1) for one in part)
    inner = ndimage.binary_erosion(near[wider] | ~body[wider], border_value=1)
    return ~inner[tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, wider))]


def cut_off(at_side: np.ndarray) -> float:
    """An estimate of the voxels that go on beyond a side: each connected piece goes on for as long as it is wide.

    at_side: (D, H, W) bool, the voxels of a mask beside which the fine pass did not look, one voxel deep

    >>> cut_off(np.ones((5, 5, 1), bool)), cut_off(np.eye(5, dtype=bool)[..., None] & False)
    (125.0, 0.0)
    """
    pieces, _ = ndimage.label(at_side, structure=CONNECTED_26)
    return float((np.bincount(pieces.ravel())[1:] ** 1.5).sum())
