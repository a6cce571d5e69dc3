"""infer.py, the command: which files it takes and writes, what it prints, exit codes, and what an interruption leaves.

Most tests call `main([...])` in this process, with tiny random weights and a coarse CT; signals, pipes and locales need
a process of their own. Ids like F62, O07, W01 are those of docs/faults.md.
"""

import csv
import errno
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from png import read_png
from uniseg import checkpoint, infer, taxonomy
from uniseg.embeddings import class_embeddings
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume
from uniseg.infer import main, parse_threshold
from uniseg.inference import plan as plan_module
from uniseg.inference import plausibility
from uniseg.inference.outputs import Outputs
from uniseg.machine import progress
from uniseg.machine.console import printable
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom

ROOT = Path(__file__).parents[1]
CLASSES = ("spleen", "right_kidney", "left_kidney", "liver", "aorta")
PREPROCESSING = Preprocessing((15.0, 15.0, 15.0), window=(16, 16, 16))
DEFAULT_WEIGHTS = ROOT / "uniseg" / "weights" / "default.pt"


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The stand-in's organs are of no adult's size; the warning about that is another test's (test_plausibility.py)."""
    monkeypatch.setattr(plausibility, "ADULT_ML", {})


def save_weights(path, classes):
    torch.manual_seed(0)
    config = ModelConfig(tuple(classes), "unet", width=4, lpg_hidden=8, text_width=384)
    rows = class_embeddings([c if c in taxonomy.BY_NAME else "liver" for c in classes])
    network = UniversalModel(config, rows)
    with torch.no_grad():
        for bias in network.lpg.last_bias():
            bias[-1] = 1.0                                                  # something is found everywhere in the body
    checkpoint.save(path, network, PREPROCESSING)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with ct.nii.gz and tiny.pt, not to be written to."""
    folder = tmp_path_factory.mktemp("shared")
    hu, _, affine = make_phantom((15.0, 15.0, 15.0))
    write_volume(folder / "ct.nii.gz", hu, affine)
    save_weights(folder / "tiny.pt", CLASSES)
    return folder


@pytest.fixture
def here(shared, tmp_path, monkeypatch):
    """An empty working folder with one ct.nii.gz in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ct.nii.gz").write_bytes((shared / "ct.nii.gz").read_bytes())
    return tmp_path


@pytest.fixture
def segment(shared, here, capsys):
    """Run the command with the tiny weights: (exit code, stdout, stderr)."""
    def run(*arguments, weights=shared / "tiny.pt"):
        code = main(["--device", "cpu", *(["--weights", str(weights)] if weights else []), *map(str, arguments)])
        return code, *capsys.readouterr()
    return run


def command(*arguments, cwd, env=None, **options):
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen([sys.executable, "-m", "uniseg.infer", *map(str, arguments)], cwd=cwd, env=env,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def files(folder):
    """Names of all files below a folder, sorted."""
    return sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.is_file())


def one_line(err):
    """The error, after checking its form: a single line `uniseg: error: <what>. <what to do>`."""
    lines = [line for line in err.splitlines() if "warning" not in line]
    assert len(lines) == 1 and lines[0].startswith("uniseg: error: "), err
    return lines[0].removeprefix("uniseg: error: ")


# --- What is written, and where

@pytest.mark.slow
def test_the_label_map_and_its_json_stand_beside_the_ct(segment, here):
    code, out, err = segment("ct.nii.gz")
    assert code == 0 and files(here) == ["ct.nii.gz", "ct_seg.json", "ct_seg.nii.gz"]
    ct, result = nib.load("ct.nii.gz"), nib.load("ct_seg.nii.gz")
    assert result.shape == ct.shape and np.array_equal(result.affine, ct.affine)
    found = set(np.unique(np.asarray(result.dataobj))) - {0}
    assert found and found <= {taxonomy.BY_NAME[n].index for n in CLASSES}
    stats = json.loads(Path("ct_seg.json").read_text())
    assert set(stats["classes"]) == set(CLASSES) and stats["input"] == "ct.nii.gz"
    assert out.startswith("ct_seg.nii.gz  (") and "liver" in out and " ml" in out


def test_o16_the_label_map_is_a_label_file_for_other_programs(segment):
    segment("ct.nii.gz")
    with gzip.open("ct_seg.nii.gz") as file:                                # nibabel.load would hide the scaling
        header = nib.Nifti1Header.from_fileobj(file)
    assert header.get_data_dtype() == np.uint8 and int(header["intent_code"]) == 1002
    assert float(header["scl_slope"]) == 1 and float(header["scl_inter"]) == 0
    assert int(header["sform_code"]) == int(nib.load("ct.nii.gz").header["sform_code"])


def test_o_names_a_file(segment, here):
    code, *_ = segment("ct.nii.gz", "-o", "new/folder/result.nii")
    assert code == 0 and files(here) == ["ct.nii.gz", "new/folder/result.json", "new/folder/result.nii"]
    assert nib.load("new/folder/result.nii").shape == nib.load("ct.nii.gz").shape


def test_o01_o_names_a_folder_that_is_made_when_missing(segment, here):
    code, *_ = segment("ct.nii.gz", "-o", "some/results")
    assert code == 0 and files(here / "some") == ["results/ct_seg.json", "results/ct_seg.nii.gz"]


def test_masks_gives_one_file_for_each_class(segment, here):
    code, *_ = segment("ct.nii.gz", "--masks")
    assert code == 0 and files(here / "ct_seg") == sorted(f"{n}.nii.gz" for n in CLASSES)
    label_map = np.asarray(nib.load("ct_seg.nii.gz").dataobj)
    mask = np.asarray(nib.load("ct_seg/liver.nii.gz").dataobj)
    assert mask.max() == 1 and (mask[label_map == 6] == 1).all()


def test_classes_limits_what_is_computed(segment):
    code, out, _ = segment("ct.nii.gz", "--classes", "liver, kidneys", "--no-postprocess")
    classes = json.loads(Path("ct_seg.json").read_text())["classes"]
    assert code == 0 and set(classes) == {"right_kidney", "left_kidney", "liver"}
    assert "spleen" not in out


def test_every_setting_reaches_the_json(segment):
    code, *_ = segment("ct.nii.gz", "--overlap", "0.25", "--threshold", "liver=0.4,IVC=0.3", "--no-postprocess",
                       "--precision", "bf16", "--fast", "--no-focus",
                       weights=save_weights(Path("other.pt"), ("liver", "postcava")))
    assert code == 0
    assert json.loads(Path("ct_seg.json").read_text())["settings"] == {
        "overlap": 0.25, "threshold": {"liver": 0.4, "postcava": 0.3}, "postprocess": False, "in_pieces": [],
        "second_view": None, "fast": True, "focus": False, "focused_on": None, "precision": "bf16",
        "numbers": "table2", "device": "cpu"}


def test_the_papers_three_steps_of_post_processing_can_be_had_alone(segment):
    """They are stated in their order, and a result with all four is not taken for one with three."""
    code, *_ = segment("ct.nii.gz", "--steps", "regions, sides,components")
    assert code == 0
    assert json.loads(Path("ct_seg.json").read_text())["settings"]["postprocess"] == ["sides", "components", "regions"]
    code, _, err = segment("ct.nii.gz", "--resume")
    assert code == 0 and "made with another post-processing" in err
    assert json.loads(Path("ct_seg.json").read_text())["settings"]["postprocess"] is True
    code, _, err = segment("ct.nii.gz", "--overwrite", "--steps", "side")
    assert code == 2 and one_line(err) == ("--steps side: unknown post-processing step 'side'. Choose from sides, "
                                           "components, stubs, regions.")
    code, _, err = segment("ct.nii.gz", "--steps", "sides", "--no-postprocess")
    assert code == 2 and "leave one of the two out" in one_line(err)


def test_f16_a_ct_of_more_voxels_than_allowed_is_refused_and_max_voxels_raises_the_limit(segment):
    voxels = int(np.prod(nib.load("ct.nii.gz").shape))
    code, _, err = segment("ct.nii.gz", "--max-voxels", voxels - 1)
    assert code == 1 and f"more than the limit of {voxels - 1:,}. Crop it or resample it" in one_line(err)
    assert "infer also takes a higher limit, --max-voxels" in err
    assert segment("ct.nii.gz", "--max-voxels", voxels)[0] == 0
    code, _, err = segment("ct.nii.gz", "--max-voxels", 0)
    assert code == 2 and one_line(err) == "--max-voxels 0: choose a number of 1 or more."


def test_w10_the_names_of_the_weights_win_and_one_that_table_2_lacks_is_a_warning(segment):
    """Other classes than Table 2, in another order: each keeps its name, and a name alone decides its number."""
    weights = save_weights(Path("other.pt"), ("thymus", "spleen", "Liver"))
    code, out, err = segment("ct.nii.gz", "--no-postprocess", "--masks", weights=weights)
    assert code == 0 and sorted(os.listdir("ct_seg")) == ["Liver.nii.gz", "spleen.nii.gz", "thymus.nii.gz"]
    assert {name: c["label"] for name, c in json.loads(Path("ct_seg.json").read_text())["classes"].items()} == {
        "thymus": 33, "spleen": 1, "Liver": 34}
    assert "uniseg: warning: other.pt: the class 'Liver' is no name of Table 2, so it is not taken for liver; it has " \
           "the number 34\n" in err
    assert "uniseg: warning: other.pt: classes beyond Table 2, with their numbers: thymus 33\n" in err
    assert "33  thymus" in out and "34  Liver" in out


def test_bf16_on_a_processor_that_imitates_it_is_a_warning(segment, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: False)
    code, _, err = segment("ct.nii.gz", "--precision", "bf16", "--classes", "liver")
    assert code == 0 and "uniseg: warning: --precision bf16: this processor has no instructions for it" in err
    assert "no instructions" not in segment("ct.nii.gz", "--overwrite", "--classes", "liver")[2]


def test_f51_an_empty_result_is_a_success_that_says_so(segment, here):
    write_volume("air.nii.gz", np.full((20, 20, 20), -1000, np.int16), np.diag([5.0, 5, 5, 1]))
    code, out, err = segment("air.nii.gz")
    assert code == 0 and "nothing found" in out
    assert err == "uniseg: warning: air.nii.gz: no body found in this volume; the result is empty\n"
    assert json.loads(Path("air_seg.json").read_text())["empty"] is True
    assert not np.asarray(nib.load("air_seg.nii.gz").dataobj).any()


# --- Nothing is overwritten unasked

def test_o02_a_result_is_replaced_only_with_overwrite(segment):
    segment("ct.nii.gz")
    before = Path("ct_seg.nii.gz").stat().st_mtime_ns
    code, out, err = segment("ct.nii.gz")
    assert code == 2 and out == "" and one_line(err).startswith("ct_seg.nii.gz: exists already. Give --overwrite")
    assert Path("ct_seg.nii.gz").stat().st_mtime_ns == before
    code, *_ = segment("ct.nii.gz", "--overwrite")
    assert code == 0 and Path("ct_seg.nii.gz").stat().st_mtime_ns != before


@pytest.mark.parametrize("existing", ["ct_seg.json", "ct_seg/liver.nii.gz"])
def test_the_json_and_the_masks_too_are_not_overwritten_unasked(segment, existing):
    Path(existing).parent.mkdir(exist_ok=True)
    Path(existing).write_text("mine")
    code, _, err = segment("ct.nii.gz", "--masks")
    assert code == 2 and "exists already. Give --overwrite" in one_line(err) and Path(existing).read_text() == "mine"


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["the name", "a symbolic link", "a hard link"])
def test_o03_the_input_is_never_replaced_even_with_overwrite(segment, here, link):
    before = Path("ct.nii.gz").read_bytes()
    if link:
        link(here / "ct.nii.gz", here / "other.nii.gz")
    code, _, err = segment("ct.nii.gz", "-o", "other.nii.gz" if link else "./ct.nii.gz", "--overwrite")
    assert code == 2 and "the result would replace the input. Give another -o." in one_line(err)
    assert Path("ct.nii.gz").read_bytes() == before


def test_an_input_inside_the_folder_of_masks_is_not_replaced_either(segment, here):
    Path("ct_seg").mkdir()
    Path("ct_seg/liver.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    code, _, err = segment("ct.nii.gz", "ct_seg/liver.nii.gz", "--masks", "--overwrite")
    assert code == 2 and one_line(err).startswith("ct_seg: the result would replace the input.")


@pytest.mark.parametrize("inputs, output", [
    (["ct.nii", "ct.nii.gz"], None), (["a/ct.nii.gz", "b/ct.nii.gz"], "results"),
                                            (["ct.nii.gz", "a/../ct.nii.gz"], None)])
def test_f62_two_inputs_for_one_result_are_refused_before_any_work_and_both_named(segment, here, inputs, output):
    for path in ("a/ct.nii.gz", "b/ct.nii.gz", "ct.nii"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(Path("ct.nii.gz").read_bytes())
    code, out, err = segment(*inputs, *(["-o", output] if output else []))
    assert code == 2 and out == "" and not list(here.rglob("*_seg*"))
    assert all(name in one_line(err) for name in inputs) and "both would be written to" in err


def test_o04_an_output_that_cannot_be_written_is_found_before_any_work(segment, here, monkeypatch):
    Path("file").write_text("mine")
    for output in ("file", "file/results", "file/result.nii.gz"):
        code, out, err = segment("ct.nii.gz", "-o", output)
        assert code == 2 and out == "" and "file" in one_line(err) and "-o" in err
    assert Path("file").read_text() == "mine"
    monkeypatch.setattr(plan_module.os, "access", lambda path, mode: False)        # root may write everywhere
    code, _, err = segment("ct.nii.gz")
    assert code == 2 and "nothing can be written in ." in one_line(err)


# --- Several cases

@pytest.mark.slow
def test_a_bad_case_in_the_middle_does_not_stop_the_others(segment, here):
    folder = here / "cases"
    folder.mkdir()
    for name in ("a.nii.gz", "c.nii.gz"):
        (folder / name).write_bytes(Path("ct.nii.gz").read_bytes())
    (folder / "b.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes()[:5000])
    code, out, err = segment(folder, "ct.nii.gz")
    assert code == 1
    assert files(folder) == ["a.nii.gz", "a_seg.json", "a_seg.nii.gz", "b.nii.gz", "c.nii.gz", "c_seg.json",
                             "c_seg.nii.gz"]
    assert Path("ct_seg.json").exists()
    error, summary = err.splitlines()
    assert error.startswith(f"uniseg: error: {folder / 'b.nii.gz'}: truncated") and error.count("b.nii.gz") == 1
    assert summary == "uniseg: 1 of 4 cases failed"
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == [
        str(folder / "a_seg.nii.gz"), str(folder / "c_seg.nii.gz"), "ct_seg.nii.gz"]


def test_a_folder_gives_its_niftis_without_results_hidden_and_apple_double_files(segment, here):
    """F57: macOS leaves ._x.nii.gz on foreign disks, a few bytes that are no CT."""
    folder = here / "cases"
    folder.mkdir()
    (folder / "x.nii").write_bytes(gzip.decompress(Path("ct.nii.gz").read_bytes()))
    for name in ("._x.nii.gz", ".DS_Store", ".x.nii.gz.17.tmp", "notes.txt", "old_seg.nii.gz"):
        (folder / name).write_bytes(b"\0\5\26\7")
    (folder / "sub.nii.gz").mkdir()
    code, _, err = segment(folder)
    assert code == 0 and err == "" and {"x_seg.nii.gz", "x_seg.json", "statistics.csv"} < set(files(folder))
    assert len(files(folder)) == 9


def test_f57_upper_case_endings_and_dangling_links_of_a_folder_are_not_passed_over(segment, here):
    folder = here / "cases"
    folder.mkdir()
    (folder / "A.NII.GZ").write_bytes(Path("ct.nii.gz").read_bytes())
    (folder / "b.nii.gz").symlink_to("nowhere.nii.gz")                        # F58
    code, _, err = segment(folder)
    assert code == 1 and (folder / "A_seg.nii.gz").is_file()
    assert "b.nii.gz: no such file. It is a symbolic link to a file that does not exist." in err


def test_f01_no_other_patients_file_is_suggested(segment):
    for name in ("p1_0000.nii.gz", "p10.nii.gz", "patientB.nii.gz"):
        Path(name).write_bytes(b"")
    for name in ("p0.nii.gz", "p0_0000.nii.gz", "patientA.nii.gz"):
        code, _, err = segment(name)
        assert code == 2 and one_line(err) == f"{name}: no such file. Check the name."
    assert "Did you mean p1_0000.nii.gz?" in one_line(segment("p1.nii.gz")[2])


def test_a_missing_file_alone_is_exit_2_and_the_nearest_name_is_suggested(segment):
    code, _, err = segment("ct.nii")
    assert code == 2 and one_line(err) == "ct.nii: no such file. Check the name. Did you mean ct.nii.gz?"


def test_a_missing_file_among_several_is_that_cases_error(segment):
    code, _, err = segment("ct.nii.gz", "gone.nii.gz")
    assert code == 1 and Path("ct_seg.json").exists()
    assert "uniseg: error: gone.nii.gz: no such file" in err and "1 of 2 cases failed" in err


@pytest.mark.parametrize("arguments, expected", [
    ([], "no CT given. Name a NIfTI file or a folder, or try --demo."),
    (["empty"], "empty: no .nii or .nii.gz file in this folder."),
    (["ct.nii.gz", "other.nii.gz", "-o", "one.nii.gz"], "-o one.nii.gz: one file for 2 inputs. Give a folder."),
    (["ct.nii.gz", "-o", "out.mha"], "-o out.mha: label maps are written as NIfTI. Give a name with .nii.gz"),
    (["ct.nii.gz", "-o", "OUT.NII.GZ"], "-o OUT.NII.GZ: label maps are written as NIfTI."),
    (["ct.nii.gz", "--demo"], "--demo takes no CT"),
    (["--demo", "-o", "demo.nii.gz"], "-o demo.nii.gz: with --demo give a folder."),
    (["broken/ct.nii.gz"], "broken/ct.nii.gz: no such file."),
])
def test_arguments_that_make_no_sense_are_exit_2_before_any_work(segment, here, arguments, expected):
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/ct.nii.gz").symlink_to("nowhere.nii.gz")                    # F58
    Path("other.nii.gz").write_bytes(b"")
    before = files(here)
    code, out, err = segment(*arguments)
    assert code == 2 and out == "" and one_line(err).startswith(expected) and files(here) == before


@pytest.mark.parametrize("name", ["two  spaces.nii.gz", "quote's \"and\" ;$(touch x).nii.gz", "Łódź 肝臓 ü.nii.gz",
                                  "-dash.nii.gz", "line\nbreak \x1b[31m.nii.gz", "n" * 244 + ".nii.gz"], ids=ascii)
def test_f56_any_file_name_works_and_none_breaks_a_line_or_steers_a_terminal(segment, here, name):
    Path(name).write_bytes(Path("ct.nii.gz").read_bytes())
    code, out, err = segment("--", name)
    assert code == 0 and err == "" and Path(name.replace(".nii.gz", "_seg.nii.gz")).is_file() and not Path("x").exists()
    assert json.loads(Path(name.replace(".nii.gz", "_seg.json")).read_text())["input"] == name
    assert "\x1b" not in out and len(out.splitlines()) <= 1 + len(CLASSES)
    Path(name).write_bytes(b"")
    code, out, err = segment("--overwrite", "--", name)
    assert code == 1 and "empty file" in one_line(err) and "\x1b" not in err
    assert err.count(printable(name)) == 1


def test_f60_a_file_that_vanishes_is_that_cases_error(segment, monkeypatch):
    planned = infer.plan

    def plan_then_lose(*arguments):
        jobs = planned(*arguments)
        Path("lost.nii.gz").unlink()
        return jobs
    monkeypatch.setattr(infer, "plan", plan_then_lose)
    Path("lost.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    code, _, err = segment("lost.nii.gz", "ct.nii.gz")
    assert code == 1 and "lost.nii.gz: no such file" in err and Path("ct_seg.json").exists()


def test_o05_a_full_disk_is_one_line_and_leaves_nothing_behind(segment, here, monkeypatch):
    from uniseg.machine import files as files_module

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(files_module.os, "fsync", full)
    code, _, err = segment("ct.nii.gz")
    assert code == 1 and "disk full" in one_line(err) and files(here) == ["ct.nii.gz"]


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
     "the GPU is out of memory. Name fewer --classes, or give --precision bf16 or --device cpu."),
    (MemoryError(), "out of memory. Name fewer --classes, or use a machine with more memory."),
    (FloatingPointError("the model returned NaN"), "the model returned NaN")], ids=lambda e: type(e).__name__)
def test_w14_an_error_of_the_network_is_that_cases_error_in_one_line(segment, here, monkeypatch, error, said):
    """The case after it is done: a smaller one may well fit."""
    from uniseg import segmenter

    real, calls = segmenter.sliding_window, []

    def failing(*arguments, **options):
        calls.append(True)
        if len(calls) == 1:
            raise error
        return real(*arguments, **options)
    monkeypatch.setattr(segmenter, "sliding_window", failing)
    Path("next.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    code, out, err = segment("ct.nii.gz", "next.nii.gz")
    failed, summary = err.splitlines()
    assert code == 1 and one_line(failed) == f"ct.nii.gz: {said}" and summary == "uniseg: 1 of 2 cases failed"
    assert files(here) == ["ct.nii.gz", "next.nii.gz", "next_seg.json", "next_seg.nii.gz", "statistics.csv"]


def test_verbose_shows_where_an_error_came_from(segment):
    Path("bad.nii.gz").write_bytes(b"")
    assert "Traceback" in segment("bad.nii.gz", "--verbose")[2] and "Traceback" not in segment("bad.nii.gz")[2]


# --- Options

@pytest.mark.parametrize("text, expected", [("0.5", 0.5), ("1e-3", 0.001), ("liver=0.4", {"liver": 0.4}),
                                            (" liver = 0.4 , spleen=0.6", {"liver": 0.4, "spleen": 0.6})])
def test_a_threshold_is_a_number_or_one_for_each_class_named(text, expected):
    assert parse_threshold(text) == expected


@pytest.mark.parametrize("text", [
    "0", "1", "-1", "nan", "inf", "half", "", "liver=2", "liver=", "liver=0.4,0.5", "0.4,0.5",
                                  "liver=0.4,liver=0.5"])
def test_a_threshold_that_is_none_is_refused_with_an_example(segment, text):
    code, _, err = segment("ct.nii.gz", f"--threshold={text}")
    assert code == 2 and "one probability between 0 and 1, as 0.4, or" in one_line(err)


@pytest.mark.parametrize("overlap", ["1", "-0.1", "nan", "2"])
def test_an_overlap_that_is_none_is_refused(segment, overlap):
    code, _, err = segment("ct.nii.gz", f"--overlap={overlap}")
    assert code == 2 and "--overlap" in one_line(err) and "choose a value from 0 up to" in err


@pytest.mark.parametrize("arguments", [["--overlap", "wide"], ["--precision", "fp8"], ["--no-such-option"]])
def test_what_the_parser_refuses_is_exit_2_too(here, arguments, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["ct.nii.gz", *arguments])
    assert refusal.value.code == 2 and arguments[-1] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--classes=livr", "--threshold=livr=0.4"])
@pytest.mark.parametrize("own_weights", [True, False])
def test_an_unknown_class_is_refused_with_a_suggestion(segment, shared, option, own_weights):
    code, _, err = segment("ct.nii.gz", option, weights=shared / "tiny.pt" if own_weights else None)
    assert code == 2 and "unknown class name 'livr'. Did you mean liver" in one_line(err)


def test_an_unknown_class_is_refused_before_torch_is_even_loaded(here):
    process = command("ct.nii.gz", "--classes", "livr", cwd=here, env={"PYTHONPATH": f"{fake_torch(here)}:{ROOT}"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and b"Did you mean liver" in err


@pytest.mark.parametrize("option", ["--classes=colon", "--threshold=colon=0.4"])
def test_a_class_the_weights_do_not_offer_is_refused_with_what_they_do_offer(segment, here, option):
    code, _, err = segment("ct.nii.gz", option)
    assert code == 2 and files(here) == ["ct.nii.gz"]
    assert one_line(err) == f"class colon is not in these weights (tiny.pt). They offer {', '.join(CLASSES)}."


def test_a_class_beyond_table_2_is_chosen_by_the_name_its_weights_give_it(segment, tmp_path):
    """Section 3.3: a model can be extended by classes that only its checkpoint knows."""
    weights = save_weights(tmp_path / "extended.pt", ("liver", "thyroid_x"))
    code, *_ = segment("ct.nii.gz", "--classes", "thyroid_x", "--threshold", "thyroid_x=0.45", weights=weights)
    stats = json.loads(Path("ct_seg.json").read_text())
    assert code == 0 and list(stats["classes"]) == ["thyroid_x"] and stats["classes"]["thyroid_x"]["label"] == 33


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_does_not_exist_is_exit_2(shared, here, capsys, device):
    code = main(["ct.nii.gz", "--weights", str(shared / "tiny.pt"), "--device", device])
    assert code == 2 and f"--device {device}: not usable here" in one_line(capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content, expected", [
    (None, "no such weights file"), (b"", "empty file"), (b"<!DOCTYPE html>", "an HTML page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"PK\3\4" + bytes(100), "truncated"),
    (b"\x80\4K\5.", "not a checkpoint")], ids=["missing", "empty", "html", "lfs", "truncated", "pickle"])
def test_w01_w03_weights_that_are_none_are_exit_2_and_one_line(segment, here, content, expected):
    if content is not None:
        Path("bad.pt").write_bytes(content)
    code, out, err = segment("ct.nii.gz", weights="bad.pt")
    assert code == 2 and out == "" and one_line(err).startswith("bad.pt: ") and expected in err
    assert not list(here.glob("*_seg*"))


# --- What needs no torch

def fake_torch(folder):
    """A folder that, first on the path, makes `import torch` and `import numpy` fail."""
    (folder / "none").mkdir(exist_ok=True)
    for name in ("torch", "numpy"):
        (folder / "none" / f"{name}.py").write_text("raise AssertionError('imported')")
    return folder / "none"


@pytest.mark.parametrize("option, expected", [("--help", "Segment CT volumes"), ("--version", "uniseg "),
                                              ("--list-classes", " 32 kidney_cyst")])
def test_help_version_and_the_list_of_classes_answer_without_torch(tmp_path, option, expected):
    process = command(option, cwd=tmp_path, env={"PYTHONPATH": f"{fake_torch(tmp_path)}:{ROOT}"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b"" and expected in out.decode()


def test_the_list_of_classes_is_table_2_with_a_mark_at_those_of_the_built_in_weights(capsys):
    assert main(["--list-classes"]) == 0
    table, explained = capsys.readouterr().out.split("\n\n")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [(int(number), name) for number, name, *_ in rows] == [(c.index, c.name) for c in taxonomy.CLASSES]
    assert all(word in explained for word in ("offered:", "experimental:", "--experimental", "femoral heads"))
    sidecar = DEFAULT_WEIGHTS.with_suffix(".json")
    assert sidecar.is_file(), "the package ships uniseg/weights/default.json"
    content = json.loads(sidecar.read_text())
    known, experimental = content["classes"], content["about"].get("experimental", {})
    marked = {mark: [name for _, name, _, m, *_ in rows if m == mark] for mark in ("experimental", "offered")}
    assert marked["experimental"] == [n for n in taxonomy.NAMES if n in experimental]
    assert marked["offered"] == [n for n in taxonomy.NAMES if n in known and n not in experimental]


def test_every_other_name_in_the_list_of_classes_is_one_that_classes_takes(capsys):
    assert main(["--list-classes"]) == 0
    table, explained = capsys.readouterr().out.split("\n\n")
    for line in table.splitlines()[1:]:
        name, others = line.split()[1], line[51:].split(", ")
        assert all(taxonomy.resolve(other) == (name,) for other in others), line
    assert "inferior vena cava" in next(line for line in table.splitlines() if "postcava" in line)
    both = explained.splitlines()[0].removeprefix("Both sides at once: ").removesuffix(".").split(", ")
    assert {len(taxonomy.resolve(name)) for name in both} == {2}


def test_the_help_ends_with_the_disclaimer(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.rstrip().endswith("not a medical device: not for diagnosis or treatment.")


# --- Interruptions

PAUSE = """
import signal, sys, time
# a shell starts background jobs, as these tests may be, without it
signal.signal(signal.SIGINT, signal.default_int_handler)
import uniseg.infer, uniseg.machine.files, uniseg.segmenter
real, calls = {target}, []
def slow(*args, **options):
    calls.append(1)
    if len(calls) == {call}:
        print("paused", flush=True)
        time.sleep(60)
    return real(*args, **options)
{target} = slow
sys.exit(uniseg.infer.main(sys.argv[1:]))
"""


def interrupted(shared, here, target, call, signals):
    """Two cases; the `call`-th use of the function named `target` is interrupted. Exit code, stderr."""
    (here / "second.nii.gz").write_bytes((here / "ct.nii.gz").read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSE.format(target=target, call=call), "ct.nii.gz", "second.nii.gz", "--device", "cpu",
         "--weights", str(shared / "tiny.pt")], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    while (line := process.stdout.readline()) not in (b"paused\n", b""):
        pass
    assert line, process.stderr.read().decode()
    process.send_signal(signals)
    _, err = process.communicate(timeout=30)
    return process.returncode, err.decode()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("signals, code, target, call", [
    pytest.param(signal.SIGINT, 130, "uniseg.segmenter.sliding_window", 2, id="SIGINT in the network",
                 marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 143, "uniseg.machine.files.os.fsync", 7, id="SIGTERM while writing"),
    pytest.param(signal.SIGTERM, 143, "uniseg.segmenter.sliding_window", 2, id="SIGTERM in the network",
                 marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 130, "uniseg.machine.files.os.fsync", 7, id="SIGINT while writing",
                 marks=pytest.mark.slow)])
def test_o07_o08_an_interruption_keeps_finished_cases_and_leaves_no_part_of_the_others(
        shared, here, signals, code, target, call):
    """fsync is called for a file and its folder: label map, JSON, statistics.csv. The seventh time is for the second
    label map."""
    returned, err = interrupted(shared, here, target, call, signals)
    assert returned == code and "Traceback" not in err
    assert files(here) == ["ct.nii.gz", "ct_seg.json", "ct_seg.nii.gz", "second.nii.gz", "statistics.csv"]
    assert json.loads((here / "ct_seg.json").read_text())["classes"]


DIES_AT_THE_FIFTH = """
import os, signal, sys
import uniseg.infer, uniseg.inference.result, uniseg.inference.plausibility
uniseg.inference.plausibility.ADULT_ML = {}          # as in of_any_size
real, calls = uniseg.inference.result.write_label_map, []
def dies(*arguments):
    calls.append(1)
    real(*arguments)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
uniseg.inference.result.write_label_map = dies
sys.exit(uniseg.infer.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_r9_of_ten_cases_killed_at_the_fifth_resume_makes_the_rest_and_touches_no_other(shared, segment, here):
    """The fifth has its label map already, but not the JSON that makes it complete: it is made again."""
    (here / "cts").mkdir()
    for n in range(10):
        (here / "cts" / f"{n}.nii.gz").write_bytes((here / "ct.nii.gz").read_bytes())
    options = ["cts", "--device", "cpu", "--weights", str(shared / "tiny.pt"), "-o", "out",
               "--precision", "float32"]
    done = subprocess.run([sys.executable, "-c", DIES_AT_THE_FIFTH, *options], cwd=here, timeout=60,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files("out") == sorted([*(f"{n}_seg.{end}" for n in range(4) for end in ("json", "nii.gz")), "4_seg.nii.gz",
                                   "statistics.csv"])
    assert cases_of("out/statistics.csv") == dict.fromkeys("0123", len(CLASSES))        # whole rows of whole cases
    stamps = {f: (s.st_mtime_ns, s.st_ino) for f in files("out")[:8] for s in [os.stat(here / "out" / f)]}
    fifth = os.stat("out/4_seg.nii.gz").st_ino
    code, out, err = segment("cts", "-o", "out", "--resume")
    assert code == 0 and err == "uniseg: 4 of 10 results are complete and stay as they are\n"
    assert out.count(" MiB, cpu)") == 6
    assert {f: (s.st_mtime_ns, s.st_ino) for f in stamps for s in [os.stat(here / "out" / f)]} == stamps
    assert os.stat("out/4_seg.nii.gz").st_ino != fifth
    assert segment("cts", "-o", "whole")[0] == 0
    assert files("out") == files("whole")
    for name in files("whole"):
        one, other = Path("out", name).read_bytes(), Path("whole", name).read_bytes()
        if name.endswith(".json"):
            differ = ("seconds", "peak_memory_mib")                             # times and memory
            one, other = ({k: v for k, v in json.loads(b).items() if k not in differ} for b in (one, other))
        assert one == other, name


def cases_of(path):
    """{case: number of its rows} of a statistics.csv."""
    with open(path, newline="") as file:
        cases = [row["case"] for row in csv.DictReader(file)]
    return {case: cases.count(case) for case in cases}


def test_o25_statistics_over_a_folder_are_complete_after_resume_also_for_cases_that_were_kept(segment, here):
    Path("next.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    assert segment("ct.nii.gz", "-o", "out")[0] == 0 and not Path("out/statistics.csv").exists()
    code, _, err = segment(here, "-o", "out", "--resume")
    assert code == 0 and "1 of 2 results are complete" in err
    assert cases_of("out/statistics.csv") == {"ct": len(CLASSES), "next": len(CLASSES)}
    with open("out/statistics.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if (row["case"], row["class"]) == ("next", "liver"))
    figures = json.loads(Path("out/next_seg.json").read_text())["classes"]["liver"]
    assert (float(row["ml"]), float(row["mean_hu"]), int(row["last_k"])) == (
        figures["ml"], figures["mean_hu"], figures["last_voxel"][2])


def test_o26_a_statistics_csv_of_somebody_else_stops_the_run_before_any_work(segment, here):
    Path("statistics.csv").write_text("patient,age\n")
    code, _, err = segment(here)
    assert code == 2 and one_line(err) == (f"{here / 'statistics.csv'}: another file has this name. Rename it, or give "
                                           "another -o.")
    assert files(here) == ["ct.nii.gz", "statistics.csv"] and Path("statistics.csv").read_text() == "patient,age\n"


@pytest.mark.slow
def test_viewer_files_belong_to_their_result(segment, here):
    """--resume looks for them, and --overwrite without them removes those of the former result."""
    assert segment("ct.nii.gz")[0] == 0
    code, _, err = segment("ct.nii.gz", "--resume", "--viewer-files")
    assert code == 0 and "1 of 1 results are made again: 1 without viewer files" in err
    written = {f"ct_seg{end}" for end in (".seg.nrrd", ".ctbl", "_itksnap.txt", "_niivue.json", ".nii.lut", ".nii.txt")}
    assert written < set(json.loads(Path("ct_seg.json").read_text())["files"]) and written < set(files(here))
    assert segment("ct.nii.gz", "--resume", "--viewer-files")[2].startswith("uniseg: 1 of 1 results are complete")
    names = dict(line.split() for line in Path("ct_seg.nii.txt").read_text().splitlines())
    assert names == {str(taxonomy.BY_NAME[name].index): name for name in CLASSES}
    assert segment("ct.nii.gz", "--overwrite")[0] == 0
    assert files(here) == ["ct.nii.gz", "ct_seg.json", "ct_seg.nii.gz"]


@pytest.mark.slow
def test_numbers_of_others_reach_map_header_and_json_and_resume_compares_them(segment, here):
    code, out, err = segment("ct.nii.gz", "--numbers", "KiTS", "--viewer-files")
    assert code == 0 and err == "uniseg: no number in kits, so not in the label map: spleen, liver, aorta\n"
    assert "    -  liver" in out and "    1  right_kidney" in out
    stats = json.loads(Path("ct_seg.json").read_text())
    assert stats["settings"]["numbers"] == "kits" and stats["not_in_the_label_map"] == ["spleen", "liver", "aorta"]
    assert stats["classes"]["liver"]["label"] is None and stats["classes"]["liver"]["voxels"] > 0
    image = nib.load("ct_seg.nii.gz")
    assert set(np.unique(image.dataobj)) <= {0, 1} and b"kidneys" in image.header.extensions[0].get_content()
    assert Path("ct_seg.nii.txt").read_text() == "1 kidneys\n"
    assert segment("ct.nii.gz", "--resume", "--numbers", "kits")[2].endswith("1 of 1 results are complete and stay as "
                                                                             "they are\n")
    assert "1 made with another label numbering" in segment("ct.nii.gz", "--resume")[2]
    assert np.asarray(nib.load("ct_seg.nii.gz").dataobj).max() > 1


@pytest.mark.parametrize("arguments, said", [
    (("--numbers", "nobody"), "no label numbers are called 'nobody'. Known are table2"),
    (("--numbers", "lits", "--classes", "spleen"), "none of the classes asked for has a label number in lits")])
def test_numbers_that_make_no_sense_are_exit_2_before_any_work(segment, here, arguments, said):
    code, _, err = segment("ct.nii.gz", *arguments)
    assert code == 2 and said in one_line(err) and files(here) == ["ct.nii.gz"]


def test_what_was_looked_for_and_not_found_and_what_is_a_part_stand_in_the_table(monkeypatch):
    stats = {"warnings": [], "seconds": {"total": 1.0}, "peak_memory_mib": 9, "settings": {"device": "cpu"},
             "empty": False, "not_found": ["spleen"], "classes": {
                 "liver": {"label": 6, "voxels": 9, "ml": 1400.0, "touches_border": True},
                 "spleen": {"label": 1, "voxels": 0, "ml": 0.0, "touches_border": False}}}
    said = []
    monkeypatch.setattr(infer, "say", said.append)
    infer.report(Path("ct.nii.gz"), Path("ct_seg.nii.gz"), stats, Outputs())
    assert said[1:] == [f"    6  {'liver':30}     1400.0 ml  touches the border, so this is a part of it",
                        "  looked for and not found: spleen"]


def test_resume_with_nothing_left_to_do_is_done(segment, here):
    assert segment("ct.nii.gz")[0] == 0
    assert segment("ct.nii.gz", "--resume") == (0, "", "uniseg: 1 of 1 results are complete and stay as they are\n")
    code, _, err = segment("ct.nii.gz", "--resume", "--masks")              # which the first run did not write
    assert code == 0 and "0 of 1" in err and Path("ct_seg/liver.nii.gz").is_file()


def test_resume_and_overwrite_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as end:
        main(["ct.nii.gz", "--resume", "--overwrite"])
    assert end.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_main_works_outside_the_main_thread_where_no_signal_handler_can_be_set(shared, here):
    codes = []
    arguments = ["ct.nii.gz", "--weights", str(shared / "tiny.pt"), "--device", "cpu"]
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]


# --- What is said, and to whom

def test_o18_nothing_asks_the_network(segment, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    assert segment("ct.nii.gz", "--masks")[0] == 0


@pytest.mark.slow
def test_o11_a_reader_that_leaves_does_not_stop_the_work(shared, here):
    """As in `python -m uniseg.infer a.nii.gz b.nii.gz | head -1`: both cases are written, without a traceback."""
    (here / "second.nii.gz").write_bytes((here / "ct.nii.gz").read_bytes())
    process = command("ct.nii.gz", "second.nii.gz", "--device", "cpu", "--weights", shared / "tiny.pt", cwd=here)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0
    told = [f"uniseg: warning: {name}.nii.gz: {text}" for name in ("ct", "second")
            for text in json.loads((here / f"{name}_seg.json").read_text())["warnings"]]
    assert err.splitlines() == told and len(told) == 2      # the stand-in's organs are of no adult's size


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no shell")
@pytest.mark.parametrize("arguments", ["--list-classes", "ct.nii.gz --device cpu --weights {weights} 2>&1"])
def test_o11_head_gets_its_line_and_the_pipe_ends_well(shared, here, arguments):
    line = f"set -o pipefail; {sys.executable} -m uniseg.infer {arguments.format(weights=shared / 'tiny.pt')} | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=here, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.slow
def test_o12_o13_a_log_is_plain_text_in_the_c_locale_and_on_an_ascii_stdout(shared, here):
    """Without a terminal there is no progress bar; a name that stdout cannot say is escaped, not an error."""
    name = "Łódź 肝臓.nii.gz"
    (here / "ct.nii.gz").rename(here / name)
    process = command(name, "missing.nii.gz", "--device", "cpu", "--weights", shared / "tiny.pt", cwd=here,
                      env={"TERM": "dumb", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and b"missing.nii.gz: no such file" in err and b"liver" in out
    assert not [c for c in (out + err).decode("ascii") if ord(c) < 32 and c != "\n"]
    assert out.startswith(rb"\u0141\xf3d\u017a") and (here / "Łódź 肝臓_seg.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are no text")
def test_a_file_name_that_is_no_text_works(segment, here):
    os.rename(b"ct.nii.gz", b"ct\xff.nii.gz")
    code, out, err = segment(*os.listdir(here))
    assert code == 0 and err == "" and out.startswith(r"ct\udcff_seg.nii.gz")
    assert sorted(os.listdir(os.fsencode(here))) == [b"ct\xff.nii.gz", b"ct\xff_seg.json", b"ct\xff_seg.nii.gz"]


@pytest.mark.slow
def test_five_cases_in_a_row_leave_no_open_files(segment, here):
    for n in range(5):
        Path(f"{n}.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux lists the open files of a process")
    segment("0.nii.gz")
    before = len(os.listdir("/proc/self/fd"))
    assert segment("1.nii.gz", "2.nii.gz", "3.nii.gz", "4.nii.gz")[0] == 0
    assert len(os.listdir("/proc/self/fd")) == before


# --- The picture

def test_a_preview_is_written_where_it_is_asked_for_and_belongs_to_the_result(segment, here):
    """Named in the JSON, with its sha256; `--resume` makes it where a former run did not, and is content afterwards."""
    assert segment("ct.nii.gz")[0] == 0 and "ct_preview.png" not in files(here)
    code, _, err = segment("ct.nii.gz", "--preview", "--resume")
    assert code == 0 and "without a preview" in err
    picture = read_png(here / "ct_preview.png")
    assert min(picture.shape[:2]) > 600 and picture.std() > 20
    written = json.loads((here / "ct_seg.json").read_text())["files"]["ct_preview.png"]
    assert written["bytes"] == (here / "ct_preview.png").stat().st_size
    assert "1 of 1 results are complete" in segment("ct.nii.gz", "--preview", "--resume")[2]


@pytest.mark.slow
def test_a_former_preview_is_refused_and_goes_with_a_result_that_is_replaced_without_one(segment, here):
    assert segment("ct.nii.gz", "--preview")[0] == 0
    (here / "ct_seg.nii.gz").unlink(), (here / "ct_seg.json").rename("kept.json")
    assert "ct_preview.png: exists already" in segment("ct.nii.gz", "--preview")[2]
    (here / "kept.json").rename("ct_seg.json")
    assert segment("ct.nii.gz", "--overwrite")[0] == 0 and "ct_preview.png" not in files(here)


# --- The demonstration

@pytest.mark.slow
def test_the_demonstration_runs_as_pasted_and_finds_the_liver_at_its_place(tmp_path, monkeypatch, capsys):
    """With the built-in weights; where the phantom's liver is, is known."""
    assert DEFAULT_WEIGHTS.is_file(), "the package ships uniseg/weights/default.pt"
    monkeypatch.chdir(tmp_path)
    assert main(["--demo"]) == 0
    out, err = capsys.readouterr()
    assert files(tmp_path) == ["demo_ct.nii.gz", "demo_ct_preview.png", "demo_ct_seg.json", "demo_ct_seg.nii.gz"]
    assert out.startswith("demo_ct_seg.nii.gz  (") and "synthetic CT of 110x80x110 voxels" in err
    stats = json.loads(Path("demo_ct_seg.json").read_text())
    assert stats["warnings"] == [] and stats["weights"]["file"] == "default.pt"
    liver, truth = np.asarray(nib.load("demo_ct_seg.nii.gz").dataobj) == 6, make_phantom()[1]["liver"]
    assert np.count_nonzero(liver & truth) > 0.5 * max(np.count_nonzero(liver), np.count_nonzero(truth))


@pytest.mark.slow
def test_the_demonstration_goes_to_a_folder_of_choice_with_any_weights_and_may_be_repeated(segment, here):
    for _ in range(2):
        code, *_ = segment("--demo", "-o", "demo", "--masks")
        assert code == 0 and set(files(here / "demo")) == {"demo_ct.nii.gz", "demo_ct_seg.nii.gz", "demo_ct_seg.json",
                                                           "demo_ct_preview.png",
                                                           *(f"demo_ct_seg/{n}.nii.gz" for n in CLASSES)}


def test_the_preview_shows_the_classes_whatever_numbers_the_label_map_has(segment, here):
    """With the numbers of others, of which some classes have none, the picture is the same one."""
    segment("ct.nii.gz", "--preview")
    own = read_png(here / "ct_preview.png")
    assert segment("ct.nii.gz", "--preview", "--numbers", "totalsegmentator", "--overwrite")[0] == 0
    assert np.array_equal(read_png(here / "ct_preview.png"), own)


# --- How much is said

def test_quiet_leaves_warnings_and_errors_and_writes_the_same_files(segment, here):
    write_volume("air.nii.gz", np.full((20, 20, 20), -1000, np.int16), np.diag([5.0, 5, 5, 1]))
    code, out, err = segment("ct.nii.gz", "air.nii.gz", "gone.nii.gz", "--quiet")
    assert code == 1 and out == "" and Path("ct_seg.json").is_file() and Path("air_seg.nii.gz").is_file()
    assert [line.split()[1] for line in err.splitlines()] == ["warning:", "error:"]
    assert segment("ct.nii.gz", "--resume", "-q") == (0, "", "")
    assert " 32 kidney_cyst" in segment("--list-classes", "--quiet")[1]


def test_a_log_says_which_case_is_at_work_and_how_far_it_is(segment, here, monkeypatch):
    """Lines come by time: here, one is always due."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    for name in ("s1", "s2"):
        Path(name).mkdir()
        Path(name, "ct.nii.gz").write_bytes(Path("ct.nii.gz").read_bytes())
    code, _, err = segment("s1", "s2", "-o", "out", "--recursive")
    assert code == 2 and "both would be written to out/ct_seg.nii.gz" in one_line(err)
    Path("ct.nii.gz").unlink()
    code, _, err = segment(here, "-o", "out", "--recursive")
    lines = [line for line in err.splitlines() if line.startswith("uniseg: case ")]
    assert code == 0 and lines[0].startswith("uniseg: case 1 of 2 s1/ct.nii.gz: windows ")
    assert any(line.startswith("uniseg: case 2 of 2 s2/ct.nii.gz: windows ") for line in lines)
    done, total = lines[-1].split()[-1].split("/")
    assert done == total and files(here / "out") == ["s1/ct_seg.json", "s1/ct_seg.nii.gz", "s2/ct_seg.json",
                                                     "s2/ct_seg.nii.gz", "statistics.csv"]
