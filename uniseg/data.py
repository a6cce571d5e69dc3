"""Training patches from cached cases: Sections 3.2.4 and 4.1.2.

    a case as published -> cached case (datasets/cases.py): int16 HU and one bit per class on the 1.5 mm RAS+ grid
      -> patch: image (1, D, H, W) in [0, 1], bits (D, H, W), labelled (K,)

Voxels of which nobody says what they hold travel as the highest of the bits, the sign, so that the loss can leave them
out (losses.without_ignored).

`python -m uniseg.data ROOT` checks the data before training (datasets/check.py).
Read datasets/find.py, datasets/masks.py and datasets/cases.py first. datasets/augment.py changes the patches.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .datasets import check
from .datasets.augment import Deformation, degrade, recontrast, rotate_90
from .datasets.cases import Case
from .imaging.bits import bit_dtype, get_bit
from .imaging.volume import AIR_HU, scale_hu

SHIFT = 0.1              # R: largest intensity shift, of an image in [0, 1]
IGNORED = np.int64(-1 << 63)     # the highest bit, and so the sign, of an ignored voxel
PLANES = 8               # of a patch whose bits are reordered together
BACKGROUND_TRIES = 64    # a case that is all foreground has no background voxel to find


class PatchDataset:
    """Training patches by number: sample g is a pure function of (seed, g).

    A resumed run therefore draws what it would have drawn, and neither the workers nor the number of processes change
    what is drawn. Every dataset has the same probability, then every case of it (Section 4.1.2).

    cases:   the training cases; classes: names of the network's K classes, in the order of its channels
    config:  a training.recipe.TrainConfig, whose fields on preprocessing, patches and augmentation hold here
    Raises ValueError where config.dataset_weights names a dataset that has no case.
    """

    def __init__(self, cases: Sequence[Case], classes: Sequence[str], config: Any) -> None:
        self.classes, self.config = classes, config
        by_dataset: dict[str, list[Case]] = {}
        for case in cases:
            by_dataset.setdefault(case.dataset, []).append(case)
        self.groups = [by_dataset[name] for name in sorted(by_dataset)]
        self.shares = _shares(sorted(by_dataset), dict(config.dataset_weights))

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The sample of this number, as a dict:

        image     (1, D, H, W) float32 in [0, 1], shifted by up to SHIFT
        bits      (D, H, W) int64; bit k is class k; negative where nobody says what the voxel holds
        labelled  (K,) bool; True where the case's dataset annotates the class
        case      id of the case
        """
        rng = np.random.default_rng((self.config.seed, int(number)))
        n = len(self.groups)
        group = self.groups[rng.integers(n) if self.shares is None else rng.choice(n, p=self.shares)]
        case = group[rng.integers(len(group))]
        centre = self._centre(case, rng)
        if self.config.augment == "paper":
            hu, bits = self._cut(case.image, centre, AIR_HU), self._cut(case.bits, centre, 0)
        else:
            hu, bits = self._deformed(case, centre, rng)
        image = scale_hu(hu, self.config.hu_window)
        if rng.random() < self.config.rotate_probability:
            square = self.config.patch_size[0] == self.config.patch_size[1]
            quarter_turns = int(rng.integers(1, 4)) if square else 2
            image, bits = rotate_90(image, quarter_turns), rotate_90(bits, quarter_turns)
        if rng.random() < self.config.shift_probability:
            image = image + rng.uniform(-SHIFT, SHIFT)
        return {"image": np.ascontiguousarray(image, np.float32)[None], "bits": self._channel_bits(bits, case),
                "labelled": np.array([name in case.names for name in self.classes]), "case": case.id}

    def _centre(self, case: Case, rng: np.random.Generator) -> tuple[int, ...]:
        """Index (D, H, W) of the patch's centre: foreground with probability config.foreground, else background.

        A background voxel belongs to no annotated class. With config.background "tissue" its scaled image is also above
        0, as in the released code; "anywhere" takes air beside the patient too.
        """
        bits = case.bits
        foreground = case.array("foreground")
        if len(foreground) and rng.random() < self.config.foreground:
            lesions = case.array("lesions") if self.config.lesions else ()
            if len(lesions) and rng.random() < self.config.lesions:    # beyond the paper: a lesion, however small
                return _index(rng.choice(lesions[rng.integers(len(lesions))]), bits.shape)
            present = [k for k, name in enumerate(case.names) if case.voxels.get(name) and name in self.classes]
            if present and rng.random() < self.config.balance:         # beyond the paper: a class, then a voxel of it
                foreground = case.array(f"voxels_{present[rng.integers(len(present))]}")
            return _index(foreground[rng.integers(len(foreground))], bits.shape)
        in_air = None
        for _ in range(BACKGROUND_TRIES):
            centre = tuple(int(rng.integers(n)) for n in bits.shape)
            if bits[centre] == 0:
                if self.config.background == "anywhere" or case.image[centre] > self.config.hu_window[0]:
                    return centre
                in_air = centre
        return in_air or centre

    def _cut(self, array: np.ndarray, centre: Sequence[int], air: int,
             size: Sequence[int] | None = None) -> np.ndarray:
        """Cut a patch of `size` (default: the patch size) about a centre voxel.

        Where the case is large enough the patch is moved inside it. Where it is not, the patch is padded, with the
        value `air` or with the edge voxels of the case (config.pad).
        """
        size = size or self.config.patch_size
        starts = [min(max(c - w // 2, 0), n - w) if n >= w else -((w - n) // 2)
                  for c, n, w in zip(centre, array.shape, size)]
        source = tuple(slice(max(s, 0), max(s, 0) + min(n, w)) for s, n, w in zip(starts, array.shape, size))
        block = np.asarray(array[source])
        if block.shape == tuple(size):
            return block
        pads = [(max(-s, 0), w - max(-s, 0) - m) for s, w, m in zip(starts, size, block.shape)]
        if self.config.pad == "edge":
            return np.pad(block, pads, mode="edge")
        return np.pad(block, pads, constant_values=air)

    def _deformed(self, case: Case, centre: Sequence[int],
                  rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Beyond the paper (--augment strong or contrast): HU and bits of a patch with another shape and contrast."""
        deform = Deformation(self.config.patch_size, rng)
        hu, bits = deform(self._cut(case.image, centre, AIR_HU, deform.reach),
                          self._cut(case.bits, centre, 0, deform.reach))
        if self.config.augment == "contrast":
            hu = recontrast(hu, bits & bits.dtype.type((1 << len(case.names)) - 1), rng)
        else:
            hu = hu * rng.uniform(0.9, 1.1) + rng.uniform(-25, 25)
        return degrade(hu, rng), bits

    def _channel_bits(self, bits: np.ndarray, case: Case) -> np.ndarray:
        """Reorder a case's bits into the network's channels: (D, H, W) int64.

        Bits that are shifted by the same distance are shifted together, a few planes at a time, which stay in the
        processor's cache.
        """
        masks: dict[int, int] = {}                             # channel - bit: mask of the bits that are shifted so far
        for k, name in enumerate(case.names):
            if name in self.classes:
                distance = self.classes.index(name) - k
                masks[distance] = masks.get(distance, 0) | 1 << k
        unsigned = np.promote_types(bits.dtype, bit_dtype(len(self.classes))).type
        out = np.empty(bits.shape, np.int64)
        moved, all_moved = (np.empty((PLANES, *bits.shape[1:]), unsigned) for _ in range(2))
        for first in range(0, len(bits), PLANES):
            planes = bits[first:first + PLANES]
            part, whole = moved[:len(planes)], all_moved[:len(planes)]
            whole.fill(0)
            for distance, mask in masks.items():
                np.bitwise_and(planes, unsigned(mask), out=part)
                shift = np.left_shift if distance >= 0 else np.right_shift
                np.bitwise_or(whole, shift(part, unsigned(abs(distance)), out=part), out=whole)
            out[first:first + PLANES] = whole
        if case.ignored:
            out[get_bit(bits, len(case.names))] |= IGNORED
        return out


def _index(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index (D, H, W) of the voxel with this number in a flat array."""
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))


def _shares(names: Sequence[str], weights: dict[str, float]) -> np.ndarray | None:
    """The probability of each dataset, None where all are the same. weights: {name: weight}, 1 for the others."""
    if not weights:
        return None
    if unknown := sorted(set(weights) - set(names)):
        raise ValueError(f"--dataset-weights {unknown[0]}: no such dataset among {', '.join(names)}.")
    each = np.array([weights.get(name, 1.0) for name in names])
    return each / each.sum()


if __name__ == "__main__":        # python -m uniseg.data ROOT: look at the data before training
    sys.exit(check.main())
