"""Whether a result is plausible for a CT of the region that the weights know."""

from collections.abc import Collection, Mapping

import numpy as np

from ..imaging.spine import SpineSearch
from ..taxonomy import BY_NAME

# Weights with these classes cover chest and abdomen. If they find almost nothing, the CT shows another body part or is
# not in HU. Weights for a few organs or for tumours find little in every patient, so they give no warning.
LANDMARKS = {"liver", "right_lung", "left_lung"}
LEAST_BODY_ML = 1000.0   # less body than this is a slice or two, or no patient
# In 40 mm slabs of three labelled CTs, organs fill 5 % (pelvic floor) to 45 % of the body. Without liver or lung we ask
# for more, because models take air in a head for bowel.
LEAST_SHARE, LEAST_SHARE_WITHOUT_LANDMARKS = 0.02, 0.04
# The spine lies at 0.12 to 0.49 of the body's depth in 23 CTs, and at 0.67 to 0.88 in 21 of them flipped front to back.
# The other two are a neck and a narrow field of view, in which it lies in the middle. The evidence that a column is the
# spine is 0.16 and more in these CTs.
SPINE_IN_FRONT, SPINE_EVIDENCE = 0.6, 0.14


def warn_if_little_found(organs_ml: Mapping[str, float], body_ml: float) -> list[str]:
    """[a warning] if the organs found fill a suspiciously small share of the body, else [].

    organs_ml: {offered class: ml found}
    body_ml:   volume of the body mask
    """
    if body_ml < LEAST_BODY_ML or not LANDMARKS <= set(organs_ml):
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


def bone_in_front(hu: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the spine lies in front of the body's middle, as where a CT is flipped front to back, or turned.

    The spine and not all bone is judged: with a sternum, or with contrast medium in heart and bowel, most of what is
    bright may lie in front. False where no spine is found, and where the field of view cuts the body in front.

    hu: (D, H, W) RAS+
    """
    search = SpineSearch(hu, affine, back_share=1.0)
    column = search.column()
    if column is None or not column.is_vertebrae or column.evidence < SPINE_EVIDENCE:
        return False
    depth = search.share_of_depth(column)
    return depth is not None and depth > SPINE_IN_FRONT
