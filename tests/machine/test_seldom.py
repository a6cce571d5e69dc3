"""seldom.py: work that is repeated as something grows, and takes a small share of the time."""

import pytest

from uniseg.machine import seldom
from uniseg.machine.seldom import Seldom


@pytest.fixture
def clock(monkeypatch):
    """[seconds since the start], which the test moves on."""
    now = [100.0]
    monkeypatch.setattr(seldom.time, "monotonic", lambda: now[0])
    return now


def calls_of(clock, seconds_of_work, pause, times):
    """When the work was done, of so many calls with a pause between them."""
    began = []

    def work():
        began.append(clock[0])
        clock[0] += seconds_of_work
    update = Seldom(work)
    for _ in range(times):
        update()
        clock[0] += pause
    return began, update


def test_quick_work_is_done_every_time(clock):
    assert len(calls_of(clock, 0.4, 0.1, 30)[0]) == 30


def test_long_work_takes_a_twentieth_of_the_time_and_is_surely_done_at_the_end(clock):
    began, update = calls_of(clock, 2.0, 1.0, 100)
    assert began[:3] == [100.0, 140.0, 180.0]                  # 2 seconds of work, then 38 without
    update(surely=True)
    assert len(began) == len(set(began)) and began[-1] == clock[0] - 2.0
