"""Threads for what runs outside Python's lock: long steps of numpy and scipy, and waiting for a GPU.

The results do not depend on them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

MOST_THREADS = 8       # what each thread works on takes memory, and more of them wait for each other


def in_threads(function: Callable[[Thing], Result], things: Iterable[Thing]) -> Iterator[Result]:
    """`map(function, things)`, by as many threads as torch may use (torch.set_num_threads, OMP_NUM_THREADS).

    The results come in the order of the things. At most as many as there are threads are worked on or waiting, so
    that memory is bounded. The next call may begin before a result is taken: `function` must not read what the caller
    makes of the results. An error of a call is raised in its place.
    """
    import torch  # here, because a command that only checks its options does not need it

    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1:
        yield from map(function, things)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Result]] = deque()
        for thing in things:
            if len(begun) == threads:
                yield begun.popleft().result()
            begun.append(pool.submit(function, thing))
        while begun:
            yield begun.popleft().result()


def one_ahead(things: Iterator[Thing]) -> Iterator[Thing]:
    """`things`, of which a thread makes the next while the caller works on the present one.

    No more than one waits, so that memory is bounded. A thing must not change when the next is made. An error is raised
    in the place of its thing. A caller who stops early waits for the thing that is being made.
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming: Future[Any] = pool.submit(next, things, end)
        while (thing := coming.result()) is not end:
            coming = pool.submit(next, things, end)
            yield thing
