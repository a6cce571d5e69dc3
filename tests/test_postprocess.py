"""postprocess.py and bits.py: sides, components and regions on masks small enough to count."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from uniseg.imaging.anatomy import Plane
from uniseg.imaging.bits import bit_dtype, bounding_box, bounding_boxes, get_bit, pack, set_bit
from uniseg.phantom import make_phantom
from uniseg.postprocess import ALL_STEPS, NOT_BELOW, STEPS, keep_lesions, postprocess
from uniseg.taxonomy import CLASSES, NAMES, VOXEL_MM3

AT_1_5_MM = np.diag([1.5, 1.5, 1.5, 1.0])
MIDDLE = Plane(1.5 * 9.5, 0.0, 0.0)              # between voxels 9 and 10 of 20
SHAPE = (20, 16, 12)


def block(*corners):
    """A mask with a box of voxels: (start, stop) for each axis."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*c) for c in corners)] = True
    return mask


def run(masks, affine=AT_1_5_MM, plane=MIDDLE, **options):
    """postprocess on {name: mask} -> ({name: mask}, notes)."""
    names = list(masks)
    bits, notes = postprocess(pack(masks.values()), names, affine, plane, **options)
    return {name: get_bit(bits, k) for k, name in enumerate(names)}, notes


# --- bits.py

def test_bits_hold_overlapping_masks_and_give_them_back():
    a, b = block((0, 5), (0, 5), (0, 5)), block((3, 9), (0, 5), (0, 5))
    bits = pack([a, b])
    assert bits.dtype == np.uint32 and bits[4, 0, 0] == 3 and bits[0, 0, 0] == 1 and bits[8, 0, 0] == 2
    assert np.array_equal(get_bit(bits, 0), a) and np.array_equal(get_bit(bits, 1), b)


def test_setting_a_bit_leaves_the_others():
    bits = np.array([0, 1, 2, 3], np.uint32)
    set_bit(bits, 1, np.array([True, True, False, False]))
    assert bits.tolist() == [2, 3, 0, 1]
    set_bit(bits, 0, np.array([True, True]), box=slice(2, 4))
    assert bits.tolist() == [2, 3, 1, 1]


def test_the_highest_bit_of_32_and_of_64_classes_works():
    for count in (32, 64):
        bits = np.zeros(3, bit_dtype(count))
        set_bit(bits, count - 1, np.array([True, False, True]))
        assert get_bit(bits, count - 1).tolist() == [True, False, True] and not get_bit(bits, 0).any()
    assert bit_dtype(1) == bit_dtype(32) == np.uint32 and bit_dtype(33) == bit_dtype(64) == np.uint64
    with pytest.raises(ValueError, match="65 classes do not fit"):
        bit_dtype(65)


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("order", "FC")
def test_the_boxes_of_all_classes_at_once_are_those_of_their_masks_one_by_one(order, margin):
    rng = np.random.default_rng(0)
    for _ in range(20):                                        # few voxels, so that some classes have none
        bits = np.asarray((rng.random((7, 6, 5)) < 0.02) * rng.integers(1, 32, (7, 6, 5)), np.uint32, order=order)
        assert bounding_boxes(bits, 5, margin) == [bounding_box(get_bit(bits, k), margin) for k in range(5)]


# --- Nothing to do

def test_empty_masks_of_all_classes_stay_empty():
    bits = np.zeros(SHAPE, np.uint32)
    result, notes = postprocess(bits, NAMES, AT_1_5_MM, MIDDLE)
    assert not result.any() and notes == [] and result.dtype == np.uint32


@pytest.mark.slow
def test_the_phantom_is_left_alone_and_the_input_unchanged():
    _, masks, affine = make_phantom((3.0, 3.0, 3.0), seed=0)
    bits = pack(masks.values())
    before = bits.copy()
    result, notes = postprocess(bits, list(masks), affine, Plane(0.0, 0.0, 0.0))
    assert notes == [] and np.array_equal(result, before) and np.array_equal(bits, before)


def test_a_class_that_the_table_does_not_know_is_left_alone():
    specks = block((0, 1), (0, 1), (0, 1)) | block((5, 6), (5, 6), (5, 6))
    result, notes = run({"vertebra_l3": specks})
    assert np.array_equal(result["vertebra_l3"], specks) and notes == []


def test_an_unknown_step_is_refused():
    reason = "unknown post-processing step 'side'. Choose from sides, components, stubs, regions"
    with pytest.raises(ValueError, match=reason):
        postprocess(np.zeros(SHAPE, np.uint32), NAMES, AT_1_5_MM, MIDDLE, steps=("side",))


def test_without_steps_nothing_happens():
    specks = block((0, 1), (0, 1), (0, 1)) | block((5, 6), (5, 6), (5, 6))
    result, notes = run({"liver": specks}, steps=())
    assert np.array_equal(result["liver"], specks) and notes == []


# --- (1) Sides

RIGHT, LEFT = block((13, 17), (4, 8), (2, 8)), block((3, 7), (4, 8), (2, 8))      # 4 * 4 * 6 = 96 voxels each


def test_kidneys_that_are_swapped_are_swapped_back():
    result, notes = run({"right_kidney": LEFT, "left_kidney": RIGHT})
    assert np.array_equal(result["right_kidney"], RIGHT) and np.array_equal(result["left_kidney"], LEFT)
    assert notes == ["right_kidney: 96 voxels remapped to left_kidney",
                     "left_kidney: 96 voxels remapped to right_kidney"]


def test_c10_kidneys_stay_as_the_network_found_them_where_the_plane_is_not_sure():
    result, notes = run({"right_kidney": LEFT, "left_kidney": RIGHT}, plane=replace(MIDDLE, sure=False))
    assert np.array_equal(result["right_kidney"], LEFT) and np.array_equal(result["left_kidney"], RIGHT) and not notes


def test_kidneys_both_called_right_are_told_apart():
    result, _ = run({"right_kidney": LEFT | RIGHT, "left_kidney": np.zeros(SHAPE, bool)})
    assert np.array_equal(result["right_kidney"], RIGHT) and np.array_equal(result["left_kidney"], LEFT)


def test_the_affine_and_the_bits_of_the_caller_are_not_changed():
    bits, affine = pack([LEFT, RIGHT]), AT_1_5_MM.copy()
    before = bits.copy()
    postprocess(bits, ["right_kidney", "left_kidney"], affine, MIDDLE)
    assert np.array_equal(bits, before) and np.array_equal(affine, AT_1_5_MM)


def test_femoral_heads_of_which_left_comes_first_are_no_exception():
    result, _ = run({"left_head_of_femur": RIGHT, "right_head_of_femur": LEFT})
    assert np.array_equal(result["right_head_of_femur"], RIGHT) and np.array_equal(result["left_head_of_femur"], LEFT)


def test_a_mirrored_patient_has_mirrored_sides():
    masks = {"right_kidney": LEFT | RIGHT, "left_kidney": block((9, 12), (0, 2), (0, 2))}
    straight, _ = run(masks, steps=("sides",))
    mirrored, _ = run({"left_kidney": masks["right_kidney"][::-1], "right_kidney": masks["left_kidney"][::-1]},
                      steps=("sides",))
    assert np.array_equal(straight["right_kidney"], mirrored["left_kidney"][::-1])
    assert np.array_equal(straight["left_kidney"], mirrored["right_kidney"][::-1])


def test_a_right_lung_that_reaches_over_the_middle_keeps_its_edge_beside_the_left_one():
    right, left = block((8, 18), (4, 8), (2, 8)), block((1, 8), (4, 8), (2, 8))  # they touch, 20 % of the right is over
    result, notes = run({"right_lung": right, "left_lung": left})
    assert np.array_equal(result["right_lung"], right) and np.array_equal(result["left_lung"], left) and notes == []


def test_without_a_plane_or_without_the_partner_the_sides_stay():
    result, _ = run({"right_kidney": LEFT, "left_kidney": RIGHT}, plane=None)
    assert np.array_equal(result["right_kidney"], LEFT)
    result, _ = run({"right_kidney": LEFT})
    assert np.array_equal(result["right_kidney"], LEFT)


# --- (2) Components

BIG, SMALL, SPECK = block((2, 8), (2, 8), (2, 8)), block((10, 14), (2, 6), (2, 6)), block((18, 19), (14, 15), (10, 11))


@pytest.mark.parametrize("name", [c.name for c in CLASSES if c.components == 1])
def test_an_organ_that_occurs_once_keeps_its_largest_component(name):
    result, notes = run({name: BIG | SMALL}, steps=("components",))
    assert np.array_equal(result[name], BIG)
    assert notes == [f"{name}: 64 voxels removed outside the largest component"]


@pytest.mark.parametrize("name", ["hepatic_vessel", "portal_and_splenic_vein", "liver_tumor", "kidney_cyst"])
def test_vessels_that_branch_and_lesions_keep_all_components(name):
    result, _ = run({name: BIG | SMALL}, steps=("components",))
    assert np.array_equal(result[name], BIG | SMALL)


def test_an_organ_that_a_network_finds_in_pieces_may_keep_them():
    masks = {"esophagus": BIG | SMALL, "right_lung": SMALL, "left_lung": BIG | SPECK, "liver": BIG | SMALL}
    result, _ = run(masks, steps=("components",), in_pieces=("esophagus", "left_lung"))
    assert np.array_equal(result["esophagus"], BIG | SMALL) and np.array_equal(result["liver"], BIG)
    assert np.array_equal(result["left_lung"], BIG)                     # the lungs are two pieces all the same


def test_the_lungs_keep_two_components_in_all():
    result, _ = run({"right_lung": SMALL, "left_lung": BIG | SPECK}, steps=("components",))
    assert np.array_equal(result["right_lung"], SMALL) and np.array_equal(result["left_lung"], BIG)


def test_a_lung_without_its_partner_keeps_one_component():
    result, _ = run({"right_lung": BIG | SMALL}, steps=("components",))
    assert np.array_equal(result["right_lung"], BIG)


# --- (3) Regions

LIVER = block((5, 15), (4, 12), (2, 10))


def test_a_tumour_outside_its_organ_is_removed_and_one_at_its_rim_may_reach_3_mm_out():
    tumour = block((12, 19), (5, 10), (3, 8))                         # the liver ends at 15; 3 mm are two voxels
    result, notes = run({"liver": LIVER, "liver_tumor": tumour}, steps=("regions",))
    assert np.array_equal(result["liver_tumor"], block((12, 17), (5, 10), (3, 8)))
    assert notes == ["liver_tumor: 50 voxels removed outside liver"]
    assert np.array_equal(result["liver"], LIVER)


def test_the_region_is_3_mm_on_any_grid():
    tumour = block((12, 19), (5, 10), (3, 8))
    result, _ = run({"liver": LIVER, "liver_tumor": tumour}, affine=np.diag([3.0, 1.0, 1.0, 1.0]), steps=("regions",))
    assert np.array_equal(result["liver_tumor"], block((12, 16), (5, 10), (3, 8)))


def test_a_hole_that_a_tumour_leaves_in_its_organ_is_closed_first():
    tumour = block((8, 12), (6, 10), (4, 8))                          # 4 voxels wide: closed by 2 from each side
    result, notes = run({"liver": LIVER & ~tumour, "liver_tumor": tumour}, steps=("regions",))
    assert np.array_equal(result["liver_tumor"], tumour) and notes == []


def test_a_tumour_without_its_organ_is_removed():
    result, _ = run({"liver": np.zeros(SHAPE, bool), "liver_tumor": BIG}, steps=("regions",))
    assert not result["liver_tumor"].any()


def test_a_kidney_tumour_may_be_in_either_kidney_and_needs_both_to_be_known():
    masks = {"right_kidney": RIGHT, "left_kidney": LEFT, "kidney_tumor": RIGHT | LEFT}
    result, notes = run(masks, steps=("regions",))
    assert np.array_equal(result["kidney_tumor"], RIGHT | LEFT) and notes == []
    del masks["left_kidney"]                                          # a model without the left kidney cannot tell
    result, notes = run(masks, steps=("regions",))
    assert np.array_equal(result["kidney_tumor"], RIGHT | LEFT) and notes == []


def test_the_portal_vein_ends_where_the_pancreas_does():
    vein = block((5, 7), (5, 7), (0, 12))
    result, notes = run({"pancreas": block((8, 12), (4, 8), (5, 9)), "portal_and_splenic_vein": vein},
                        steps=("regions",))
    assert np.array_equal(result["portal_and_splenic_vein"], block((5, 7), (5, 7), (5, 12)))
    assert notes == ["portal_and_splenic_vein: 20 voxels removed below pancreas"]
    result, _ = run({"pancreas": np.zeros(SHAPE, bool), "portal_and_splenic_vein": vein}, steps=("regions",))
    assert np.array_equal(result["portal_and_splenic_vein"], vein)


def test_lesions_are_kept_from_their_smallest_size_on():
    exact = block((0, 5), (0, 4), (0, 4))                         # 80 voxels at 1.5 mm: just enough for a kidney tumour
    less = exact.copy()
    less[0, 0, 0] = False
    assert run({"kidney_tumor": exact})[0]["kidney_tumor"].sum() == 80
    assert run({"kidney_tumor": less})[0]["kidney_tumor"].sum() == 0
    # 8 x the volume
    assert run({"kidney_tumor": less}, affine=np.diag([3.0, 3.0, 3.0, 1.0]))[0]["kidney_tumor"].sum() == 79


def test_only_the_largest_pancreatic_tumour_is_kept():
    result, notes = run({"pancreatic_tumor": BIG | block((10, 15), (2, 7), (2, 7))})
    assert np.array_equal(result["pancreatic_tumor"], BIG)
    assert notes == ["pancreatic_tumor: 125 voxels removed in lesions too small or too many"]


def test_lesion_limits_of_nothing_and_without_limits():
    assert not keep_lesions(np.zeros(SHAPE, bool), 5, 80).any()
    assert np.array_equal(keep_lesions(BIG | SPECK, 0, 0), BIG | SPECK)
    assert np.array_equal(keep_lesions(BIG | SMALL | SPECK, 2, 0), BIG | SMALL)
    assert VOXEL_MM3 == 1.5 ** 3


# --- All together

def test_the_steps_act_in_order_so_that_a_tumour_in_a_speck_of_liver_goes_with_it():
    speck, lesion = block((17, 20), (13, 16), (9, 12)), block((17, 20), (13, 16), (9, 12))
    result, _ = run({"liver": BIG | speck, "liver_tumor": lesion})
    assert np.array_equal(result["liver"], BIG) and not result["liver_tumor"].any()


def test_a_spoilt_phantom_is_mended():
    _, masks, affine = make_phantom((4.0, 4.0, 4.0), seed=3)
    spoilt = {name: mask.copy() for name, mask in masks.items()}
    spoilt["right_kidney"], spoilt["left_kidney"] = masks["left_kidney"], masks["right_kidney"]
    rng = np.random.default_rng(0)
    for name in ("liver", "spleen", "liver_tumor"):
        for corner in rng.integers(0, 12, (5, 3)):                    # specks in a corner of the image
            spoilt[name][tuple(corner)] = True
    result, notes = run(spoilt, affine, Plane(0.0, 0.0, 0.0))
    assert all(np.array_equal(result[name], masks[name]) for name in masks)
    assert len(notes) == 5
    assert STEPS == ("sides", "components", "regions")


# --- Stubs, beyond the paper

TALL = np.diag([10.0, 10.0, 10.0, 1.0])          # a voxel is 1 ml; 5 % of a kidney of 131 ml are 6.55 ml


def at(z, voxels):
    """`voxels` voxels in a row, in the plane z of 12."""
    mask = np.zeros(SHAPE, bool)
    mask[2:2 + voxels, 5, z] = True
    return mask


@pytest.mark.parametrize("z, voxels, kept", [(0, 6, 0), (11, 6, 0), (0, 7, 7), (1, 6, 6), (10, 6, 6)])
def test_a_little_of_a_kidney_at_an_end_of_the_ct_goes_more_of_it_or_inside_stays(z, voxels, kept):
    result, notes = run({"left_kidney": at(z, voxels)}, TALL, None, steps=("stubs",))
    assert result["left_kidney"].sum() == kept
    assert notes == ([] if kept else ["left_kidney: 6 voxels removed at an end of the CT, too little for the organ"])


def test_in_a_single_slice_and_a_thin_slab_an_organ_stays():
    slab = {"liver": at(0, 3) | at(11, 3)}
    assert run(slab, TALL, None, steps=("stubs",))[0]["liver"].sum() == 6
    bits, _ = postprocess(pack([at(0, 3)[:, :, :1]]), ["liver"], TALL, None, steps=("stubs",))
    assert np.count_nonzero(bits) == 3


def test_a_tumour_in_a_stub_goes_with_it_and_organs_whose_contents_vary_stay():
    masks = {"left_kidney": at(0, 6), "kidney_tumor": at(0, 6), "right_kidney": at(6, 12) & False, "stomach": at(0, 2),
             "colon": at(0, 1)}
    result, _ = run(masks, TALL, None, steps=ALL_STEPS)
    assert [name for name, mask in result.items() if mask.any()] == ["stomach", "colon"]


def test_the_paper_s_steps_alone_keep_a_stub():
    assert run({"left_kidney": at(0, 6)}, TALL, None)[0]["left_kidney"].sum() == 6


def test_the_volume_is_that_of_the_voxels_whatever_their_shape():
    """The same 6 ml, in voxels of 0.25 ml."""
    mask = np.zeros(SHAPE, bool)
    mask[:6, :4, 0] = True
    flat = np.diag([5.0, 5.0, 10.0, 1.0])
    assert run({"spleen": mask}, flat, None, steps=("stubs",))[0]["spleen"].sum() == 0          # 5 % of 124 ml are 6.2
    assert run({"pancreas": mask}, flat, None, steps=("stubs",))[0]["pancreas"].sum() == 24     # of 114 ml 5.7


# --- Several classes at a time

def test_what_a_step_reads_of_other_classes_it_does_not_change():
    """Threads begin with a class before the last one is written: regions read organs, which they never change."""
    read = {parent for c in CLASSES for parent in c.parents} | set(NOT_BELOW.values())
    changed = {c.name for c in CLASSES if c.parents or c.max_lesions or c.min_lesion_mm3} | set(NOT_BELOW)
    assert read and changed and not read & changed


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_masks_and_notes_in_the_same_order(threads):
    """All classes of Table 2, each three blobs anywhere, and a stub: every step has something to do."""
    rng, shape = np.random.default_rng(1), (60, 50, 40)
    masks = np.zeros((32, *shape), bool)
    for mask in masks:
        for centre in rng.integers(0, shape, (3, 3)):
            mask[tuple(slice(max(0, c - r), c + r) for c, r in zip(centre, rng.integers(1, 9, 3)))] = True
    masks[NAMES.index("stomach")], masks[NAMES.index("spleen")] = False, False
    masks[NAMES.index("spleen"), 20:24, 20:24, :3] = True
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(postprocess(pack(masks), NAMES, AT_1_5_MM, Plane(45.0, 0.0, 0.0), ALL_STEPS))
    finally:
        torch.set_num_threads(before)
    expected, (bits, notes) = found
    assert np.array_equal(bits, expected[0]) and notes == expected[1]
    kinds = ("remapped", "outside the two", "outside the largest", "too little", "outside liver", "below", "lesions")
    assert all(any(kind in note for note in notes) for kind in kinds)
