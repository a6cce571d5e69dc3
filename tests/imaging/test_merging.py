"""merging.py: who covers whom in a label map (Section 4.1.2), on masks of a few voxels."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from uniseg.baselines import index_map
from uniseg.imaging.bits import pack
from uniseg.imaging.merging import merge_masks, merging_groups, merging_order, merging_rank, paint_where_surer
from uniseg.inference.native_grid import Crop, to_native
from uniseg.taxonomy import CLASSES, label_values
from uniseg.training import report

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["liver_tumor", "hepatic_vessel", "liver", "spleen"]       # against the order on purpose: tumour, vessel, organ


def paint_all(names, values, confidences):
    """A label map of one row of voxels; confidences: a list of numbers per class, 0 outside its mask."""
    label_map = np.zeros(len(confidences[0]), np.uint8)
    for group in merging_groups(names):
        surest = np.zeros(label_map.shape)
        for k in group:
            paint_where_surer(label_map, surest, values[k], np.array(confidences[k], float))
    return label_map.tolist()


# ---------------------------------------------------------------------------------------------------------- the order

def test_organs_come_first_then_vessels_then_tumours_each_in_the_given_order():
    assert merging_groups(NAMES) == [[2, 3], [1], [0]]
    assert merging_order(NAMES) == [2, 3, 1, 0] and merging_order([]) == []
    assert [merging_rank(name) for name in NAMES] == [2, 1, 0, 0]


def test_a_class_that_table_2_does_not_list_is_merged_as_an_organ():
    assert merging_order(["aorta", "appendix", "liver"]) == [1, 2, 0]


def test_all_classes_of_table_2_are_merged_by_kind():
    order = merging_order([c.name for c in CLASSES])
    assert sorted(order) == list(range(32))
    kinds = [CLASSES[k].kind for k in order]
    assert kinds == ["organ"] * 20 + ["vessel"] * 5 + ["tumour"] * 7


# ------------------------------------------------------------------------------------------------ without a confidence

def test_a_tumour_covers_a_vessel_and_a_vessel_covers_an_organ_whatever_their_order():
    #                          nothing  tumour  vessel  liver  spleen  tumour+vessel  vessel+liver  all four
    masks = np.array([[0, 1, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 1, 1],
                      [0, 0, 0, 0, 1, 0, 0, 1]], bool)
    assert merge_masks(NAMES, [27, 15, 6, 1], masks.__getitem__, (8,)).tolist() == [0, 27, 15, 6, 1, 27, 15, 27]
    reverse = merge_masks(NAMES[::-1], [1, 6, 15, 27], masks[::-1].__getitem__, (8,))
    assert reverse.tolist() == [0, 27, 15, 6, 1, 27, 15, 27] and reverse.dtype == np.uint8


def test_without_a_confidence_the_later_of_two_organs_covers_the_earlier():
    masks = np.array([[1, 1, 0], [0, 1, 1]], bool)
    assert merge_masks(["liver", "spleen"], [6, 1], masks.__getitem__, (3,)).tolist() == [6, 1, 1]
    assert merge_masks(["spleen", "liver"], [1, 6], masks.__getitem__, (3,)).tolist() == [1, 6, 6]


def test_every_mask_is_asked_for_once_and_in_the_merging_order():
    asked = []
    merge_masks(NAMES, [1, 2, 3, 4], lambda k: asked.append(k) or np.zeros((2, 2), bool), (2, 2))
    assert asked == merging_order(NAMES)


# --------------------------------------------------------------------------------------------------- with a confidence

def test_within_a_kind_the_larger_confidence_wins_and_at_equal_confidence_the_earlier_class_stays():
    assert paint_all(["liver", "spleen"], [6, 1], [[0, 5, 3, 3, 4], [0, 0, 4, 3, 3]]) == [0, 6, 1, 6, 6]
    assert paint_all(["spleen", "liver"], [1, 6], [[0, 5, 3, 3, 4], [0, 0, 4, 3, 3]]) == [0, 1, 6, 1, 1]


def test_confidence_never_lets_an_organ_cover_a_vessel_or_a_vessel_cover_a_tumour():
    assert paint_all(NAMES, [27, 15, 6, 1], [[0, 0, 1], [0, 1, 9], [9, 9, 9], [8, 8, 8]]) == [6, 15, 27]


# ------------------------------------------------------------------------------- the places that merge say the same

@pytest.fixture(scope="module")
def case():
    """Two voxels per class pair: (tumour, vessel), (vessel, liver), (tumour, liver), and the spleen alone."""
    masks = np.zeros((4, 4, 1, 1), bool)
    for k, voxels in enumerate(([0, 2], [0, 1], [1, 2], [3])):
        masks[k, voxels] = True
    return masks


def test_every_place_that_merges_gives_one_label_map(case):
    values = label_values(NAMES)
    expected = [27, 15, 27, 1]
    numbers = [values[name] for name in NAMES]
    assert merge_masks(NAMES, numbers, case.__getitem__, (4, 1, 1)).ravel().tolist() == expected
    logits = torch.where(torch.from_numpy(case), 2.0, -2.0)
    assert report.label_map(logits, NAMES).ravel().tolist() == expected
    channel = index_map(torch.from_numpy(case)[None].float(), NAMES)[0].flatten()                 # k + 1 for channel k
    assert [numbers[k - 1] for k in channel.tolist()] == expected
    maps = [Crop([0, 0, 0], np.where(mask, 160, 96).astype(np.uint8)) for mask in case]
    _, native = to_native(pack(case), maps, values, np.eye(4), (4, 1, 1), np.eye(4))
    assert native.ravel().tolist() == expected


@pytest.mark.slow
def test_no_other_file_goes_through_the_kinds_itself():
    users = [path.relative_to(ROOT).as_posix() for folder in ("uniseg", "tools", "benchmarks", "tests")
             for path in sorted((ROOT / folder).rglob("*.py"))
             if any(isinstance(node, (ast.Name, ast.Attribute, ast.alias)) and "MERGING_ORDER" in
                    (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    assert users == ["uniseg/imaging/merging.py", "uniseg/taxonomy.py"]
