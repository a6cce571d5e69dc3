"""Whether a result is plausible: for a CT of the region that the weights know, for an adult, the right way up.

A CT whose orientation is lost, or whose voxel size is wrong, is readable, and its result is nonsense. Nothing is
corrected here: each warning says what looks wrong and what to check.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..imaging.anatomy import Plane, right_side
from ..imaging.bits import bounding_box, get_bit
from ..imaging.grid import voxel_size_mm, voxel_volume_mm3
from ..imaging.spine import SHALLOW_MM, SpineSearch
from ..taxonomy import BY_NAME

NOTHING = ("nothing found. Check that the CT shows what was looked for, in Hounsfield units, the right way up and with "
           "the right voxel size")
# Weights with these classes cover chest and abdomen. If they find almost nothing, the CT shows another body part or is
# not in HU. Weights for a few organs or for tumours find little in every patient, so only nothing at all is a warning.
LANDMARKS = {"liver", "right_lung", "left_lung"}
# In 40 mm slabs of three labelled CTs, organs fill 5 % (pelvic floor) to 45 % of the body. Without liver or lung we ask
# for more, because models take air in a head for bowel.
LEAST_SHARE, LEAST_SHARE_WITHOUT_LANDMARKS = 0.02, 0.04
# In the 20 of 23 CTs that show the body's front the spine lies at 0.22 to 0.32 of its depth. Flipped front to back it
# lies at 0.47 to 0.77 in 20, of which a table in front takes a part. A neck is less deep than SHALLOW_MM, and has its
# spine in the middle. The evidence that a column is the spine is 0.16 and more in these CTs.
SPINE_IN_FRONT, IN_FRONT_OF_A_NECK, SPINE_EVIDENCE = 0.42, 0.6, 0.14

# ml of an organ that lies within the field of view as a whole: more, or less, than in any adult. The reference adults
# of ICRP Publication 89 (2002), table 2.8, have a liver of 1.4 to 1.8 kg, a spleen of 130 to 150 g, kidneys of 138 to
# 155 g each, a pancreas of 120 to 140 g. The lower bounds are a fifth to a third of that. The upper bounds have no
# source: they are round numbers above what diseases are known to make of an organ, as a spleen of some litres.
ADULT_ML = {"liver": (400, 6000), "spleen": (30, 4000), "right_kidney": (30, 3000), "left_kidney": (30, 3000),
            "pancreas": (0, 400), "right_lung": (250, 5500), "left_lung": (200, 5000), "gall_bladder": (0, 700),
            "stomach": (0, 4000), "bladder": (0, 3000), "aorta": (0, 700)}
# From the head to the feet; only organs far apart, so that a lesion or a stoop does not exchange them.
FROM_THE_HEAD = (("right_lung", "liver"), ("left_lung", "spleen"), ("left_lung", "left_kidney"),
                 ("right_lung", "right_kidney"), ("liver", "bladder"), ("right_kidney", "bladder"),
                 ("left_kidney", "bladder"), ("stomach", "bladder"), ("liver", "prostate_or_uterus"))
SURELY_FOUND_ML = 40.0   # less of an organ may be a mistake of the network
MIRRORED = "Is the CT mirrored or without its orientation, or is it situs inversus?"
SOFT_HU, NEAR_LIVER_MM, MORE_ON_ONE_SIDE = (10.0, 200.0), 50.0, 0.1     # see soft_tissue_to_the_right
LIVER_LEFT_MM = 15.0     # the middle of the liver lies 40 to 72 mm to the right of the plane in 11 CTs
BODY_MM = (100.0, 700.0)  # least and greatest width of a body that the field of view does not cut


def doubts(hu: np.ndarray, affine: np.ndarray, body: np.ndarray, bits: np.ndarray, names: Sequence[str],
           spine: SpineSearch, plane: Plane | None, counted: Mapping[str, Mapping[str, Any]],
           offered: Sequence[str]) -> list[str]:
    """All warnings about a result; there is a body.

    hu, body, bits: (D, H, W) RAS+, on the model's grid: the CT, the body mask, the masks of the classes
    affine:         (4, 4) of that grid
    names:          the class of each bit
    spine:          the search for the spine in this CT
    plane:          the patient's mid-sagittal plane; None: not looked for
    counted:        per class its "ml" and whether it "touches_border" (measures.measure)
    offered:        classes that these weights offer; only where all of them are computed, few findings are a warning
    """
    warnings = implausible_body(body, affine)
    if plane is not None and not plane.sure:
        warnings += warn_of_sides([name for name in names if counted[name]["ml"]])
    if bone_in_front(spine):
        warnings.append("the spine lies too far in front. Is the CT flipped front to back, turned, or without its "
                        "orientation?")
    centres = {name: centre for k, name in enumerate(names) if counted[name]["ml"] >= SURELY_FOUND_ML
               and (centre := _centre_mm(bits, k, affine)) is not None}
    warnings += implausible(centres, plane, counted)
    if plane is not None and plane.sure and not any(MIRRORED in warning for warning in warnings):
        if soft_tissue_to_the_right(hu, affine, body, plane, centres) < -MORE_ON_ONE_SIDE:
            warnings.append(f"there is more soft tissue on the left of the upper abdomen, where the liver should be on "
                            f"the right. {MIRRORED}")
    if set(offered) <= set(names):
        body_ml = np.count_nonzero(body) * voxel_volume_mm3(affine) / 1000
        warnings += warn_if_little_found({name: counted[name]["ml"] for name in offered}, body_ml)
    elif not any(counted[name]["ml"] for name in names):
        warnings.append(NOTHING)
    return warnings


def implausible(centres: Mapping[str, np.ndarray], plane: Plane | None,
                counted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Warnings about organs that are where, or as large as, no adult has them.

    centres: {class that is surely found: its middle (3,) in world mm}
    plane:   the patient's mid-sagittal plane; None: not known
    counted: per class its "ml" and whether it "touches_border" (measures.measure)
    """
    warnings = []
    exchanged = [f"{upper} below {lower}" for upper, lower in FROM_THE_HEAD
                 if upper in centres and lower in centres and centres[upper][2] < centres[lower][2]]
    if exchanged:
        warnings.append(f"the order from head to feet is wrong ({', '.join(exchanged)}). Is the CT stored upside down, "
                        "with slices in reverse order, or without its orientation?")
    if plane is not None and plane.sure and "liver" in centres:
        liver = centres["liver"]
        if liver[0] < float(plane.x_at(liver)) - LIVER_LEFT_MM:
            warnings.append(f"the liver lies on the left. {MIRRORED}")
    sizes = [f"{name} {counted[name]['ml']:.0f} ml ({low:,} to {high:,})" for name, (low, high) in ADULT_ML.items()
             if name in centres and (counted[name]["ml"] > high
                                     or (counted[name]["ml"] < low and not counted[name]["touches_border"]))]
    if sizes:
        warnings.append(f"no adult has organs of this size: {', '.join(sizes)}. Check the voxel size, the orientation "
                        "and the units of the CT")
    return warnings


def soft_tissue_to_the_right(hu: np.ndarray, affine: np.ndarray, body: np.ndarray, plane: Plane,
                             centres: Mapping[str, np.ndarray]) -> float:
    """How much more compact soft tissue lies right of the plane than left, in the slices of liver and spleen.

    The liver is by far the largest organ, so a network need not have found it as such.

    centres: of implausible
    returns: (right - left) / (right + left), 0.15 to 0.48 in the CTs of docs/what_a_ct_shows.md; 0 without these organs
    """
    to_index = np.linalg.inv(affine)
    slices = [float(to_index[2, :3] @ centres[name] + to_index[2, 3]) for name in ("liver", "spleen")
              if name in centres]
    if not slices:
        return 0.0
    reach = NEAR_LIVER_MM / voxel_size_mm(affine)[2]
    low, high = max(0, int(min(slices) - reach)), min(hu.shape[2], int(max(slices) + reach) + 1)
    box = (slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(low, high))
    soft = ((hu[box] > SOFT_HU[0]) & (hu[box] < SOFT_HU[1]) & body[box]).astype(np.float32)
    compact = ndimage.uniform_filter(soft, 3) > 0.9           # not muscles, vessels and walls of bowel
    right = np.count_nonzero(compact & right_side(hu.shape, affine, plane, box))
    both = np.count_nonzero(compact)
    return (2 * right - both) / both if both else 0.0


def _centre_mm(bits: np.ndarray, k: int, affine: np.ndarray) -> np.ndarray | None:
    """The mean position of a class in world mm, (3,); None where it has no voxel."""
    mask = get_bit(bits, k)
    box = bounding_box(mask)
    if box is None:
        return None
    voxel = np.add(ndimage.center_of_mass(mask[box]), [part.start for part in box])
    return np.asarray(affine)[:3, :3] @ voxel + np.asarray(affine)[:3, 3]


def implausible_body(body: np.ndarray, affine: np.ndarray) -> list[str]:
    """[a warning] where the body is too small or too wide for a patient, else [].

    body: (D, H, W) bool, RAS+
    """
    box = bounding_box(body)
    if box is None:
        return []
    spacing_mm = voxel_size_mm(affine)
    width, depth = ((part.stop - part.start) * s for part, s in zip(box, spacing_mm[:2]))
    cut = [part.start == 0 or part.stop == n for part, n in zip(box, body.shape)]
    narrow = not any(cut[:2]) and max(width, depth) < BODY_MM[0]
    if not narrow and max(width, depth) <= BODY_MM[1]:
        return []
    return [f"the body is {width:.0f} mm wide and {depth:.0f} mm deep, which no adult is. Check the voxel size: "
            "are its units millimetres?"]


def warn_if_little_found(organs_ml: Mapping[str, float], body_ml: float) -> list[str]:
    """[a warning] if the organs found fill a suspiciously small share of the body, else [].

    organs_ml: {offered class: ml found}
    body_ml:   volume of the body mask
    """
    if not any(organs_ml.values()):
        return [NOTHING]
    if not LANDMARKS <= set(organs_ml):
        return []
    found_ml, has_landmark = sum(organs_ml.values()), any(organs_ml[name] for name in LANDMARKS)
    if found_ml >= (LEAST_SHARE if has_landmark else LEAST_SHARE_WITHOUT_LANDMARKS) * body_ml:
        return []
    return [f"hardly anything found: {found_ml:.0f} ml of organs in {body_ml / 1000:.1f} litres of body. These weights "
            "know chest and abdomen. Check that the CT shows these, in Hounsfield units"]


def warn_of_sides(found: Collection[str]) -> list[str]:
    """[a warning] for a CT that does not show where the patient's middle is, where its result has paired organs.

    found: classes that have voxels
    """
    if not any(name in BY_NAME and BY_NAME[name].partner for name in found):
        return []
    return ["right and left are not checked: this CT does not show surely where the middle of the patient is, as in a "
            "field of view of one side. Right and left organs are as the network found them; check them"]


def bone_in_front(spine: SpineSearch) -> bool:
    """Whether the spine lies farther in front than a patient's, as where a CT is flipped front to back, or turned.

    The spine and not all bone is judged: with a sternum, or with contrast medium in heart and bowel, most of what is
    bright may lie in front. False where no spine is found, and where the field of view cuts the body in front.
    """
    search = spine.anywhere()
    column = search.column()
    if column is None or not column.is_vertebrae or column.evidence < SPINE_EVIDENCE:
        return False
    place = search.place_in_depth(column)
    if place is None:
        return False
    share, depth_mm = place
    return share > (SPINE_IN_FRONT if depth_mm > SHALLOW_MM else IN_FRONT_OF_A_NECK)
