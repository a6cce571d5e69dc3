"""split.py: which cases train and which validate, and that no CT does both."""

import json
from pathlib import Path

import numpy as np
import pytest

from uniseg.datasets.cases import Case
from uniseg.datasets.dataset import CaseFiles, DataError, Dataset
from uniseg.training.split import fold_of, select_cases, split_by_file, without_copies


def set_of(name, count):
    return Dataset(name, Path(name), (), (0,), tuple(CaseFiles(f"{name}{i}", Path(), Path()) for i in range(count)))


def test_every_dataset_is_spread_evenly_over_the_folds():
    sets = [set_of("a", 11), set_of("b", 5), set_of("c", 3)]
    folds = fold_of(sets, 5)
    assert len(folds) == 19 and set(folds.values()) == {0, 1, 2, 3, 4}
    for d in sets:
        counts = np.bincount([folds[d.name, case[0]] for case in d.cases], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_folds_do_not_depend_on_the_order_of_the_files():
    dataset = set_of("a", 11)
    shuffled = Dataset("a", dataset.folder, (), (0,), dataset.cases[::-1])
    assert fold_of([dataset], 5) == fold_of([shuffled], 5)
    assert [fold_of([set_of("a", 7)], 3)["a", f"a{i}"] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_datasets_of_one_case_do_not_all_fall_into_one_fold():
    assert list(fold_of([set_of(name, 1) for name in "abcd"], 3).values()) == [0, 1, 2, 0]


# ----------------------------------------------------------------------------------------------- what takes part at all

@pytest.mark.parametrize("include, exclude, left", [
    (None, None, "a0 a1 a2 b0 b1"), (["a"], None, "a0 a1 a2"), (["a/a1", "b"], None, "a1 b0 b1"),
    (None, ["b/*"], "a0 a1 a2"), (["*/*0"], None, "a0 b0"), (["a"], ["a/a[12]"], "a0"), (None, ["a/a?"], "b0 b1")])
def test_datasets_and_cases_are_included_and_excluded_by_pattern(include, exclude, left):
    found = select_cases([set_of("a", 3), set_of("b", 2)], include, exclude)
    assert " ".join(case[0] for d in found for case in d.cases) == left


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(DataError,
                       match="'liver' of --include or --exclude matches no dataset and no case. The datasets are a, "
                             "b;"):
        select_cases([set_of("a", 3), set_of("b", 2)], None, ["liver"])


def case_of(name, content):
    return Case(Path(name), name.split("/")[0], name, (), {}, content)


def test_d11_a_ct_that_trains_and_validates_is_refused_or_left_out_of_training():
    """MSD Task03 and LiTS share CTs under other names."""
    train = [case_of("LiTS/volume-0", "aa"), case_of("LiTS/volume-1", "bb")]
    val = [case_of("Task03/liver_1", "bb")]
    with pytest.raises(DataError,
                       match="1 training cases are the same CT as a validation case: LiTS/volume-1 = Task03/liver_1. "
                                        "Leave them out with --drop-copies"):
        without_copies(train, val, drop=False)
    assert without_copies(train, val, drop=True) == train[:1]
    assert without_copies(train, [case_of("Task03/liver_2", "cc")], drop=False) == train


def test_excluding_a_case_leaves_the_folds_of_the_others_as_they_are():
    """Folds are dealt before cases are left out, so that runs with and without a case compare."""
    sets = [set_of("a", 6)]
    before = fold_of(sets, 3)
    assert [before["a", c[0]] for d in select_cases(sets, None, ["a/a2"]) for c in d.cases] == [0, 1, 0, 1, 2]


# ------------------------------------------------------------------------------------------------- a division by a file

def divided(tmp_path, content, sets=None):
    """(ids of all cases that are kept, ids that validate, notes) of a file of --split."""
    path, notes = tmp_path / "split.json", []
    path.write_text(json.dumps(content))
    kept, validating = split_by_file(sets or [set_of("a", 3), set_of("b", 2)], path, notes)
    return " ".join(c.id for d in kept for c in d.cases), " ".join(sorted(case for _, case in validating)), notes


def test_a_file_divides_the_cases_as_the_paper_does_and_what_it_does_not_name_is_left_out_with_a_note(tmp_path):
    assert divided(tmp_path, {"training": ["a"], "validation": ["b/*"]}) == ("a0 a1 a2 b0 b1", "b0 b1", [])
    kept, validating, notes = divided(tmp_path, {"training": ["a/a0", "b/b1"], "validation": ["a/a[2]"]})
    assert (kept, validating) == ("a0 a2 b1", "a2")
    assert notes == [f"{tmp_path / 'split.json'}: 2 cases are in neither list and are left out"]
    assert divided(tmp_path, {"training": ["a"], "validation": []})[:2] == ("a0 a1 a2", "")


# D36
@pytest.mark.parametrize("content, message", [
    ({"training": ["a"]}, "not a division into training and validation"),
    ({"training": ["a"], "validation": ["b"], "test": []}, "not a division into training and validation"),
    ([["a"], ["b"]], "not a division into training and validation"),
    ({"training": "a", "validation": ["b"]}, "no list of names"), ({"training": [1], "validation": ["b"]}, "no list"),
    ({"training": ["a"], "validation": ["c"]}, "'c' of 'validation' in .* matches no dataset and no case"),
    ({"training": ["a"], "validation": ["a/a1", "b"]}, r"1 cases \(a/a1\) in both lists")])
def test_a_file_that_does_not_divide_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        divided(tmp_path, content)
