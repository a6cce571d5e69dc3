"""formats/numbers.py: whose label numbers, and what has none there. docs/label_numbers.md is the table of it."""

import re
from pathlib import Path

import pytest

from uniseg import taxonomy
from uniseg.datasets.published import published_labels
from uniseg.formats.labels import merged_name
from uniseg.formats.numbers import NUMBERINGS, classes_of_values, find_numbering, numbers_in

DOCS = Path(__file__).parents[2] / "docs"
ALL = taxonomy.NAMES


def known(numbering):
    return {name: value for name, value in numbers_in(numbering, ALL).items() if value is not None}


@pytest.mark.parametrize("numbering, expected", [
    ("lits", {"liver": 1, "liver_tumor": 2}), ("msd:Task03", {"liver": 1, "liver_tumor": 2}),
    ("msd:Task07", {"pancreas": 1, "pancreatic_tumor": 2}), ("msd:Task09", {"spleen": 1}),
    ("kits23", {"right_kidney": 1, "left_kidney": 1, "kidney_tumor": 2, "kidney_cyst": 3}),
    ("ct-org", {"right_kidney": 4, "left_kidney": 4, "liver": 1, "right_lung": 3, "left_lung": 3, "bladder": 2}),
    ("btcv", dict(zip(ALL[:13], range(1, 14)))), ("btcv-zenodo", dict(zip(ALL[:14], range(1, 15)))),
    ("table2", dict(zip(ALL, range(1, 33))))])
def test_the_numbers_of_a_dataset_are_those_of_its_published_labels(numbering, expected):
    assert known(numbering) == expected


def test_the_numbers_of_totalsegmentator_are_those_of_its_class_map_and_nothing_similar():
    """Copied by hand from class_map["total"] of TotalSegmentator v2, map_to_binary.py."""
    assert known("totalsegmentator") == {
        "spleen": 1, "right_kidney": 2, "left_kidney": 3, "gall_bladder": 4, "liver": 5, "stomach": 6, "pancreas": 7,
        "right_adrenal_gland": 8, "left_adrenal_gland": 9, "esophagus": 15, "intestine": 18, "duodenum": 19,
        "colon": 20, "bladder": 21, "aorta": 52, "postcava": 63, "portal_and_splenic_vein": 64}
    for name in ("right_lung", "left_head_of_femur", "prostate_or_uterus", "kidney_cyst", "rectum"):
        assert numbers_in("totalsegmentator", [name]) == {name: None}


def test_every_dataset_with_a_transfer_has_its_inverse():
    """Read back as training reads the dataset's labels, each value gives the classes that it was written for."""
    keys = [key for key in NUMBERINGS if key not in ("table2", "totalsegmentator")]
    datasets = [dataset for dataset in taxonomy.DATASETS if dataset.transfer]
    assert len(keys) == len(datasets) == len(set(keys))
    for key, dataset in zip(keys, datasets):
        read = {value: set(label.classes) for label in published_labels(dataset) for value in label.values}
        assert {value: set(names) for value, names in classes_of_values(numbers_in(key, ALL)).items()} == read


def test_a_class_beyond_table_2_has_a_number_of_its_own_in_table_2_only():
    assert numbers_in("table2", ["liver", "trachea"]) == {"liver": 6, "trachea": 33}
    assert numbers_in("totalsegmentator", ["liver", "trachea"]) == {"liver": 5, "trachea": None}
    assert numbers_in("lits", ["Liver"]) == {"Liver": None}                   # beyond Table 2, not taken for the liver


@pytest.mark.parametrize("given, key", [("MSD:Task03", "msd:Task03"), ("task03", "msd:Task03"),
                                        ("MSD Task10 Colon", "msd:Task10"), ("BTCV", "btcv"), ("Table2", "table2"),
                                        ("TotalSegmentator", "totalsegmentator"), ("ct-org", "ct-org")])
def test_names_are_taken_in_any_spelling(given, key):
    assert find_numbering(given) == key


@pytest.mark.parametrize("given, said", [("totalsegmentor", "Did you mean totalsegmentator"), ("", "Known are table2,"),
                                         ("msd:Task99", "no label numbers are called 'msd:Task99'"),
                                         ("3D-IRCADb", "no label numbers")])
def test_an_unknown_name_is_refused_with_those_that_are_known(given, said):
    with pytest.raises(ValueError, match=said):
        find_numbering(given)


def test_the_name_of_a_merged_pair_is_one_that_means_both_sides():
    for key in NUMBERINGS:
        for names in classes_of_values(numbers_in(key, ALL)).values():
            assert taxonomy.resolve(merged_name(names)) == names
    assert merged_name(("right_lung", "left_lung")) == "lungs"


def test_the_tables_in_the_docs_are_those_of_the_code():
    """One table with a column for each set of numbers, and one with a row for each set of few classes."""
    tables = [[[cell.strip(" `") for cell in line.strip("|").split("|")] for line in block.splitlines()]
              for block in re.findall(r"(?:^\|.*\n)+", (DOCS / "label_numbers.md").read_text(), re.MULTILINE)]
    (header, _, *by_class), (_, _, *by_set) = tables
    shown = {key: {row[0]: int(row[k]) for row in by_class if row[k]} for k, key in enumerate(header) if k}
    shown |= {key: {name: int(value) for value, name in re.findall(r"(\d+) `(\w+)", text)} for key, text in by_set}
    assert [row[0] for row in by_class] == list(ALL)
    assert shown == {key: known(key) for key in NUMBERINGS}
