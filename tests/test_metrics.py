"""Dice, surface distances and detection on masks and counts whose figures can be worked out by hand."""

import tracemalloc
from itertools import permutations, product

import numpy as np
import pytest

from uniseg.metrics import (
    CORNERS,
    agreement,
    dice,
    dice_from_counts,
    hd95,
    lesion_detection,
    nsd,
    sensitivity_specificity,
    surface_areas,
    surface_distances,
    surface_elements,
    surface_polygons,
)


def test_two_boxes_that_share_half():
    predicted, reference = np.zeros((2, 4, 4, 4), bool)
    predicted[:2], reference[1:3] = True, True                # 32 voxels each, 16 in common
    assert dice(predicted, reference) == 2 * 16 / (32 + 32) == 0.5
    assert dice(reference, predicted) == 0.5


def test_equal_masks_have_dice_one_and_disjoint_ones_zero():
    mask = np.arange(27).reshape(3, 3, 3) % 2 == 0
    assert dice(mask, mask) == 1.0
    assert dice(mask, ~mask) == 0.0


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, full = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == dice(full, empty) == 0.0


def test_the_counts_of_a_whole_validation_set_give_a_plain_float():
    assert dice_from_counts(*np.array([3, 4, 8]) * 10 ** 9) == 0.5
    assert type(dice_from_counts(*np.array([3, 4, 8]))) is type(dice_from_counts(3, 4, 8)) is float


def test_masks_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2, 2, 2\) and \(2, 2, 3\) differ. Compare masks of one grid"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))


# -------------------------------------------------------------------------------------------- areas of surface elements

UNIT = (1.0, 1.0, 1.0)
SPACING = (1.0, 2.0, 4.0)
TRIANGLE = 3 ** 0.5 / 8                              # a corner of the unit cube cut off: equilateral, of side sqrt(1/2)
# By hand, for corners that hang together by edges: how many of the others each has an edge with, and the area of the
# surface.
SHAPES = {
    (0,): TRIANGLE,
    (1, 1): 0.5 ** 0.5,                              # an edge cut off: a rectangle of 1 x sqrt(1/2)
    (1, 1, 2): 0.5 + 3 * TRIANGLE,              # an L: half a unit square; a triangle of twice the side less a corner's
    (2, 2, 2, 2): 1.0,                               # a face: a unit square
    (1, 1, 1, 3): 6 * TRIANGLE,                      # a corner and its three neighbours: a regular hexagon
    # a chain: two parallel triangles, and two halves of an edge's rectangle
    (1, 1, 2, 2): (1 + 3) * TRIANGLE + 0.5 ** 0.5,
}


def corners_of(code):
    return [c for bit, c in enumerate(CORNERS) if code >> bit & 1]


def code_of(corners):
    return sum(1 << CORNERS.index(tuple(c)) for c in corners)


def edges_of(corner, corners):
    return sum(np.abs(np.subtract(corner, c)).sum() == 1 for c in corners)


def slow_area(code):
    """Of the corners inside, or of those outside where they are fewer: the sum over pieces of a known shape."""
    left, area = corners_of(code if code.bit_count() <= 4 else 255 - code), 0.0
    while left:
        piece = [left.pop()]
        while near := [c for c in left if edges_of(c, piece)]:
            piece, left = piece + near, [c for c in left if c not in near]
        area += SHAPES[tuple(sorted(edges_of(c, piece) for c in piece))]
    return area


def area_of(mask, spacing_mm):
    return surface_elements(mask, spacing_mm)[1].sum()


def test_the_areas_of_all_256_codes_are_those_of_six_shapes_worked_out_by_hand():
    np.testing.assert_allclose(surface_areas(UNIT), [slow_area(code) for code in range(256)], rtol=1e-12)


def test_a_code_and_its_complement_have_the_same_area():
    np.testing.assert_allclose(surface_areas(SPACING), surface_areas(SPACING)[::-1], rtol=1e-12)


def test_turning_or_mirroring_a_code_with_its_spacing_keeps_its_area():
    for axes, mirror in product(permutations(range(3)), CORNERS):                             # the cube's 48 symmetries
        moved = [code_of(np.array(c)[list(axes)] ^ mirror for c in corners_of(code)) for code in range(256)]
        turned = surface_areas(tuple(SPACING[a] for a in axes))
        np.testing.assert_allclose(turned[moved], surface_areas(SPACING), rtol=1e-12)


def test_polygons_go_once_through_the_middle_of_each_edge_from_inside_to_outside():
    edges = [(a, b) for a in CORNERS for b in CORNERS if a < b and edges_of(a, [b])]
    for code in range(256):
        inside = corners_of(code)
        cut = [tuple(np.add(a, b) / 2) for a, b in edges if (a in inside) != (b in inside)]
        assert sorted(cut) == sorted(tuple(corner) for polygon in surface_polygons(code) for corner in polygon)


def test_a_voxel_is_an_octahedron_through_the_middles_between_it_and_its_neighbours():
    """Eight triangles; the parts of each one's area along the axes are s1 s2 / 8 and so on, with the spacings s."""
    voxel = np.ones((1, 1, 1), bool)
    assert area_of(voxel, UNIT) == pytest.approx(3 ** 0.5, rel=1e-12)
    assert area_of(voxel, SPACING) == pytest.approx((8 ** 2 + 4 ** 2 + 2 ** 2) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("size, spacing", [((4, 4, 4), UNIT), ((3, 5, 8), SPACING), ((1, 40, 30), (5.0, 0.7, 0.7))])
def test_a_box_has_flat_faces_one_voxel_narrower_bevelled_edges_and_cut_corners(size, spacing):
    length = [(n - 1) * s for n, s in zip(size, spacing)]                              # between outermost voxel centres
    others = [(1, 2), (0, 2), (0, 1)]
    faces = sum(2 * length[i] * length[j] for i, j in others)
    edges = sum(4 * length[k] * np.hypot(spacing[i], spacing[j]) / 2 for k, (i, j) in enumerate(others))
    corners = 8 * np.linalg.norm([spacing[i] * spacing[j] for i, j in others]) / 8
    assert area_of(np.ones(size, bool), spacing) == pytest.approx(faces + edges + corners, rel=1e-12)
    assert area_of(np.pad(np.ones(size, bool), 2), spacing) == pytest.approx(faces + edges + corners, rel=1e-12)


def test_the_area_of_a_larger_cube_comes_closer_to_that_of_its_faces():
    shares = [area_of(np.ones((n, n, n), bool), UNIT) / (6 * n * n) for n in (2, 8, 32, 64)]
    assert shares == sorted(shares) and 0.99 < shares[-1] < 1


def test_area_grows_with_the_square_of_the_spacing():
    mask = np.random.default_rng(0).random((5, 6, 7)) < 0.4
    assert area_of(mask, [3 * s for s in SPACING]) == pytest.approx(9 * area_of(mask, SPACING), rel=1e-12)


def test_voxels_that_touch_at_an_edge_or_a_corner_keep_surfaces_of_their_own():
    for second in ((1, 1, 0), (1, 1, 1)):
        pair = np.zeros((2, 2, 2), bool)
        pair[0, 0, 0] = pair[second] = True
        assert area_of(pair, UNIT) == pytest.approx(2 * 3 ** 0.5, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------ distances


def slow_surface(mask, spacing_mm):
    """Cube by cube: (place in mm, area) of each surface element."""
    padded, found = np.pad(mask, 1), []
    for place in np.ndindex(*(n + 1 for n in mask.shape)):
        code = code_of(c for c in CORNERS if padded[tuple(np.add(place, c))])
        if code not in (0, 255):
            found.append((np.array(place) * spacing_mm, surface_areas(spacing_mm)[code]))
    return found


def slow_agreement(a, b, spacing_mm, tolerance_mm):
    within = total = furthest = 0.0
    a, b = slow_surface(a, spacing_mm), slow_surface(b, spacing_mm)
    for here, there in ((a, b), (b, a)):
        pairs = sorted((min(np.linalg.norm(p - q) for q, _ in there), area) for p, area in here)
        within += sum(area for distance, area in pairs if distance <= tolerance_mm)
        area_here = sum(area for _, area in pairs)
        total += area_here
        passed = 0.0
        for distance, area in pairs:
            passed += area
            if passed >= 0.95 * area_here:
                break
        furthest = max(furthest, distance)
    return {"nsd": within / total, "hd95": furthest}


@pytest.mark.parametrize("seed", range(4))
def test_agreement_equals_a_slow_loop_from_the_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 4, 5, 6)) < rng.uniform(0.02, 0.5)
    a[0, 0, 0] = b[3, 4, 5] = True
    found = agreement(a, b, SPACING, tolerance_mm=2.5)
    assert found == pytest.approx({"dice": dice(a, b), **slow_agreement(a, b, SPACING, 2.5)}, rel=1e-12)
    assert found["nsd"] == nsd(a, b, SPACING, 2.5) and found["hd95"] == hd95(a, b, SPACING)


def plates(shift):
    """A plate of one voxel in thickness, and the same one `shift` voxels further along the first axis."""
    here, there = np.zeros((2, 9, 14, 12), bool)
    here[2, 2:12, 2:10] = there[2 + shift, 2:12, 2:10] = True
    return here, there


def test_nsd_and_hd95_of_a_shifted_plate_by_hand():
    """Slices of 5 mm, three apart: half of each surface is 3 slices from the other plate's near side, half is 2."""
    here, there = plates(3)
    spacing = (5.0, 0.7, 0.8)
    for distances, areas in surface_distances(here, there, spacing):
        assert set(distances) == {10.0, 15.0}
        assert areas[distances == 10.0].sum() == pytest.approx(areas[distances == 15.0].sum(), rel=1e-12)
    for tolerance, expected in ((9.99, 0.0), (10.0, 0.5), (14.99, 0.5), (15.0, 1.0)):
        assert nsd(here, there, spacing, tolerance) == pytest.approx(expected, abs=1e-12)
    assert hd95(here, there, spacing) == 15.0


def test_the_spacing_is_that_of_the_axes_in_order():
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[4, 4, 2] = b[4, 4, 5] = True              # three voxels along the last axis: half of each surface at 3, half at 2
    assert hd95(a, b, SPACING) == 12.0
    assert [nsd(a, b, SPACING, t) for t in (7.9, 8.0, 11.9, 12.0)] == pytest.approx([0.0, 0.5, 0.5, 1.0], abs=1e-12)


@pytest.mark.parametrize("width, expected", [(4, 0.0), (3, 20.0)])
def test_hd95_leaves_out_5_percent_of_the_area_not_of_the_elements(width, expected):
    """A far voxel (area sqrt 3, 8 elements) beside a plate of one voxel's thickness, 2 (width + 1)^2 elements.

    The plate: two faces of (width - 1)^2, 8 edges of (width - 1) sqrt(1/2), corners sqrt 3. The voxel is 4.5% of the
    area and 14% of the elements at width 4; 7.6% and 20% at width 3.
    """
    plate = np.zeros((30, 6, 6), bool)
    plate[2, :width, :width] = True
    speck = plate.copy()
    speck[23, 0, 0] = True                       # its near side is 20 steps from the plate's near side, its far side 21
    area = 2 * (width - 1) ** 2 + 8 * (width - 1) * 0.5 ** 0.5 + 3 ** 0.5
    assert area_of(speck, UNIT) == pytest.approx(area + 3 ** 0.5, rel=1e-12)
    assert (3 ** 0.5 / (area + 3 ** 0.5) < 0.05) == (expected == 0)
    assert hd95(speck, plate, UNIT) == hd95(plate, speck, UNIT) == expected


def test_a_distance_of_exactly_the_tolerance_is_within_it_wherever_the_mask_lies():
    for start in range(8):
        a, b = np.zeros((2, 24, 3, 3), bool)
        a[start, 1, 1] = b[start + 10, 1, 1] = True
        assert nsd(a, b, (0.7, 0.7, 0.7), 10 * 0.7) == 1.0


def test_distances_take_no_more_than_30_bytes_for_each_voxel_of_the_box():
    """A float64 transform of the box would take 50. Two masks of 512 x 512 x 600 voxels and distances fit 4 GiB."""
    box = np.ones((90, 100, 110), bool)
    surface_areas(UNIT)
    tracemalloc.start()
    agreement(box, np.pad(box[1:-1, 1:-1, 1:-1], 1), UNIT, 2.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * box.size


def test_equal_masks_are_at_distance_zero_and_order_does_not_matter():
    here, there = plates(2)
    assert agreement(here, here, SPACING, 0.0) == {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
    assert agreement(here, there, SPACING, 1.0) == agreement(there, here, SPACING, 1.0)


def test_empty_masks_agree_with_each_other_and_with_nothing_else():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert agreement(empty, empty, SPACING, 2.0) == {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
    for pair in ((empty, full), (full, empty)):
        assert agreement(*pair, SPACING, 2.0) == {"dice": 0.0, "nsd": 0.0, "hd95": float("inf")}
    for pair in ((empty, full), (full, empty), (empty, empty)):
        with pytest.raises(ValueError, match="a mask is empty, it has no surface"):
            surface_distances(*pair, SPACING)


def test_surfaces_of_different_grids_are_refused():
    for measure, more in ((nsd, [SPACING, 2.0]), (hd95, [SPACING]), (agreement, [SPACING, 2.0]),
                          (surface_distances, [SPACING]),
                          (lesion_detection, [])):
        with pytest.raises(ValueError, match="differ. Compare masks of one grid"):
            measure(np.ones((2, 2, 2), bool), np.zeros((2, 2, 3), bool), *more)


# ------------------------------------------------------------------------------------------------ detection per patient

# Universal Model in Table 6: found of patients with a tumour, clear of patients without, percentages as printed.
TABLE_6 = {
    "liver": ((32, 36), (19, 20), (88.89, 95.00, 91.84)),
    "kidney": ((44, 48), (19, 20), (91.67, 95.00, 93.31)),
    "pancreas": ((78, 83), (73, 80), (93.98, 91.25, 92.59)),
}


@pytest.mark.parametrize("tumour", TABLE_6)
def test_sensitivity_specificity_and_harmonic_mean_are_those_of_table_6(tumour):
    (tp, ill), (tn, healthy), printed = TABLE_6[tumour]
    result = sensitivity_specificity([True] * tp + [False] * (ill - tp) + [False] * tn + [True] * (healthy - tn),
                                     [True] * ill + [False] * healthy)
    assert (result["tp"], result["fn"], result["tn"], result["fp"]) == (tp, ill - tp, tn, healthy - tn)
    # The printed harmonic mean is that of the rounded rates: 93.31 for the kidney, 93.30 from the counts.
    assert [100 * result[k] for k in ("sensitivity", "specificity", "harmonic_mean")] == pytest.approx(printed,
                                                                                                       abs=0.01)


def test_a_rate_without_patients_is_none_and_a_harmonic_mean_of_zeros_is_zero():
    rates = ("sensitivity", "specificity", "harmonic_mean")
    for found, present, expected in (([], [], (None, None, None)), ([True, False], [True, True], (0.5, None, None)),
                                     ([False], [False], (None, 1.0, None)),
                                     ([False, True], [True, False], (0.0, 0.0, 0.0))):
        assert tuple(sensitivity_specificity(found, present)[rate] for rate in rates) == expected


def test_detection_needs_both_answers_for_each_patient():
    with pytest.raises(ValueError, match="2 and 1 patients. Give both for each patient"):
        sensitivity_specificity([True, False], [True])


# ------------------------------------------------------------------------------------------------- detection per lesion


def lesions(*boxes):
    mask = np.zeros((12, 12, 12), bool)
    for corner, size in boxes:
        mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


TWO = lesions(((1, 1, 1), 2), ((8, 8, 8), 3))        # lesions of 8 and 27 voxels


def test_of_two_lesions_one_is_found_and_one_prediction_is_false():
    predicted = lesions(((2, 2, 2), 2), ((1, 8, 1), 2))      # a voxel of one box in the first lesion, none of the other
    assert lesion_detection(predicted, TWO) == {"tp": 1, "fn": 1, "fp": 1, "sensitivity": 0.5, "precision": 0.5,
                                                "f1": 0.5}


def test_a_prediction_across_two_lesions_finds_both_and_two_in_one_lesion_are_not_false():
    assert lesion_detection(lesions(((1, 1, 1), 10)), TWO)["tp"] == 2
    pieces = lesions(((8, 8, 8), 1), ((10, 10, 10), 1))
    assert [lesion_detection(pieces, TWO)[k] for k in ("tp", "fn", "fp")] == [1, 1, 0]


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    chain = lesions(((1, 1, 1), 1), ((2, 2, 2), 1))
    assert lesion_detection(np.zeros_like(chain), chain)["fn"] == 1


def test_rates_of_no_lesions_are_none():
    none = np.zeros_like(TWO)
    pairs = (none, none), (TWO, none), (none, TWO)
    rates = [[lesion_detection(*pair)[rate] for rate in ("sensitivity", "precision", "f1")] for pair in pairs]
    assert rates == [[None, None, None], [None, 0.0, 0.0], [0.0, None, 0.0]]
