"""The three refinements of binary predictions of Section 4.1.2, sides, components, anatomical regions; and one of ours, stubs.

Masks come and go as a bit volume (bits.py) on one grid, so classes may overlap. Each step is driven by the fields of
taxonomy.py, works on one class at a time inside its bounding box, and leaves classes it knows nothing about alone. Read
anatomy.py first.
"""

import numpy as np
from scipy import ndimage

from .imaging.anatomy import split_left_right
from .imaging.bits import bounding_box, get_bit, set_bit
from .imaging.components import keep_components, largest, largest_components
from .taxonomy import BY_NAME, PAIRS

STEPS = ("sides", "components", "regions")                 # the paper's
ALL_STEPS = ("sides", "components", "stubs", "regions")    # and ours
REGION_MARGIN_MM = 3.0   # an organ's region reaches this far around it: the authors' 5^3 element at 1.5 mm
STUB_SHARE = 0.05        # of an organ's volume in an adult: less of it at the first or last slice is taken for a mistake
# A class that has no voxel below the other's lowest one: the veins' confluence lies behind the pancreas' neck (authors' code).
NOT_BELOW = {"portal_and_splenic_vein": "pancreas"}


def postprocess(bits, names, affine, plane=None, steps=STEPS, in_pieces=()):
    """Refine all classes of a bit volume.

    bits:    (D, H, W) uint32 or uint64; bit k is the mask of names[k]. Not changed.
    affine:  (4, 4) of that grid
    plane:   anatomy.Plane of the patient; without it the sides are left as they are
    in_pieces: names that keep all their components; beyond the paper, for networks that find a long thin organ in pieces
    returns: the new bits, and a list of sentences that say what changed
    """
    unknown = set(steps) - set(ALL_STEPS)
    if unknown:
        raise ValueError(f"unknown post-processing step {sorted(unknown)[0]!r}. Choose from {', '.join(ALL_STEPS)}.")
    bits, notes = bits.copy(order="K"), []
    if "sides" in steps and plane is not None:
        correct_sides(bits, names, affine, plane, notes)
    if "components" in steps:
        keep_once(bits, names, notes, in_pieces)
    if "stubs" in steps:
        drop_stubs(bits, names, abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3])), notes)
    if "regions" in steps:
        restrict_to_regions(bits, names, np.linalg.norm(np.asarray(affine)[:3, :3], axis=0), notes)
    return bits, notes


def correct_sides(bits, names, affine, plane, notes):
    """(1) Left-right split: what a paired class has on the other side becomes its partner's. In place.

    The components of each class are judged on their own (anatomy.split_left_right): a right lung that touches the left one
    and reaches a little over the middle keeps its edge. Needs both of the pair among `names`; a class without its
    partner is left as it is, since there is nobody to give its voxels to.
    """
    for right_name, left_name in _pairs(names):
        right, left = (get_bit(bits, names.index(n)) for n in (right_name, left_name))
        box = bounding_box(right | left)
        if box is None:
            continue
        here = _moved(affine, box)
        right, left = right[box], left[box]
        right_stays, right_goes = split_left_right(right, here, plane)
        left_goes, left_stays = split_left_right(left, here, plane)
        if right_goes.any() or left_goes.any():
            set_bit(bits, names.index(right_name), right_stays | left_goes, box)
            set_bit(bits, names.index(left_name), left_stays | right_goes, box)
        for name, partner, goes in ((right_name, left_name, right_goes), (left_name, right_name, left_goes)):
            _note(notes, name, goes.sum(), f"remapped to {partner}")


def keep_once(bits, names, notes, in_pieces=()):
    """(2) Keep the largest 26-connected component of an organ that occurs once; of the lungs two in all. In place.

    Without its partner among `names` a lung is one organ, of one component.
    """
    pairs_of_two = [pair for pair in _pairs(names) if BY_NAME[pair[0]].components == 2]
    done = {name for pair in pairs_of_two for name in pair} | set(in_pieces)
    for pair in pairs_of_two:
        whole = get_bit(bits, names.index(pair[0])) | get_bit(bits, names.index(pair[1]))
        kept = largest_components(whole, 2)
        for name in pair:
            _replace(bits, names, name, lambda mask, box: mask & kept[box], "outside the two largest components", notes)
    for name in names:
        if name not in done and name in BY_NAME and BY_NAME[name].components:
            _replace(bits, names, name, lambda mask, box: largest_components(mask), "outside the largest component", notes)


def drop_stubs(bits, names, voxel_mm3, notes):
    """Beyond the paper: an organ of which hardly anything is found, at the first or last slice, is taken as not there. In place.

    A network that has seen a whole body expects a kidney below the lungs, and finds a little of it where the CT ends. Less than
    STUB_SHARE of an adult's organ at one end of the CT goes; where it was true, that little is lost. In a slice or a thin slab an organ
    reaches both ends, and stays. Volumes of the reference woman:
    ICRP Publication 89, Table 2.8, https://doi.org/10.1016/S0146-6453(03)00002-2. Organs whose contents vary are left alone.
    """
    for name in names:
        least = STUB_SHARE * 1000 * BY_NAME[name].adult_ml / voxel_mm3 if name in BY_NAME else 0       # voxels
        mask = get_bit(bits, names.index(name)) if least else None
        if least and np.count_nonzero(mask) < least and mask[:, :, 0].any() != mask[:, :, -1].any():
            _replace(bits, names, name, lambda mask, box: np.zeros_like(mask), "at an end of the CT, too little for the organ", notes)


def restrict_to_regions(bits, names, spacing_mm, notes):
    """(3) Lesions and liver vessels within their organs, veins not below the pancreas, lesion counts and sizes. In place.

    A class is held to its parents' region only where the model knows all of them: a model with the right kidney alone
    cannot tell that a tumour in the left one is misplaced. Where the parents are empty, so is what lies inside them.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    for name in names:
        entry = BY_NAME.get(name)
        if entry is None:
            continue
        if entry.parents and set(entry.parents) <= set(names):
            region = _region([get_bit(bits, names.index(p)) for p in entry.parents], spacing_mm)
            _replace(bits, names, name, lambda mask, box: mask & region[box], f"outside {' or '.join(entry.parents)}", notes)
        floor = NOT_BELOW.get(name)
        if floor in names:
            floor_box = bounding_box(get_bit(bits, names.index(floor)))
            if floor_box is not None:
                _replace(bits, names, name, lambda mask, box: mask & _from_plane(box, floor_box[2].start),
                         f"below {floor}", notes)
        if entry.max_lesions or entry.min_lesion_mm3:
            _replace(bits, names, name,
                     lambda mask, box: keep_lesions(mask, entry.max_lesions, entry.min_lesion_mm3 / voxel_mm3),
                     "in lesions too small or too many", notes)


def keep_lesions(mask, most, min_voxels):
    """The `most` (0: any number) largest 26-connected components of at least `min_voxels` voxels."""
    def choose(sizes):
        # A rounding error must not cost a lesion of just that size, e.g. 80 * 1.5 ** 3 mm3 at 1.5 mm.
        return largest(sizes, most or len(sizes)) & (sizes >= min_voxels - 1e-6)
    return keep_components(mask, choose)


def _region(parents, spacing_mm):
    """The union of the parents, closed, then dilated, with a box of REGION_MARGIN_MM; whole array, empty if they are."""
    union = np.logical_or.reduce(parents)
    radii = [max(1, round(REGION_MARGIN_MM / s)) for s in spacing_mm]
    box = bounding_box(union, margin=2 * max(radii))
    region = np.zeros(union.shape, bool, order="F")
    if box is None:
        return region
    inside = union[box].astype(np.uint8)
    for change, outside in ((ndimage.maximum_filter1d, 0), (ndimage.minimum_filter1d, 1), (ndimage.maximum_filter1d, 0)):
        for axis, radius in enumerate(radii):            # a box element is separable: one pass per axis
            inside = change(inside, 2 * radius + 1, axis=axis, mode="constant", cval=outside)
    region[box] = inside.astype(bool)
    return region


def _pairs(names):
    """(right, left) of each pair of which both are among the names."""
    return [pair for pair in dict.fromkeys(PAIRS.values()) if set(pair) <= set(names)]


def _from_plane(box, lowest):
    """Bool (1, 1, dz): the planes of the box from index `lowest` of the whole array on."""
    return (np.arange(box[2].start, box[2].stop) >= lowest)[None, None]


def _moved(affine, box):
    """The affine of the part `array[box]`."""
    affine = np.array(affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return affine


def _replace(bits, names, name, change, reason, notes):
    """Replace a class's mask by change(mask within its bounding box, box)."""
    k = names.index(name)
    mask = get_bit(bits, k)
    box = bounding_box(mask)
    if box is None:
        return
    before = mask[box]
    after = change(before, box)
    removed = int(before.sum()) - int(after.sum())
    if removed:
        set_bit(bits, k, after, box)
        _note(notes, name, removed, f"removed {reason}")


def _note(notes, name, voxels, what):
    if voxels:
        notes.append(f"{name}: {int(voxels)} voxel{'s' if voxels != 1 else ''} {what}")
