"""Means, intervals, tests and the paper's tables, from rows written by hand: scores.py, significance.py, tables.py."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from uniseg.datasets.layouts import LAYOUTS
from uniseg.datasets.published import published_labels
from uniseg.evaluation import scores
from uniseg.evaluation.significance import bootstrap_interval, holm, paired_tests, wilcoxon_p
from uniseg.metrics import complete_mean
from uniseg.paper import printed
from uniseg.paper.tables import MOTS, OTHER_DATA, TABLE_4, TABLE_4_NOTE, TABLE_5, table_lines
from uniseg.taxonomy import BY_NAME, DATASETS


def test_the_median_of_hd95_counts_infinite_distances_as_larger_than_all():
    rows = [{"dataset": "", "case": str(i), "class": "liver", "kind": "organ", "present": True, "found": True,
             "dice": 0.5,
             "nsd": 0.5, "hd95_mm": d} for i, d in enumerate((3.0, 5.0, float("inf")))]
    liver = scores.summarise(rows, 0)["classes"]["liver"]
    assert (liver["hd95_median_mm"], liver["hd95_infinite"]) == (5.0, 1)


def test_groups_are_means_of_class_means_and_cysts_are_no_tumours_of_the_paper():
    rows = [{"dataset": "", "case": "a", "class": n, "kind": BY_NAME[n].kind, "present": True, "found": True, "dice": d}
            for n, d in (("liver", 0.9), ("spleen", 0.7), ("aorta", 0.6), ("liver_tumor", 0.4), ("kidney_cyst", 0.2))]
    groups = scores.summarise(rows, 0)["groups"]
    assert {g: round(v["dice_mean"], 6) for g, v in groups.items()} == {
        "organs": 0.8, "vessels": 0.6, "tumours": 0.4, "all classes": 0.56}


def test_where_only_the_second_reader_drew_a_class_prediction_and_first_reader_agree_by_having_nothing():
    row = {"dataset": "", "case": "a", "class": "liver", "present": False, "dice": None, "dice_reader2": 0.0,
           "dice_readers": 0.0}
    for predicted, mean in ((0, 1.0), (5, 0.0)):
        assert scores.readers([{**row, "predicted_voxels": predicted}])["liver"]["prediction_reader1"]["mean"] == mean


# ------------------------------------------------------------------------------------------------------- significance

def test_the_bootstrap_of_two_patients_has_the_ends_that_resampling_can_give():
    low, high = bootstrap_interval([[0.2], [0.6]], 1000, 0)
    assert (round(low, 9), round(high, 9)) == (0.2, 0.6)  # both drawn twice in a quarter of the resamples each
    assert bootstrap_interval([[0.2]]) is None and bootstrap_interval([[0.2], [np.nan]]) is None
    assert bootstrap_interval([[0.2, 0.3], [0.6, np.nan]]) is None           # one patient has the second class
    assert bootstrap_interval([[0.5]] * 9) == [0.5, 0.5]
    assert bootstrap_interval([[0.1], [0.5], [0.7]], seed=3) == bootstrap_interval([[0.1], [0.5], [0.7]], seed=3)


@pytest.mark.slow
def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low < 0 < high for low, high in (bootstrap_interval(rng.normal(size=(40, 1)), 200, i) for i in range(200))]
    assert 0.88 < np.mean(hits) < 0.98


def test_the_bootstrap_draws_patients_with_all_their_classes():
    """Two patients whose classes balance: whoever is drawn, the mean over classes is 0.5."""
    assert bootstrap_interval([[0.2, 0.8], [0.8, 0.2]]) == [0.5, 0.5]


def test_wilcoxon_of_six_differences_of_one_sign_is_two_over_two_to_the_sixth():
    assert wilcoxon_p([1, 2, 3, 4, 5, 6]) == 2 / 2 ** 6
    assert wilcoxon_p([1, 2, 3, 4, 5]) is None and wilcoxon_p([0, 1, 2, 3, 4, 5]) is None         # zeros say nothing
    differences = np.random.default_rng(1).normal(0.3, 1, 20)
    assert wilcoxon_p(differences) == wilcoxon(differences).pvalue


def test_holm_multiplies_the_smallest_p_by_all_the_next_by_one_less_and_never_falls():
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([None, 0.02]) == [None, 0.02]


def test_too_few_pairs_get_a_mean_and_no_p():
    test = paired_tests({"liver": [0.1, 0.2, 0.3]}, 50)["liver"]
    assert (test["patients"], round(test["mean"], 9), test["p"], test["p_holm"]) == (3, 0.2, None, None)


# ------------------------------------------------------------------------------------------------- the paper's tables

def off(numbers, total):
    """Whether a printed mean is not that of its numbers, to the rounding of either."""
    return abs(complete_mean(numbers) - total) > 0.011


def test_every_mean_of_a_printed_row_is_that_of_its_numbers_but_for_the_misprints_that_are_told():
    wrong = []
    for block, starts in ((printed.TASK03_AND_07, (0, 3, 6, 9)), (printed.TASK08_06_09_10, (0, 3))):
        wrong += [(name, row[at + 2]) for name, row in block.items() for at in starts
                  if off(row[at:at + 2], row[at + 2])]
    for block, means in ((printed.TABLE_4_AGNOSTIC, {12: 12}), (printed.TABLE_5, {11: 11}),
                         (printed.TABLE_8_IRCADB, {9: 7, 10: 9}), (printed.TABLE_8_JHH, {10: 10})):
        wrong += [(name, row[at]) for name, row in block.items() for at, n in means.items()
                  if row[at] is not None and off(row[:n], row[at])]
    assert wrong == [("Swin UNETR", 70.71), ("Universal Model", 86.13)]            # (81.85 + 58.21) / 2 is 70.03
    assert "86.56" in TABLE_4_NOTE
    for row in printed.TABLE_6.values():
        for at in (0, 3, 6):
            if row[at] is not None:
                assert abs(2 * row[at] * row[at + 1] / (row[at] + row[at + 1]) - row[at + 2]) < 0.011


def test_mots_has_seven_sets_of_1155_cts_which_are_all_read_as_published():
    assert [sum(counts) for counts in zip(*MOTS.values())] == [920, 235]                               # Section 4.2.3
    assert set(MOTS) == {dataset for _, _, dataset in TABLE_5} <= {row.name for row in LAYOUTS}
    for _, names, dataset in TABLE_5:
        [row] = [d for d in DATASETS if d.name == dataset]
        classes = {name for label in published_labels(row) for name in label.classes}
        assert set(names) <= classes, dataset


def rows_of(dataset, **dice):
    return [{"dataset": dataset, "case": "a", "class": name, "kind": BY_NAME[name].kind, "present": True, "found": True,
             "dice": value, "nsd": value} for name, value in dice.items()]


def test_tables_print_ours_below_the_papers_with_a_dash_for_what_was_not_evaluated():
    organs = [name for _, names in TABLE_4 for name in names if name != "left_adrenal_gland"]
    rows = rows_of("X", **dict.fromkeys(organs, 0.5)) + rows_of("X", left_adrenal_gland=0.7, liver_tumor=0.3)
    text = "\n".join(table_lines(rows))
    table_4 = text.split("Table 4.")[1].split("\n")
    ours = next(n for n, line in enumerate(table_4) if line.startswith("  ours "))
    assert table_4[ours - 1].split()[-3:] == ["70.52", "86.13", "[1]"]
    # AG: the glands' mean
    assert table_4[ours].split() == ["ours"] + ["50.00"] * 11 + ["60.00", f"{(11 * 50 + 60) / 12:.2f}"]
    table_8, jhh = (line for line in text.split("Table 8.")[1].split("\n") if line.startswith("  ours "))
    assert table_8.split() == ["ours"] + ["50.00"] * 7 + ["-", "-", "50.00", "-"]  # no lungs: mDSC* alone
    assert jhh.split() == ["ours"] + ["50.00"] * 11
    table_5 = next(line for line in text.split("Table 5.")[1].split("\n") if line.startswith("  ours "))
    assert table_5.split() == ["ours", "50.00", "30.00", "50.00", "-", "-", "-", "50.00", "-", "-", "-", "50.00", "-"]
    for method in ("nnU-Net", "DiNTS", "Multi-Talent", "TransDoDNet", "UNet++", "UNesT"):
        assert f"  {method} " in text
    liver = text.split("Task03 liver")[1].split("ours ")[1].split("\n")[0].split()
    assert liver == ["50.00", "30.00", "40.00"] * 2
    assert OTHER_DATA in text and max(map(len, text.splitlines())) <= 130


def test_a_table_takes_the_cases_of_its_own_dataset_where_there_are_any():
    rows = rows_of("X", liver=0.1) + rows_of("MSD Task03 Liver", liver=0.9, liver_tumor=0.7)
    text = "\n".join(table_lines(rows))
    assert text.split("Task03 liver")[1].split("ours ")[1].split("\n")[0].split()[:3] == ["90.00", "70.00", "80.00"]
    table_5 = text.split("Table 5.")[1]
    assert "  ours: other data\n" in table_5                   # MOTS takes LiTS, not Task03: the mean of 0.1 and 0.9
    assert next(line for line in table_5.split("\n") if line.startswith("  ours ")).split()[1] == "50.00"
    assert "Task03 liver; ours: cases of MSD Task03 Liver (not the paper's split)" in text
