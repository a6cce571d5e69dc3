"""From the files of a case to training patches: Sections 3.2.4, 4.1.1 and 4.1.2.

    a case of a Dataset (datasets.py): image and label map as published
      -> cached case: int16 HU and one bit a class on the 1.5 mm RAS+ grid, memory-mapped
      -> patch: image (1, D, H, W) in [0, 1], bits (D, H, W), labelled (K,)

`python -m uniseg.data ROOT` checks the data before training (check.py).
Read datasets.py, volume.py and anatomy.py first; augment.py changes the patches.
"""

import sys

import numpy as np

from .datasets import check
from .datasets.augment import Deformation, degrade, recontrast, rotate_90
from .imaging.bits import bit_dtype
from .imaging.volume import AIR_HU, scale_hu


class PatchDataset:
    """Training patches by number: sample g is a pure function of (seed, g).

    Hence nothing about the draw has to be saved for an exact resume, and neither workers nor the number of processes
    change what is drawn. Each dataset has the same probability, then each of its cases (Section 4.1.2).
    """

    def __init__(self, cases, classes, preprocessing, patch_size=(96, 96, 96), seed=0, foreground=2 / 3,
                 rotate_probability=0.1, shift_probability=0.2, balance=0.0, augment="paper", lesions=0.0, deform_mm=0.0,
                 dataset_weights=None):
        self.groups = {}                       # dataset -> its cases
        for case in cases:
            self.groups.setdefault(case.dataset, []).append(case)
        self.groups = [group for _, group in sorted(self.groups.items())]
        self.classes, self.preprocessing, self.patch_size, self.seed = classes, preprocessing, tuple(patch_size), seed
        self.foreground = foreground           # foreground : background centres = 2 : 1
        self.rotate_probability, self.shift_probability = rotate_probability, shift_probability
        self.balance, self.augment, self.lesions, self.deform_mm = balance, augment, lesions, deform_mm
        self.shares = None                     # probability of each group, where they differ (beyond the paper)
        if dataset_weights:
            names = [group[0].dataset for group in self.groups]
            if unknown := sorted(set(dataset_weights) - set(names)):
                raise ValueError(f"--dataset-weights {unknown[0]}: no such dataset among {', '.join(names)}.")
            weights = np.array([dataset_weights.get(name, 1.0) for name in names])
            self.shares = weights / weights.sum()

    def __getitem__(self, number):
        """dict of image (1, D, H, W) float32, [0, 1] shifted by up to 0.1; bits (D, H, W) int64, bit k is class k;
        labelled (K,) bool; case, its name."""
        rng = np.random.default_rng((self.seed, int(number)))
        group = self.groups[rng.integers(len(self.groups)) if self.shares is None else rng.choice(len(self.groups), p=self.shares)]
        case = group[rng.integers(len(group))]
        centre = self._centre(case, rng)
        if self.augment != "paper" or self.deform_mm:
            hu, bits = self._deformed_patch(case, centre, rng)
        else:
            hu, bits = self._patch(case.image, centre, AIR_HU), self._patch(case.bits, centre, 0)
        image = scale_hu(hu, self.preprocessing.hu_window)
        if rng.random() < self.rotate_probability:
            square = self.patch_size[0] == self.patch_size[1]
            times = int(rng.integers(1, 4)) if square else 2
            image, bits = rotate_90(image, times), rotate_90(bits, times)
        if rng.random() < self.shift_probability:
            image = image + rng.uniform(-0.1, 0.1)             # released code: offsets 0.10
        return {"image": np.ascontiguousarray(image, np.float32)[None], "bits": self._channel_bits(bits, case.names),
                "labelled": np.array([name in case.names for name in self.classes]), "case": case.id}

    def _centre(self, case, rng):
        """Index of the patch's centre voxel: foreground with probability 2/3, else background."""
        bits = case.bits
        foreground = case.array("foreground")
        if len(foreground) and rng.random() < self.foreground:
            lesions = case.array("lesions") if self.lesions else ()
            if len(lesions) and rng.random() < self.lesions:   # beyond the paper: each lesion alike, however small
                return np.unravel_index(int(rng.choice(lesions[rng.integers(len(lesions))])), bits.shape)
            present = [k for k, name in enumerate(case.names) if case.voxels.get(name) and name in self.classes]
            if present and rng.random() < self.balance:        # beyond the paper: a class first, then one of its voxels
                foreground = case.array(f"voxels_{present[rng.integers(len(present))]}")
            return np.unravel_index(int(foreground[rng.integers(len(foreground))]), bits.shape)
        for _ in range(64):                                    # a volume that is all foreground has no background
            centre = tuple(int(rng.integers(n)) for n in bits.shape)
            if bits[centre] == 0:
                break
        return centre

    def _patch(self, array, centre, fill, size=None):
        """Cut a patch, moved inside where the volume is large enough, padded (Preprocessing.pad; `fill`: air) where not."""
        size = size or self.patch_size
        starts = [min(max(c - w // 2, 0), n - w) if n >= w else -((w - n) // 2)
                  for c, n, w in zip(centre, array.shape, size)]
        source = tuple(slice(max(s, 0), max(s, 0) + min(n, w)) for s, n, w in zip(starts, array.shape, size))
        block = np.asarray(array[source])
        if block.shape == tuple(size):
            return block
        pads = [(max(-s, 0), w - max(-s, 0) - m) for s, w, m in zip(starts, size, block.shape)]
        if self.preprocessing.pad == "edge":
            return np.pad(block, pads, mode="edge")
        return np.pad(block, pads, constant_values=fill)

    def _deformed_patch(self, case, centre, rng):
        """Beyond the paper (--augment strong or contrast, --deform): another shape, another contrast, blur, noise."""
        strong = self.augment != "paper"
        deform = Deformation(self.patch_size, rng, strong, self.deform_mm / np.array(self.preprocessing.spacing_mm))
        hu, bits = deform(*(self._patch(a, centre, fill, deform.reach) for a, fill in ((case.image, AIR_HU), (case.bits, 0))))
        if self.augment == "contrast":
            hu = recontrast(hu, bits, rng)
        elif strong:
            hu = hu * rng.uniform(0.9, 1.1) + rng.uniform(-25, 25)
        return degrade(hu, rng) if strong else hu, bits

    def _channel_bits(self, bits, names):
        """Reorder a case's bits into the model's channels: (D, H, W) int64."""
        moves = {}                                             # channel - bit -> mask of the bits that move so far
        for k, name in enumerate(names):
            if name in self.classes:
                move = self.classes.index(name) - k
                moves[move] = moves.get(move, 0) | 1 << k
        unsigned = np.promote_types(bits.dtype, bit_dtype(len(self.classes))).type
        out = np.empty(bits.shape, np.int64)
        for plane, channels in zip(bits, out):                 # a plane at a time stays in the processor's cache
            moved = np.zeros(plane.shape, unsigned)
            for move, mask in moves.items():
                part = plane & unsigned(mask)
                moved |= part << unsigned(move) if move >= 0 else part >> unsigned(-move)
            channels[:] = moved
        return out


if __name__ == "__main__":        # python -m uniseg.data ROOT: look at the data before training
    sys.exit(check.main())
