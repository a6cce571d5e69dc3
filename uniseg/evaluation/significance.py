"""How sure a mean and a difference are: bootstrap over patients, Wilcoxon's signed-rank test, Holm's correction.

The unit is the patient: results of different patients are independent, results for several classes of one patient are
not. If several scans of one patient are counted as patients, every interval is too narrow and every p too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 95                        # % of the confidence intervals
LEAST_PAIRS = 6                   # 5 differences of one sign give p = 2 / 2^5 = 0.0625, which is never below 0.05
SIGNIFICANT = 0.05


def bootstrap_interval(values: npt.ArrayLike, resamples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % percentile interval [low, high] of the mean over classes of the means over patients.

    values: (patients, classes) float, NaN where a patient has no value

    Patients are drawn with replacement, with all their classes. A class that no drawn patient has is left out of that
    resample's mean. The result is None where a class has only one patient: nothing tells how much others would differ.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    array = np.asarray(values, float)
    array = array[~np.isnan(array).all(axis=1)]
    rng, present, means = np.random.default_rng(seed), ~np.isnan(array), []
    if resamples < 1 or (present.sum(axis=0) < 2).any():
        return None
    filled = np.where(present, array, 0.0)
    for _ in range(resamples):
        times = np.bincount(rng.integers(len(array), size=len(array)), minlength=len(array))    # (patients,)
        drawn = times @ present                                                                    # (classes,)
        means.append(np.mean((times @ filled)[drawn > 0] / drawn[drawn > 0]))
    return [float(end) for end in np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])]


def wilcoxon_p(differences: npt.ArrayLike) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (paired, symmetric about 0); None where fewer than 6 are not 0."""
    from scipy.stats import wilcoxon  # takes a second to import; nothing else here needs it

    values = np.asarray(differences, float)
    values = values[values != 0]
    return float(wilcoxon(values).pvalue) if len(values) >= LEAST_PAIRS else None


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for multiple testing by Holm's step-down procedure; None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    ascending = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted, largest = list(ps), 0.0
    for rank, (p, i) in enumerate(ascending):
        largest = max(largest, min(1.0, (len(ascending) - rank) * p))
        adjusted[i] = largest
    return adjusted


def paired_tests(differences: Mapping[str, Sequence[float]], resamples: int = 1000,
                 seed: int = 0) -> dict[str, dict[str, Any]]:
    """{name: {"patients", "mean", "ci", "p", "p_holm"}}; names without differences are left out.

    differences: {name of a class or group: one difference per patient}; resamples, seed: of the bootstrap
    """
    arrays = {name: np.asarray(values, float) for name, values in differences.items() if len(values)}
    ps = [wilcoxon_p(values) for values in arrays.values()]
    return {name: {"patients": len(values), "mean": float(np.mean(values)),
                   "ci": bootstrap_interval(values[:, None], resamples, seed), "p": p, "p_holm": adjusted}
            for (name, values), p, adjusted in zip(arrays.items(), ps, holm(ps))}
