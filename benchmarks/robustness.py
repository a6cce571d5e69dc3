"""How much a model's Dice changes when a CT is perturbed: orientation, slices, field of view, fill, noise, HU, table,
contrast; and what is said about CTs that are damaged.

    python benchmarks/robustness.py DATA_ROOT [--weights W] [--device cpu] [--only NAME ...] [--json OUT]
    python benchmarks/robustness.py CT.nii.gz ...               CTs without labels: compared with their own result
    python benchmarks/robustness.py --head HEAD [--weights W]   a CT of a head (head_ct.py), which shows no class

Every labelled case under DATA_ROOT (folders of datasets, as for training) is segmented unchanged and once for each
entry of PERTURBATIONS (perturbations.py), and compared with its labels, which are moved, cut and averaged as the CT is.
A CT without labels is compared with what is found in it unchanged.

The table holds the Dice of each class that the case has and the model offers; their mean; *change*, the mean difference
to the unperturbed row over the classes that the perturbed CT still shows ("-" if a crop leaves none of a class); and
the number of voxels of the label map that differ, if the voxels are the same ones. Below it stand the warnings.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

import uniseg
from perturbations import (
    BELOW_THE_CHEST,
    CT,
    ENHANCING,
    PERTURBATIONS,
    Masks,
    NotPossible,
    chest_alone,
    native_shifts,
)
from uniseg.datasets.dataset import CaseFiles, Dataset, in_order
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import read_ct, to_ras
from uniseg.machine.console import fail
from uniseg.metrics import dice
from uniseg.segmenter import Segmenter

LEAST_FOUND_ML = 20.0         # of a class in a CT without labels, to be compared

# ------------------------------------------------------------------------------------------------------------- scores

def differing(one: NDArray, affine: NDArray, other: NDArray, other_affine: NDArray) -> int | None:
    """How many voxels of two label maps differ, in whatever orientation they are stored; None if their grids differ."""
    (one, affine, _), (other, other_affine, _) = to_ras(one, affine), to_ras(other, other_affine)
    if one.shape != other.shape or not np.allclose(affine, other_affine):
        return None
    return int(np.count_nonzero(one != other))


def score_case(segmenter: Segmenter, hu: NDArray, affine: NDArray, masks: Masks,
               only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """{perturbation: {"dice", "mean", "change", "differing_voxels", "outside_ml", "warnings"} or {"not possible":
    why}}.

    masks: of every class that is annotated and present. "outside_ml" is the volume found of classes that the perturbed
           CT does not show.
    """
    rows: dict[str, dict[str, Any]] = {}
    plain = None
    chosen = {n: p for n, p in PERTURBATIONS.items() if not only or n in ("unperturbed", *only)}
    for name, perturb in chosen.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        try:
            new_hu, new_affine, new_masks = perturb(hu, affine, masks)
        except NotPossible as why:
            rows[name] = {"not possible": str(why)}
            continue
        try:
            result = segmenter.segment(nibabel.Nifti1Image(new_hu, new_affine))
        except ValueError as refusal:
            rows[name] = {"not possible": f"refused: {refusal}"}
            continue
        plain = plain or result
        scores = {c: dice(result.mask(c), mask) for c, mask in new_masks.items() if c in result.classes and mask.any()}
        outside = [c for c, mask in new_masks.items() if c in result.classes and not mask.any()]
        if perturb is chest_alone:
            outside += [c for c in BELOW_THE_CHEST if c in result.classes and c not in new_masks]
        first = rows["unperturbed"]["dice"] if rows else scores
        rows[name] = {"dice": scores, "mean": mean(scores.values()),
                      "change": mean(scores[c] - first[c] for c in scores),
                      "differing_voxels": differing(plain.label_map, plain.affine, result.label_map, result.affine),
                      "outside_ml": {c: result.stats["classes"][c]["ml"] for c in outside},
                      "warnings": result.stats["warnings"]}
    return rows


def mean(values: Iterable[float]) -> float | None:
    """The mean, or None of no values."""
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


def shown(value: float | None, form: str = ".3f") -> str:
    """The number as text, "-" for None."""
    return "-" if value is None else format(value, form)


def case_lines(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The Markdown table of one case, and below it what was found of classes that the CT does not show."""
    classes = in_order(rows["unperturbed"]["dice"])
    yield f"| perturbation | {' | '.join(classes)} | mean | change | voxels that differ |"
    yield "|--" * (len(classes) + 4) + "|"
    for name, row in rows.items():
        if "not possible" in row:
            yield f"| {name} | {' | ' * (len(classes) - 1)} | | | not possible: {row['not possible']} |"
            continue
        differ = {None: "", 0: "identical"}.get(row["differing_voxels"], row["differing_voxels"])
        cells = [shown(row["dice"].get(c)) for c in classes]
        yield f"| {name} | {' | '.join(cells)} | {shown(row['mean'])} | {shown(row['change'], '+.3f')} | {differ} |"
    for name, row in rows.items():
        for warning in row.get("warnings", []):
            yield f"\n{name}: {warning}"
    for name, row in rows.items():
        if row.get("outside_ml"):
            yield f"\n{name}, ml found of what this CT does not show: " + \
                ", ".join(f"{c} {ml:.1f}" for c, ml in row["outside_ml"].items())


def contrast_lines(shifts: Mapping[str, float]) -> Iterator[str]:
    """Which classes of this case `without_contrast` has changed, and which it could not."""
    yield "\ncontrast removed, HU by class: " + (", ".join(f"{c} {hu:+.0f}" for c, hu in shifts.items()) or "none")
    missing = [c for c in ENHANCING if c not in shifts]
    yield f"not labelled here, left as it is: {', '.join([*missing, 'heart, gut wall and all other vessels'])}"


def summary_lines(report: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """All cases in one table: mean Dice and, in brackets, its change."""
    yield f"| perturbation | {' | '.join(report)} | mean change |"
    yield "|--" * (len(report) + 2) + "|"
    for name in PERTURBATIONS:
        rows = [case["rows"].get(name, {}) for case in report.values()]
        if not any(rows):
            continue
        cells = [f"{row['mean']:.3f} ({row['change']:+.3f})" if row.get("mean") is not None else "-" for row in rows]
        change = mean(row["change"] for row in rows if row.get("mean") is not None)
        yield f"| {name} | {' | '.join(cells)} | {shown(change, '+.3f')} |"


def score_head(segmenter: Segmenter, path: Path) -> dict[str, Any]:
    """{"ml": {class: ml found}, "warnings"} of a CT of a head, which shows none of the classes."""
    stats = segmenter.segment(path).stats
    return {"ml": {c: numbers["ml"] for c, numbers in stats["classes"].items()}, "warnings": stats["warnings"]}


def labelled_or_found(segmenter: Segmenter, sources: Sequence[Path]) -> Iterator[tuple[str, Callable[[], CT]]]:
    """(name, function that gives HU, affine and masks) of labelled cases, and of CTs with what is found in them."""
    def labelled(dataset: Dataset, case: CaseFiles) -> CT:
        ct = read_ct(case.image)
        return ct.array, ct.affine, {name: mask for name, mask in case_masks(dataset, case, ct) if mask.any()}

    def found(path: Path) -> CT:
        ct, result = read_ct(path), segmenter.segment(path)
        masks = {name: to_ras(result.mask(name), result.affine)[0] for name in result.classes
                 if result.stats["classes"][name]["ml"] >= LEAST_FOUND_ML}
        return ct.array, ct.affine, masks

    for source in sources:
        if source.is_dir():
            for dataset in find_datasets(source):
                for case in dataset.cases:
                    yield f"{dataset.name}/{case.id}", partial(labelled, dataset, case)
        else:
            yield source.name, partial(found, source)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print all tables; returns the content of --json. Raises ValueError."""
    if not (args.sources or args.head):
        raise ValueError("nothing to segment. Give DATA_ROOT, CTs, or --head CT.")
    unknown = set(args.only) - set(PERTURBATIONS)
    if unknown:
        raise ValueError(f"--only {min(unknown)}: no such perturbation. Choose from {', '.join(PERTURBATIONS)}.")
    segmenter = uniseg.load(args.weights, args.device)
    cases = list(labelled_or_found(segmenter, args.sources))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {segmenter.device}, torch {torch.__version__}, "
          f"weights {segmenter.weights['file']} {segmenter.weights['sha256'][:12]}, {len(cases)} cases")
    report: dict[str, Any] = {}
    for name, load in cases:
        hu, affine, masks = load()
        if not set(masks) & set(segmenter.classes):
            print(f"\n{name}: no class that is labelled is offered")
            continue
        print(f"\n{name}\n", flush=True)
        shifts = native_shifts(hu, masks)
        rows = score_case(segmenter, hu, affine, masks, args.only)
        report[name] = {"rows": rows, "native_shifts_hu": shifts}
        print("\n".join(case_lines(rows)), flush=True)
        if "contrast removed" in rows:
            print("\n".join(contrast_lines(shifts)), flush=True)
    if len(report) > 1:
        print("\n" + "\n".join(summary_lines(report)))
    if args.head:
        report["head"] = score_head(segmenter, args.head)
        found = ", ".join(f"{c} {ml:.1f}" for c, ml in report["head"]["ml"].items() if ml)
        print(f"\nhead, ml found: {found or 'none'}\nwarnings: {'; '.join(report['head']['warnings']) or 'none'}")
    return report


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*", metavar="DATA_ROOT|CT", help="folders of datasets, or CTs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these perturbations only")
    parser.add_argument("--weights", type=Path, help="checkpoint (default: the built-in weights)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--head", type=Path, metavar="CT", help="also segment a CT of a head (head_ct.py makes one)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers into this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad arguments or data."""
    args = build_parser().parse_args(argv)
    try:
        report = run(args)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
