"""preparing.py: many cases into the cache, in several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from conftest import Patient, write_dataset
from uniseg.datasets import preparing
from uniseg.datasets.cases import is_cached, prepare
from uniseg.datasets.dataset import DataError
from uniseg.datasets.find import find_datasets
from uniseg.datasets.preparing import prepare_each, preparing_bytes
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.phantom import make_phantom

ROOT = Path(__file__).parents[2]
COARSE = Preprocessing(spacing_mm=(12.0, 12.0, 12.0))
forked = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes are forks on Linux alone")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """[(dataset, case)] of five phantoms in two datasets."""
    root = tmp_path_factory.mktemp("data")
    patients = {f"p{seed}": Patient(*make_phantom((12.0, 12.0, 12.0), seed=seed)) for seed in range(5)}
    write_dataset(root / "one", {"liver": ("liver",)}, {name: patients[name] for name in ("p0", "p1", "p2")})
    write_dataset(root / "two", {"spleen": ("spleen",)}, {name: patients[name] for name in ("p3", "p4")})
    return [(dataset, case) for dataset in find_datasets(root) for case in dataset.cases]


def contents(cache):
    """{file: bytes} of a cache."""
    return {str(f.relative_to(cache)): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_the_bytes_of_one(cases, tmp_path, processes):
    assert sorted(prepare_each(cases, COARSE, tmp_path / "one", 1)) == [(k, None) for k in range(5)]
    assert sorted(prepare_each(cases, COARSE, tmp_path / "more", processes)) == [(k, None) for k in range(5)]
    assert contents(tmp_path / "one") == contents(tmp_path / "more") and len(contents(tmp_path / "one")) > 25


def test_what_is_in_the_cache_stays_and_what_is_missing_or_damaged_is_made(cases, tmp_path):
    assert not is_cached(*cases[0], COARSE, tmp_path)
    list(prepare_each(cases, COARSE, tmp_path, 3))
    before, folders = contents(tmp_path), [prepare(*case, COARSE, tmp_path).folder for case in cases]
    times = {path: path.stat().st_mtime_ns for path in folders}
    (folders[1] / "meta.json").unlink()
    (folders[3] / "meta.json").write_text("{")
    assert [is_cached(*case, COARSE, tmp_path) for case in cases] == [True, False, True, False, True]
    assert sorted(prepare_each(cases, COARSE, tmp_path, 3)) == [(k, None) for k in range(5)]
    assert contents(tmp_path) == before
    assert [path.stat().st_mtime_ns == times[path] for path in folders] == [True, False, True, False, True]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_bad_case_has_its_own_line_and_the_others_are_made(cases, tmp_path, processes):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no CT")
    many = [*cases[:2], (cases[2][0], cases[2][1]._replace(image=bad)), *cases[3:]]
    found = dict(prepare_each(many, COARSE, tmp_path / "cache", processes))
    assert [found[k] is None for k in range(5)] == [True, True, False, True, True]
    assert isinstance(found[2], ValueError) and str(found[2]).startswith(f"{bad}: ")


@forked
def test_an_error_keeps_its_kind_on_its_way_from_the_process(cases, tmp_path, monkeypatch):
    for error, expected in ((DataError("labels"), DataError), (OSError(28, "No space left on device"), OSError)):
        def prepare(*_, error=error):
            raise error
        monkeypatch.setattr(preparing, "prepare", prepare)
        _, received = next(prepare_each(cases, COARSE, tmp_path, 2))
        assert type(received) is expected and str(received) == str(error)
    monkeypatch.setattr(preparing, "prepare", lambda *_: [][1])              # a fault of this program
    with pytest.raises(IndexError):
        next(prepare_each(cases, COARSE, tmp_path, 2))


@forked
def test_a_process_that_is_killed_ends_all_in_one_line(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildProcessError, match=r"was killed, mostly for lack of memory. Give fewer --workers."):
        list(prepare_each(cases, COARSE, tmp_path, 2))
    assert multiprocessing.active_children() == []


@forked
@pytest.mark.parametrize("share, most", [(10.0, 4), (2.5, 2), (0.5, 1)])
def test_as_many_processes_work_at_once_as_fit_into_memory(cases, tmp_path, monkeypatch, capsys, share, most):
    """share: the free memory, in cases that fit; most: processes at once, of the four that are asked for."""
    need = preparing._need(cases[0][1], COARSE)
    monkeypatch.setattr(preparing, "free_memory_bytes", lambda: share * need / preparing.FREE_SHARE)

    def prepare(*_):
        (tmp_path / f"{time.monotonic():.6f} {os.getpid()} 1").touch()
        time.sleep(0.3)
        (tmp_path / f"{time.monotonic():.6f} {os.getpid()} -1").touch()
    monkeypatch.setattr(preparing, "prepare", prepare)
    list(prepare_each(cases, COARSE, tmp_path, 4))
    steps = [int(path.name.split()[2]) for path in sorted(tmp_path.iterdir(), key=lambda p: float(p.name.split()[0]))]
    assert len(steps) == 10 and max(np.cumsum(steps)) == most
    said = capsys.readouterr().err
    assert said.count(f"{most} processes at a time instead of 4") == (most < 4)


@forked
def test_whoever_stops_listening_ends_the_processes(cases, tmp_path, monkeypatch):
    def prepare(dataset, files, *_):
        time.sleep(0 if files is cases[0][1] else 60)
    monkeypatch.setattr(preparing, "prepare", prepare)
    began = time.monotonic()
    with closing(prepare_each(cases, COARSE, tmp_path, 3)) as done:
        assert next(done) == (0, None)
        assert multiprocessing.active_children()
    assert multiprocessing.active_children() == [] and time.monotonic() - began < 30


def test_the_memory_of_a_case_is_counted_from_its_header():
    """512 x 512 x 300 voxels of 0.8 x 0.8 x 1 mm and 273 x 273 x 200 of 1.5 mm: 9 and 6 bytes a voxel, and 60 MB."""
    native, model = 512 * 512 * 300, 273 * 273 * 200
    assert preparing_bytes((512, 512, 300), np.array([0.8, 0.8, 1.0]), 1.5) == 60_000_000 + 9 * native + 6 * model


@forked
@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_the_next_start_makes_the_rest(tmp_path):
    patients = {f"p{seed}": Patient(*make_phantom((4.0, 4.0, 4.0), seed=seed)) for seed in range(2)}
    many = {f"{name}_{k}": Patient(patient.hu + np.float32(k), *patient[1:])
            for k in range(6) for name, patient in patients.items()}
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",)}, many)
    cache = tmp_path / "cache"
    words = [sys.executable, "-m", "uniseg.train", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "r"),
             "--cache", str(cache), "--workers", "3", "--folds", "1", "--backbone", "unet", "--width", "4",
             "--lpg-hidden", "8", "--patch-size", "16", "16", "16", "--batch-size", "1", "--epochs", "1",
             "--steps-per-epoch", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 100
    while not list(cache.glob("*/meta.json")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)                                        # as a terminal does: to all of them
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and said.endswith("uniseg: interrupted; the last checkpoint is kept\n"), said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)                                                # nobody of the group is left
    made = {path: path.stat().st_mtime_ns for path in cache.glob("*/meta.json")}
    assert 0 < len(made) < len(many)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(list(cache.glob("*/meta.json"))) == len(many) and not list(cache.glob(".*.tmp"))
    assert {path: path.stat().st_mtime_ns for path in made} == made
