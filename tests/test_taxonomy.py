"""taxonomy.py against the paper: the classes of Table 2, the datasets of Table 1; and the names that publishers use."""

import subprocess
import sys
from pathlib import Path

import pytest

from uniseg.taxonomy import (
    BY_NAME,
    CLASSES,
    DATASETS,
    NAMES,
    ORGAN,
    PAIRS,
    TUMOUR,
    VESSEL,
    class_number,
    label_values,
    normalise_name,
    resolve,
)

ROOT = Path(__file__).resolve().parents[1]

# Table 2 as printed (its "spenic" and "celiac truck" included), in its order.
TABLE_2 = """
    1 Spleen | 2 R kidney | 3 L kidney | 4 Gall bladder | 5 Esophagus | 6 Liver | 7 Stomach | 8 Aorta | 9 Postcava
    | 10 Portal &spenic vein | 11 Pancreas | 12 R adrenal gland | 13 L adrenal gland | 14 Duodenum | 15 Hepatic vessel
    | 16 R lung | 17 L lung | 18 Colon | 19 Intestine | 20 Rectum | 21 Bladder | 22 Prostate/uterus
    | 23 L head of femur | 24 R head of femur | 25 Celiac truck
    | 26 Kidney tumor | 27 Liver tumor | 28 Pancreatic tumor | 29 Hepatic vessel tumor | 30 Lung tumor | 31 Colon tumor
    | 32 Kidney cyst"""

# Table 1 and the publishers' label definitions: volumes, raw value 1..n -> class, classes labelled after the transfer.
TABLE_1 = {
    "BTCV": (50, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), {*range(1, 15)}),
    "Pancreas-CT": (82, (1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14), {1, 3, 4, 5, 6, 7, 11, 14}),
    "CHAOS": (40, (6,), {6}),
    "LiTS": (201, (6, 27), {6, 27}),
    "KiTS": (300, (2, 26, 32), {2, 3, 26, 32}),
    "WORD": (150, (6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 20, 21, 23, 24),
             {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 18, 19, 20, 21, 23, 24}),
    "AbdomenCT-1K": (1000, (6, 2, 1, 11), {1, 2, 3, 6, 11}),
    "AMOS22": (500, (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22),
               {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 21, 22}),
    "MSD Task03 Liver": (131, (6, 27), {6, 27}),
    "MSD Task06 Lung": (64, (30,), {30}),
    "MSD Task07 Pancreas": (282, (11, 28), {11, 28}),
    "MSD Task08 HepaticVessel": (303, (15, 29), {15, 29}),
    "MSD Task09 Spleen": (41, (1,), {1}),
    "MSD Task10 Colon": (126, (31,), {31}),
    "CT-ORG": (140, (6, 21, 16, 2, 0, 0), {2, 3, 6, 16, 17, 21}),            # 5 bones, 6 brain
    "AbdomenCT-12organ": (0, (6, 2, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25), {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 25}),
}


# --- Table 2

def test_the_classes_are_those_of_table_2_in_its_order():
    printed = [entry.strip().split(" ", 1) for entry in TABLE_2.split("|")]
    assert [int(number) for number, _ in printed] == [c.index for c in CLASSES] == list(range(1, 33))
    assert [resolve(name) for _, name in printed] == [(c.name,) for c in CLASSES]


def test_right_comes_first_but_for_the_heads_of_the_femur():
    numbers = {name: BY_NAME[name].index for name in NAMES}
    assert (numbers["right_kidney"], numbers["left_kidney"]) == (2, 3)
    assert (numbers["right_adrenal_gland"], numbers["left_adrenal_gland"]) == (12, 13)
    assert (numbers["right_lung"], numbers["left_lung"]) == (16, 17)
    assert (numbers["left_head_of_femur"], numbers["right_head_of_femur"]) == (23, 24)


def test_all_classes_fit_32_bits_with_different_names_and_colours():
    assert len(CLASSES) == 32
    assert len(set(NAMES)) == len({c.color for c in CLASSES}) == len({c.text for c in CLASSES}) == 32
    assert all(0 <= value <= 255 for c in CLASSES for value in c.color)


def test_there_are_25_organs_and_vessels_and_7_lesions():
    assert {c.index for c in CLASSES if c.kind == VESSEL} == {8, 9, 10, 15, 25}
    assert {c.index for c in CLASSES if c.kind == TUMOUR} == {26, 27, 28, 29, 30, 31, 32}
    assert sum(c.kind == ORGAN for c in CLASSES) == 20


def test_every_lesion_and_the_hepatic_vessel_lie_in_organs_and_no_organ_does():
    assert {c.name: c.parents for c in CLASSES if c.parents} == {
        "hepatic_vessel": ("liver",), "kidney_tumor": ("right_kidney", "left_kidney"), "liver_tumor": ("liver",),
        "pancreatic_tumor": ("pancreas",), "hepatic_vessel_tumor": ("liver",),
        "lung_tumor": ("right_lung", "left_lung"),
        "colon_tumor": ("colon",), "kidney_cyst": ("right_kidney", "left_kidney")}
    assert all(BY_NAME[parent].kind == ORGAN for c in CLASSES for parent in c.parents)


def test_partners_are_mutual_and_on_opposite_sides():
    paired = [c for c in CLASSES if c.partner]
    assert len(paired) == 8
    for c in paired:
        assert BY_NAME[c.partner].partner == c.name
        assert {c.name.split("_")[0], c.partner.split("_")[0]} == {"right", "left"}
        assert c.name.split("_", 1)[1] == c.partner.split("_", 1)[1]


def test_organs_that_occur_once_keep_one_component_and_the_lungs_two():
    """Section 4.1.2 and the authors' class lists: 1-9, 11-14, 18-25. Vessel trees and lesions may have many pieces."""
    once = {*range(1, 10), *range(11, 15), *range(18, 26)}
    assert {c.index: c.components for c in CLASSES} == {i: 1 if i in once else 2 if i in (16, 17) else 0
                                                        for i in range(1, 33)}


def test_lesion_limits_are_those_of_the_authors_code_in_cubic_millimetres():
    voxels = {c.name: (c.max_lesions, c.min_lesion_mm3 / 3.375) for c in CLASSES if c.kind == TUMOUR}   # 1.5^3 = 3.375
    assert voxels == {"kidney_tumor": (5, 80), "liver_tumor": (20, 20), "pancreatic_tumor": (1, 100),
                      "hepatic_vessel_tumor": (10, 80), "lung_tumor": (10, 30), "colon_tumor": (3, 100),
                      "kidney_cyst": (20, 20)}


# --- names

@pytest.mark.parametrize("given, name", [
    ("Spleen", "spleen"), ("RKid", "right_kidney"), ("LKid", "left_kidney"), ("Gall", "gall_bladder"),
    ("Eso", "esophagus"),
    ("Liv", "liver"), ("Sto", "stomach"), ("Aor", "aorta"), ("IVC", "postcava"), ("Pan", "pancreas"),
    ("RAG", "right_adrenal_gland"), ("LAG", "left_adrenal_gland"), ("Duo", "duodenum"), ("Bla", "bladder"),
    ("Pro/UTE", "prostate_or_uterus"), ("Col", "colon"), ("Int", "intestine"), ("Rec", "rectum"),
    ("LFH", "left_head_of_femur"), ("RFH", "right_head_of_femur"), ("Celiac AA", "celiac_trunk"),
    ("RLung", "right_lung"), ("LLung", "left_lung"), ("Hepatic Vessel", "hepatic_vessel"), ("PDAC", "pancreatic_tumor"),
    ("Spl", "spleen"), ("R&SVeins", "portal_and_splenic_vein"),
])
def test_the_abbreviations_of_table_1_are_known(given, name):
    assert resolve(given) == (name,)


@pytest.mark.parametrize("dataset, names", [
    ("AMOS22", "spleen, right kidney, left kidney, gall bladder, esophagus, liver, stomach, arota, postcava, pancreas, "
               "right adrenal gland, left adrenal gland, duodenum, bladder, prostate/uterus"),
    ("WORD", "liver, spleen, left_kidney, right_kidney, stomach, gallbladder, esophagus, pancreas, duodenum, colon, "
             "intestine, adrenal, rectum, bladder, Head_of_femur_L, Head_of_femur_R"),
    ("AbdomenCT-1K", "liver, kidney, spleen, pancreas"),
    ("MSD Task10 Colon", "colon cancer primaries"),
])
def test_the_label_names_of_published_dataset_json_files_lead_to_the_classes_of_table_1(dataset, names):
    """AMOS spells it "arota"; where a name stands for both sides, Table 1's transfer names the right one."""
    assert tuple(BY_NAME[resolve(name)[0]].index for name in names.split(", ")) == TABLE_1[dataset][1]


@pytest.mark.parametrize("given", ["kidney", "Kidneys", "lungs", "adrenal", "Adrenal Glands", "femoral heads"])
def test_a_merged_pair_is_its_right_side_then_its_left(given):
    right, left = resolve(given)
    assert right.startswith("right_") and BY_NAME[right].partner == left


def test_every_paired_organ_has_a_merged_name():
    assert {right for right, _ in PAIRS.values()} == {c.name for c in CLASSES if c.partner
                                                      and c.name.startswith("right_")}


@pytest.mark.parametrize("given", ["cancer", "tumour", "Vessel", "cyst"])
def test_a_name_that_could_be_several_classes_is_none(given):
    """MSD calls the tumours of liver, lung and pancreas "cancer": guessing would mix them, so the user has to say."""
    with pytest.raises(ValueError, match=f"unknown class name '{given}'"):
        resolve(given)


def test_an_unknown_name_comes_with_the_nearest_known_ones():
    with pytest.raises(ValueError, match="unknown class name 'livr'. Did you mean liver"):
        resolve("livr")
    with pytest.raises(ValueError, match="unknown class name 'xyzzy'. `--list-classes` prints the known names"):
        resolve("xyzzy")


@pytest.mark.parametrize("given, normal", [
    (" Portal Vein & Splenic-Vein ", "portal_vein_and_splenic_vein"), ("Liver Tumours", "liver_tumor"),
    ("liver tumors", "liver_tumor"), ("prostate/uterus", "prostate_uterus"), ("LEFT.kidney", "left_kidney"), ("", "")])
def test_case_and_punctuation_do_not_matter(given, normal):
    assert normalise_name(given) == normal


def test_no_alias_stands_for_two_things():
    given = [alias for c in CLASSES for alias in (c.name, *c.aliases)] + list(PAIRS)
    assert len(set(given)) == len(given)
    assert all(normalise_name(alias) == alias for alias in given)             # else it could never be found


def test_classes_beyond_table_2_are_numbered_from_33():
    assert label_values(["liver", "appendix", "spleen", "spinal_cord"]) == {"liver": 6, "appendix": 33, "spleen": 1,
                                                                            "spinal_cord": 34}
    assert class_number("left_head_of_femur", 7) == 23


# --- Table 1

def labelled(dataset):
    """The numbers of the classes that a dataset annotates, after labels of both sides are split."""
    right = {value for value in dataset.transfer if value}
    return right | {BY_NAME[CLASSES[value - 1].partner].index for value in dataset.split}


def test_the_datasets_transfer_their_labels_as_table_1_says():
    ours = {d.name: (d.volumes, d.transfer, labelled(d)) for d in DATASETS}
    assert {name: ours[name] for name in TABLE_1} == TABLE_1


def test_the_training_sets_have_3410_volumes():
    """Section 4.1.1: 2100 for training and 1310 for validation. 3D-IRCADb and TotalSegmentator only evaluate."""
    volumes = {d.name: d.volumes for d in DATASETS}
    assert sum(v for name, v in volumes.items() if name.startswith("MSD")) == 947
    assert sum(v for name, v in volumes.items() if name not in ("3D-IRCADb", "TotalSegmentator")) == 3410 == 2100 + 1310


def test_the_sets_of_which_a_tumour_is_part_of_no_annotated_organ():
    """Section 4.1.1 makes a tumour part of its organ. These sets do not annotate the organ, so nothing is put back."""
    parents = {d.name: {p for value in labelled(d) if CLASSES[value - 1].kind == TUMOUR
                        for p in CLASSES[value - 1].parents if BY_NAME[p].index not in labelled(d)} for d in DATASETS}
    assert {name: organs for name, organs in parents.items() if organs} == {
        "MSD Task06 Lung": {"right_lung", "left_lung"}, "MSD Task08 HepaticVessel": {"liver"},
        "MSD Task10 Colon": {"colon"}}


def test_splits_start_from_the_right_side_of_what_the_set_holds():
    for dataset in DATASETS:
        for right in dataset.split:
            assert CLASSES[right - 1].name.startswith("right_") and right in dataset.transfer
            assert BY_NAME[CLASSES[right - 1].partner].index not in dataset.transfer


def test_the_late_btcv_images_carry_a_part_of_its_classes():
    btcv = next(d for d in DATASETS if d.name == "BTCV")
    assert set(btcv.partial) == TABLE_1["Pancreas-CT"][2] < labelled(btcv)


def test_the_names_are_known_without_torch_or_numpy():
    code = "import sys, uniseg.taxonomy; print(sorted({'torch', 'numpy', 'scipy', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
