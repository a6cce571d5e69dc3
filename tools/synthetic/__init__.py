"""Synthetic CT from label maps of real anatomy, with masks: an option beyond the paper (docs/synthetic.md).

    a label map of TotalSegmentator's 117 structures, a seed
      -> organs exchanged with those of other maps     mixing.py, where other maps are given
      -> another shape, another field of view          geometry.py, body.py
      -> HU of a contrast phase, contents, vessels     tissues.py, contents.py, vessels.py
      -> lesions                                       lesions.py
      -> blur, noise, table                            scanner.py

`draw` makes one CT. The command `python -m tools.synthetic` (__main__.py), run in a checkout, writes a dataset that
`uniseg.train` reads. Nothing in the package `uniseg` imports this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uniseg.imaging.grid import voxel_size_mm

from . import body, contents, lesions, tissues
from .geometry import Grid, Motion, covering, move, swell
from .mixing import Map, exchange
from .scanner import circle, clinic, scan

Ids = dict[str, int]         # structure -> its value in a label map
Masks = dict[str, NDArray[np.bool_]]

# their probabilities
VIEWS = {"whole": 0.2, "chest": 0.2, "upper abdomen": 0.2, "abdomen and pelvis": 0.3, "slab": 0.1,
         "neck": 0.0, "pelvis": 0.0}         # the last two on request only
ARMS_DOWN = 0.15             # probability of arms at the sides
CUT = 0.3                    # probability that a small field of view cuts off the sides of the patient
MOST_CUT = 0.35              # largest share of the width that it cuts off at one side
# The head of the femur is a ball: its radius, and how far its centre lies below the upper end of the bone.
HEAD_RADIUS_MM, HEAD_BELOW_MM = 26.0, 22.0
# Each stage draws from its own random stream, (seed, number of the stage).
MOTION, HU, BODY, VIEW, FILL, CONTENTS, LESIONS, SCANNER, ARMS, SWELLING, MIXING, CIRCLE = range(12)


def draw(labels: NDArray, affine: ArrayLike, names: Mapping[int, str], seed: int, spacing_mm: float = 2.0,
         phase: str | None = None, view: str | None = None, kinds: Mapping[str, lesions.Kind] = lesions.KINDS,
         donors: Sequence[Map] = (), as_in_clinics: bool = False,
         ) -> tuple[NDArray[np.int16], Masks, NDArray, dict[str, str]]:
    """Draw one synthetic CT. The same seed gives the same CT.

    labels:  (D, H, W) integers in RAS+, as volume.read_label_map gives them; affine (4, 4)
    names:   {id: structure}
    phase:   one of tissues.PHASES, drawn at random if None
    view:    one of VIEWS, drawn at random if None
    kinds:   lesions to paint
    donors:  other maps, with the same ids, whose organs may take the place of this one's (mixing.py)
    as_in_clinics: draw low dose, sharp kernels, thick slices, and circular fields of view that cut the patient
    returns: hu (D, H, W), masks {class: (D, H, W)}, affine (4, 4), {"phase", "view"}; RAS+, isotropic voxels of
             spacing_mm

    Masks of organs do not overlap. A lesion lies in the mask of its own class and in that of its organ. Classes that
    the structures do not show (rectum, celiac trunk, vessels and vessel tumours of the liver) have no mask. Raises
    ValueError if the label map does not show what the view needs, or no structure at all.
    """
    def stage(number: int) -> np.random.Generator:
        return np.random.default_rng((seed, number))

    affine = np.asarray(affine, float)
    labels, ids = with_heads(labels, affine, names)
    if len(donors):
        labels = exchange(labels, affine, ids, donors, stage(MIXING))
    present = np.bincount(labels.ravel(order="K"), minlength=max(ids.values()) + 1) > 0
    rng = stage(HU)
    phase = phase or tissues.PHASES[rng.choice(4, p=[0.25, 0.25, 0.37, 0.13])]
    hu = tissues.draw_hu(phase, rng)

    low, high = corners_mm(labels, affine)
    motion = Motion(low, high, stage(MOTION))
    rng = stage(ARMS)
    arm_rng = rng if rng.random() < ARMS_DOWN else None
    coarse = coarse_grid(*motion.reach(low, high), arms=arm_rng is not None)
    rough = move(labels, affine, coarse, motion)
    outlines = body.outline(rough, lambda *starts: [n for s, n in ids.items() if s.startswith(starts)], coarse,
                            stage(BODY), arm_rng)
    view, grid = field_of_view(rough, ids, outlines, spacing_mm, stage(VIEW), view)

    moved = move(labels, affine, grid, motion)
    swell(moved, ids, grid, stage(SWELLING))
    image, skin = body.fill(moved, ids_by_kind(ids), outlines, hu, grid, stage(FILL))
    known = moved > 0
    image[known] = hu_table(ids, hu)[moved[known]]
    skin = np.maximum(skin, np.where(known, 3.0, -np.inf))  # so that an arm outside the outline does not become air

    patient = contents.Patient(grid, moved, ids, hu, phase, image)
    contents.paint_contents(patient, stage(CONTENTS))
    masks = class_masks(moved, {structure: number for structure, number in ids.items() if present[number]})
    free = ~known & (image > -160) & (image < -40) & (skin > 25)
    masks |= lesions.paint_lesions(patient, masks, free, stage(LESIONS), kinds)
    if "kidney_cyst" in masks:                                       # the maps show cysts of their own
        others = np.logical_or.reduce([masks[name] for name in kinds])
        masks["kidney_cyst"] |= patient.where("kidney_cyst_left", "kidney_cyst_right") & ~others
    ct = (clinic if as_in_clinics else scan)(image, skin, grid, stage(SCANNER))
    if as_in_clinics and (cut := circle(skin, grid, stage(CIRCLE))) is not None:
        outside, padding = cut
        ct[outside] = padding
        for mask in masks.values():
            mask[outside] = False
    return ct, masks, grid.affine, {"phase": phase, "view": view}


def with_heads(labels: NDArray, affine: NDArray, names: Mapping[int, str]) -> tuple[NDArray[np.uint16], Ids]:
    """The map with the heads of the femora as structures of their own, `femur_head_right` and `_left`; {structure: id}.

    TotalSegmentator's femur is the whole bone as far as it is in view. Its head is the part of the bone in the ball
    with the radius HEAD_RADIUS_MM around the point HEAD_BELOW_MM below the middle of the uppermost 4 mm.
    """
    ids = {structure: int(number) for number, structure in names.items()}
    labels = labels.astype(np.uint16)
    spacing = voxel_size_mm(affine)
    for offset, side in enumerate(("right", "left"), start=1):
        ids[f"femur_head_{side}"] = number = max(map(int, names)) + offset
        femur = np.argwhere(labels == ids.get(f"femur_{side}", -1))
        if len(femur):
            mm = femur * spacing
            top = mm[mm[:, 2] > mm[:, 2].max() - 4.0].mean(axis=0)
            near = ((mm - top + [0, 0, HEAD_BELOW_MM]) ** 2).sum(axis=1) < HEAD_RADIUS_MM ** 2
            labels[tuple(femur[near].T)] = number
    return labels, ids


def corners_mm(labels: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    """The lowest and the highest coordinates (3,) in mm of the voxels' centres of a map in RAS+."""
    ends = affine[:3, :3] @ (np.array(labels.shape) - 1) + affine[:3, 3]
    return np.minimum(affine[:3, 3], ends), np.maximum(affine[:3, 3], ends)


def coarse_grid(low_mm: NDArray, high_mm: NDArray, arms: bool) -> Grid:
    """The grid of the outlines: the map's box with room for fat, arms and table, less the ends of a turned map."""
    room = np.array([185.0 if arms else 75.0, 75.0, -8.0])
    return covering(low_mm - room, high_mm + room, body.COARSE_MM)


def ids_by_kind(ids: Ids) -> dict[str, list[int]]:
    """The ids of the lungs and of the other organs, for body.fill."""
    return {"lung": [n for s, n in ids.items() if s.startswith("lung_")],
            "organ": [n for s, n in ids.items() if tissues.tissue_of(s) not in ("lung", "gas", "marrow")]}


def hu_table(ids: Ids, hu: Mapping[str, float]) -> NDArray[np.float32]:
    """The HU of each id's tissue, (largest id + 1,)."""
    table = np.zeros(max(ids.values()) + 1, np.float32)
    for structure, number in ids.items():
        table[number] = hu[tissues.tissue_of(structure)]
    return table


def class_masks(moved: NDArray, ids: Ids) -> Masks:
    """{class: mask} of the organs.

    ids: of the structures that the whole map shows. A class of tissues.ABSENT_IS_UNKNOWN that the map does not show has
         no mask; another class that it does not show has an empty one.
    """
    return {name: np.isin(moved, [ids[p] for p in parts if p in ids]) for name, parts in tissues.CLASS_PARTS.items()
            if name not in tissues.ABSENT_IS_UNKNOWN or any(p in ids for p in parts)}


def field_of_view(rough: NDArray, ids: Ids, outlines: body.Body, spacing_mm: float, rng: np.random.Generator,
                  view: str | None) -> tuple[str, Grid]:
    """(name of the view, fine grid): a range of z between landmarks, and the width and depth of the skin or less of it.

    rough: label map on the coarse grid; view: one of VIEWS, or None to draw one. Raises ValueError if the map does not
           show what the view needs.
    """
    possible = possible_views(rough, ids, outlines.grid, rng)
    odds = np.array([VIEWS[name] for name in possible])
    drawn = list(possible)[rng.choice(len(odds), p=odds / odds.sum())]
    view = view or drawn
    if view not in possible:
        raise ValueError(f"the label map does not show what the view {view!r} needs. "
                         f"Give one of {', '.join(possible)}.")
    low, high = possible[view]
    if view == "slab":
        thick = min(rng.uniform(35, 160), high - low)
        low = rng.uniform(low, high - thick)
        high = low + thick
    x, y, _ = outlines.grid.axes()
    x = x[(outlines.skin > 0).any(axis=(1, 2))]
    y = y[(outlines.skin > 0).any(axis=(0, 2))]
    beside, (behind, before) = rng.uniform(8, 35, 2), rng.uniform([25, 5], [70, 30])        # mm; the table lies behind
    left, right, back, front = x[0] - beside[0], x[-1] + beside[1], y[0] - behind, y[-1] + before
    if rng.random() < CUT:
        cut = rng.uniform(0, MOST_CUT, 4)
        left, right = left + cut[0] * (right - left), right - cut[1] * (right - left)
        back, front = back + cut[2] * (front - back), front - 0.5 * cut[3] * (front - back)
    lowest, highest = possible["whole"]
    low, high = max(low, lowest), min(high, highest)
    if high - low < 30:
        low, high = lowest, highest
    return view, covering((left, back, low), (right, front, high), spacing_mm)


def possible_views(rough: NDArray, ids: Ids, grid: Grid, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """{view: (lowest, highest z in mm)} of the views that a label map on the coarse grid shows."""
    z = grid.axes()[2]

    def ends(*structures: str) -> tuple[float, float] | None:
        slices = np.flatnonzero(np.isin(rough, [ids[s] for s in structures if s in ids]).any(axis=(0, 1)))
        return (z[slices[0]], z[slices[-1]]) if len(slices) else None

    lungs = ends(*(s for s in ids if s.startswith("lung_")))
    liver, kidneys = ends("liver"), ends("kidney_left", "kidney_right")
    hips, thighs = ends("hip_left", "hip_right"), ends("femur_left", "femur_right")
    whole = (float(z[0]), float(z[-1]))
    views = {"whole": whole, "slab": whole}
    if lungs and lungs[1] - lungs[0] > 150:
        views["chest"] = (lungs[0] - rng.uniform(-60, 40), whole[1])
    if liver and kidneys:
        views["upper abdomen"] = (kidneys[0] - rng.uniform(-40, 30), liver[1] + rng.uniform(-20, 50))
        views["abdomen and pelvis"] = (whole[0] + rng.uniform(0, 40), liver[1] + rng.uniform(-10, 70))
    (more,) = rng.spawn(1)                      # a stream of its own: the views above stay as they are
    if lungs and whole[1] - lungs[1] > 5:
        views["neck"] = (lungs[1] - more.uniform(0, 90), whole[1])
    if hips and thighs:
        views["pelvis"] = (whole[0], hips[1] - more.uniform(-40, 60))
    return views
