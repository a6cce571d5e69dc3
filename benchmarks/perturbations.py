"""The perturbations of robustness.py: what scanners, tools and clinics do to a CT, as pure functions.

Each takes and gives (hu, affine, masks): hu (D, H, W) in RAS+, the affine (4, 4), masks {class: (D, H, W) bool} on the
same grid. One that makes no sense for a case raises NotPossible.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from uniseg.imaging.bits import bounding_box
from uniseg.imaging.body import body_mask, convex_hull
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.merging import merging_rank
from uniseg.imaging.volume import AIR_HU

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools is no part of the installed package
from tools.synthetic import scanner, tissues  # noqa: E402
from tools.synthetic.geometry import Grid  # noqa: E402

Masks = dict[str, NDArray[np.bool_]]
CT = tuple[NDArray, NDArray, Masks]            # hu, affine, masks

SLICE_MM = 5.0
KIDNEYS, LUNGS = ("right_kidney", "left_kidney"), ("right_lung", "left_lung")
BELOW_THE_CHEST = (*KIDNEYS, "bladder", "prostate_or_uterus")       # counted even if the case does not label them
ABOVE_KIDNEYS_MM = 20.0
SHARE_OF_LUNGS = 0.6          # kept from the top if no kidney is labelled
LEAST_CHEST_MM = 60.0         # a CT with less of it does not show the chest
TABLE_ROOM_MM = 40.0          # holds mattress and upper shell of the thickest table that scanner.table draws
WALL_MM, LEAST_LUNG_MM2 = 6.0, 4000.0     # see slim_chest
EDGE_MM = 1.0                 # over which a change of contrast fades at the edge of an organ
# Class -> tissue whose native HU it has. Gut is left out: its wall enhances, but its contents hide the wall.
ENHANCING = {**{name: tissue for tissue, name in tissues.MEASURED_AS.items()
                if tissue not in ("bile", "bladder_urine")},
             **{name: "cortex" for name in KIDNEYS}, "hepatic_vessel": "hepatic_blood", "celiac_trunk": "blood",
             **{f"{side}_adrenal_gland": "adrenal" for side in tissues.SIDES}, "prostate_or_uterus": "prostate"}


class NotPossible(Exception):
    """The perturbation makes no sense for this case; the message says why."""


# ------------------------------------------------------------------------------------------------------ perturbations

def as_hu(values: NDArray) -> NDArray[np.int16]:
    """HU as a scanner stores them: rounded to int16, nothing below air."""
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16)


def unperturbed(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT as it is."""
    return hu, affine, masks


def stored_as(hu: NDArray, affine: NDArray, masks: Masks, codes: str) -> CT:
    """The same voxels in another order. codes: where the three axes point, such as "LPS"."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return (apply_orientation(hu, turn), affine @ inv_ornt_aff(turn, hu.shape),
            {name: apply_orientation(mask, turn) for name, mask in masks.items()})


def thick_slices(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """Slices of SLICE_MM without gaps from the bottom up, each the mean over its thickness; an incomplete one is cut
    off.

    A voxel of the new grid belongs to a class that covers half of it.
    """
    spacing, n = voxel_size_mm(affine)[2], hu.shape[2]
    if spacing > SLICE_MM - 0.1:
        raise NotPossible(f"slices are {spacing:.1f} mm already")
    edges = np.arange(n + 1) * spacing                                               # mm, of the original slices
    count = int(edges[-1] / SLICE_MM + 1e-6)
    if not count:
        raise NotPossible(f"{edges[-1]:.0f} mm are no slice of {SLICE_MM:g} mm")
    # shares[k]: the share of each original slice in the new slice k
    low, high = edges[:-1], edges[1:]
    shares = [np.clip(np.minimum(high, (k + 1) * SLICE_MM) - np.maximum(low, k * SLICE_MM), 0, None) / SLICE_MM
              for k in range(count)]

    def mean_planes(array: NDArray) -> Iterator[tuple[int, NDArray]]:
        for k, share in enumerate(shares):
            inside = np.flatnonzero(share)
            yield k, array[:, :, inside] @ share[inside].astype(np.float32)          # (D, H)

    thick = np.empty((*hu.shape[:2], count), np.int16, order="F")
    for k, plane in mean_planes(hu):
        thick[:, :, k] = as_hu(plane)
    new_masks = {}
    for name, mask in masks.items():
        new_masks[name] = np.empty(thick.shape, bool, order="F")
        for k, plane in mean_planes(mask):
            new_masks[name][:, :, k] = plane > 0.5 - 1e-4
    new = affine.copy()
    new[:3, 3] += affine[:3, 2] * (SLICE_MM / spacing - 1) / 2  # the first slice's centre is higher
    new[:3, 2] *= SLICE_MM / spacing
    return thick, new, new_masks


def cut(hu: NDArray, affine: NDArray, masks: Masks, box: Sequence[slice]) -> CT:
    """The part of the CT in a box; each voxel keeps its world coordinates."""
    new = affine.copy()
    new[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return hu[tuple(box)], new, {name: mask[tuple(box)] for name, mask in masks.items()}


def half_field_of_view(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """Half the width and half the depth of the CT around the middle of the body's bounding box, at full height.

    This is what a reconstruction zoomed on the spine shows. The body is cut on all four sides.
    """
    body = bounding_box(body_mask(hu, voxel_size_mm(affine)))
    if body is None:
        raise NotPossible("no body found")
    box = []
    for part, n in zip(body[:2], hu.shape):
        start = int(np.clip((part.start + part.stop) // 2 - n // 4, 0, n - n // 2))
        box.append(slice(start, start + n // 2))
    return cut(hu, affine, masks, (*box, slice(0, hu.shape[2])))


def noisy(hu: NDArray, affine: NDArray, masks: Masks, sd_hu: float) -> CT:
    """The CT with Gaussian noise added, independent from voxel to voxel and the same in every run."""
    noise = np.random.default_rng(0).standard_normal(hu.shape[::-1], np.float32).T   # in the memory order of the CT
    noise *= np.float32(sd_hu)
    noise += hu
    return as_hu(noise), affine, masks


def shifted(hu: NDArray, affine: NDArray, masks: Masks, by_hu: float) -> CT:
    """The CT with a constant added to all HU, as by a scanner out of calibration."""
    return as_hu(hu.astype(np.float32) + by_hu), affine, masks


def with_table(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT with a second curved table and its mattress right below the patient, as in the synthetic CTs.

    If the CT ends too close to the back, air is added below it first (TABLE_ROOM_MM). The table is the same in every
    run.
    """
    spacing = voxel_size_mm(affine)
    box = bounding_box(body_mask(hu, spacing))
    if box is None:
        raise NotPossible("no body found")
    more = max(0, int(np.ceil(TABLE_ROOM_MM / spacing[1])) - box[1].start)
    below = ((0, 0), (more, 0), (0, 0))
    new = affine.copy()
    new[:3, 3] -= affine[:3, 1] * more
    lain = np.pad(hu, below, constant_values=AIR_HU).astype(np.float32, order="F")
    # The table is the same in each slice and leaves out what is patient in any slice, so one plane is enough.
    silhouette = body_mask(lain, spacing).any(axis=2, keepdims=True)
    plane = Grid((0.0, 0.0, 0.0), float(spacing[1]), silhouette.shape)               # takes pixels for square
    for share, value in scanner.table(np.where(silhouette, 1, -1), plane, np.random.default_rng(0)):
        for k in range(lain.shape[2]):
            lain[:, :, k] += share[:, :, 0] * (value - lain[:, :, k])
    return as_hu(lain), new, {name: np.pad(mask, below) for name, mask in masks.items()}


def native_shifts(hu: NDArray, masks: Masks) -> dict[str, float]:
    """{class that enhances: HU that take its median down to the native mean of its tissue, or 0 if it is lower}."""
    return {name: min(0.0, round(tissues.centre(ENHANCING[name], "native") - float(np.median(hu[mask])), 1))
            for name, mask in masks.items() if name in ENHANCING and mask.any()}


def without_contrast(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT with the blood and organs that enhance as dark as without contrast.

    Each is lowered by its own constant (`native_shifts`), which fades over EDGE_MM at its edge; vessels take precedence
    over the organs that they lie in. Texture stays, so the cortex of a kidney stays brighter than its medulla. What the
    case does not label (heart, gut wall, other vessels) stays bright, so this CT is harder than a real native one.
    """
    shifts = native_shifts(hu, masks)
    if not shifts:
        raise NotPossible("no class that enhances is labelled")
    field = np.zeros(hu.shape, np.float32, order="F")
    for name in sorted(shifts, key=merging_rank):
        field[masks[name]] = shifts[name]
    field = ndimage.gaussian_filter(field, EDGE_MM / voxel_size_mm(affine), mode="nearest")
    return as_hu(field + hu), affine, masks


def heights(masks: Masks, names: Sequence[str]) -> tuple[int, int] | None:
    """The lowest and the highest slice in which one of the classes is labelled, or None if there is none."""
    found = [np.flatnonzero(masks[name].any(axis=(0, 1))) for name in names if name in masks and masks[name].any()]
    return (min(int(z[0]) for z in found), max(int(z[-1]) for z in found)) if found else None


def chest_alone(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT from 2 cm above the kidneys upwards.

    Without labelled kidneys, it begins in the lungs and keeps the upper SHARE_OF_LUNGS of their height.
    """
    spacing = voxel_size_mm(affine)[2]
    if kidneys := heights(masks, KIDNEYS):
        start = kidneys[1] + 1 + int(np.ceil(ABOVE_KIDNEYS_MM / spacing))
    elif lungs := heights(masks, LUNGS):
        start = lungs[1] + 1 - int(SHARE_OF_LUNGS * (lungs[1] + 1 - lungs[0]))
    else:
        raise NotPossible("neither kidneys nor lungs are labelled")
    left_mm = max(0, hu.shape[2] - start) * spacing
    if left_mm < LEAST_CHEST_MM:
        raise NotPossible(f"{left_mm:.0f} mm of chest, less than {LEAST_CHEST_MM:.0f}")
    return cut(hu, affine, masks, (slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(start, hu.shape[2])))


# ----------------------------------------------------------------------------------- what cannot be seen in the header

def one_side(hu: NDArray, affine: NDArray, masks: Masks, share: float) -> CT:
    """The right side of the patient: the share of the width of the body's box that ends at its right."""
    body = bounding_box(body_mask(hu, voxel_size_mm(affine)))
    if body is None:
        raise NotPossible("no body found")
    start = body[0].stop - round(share * (body[0].stop - body[0].start))
    return cut(hu, affine, masks, (slice(start, hu.shape[0]), slice(0, hu.shape[1]), slice(0, hu.shape[2])))


def in_a_circle(hu: NDArray, affine: NDArray, masks: Masks, diameter_mm: float, value: int = AIR_HU) -> CT:
    """What a field of view of this diameter shows, in the middle of the image; beyond there is one value."""
    spacing = voxel_size_mm(affine)
    x, y = (s * (np.arange(n) - (n - 1) / 2) for n, s in zip(hu.shape, spacing[:2]))
    beyond = np.hypot(x[:, None], y)[:, :, None] > diameter_mm / 2
    if not beyond.any():
        raise NotPossible("the image is smaller than the circle")
    return np.where(beyond, value, hu).astype(np.int16), affine, {n: mask & ~beyond for n, mask in masks.items()}


def filled(hu: NDArray, affine: NDArray, masks: Masks, value: int) -> CT:
    """The CT in a grid that is larger by a third at the left and at the back, which has one value there."""
    more = [(hu.shape[0] // 3, 0), (hu.shape[1] // 3, 0), (0, 0)]
    new = affine.copy()
    new[:3, 3] -= affine[:3, :2] @ [more[0][0], more[1][0]]
    return np.pad(hu, more, constant_values=value), new, {name: np.pad(mask, more) for name, mask in masks.items()}


def clipped(hu: NDArray, affine: NDArray, masks: Masks, low: int) -> CT:
    """The CT without values below `low`."""
    return np.maximum(hu, low), affine, masks


def stored_values(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT as stored before the intercept of -1024 is applied; the lowest value, the scanner's padding, is -2000."""
    return np.where(hu <= AIR_HU, -2000, hu.astype(np.int32) + 1024).astype(np.int16), affine, masks


def slim_chest(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT without what lies more than WALL_MM outside of the lungs, in the slices in which they are large.

    Where the lungs bulge, the wall is as thin as in a slim patient; between and behind them all stays.
    """
    spacing, thin = voxel_size_mm(affine), hu.copy(order="K")
    lung = ndimage.binary_erosion(body_mask(hu, spacing), np.ones((3, 3, 1), bool)) & (hu < -500)
    area_mm2 = lung.sum(axis=(0, 1)) * spacing[0] * spacing[1]
    for k in np.flatnonzero(area_mm2 > LEAST_LUNG_MM2):
        hull = convex_hull(lung[:, :, k])
        thin[:, :, k][ndimage.distance_transform_edt(~hull, spacing[:2]) > WALL_MM] = -1000
    if np.array_equal(thin, hu):
        raise NotPossible("no slice shows much of the lungs")
    return thin, affine, {name: mask & (thin == hu) for name, mask in masks.items()}


def flipped(hu: NDArray, affine: NDArray, masks: Masks, axis: int) -> CT:
    """The array flipped along an axis, with the affine of the one that is not: a CT that says left where right is."""
    return np.flip(hu, axis), affine, {name: np.flip(mask, axis) for name, mask in masks.items()}


def turned(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The array turned by 90 degrees in the axial plane, with the voxel size of its new axes and nothing else."""
    new = np.diag([*voxel_size_mm(affine)[[1, 0, 2]], 1.0])
    return np.rot90(hu), new, {name: np.rot90(mask) for name, mask in masks.items()}


def orientation_lost(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The array as an LPS file holds it, with an affine that knows the voxel size only."""
    turned = {name: mask[::-1, ::-1] for name, mask in masks.items()}
    return hu[::-1, ::-1], np.diag([*voxel_size_mm(affine), 1.0]), turned


def scaled(hu: NDArray, affine: NDArray, masks: Masks, factor: float) -> CT:
    """The CT with a voxel size in another unit."""
    return hu, np.diag([factor, factor, factor, 1.0]) @ affine, masks


PERTURBATIONS: dict[str, Callable[[NDArray, NDArray, Masks], CT]] = {
    "unperturbed": unperturbed,
    **{f"stored as {codes}": partial(stored_as, codes=codes) for codes in ("LPS", "LAS", "ASR", "PIR", "SLA")},
    f"{SLICE_MM:g} mm slices": thick_slices,
    "half the field of view": half_field_of_view,
    "noise, sd 20 HU": partial(noisy, sd_hu=20),
    "noise, sd 40 HU": partial(noisy, sd_hu=40),
    "HU + 20": partial(shifted, by_hu=20),
    "HU - 20": partial(shifted, by_hu=-20),
    "a table more": with_table,
    "contrast removed": without_contrast,
    "chest alone": chest_alone,
    "one side, 60 % of the body": partial(one_side, share=0.6),
    "one side, 40 % of the body": partial(one_side, share=0.4),
    "a circle of 280 mm": partial(in_a_circle, diameter_mm=280),
    "a circle of 200 mm": partial(in_a_circle, diameter_mm=200),
    "a circle of 200 mm, 0 HU": partial(in_a_circle, diameter_mm=200, value=0),
    "filled with 0 HU at two sides": partial(filled, value=0),
    "filled with -1000 HU at two sides": partial(filled, value=-1000),
    "clipped at -325 HU": partial(clipped, low=-325),
    "clipped at -250 HU": partial(clipped, low=-250),
    "stored values, HU + 1024": stored_values,
    "intercept applied twice": partial(shifted, by_hu=-1024),
    "a slim chest": slim_chest,
    "flipped left to right": partial(flipped, axis=0),
    "flipped front to back": partial(flipped, axis=1),
    "flipped head to feet": partial(flipped, axis=2),
    "turned by 90 degrees": turned,
    "orientation lost": orientation_lost,
    "cm stored as mm": partial(scaled, factor=0.1),
}
