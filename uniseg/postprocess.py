"""The three refinements of binary predictions in Section 4.1.2: sides, components, anatomical regions; and one of ours.

Masks are passed as a bit volume (imaging/bits.py) on one grid, so classes may overlap. The fields of taxonomy.py
control each step. A step works on the bounding box of each class, on several classes at a time (machine/threads.py),
and leaves classes that taxonomy.py does not list as they are. Section 4.1.2 then merges the masks into one label map:
that is in imaging/merging.py, which inference/native_grid.py calls on the CT's own grid.

Read taxonomy.py and imaging/anatomy.py first.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from .imaging.anatomy import Plane, split_left_right
from .imaging.bits import Box, bounding_boxes, get_bit, set_bit
from .imaging.components import keep_components, largest, largest_components
from .imaging.grid import voxel_size_mm, voxel_volume_mm3
from .machine.threads import in_threads
from .taxonomy import BY_NAME, PAIRS

Names = Sequence[str]
Removal = tuple[np.ndarray, str]                           # a mask after the removal of voxels, and why they went

STEPS = ("sides", "components", "regions")                 # the paper's
ALL_STEPS = ("sides", "components", "stubs", "regions")    # the paper's and ours
REGION_MARGIN_MM = 3.0   # margin of a region around its organ: the authors' 5^3 structuring element at 1.5 mm
STUB_SHARE = 0.05        # a smaller share of an adult's organ, at the first or last slice, counts as a false positive
# A class has no voxel below the lowest voxel of the other: the confluence of the veins lies behind the neck of the
# pancreas (authors' code).
NOT_BELOW = {"portal_and_splenic_vein": "pancreas"}


def chosen_steps(wanted: bool | Collection[str]) -> tuple[str, ...]:
    """The steps that run, in their order: ALL_STEPS for True, none for False, else those named.

    Raises ValueError for an unknown step.

    >>> chosen_steps(["regions", "sides"])
    ('sides', 'regions')
    """
    if isinstance(wanted, bool):
        return ALL_STEPS if wanted else ()
    if unknown := sorted(set(wanted) - set(ALL_STEPS)):
        raise ValueError(f"unknown post-processing step {unknown[0]!r}. Choose from {', '.join(ALL_STEPS)}.")
    return tuple(step for step in ALL_STEPS if step in wanted)


def asked_steps(steps: str | None, none: bool) -> bool | tuple[str, ...]:
    """What the options --steps and --no-postprocess ask for, as `chosen_steps` takes it. Raises ValueError."""
    if steps is None:
        return not none
    if none:
        raise ValueError("--steps and --no-postprocess: leave one of the two out.")
    try:
        return chosen_steps([step.strip() for step in steps.split(",")])
    except ValueError as error:
        raise ValueError(f"--steps {steps}: {error}") from None


def postprocess(bits: np.ndarray, names: Names, affine: np.ndarray, plane: Plane | None = None,
                steps: Collection[str] = STEPS, in_pieces: Collection[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Refine all classes of a bit volume.

    bits:    (D, H, W) uint32 or uint64; bit k is the mask of names[k]. Not changed.
    affine:  (4, 4) of that grid
    plane:   the patient's mid-sagittal plane (None, or one that is not sure: the sides stay as they are)
    steps:   some of ALL_STEPS; they always run in the order of ALL_STEPS
    in_pieces: names that keep all their components; beyond the paper, for networks that find a long organ in pieces
    returns: the new bits, and a list of sentences that say what changed

    Raises ValueError for an unknown step.
    """
    steps = chosen_steps(steps)
    notes: list[str] = []
    bits = bits.copy(order="K")
    if "sides" in steps and plane is not None and plane.sure:
        correct_sides(bits, names, affine, plane, notes)
    if "components" in steps:
        keep_once(bits, names, notes, in_pieces)
    if "stubs" in steps:
        drop_stubs(bits, names, voxel_volume_mm3(affine), notes)
    if "regions" in steps:
        restrict_to_regions(bits, names, voxel_size_mm(affine), notes)
    return bits, notes


def correct_sides(bits: np.ndarray, names: Names, affine: np.ndarray, plane: Plane, notes: list[str]) -> None:
    """(1) Left-right split: parts of a paired organ on the wrong side become its partner's. Changes `bits`.

    The components of each class are judged one by one (imaging/anatomy.py, split_left_right), so a right lung that
    touches the left one and reaches a little across the middle keeps its edge. A class without its partner among
    `names` stays as it is, because no class could take its voxels.
    """
    pairs, boxes = _pairs(names), bounding_boxes(bits, len(names))

    def divided(pair: tuple[str, ...]) -> tuple[Box, list[np.ndarray]] | None:
        """The box of both classes; right ones that stay right, that go left, left ones that go right, that stay."""
        right, left = (names.index(n) for n in pair)
        box = _around([boxes[right], boxes[left]], bits.shape)
        if box is None:
            return None
        part, box_affine = bits[box], _moved(affine, box)
        return box, [side for k in (right, left) for side in split_left_right(get_bit(part, k), box_affine, plane)]

    for (right_name, left_name), found in zip(pairs, in_threads(divided, pairs)):
        if found is None:
            continue
        box, (right_stays, right_goes, left_goes, left_stays) = found
        if right_goes.any() or left_goes.any():
            set_bit(bits, names.index(right_name), right_stays | left_goes, box)
            set_bit(bits, names.index(left_name), left_stays | right_goes, box)
        for name, partner, goes in ((right_name, left_name, right_goes), (left_name, right_name, left_goes)):
            _note(notes, name, goes.sum(), f"remapped to {partner}")


def keep_once(bits: np.ndarray, names: Names, notes: list[str], in_pieces: Collection[str] = ()) -> None:
    """(2) Keep the largest 26-connected component of an organ that occurs once. Changes `bits`.

    The two lungs together keep two components. A lung without its partner among `names` keeps one.
    """
    pairs_of_two = [pair for pair in _pairs(names) if BY_NAME[pair[0]].components == 2]
    done = {name for pair in pairs_of_two for name in pair} | set(in_pieces)
    for pair in pairs_of_two:
        kept = largest_components(np.logical_or(*(get_bit(bits, names.index(name)) for name in pair)), 2)
        _replace(bits, names, pair, notes,
                 lambda name, mask, box: [(mask & kept[box], "outside the two largest components")])
    once = [name for name in names if name not in done and name in BY_NAME and BY_NAME[name].components]
    _replace(bits, names, once, notes,
             lambda name, mask, box: [(largest_components(mask), "outside the largest component")])


def drop_stubs(bits: np.ndarray, names: Names, voxel_mm3: float, notes: list[str]) -> None:
    """Beyond the paper: remove an organ of which hardly anything is found, at one end of the CT. Changes `bits`.

    A network that was trained on whole bodies expects a kidney below the lungs, and finds a little of it where the CT
    ends. Less than STUB_SHARE of the reference woman's organ (taxonomy.AnatomicalClass.adult_ml) at the first or last
    slice is removed; where it was correct, that little is lost. In a thin slab an organ reaches both ends, and stays.
    Organs without a reference volume stay too.
    """
    def without_a_stub(name: str, mask: np.ndarray, box: Box) -> Iterator[Removal]:
        least_voxels = STUB_SHARE * 1000 * BY_NAME[name].adult_ml / voxel_mm3
        at_first, at_last = box[2].start == 0, box[2].stop == bits.shape[2]
        if np.count_nonzero(mask) < least_voxels and at_first != at_last:
            yield np.zeros_like(mask), "at an end of the CT, too little for the organ"

    _replace(bits, names, [n for n in names if n in BY_NAME and BY_NAME[n].adult_ml], notes, without_a_stub)


def restrict_to_regions(bits: np.ndarray, names: Names, spacing_mm: Sequence[float] | np.ndarray,
                        notes: list[str]) -> None:
    """(3) Restrict classes to their regions, and drop lesions that are too small or too many. Changes `bits`.

    Lesions and the vessels of the liver stay within the region of their organs (parents), and NOT_BELOW holds. The
    region applies only if all parents are among `names`: a model that knows the right kidney alone cannot tell whether
    a tumour in the left kidney is misplaced. If the parents are empty, the class becomes empty too.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    boxes = bounding_boxes(bits, len(names))             # of parents and of the pancreas, which this step never changes

    def restricted(name: str, mask: np.ndarray, box: Box) -> Iterator[Removal]:
        entry, floor = BY_NAME[name], NOT_BELOW.get(name)
        if entry.parents and set(entry.parents) <= set(names):
            mask = mask & _region(bits, [names.index(p) for p in entry.parents], boxes, spacing_mm)[box]
            yield mask, f"outside {' or '.join(entry.parents)}"
        floor_box = boxes[names.index(floor)] if floor in names else None
        if floor_box is not None:
            mask = mask & _from_plane(box, floor_box[2].start)
            yield mask, f"below {floor}"
        if entry.max_lesions or entry.min_lesion_mm3:
            mask = keep_lesions(mask, entry.max_lesions, entry.min_lesion_mm3 / voxel_mm3)
            yield mask, "in lesions too small or too many"

    _replace(bits, names, [name for name in names if name in BY_NAME], notes, restricted)


def keep_lesions(mask: np.ndarray, most: int, min_voxels: float) -> np.ndarray:
    """The `most` largest 26-connected components (0: any number) that have at least `min_voxels` voxels."""
    def choose(sizes: np.ndarray) -> np.ndarray:
        # A rounding error must not drop a lesion of exactly that size, such as 80 * 1.5 ** 3 mm3 at 1.5 mm.
        return largest(sizes, most or len(sizes)) & (sizes >= min_voxels - 1e-6)
    return keep_components(mask, choose)


def _region(bits: np.ndarray, parents: Sequence[int], boxes: Sequence[Box | None],
            spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """The union of the parents, closed and then dilated by a box of REGION_MARGIN_MM; empty if the parents are.

    parents: their positions among the bits; boxes: of all masks
    """
    radii = [max(1, round(REGION_MARGIN_MM / s)) for s in spacing_mm]
    box = _around([boxes[k] for k in parents], bits.shape, margin=2 * max(radii))
    region = np.zeros(bits.shape, bool, order="F")
    if box is None:
        return region
    inside = np.logical_or.reduce([get_bit(bits[box], k) for k in parents]).astype(np.uint8)
    dilate, erode = (ndimage.maximum_filter1d, 0), (ndimage.minimum_filter1d, 1)
    for change, outside in (dilate, erode, dilate):      # a closing is a dilation and an erosion
        for axis, radius in enumerate(radii):            # a box element is separable: one pass per axis
            inside = change(inside, 2 * radius + 1, axis=axis, mode="constant", cval=outside)
    region[box] = inside.astype(bool)
    return region


def _around(boxes: Sequence[Box | None], shape: Sequence[int], margin: int = 0) -> Box | None:
    """The smallest box around some boxes, grown by `margin` voxels within the shape; None where all are None."""
    some = [box for box in boxes if box is not None]
    if not some:
        return None
    return tuple(slice(max(0, min(s.start for s in of_axis) - margin), min(n, max(s.stop for s in of_axis) + margin))
                 for of_axis, n in zip(zip(*some), shape))


def _pairs(names: Names) -> list[tuple[str, ...]]:
    """(right, left) of each pair that has both classes among the names."""
    return [pair for pair in dict.fromkeys(PAIRS.values()) if set(pair) <= set(names)]


def _from_plane(box: Box, lowest: int) -> np.ndarray:
    """(1, 1, dz) bool: the planes of the box that have at least the index `lowest` in the whole array."""
    return (np.arange(box[2].start, box[2].stop) >= lowest)[None, None]


def _moved(affine: np.ndarray, box: Box) -> np.ndarray:
    """The affine of the part `array[box]` of an array with `affine`."""
    affine = np.array(affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return affine


def _replace(bits: np.ndarray, names: Names, chosen: Names, notes: list[str],
             change: Callable[[str, np.ndarray, Box], Iterable[Removal]]) -> None:
    """Replace the masks of the chosen classes, several at a time, and note how many voxels that removes.

    change: (name, mask in its bounding box, box) -> the mask after each removal, and the reason; none: it stays
    """
    boxes = bounding_boxes(bits, len(names))

    def changed(name: str) -> tuple[np.ndarray | None, list[tuple[int, str]]]:
        box, after, removed = boxes[names.index(name)], None, []
        if box is not None:
            mask = get_bit(bits[box], names.index(name))
            left = int(mask.sum())
            for after, reason in change(name, mask, box):
                removed.append((left - int(after.sum()), reason))
                left -= removed[-1][0]
        return after, removed

    for name, (after, removed) in zip(chosen, in_threads(changed, chosen)):
        box = boxes[names.index(name)]
        if box is not None and after is not None and any(voxels for voxels, _ in removed):
            set_bit(bits, names.index(name), after, box)
        for voxels, reason in removed:
            _note(notes, name, voxels, f"removed {reason}")


def _note(notes: list[str], name: str, voxels: int, what: str) -> None:
    """Add a sentence to the notes, unless no voxel changed."""
    if voxels:
        notes.append(f"{name}: {int(voxels)} voxel{'s' if voxels != 1 else ''} {what}")
