"""Whether a result is plausible for a CT of the region that the weights know."""

from collections.abc import Mapping

# Weights with these classes cover chest and abdomen. If they find almost nothing, the CT shows another body part or is
# not in HU. Weights for a few organs or for tumours find little in every patient, so they give no warning.
LANDMARKS = {"liver", "right_lung", "left_lung"}
LEAST_BODY_ML = 1000.0   # less body than this is a slice or two, or no patient
# In 40 mm slabs of three labelled CTs, organs fill 5 % (pelvic floor) to 45 % of the body. Without liver or lung we ask
# for more, because models take air in a head for bowel.
LEAST_SHARE, LEAST_SHARE_WITHOUT_LANDMARKS = 0.02, 0.04


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
