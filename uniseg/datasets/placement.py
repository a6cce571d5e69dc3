"""Whether the labels of a case lie where the image shows their organs: a flipped or misplaced label map is refused.

A label map that was saved along other axes than its image has the right shape and the right affine, and nothing else
tells. But then a liver lies in fat, a lung in muscle, an organ in the air around the patient:

    flipped       some flip of the labels puts FITS_BETTER times fewer voxels into HU that their organ cannot have
    in the air    more than half of an organ lies in air, or outside the body

Lungs and bowel hold air by nature: lungs are judged by their own HU, bowel only by whether it lies outside the body.
Flips are judged by large organs of even HU. A pancreas is often fatty, and a small organ is all edge. What real CTs
give stands beside the limits below. Read masks.py first.
"""

from __future__ import annotations

import itertools

import numpy as np

from .. import taxonomy
from ..imaging.body import LUNG_HU, TISSUE_HU, body_mask
from ..imaging.grid import voxel_size_mm
from ..imaging.volume import Volume

SAMPLE_MM = 4.0                   # step at which voxels are looked at
LEAST_ML, LEAST_VOXELS = 2.0, 20  # smaller structures decide nothing
FAT_HU = -30.0                    # parenchyma and blood are brighter; fat and air are darker
BONE_HU = 100.0                   # the head of the femur is brighter
LUNGS, FEMURS = ("right_lung", "left_lung"), ("right_head_of_femur", "left_head_of_femur")
EVEN = ("liver", "spleen", "right_kidney", "left_kidney", "aorta", "postcava", *LUNGS, *FEMURS)   # judged for flips
HOLLOW = ("esophagus", "stomach", "duodenum", "colon", "intestine", "rectum")                     # may hold gas
# Of ten labelled CTs as they are, 0.003 to 0.073 of the voxels are wrong (0.12 where only tips of lungs are seen), and
# no flip fits better. Flipped in any way: 0.10 to 0.98, and the right way fits 3.6 to 199 times better. One flip is not
# seen, head to feet of 20 slices of 2 mm: 0.025, and 6 times better.
WRONG_SHARE, FITS_BETTER = 0.06, 3.0
AXES = ("left to right", "front to back", "head to feet")
FLIPS = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]      # (), (0,), (1,), ... (0, 1, 2)


class Placement:
    """Collects, class by class, how well the masks of a case fit its image.

    ct: the case's image
    """

    def __init__(self, ct: Volume) -> None:
        self.ct = ct
        spacing = voxel_size_mm(ct.affine)
        steps = [max(1, int(SAMPLE_MM / s)) for s in spacing]
        self.sample = tuple(slice(s // 2, None, s) for s in steps)
        self.voxel_ml = float(np.prod(spacing) * np.prod(steps)) / 1000
        self.views = [np.flip(ct.array, axes)[self.sample] for axes in FLIPS]           # views, not copies
        self.wrong: list[list[float]] = []           # a row per class: share of wrong voxels for each of FLIPS
        self.in_air: dict[str, float] = {}           # class -> share of its voxels, where that is more than half

    def add(self, name: str, mask: np.ndarray) -> None:
        """Judge the mask (D, H, W) of one class."""
        where = np.nonzero(mask[self.sample])
        voxels = len(where[0])
        if voxels < LEAST_VOXELS or voxels * self.voxel_ml < LEAST_ML:
            return
        hu = self.views[0][where]
        solid = name in taxonomy.BY_NAME and name not in HOLLOW + LUNGS and taxonomy.kind_of(name) != taxonomy.TUMOUR
        if solid:
            self._note_air(name, float(np.mean(hu < TISSUE_HU)))
        elif np.mean(hu < LUNG_HU) > 0.5:                           # gas, or air around the patient
            body = body_mask(self.ct.array, voxel_size_mm(self.ct.affine))[self.sample]
            self._note_air(name, float(np.mean(~body[where] & (hu < LUNG_HU))))
        if name in EVEN:
            self.wrong.append([float(np.mean(is_wrong(name, view[where]))) for view in self.views])

    def _note_air(self, name: str, share: float) -> None:
        if share > 0.5:
            self.in_air[name] = share

    def problem(self) -> str:
        """What is wrong with the masks that were added, without the name of a file; "" where nothing is."""
        shares = np.mean(self.wrong, axis=0) if self.wrong else np.zeros(len(FLIPS))
        best = int(shares.argmin())
        if shares[0] >= WRONG_SHARE and shares[best] * FITS_BETTER <= shares[0]:
            axes = " and ".join(AXES[axis] for axis in FLIPS[best])
            return (f"the labels do not lie where the image shows their organs: {shares[0]:.0%} of their voxels have "
                    f"HU that their organ cannot have, {shares[best]:.0%} if the labels are flipped {axes}. Save them "
                    "along the axes of the image.")
        if self.in_air:
            listed = ", ".join(f"{name} ({share:.0%})" for name, share in self.in_air.items())
            return f"labels lie in air or outside the body: {listed}. Is this the label map of this image? Correct it."
        return ""


def is_wrong(name: str, hu: np.ndarray) -> np.ndarray:
    """Bool array: where `hu` cannot be the value of a voxel of this class, apart from noise and its edge.

    >>> is_wrong("liver", np.array([-500, -100, 60])), is_wrong("left_lung", np.array([-850, 40]))
    (array([ True,  True, False]), array([False,  True]))
    """
    if name in LUNGS:
        return (hu > TISSUE_HU) | (hu < LUNG_HU - 20)
    return hu < (BONE_HU if name in FEMURS else FAT_HU)
