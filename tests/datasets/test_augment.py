"""augment.py: the smooth deformation moves image and labels together, as far as asked, and folds and mirrors nothing."""

import numpy as np
import pytest

from uniseg.datasets.augment import Deformation, smooth_field


@pytest.mark.parametrize("size, most", [((40, 30, 50), (5.0, 5.0, 5.0)), ((16, 16, 16), (1.0, 2.0, 0.5)), ((60, 60, 60), (10.0, 0.0, 3.0))])
def test_a_field_moves_voxels_at_most_so_far_and_folds_nothing_over(size, most):
    for seed in range(10):
        field = smooth_field(size, most, np.random.default_rng(seed))
        assert field.shape == (3, *size)
        assert (abs(field).max(axis=(1, 2, 3)) <= np.array(most) + 1e-9).all() and field.any()
        gradient = np.stack([np.stack(np.gradient(f)) for f in field])                        # (3, 3, D, H, W)
        jacobian = gradient.transpose(2, 3, 4, 0, 1) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0                                              # no fold, no mirror


def test_the_worst_field_there_can_be_still_folds_nothing_over():
    """Control points at their limits in turn: the steepest field."""
    class Extremes:
        def uniform(self, low, high, shape):
            return np.where(np.indices(shape).sum(axis=0) % 2, low, high).astype(float)

    field = smooth_field((80, 80, 80), (6.0, 6.0, 6.0), Extremes())
    gradient = np.stack([np.stack(np.gradient(f)) for f in field])
    assert abs(gradient).sum(axis=1).max() < 1


def test_a_field_is_a_smooth_curve_through_the_patch():
    field = smooth_field((64, 8, 8), (8.0, 0.0, 0.0), np.random.default_rng(3))
    assert abs(np.diff(field[0], n=2, axis=0)).max() < 0.05 and not field[1:].any()


def test_image_and_labels_are_deformed_together_and_by_no_more_than_asked():
    """A ball of 1000 HU: where the deformed image is bright its label is, and no voxel of it lies further out than 4 voxels."""
    for seed in range(5):
        deform = Deformation((40, 40, 40), np.random.default_rng(seed), turn_and_zoom=False, displacement_voxels=(4.0, 4.0, 4.0))
        distance = np.sqrt(((np.indices(deform.reach) - (np.array(deform.reach)[:, None, None, None] - 1) / 2) ** 2).sum(axis=0))
        hu, bits = deform(np.where(distance < 10, 1000, 0).astype(np.int16), (distance < 10).astype(np.uint32))
        assert hu.shape == bits.shape == (40, 40, 40) and hu.dtype == np.float32 and bits.dtype == np.uint32
        assert ((hu > 500) != (bits == 1)).mean() < 0.01
        here = np.sqrt(((np.indices(bits.shape) - 19.5) ** 2).sum(axis=0))
        assert here[bits == 1].max() <= 10 + 4 * np.sqrt(3) and bits[here < 10 - 4 * np.sqrt(3)].all()
        assert (bits != (here < 10)).sum() > 200                                              # something happened


def test_without_displacement_and_turn_a_patch_is_the_volume_itself():
    deform = Deformation((6, 8, 10), np.random.default_rng(0), turn_and_zoom=False)
    source = np.random.default_rng(1).integers(-1000, 1000, deform.reach).astype(np.int16)
    hu, bits = deform(source, source.astype(np.int32))
    assert deform.reach == (8, 10, 12) and np.array_equal(hu, source[1:-1, 1:-1, 1:-1]) and np.array_equal(bits, hu)
