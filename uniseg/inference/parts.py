"""Several processes, on one machine or on many, that divide the CTs of one command: `infer --part I/N`, and torchrun.

Every N-th CT by name is of a part, whichever processes run and whatever is done already, so that a part which died is
done again by itself. Nothing passes between the parts: what a CT gives depends on nothing but the CT and the options.
statistics.csv and index.html are made of all results that lie in the folder (table.py, viewer/index_page.py), so the
part that ends last has all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from ..machine.ranks import launched
from .plan import Job


class Part(NamedTuple):
    """Part `number` of `of`, counted from 1."""

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def among(self, rank: int, world: int) -> Part:
        """What one of several processes does of this part.

        >>> Part(2, 3).among(0, 2), Part(2, 3).among(1, 2)
        (Part(number=3, of=6), Part(number=4, of=6))
        """
        return Part((self.number - 1) * world + rank + 1, self.of * world)

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this part: every N-th by the name of its CT."""
        return sorted(jobs, key=lambda job: str(job.ct))[self.number - 1::self.of] if self.of > 1 else list(jobs)


def part_named(text: str) -> Part:
    """The type of the option --part.

    >>> part_named("2/8")
    Part(number=2, of=8)
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: give I/N, such as 1/8 for the first of eight, with I "
                                         "from 1 to N")
    return Part(int(number), int(of))


def part_of_this_process(asked: Part | None) -> Part:
    """The part that --part names, divided further among the processes of torchrun, where it started several.

    Raises ValueError where the environment does not say which process this is.
    """
    return (asked or Part()).among(*launched())
