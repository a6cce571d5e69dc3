"""augment.py: a deformation moves image and labels together, reaches no further than it says, and mirrors nothing.

The augmented patches themselves: test_data.py.
"""

import numpy as np
import pytest

from uniseg.datasets.augment import Deformation, rotation


def test_a_rotation_of_small_angles_keeps_lengths_and_is_no_mirror():
    for seed in range(10):
        matrix = rotation(np.random.default_rng(seed).uniform(-0.3, 0.3, 3))
        assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.linalg.det(matrix) == pytest.approx(1)


def test_image_and_labels_are_deformed_together_about_the_centre():
    """A ball of 1000 HU and radius 10 in the middle: where the deformed image is bright its label is.

    Zooms of 0.76 to 1.34 leave its rim between 7.6 and 13.4 voxels from the middle.
    """
    volumes = []
    for seed in range(8):
        deform = Deformation((40, 40, 40), np.random.default_rng(seed))
        middle = (np.array(deform.reach)[:, None, None, None] - 1) / 2
        distance = np.sqrt(((np.indices(deform.reach) - middle) ** 2).sum(axis=0))
        hu, bits = deform(np.where(distance < 10, 1000, 0).astype(np.int16), (distance < 10).astype(np.uint32))
        assert hu.shape == bits.shape == (40, 40, 40) and hu.dtype == np.float32 and bits.dtype == np.uint32
        assert ((hu > 500) != (bits == 1)).mean() < 0.01
        here = np.sqrt(((np.indices(bits.shape) - 19.5) ** 2).sum(axis=0))
        assert bits[here < 7].all() and not bits[here > 14].any()
        volumes.append(int(bits.sum()))
    assert max(volumes) > 1.3 * min(volumes)                                                  # something happened


def test_a_patch_is_made_of_no_voxel_beyond_its_reach():
    """mode="nearest" would repeat the outermost voxels: a volume whose outermost voxels differ must not show them."""
    for seed in range(8):
        deform = Deformation((20, 30, 24), np.random.default_rng(seed))
        source = np.zeros(deform.reach, np.int16)
        source[1:-1, 1:-1, 1:-1] = 1
        assert deform(source, source.astype(np.uint32))[1].all()
