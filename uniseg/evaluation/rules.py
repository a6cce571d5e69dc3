"""How two masks are scored, where there is a choice: the tolerance of NSD, organs with or without their tumours.

Read taxonomy.py first, scores.py next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .. import taxonomy

DEFAULT_TOLERANCE_MM = 2.0        # for a class that Table 2 does not list
DECATHLON = "decathlon"           # value of --tolerance
WHOLE, WITHOUT_TUMOURS = "whole", "without-tumours"      # values of --organs


class Rules(NamedTuple):
    """What the options of the command say about scoring. The defaults are those of the command."""

    min_lesion_ml: float = 0.0    # a tumour counts as found where a predicted lesion has at least this volume
    tolerance_mm: Mapping[str, float] = {}    # {class: mm} of --tolerance; "" stands for every class not named
    organs: str = WHOLE           # WHOLE: tumours belong to their organ (Section 4.1.1); WITHOUT_TUMOURS: as drawn

    def tolerance_of(self, name: str, dataset: str = "") -> float:
        """Tolerance of the normalised surface Dice for a class in a case of a dataset, in mm.

        The option comes first, then the task's tolerance in a dataset of the Decathlon, then the class's own.

        >>> Rules().tolerance_of("liver_tumor"), Rules().tolerance_of("liver_tumor", "MSD Task03 Liver")
        (2.0, 7.0)
        """
        given = self.tolerance_mm.get(name, self.tolerance_mm.get(""))
        if given is not None:
            return given
        of_task = next((d.tolerance_mm for d in taxonomy.DATASETS if d.name == dataset), None)
        return of_task or (taxonomy.BY_NAME[name].tolerance_mm if name in taxonomy.BY_NAME else DEFAULT_TOLERANCE_MM)


def decathlon_tolerances() -> dict[str, float]:
    """{class: mm} of every class that a task of the Decathlon labels: that of the task, for organ and tumour alike.

    >>> decathlon_tolerances()["colon_tumor"], decathlon_tolerances()["pancreatic_tumor"]
    (4.0, 5.0)
    """
    return {taxonomy.NAMES[number - 1]: d.tolerance_mm for d in taxonomy.DATASETS if d.tolerance_mm
            for number in d.transfer if number}


def parse_tolerance(text: str | None) -> dict[str, float]:
    """'3' -> {"": 3.0}; 'liver=5,colon=4' -> those two; 'decathlon' -> `decathlon_tolerances`; None -> {}.

    Names are those of Table 2 or their aliases; a name of both sides stands for two classes. Raises ValueError.
    """
    if text is None:
        return {}
    if text == DECATHLON:
        return decathlon_tolerances()
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            mm = float(value)
        except ValueError:
            mm = math.nan
        if not (math.isfinite(mm) and mm > 0) or (not name and "," in text):
            raise ValueError(f"--tolerance {text}: give mm above 0 for all classes, as 2, for those named, as "
                             f"liver=7,colon=4, or {DECATHLON}.")
        found |= {resolved: mm for resolved in (taxonomy.resolve(name.strip()) if name else ("",))}
    return found
