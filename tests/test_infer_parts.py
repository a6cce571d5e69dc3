"""`infer --part I/N` and torchrun: several processes divide a folder, and leave what one run leaves."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_infer import CLASSES, ROOT, cases_of, files, here, of_any_size, one_line, segment, shared  # noqa: F401
from uniseg.inference import table as table_module
from uniseg.inference.parts import Part
from uniseg.inference.plan import Job
from uniseg.machine.files import atomic_write
from uniseg.viewer import index_page

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def cts(here):  # noqa: F811
    """A folder of five CTs in the working folder."""
    (here / "cts").mkdir()
    for name in NAMES:
        (here / "cts" / f"{name}.nii.gz").write_bytes((here / "ct.nii.gz").read_bytes())
    return here / "cts"


def same(folder, other):
    """Whether two folders hold the same files; times and memory may differ, in the JSON files and in the pages."""
    def content(path):
        if path.suffix == ".json":
            differ = ("seconds", "peak_memory_mib", "files")
            return {k: v for k, v in json.loads(path.read_text()).items() if k not in differ}
        return path.suffix == ".html" or path.read_bytes()
    return files(folder) == files(other) and all(
        content(Path(folder, name)) == content(Path(other, name)) for name in files(folder))


def test_every_ct_is_of_exactly_one_part_whatever_their_order():
    jobs = [Job(Path(f"{n:02d}.nii.gz"), Path(f"{n:02d}_seg.nii.gz")) for n in range(11)]
    parts = [Part(i, 4).share(jobs[::-1]) for i in range(1, 5)]
    assert sorted(job for part in parts for job in part) == jobs
    assert [len(part) for part in parts] == [3, 3, 3, 2] and parts[0] == jobs[::4]
    assert Part(1, 1).share(jobs[::-1]) == jobs[::-1]                       # a run without parts keeps the user's order


def test_the_parts_of_nodes_are_divided_once_more_among_their_processes():
    within = [Part(i, 2).among(rank, 3) for i in (1, 2) for rank in range(3)]
    assert [(part.number, part.of) for part in within] == [(k, 6) for k in range(1, 7)]


def test_parts_in_any_order_leave_what_one_run_leaves(segment, cts):  # noqa: F811
    assert segment(cts, "-o", "whole", "--view")[0] == 0
    for number, made in ((2, 2), (3, 1), (1, 2)):
        code, out, err = segment(cts, "-o", "parts", "--view", "--part", f"{number}/3")
        assert code == 0 and f"part {number}/3: {made} of 5 CTs, on cpu" in err and out.count(" MiB, cpu)") == made
    assert same("whole", "parts")
    assert list(cases_of("parts/statistics.csv")) == list(NAMES)
    assert Path("parts/index.html").is_file()


def test_a_part_that_died_is_done_again_by_itself_and_the_others_results_stay(segment, cts):  # noqa: F811
    assert segment(cts, "-o", "out", "--part", "1/2")[0] == 0
    stamps = {name: os.stat(Path("out", name)).st_mtime_ns for name in files("out") if name != "statistics.csv"}
    assert segment(cts, "-o", "out", "--part", "2/2", "--classes", "liver")[0] == 0
    Path("out/b_seg.json").unlink()                                         # as where it was killed within b
    code, _, err = segment(cts, "-o", "out", "--part", "2/2", "--classes", "liver", "--resume")
    assert code == 0 and "1 of 2 results are complete and stay as they are" in err
    assert {name: os.stat(Path("out", name)).st_mtime_ns for name in stamps} == stamps
    assert cases_of("out/statistics.csv") == {"a": len(CLASSES), "b": 1, "c": len(CLASSES), "d": 1, "e": len(CLASSES)}
    code, _, err = segment(cts, "-o", "out", "--part", "1/2")               # of its own former results it says so
    assert code == 2 and "out/a_seg.nii.gz: exists already" in one_line(err)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_part_that_is_none_is_refused_in_one_line(cts, capsys, part):
    with pytest.raises(SystemExit) as refused:
        from uniseg.infer import main
        main([str(cts), f"--part={part}"])
    assert refused.value.code == 2
    assert f"argument --part: '{part}' is no part: give I/N, such as 1/8" in capsys.readouterr().err


def test_the_demonstration_has_no_parts_and_more_parts_than_cts_are_no_error(segment, cts):  # noqa: F811
    code, _, err = segment("--demo", "--part", "1/2")
    assert code == 2 and "--demo makes one CT, which has no parts. Leave --part out." in err
    code, out, err = segment(cts, "-o", "out", "--part", "9/9")
    assert code == 0 and out == "" and "part 9/9: 0 of 5 CTs" in err


def test_a_rank_of_torchrun_does_its_part(segment, cts, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in ((1, "bd"), (0, "ace")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        code, out, err = segment(cts, "-o", "out")
        assert code == 0 and f"part {rank + 1}/2" in err
        assert [line.split()[0] for line in out.splitlines() if "MiB" in line] == [f"out/{n}_seg.nii.gz" for n in made]
    assert list(cases_of("out/statistics.csv")) == list(NAMES)
    monkeypatch.setenv("RANK", "2")
    code, _, err = segment(cts, "-o", "out", "--resume")
    assert code == 2 and "RANK=2 and WORLD_SIZE=2 in the environment" in one_line(err)


@pytest.mark.slow
def test_torchrun_divides_a_folder_and_a_case_that_fails_ends_no_other_process(shared, cts):  # noqa: F811
    """The first process has the bad CT alone and is done long before the other, which torchrun would end with it."""
    (cts / "a.nii.gz").write_bytes(b"no CT")
    for name in "cde":
        (cts / f"{name}.nii.gz").unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uniseg.infer",
         str(cts), "-o", "out", "--device", "cpu", "--weights", str(shared / "tiny.pt")],
        env=environment, text=True, capture_output=True, timeout=240)
    assert done.returncode != 0 and "a.nii.gz: " in done.stderr, done.stderr
    assert "part 1/2: 1 of 2 CTs" in done.stderr and "part 2/2: 1 of 2 CTs" in done.stderr
    assert cases_of("out/statistics.csv") == {"b": len(CLASSES)}


def slow_disk(monkeypatch, module, meanwhile):
    """Let another run finish a case while this one writes, on a disk where no process can wait for its turn."""
    first = []

    def write(path, *more):
        if not first:
            first.append(path)
            meanwhile()
        return atomic_write(path, *more)
    monkeypatch.setattr(module, "atomic_write", write)


def test_a_table_and_a_page_are_complete_though_another_part_ends_while_they_are_written(
        segment, cts, monkeypatch):  # noqa: F811
    for name in NAMES[:2]:
        assert segment(cts / f"{name}.nii.gz", "-o", "out")[0] == 0
    Path("out/b_seg.json").rename("b_seg.json")
    table = table_module.Table(Path("out"), [])
    slow_disk(monkeypatch, table_module, lambda: Path("b_seg.json").rename("out/b_seg.json"))
    table.write()
    assert list(cases_of("out/statistics.csv")) == ["a", "b"]
    Path("out/b_seg.json").rename("b_seg.json")
    slow_disk(monkeypatch, index_page, lambda: Path("b_seg.json").rename("out/b_seg.json"))
    text = index_page.write_index(Path("out")).read_text()
    assert "a.nii.gz" in text and "b.nii.gz" in text


def test_the_table_of_parts_has_no_row_twice(segment, cts):  # noqa: F811
    for number in (1, 2):
        assert segment(cts, "-o", "out", "--part", f"{number}/2", "--classes", "liver")[0] == 0
    with open("out/statistics.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == list(NAMES)
