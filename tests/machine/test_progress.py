"""How far the work is: a bar where stderr is a terminal, else a line now and then, nothing with --quiet."""

import pytest
from tqdm import tqdm

from uniseg.machine import progress
from uniseg.machine.console import error_line, note, quietly, say, warn
from uniseg.machine.progress import Progress, duration, each


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: add seconds to clock[0]."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_line", [])
    monkeypatch.setattr(progress, "EVERY_SECONDS", 20.0)
    return now


def test_a_log_gets_a_line_every_20_seconds_and_none_for_short_work(clock, capsys):
    with Progress("case 3 of 12 ct.nii.gz: windows", 8) as bar:
        for _ in range(8):                                        # 7 s a window: 7, 14, 21, 28, 35, 42, 49, 56 s
            clock[0] += 7
            bar.update()
    assert capsys.readouterr().err.splitlines() == ["uniseg: case 3 of 12 ct.nii.gz: windows 3/8",
                                                    "uniseg: case 3 of 12 ct.nii.gz: windows 6/8"]


def test_the_time_runs_on_from_one_piece_of_work_to_the_next(clock, capsys):
    """Twelve cases of 5 s each are a minute: three lines, although no case has lasted 20 s."""
    for case in range(1, 13):
        for _ in each(range(5), f"case {case} of 12", 5):
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [f"uniseg: case {n} of 12 5/5" for n in (4, 8, 12)]


def test_a_remark_stands_behind_the_number(clock, capsys):
    with Progress("training: steps", 100, done=40) as bar:
        clock[0] += 30
        bar.update(remark="loss 0.712")
    assert capsys.readouterr().err == "uniseg: training: steps 41/100, loss 0.712\n"


def test_a_terminal_gets_a_bar_that_the_name_of_a_file_cannot_steer(clock, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("a\x1b[2J.nii.gz: windows", 4) as bar:
        clock[0] += 30
        bar.update(3)
        assert isinstance(bar.bar, tqdm) and bar.bar.n == 3
    err = capsys.readouterr().err
    assert "a\\x1b[2J.nii.gz: windows" in err and "3/4" in err and "uniseg:" not in err


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_work_and_work_that_is_not_shown_say_nothing(clock, monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    for quiet, shown in ((True, True), (False, False)):
        with quietly(quiet), Progress("windows", 4, shown=shown) as bar:
            clock[0] += 30
            bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_quiet_leaves_warnings_and_errors_and_ends_with_its_block(capsys):
    with quietly():
        with quietly(False):                                      # the outer one counts
            say("a table"), note("a note"), warn("a doubt"), error_line("a fault")
    say("a table")
    assert capsys.readouterr() == ("a table\n", "uniseg: warning: a doubt\nuniseg: error: a fault\n")


@pytest.mark.parametrize("seconds, said", [(0, "0.0 s"), (9.9, "9.9 s"), (9.97, "10 s"), (59.4, "59 s"),
                                           (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (3659, "1 h"),
                                           (90_000, "1 d 1 h")])
def test_a_duration_is_said_in_one_or_two_units(seconds, said):
    assert duration(seconds) == said
