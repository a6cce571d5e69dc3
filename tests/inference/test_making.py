"""making.py: one case after the other, for every command that segments several."""

import weakref
from pathlib import Path

from uniseg.inference import making
from uniseg.inference.outputs import Outputs
from uniseg.inference.plan import Job

JOBS = [Job(Path(f"ct{n}.nii.gz"), Path(f"out/ct{n}_seg.nii.gz")) for n in range(3)]


class Result:
    """In the place of a Segmentation: something that can be seen to be gone."""

    stats = {"empty": True}


def test_the_masks_of_a_case_are_freed_before_the_next_one_is_segmented(monkeypatch):
    made = []

    def make(*_):
        assert [ref() for ref in made] == [None] * len(made)
        result = Result()
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(making, "make", make)
    outcomes = [outcome for _, outcome in making.make_each(None, JOBS, JOBS, Outputs(), {}, "refuse")]
    assert outcomes == [(Result.stats, None)] * 3


def test_a_case_that_fails_and_one_that_is_there_already_do_not_stop_the_others(monkeypatch):
    fault = ValueError("no CT")
    results = iter([fault, making.MadeMeanwhile(), None])

    def make(_, job, *more):
        if error := next(results):
            raise error
        return Result()

    monkeypatch.setattr(making, "make", make)
    outcomes = list(making.make_each(None, JOBS, JOBS, Outputs(), {}, "keep"))
    assert outcomes == [(JOBS[0], (None, fault)), (JOBS[1], (None, None)), (JOBS[2], (Result.stats, None))]
