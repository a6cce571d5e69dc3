"""Whether the values of a volume can be Hounsfield units: air is -1000 HU, water 0, soft tissue between -150 and 150.

A CT that is stored without its intercept, clipped, or rescaled twice is readable, and its result is wrong. Nothing is
corrected here: the warnings say what looks wrong.
"""

import numpy as np

NOT_HU = "results are unreliable unless the CT is in Hounsfield units"
PADDING = -1000.0      # scanners' padding is read as -1024, the lowest HU
ENOUGH = 500            # coarse voxels, for a judgement by shares of them
TISSUE, SOFT = -300.0, (-200.0, 200.0)     # HU: above is tissue; most of it is fat and soft tissue
LEAST_TISSUE = 0.01     # of the voxels; a CT of the lungs alone has more
LEAST_SOFT = 0.2        # of the tissue; bones, contrast and metal are the rest
LEAST_AIR = 0.05        # of the voxels; fewer dark ones say nothing
AIR = -850.0            # the darkest of the air, or of the lungs, are below


def implausible_hu(values: np.ndarray) -> str | None:
    """What is doubtful about the values as Hounsfield units: a sentence, or None.

    values: (N,) of the voxels within the field of view, from all over the volume
    """
    if not values.size or values.min() == values.max():
        return None                                           # constant: the search for a body warns about it
    low, high = float(np.percentile(values, 0.5)), float(values.max())
    if low >= 0 and high <= 255:
        return f"values from {low:g} to {high:g} look like a grey picture, not HU; {NOT_HU}"
    # Stored values have no fat (-100), lung or air; what is below is padding.
    below = np.mean((values > PADDING) & (values < -30))
    if np.mean((values > 900) & (values < 1200)) > 0.05 and below < 0.02:
        return f"values from {low:g} to {high:g} look like HU + 1024; subtract 1024 before use"
    if low >= -200:
        return f"values from {low:g} to {high:g} hold no air (below -200 HU); {NOT_HU}"
    if values.size < ENOUGH:
        return None
    lowest, dark = float(values.min()), values < -200
    if lowest > AIR and np.count_nonzero(values == lowest) > max(20, 0.02 * values.size):
        return (f"the CT is clipped: nothing is below {lowest:g} HU, so that air and lungs look alike; results for "
                "lungs are unreliable. Use the CT as the scanner stored it")
    if dark.mean() > LEAST_AIR and np.percentile(values, 1) > AIR:
        return f"the darkest values are about {np.percentile(values, 1):.0f} HU, but air is -1000 HU; {NOT_HU}"
    tissue = values > TISSUE
    if tissue.mean() < LEAST_TISSUE:
        return (f"hardly anything is denser than air ({tissue.mean():.1%} of the voxels above {TISSUE:g} HU), as after "
                f"an intercept applied twice; {NOT_HU}")
    if np.mean((values > SOFT[0]) & (values < SOFT[1])) < LEAST_SOFT * tissue.mean():
        return f"hardly anything has the HU of soft tissue ({SOFT[0]:g} to {SOFT[1]:g}); {NOT_HU}"
    return None
