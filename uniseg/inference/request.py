"""What is asked of one segmentation: the arguments of Segmenter.segment, checked before any work."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formats.numbers import TABLE_2, find_numbering, numbers_in
from ..imaging.limits import MAX_VOXELS
from ..machine.choices import PRECISIONS
from ..machine.device import choose_precision
from ..postprocess import chosen_steps

FAST_OVERLAP = 0.25      # of the windows of a fast run at most, where the paper has 0.5


class Request(NamedTuple):
    """The checked arguments of one call of Segmenter.segment."""

    names: tuple[str, ...]         # classes to compute, in the model's order
    limits: list[float]            # per class, the logit of its threshold
    threshold: float | dict[str, float]
    overlap: float
    steps: tuple[str, ...]         # of post-processing, in the order in which they run
    precision: str                 # float32, bf16 or fp16
    numbering: str                 # whose numbers the label map has, one of formats.numbers.NUMBERINGS
    numbers: dict[str, int | None]  # of the classes in the label map; None: not in it
    fast: bool                     # one view instead of two
    focus: bool                    # windows near the organs asked for alone, where that is enough


def make_request(segmenter: Any, classes: str | Sequence[str] | None = None, overlap: float = 0.5,
                 threshold: float | Mapping[str, float] = 0.5, postprocess: bool | Collection[str] = True,
                 precision: str = "auto", experimental: bool = False, max_voxels: int = MAX_VOXELS,
                 numbers: str = TABLE_2, fast: bool = False, focus: bool = True) -> Request:
    """The arguments of Segmenter.segment as a Request; `max_voxels` is none of it. Raises ValueError.

    segmenter: a segmenter.Segmenter, which the caller makes: this file stands below it
    """
    names = segmenter.select(classes, experimental)
    if not names:
        raise ValueError("no class to segment. Name at least one.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision}: choose one of {', '.join(PRECISIONS)}.")
    if isinstance(threshold, Mapping):
        threshold = {n: value for name, value in threshold.items() for n in segmenter.select([name], experimental)}
        limits = [logit(threshold.get(n, 0.5), n) for n in names]
    else:
        limits = [logit(threshold, n) for n in names]
    numbering = find_numbering(numbers)
    values = {n: value for n, value in numbers_in(numbering, segmenter.classes).items() if n in names}
    if all(value is None for value in values.values()):
        raise ValueError(f"none of the classes asked for has a label number in {numbering}. "
                         "Name others in --classes, or leave out --numbers.")
    return Request(names, limits, threshold, min(overlap, FAST_OVERLAP) if fast else overlap,
                   chosen_steps(postprocess), choose_precision(precision, segmenter.device), numbering, values, fast,
                   focus)


def logit(probability: float, name: str) -> float:
    """The logit of a class's threshold. Raises ValueError for what is not a probability between 0 and 1."""
    if not 0 < probability < 1:
        raise ValueError(f"threshold {probability} of {name}: choose a probability between 0 and 1.")
    return float(np.log(probability / (1 - probability)))
