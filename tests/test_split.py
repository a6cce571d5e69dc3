"""split.py: which cases train and which validate."""

from pathlib import Path

import numpy as np

from uniseg.datasets import CaseFiles, Dataset
from uniseg.split import fold_of


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
