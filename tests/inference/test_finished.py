"""Whose result it is: what `--resume` believes, what killed and second runs leave, what a replaced result takes away.

The tables call `why_not` on one result that is damaged in many ways; the rest are whole commands.
"""

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runs import ForkedInference, wait_until
from test_infer import files, one_line, save_weights
from uniseg import infer, segmenter
from uniseg.evaluation.readings import in_folder
from uniseg.imaging.volume import write_volume
from uniseg.inference import plausibility
from uniseg.inference import result as result_module
from uniseg.inference.finished import digests, why_not, withdraw
from uniseg.inference.outputs import Outputs
from uniseg.inference.result import Segmentation
from uniseg.machine.owners import this_host
from uniseg.phantom import make_phantom

CLASSES = ("spleen", "liver", "aorta")
DEAD = 2 ** 22 + 1                                     # no process has this number: Linux counts up to 2 ** 22


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """The stand-in's organs are of no adult's size; the warning about that is another test's (test_plausibility.py)."""
    monkeypatch.setattr(plausibility, "ADULT_ML", {})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two checkpoints, the same classes, other numbers."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder / "a.pt", CLASSES)
    save_weights(folder / "b.pt", ("left_kidney", *CLASSES))
    return folder


@pytest.fixture(scope="module")
def made(weights, tmp_path_factory):
    """A folder with ct.nii.gz and its finished result with masks, of weights a.pt. Not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    hu, _, affine = make_phantom((20.0, 20.0, 20.0))
    write_volume(folder / "ct.nii.gz", hu, affine)
    options = ["--weights", str(weights / "a.pt"), "--device", "cpu", "--masks"]
    assert infer.main([str(folder / "ct.nii.gz"), *options]) == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of `made`, the working folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def run(weights, here, capsys):
    """The command with weights a.pt or b.pt: (exit code, stderr)."""
    def start(*arguments, weights=weights / "a.pt"):
        code = infer.main(["--device", "cpu", "--weights", str(weights), *map(str, arguments)])
        return code, capsys.readouterr().err
    return start


@pytest.fixture(scope="module")
def loaded(weights):
    return segmenter.load(weights / "a.pt", "cpu")


def edit(**changes):
    def change():
        stats = json.loads(Path("ct_seg.json").read_text())
        stats |= changes
        Path("ct_seg.json").write_text(json.dumps({k: v for k, v in stats.items() if v is not None}))
    return change


def flip(path):
    def change():
        content = bytearray(Path(path).read_bytes())
        content[-5] ^= 1
        Path(path).write_bytes(content)
    return change


def content(path, data=b""):
    return lambda: Path(path).write_bytes(data)


# --- What is kept

@pytest.mark.parametrize("options, reason", [
    ({}, None), ({"threshold": {"liver": 0.5}}, None), ({"max_voxels": 10 ** 6}, None),
    ({"threshold": 0.4}, "made with another threshold"), ({"threshold": {"liver": 0.4}}, "made with another threshold"),
    ({"overlap": 0.25}, "made with another overlap"), ({"postprocess": False}, "made with post-processing"),
    ({"precision": "float32"}, None),
    ({"precision": "bf16"}, "made in float32, not bf16 (--precision float32 keeps them)"),
    ({"classes": ["liver"]}, "made with other classes")])
def test_o19_a_result_is_kept_where_all_that_decides_it_is_as_asked(here, loaded, options, reason):
    assert why_not(Path("ct.nii.gz"), Path("ct_seg.nii.gz"), Outputs(masks=True), loaded.asked(**options)) == reason


def test_on_another_processor_the_default_precision_makes_results_again_and_the_reason_says_what_keeps_them(
        here, loaded, monkeypatch):
    # Results of one folder are all of one precision: here made in float32 on a processor without bf16, then resumed on
    # one that has it.
    job = Path("ct.nii.gz"), Path("ct_seg.nii.gz"), Outputs(masks=True)
    assert why_not(*job, loaded.asked()) is None
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: True)
    assert why_not(*job, loaded.asked()) == "made in float32, not bf16 (--precision float32 keeps them)"
    assert why_not(*job, loaded.asked(precision="float32")) is None


CHANGED, UNREADABLE = "with files that are missing or changed", "not readable in their JSON"


@pytest.mark.parametrize("change, reason", [
    (content("ct_seg.nii.gz"), CHANGED), (flip("ct_seg.nii.gz"), CHANGED), (content("ct_seg/liver.nii.gz"), CHANGED),
    (lambda: os.unlink("ct_seg/liver.nii.gz"), CHANGED), (lambda: os.unlink("ct_seg.nii.gz"), CHANGED),
    (lambda: shutil.rmtree("ct_seg"), CHANGED), (lambda: os.unlink("ct.nii.gz"), "of another CT"),
    (flip("ct.nii.gz"), "of another CT"), (edit(input_file=None), UNREADABLE),
    (content("ct_seg.json"), UNREADABLE), (content("ct_seg.json", b"[]"), UNREADABLE),
    (content("ct_seg.json", b'{"files": 3, "versions": 3}'), UNREADABLE), (content("ct_seg.json", b"\xff"), UNREADABLE),
    (edit(files={}), "without masks"), (edit(versions={"uniseg": "0.0.9"}), "made by uniseg 0.0.9"),
    (edit(files=None), "of an earlier version, whose JSON does not say enough"),
    (edit(weights={"file": "a.pt", "sha256": "0" * 64}), "made with other weights"),
    (lambda: os.unlink("ct_seg.json"), "unfinished")])
def test_o20_o21_a_result_that_was_changed_or_is_of_another_ct_is_not_kept(here, loaded, change, reason):
    change()
    assert why_not(Path("ct.nii.gz"), Path("ct_seg.nii.gz"), Outputs(masks=True), loaded.asked()) == reason


def test_o19_the_json_states_ct_and_files_behind_what_it_held_before(here):
    stats = json.loads(Path("ct_seg.json").read_text())
    assert list(stats)[-3:] == ["peak_memory_mib", "input_file", "files"]
    assert stats["input_file"]["bytes"] == Path("ct.nii.gz").stat().st_size
    assert {name: entry["bytes"] for name, entry in stats["files"].items()} == {
        name: Path(name).stat().st_size for name in ("ct_seg.nii.gz", *(f"ct_seg/{c}.nii.gz" for c in CLASSES))}


def test_o19_resume_with_other_weights_makes_again_what_the_first_run_made_and_says_so(run, weights, here):
    shutil.copy("ct.nii.gz", "second.nii.gz")
    code, err = run("ct.nii.gz", "second.nii.gz", "--resume", weights=weights / "b.pt")
    assert code == 0 and err == ("uniseg: 0 of 2 results are complete and stay as they are\n"
                                 "uniseg: 1 of 2 results are made again: 1 made with other weights\n")
    assert all(len(json.loads(Path(f"{name}_seg.json").read_text())["classes"]) == 4 for name in ("ct", "second"))
    before = {f: os.stat(f).st_ino for f in files(here)}
    assert run("ct.nii.gz", "second.nii.gz", "--resume", weights=weights / "b.pt") == (
        0, "uniseg: 2 of 2 results are complete and stay as they are\n")
    assert {f: os.stat(f).st_ino for f in files(here)} == before


def test_o21_another_ct_under_the_same_name_is_segmented(run):
    image = nib.load("ct.nii.gz")
    write_volume("ct.nii.gz", np.asarray(image.dataobj)[:, :, ::-1].astype(np.int16), image.affine)
    code, err = run("ct.nii.gz", "--masks", "--resume")
    assert code == 0 and err.splitlines()[1] == "uniseg: 1 of 1 results are made again: 1 of another CT"


# --- What a replaced result leaves

def test_o22_masks_of_the_former_result_go_with_it_and_a_changed_one_stays(run, here):
    Path("ct_seg/aorta.nii.gz").write_bytes(b"corrected by hand")
    Path("ct_seg/notes.nii.gz").write_bytes(b"mine")
    code, _ = run("ct.nii.gz", "--classes", "liver", "--overwrite")
    assert code == 0 and files("ct_seg") == ["aorta.nii.gz", "notes.nii.gz"]
    reading = in_folder(here)["ct"]                                         # evaluate takes no mask of a former result
    assert reading.path.name == "ct_seg.nii.gz" and reading.classes == ("liver",)


def test_o20_an_evaluation_refuses_a_result_that_has_lost_a_mask(here):
    assert in_folder(here)["ct"].classes == CLASSES
    os.unlink("ct_seg/liver.nii.gz")
    with pytest.raises(ValueError, match="ct_seg/liver.nii.gz: is missing, but the JSON of the result lists it"):
        in_folder(here)


@pytest.mark.parametrize("name", ["../ct.nii.gz", "/etc/passwd", "ct.nii.gz", "ct_seg/../ct.nii.gz", "ct_seg.nii.gz"])
def test_o22_a_json_that_names_other_files_removes_none_of_them(here, name):
    edit(files={name: digests([Path("ct.nii.gz")], here)["ct.nii.gz"]})()
    before = files(here)
    withdraw(Path("ct_seg.nii.gz"))
    assert files(here) == [f for f in before if f != "ct_seg.json"]


# --- Killed runs

@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_o10_kill_9_within_the_write_of_a_label_map_leaves_a_temporary_that_the_next_run_sweeps(run, weights, here):
    """The first file that is made durable is the label map."""
    for path in ("ct_seg.json", "ct_seg.nii.gz"):
        os.unlink(path)
    shutil.rmtree("ct_seg")
    options = ["ct.nii.gz", "--weights", weights / "a.pt", "--device", "cpu"]
    killed = ForkedInference(options, "uniseg.machine.files:os.fsync", 1, "kill")
    assert killed.wait() == -signal.SIGKILL
    [left] = set(files(here)) - {"ct.nii.gz"}
    assert left.startswith(".ct_seg.nii.gz.") and left.endswith(".tmp")
    Path(f".ct_seg.json.{this_host()}-1.{DEAD}.tmp").touch()
    Path(f".ct_seg.json.{DEAD}.tmp").touch()                                # of an earlier version
    Path(".keep.tmp").touch()
    code, err = run(here, "--resume")
    assert code == 0 and err == "uniseg: 0 of 1 results are complete and stay as they are\n"
    assert files(here) == [".keep.tmp", "ct.nii.gz", "ct_seg.json", "ct_seg.nii.gz", "statistics.csv"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("write", [2, 4], ids=["a mask", "the label map"])
def test_r9_killed_while_it_replaces_results_no_json_stands_beside_files_of_another_run(run, weights, here, write):
    """Three cases of a.pt; --overwrite with b.pt is killed in the second. --resume with either gives whole results."""
    for name in ("second", "third"):
        shutil.copy("ct.nii.gz", f"{name}.nii.gz")
    assert run("second.nii.gz", "third.nii.gz", "--masks")[0] == 0
    first = files(here)
    options = [here, "--masks", "--weights", weights / "b.pt", "--device", "cpu", "--overwrite"]
    killed = ForkedInference(options, "uniseg.inference.result:write_label_map", 5 + write, "kill")
    assert killed.wait() == -signal.SIGKILL
    assert not Path("second_seg.json").exists() and Path("second_seg.nii.gz").exists()
    third = os.stat("third_seg.nii.gz").st_ino
    code, err = run(here, "--masks", "--resume")                            # with a.pt again
    assert code == 0 and os.stat("third_seg.nii.gz").st_ino == third
    assert err == ("uniseg: 1 of 3 results are complete and stay as they are\n"
                   "uniseg: 1 of 3 results are made again: 1 made with other weights\n")
    assert [f for f in files(here) if "left_kidney" not in f] == first
    assert run(here, "--masks", "--resume")[1] == "uniseg: 3 of 3 results are complete and stay as they are\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_o09_a_second_ctrl_c_does_not_wait_for_the_cleaning_up_after_the_first(weights, here):
    options = ["ct.nii.gz", "--weights", weights / "a.pt", "--device", "cpu", "--overwrite"]
    process = ForkedInference(options, "uniseg.segmenter:sliding_window", 1, "rest", str(here / "resting"))
    wait_until((here / "resting").exists, process)
    os.kill(process.process.pid, signal.SIGINT)
    wait_until((here / "resting.cleaning").exists, process)
    os.kill(process.process.pid, signal.SIGINT)
    process.process.join(10)
    assert process.poll() == 130


# --- Two runs at once

@pytest.mark.parametrize("options, code, said", [
    ([], 1, "exists already, another run has made it meanwhile. Give --overwrite to replace it, or --resume"),
    (["--resume"], 0, "uniseg: ct_seg.nii.gz: another run has made it meanwhile; it stays as it is")])
def test_o14_what_another_run_has_made_meanwhile_is_not_replaced_unasked(run, made, here, monkeypatch, options, code,
                                                                         said):
    for path in ("ct_seg.json", "ct_seg.nii.gz"):
        os.unlink(path)
    segment = segmenter.Segmenter.segment

    def while_another_run_ends(*arguments, **more):
        shutil.copy(made / "ct_seg.nii.gz", here)
        shutil.copy(made / "ct_seg.json", here)
        return segment(*arguments, **more)
    monkeypatch.setattr(segmenter.Segmenter, "segment", while_another_run_ends)
    ended, err = run("ct.nii.gz", *options)
    assert ended == code and said in err and (code == 0 or one_line(err).startswith("ct.nii.gz: ct_seg.nii.gz"))
    assert Path("ct_seg.json").read_bytes() == (made / "ct_seg.json").read_bytes()


def test_o14_two_that_write_one_result_at_the_same_time_leave_that_of_one(here, loaded, monkeypatch):
    write, begin = result_module.write_label_map, threading.Barrier(2)

    def slowly(path, *arguments):
        write(path, *arguments)
        time.sleep(0.005)
    monkeypatch.setattr(result_module, "write_label_map", slowly)
    results = [loaded.segment("ct.nii.gz", threshold=t, postprocess=False) for t in (0.3, 0.6)]
    assert isinstance(results[0], Segmentation)

    def save(result):
        begin.wait()
        for _ in range(2):
            result.save("both_seg.nii.gz", "both_seg")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, results))                                       # raises what a save has raised
    threshold = json.loads(Path("both_seg.json").read_text())["settings"]["threshold"]
    assert why_not(Path("ct.nii.gz"), Path("both_seg.nii.gz"), Outputs(masks=True),
                   loaded.asked(threshold=threshold, postprocess=False)) is None
