"""Which process a lock or a temporary file belongs to, who may replace it, and that two never write at once."""

import os
import platform
import subprocess
import sys
import threading
import time

import pytest

from uniseg.machine import files, locks, owners
from uniseg.machine.files import FileError, atomic_write, sweep, temporary_beside
from uniseg.machine.locks import held, turn
from uniseg.machine.owners import Owner, started, this_host, this_process

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells when a process started")


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- Owners

def test_a_process_may_run_unless_it_has_surely_ended(dead):
    me = this_process()
    assert me.may_run() and Owner(me.host, os.getppid()).may_run() and Owner("another", dead).may_run()
    assert not Owner(me.host, dead).may_run() and not Owner(me.host, 10 ** 30).may_run()


@linux
def test_o23_a_process_number_that_is_used_again_is_told_by_its_start():
    parent = Owner(this_host(), os.getppid(), started(os.getppid()))
    assert parent.start > 0 and parent.may_run() and not parent._replace(start=parent.start - 1).may_run()
    assert not this_process()._replace(start=1).may_run()                   # as in a container, where all are number 1


@linux
def test_o23_a_killed_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen(["sleep", "60"])
    assert Owner(this_host(), process.pid).may_run()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)               # ended, but still in the table: a zombie
    assert not Owner(this_host(), process.pid).may_run()
    process.wait()


# --- Temporaries

def test_o23_what_killed_processes_left_is_swept_and_nothing_else(tmp_path, dead):
    me, alive = this_process(), os.getppid()
    swept = [f".ct_seg.nii.gz.{me.host}-77.{dead}.tmp", f".epoch_0001_a.png.{me.host}-1.{dead}.tmp"]
    kept = [f".ct_seg.nii.gz.{me.host}-{started(alive)}.{alive}.tmp",       # somebody writes it
            f".ct_seg.nii.gz.{me.host}-{me.start}.{me.pid}.tmp",            # this process writes it
            f".ct_seg.nii.gz.elsewhere-77.{dead}.tmp",                      # of a host that nobody can ask
            f".ct_seg.nii.gz.{dead}.tmp",                                   # of an earlier version, or not
            f"ct_seg.nii.gz.{me.host}-77.{dead}.tmp", ".mine.tmp", f".notes.{me.host}-77.tmp", "ct.nii.gz"]
    for name in [*swept, *kept]:
        (tmp_path / name).write_text("")
    volume = tmp_path / f".0123456789abcdef01234567.{me.host}-77.{dead}.tmp"
    volume.mkdir()
    (volume / "image.npy").write_text("many bytes")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
    sweep(tmp_path, {"ct_seg.nii.gz"})                                      # about to be written: earlier versions too
    kept.remove(f".ct_seg.nii.gz.{dead}.tmp")
    assert names(tmp_path) == sorted(kept)
    sweep(tmp_path, ours=True)                                              # the folder's lock is held
    kept = [name for name in kept if not name.startswith(".ct_seg") or name.endswith(f".{me.pid}.tmp")]
    assert names(tmp_path) == sorted(kept)


def test_o23_every_writer_sweeps_the_folder_that_it_writes_into(tmp_path, dead):
    left = tmp_path / f".summary.json.{this_host()}-77.{dead}.tmp"
    left.write_text("half")
    with atomic_write(tmp_path / "other.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.name == f".other.txt.{this_host()}-{started(os.getpid())}.{os.getpid()}.tmp"
    assert names(tmp_path) == ["other.txt"]


def test_a_temporary_of_the_longest_name_still_fits(tmp_path):
    for name in ("n" * 248 + ".nii.gz", "肝" * 83 + ".nii"):
        path = temporary_beside(tmp_path / name)
        path.write_text("")
        assert files.TEMPORARY.fullmatch(path.name)


# --- The lock of a run

def test_r10_a_lock_is_held_for_the_block_alone_and_names_its_process(tmp_path):
    with held(tmp_path / "run.lock", "works", "--out"):
        assert (tmp_path / "run.lock").read_text() == f"{os.getpid()} {platform.node()} {started(os.getpid())}"
        with pytest.raises(FileError, match=f"process {os.getpid()} on .* works. Wait for it or give another --out"), \
                held(tmp_path / "run.lock", "works", "--out"):
            pass
        assert (tmp_path / "run.lock").exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize("content, taken", [
    ("{dead} {host} 77", True), ("{dead} {host}", True),
    pytest.param("{parent} {host} 77", True, marks=linux),                   # its number belongs to another one now
    ("{parent} {host} {start}", False), ("{parent} {host}", False),
    ("{dead} another-host 77", False), ("", False), ("\0\0\0\0", False)])
def test_r10_a_lock_is_replaced_where_its_process_has_surely_ended(tmp_path, dead, content, taken):
    lock, parent = tmp_path / "run.lock", os.getppid()
    content = content.format(dead=dead, host=platform.node(), parent=parent, start=started(parent))
    lock.write_text(content)
    if taken:
        with held(lock, "works", "--out"):
            assert lock.read_text().startswith(f"{os.getpid()} ")
        assert not lock.exists()
    else:
        with pytest.raises(FileError, match="remove this file."), held(lock, "works", "--out"):
            pass
        assert lock.read_text() == content                                   # and it tells how not to be stuck


def race(tmp_path, dead, rounds=5, runners=4):
    """How many of several starts at the same moment got the lock that a dead process left, for each round."""
    winners = []
    for _ in range(rounds):
        (tmp_path / "run.lock").write_text(f"{dead} {platform.node()} 77")
        begin, end, won = threading.Barrier(runners), threading.Barrier(runners), []

        def start(begin=begin, end=end, won=won):
            begin.wait()
            try:
                with held(tmp_path / "run.lock", "works", "--out"):
                    won.append(True)
                    end.wait()
            except FileError:
                end.wait()
        threads = [threading.Thread(target=start) for _ in range(runners)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners.append(len(won))
        (tmp_path / "run.lock").unlink(missing_ok=True)
    return winners


@pytest.mark.skipif(locks.fcntl is None, reason="this system has no flock")
def test_r10_of_several_that_find_a_dead_lock_at_the_same_moment_one_gets_it(tmp_path, dead, monkeypatch):
    may_run = Owner.may_run

    def slow(self):                                                          # all look before any of them replaces
        answer = may_run(self)
        time.sleep(0.001)
        return answer
    monkeypatch.setattr(owners.Owner, "may_run", slow)
    assert race(tmp_path, dead) == [1] * 5


# --- Turns

@pytest.mark.skipif(locks.fcntl is None, reason="this system has no flock")
def test_o14_one_writes_into_a_folder_at_a_time_and_a_killed_one_gives_its_turn_back(tmp_path):
    code = f"import fcntl, os, time; h = os.open({str(tmp_path)!r}, os.O_RDONLY); fcntl.flock(h, fcntl.LOCK_EX); " \
           "print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    other.stdout.readline()
    with turn(tmp_path, longest=0.03) as sure:                               # it waits, but not for ever
        assert not sure
    other.kill()
    other.communicate()
    with turn(tmp_path) as sure:
        assert sure
    assert names(tmp_path) == []


def test_a_turn_without_flock_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with turn(tmp_path) as sure:
        assert not sure
    with turn(tmp_path / "missing") as sure:
        assert not sure
