"""Runs that are interrupted, damaged or doubled: what they leave, and that --resume ends like a run that nothing
disturbed.

Ids like D21, R4 are those of docs/faults.md. Runs of several processes: test_distributed.py.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import Patient, write_dataset
from runs import (
    ROOT,
    RUN_FILES,
    ForkedRun,
    assert_same_run,
    batch_of,
    interrupted_by,
    metrics,
    small_network,
    wait_until,
)
from uniseg import checkpoint, data, train
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.machine import memory, signals
from uniseg.machine.console import explain
from uniseg.machine.memory import workers_that_fit
from uniseg.machine.owners import started
from uniseg.machine.signals import signals_noted
from uniseg.phantom import make_phantom
from uniseg.train import main
from uniseg.training import run_folder, validation
from uniseg.training.recipe import TrainConfig
from uniseg.training.resume import read_last
from uniseg.training.run_folder import trim_metrics
from uniseg.training.steps import all_finite, training_step

SHORT = ("--epochs", 4, "--val-every", 2)


@pytest.fixture(scope="module")
def short(flags, tmp_path_factory):
    """The folder of a run of 4 epochs that nothing interrupted. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "short"
    assert main(flags(out, *SHORT)) == 0
    return out


# ------------------------------------------------------------------------------------------------ killed at any instant

def test_d22_metrics_after_the_last_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    """A killed run may have logged an epoch whose checkpoint it could not write, or half a line."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"epoch": 1, "step": 2}\n{"epoch": 2, "step": 4}\n{"epoch": 3, "step": 6}\n{"epoch": 4, "st')
    trim_metrics(log, 4)
    assert log.read_text() == '{"epoch": 1, "step": 2}\n{"epoch": 2, "step": 4}\n'
    trim_metrics(tmp_path / "none.jsonl", 4)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.slow
def test_r1_workers_change_nothing(flags, short, tmp_path):
    """Nor does a second run: the same seed gives the same bits."""
    assert main(flags(tmp_path / "run", *SHORT, "--workers", 2)) == 0
    assert_same_run(tmp_path / "run", short)


@pytest.mark.slow
def test_r1_a_killed_run_resumes_as_if_nothing_had_happened(flags, finished, tmp_path):
    out = tmp_path / "run"
    process = ForkedRun(*flags(out))
    wait_until((out / "last.pt").exists, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < read_last(out, 0)[0]["training"]["step"] < 20
    assert main(flags(out, "--resume")) == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_r2_a_run_killed_20_times_ends_like_one_that_never_was(flags, tmp_path):
    """At a random instant each time: in a step, in a validation, while it writes its log or a checkpoint.

    A life lasts one epoch and a half or so more, whatever the machine's pace: 20 of them are over before the run is.
    """
    whole, out, draw = tmp_path / "whole", tmp_path / "run", random.Random(0)
    options = ("--epochs", 100, "--val-every", 4)
    assert main(flags(whole, *options)) == 0
    epoch_seconds = metrics(whole)[-1]["seconds"] / 100
    steps = [0]

    def stamp():
        with contextlib.suppress(FileNotFoundError):  # before the first, or between two renamings
            return (out / "last.pt").stat().st_mtime_ns
    for _ in range(20):
        before = stamp()
        process = ForkedRun(*flags(out, *options, *["--resume"] * (out / "config.json").exists()))
        wait_until(lambda: stamp() not in (None, before), process)
        time.sleep(draw.uniform(0, 1.5 * epoch_seconds))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        last = out / ("last.pt" if stamp() else "last.prev.pt")
        steps.append(checkpoint.read(last)["training"]["step"])                       # never a torn file
    assert steps == sorted(set(steps)) and steps[-1] < 200
    assert main(flags(out, *options, "--resume")) == 0
    assert_same_run(out, whole)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_write():
    """Arrange that the process is killed within the write of its fourth checkpoint: last, best and last, last."""
    save, calls = torch.save, []

    def half(content, file):
        calls.append(1)
        if len(calls) == 4:
            file.write(b"PK" + bytes(1000)), file.flush(), die()
        save(content, file)
    torch.save = half


def die_between_the_renamings():
    """Arrange that the process is killed when the second last.pt has become last.prev.pt and none has taken its place.
    """
    replace, calls = os.replace, []

    def dies_after(source, target):
        replace(source, target)
        if str(target).endswith("last.prev.pt"):
            calls.append(1)
            if len(calls) == 2:
                die()
    os.replace = dies_after


def killed(before, *options):
    assert ForkedRun(*options, before=before).wait(timeout=60) == -signal.SIGKILL


@pytest.mark.slow
def test_r3_killed_within_the_write_of_a_checkpoint_the_former_one_stands(flags, short, tmp_path):
    """The half that was written of epoch 3's is removed by the next start."""
    out = tmp_path / "run"
    killed(die_in_the_write, *flags(out, *SHORT))
    assert {p.name for p in out.iterdir()} > {"last.pt", "last.prev.pt", "run.lock"}
    assert len([p for p in out.iterdir() if p.name.endswith(".tmp")]) == 1
    assert checkpoint.read(out / "last.pt")["training"]["epoch"] == 2 and len(metrics(out)) == 3  # one line too many
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert {p.name for p in out.iterdir()} == RUN_FILES
    assert_same_run(out, short)


@pytest.mark.slow
def test_r4_killed_between_the_two_renamings_the_checkpoint_before_is_used(flags, short, tmp_path, capsys):
    out = tmp_path / "run"
    killed(die_between_the_renamings, *flags(out, *SHORT))
    assert not (out / "last.pt").exists() and checkpoint.read(out / "last.prev.pt")["training"]["epoch"] == 2
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert f"{out / 'last.pt'}: no such weights file" in (err := capsys.readouterr().err)
    assert "Going on from last.prev.pt." in err
    assert {p.name for p in out.iterdir()} == RUN_FILES
    assert_same_run(out, short)


# -------------------------------------------------------------------------------------------------- damaged checkpoints

@pytest.fixture
def ended(finished, tmp_path):
    """A copy of the folder of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "ended"))


def cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def test_last_prev_pt_is_the_checkpoint_before_the_last(finished):
    last, before = (checkpoint.read(finished / name)["training"] for name in ("last.pt", "last.prev.pt"))
    assert (before["epoch"], last["epoch"], before["step"], last["step"]) == (9, 10, 18, 20)


@pytest.mark.slow
def test_r8_d21_a_damaged_last_pt_is_set_aside_and_the_one_before_is_used(flags, finished, ended, capsys):
    """It must not become last.prev.pt at the next save: then a kill between two renamings would leave no good one."""
    cut(ended / "last.pt")
    before = (ended / "last.prev.pt").read_bytes()
    assert main(flags(ended, "--resume")) == 0
    assert f"uniseg: warning: {ended / 'last.pt'}: truncated." in (err := capsys.readouterr().err)
    assert "Going on from last.prev.pt." in err and "epoch 10 " in err and "epoch 9 " not in err
    assert {p.name for p in ended.iterdir()} == RUN_FILES | {"last.damaged.pt"}
    assert (ended / "last.prev.pt").read_bytes() == before
    assert_same_run(ended, finished)                                                  # epoch 10 is in the log once


def test_d21_with_both_damaged_nothing_is_deleted(ended, refused):
    cut(ended / "last.pt"), cut(ended / "last.prev.pt")
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()}
    error = refused("--resume", out=ended)
    assert error.startswith(f"{ended / 'last.pt'}: truncated.")
    assert f"Nor can the one before it be used: {ended / 'last.prev.pt'}" in error
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("damage, words", [
    (lambda t: t["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "the optimiser's state is that of another"),
    (lambda t: t["optimizer"]["state"][0].pop("exp_avg_sq"), "the optimiser's state is that of another"),
    (lambda t: t["optimizer"]["param_groups"][0].update(betas="ab"), "the optimiser has another betas"),
    (lambda t: t["config"].update(lr=torch.ones(2)), "training: config holds a tensor"),
    (lambda t: t["optimizer"]["param_groups"].pop(), "the state of the run does not fit its network"),
    (lambda t: t["optimizer"].clear(), "the state of the run does not fit its network"),
    (lambda t: t.pop("optimizer"), "the state of the run lacks optimizer. Start a new run."),
    (lambda t: t.update(step="3"), "training: step is '3', not a whole number")])
def test_w22_a_state_of_another_network_is_refused(damage, words, ended, refused):
    content = torch.load(ended / "last.pt", weights_only=True)
    damage(content["training"])
    torch.save(content, ended / "last.pt")
    (ended / "last.prev.pt").unlink()
    assert words in refused("--resume", out=ended)


def test_a_checkpoint_that_reads_back_damaged_does_not_replace_the_good_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, small_network(), Preprocessing(), training={"step": 1})
    before, save = path.read_bytes(), torch.save

    def flips_a_bit(content, file):
        save(content, file)
        file.seek(file.tell() // 2)
        file.write(b"\x55\xaa")
    monkeypatch.setattr(torch, "save", flips_a_bit)
    with pytest.raises(ValueError, match="last.pt: cannot be written: what was written reads back damaged"):
        checkpoint.save(path, small_network(), Preprocessing(), training={"step": 2})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def disk_full(monkeypatch, at):
    """The `at`-th and every later checkpoint finds the disk full, half way through."""
    save, calls = torch.save, []

    def full(content, file):
        calls.append(1)
        if len(calls) >= at:
            file.write(bytes(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)
    monkeypatch.setattr(torch, "save", full)


@pytest.mark.slow
def test_r7_d23_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(flags, short, refused, tmp_path,
                                                                           monkeypatch):
    out = tmp_path / "run"
    disk_full(monkeypatch, at=4)
    error = refused(*SHORT, out=out, code=1)
    assert re.match(rf"{out / 'last.pt'}: disk full, \d+ MiB free. Make room, or write to another disk. "
                    "What was there is left", error)
    assert {p.name for p in out.iterdir()} == RUN_FILES
    assert checkpoint.read(out / "last.pt")["training"]["epoch"] == 2
    monkeypatch.undo()                                                                # room was made
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert_same_run(out, short)


@pytest.mark.slow
def test_d23_a_run_may_go_on_without_its_checkpoints_but_its_exit_code_says_so(flags, short, tmp_path, monkeypatch,
                                                                               capsys):
    out = tmp_path / "run"
    disk_full(monkeypatch, at=4)
    assert main(flags(out, *SHORT, "--on-save-error", "continue")) == 1
    # epochs 3 and 4, perhaps best.pt
    assert capsys.readouterr().err.count("The run goes on (--on-save-error continue).") >= 2
    assert len(metrics(out)) == 4 and checkpoint.read(out / "last.pt")["training"]["epoch"] == 2
    monkeypatch.undo()
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert_same_run(out, short)


def test_a_full_disk_leaves_no_half_line_in_the_log(tmp_path, monkeypatch):
    path, record = tmp_path / "metrics.jsonl", {"epoch": 1, "step": 2, "loss": 1.0, "lr": 0.1, "seconds": 1.0}
    run_folder.log(path, record, epochs=3)
    whole = path.read_bytes()

    class Full:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *error): self.file.close()
        def fileno(self): return self.file.fileno()
        def write(self, line): return self.file.write(line[:10])
    monkeypatch.setattr(run_folder, "open", lambda *a, **o: Full(open(*a, **o)), raising=False)
    with pytest.raises(OSError, match="metrics.jsonl: cannot be written: disk full"):
        run_folder.log(path, record, epochs=3)
    assert path.read_bytes() == whole


# -------------------------------------------------------------------------------------------------------------- signals

@pytest.mark.slow
def test_d24_sigterm_to_the_whole_job_saves_and_exits_143(flags, finished, tmp_path):
    """SLURM signals every process of a job, those that load patches as well."""
    out = tmp_path / "run"
    process = ForkedRun(*flags(out, "--workers", 1), stderr=tmp_path / "stderr")
    wait_until((out / "last.pt").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.poll() == 143, err
    assert "stopped by SIGTERM after step" in err and "go on with --resume" in err
    assert main(flags(out, "--resume")) == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_r5_sigterm_in_the_middle_of_an_epoch_resumes_at_the_same_step(flags, short, tmp_path, monkeypatch):
    out, step, handler = tmp_path / "run", training_step, signal.getsignal(signal.SIGTERM)
    done = []

    def counted(*arguments):
        done.append(True)
        if len(done) == 5:  # the first of the two steps of epoch 3
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", counted)
    assert main(flags(out, *SHORT)) == 143
    assert len(done) == 5 and checkpoint.read(out / "last.pt")["training"]["step"] == 5 and len(metrics(out)) == 2
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert len(done) == 8
    assert_same_run(out, short)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_r6_a_signal_within_a_validation_ends_it_and_resume_makes_up_for_it(flags, short, tmp_path, monkeypatch, number,
                                                                            code):
    """A validation may take long; a scheduler kills after 30 s. The epoch's line is written when it has been
    validated."""
    out = tmp_path / "run"
    windows = interrupted_by(number, monkeypatch, "sliding_window", 1, validation)    # of the first case, epoch 2
    assert main(flags(out, *SHORT)) == code
    assert len(windows) == 1                                                          # the other case was not begun
    training = checkpoint.read(out / "last.pt")["training"]
    assert (training["step"], training["epoch"]) == (4, 1) and len(metrics(out)) == 1
    with open(out / "metrics.jsonl", "a") as log:  # as if resumed, and killed before it could save
        log.write('{"epoch": 2, "step": 4}\n')
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert_same_run(out, short)


@pytest.mark.slow
def test_ctrl_c_ends_the_step_saves_and_exits_130(flags, short, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    interrupted_by(signal.SIGINT, monkeypatch, "training_step", call=3)
    assert main(flags(out, *SHORT)) == 130
    assert "uniseg: stopped by SIGINT after step 3; go on with --resume" in capsys.readouterr().err
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert_same_run(out, short)


def test_a_second_ctrl_c_leaves_at_once(monkeypatch):
    """A second later, that is: torchrun passes on what the terminal may have sent to its processes already."""
    times = iter((0.0, 0.9, 1.8))
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with signals_noted() as noted:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert noted == [signal.SIGINT] * 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


@pytest.mark.slow
def test_what_leaves_at_once_keeps_the_last_checkpoint_and_gives_the_folder_back(flags, tmp_path, monkeypatch, capsys):
    out, step, done = tmp_path / "run", training_step, []

    def interrupted(*arguments):
        done.append(True)
        if len(done) == 5:
            raise KeyboardInterrupt
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", interrupted)
    assert main(flags(out)) == 130
    assert "uniseg: interrupted; the last checkpoint is kept" in capsys.readouterr().err
    assert checkpoint.read(out / "last.pt")["training"]["step"] == 4 and not (out / "run.lock").exists()


def test_sigterm_before_the_first_step_ends_the_run_at_once_and_gives_the_folder_back(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "gather_cases", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    with pytest.raises(SystemExit) as end:
        main(flags(tmp_path / "run"))
    assert end.value.code == 143 and list((tmp_path / "run").iterdir()) == []


# ------------------------------------------------------------------------------------------------- two runs, one folder

@pytest.mark.slow
def test_r10_a_run_holds_its_folder_while_it_works(flags, tmp_path, monkeypatch):
    out, step, seen = tmp_path / "run", training_step, set()
    monkeypatch.setattr(train, "training_step", lambda *a: seen.add((out / "run.lock").read_text()) or step(*a))
    assert main(flags(out, "--epochs", 1)) == 0
    assert seen == {f"{os.getpid()} {platform.node()} {started(os.getpid())}"} and not (out / "run.lock").exists()


@pytest.mark.parametrize("lock, said", [
    (f"{os.getppid()} {platform.node()}",
     f"process {os.getppid()} on {platform.node()} trains in this folder. Wait for it"),
    ("1 another-host", "process 1 on another-host trains in this folder."),
    ("", "another run has just started in this folder.")])
def test_r10_a_second_run_in_the_folder_is_refused(ended, refused, lock, said):
    (ended / "run.lock").write_text(lock)
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()}
    error = refused("--resume", out=ended)
    assert error.startswith(f"{ended / 'run.lock'}: {said}") and "another --out" in error
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_r10_the_lock_of_a_process_that_is_dead_is_replaced(flags, ended):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (ended / "run.lock").write_text(f"{dead.pid} {platform.node()}")
    assert main(flags(ended, "--resume")) == 0
    assert not (ended / "run.lock").exists()


# -------------------------------------------------------------------------------------------- losses that are no number

def breaks_at(monkeypatch, *steps, value=math.nan):
    """The loss of these steps, counted over all calls, becomes NaN, its gradients as well."""
    step, calls = training_step, itertools.count()

    def breaks(model, *arguments):
        loss = step(model, *arguments)
        if next(calls) in steps:
            for p in model.parameters():
                p.grad.fill_(math.nan)
            loss = loss * 0 + value
        return loss
    monkeypatch.setattr(train, "training_step", breaks)


@pytest.mark.slow
def test_d15_a_nan_loss_skips_its_step_and_is_counted(flags, short, tmp_path, monkeypatch, capsys):
    breaks_at(monkeypatch, 2, 3, 6)  # both steps of epoch 2, the first of epoch 4
    out = tmp_path / "run"
    assert main(flags(out, *SHORT)) == 0
    err = capsys.readouterr().err
    assert "uniseg: warning: loss is nan at step 2, cases " in err and "; skipped, 2 in a row" in err
    assert "3 in a row" not in err
    records = metrics(out)
    assert [r.get("skipped", 0) for r in records] == [0, 2, 0, 1]
    assert records[1]["loss"] is None and math.isfinite(records[3]["loss"])           # the mean of the steps taken
    assert records[0]["loss"] == metrics(short)[0]["loss"]
    content = checkpoint.read(out / "last.pt")                                        # refuses NaN
    assert all(int(s["step"]) == 8 - 3 for s in content["training"]["optimizer"]["state"].values())


@pytest.mark.slow
def test_d15_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too(flags, tmp_path, monkeypatch, capsys):
    breaks_at(monkeypatch, 1, value=0.5)
    assert main(flags(tmp_path / "run", "--epochs", 2)) == 0
    assert "loss is 0.5 but a gradient is not finite at step 1, cases" in capsys.readouterr().err
    assert metrics(tmp_path / "run")[0]["skipped"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 2])
def test_d15_too_many_in_a_row_stop_the_run_save_what_they_drew_and_leave_the_last_good_state(
        flags, finished, refused, tmp_path, monkeypatch, most):
    out, handler = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    breaks_at(monkeypatch, *range(6, 20))
    error = refused("--max-skipped", most, out=out, code=1)
    assert error.startswith(f"loss is nan at step {6 + most}, cases ")
    assert f"{out / 'last.pt'} is left as it was" in error
    failed = json.loads((out / "failed_batch.json").read_text())
    assert (failed["step"], failed["loss"]) == (6 + most, "nan")
    # 2 samples a step
    assert [(d["rank"], d["sample"]) for d in failed["drawn"]] == [(0, 12 + 2 * most), (0, 13 + 2 * most)]
    assert {d["case"] for d in failed["drawn"]} <= {"Abdomen/a0", "Chest/c1", "Vessels/v0"}
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()                                                                # the next time it is no NaN
    assert checkpoint.read(out / "last.pt")["training"]["step"] == 6 + most
    if not most:
        assert main(flags(out, "--resume")) == 0
        assert_same_run(out, finished)


@pytest.mark.slow
def test_d15_a_resumed_run_has_counted_what_was_skipped_before(flags, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    with monkeypatch.context() as patch:
        breaks_at(patch, 6)
        assert main(flags(whole, "--epochs", 5)) == 0
    with monkeypatch.context() as patch:
        breaks_at(patch, 6)
        interrupted_by(signal.SIGTERM, patch, "skip_step", call=1)  # the first of the two steps of epoch 4
        assert main(flags(out, "--epochs", 5)) == 143
    assert main(flags(out, "--epochs", 5, "--resume")) == 0
    assert metrics(out)[3]["skipped"] == 1
    assert_same_run(out, whole)


def test_d15_of_fp16s_gradients_the_scaler_decides():
    """Infinities among them are how it finds its scale; the loss is not scaled, so one that is NaN is a fault."""
    network = small_network()
    training_step(network, [batch_of(0, "111")], TrainConfig())
    assert all_finite(0.5, network) and all_finite(0.5, network, scaler=object())
    next(network.parameters()).grad[...] = math.inf
    assert not all_finite(0.5, network) and all_finite(0.5, network, scaler=object())
    assert not all_finite(math.nan, network, scaler=object()) and not all_finite(math.inf, network)


# ------------------------------------------------------------------------------------------- bad cases, workers, memory

@pytest.fixture(scope="module")
def two_bad(tmp_path_factory):
    """A dataset of four cases; two cannot be read."""
    folder, patient = tmp_path_factory.mktemp("bad") / "set", Patient(*make_phantom((24.0, 24.0, 24.0)))
    write_dataset(folder, {"liver": ("liver",), "spleen": ("spleen",)}, {name: patient for name in "abcd"})
    image, label = folder / "imagesTr" / "b.nii.gz", folder / "labelsTr" / "d.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    label.write_text("<html>")
    return folder.parent


@pytest.mark.slow
def test_d13_bad_cases_are_left_out_on_request_and_counted(flags, two_bad, refused, tmp_path, capsys):
    options = ("--folds", 1, "--fold", 0, "--spacing", 24, "--epochs", 2)
    assert refused(*options, root=two_bad).startswith(f"{two_bad / 'set' / 'imagesTr' / 'b.nii.gz'}: truncated")
    assert main(flags(tmp_path / "run", *options, "--skip-bad", root=two_bad)) == 0
    err = capsys.readouterr().err
    assert re.search(r"warning: set/b is left out: \S*b.nii.gz: truncated.*\n"
                     r".*warning: set/d is left out: \S*d.nii.gz: not gzip", err)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cases"] == ["set/a", "set/c"] and set(config["left_out"]) == {"set/b", "set/d"}
    assert [r["left_out"] for r in metrics(tmp_path / "run")] == [2, 2]


def test_d05_cases_of_which_a_file_is_missing_are_left_out_on_request(flags, two_bad, refused, tmp_path):
    shutil.copytree(two_bad, tmp_path / "data")
    (tmp_path / "data" / "set" / "labelsTr" / "a.nii.gz").unlink()
    options = ("--folds", 1, "--fold", 0, "--spacing", 24, "--epochs", 1)
    assert "1 files it needs are missing" in refused(*options, root=tmp_path / "data")
    assert main(flags(tmp_path / "run", *options, "--skip-bad", root=tmp_path / "data")) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cases"] == ["set/c"] and set(config["left_out"]) == {"set/a", "set/b", "set/d"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_d13_a_cached_case_that_went_bad_stops_the_run_and_is_named(flags, refused, tmp_path, monkeypatch, workers):
    """After it was found in the cache and before its first patch is drawn."""
    cache, out, choose = tmp_path / "cache", tmp_path / "run", train.choose_classes

    def cuts(*arguments):
        for image in cache.glob("*/image.npy"):
            image.write_bytes(image.read_bytes()[:100])
        return choose(*arguments)
    monkeypatch.setattr(train, "choose_classes", cuts)
    error = refused("--cache", cache, "--workers", workers, out=out, code=1)
    assert re.match(rf"{cache}/\w+/image.npy: the cached case \w+/\w+ is damaged \(.*\). Remove this", error)


@pytest.mark.slow
def test_d16_a_worker_that_is_killed_ends_the_run_with_a_remedy(refused, tmp_path, monkeypatch):
    draw = data.PatchDataset.__getitem__

    def killed_at_9(self, number):
        if number == 9 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does without memory left
        return draw(self, number)
    monkeypatch.setattr(data.PatchDataset, "__getitem__", killed_at_9)
    error = refused("--workers", 1, code=1)
    assert error == "a process that draws patches was killed, mostly for lack of memory. Reduce --workers."


@pytest.mark.slow
def test_d17_where_shared_memory_is_too_small_patches_are_drawn_without_workers(flags, short, tmp_path, monkeypatch,
                                                                                capsys):
    """Docker's default is 64 MiB; here, 5 batches of 2 * 16^3 voxels of 12 bytes are 480 KiB."""
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 2 * 16 ** 3 * 12))
    assert main(flags(tmp_path / "run", *SHORT, "--workers", 2)) == 0
    assert "/dev/shm has 0 MiB, 2 --workers need 0; patches are drawn without them" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", short)
    assert workers_that_fit(2, 2 * 16 ** 3 * 12 - 1) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")                                       # two ranks share it
    assert workers_that_fit(2, 2 * 16 ** 3 * 12 - 1) == 0


@pytest.mark.parametrize("error, line, code", [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                  "are out of shared memory."), "shared memory (/dev/shm) is too small", 1),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
     "out of memory. Give a smaller --batch-size", 1),
    (ConnectionResetError(104, "Connection reset by peer"), "a process that draws patches was killed", 1),
    (EOFError(), "a process that draws patches was killed", 1),
    (FileNotFoundError(2, "No such file or directory"), "a process that draws patches was killed", 1),
    (FileNotFoundError(2, "No such file or directory", "x.npy"), "[Errno 2] No such file or directory: 'x.npy'", 1),
    (MemoryError(), "out of memory. Give a smaller --batch-size", 1),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory. Give a smaller --batch-size", 1),
    (RuntimeError("DefaultCPUAllocator: not enough memory"), "out of memory. Give a smaller --batch-size", 1),
    (OSError("x.npy: damaged"), "x.npy: damaged", 1), (ValueError("x: wrong"), "x: wrong", 2),
    (OSError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
             "  File\nOSError: x: y"),
     "x: y", 1)], ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "")
def test_what_the_machine_does_is_told_in_one_line(error, line, code):
    said, exit_code = explain(error)
    assert said.startswith(line) and "\n" not in said and exit_code == code


def test_w14_a_gpu_without_memory_ends_the_run_with_a_remedy_and_its_last_checkpoint(flags, refused, tmp_path,
                                                                                     monkeypatch):
    out, real, calls = tmp_path / "run", train.training_step, []

    def full(*arguments):
        calls.append(True)
        if len(calls) > 2:                                                   # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*arguments)
    monkeypatch.setattr(train, "training_step", full)
    assert refused(out=out, code=1) == ("out of memory. Give a smaller --batch-size (and --accumulate) or "
                                        "--patch-size, --amp bf16, or --backbone segresnet.")
    assert checkpoint.read(out / "last.pt")["training"]["step"] == 2 and not (out / "run.lock").exists()


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid for input of size 3"), KeyError("x"),
                                   TypeError("x")], ids=repr)
def test_a_fault_of_the_program_keeps_its_traceback(flags, tmp_path, monkeypatch, error):
    def fails(*_):
        raise error
    monkeypatch.setattr(train, "training_step", fails)
    with pytest.raises(type(error)):
        main(flags(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.slow
def test_a_fault_of_the_program_ends_the_run_although_its_workers_do_not_heed_sigterm(flags, tmp_path):
    """The traceback keeps the loader alive until the interpreter exits, which waits for its workers."""
    code = "import sys; from uniseg import train; train.training_step = lambda *_: 1 / 0; train.command()"
    done = subprocess.run([sys.executable, "-c", code, *flags(tmp_path / "run", "--workers", 1)], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


# ---------------------------------------------------------------------------------------------------- resumed otherwise

def test_d19_a_folder_that_holds_a_run_is_not_started_in_again(finished, refused):
    before = {p.name: p.stat().st_mtime_ns for p in finished.iterdir()}
    assert refused(out=finished) == f"{finished}: holds a run already. Give --resume to go on with it or another --out."
    assert {p.name: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_d18_there_is_nothing_to_resume_without_a_checkpoint(refused, tmp_path):
    assert "last.pt: no checkpoint to resume from, nor a run begun here. Start without --resume." in refused("--resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(flags, short, tmp_path, monkeypatch):
    """So that a script may say --resume whenever there is a config.json."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_step", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            main(flags(out, *SHORT))
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert main(flags(out, *SHORT, "--resume")) == 0
    assert_same_run(out, short)


@pytest.mark.slow
@pytest.mark.parametrize("option, difference", [
    (("--lr", "2e-3"), "lr: 0.001 -> 0.002"), (("--seed", "7"), "seed: 0 -> 7"), (("--width", "4"), "width: 2 -> 4"),
    (("--patch-size", "16", "16", "24"), r"patch_size: \(16, 16, 16\) -> \(16, 16, 24\)"),
    (("--fold", "2"), "fold: 1 -> 2"), (("--classes", "liver,spleen"), "classes"),
    (("--overfit", "2"), "training cases")], ids=lambda o: o[0] if isinstance(o, tuple) else "")
def test_d20_a_run_is_not_resumed_with_other_settings(finished, refused, option, difference):
    before = (finished / "metrics.jsonl").read_bytes()
    error = refused("--resume", *option, out=finished)
    assert re.search(rf"was started otherwise \(.*{difference}.*\). Leave these options out or start a new run.",
                     error), error
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_d20_all_differences_are_listed_at_once(finished, refused):
    error = refused("--resume", "--lr", "2e-3", "--epochs", "99", out=finished)
    assert "(epochs: 10 -> 99; lr: 0.001 -> 0.002)" in error


def test_best_pt_cannot_be_resumed(finished, refused, tmp_path):
    (tmp_path / "last.pt").write_bytes((finished / "best.pt").read_bytes())
    assert "holds weights only. Start a new run." in refused("--resume", out=tmp_path)


@pytest.mark.slow
def test_resuming_a_finished_run_does_nothing(flags, finished, ended):
    before = (ended / "last.pt").stat().st_mtime_ns
    assert main(flags(ended, "--resume")) == 0
    assert (ended / "last.pt").stat().st_mtime_ns == before
    assert (ended / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_r12_other_classes_start_a_new_run_from_these_weights(flags, finished, refused, tmp_path):
    error = refused("--resume", "--classes", "liver,spleen", out=finished)
    assert "network's classes" in error
    assert f"start a new run; --init {finished / 'last.pt'} takes its weights along." in error
    assert main(flags(tmp_path / "run", "--classes", "liver,spleen", "--epochs", 1, "--init",
                      finished / "last.pt")) == 0


@pytest.mark.slow
def test_a_checkpoint_of_before_a_setting_existed_is_resumed_with_its_default(flags, finished, ended):
    content = torch.load(ended / "last.prev.pt", weights_only=True)
    for name in ("epoch", "skipped", "in_a_row"):
        del content["training"][name]
    del content["training"]["config"]["balance"]
    torch.save(content, ended / "last.pt")
    assert main(flags(ended, "--resume")) == 0
    assert_same_run(ended, finished)


@pytest.mark.slow
@pytest.mark.parametrize("name, value", [("deform", 6.0), ("compile", True)])
def test_a_checkpoint_with_a_setting_that_this_version_lacks_is_resumed_where_it_changed_nothing(name, value, flags,
                                                                                                 finished, ended,
                                                                                                 refused):
    content, off = torch.load(ended / "last.prev.pt", weights_only=True), type(value)()
    content["training"]["config"][name] = off
    torch.save(content, ended / "last.pt")
    assert main(flags(ended, "--resume")) == 0
    assert_same_run(ended, finished)
    content["training"]["config"][name] = value
    torch.save(content, ended / "last.pt")
    error = refused("--resume", out=ended)
    assert f"was started otherwise ({name}: {value} -> {off}). Leave these options out or start a new run" in error


def test_r11_the_optimisers_state_goes_to_the_device_of_the_network(finished):
    """Files hold what was saved on a GPU as tensors that are read on the CPU; "meta" stands in for a device other
    than that."""
    content = checkpoint.read(finished / "last.pt")
    network = checkpoint.load_network(content).to("meta")
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.load_state_dict(content["training"]["optimizer"])
    assert {s["exp_avg"].device.type for s in optimizer.state.values()} == {"meta"}
    assert {t.device.type for t in content["weights"].values()} == {"cpu"}
