"""benchmarks/few_shot.py: the cases of new classes, the options of every row, its tables by hand, a small run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))      # as for the script, which imports its neighbours
import few_shot
import partial_labels
from few_shot import NEW, START, build_parser, chain, extensions, find_data, first_trainings
from partial_labels import CLASSES, names_of, write_phantoms

from runs import first_as_it_is_then_forked
from uniseg.datasets.find import find_datasets
from uniseg.embeddings import class_embeddings
from uniseg.training import options

NEW_NAMES = {new: [name for label in labels for name in names_of(label)] for new, labels in NEW.items()}


@pytest.fixture
def coarse(monkeypatch):
    """Phantoms with 12 mm voxels, one a dataset."""
    monkeypatch.setattr(partial_labels, "write_phantoms", lambda out, roots: write_phantoms(out, 1, 1, 12.0, roots))
    monkeypatch.setattr(few_shot, "SPACING_MM", 12.0)
    monkeypatch.setattr(few_shot, "TESTS", 1)


@pytest.mark.slow
@pytest.mark.parametrize("new", NEW)
def test_new_classes_are_labelled_on_few_cases_and_no_old_one_with_them(new, coarse, tmp_path):
    find_data(tmp_path, new, [1, 2])
    one, two, test = (find_datasets(tmp_path / name)[0] for name in (f"{new}-shots1", f"{new}-shots2", "every"))
    assert set(one.annotated) == set(two.annotated) == set(NEW_NAMES[new]) and not set(NEW_NAMES[new]) & set(CLASSES)
    assert set(test.annotated) == {*CLASSES, *(name for group in NEW_NAMES.values() for name in group)}
    assert [case.image.name for case in two.cases][:1] == [case.image.name for case in one.cases]
    raw, centred = (class_embeddings(["liver", "colon"], "v3", path)
                    for path in (None, tmp_path / "tables" / "centred.npy"))
    # what the two names have in common is gone, what tells them apart has only got longer
    apart, longer = raw[0] - raw[1], centred[0] - centred[1]
    assert apart @ longer == pytest.approx((apart @ apart) ** 0.5 * (longer @ longer) ** 0.5, rel=1e-4)
    assert raw[0] @ raw[1] / (raw[0] @ raw[0]) > 0.5 > centred[0] @ centred[1] / (centred[0] @ centred[0])


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("row", START)
def test_the_options_of_every_row_exist_and_its_extensions_have_the_table_of_their_start(row, new, tmp_path):
    args = build_parser().parse_args(["--out", str(tmp_path), "--shots", "1", "4", "--new", new])
    trainings = {shots: of for shots, _, of in chain(args, row, 0)}
    assert list(trainings) == [0, 1, 4]
    first, later = (options.build_parser().parse_args(trainings[n]) for n in (0, 4))
    assert later.embeddings == first.embeddings and later.classes == ",".join(NEW_NAMES[new])
    assert (first.lpg == "shared") == row.startswith("shared") and (first.head_start == "he") == ("He" in row)
    assert later.extend.parent == next(folder for shots, folder, _ in chain(args, row, 0) if shots == 0)


def test_tables_have_a_row_for_what_was_trained():
    first = {name: 0.8 for name in CLASSES} | {"bladder": 0.0}
    new = dict.fromkeys(NEW_NAMES["four"], 0.4) | {"esophagus": 0.0}
    after = {name: 0.7 for name in CLASSES} | {"bladder": 0.0} | new
    results = {"shared, V3": {0: {0: first, 1: first}, 1: {1: after}, 2: {}}, "shared, one-hot": {0: {}, 1: {}, 2: {}}}
    (row,) = list(first_trainings(results))[2:]
    # 13 organs, of which the bladder is missing: 0.8 * 12 / 13; 3 lesions; 0.8 * 15 / 16
    assert row == ("| shared, V3 | 2 | 0.738 (0.738 to 0.738) | 0.800 (0.800 to 0.800) | 0.750 (0.750 to 0.750) "
                   "| 1, 1 |")
    (row,) = list(extensions(results, NEW["four"]))[2:]
    assert row == "| shared, V3 | 1 | 1 | 0.000 | 0.400 | 0.400 | 0.400 | 0.300 | -0.094 |"    # -0.1 * 15 / 16


@pytest.mark.slow                                                                               # two trainings
def test_the_command_trains_extends_and_prints(coarse, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(partial_labels.subprocess, "run", first_as_it_is_then_forked())
    monkeypatch.setattr(few_shot, "RECIPE", "--backbone unet --width 2 --spacing 12 --patch-size 32 32 32".split())
    monkeypatch.setattr(partial_labels, "STEPS_PER_EPOCH", 2)
    command = ["--out", str(tmp_path), "--steps", "2", "2", "--shots", "1", "--seeds", "1",
               "--only", "shared, V3 centred"]
    few_shot.main(command)
    printed = capsys.readouterr().out
    assert "| shared, V3 centred | 1 | " in printed and "| shared, V3 centred | 1 | 1 | " in printed
    monkeypatch.setattr(partial_labels.subprocess, "run", lambda *arguments, **options: pytest.fail("trained again"))
    few_shot.main([*command, "--finished"])
    assert capsys.readouterr().out == printed
