"""Synthetic CT from label maps of real anatomy, with masks: an option beyond the paper (docs/synthetic.md).

    a label map of TotalSegmentator's 117 structures, a seed
      -> another shape, another field of view          geometry.py, body.py
      -> HU of a contrast phase, contents, vessels     tissues.py, contents.py, vessels.py
      -> lesions                                       lesions.py
      -> blur, noise, table                            scanner.py

`draw` makes one CT; `python -m tools.synthetic` writes a dataset that uniseg.train reads (__main__.py).
"""

import numpy as np

from uniseg.imaging.volume import voxel_size_mm

from . import body, contents, lesions, tissues
from .geometry import Motion, covering, move, swell
from .scanner import scan

VIEWS = {"whole": 0.2, "chest": 0.2, "upper abdomen": 0.2, "abdomen and pelvis": 0.3, "slab": 0.1}    # its probability
ARMS_DOWN = 0.15             # probability of arms at the sides
CUT, MOST_CUT = 0.3, 0.35    # probability that a small field of view cuts the patient; most of the width that it cuts off a side
ORAL = 0.35                  # probability of oral contrast
HEAD_RADIUS_MM, HEAD_BELOW_MM = 26.0, 22.0     # head of femur: a ball about a centre below the upper end of the bone
MOTION, HU, BODY, VIEW, FILL, CONTENTS, LESIONS, SCANNER, ARMS, SWELLING = range(10)     # each stage draws from (seed, its number)


def draw(labels, affine, names, seed, spacing_mm=2.0, phase=None, view=None, kinds=lesions.KINDS):
    """One synthetic CT.

    labels:  (D, H, W) integers in RAS+, as volume.read_label_map gives them; affine (4, 4)
    names:   {id: structure}
    phase, view: of tissues.PHASES and VIEWS; drawn where not given
    returns: hu (D, H, W) int16, masks {class: (D, H, W) bool}, affine (4, 4), about {"phase", "view"}; RAS+, isotropic spacing_mm

    Masks of the organs do not overlap; lesions are in their class and in their organ. Classes that the structures do not have
    (rectum, celiac trunk, vessels and vessel tumours of the liver) have no mask. Raises ValueError.
    """
    def stage(number):
        return np.random.default_rng((seed, number))

    labels, ids = with_heads(labels, affine, names)
    present = np.bincount(labels.ravel(order="K"), minlength=max(ids.values()) + 1) > 0
    affine = np.asarray(affine, float)
    ends = affine[:3, :3] @ (np.array(labels.shape) - 1) + affine[:3, 3]
    low, high = np.minimum(affine[:3, 3], ends), np.maximum(affine[:3, 3], ends)
    motion = Motion(low, high, stage(MOTION))
    rng = stage(HU)
    phase = phase or tissues.PHASES[rng.choice(4, p=[0.25, 0.25, 0.37, 0.13])]
    hu = tissues.draw_hu(phase, rng)

    low, high = motion.reach(low, high)
    rng = stage(ARMS)
    arms = rng if rng.random() < ARMS_DOWN else None
    beside = 75.0 if arms is None else 185.0
    room = np.array([beside, 75.0, -8.0])                              # for fat, arms and table; the ends of a turned map are cut
    coarse = covering(low - room, high + room, body.COARSE_MM)
    rough = move(labels, affine, coarse, motion)
    outlines = body.outline(rough, lambda *starts: [n for s, n in ids.items() if s.startswith(starts)], coarse, stage(BODY), arms)
    view, grid = field_of_view(rough, ids, outlines, spacing_mm, stage(VIEW), view)

    moved = move(labels, affine, grid, motion)
    swell(moved, ids, grid, stage(SWELLING))
    kinds_of = {"lung": [n for s, n in ids.items() if s.startswith("lung_")],
                "organ": [n for s, n in ids.items() if tissues.tissue_of(s) not in ("lung", "gas", "marrow")]}
    image, skin = body.fill(moved, kinds_of, outlines, hu, grid, stage(FILL))
    table = np.zeros(max(ids.values()) + 1, np.float32)
    for structure, number in ids.items():
        table[number] = hu[tissues.tissue_of(structure)]
    known = moved > 0
    image[known] = table[moved[known]]
    skin = np.maximum(skin, np.where(known, 3.0, -np.inf))                          # an arm that leaves the outline is no air

    patient = contents.Patient(grid, moved, ids, hu, phase, image)
    rng = stage(CONTENTS)
    oral = rng.random() < ORAL
    for paint in (contents.bones, contents.kidneys, contents.pancreas, contents.heart, contents.lungs):
        paint(patient, rng)
    contents.gut(patient, rng, oral)
    contents.blood_vessels(patient, rng)
    contents.texture(patient, rng)
    masks = class_masks(moved, {structure: number for structure, number in ids.items() if present[number]})
    free = ~known & (image > -160) & (image < -40) & (skin > 25)
    masks |= lesions.paint_lesions(patient, masks, free, stage(LESIONS), kinds)
    if "kidney_cyst" in masks:
        others = np.logical_or.reduce([masks[name] for name in kinds])
        masks["kidney_cyst"] |= patient.where("kidney_cyst_left", "kidney_cyst_right") & ~others
    return scan(image, skin, grid, stage(SCANNER)), masks, grid.affine, {"phase": phase, "view": view}


def with_heads(labels, affine, names):
    """The map with the heads of the femora as structures of their own, `femur_head_right` and `_left`; {structure: id}.

    TotalSegmentator's femur is the bone as far as in view. Its head is taken as the ball of HEAD_RADIUS_MM about the point
    HEAD_BELOW_MM below the middle of the bone's uppermost 4 mm.
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


def class_masks(moved, ids):
    """{class: mask} of the organs, from the ids of the structures that the whole map shows.

    A class whose absence says nothing has no mask where the map does not show it.
    """
    return {name: np.isin(moved, [ids[p] for p in parts if p in ids]) for name, parts in tissues.CLASS_PARTS.items()
            if name not in tissues.ABSENT_IS_UNKNOWN or any(p in ids for p in parts)}


def field_of_view(rough, ids, outlines, spacing_mm, rng, view=None):
    """(its name, the fine Grid): a range of z by landmarks, with organs cut off, and the skin's extent or less of it."""
    grid = outlines.grid
    z = grid.axes()[2]

    def ends(*structures):
        shown = np.flatnonzero(np.isin(rough, [ids[s] for s in structures if s in ids]).any(axis=(0, 1)))
        return (z[shown[0]], z[shown[-1]]) if len(shown) else None

    lungs = ends(*(s for s in ids if s.startswith("lung_")))
    liver, kidneys = ends("liver"), ends("kidney_left", "kidney_right")
    whole = (float(z[0]), float(z[-1]))
    possible = {"whole": whole, "slab": whole}
    if lungs and lungs[1] - lungs[0] > 150:
        possible["chest"] = (lungs[0] - rng.uniform(-60, 40), whole[1])
    if liver and kidneys:
        possible["upper abdomen"] = (kidneys[0] - rng.uniform(-40, 30), liver[1] + rng.uniform(-20, 50))
        possible["abdomen and pelvis"] = (whole[0] + rng.uniform(0, 40), liver[1] + rng.uniform(-10, 70))
    odds = np.array([VIEWS[name] for name in possible])
    drawn = list(possible)[rng.choice(len(odds), p=odds / odds.sum())]
    view = view or drawn
    if view not in possible:
        raise ValueError(f"the label map does not show what the view {view!r} needs. Give one of {', '.join(possible)}.")
    low, high = possible[view]
    if view == "slab":
        thick = min(rng.uniform(35, 160), high - low)
        low = rng.uniform(low, high - thick)
        high = low + thick
    x, y, z = (a[np.flatnonzero((outlines.skin > 0).any(axis=other))] for a, other in zip(grid.axes(), ((1, 2), (0, 2), (0, 1))))
    room = rng.uniform(8, 35, 2), rng.uniform([25, 5], [70, 30])                     # beside; behind (the table), before
    left, right, back, front = x[0] - room[0][0], x[-1] + room[0][1], y[0] - room[1][0], y[-1] + room[1][1]
    if rng.random() < CUT:
        cut = rng.uniform(0, MOST_CUT, 4)
        left, right = left + cut[0] * (right - left), right - cut[1] * (right - left)
        back, front = back + cut[2] * (front - back), front - 0.5 * cut[3] * (front - back)
    low, high = max(low, whole[0]), min(high, whole[1])
    if high - low < 30:
        low, high = whole
    return view, covering((left, back, low), (right, front, high), spacing_mm)
