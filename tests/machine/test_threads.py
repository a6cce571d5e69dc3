"""threads.py: a map by several threads, with results in order and bounded memory."""

import threading
import time

import pytest
import torch

from uniseg.machine.threads import in_threads, one_ahead


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


def test_the_next_thing_is_made_while_the_caller_works_and_no_further_one():
    made = []

    def things():
        for number in range(5):
            made.append(number)
            yield number

    taken = []
    for thing in one_ahead(things()):
        deadline = time.monotonic() + 10
        while len(made) < min(thing + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)                                           # time for one too many
        assert len(made) == min(thing + 2, 5)
        taken.append(thing)
    assert taken == [0, 1, 2, 3, 4]
    assert list(one_ahead(iter([]))) == []


def test_an_error_comes_after_the_things_before_it_and_a_caller_may_stop():
    def things():
        yield 0
        yield 1
        raise ValueError("two")
    ahead = one_ahead(things())
    assert next(ahead) == 0 and next(ahead) == 1
    with pytest.raises(ValueError, match="two"):
        next(ahead)
    endless = one_ahead(iter(int, 1))                                # 0, 0, 0, ...
    assert next(endless) == 0
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_no_gradient_is_recorded_in_the_thread_of_a_generator_that_records_none():
    """Whether PyTorch records gradients is decided thread by thread."""
    @torch.no_grad()
    def recorded():
        yield torch.is_grad_enabled()
        yield torch.is_grad_enabled()
    assert torch.is_grad_enabled() and list(one_ahead(recorded())) == [False, False]
