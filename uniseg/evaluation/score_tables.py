"""What `python -m uniseg.evaluate` prints: the dicts of scores.py, folds.py and comparison.py as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .significance import LEAST_PAIRS, LEVEL, SIGNIFICANT

ASSUMPTIONS = ("Differences are paired by patient; patients are taken as independent, the differences as symmetric.",
               "p: Wilcoxon's signed-rank test, two-sided; Holm: corrected over the classes, and over the groups.",
               f"With fewer than {LEAST_PAIRS} differences that are not 0, p cannot be below {SIGNIFICANT}; "
               "none is given then.",
               "A patient's difference in a group is the mean over the classes that both results have there.")


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(ci: list[float] | None) -> str:
    return "-" if ci is None else f"[{ci[0]:.3f}, {ci[1]:.3f}]"


def _line(*cells: tuple[Any, int]) -> str:
    """One line of (text, width); a negative width aligns the text at the right."""
    return "  ".join(str(text).rjust(-width) if width < 0 else str(text).ljust(width) for text, width in cells).rstrip()


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the classes and the table of the groups, of scores.summarise."""
    yield _line(("class", 26), ("cases", -5), ("DSC", -6), (f"{LEVEL} % CI", 16), ("NSD", -6), ("at mm", -5),
                ("HD95 mm", -8), ("infinite", -8), ("absent", -6), ("false pos.", -10))
    for name, scores in summary["classes"].items():
        median = "inf" if scores["hd95_infinite"] * 2 > scores["present"] else _number(scores["hd95_median_mm"], 1)
        tolerance = "-" if scores["tolerance_mm"] is None else f"{scores['tolerance_mm']:g}"
        yield _line((name, 26), (scores["present"], -5), (_number(scores["dice_mean"]), -6),
                    (_interval(scores["dice_ci"]), 16), (_number(scores["nsd_mean"]), -6), (tolerance, -5),
                    (median, -8), (scores["hd95_infinite"], -8), (scores["absent"], -6),
                    (scores["false_positives"], -10))
    yield ""
    yield _line(("mean over classes", 26), ("of", -5), ("DSC", -6), (f"{LEVEL} % CI", 16), ("NSD", -6))
    for group, scores in summary["groups"].items():
        yield _line((group, 26), (scores["classes"], -5), (_number(scores["dice_mean"]), -6),
                    (_interval(scores["dice_ci"]), 16), (_number(scores["nsd_mean"]), -6))


def detection_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the tumours: patients and lesions that were found. Nothing where no tumour was scored."""
    tumours = {name: scores for name, scores in summary["classes"].items() if scores["kind"] == "tumour"}
    if not tumours:
        return
    yield ""
    yield _line(("detection", 26), ("patients with", -13), ("sensitivity", -11), ("without", -7), ("specificity", -11),
                ("harmonic mean", -13), ("lesions found", -13), ("missed", -6), ("false", -5))
    for name, scores in tumours.items():
        found, lesions = scores["detection"], {key: "-" if n is None else n for key, n in scores["lesions"].items()}
        yield _line((name, 26), (scores["present"], -13), (_number(found["sensitivity"]), -11), (scores["absent"], -7),
                    (_number(found["specificity"]), -11), (_number(found["harmonic_mean"]), -13),
                    (lesions["tp"], -13), (lesions["fn"], -6), (lesions["fp"], -5))


def fold_lines(classes: Mapping[str, Any], folds: Mapping[str, Any]) -> Iterator[str]:
    """Yield the means over held-out cases and over folds, of scores.summarise and folds.fold_means."""
    yield ""
    yield _line(("held-out cases", 26), ("cases", -5), ("DSC", -6), (f"{LEVEL} % CI", 16), ("mean of folds", -13),
                ("sd", -6), ("folds", -5))
    for name, scores in folds.items():
        yield _line((name, 26), (classes[name]["present"], -5), (_number(classes[name]["dice_mean"]), -6),
                    (_interval(classes[name]["dice_ci"]), 16), (_number(scores["mean"]), -13),
                    (_number(scores["sd"]), -6), (scores["folds"], -5))


def comparison_lines(other: Any, tests: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paired comparison with another evaluation.

    other: its folder; tests: {"classes": ..., "groups": ...} of comparison.compare
    """
    yield ""
    yield f"DSC less that of {other}, paired"
    yield _line(("", 26), ("patients", -8), ("mean", -7), (f"{LEVEL} % CI", 18), ("p", -7), ("Holm", -7))
    for part in ("classes", "groups"):
        for name, test in tests[part].items():
            ci = "-" if test["ci"] is None else "[{:+.3f}, {:+.3f}]".format(*test["ci"])
            yield _line((name, 26), (test["patients"], -8), (f"{test['mean']:+.3f}", -7), (ci, 18),
                        (_number(test["p"], 4), -7), (_number(test["p_holm"], 4), -7))
    yield from ASSUMPTIONS


def reader_lines(readers: Mapping[str, Any]) -> Iterator[str]:
    """Yield the DSC between prediction and readers, mean and standard deviation (Section 4.7), of scores.readers."""
    yield ""
    yield _line(("mutual DSC, mean (sd)", 26), ("cases", -5), ("AI <-> reader 1", -17), ("AI <-> reader 2", -17),
                ("reader 1 <-> 2", -17))
    for name, scores in readers.items():
        pairs = [f"{scores[pair]['mean']:.3f} ({_number(scores[pair]['sd'])})"
                 for pair in ("prediction_reader1", "prediction_reader2", "reader1_reader2")]
        yield _line((name, 26), (scores["cases"], -5), *((text, -17) for text in pairs))
