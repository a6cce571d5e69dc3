"""Work that is done again and again as something grows, such as a table of all cases so far, but seldom enough."""

import time
from collections.abc import Callable

SHARE = 0.05                       # of the time that long work may take
QUICK_SECONDS = 0.5                # shorter work is always done


class Seldom:
    """Calls a function where it is due: after a call of a second, the next one comes 19 seconds later.

    So a small table is there after every case, and a large one does not take the time of the cases.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.work, self.due = work, 0.0

    def __call__(self, surely: bool = False) -> None:
        """Do the work if it is due. surely: in any case, as at the end of everything"""
        start = time.monotonic()
        if surely or start >= self.due:
            self.work()
            end = time.monotonic()
            if end - start > QUICK_SECONDS:
                self.due = end + (end - start) * (1 / SHARE - 1)
