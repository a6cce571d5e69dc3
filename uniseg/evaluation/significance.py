"""How sure a mean and a difference are: bootstrap over patients, Wilcoxon's signed-rank test, Holm's correction.

Patients are the units: rows of different patients are independent of each other, classes of one patient are not. Several
scans of one patient counted as patients make every interval too narrow and every p too small.
"""

import numpy as np

LEVEL = 95                        # % of the confidence intervals
LEAST_PAIRS = 6                   # of 5 differences all of one sign, p is 2 / 2^5 = 0.0625: no result can be below 0.05
SIGNIFICANT = 0.05


def bootstrap_interval(values, resamples=1000, seed=0):
    """95 % percentile interval [low, high] of the mean over classes of the means over patients.

    values: (patients, classes) float, NaN where a patient has none. Patients are drawn with replacement, with all their
    classes; a class that no drawn patient has is left out of that resample's mean. None where a class has one patient only:
    nothing tells how much another one would differ.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values).all(axis=1)]
    rng, given, means = np.random.default_rng(seed), ~np.isnan(values), []
    if resamples < 1 or (given.sum(axis=0) < 2).any():
        return None
    filled = np.where(given, values, 0.0)
    for _ in range(resamples):
        times = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))    # each patient is drawn
        drawn = times @ given                                                                      # (classes,)
        means.append(np.mean((times @ filled)[drawn > 0] / drawn[drawn > 0]))
    return [float(end) for end in np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])]


def wilcoxon_p(differences):
    """Two-sided p of Wilcoxon's signed-rank test (paired, symmetric about 0); None where fewer than 6 are not 0."""
    from scipy.stats import wilcoxon  # takes a second to import; nothing else here needs it

    differences = np.asarray(differences, float)
    differences = differences[differences != 0]
    return float(wilcoxon(differences).pvalue) if len(differences) >= LEAST_PAIRS else None


def holm(ps):
    """p-values adjusted for their number by Holm's step-down procedure; None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    adjusted, so_far = list(ps), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = so_far
    return adjusted


def paired_tests(differences, resamples=1000, seed=0):
    """{name: {"patients", "mean", "ci", "p", "p_holm"}} of {name: differences, one a patient}; names without any left out."""
    differences = {name: np.asarray(d, float) for name, d in differences.items() if len(d)}
    ps = [wilcoxon_p(d) for d in differences.values()]
    return {name: {"patients": len(d), "mean": float(np.mean(d)), "ci": bootstrap_interval(d[:, None], resamples, seed),
                   "p": p, "p_holm": adjusted}
            for (name, d), p, adjusted in zip(differences.items(), ps, holm(ps))}
