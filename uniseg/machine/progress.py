"""How far a long piece of work is: a bar on stderr where that is a terminal, else a line there now and then.

A log has no use for a bar, but whoever reads it wants to see that the work goes on, and where it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from .console import is_quiet, note, printable

EVERY_SECONDS = 20.0               # between two lines of a log, over all pieces of work of the process
Thing = TypeVar("Thing")

_last_line: list[float] = []       # when the process began its first piece of work, or printed its last line


class Progress:
    """One piece of work of `total` steps. A context manager, so that its bar ends whatever happens.

    On a terminal it is a bar of tqdm. Elsewhere `uniseg: <what> <done>/<total>` is printed, at most once in
    EVERY_SECONDS: short work says nothing. Within console.quietly there is neither.
    """

    def __init__(self, what: str, total: int, done: int = 0, shown: bool = True, leave: bool = True) -> None:
        """what: a few words, such as "ct.nii.gz: windows"; done: steps of former runs
        shown: False: say nothing; leave: whether the bar of a terminal stays when it is full
        """
        self.what, self.total, self.done = printable(what), total, done
        self.shown = shown and not is_quiet()
        on_terminal = self.shown and sys.stderr.isatty()
        self.bar: Any = tqdm(total=total, initial=done, desc=self.what, leave=leave) if on_terminal else None
        if not _last_line:
            _last_line.append(time.monotonic())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, steps: int = 1, remark: str = "") -> None:
        """`steps` more are done. remark: what else there is to say, such as "loss 0.71"."""
        self.done += steps
        if self.bar is not None:
            self.bar.update(steps)
            self.bar.set_postfix_str(remark)
        elif self.shown and time.monotonic() - _last_line[0] >= EVERY_SECONDS:
            _last_line[0] = time.monotonic()
            note(f"{self.what} {self.done}/{self.total}{', ' if remark else ''}{remark}")

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def each(things: Iterable[Thing], what: str, total: int, shown: bool = True, leave: bool = True) -> Iterator[Thing]:
    """The things one after the other, with the progress of it. The arguments are those of Progress."""
    with Progress(what, total, shown=shown, leave=leave) as progress:
        for thing in things:
            yield thing
            progress.update()


def duration(seconds: float) -> str:
    """A duration as a person would say it, in one or two units.

    >>> duration(0.42), duration(42), duration(200), duration(5400), duration(200_000)
    ('0.4 s', '42 s', '3 min 20 s', '1 h 30 min', '2 d 7 h')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    at = next((i for i, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    parts = []
    for name, size in units[at:at + 2]:
        parts.append(f"{left // size} {name}")
        left %= size
    return " ".join(part for part in parts if not part.startswith("0 "))
