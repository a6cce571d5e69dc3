"""plausibility.py: what is said about a result, or a CT, that is hardly right. Ids: docs/faults.md."""

import numpy as np
import pytest

from uniseg.imaging.anatomy import Plane
from uniseg.imaging.spine import SpineSearch
from uniseg.inference.plausibility import (
    bone_in_front,
    implausible,
    implausible_body,
    soft_tissue_to_the_right,
    warn_if_little_found,
    warn_of_sides,
)
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
    assert bone_in_front(SpineSearch(hu[turn], affine)) == in_front


def test_c14_without_a_spine_nothing_is_said():
    assert not bone_in_front(SpineSearch(np.full((20, 20, 5), -1000, np.int16), np.diag([4.0, 4.0, 4.0, 1.0])))


def test_c10_sides_are_warned_about_where_an_organ_has_one():
    assert warn_of_sides(["liver", "spleen"]) == [] == warn_of_sides([])
    [warning] = warn_of_sides(["liver", "left_kidney"])
    assert "right and left are not checked" in warning


# ------------------------------------------------------------------------------------------------- where organs lie

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])                     # 1 ml a voxel
PLANE = Plane(195.0, 0.0, 0.0)


def found(boxes):
    """(centres, counted) of organs that are boxes of a (40, 30, 60) grid: {name: (start, stop) of the three axes}."""
    counted = {name: {"ml": float(np.prod(np.subtract(high, low))), "touches_border": False}
               for name, (low, high) in boxes.items()}
    return {name: 10.0 * (np.add(low, high) - 1) / 2 for name, (low, high) in boxes.items()}, counted


PATIENT = {"liver": ((21, 5, 30), (36, 19, 38)), "spleen": ((4, 4, 31), (10, 9, 37)),
           "right_kidney": ((24, 4, 24), (29, 9, 30)), "left_kidney": ((9, 4, 25), (14, 9, 31)),
           "right_lung": ((22, 4, 38), (34, 16, 58)), "left_lung": ((5, 4, 38), (17, 16, 58)),
           "bladder": ((17, 10, 2), (23, 16, 8))}


def mirrored(boxes, axis):
    size = (40, 30, 60)[axis]
    def turn(low, high):
        low, high = list(low), list(high)
        low[axis], high[axis] = size - high[axis], size - low[axis]
        return tuple(low), tuple(high)
    return {name: turn(*box) for name, box in boxes.items()}


def warnings_of(boxes, plane=PLANE):
    centres, counted = found(boxes)
    return implausible(centres, plane, counted)


def test_c05_organs_in_their_places_are_plausible():
    assert warnings_of(PATIENT) == []


def test_c05_a_ct_upside_down_is_warned_about():
    [warning] = warnings_of(mirrored(PATIENT, 2))
    assert "from head to feet is wrong (right_lung below liver" in warning and "upside down" in warning


def test_c06_a_liver_on_the_left_is_warned_about_where_the_middle_is_known():
    [warning] = warnings_of(mirrored(PATIENT, 0))
    assert "the liver lies on the left" in warning and "mirrored" in warning and "situs inversus" in warning
    assert warnings_of(mirrored(PATIENT, 0), plane=None) == []
    assert warnings_of(mirrored(PATIENT, 0), plane=Plane(195.0, 0.0, 0.0, sure=False)) == []


def test_c07_organs_of_no_adult_are_warned_about_in_one_line():
    huge = {**PATIENT, "liver": ((0, 0, 20), (40, 25, 38)), "spleen": ((0, 0, 31), (14, 30, 45))}
    [warning] = warnings_of(huge)
    assert "liver 18000 ml (400 to 6,000), spleen 5880 ml (30 to 4,000)" in warning and "voxel size" in warning
    small = {"liver": ((20, 5, 30), (27, 10, 34))}                                          # 140 ml
    assert "liver 140 ml" in warnings_of(small)[0]
    centres, counted = found(small)
    counted["liver"]["touches_border"] = True                                               # it may go on
    assert implausible(centres, PLANE, counted) == []


def test_c06_more_soft_tissue_on_the_left_than_on_the_right_tells_a_mirrored_ct_too():
    hu = np.full((40, 30, 60), -100.0)
    liver = PATIENT["liver"]
    hu[tuple(map(slice, *liver))] = 60                         # and a spleen of a tenth of it
    hu[4:10, 4:9, 31:37] = 50
    body, centres = np.ones(hu.shape, bool), found(PATIENT)[0]
    assert soft_tissue_to_the_right(hu, AFFINE, body, PLANE, centres) > 0.7
    other = {name: [390 - c[0], *c[1:]] for name, c in centres.items()}
    assert soft_tissue_to_the_right(hu[::-1], AFFINE, body, PLANE, other) < -0.7
    assert soft_tissue_to_the_right(hu, AFFINE, body, PLANE, {}) == 0.0
    # Nor does it matter how the patient lies in the scanner: tilted by 20 degrees about x, world z is not the slice.
    tilt = np.eye(4)
    tilt[1:3, 1:3] = np.cos(0.35), -np.sin(0.35)
    tilt[2, 1], tilt[2, 2], tilt[:3, 3] = np.sin(0.35), np.cos(0.35), (0, 500, -900)
    tilted = {name: tilt[:3, :3] @ c + tilt[:3, 3] for name, c in centres.items()}
    assert soft_tissue_to_the_right(hu, tilt @ AFFINE, body, PLANE, tilted) == pytest.approx(
        soft_tissue_to_the_right(hu, AFFINE, body, PLANE, centres))


@pytest.mark.parametrize("voxel_mm, width, cut, warned", [
    (4.0, 90, False, False), (0.4, 90, False, True), (10.0, 90, False, True), (0.4, 120, True, False),
    (3.0, 50, False, False)])
def test_c08_a_body_of_impossible_size_is_warned_about(voxel_mm, width, cut, warned):
    body = np.zeros((120, 100, 4), bool)
    start = 0 if cut else (120 - width) // 2
    body[start:start + width, 20:80] = True
    found = implausible_body(body, np.diag([voxel_mm, voxel_mm, 5.0, 1.0]))
    assert bool(found) == warned
    if warned:
        assert f"{width * voxel_mm:.0f} mm wide" in found[0] and "units" in found[0]


def test_c09_nothing_and_hardly_anything_found_are_warned_about():
    found = {"liver": 0.0, "right_lung": 0.0, "left_lung": 0.0, "spleen": 0.0}
    for body_ml in (200.0, 30_000.0):                          # a slice, and a trunk
        [warning] = warn_if_little_found(found, body_ml)
        assert warning.startswith("nothing found")
    assert "hardly anything" in warn_if_little_found({**found, "liver": 100.0}, 30_000.0)[0]
    assert warn_if_little_found({**found, "liver": 1500.0}, 30_000.0) == []
