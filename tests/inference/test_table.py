"""table.py: statistics.csv over a folder of results. test_infer.py writes it by the command."""

import csv
import io
import json
from pathlib import Path

import pytest

from uniseg.inference.plan import Job
from uniseg.inference.table import COLUMNS, NAME, Table, cell, table_of, without_guard
from uniseg.machine.files import FileError

FOUND = {"label": 6, "voxels": 20, "ml": 1.5, "mean_hu": -55.25, "sd_hu": 12.0, "centre_mm": [-1.0, 2.0, 3.5],
         "first_voxel": [0, 1, 2], "last_voxel": [3, 4, 5], "touches_border": True,
         "ml_is": "of the part inside the CT"}
MISSING = {"label": None, "voxels": 0, "ml": 0.0, "mean_hu": None, "sd_hu": None, "centre_mm": None,
           "first_voxel": None, "last_voxel": None, "touches_border": False, "experimental": "=1+1"}


def save(folder, case, classes=None, numbers="table2"):
    """The JSON of a result, with what the table needs; returns its label map."""
    path = folder / f"{case}_seg.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"classes": classes or {"liver": FOUND}, "settings": {"numbers": numbers},
                                "warnings": ["w"], "weights": {"sha256": "0123456789abcdef"}}))
    return folder / f"{case}_seg.nii.gz"


def rows(folder):
    return list(csv.DictReader(io.StringIO((folder / NAME).read_text())))


def test_one_row_a_case_and_class_with_every_figure(tmp_path):
    save(tmp_path, "p1", {"liver": FOUND, "aorta": MISSING}, "lits")
    Table(tmp_path, []).write()
    liver, aorta = rows(tmp_path)
    assert liver == {"case": "p1", "class": "liver", "label": "6", "numbers": "lits", "found": "1", "voxels": "20",
                     "ml": "1.5", "touches_border": "1", "mean_hu": "-55.25", "sd_hu": "12.0", "centre_x_mm": "-1.0",
                     "centre_y_mm": "2.0", "centre_z_mm": "3.5", "first_i": "0", "first_j": "1", "first_k": "2",
                     "last_i": "3", "last_j": "4", "last_k": "5", "experimental": "", "warnings": "1",
                     "weights": "0123456789ab"}
    assert [aorta[column] for column in ("found", "voxels", "label", "mean_hu", "first_i")] == ["0", "0", "", "", ""]
    assert aorta["experimental"] == "'=1+1"


def test_two_runs_in_one_folder_keep_each_others_cases_in_any_order(tmp_path):
    """Each knows its own cases; they write in turn, and one case lies deeper than the other run looks."""
    first = Table(tmp_path, [save(tmp_path, "a")])
    first.write()
    second = Table(tmp_path, [tmp_path / "deep" / "b_seg.nii.gz"])
    save(tmp_path, "deep/b")
    second.write()
    save(tmp_path, "c")
    first.write()
    assert [row["case"] for row in rows(tmp_path)] == ["a", "c", "deep/b"]


def test_a_result_that_was_made_again_or_removed_changes_its_rows_and_an_unchanged_table_is_not_touched(tmp_path):
    save(tmp_path, "a")
    save(tmp_path, "b")
    table = Table(tmp_path, [])
    table.write()
    before = (tmp_path / NAME).stat().st_ino
    table.write()
    assert (tmp_path / NAME).stat().st_ino == before
    save(tmp_path, "a", {"liver": {**FOUND, "ml": 99.0}, "spleen": MISSING})
    (tmp_path / "b_seg.json").unlink()
    table.write()
    assert [(row["case"], row["class"], row["ml"]) for row in rows(tmp_path)] == [("a", "liver", "99.0"),
                                                                               ("a", "spleen", "0.0")]


def test_a_failed_write_leaves_the_former_table_whole(tmp_path, monkeypatch):
    save(tmp_path, "a")
    table = Table(tmp_path, [])
    table.write()
    before = (tmp_path / NAME).read_bytes()
    save(tmp_path, "b")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FileError, match="disk full"):
        table.write()
    assert (tmp_path / NAME).read_bytes() == before and sorted(f.name for f in tmp_path.iterdir()) == [
        "a_seg.json", "b_seg.json", NAME]


def test_a_file_of_that_name_that_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / NAME).write_text("patient,age\n1,70\n")
    with pytest.raises(FileError, match="another file has this name. Rename it, or give another -o"):
        Table(tmp_path, [])
    (tmp_path / NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="cannot be read"):
        Table(tmp_path, [])


def test_a_json_that_is_no_result_is_named_once_and_the_others_are_there(tmp_path, capsys):
    save(tmp_path, "good")
    (tmp_path / "bad_seg.json").write_text("{}")
    (tmp_path / "cut_seg.json").write_text('{"classes"')
    table = Table(tmp_path, [])
    table.write()
    table.write()
    err = capsys.readouterr().err
    assert [row["case"] for row in rows(tmp_path)] == ["good"]
    assert err.count("\n") == 2 and "bad_seg.json: is not in" in err


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-x", "@a", "'quoted", "\ttab", "plain", "with,comma",
                                  'with "quote"'])
def test_no_spreadsheet_takes_a_name_for_a_formula_and_the_case_is_found_again(text):
    written = cell(text)
    assert not written.startswith(("=", "+", "-", "@", "\t")) and without_guard(written).replace("\\t", "\t") == text


def test_a_case_with_the_name_of_a_formula_and_commas_is_one_row(tmp_path):
    save(tmp_path, '=1+1,"x"')
    table = Table(tmp_path, [])
    table.write()
    table.write()
    assert [row["case"] for row in rows(tmp_path)] == ["'=1+1,\"x\""] and len(rows(tmp_path)[0]) == len(COLUMNS)


@pytest.mark.parametrize("inputs, output, results, where", [
    (["cts"], "out", ["out/a", "out/b"], "out"), (["cts"], "out", ["out/a"], "out"),          # a folder of one CT
    (["cts"], None, ["cts/a", "cts/b"], "cts"), (["cts"], None, ["cts/s1/a", "cts/s2/a"], "cts"),
    (["cts"], "out", ["out/s1/a", "out/s2/a"], "out"),
    (["cts/a.nii", "cts/b.nii"], None, ["cts/a", "cts/b"], "cts"),
    (["cts/a.nii"], None, ["cts/a"], None), (["cts/a.nii"], "out", ["out/a"], None),
    (["cts/a.nii"], "out/a_seg.nii.gz", ["out/a"], None),
    (["cts/a.nii", "other/b.nii"], None, ["cts/a", "other/b"], None)])
def test_a_table_is_written_for_a_folder_and_for_several_cts_that_go_into_one(tmp_path, monkeypatch, inputs, output,
                                                                             results, where):
    monkeypatch.chdir(tmp_path)
    Path("cts").mkdir()
    jobs = [Job(Path(f"ct{k}"), Path(f"{name}_seg.nii.gz")) for k, name in enumerate(results)]
    table = table_of([Path(name) for name in inputs], Path(output) if output else None, jobs)
    assert (table.path if table else None) == (Path(where, NAME) if where else None)


def test_a_single_ct_continues_the_table_that_is_there(tmp_path):
    save(tmp_path, "a")
    Table(tmp_path, []).write()
    table = table_of([Path("x.nii")], tmp_path, [Job(Path("x.nii"), tmp_path / "x_seg.nii.gz")])
    save(tmp_path, "x")
    table.write()
    assert [row["case"] for row in rows(tmp_path)] == ["a", "x"]


def test_without_a_result_there_is_no_table(tmp_path):
    Table(tmp_path / "new", []).write()
    Table(tmp_path, []).write()
    assert list(tmp_path.iterdir()) == []
