"""plausibility.py: what is said about a result, or a CT, that is hardly right. Ids: docs/faults.md."""

import numpy as np
import pytest

from uniseg.inference.plausibility import bone_in_front, warn_of_sides
from uniseg.phantom import make_phantom


@pytest.fixture(scope="module")
def patient():
    hu, _, affine = make_phantom((4.0, 4.0, 8.0), seed=2)
    return hu, affine


@pytest.mark.parametrize("turn, in_front", [
    (np.s_[:, :], False), (np.s_[::-1], False), (np.s_[:, ::-1], True), (np.s_[::-1, ::-1], True),
    (np.s_[:, :30], False)])                                # only the back half: the front is not in view
def test_c14_a_spine_in_front_is_seen_in_whole_bodies(patient, turn, in_front):
    hu, affine = patient
    assert bone_in_front(hu[turn], affine) == in_front


def test_c14_without_a_spine_nothing_is_said():
    assert not bone_in_front(np.full((20, 20, 5), -1000, np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))


def test_c10_sides_are_warned_about_where_an_organ_has_one():
    assert warn_of_sides(["liver", "spleen"]) == [] == warn_of_sides([])
    [warning] = warn_of_sides(["liver", "left_kidney"])
    assert "right and left are not checked" in warning
