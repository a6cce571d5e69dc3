"""Whether a result is plausible for a CT that the weights know."""


# Weights that know these know chest and abdomen. Where they find hardly anything in a body, it is another part of the body,
# or no CT they can read. Weights for a few organs or tumours find little in every patient.
LANDMARKS = {"liver", "right_lung", "left_lung"}
LEAST_BODY_ML = 1000.0   # less is a slice or two, or no patient
# Of 40 mm thick slabs of three CTs of chest and abdomen, organs are 5 (pelvic floor) to 45 % of the body, by their labels; where
# there is neither liver nor lung it takes more to be believed, as bowel is what weights see in the air of a head.
LEAST_SHARE, LEAST_SHARE_WITHOUT_LANDMARKS = 0.02, 0.04


def hardly_anything(offered_ml, body_ml):
    """[] or [the warning that the organs found are a suspiciously small share of the body].

    offered_ml: {class that is offered: ml found, as the result has it}
    """
    if body_ml < LEAST_BODY_ML or not LANDMARKS <= set(offered_ml):
        return []
    found_ml, placed = sum(offered_ml.values()), any(offered_ml[name] for name in LANDMARKS)
    if found_ml >= (LEAST_SHARE if placed else LEAST_SHARE_WITHOUT_LANDMARKS) * body_ml:
        return []
    return [f"hardly anything found: {found_ml:.0f} ml of organs in {body_ml / 1000:.1f} litres of body. These weights know chest "
            "and abdomen. Check that the CT shows these, in Hounsfield units"]
