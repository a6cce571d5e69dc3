"""threads.py: a map by several threads, with results in order and bounded memory."""

import threading
import time

import pytest
import torch

from uniseg.machine.threads import in_threads


@pytest.fixture(params=[1, 3])
def threads(request):
    """So many threads of torch while a test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_things_however_long_each_takes(threads):
    def slow(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number
    assert list(in_threads(slow, range(10))) == [n * n for n in range(10)]
    assert list(in_threads(slow, [])) == []


def test_as_many_run_at_once_as_there_are_threads_and_no_more_are_begun(threads):
    running, most, taken, lock = set(), [], [], threading.Lock()

    def note(number):
        with lock:
            running.add(number)
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            running.remove(number)
        return number

    def things():
        for number in range(12):
            taken.append(number)
            yield number

    for done in in_threads(note, things()):
        assert len(taken) <= done + threads + 1                # memory is bounded: no result waits unseen
    assert max(most) == threads


def test_an_error_is_raised_in_its_place(threads):
    def fails(number):
        if number == 2:
            raise ValueError("two")
        return number
    results = in_threads(fails, range(9))
    assert next(results) == 0 and next(results) == 1
    with pytest.raises(ValueError, match="two"):
        next(results)
