"""Organs exchanged between label maps, so that anatomies grow with the combinations of maps and not with their number.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). A map's own organ is taken out, and the organ of another
map, turned and zoomed a little, is put in its place: a large spleen in a slim patient, an adrenal gland of another
shape. Or nothing is put there: a gall bladder that was removed, a single kidney. Or the organ itself is put lower: a
ptotic kidney. The new organ takes only voxels that were its predecessor's or nobody's, so that no other organ changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from uniseg.imaging.bits import bounding_box

from .geometry import rotation

Map = tuple[NDArray, NDArray]                   # labels (D, H, W) in RAS+, affine (4, 4)

# The first structure is the organ, the others lie in it. Then: how often it is exchanged, removed, put lower.
EXCHANGED = {
    ("spleen",): (0.4, 0.04, 0.0),
    ("kidney_right", "kidney_cyst_right"): (0.3, 0.05, 0.08),
    ("kidney_left", "kidney_cyst_left"): (0.3, 0.05, 0.08),
    ("gallbladder",): (0.35, 0.15, 0.0),
    ("adrenal_gland_right",): (0.4, 0.03, 0.0),
    ("adrenal_gland_left",): (0.4, 0.03, 0.0),
    ("urinary_bladder",): (0.4, 0.0, 0.0),
}
MOST_TURN_DEG, ZOOM = 10.0, (0.85, 1.15)        # of the organ that is put in
LOWER_MM = (20.0, 60.0)                         # how far a ptotic organ lies below its place
LEAST_SHARE = 0.6                               # of the new organ that finds room; else the old one stays
KIDNEYS = ("kidney_right", "kidney_left")


def exchange(labels: NDArray, affine: NDArray, ids: Mapping[str, int], donors: Sequence[Map],
             rng: np.random.Generator) -> NDArray:
    """A copy of a label map with some organs exchanged, removed, or put lower.

    labels: (D, H, W) ids of structures in RAS+; affine (4, 4); ids: {structure: id}, those of all maps
    donors: other maps, of which each organ comes from one that shows it whole
    returns: (D, H, W), of the type of `labels`
    """
    mixed, removed = labels.copy(), set[str]()
    for parts, (exchanged, gone, lower) in EXCHANGED.items():
        stage = np.random.default_rng(rng.integers(2 ** 32))           # whatever the others draw
        numbers = [ids[part] for part in parts if part in ids]
        mask = np.isin(mixed, numbers)
        if not mask.any():
            continue
        what = stage.random()
        if what < gone:
            if not (parts[0] in KIDNEYS and removed & set(KIDNEYS)):           # nobody lives without both
                mixed[mask] = 0
                removed.add(parts[0])
        elif what < gone + lower:
            down = np.array([0.0, 0.0, -stage.uniform(*LOWER_MM)])
            _put(mixed, affine, mask, numbers[0], labels, affine, mask, down, stage)
        elif what < gone + lower + exchanged and donors:
            donor, donor_affine = donors[int(stage.integers(len(donors)))]
            other = np.isin(donor, numbers)
            if other.any() and not _cut(other):
                _put(mixed, affine, mask, numbers[0], donor, donor_affine, other, np.zeros(3), stage)
    return mixed


def _cut(mask: NDArray[np.bool_]) -> bool:
    """Whether an organ reaches a face of its map, so that a part of it may be missing."""
    return any(mask.take(end, axis).any() for axis in range(3) for end in (0, -1))


def _put(labels: NDArray, affine: NDArray, old: NDArray[np.bool_], number: int, donor: NDArray, donor_affine: NDArray,
         new: NDArray[np.bool_], shift_mm: NDArray, rng: np.random.Generator) -> None:
    """Put an organ of another map at the place of the old one, where there is room for it; changes `labels` in place.

    old: (D, H, W) mask of the organ that leaves; number: the id that the new organ gets
    donor, new: the other map and the mask of the organ in it
    shift_mm: (3,) from the centre of the old organ to that of the new one
    """
    here, there = (matrix[:3, :3] @ np.argwhere(mask).mean(axis=0) + matrix[:3, 3]
                   for mask, matrix in ((old, affine), (new, donor_affine)))
    zoom = rng.uniform(*ZOOM, 3)
    turn = rotation(np.deg2rad(rng.uniform(-MOST_TURN_DEG, MOST_TURN_DEG, 3)))
    # offset from the centre in the host -> offset from the centre in the donor, both in mm
    linear = turn @ np.diag(1 / zoom)
    box = bounding_box(new)
    assert box is not None                                             # the caller has seen voxels
    reach = np.linalg.norm([(part.stop - part.start) for part in box] * np.abs(np.diag(donor_affine)[:3])) * max(ZOOM)
    low, high = (np.linalg.inv(affine[:3, :3]) @ (here + shift_mm + sign * reach / 2 - affine[:3, 3])
                 for sign in (-1, 1))
    start = np.clip(np.floor(np.minimum(low, high)).astype(int), 0, labels.shape)
    stop = np.clip(np.ceil(np.maximum(low, high)).astype(int) + 1, 0, labels.shape)
    index = np.indices(tuple(stop - start)).reshape(3, -1) + start[:, None]
    offset_mm = affine[:3, :3] @ index + (affine[:3, 3] - here - shift_mm)[:, None]
    from_donor = np.linalg.inv(donor_affine[:3, :3]) @ (linear @ offset_mm + (there - donor_affine[:3, 3])[:, None])
    from_donor = np.rint(from_donor).astype(int)
    inside = ((from_donor >= 0) & (from_donor < np.array(donor.shape)[:, None])).all(axis=0)
    inside[inside] = new[tuple(from_donor[:, inside])]
    host = index[:, inside]
    free = (labels[tuple(host)] == 0) | old[tuple(host)]
    if free.sum() < LEAST_SHARE * len(free) or not free.any():
        return
    labels[old] = 0
    labels[tuple(host[:, free])] = number
