"""How much a model's Dice changes when a CT is perturbed: orientation, slices, field of view, noise, HU, table,
contrast.

    python benchmarks/robustness.py DATA_ROOT [--weights W] [--device cpu] [--json OUT]
    python benchmarks/robustness.py --head HEAD [--weights W]   a CT of a head (head_ct.py), in which all findings are
    wrong

Every labelled case under DATA_ROOT (folders of datasets, as
for training) is segmented unchanged and once for each entry of PERTURBATIONS, and compared with its labels, which are
moved, cut and averaged as the CT is. A perturbation is a pure function (hu, affine, masks) -> (hu, affine, masks): hu
(D, H, W) in RAS+, masks {class: (D, H, W) bool} on the same grid. One that makes no sense for a case raises
NotPossible, and the table says why.

The table holds the Dice of each class that the case has and the model offers; their mean; *change*, the mean difference
to the unperturbed row over the classes that the perturbed CT still shows ("-" if a crop leaves none of a class); and
the number of voxels of the label map that differ, if the voxels are the same ones.
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
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

import uniseg
from uniseg.datasets.dataset import in_order
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.body import body_mask
from uniseg.imaging.merging import merging_rank
from uniseg.imaging.volume import AIR_HU, read_ct, to_ras, voxel_size_mm
from uniseg.machine.console import fail
from uniseg.metrics import dice
from uniseg.segmenter import Segmenter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools is no part of the installed package
from tools.synthetic import scanner, tissues  # noqa: E402
from tools.synthetic.geometry import Grid  # noqa: E402

Masks = dict[str, NDArray[np.bool_]]
CT = tuple[NDArray, NDArray, Masks]            # hu, affine, masks

SLICE_MM = 5.0
KIDNEYS, LUNGS = ("right_kidney", "left_kidney"), ("right_lung", "left_lung")
BELOW_THE_CHEST = (*KIDNEYS, "bladder", "prostate_or_uterus")       # counted even if the case does not label them
ABOVE_KIDNEYS_MM = 20.0
SHARE_OF_LUNGS = 0.6          # kept from the top if no kidney is labelled
LEAST_CHEST_MM = 60.0         # a CT with less of it does not show the chest
TABLE_ROOM_MM = 40.0          # holds mattress and upper shell of the thickest table that scanner.table draws
EDGE_MM = 1.0                 # over which a change of contrast fades at the edge of an organ
# Class -> tissue whose native HU it has. Gut is left out: its wall enhances, but its contents hide the wall.
ENHANCING = {**{name: tissue for tissue, name in tissues.MEASURED_AS.items()
                if tissue not in ("bile", "bladder_urine")},
             **{name: "cortex" for name in KIDNEYS}, "hepatic_vessel": "hepatic_blood", "celiac_trunk": "blood",
             **{f"{side}_adrenal_gland": "adrenal" for side in tissues.SIDES}, "prostate_or_uterus": "prostate"}


class NotPossible(Exception):
    """The perturbation makes no sense for this case; the message says why."""


# ------------------------------------------------------------------------------------------------------ perturbations

def as_hu(values: NDArray) -> NDArray[np.int16]:
    """HU as a scanner stores them: rounded to int16, nothing below air."""
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16)


def unperturbed(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT as it is."""
    return hu, affine, masks


def stored_as(hu: NDArray, affine: NDArray, masks: Masks, codes: str) -> CT:
    """The same voxels in another order. codes: where the three axes point, such as "LPS"."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return (apply_orientation(hu, turn), affine @ inv_ornt_aff(turn, hu.shape),
            {name: apply_orientation(mask, turn) for name, mask in masks.items()})


def thick_slices(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """Slices of SLICE_MM without gaps from the bottom up, each the mean over its thickness; an incomplete one is cut
    off.

    A voxel of the new grid belongs to a class that covers half of it.
    """
    spacing, n = voxel_size_mm(affine)[2], hu.shape[2]
    if spacing > SLICE_MM - 0.1:
        raise NotPossible(f"slices are {spacing:.1f} mm already")
    edges = np.arange(n + 1) * spacing                                               # mm, of the original slices
    count = int(edges[-1] / SLICE_MM + 1e-6)
    if not count:
        raise NotPossible(f"{edges[-1]:.0f} mm are no slice of {SLICE_MM:g} mm")
    # shares[k]: the share of each original slice in the new slice k
    low, high = edges[:-1], edges[1:]
    shares = [np.clip(np.minimum(high, (k + 1) * SLICE_MM) - np.maximum(low, k * SLICE_MM), 0, None) / SLICE_MM
              for k in range(count)]

    def mean_planes(array: NDArray) -> Iterator[tuple[int, NDArray]]:
        for k, share in enumerate(shares):
            inside = np.flatnonzero(share)
            yield k, array[:, :, inside] @ share[inside].astype(np.float32)          # (D, H)

    thick = np.empty((*hu.shape[:2], count), np.int16, order="F")
    for k, plane in mean_planes(hu):
        thick[:, :, k] = as_hu(plane)
    new_masks = {}
    for name, mask in masks.items():
        new_masks[name] = np.empty(thick.shape, bool, order="F")
        for k, plane in mean_planes(mask):
            new_masks[name][:, :, k] = plane > 0.5 - 1e-4
    new = affine.copy()
    new[:3, 3] += affine[:3, 2] * (SLICE_MM / spacing - 1) / 2  # the first slice's centre is higher
    new[:3, 2] *= SLICE_MM / spacing
    return thick, new, new_masks


def cut(hu: NDArray, affine: NDArray, masks: Masks, box: Sequence[slice]) -> CT:
    """The part of the CT in a box; each voxel keeps its world coordinates."""
    new = affine.copy()
    new[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return hu[tuple(box)], new, {name: mask[tuple(box)] for name, mask in masks.items()}


def half_field_of_view(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """Half the width and half the depth of the CT around the middle of the body's bounding box, at full height.

    This is what a reconstruction zoomed on the spine shows. The body is cut on all four sides.
    """
    body = bounding_box(body_mask(hu, voxel_size_mm(affine)))
    if body is None:
        raise NotPossible("no body found")
    box = []
    for part, n in zip(body[:2], hu.shape):
        start = int(np.clip((part.start + part.stop) // 2 - n // 4, 0, n - n // 2))
        box.append(slice(start, start + n // 2))
    return cut(hu, affine, masks, (*box, slice(0, hu.shape[2])))


def noisy(hu: NDArray, affine: NDArray, masks: Masks, sd_hu: float) -> CT:
    """The CT with Gaussian noise added, independent from voxel to voxel and the same in every run."""
    noise = np.random.default_rng(0).standard_normal(hu.shape[::-1], np.float32).T   # in the memory order of the CT
    noise *= np.float32(sd_hu)
    noise += hu
    return as_hu(noise), affine, masks


def shifted(hu: NDArray, affine: NDArray, masks: Masks, by_hu: float) -> CT:
    """The CT with a constant added to all HU, as by a scanner out of calibration."""
    return as_hu(hu.astype(np.float32) + by_hu), affine, masks


def with_table(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT with a second curved table and its mattress right below the patient, as in the synthetic CTs.

    If the CT ends too close to the back, air is added below it first (TABLE_ROOM_MM). The table is the same in every
    run.
    """
    spacing = voxel_size_mm(affine)
    box = bounding_box(body_mask(hu, spacing))
    if box is None:
        raise NotPossible("no body found")
    more = max(0, int(np.ceil(TABLE_ROOM_MM / spacing[1])) - box[1].start)
    below = ((0, 0), (more, 0), (0, 0))
    new = affine.copy()
    new[:3, 3] -= affine[:3, 1] * more
    lain = np.pad(hu, below, constant_values=AIR_HU).astype(np.float32, order="F")
    # The table is the same in each slice and leaves out what is patient in any slice, so one plane is enough.
    silhouette = body_mask(lain, spacing).any(axis=2, keepdims=True)
    plane = Grid((0.0, 0.0, 0.0), float(spacing[1]), silhouette.shape)               # takes pixels for square
    for share, value in scanner.table(np.where(silhouette, 1, -1), plane, np.random.default_rng(0)):
        for k in range(lain.shape[2]):
            lain[:, :, k] += share[:, :, 0] * (value - lain[:, :, k])
    return as_hu(lain), new, {name: np.pad(mask, below) for name, mask in masks.items()}


def native_shifts(hu: NDArray, masks: Masks) -> dict[str, float]:
    """{class that enhances: HU that take its median down to the native mean of its tissue, or 0 if it is lower}."""
    return {name: min(0.0, round(tissues.centre(ENHANCING[name], "native") - float(np.median(hu[mask])), 1))
            for name, mask in masks.items() if name in ENHANCING and mask.any()}


def without_contrast(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT with the blood and organs that enhance as dark as without contrast.

    Each is lowered by its own constant (`native_shifts`), which fades over EDGE_MM at its edge; vessels take precedence
    over the organs that they lie in. Texture stays, so the cortex of a kidney stays brighter than its medulla. What the
    case does not label (heart, gut wall, other vessels) stays bright, so this CT is harder than a real native one.
    """
    shifts = native_shifts(hu, masks)
    if not shifts:
        raise NotPossible("no class that enhances is labelled")
    field = np.zeros(hu.shape, np.float32, order="F")
    for name in sorted(shifts, key=merging_rank):
        field[masks[name]] = shifts[name]
    field = ndimage.gaussian_filter(field, EDGE_MM / voxel_size_mm(affine), mode="nearest")
    return as_hu(field + hu), affine, masks


def heights(masks: Masks, names: Sequence[str]) -> tuple[int, int] | None:
    """The lowest and the highest slice in which one of the classes is labelled, or None if there is none."""
    found = [np.flatnonzero(masks[name].any(axis=(0, 1))) for name in names if name in masks and masks[name].any()]
    return (min(int(z[0]) for z in found), max(int(z[-1]) for z in found)) if found else None


def chest_alone(hu: NDArray, affine: NDArray, masks: Masks) -> CT:
    """The CT from 2 cm above the kidneys upwards.

    Without labelled kidneys, it begins in the lungs and keeps the upper SHARE_OF_LUNGS of their height.
    """
    spacing = voxel_size_mm(affine)[2]
    if kidneys := heights(masks, KIDNEYS):
        start = kidneys[1] + 1 + int(np.ceil(ABOVE_KIDNEYS_MM / spacing))
    elif lungs := heights(masks, LUNGS):
        start = lungs[1] + 1 - int(SHARE_OF_LUNGS * (lungs[1] + 1 - lungs[0]))
    else:
        raise NotPossible("neither kidneys nor lungs are labelled")
    left_mm = max(0, hu.shape[2] - start) * spacing
    if left_mm < LEAST_CHEST_MM:
        raise NotPossible(f"{left_mm:.0f} mm of chest, less than {LEAST_CHEST_MM:.0f}")
    return cut(hu, affine, masks, (slice(0, hu.shape[0]), slice(0, hu.shape[1]), slice(start, hu.shape[2])))


PERTURBATIONS: dict[str, Callable[[NDArray, NDArray, Masks], CT]] = {
    "unperturbed": unperturbed,
    **{f"stored as {codes}": partial(stored_as, codes=codes) for codes in ("LPS", "LAS", "ASR", "PIR", "SLA")},
    f"{SLICE_MM:g} mm slices": thick_slices,
    "half the field of view": half_field_of_view,
    "noise, sd 20 HU": partial(noisy, sd_hu=20),
    "noise, sd 40 HU": partial(noisy, sd_hu=40),
    "HU + 20": partial(shifted, by_hu=20),
    "HU - 20": partial(shifted, by_hu=-20),
    "a table more": with_table,
    "contrast removed": without_contrast,
    "chest alone": chest_alone,
}


# ------------------------------------------------------------------------------------------------------------- scores

def differing(one: NDArray, affine: NDArray, other: NDArray, other_affine: NDArray) -> int | None:
    """How many voxels of two label maps differ, in whatever orientation they are stored; None if their grids differ."""
    (one, affine, _), (other, other_affine, _) = to_ras(one, affine), to_ras(other, other_affine)
    if one.shape != other.shape or not np.allclose(affine, other_affine):
        return None
    return int(np.count_nonzero(one != other))


def score_case(segmenter: Segmenter, hu: NDArray, affine: NDArray, masks: Masks) -> dict[str, dict[str, Any]]:
    """{perturbation: {"dice", "mean", "change", "differing_voxels", "outside_ml", "warnings"} or {"not possible":
    why}}.

    masks: of every class that is annotated and present. "outside_ml" is the volume found of classes that the perturbed
           CT does not show.
    """
    rows: dict[str, dict[str, Any]] = {}
    plain = None
    for name, perturb in PERTURBATIONS.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        try:
            new_hu, new_affine, new_masks = perturb(hu, affine, masks)
        except NotPossible as why:
            rows[name] = {"not possible": str(why)}
            continue
        result = segmenter.segment(nibabel.Nifti1Image(new_hu, new_affine))
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
        rows = [case["rows"][name] for case in report.values()]
        cells = [f"{row['mean']:.3f} ({row['change']:+.3f})" if row.get("mean") is not None else "-" for row in rows]
        change = mean(row["change"] for row in rows if row.get("mean") is not None)
        yield f"| {name} | {' | '.join(cells)} | {shown(change, '+.3f')} |"


def score_head(segmenter: Segmenter, path: Path) -> dict[str, Any]:
    """{"ml": {class: ml found}, "warnings"} of a CT of a head, which shows none of the classes."""
    stats = segmenter.segment(path).stats
    return {"ml": {c: numbers["ml"] for c, numbers in stats["classes"].items()}, "warnings": stats["warnings"]}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print all tables; returns the content of --json. Raises ValueError."""
    if not (args.root or args.head):
        raise ValueError("nothing to segment. Give DATA_ROOT, or --head CT.")
    cases = [(d, c) for d in find_datasets(args.root) for c in d.cases] if args.root else []
    segmenter = uniseg.load(args.weights, args.device)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {segmenter.device}, torch {torch.__version__}, "
          f"weights {segmenter.weights['file']} {segmenter.weights['sha256'][:12]}, {len(cases)} cases")
    report: dict[str, Any] = {}
    for dataset, files in cases:
        ct = read_ct(files.image)
        masks = {name: mask for name, mask in case_masks(dataset, files, ct) if mask.any()}
        if not set(masks) & set(segmenter.classes):
            print(f"\n{files.id}: no class that is labelled is offered")
            continue
        print(f"\n{files.id}\n", flush=True)
        shifts = native_shifts(ct.array, masks)
        rows = score_case(segmenter, ct.array, ct.affine, masks)
        report[f"{dataset.name}/{files.id}"] = {"rows": rows, "native_shifts_hu": shifts}
        print("\n".join([*case_lines(rows), *contrast_lines(shifts)]), flush=True)
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
    parser.add_argument("root", type=Path, nargs="?", metavar="DATA_ROOT", help="folder of datasets")
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
