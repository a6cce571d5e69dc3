"""How much a model's Dice changes when a CT is perturbed: orientation, slices, field of view, noise, HU, table, contrast.

    python benchmarks/robustness.py DATA_ROOT [--weights W] [--device cpu] [--json OUT]
    python benchmarks/robustness.py --head HEAD [--weights W]   a CT of a head (head_ct.py): everything found is wrong

Every labelled case under DATA_ROOT (folders of datasets, as for training) is segmented as it is and once for each entry of
PERTURBATIONS, and compared with its labels, which are moved, cut and averaged as the CT is. A perturbation is a pure function
(hu, affine, masks) -> (hu, affine, masks): hu (D, H, W) in RAS+, masks {class: (D, H, W) bool} of the same grid. One that makes
no sense for a case raises NotPossible, and the table says why.

What the table says: Dice of each class that the case has and the model offers; their mean; *change*, the mean of the differences
to the unperturbed row over the classes of which a perturbed CT still shows something (a crop may leave none of a class: "-");
how many voxels of the label map differ, where the voxels are the same ones.
"""

import argparse
import json
import platform
import sys
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

import uniseg
from tools.synthetic import scanner, tissues
from tools.synthetic.geometry import Grid
from uniseg.datasets.dataset import in_order
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.bits import bounding_box
from uniseg.imaging.body import body_mask
from uniseg.imaging.merging import merging_rank
from uniseg.imaging.volume import AIR_HU, read_ct, to_ras, voxel_size_mm
from uniseg.machine.console import fail
from uniseg.metrics import dice

SLICE_MM = 5.0
KIDNEYS, LUNGS = ("right_kidney", "left_kidney"), ("right_lung", "left_lung")
BELOW_THE_CHEST = (*KIDNEYS, "bladder", "prostate_or_uterus")       # whether the case labels them or not
ABOVE_KIDNEYS_MM = 20.0
SHARE_OF_LUNGS = 0.6          # kept, from the top, where no kidney is labelled
LEAST_CHEST_MM = 60.0         # less than that shows no chest
TABLE_ROOM_MM = 40.0          # mattress and upper shell of the thickest table that scanner.table draws; more where the CT shows it
EDGE_MM = 1.0                 # over which a change of contrast fades at an organ's edge
# Class -> tissue that says its native HU. Gut is not here: its contents hide the wall, which alone enhances.
ENHANCING = {**{name: tissue for tissue, name in tissues.MEASURED_AS.items() if tissue not in ("bile", "bladder_urine")},
             **{name: "cortex" for name in KIDNEYS}, "hepatic_vessel": "hepatic_blood", "celiac_trunk": "blood",
             **{f"{side}_adrenal_gland": "adrenal" for side in tissues.SIDES}, "prostate_or_uterus": "prostate"}


class NotPossible(Exception):
    """The perturbation makes no sense for this case; the message says why."""


# ------------------------------------------------------------------------------------------------------ perturbations

def as_hu(values):
    """Rounded to int16 HU as a scanner stores them, nothing below air."""
    return np.clip(np.rint(values), AIR_HU, 32767).astype(np.int16)


def unperturbed(hu, affine, masks):
    return hu, affine, masks


def stored_as(hu, affine, masks, codes):
    """The same voxels in another order. codes: where the three axes point, such as "LPS"."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return (apply_orientation(hu, turn), affine @ inv_ornt_aff(turn, hu.shape),
            {name: apply_orientation(mask, turn) for name, mask in masks.items()})


def thick_slices(hu, affine, masks, slice_mm=SLICE_MM):
    """Slices of `slice_mm` without gaps from the lowest up, each the mean over its thickness; what is left at the top is cut off.

    A voxel of the new grid belongs to a class that covers half of it.
    """
    spacing, n = voxel_size_mm(affine)[2], hu.shape[2]
    if spacing > slice_mm - 0.1:
        raise NotPossible(f"slices are {spacing:.1f} mm already")
    edges = np.arange(n + 1) * spacing                                               # mm, of the slices as they are
    count = int(edges[-1] / slice_mm + 1e-6)
    if not count:
        raise NotPossible(f"{edges[-1]:.0f} mm are no slice of {slice_mm:g} mm")
    shares = [np.clip(np.minimum(edges[1:], (k + 1) * slice_mm) - np.maximum(edges[:-1], k * slice_mm), 0, None) / slice_mm
              for k in range(count)]                                                 # of each slice in the new one k

    def mean(array):
        for k, share in enumerate(shares):
            inside = np.flatnonzero(share)
            yield k, array[:, :, inside] @ share[inside].astype(np.float32)          # (D, H)

    thick = np.empty((*hu.shape[:2], count), np.int16, order="F")
    for k, plane in mean(hu):
        thick[:, :, k] = as_hu(plane)
    new_masks = {}
    for name, mask in masks.items():
        new_masks[name] = np.empty(thick.shape, bool, order="F")
        for k, plane in mean(mask):
            new_masks[name][:, :, k] = plane > 0.5 - 1e-4
    new = affine.copy()
    new[:3, 3] += affine[:3, 2] * (slice_mm / spacing - 1) / 2                       # the first one's centre is higher up
    new[:3, 2] *= slice_mm / spacing
    return thick, new, new_masks


def cut(hu, affine, masks, box):
    """The part in a box (three slices); each voxel stays where it is in the world."""
    new = affine.copy()
    new[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return hu[box], new, {name: mask[box] for name, mask in masks.items()}


def half_field_of_view(hu, affine, masks):
    """Half the width and half the depth of the CT, about the middle of the body's bounding box (as far as the CT reaches), at
    full height: what a reconstruction zoomed on the spine shows. The body is cut on all four sides."""
    body = bounding_box(body_mask(hu, voxel_size_mm(affine)))
    if body is None:
        raise NotPossible("no body found")
    box = []
    for part, n in zip(body[:2], hu.shape):
        start = int(np.clip((part.start + part.stop) // 2 - n // 4, 0, n - n // 2))
        box.append(slice(start, start + n // 2))
    return cut(hu, affine, masks, (*box, slice(0, hu.shape[2])))


def noisy(hu, affine, masks, sd_hu):
    """Gaussian noise more, independent from voxel to voxel, always the same draw."""
    noise = np.random.default_rng(0).standard_normal(hu.shape[::-1], np.float32).T   # in the memory order of the CT
    noise *= np.float32(sd_hu)
    noise += hu
    return as_hu(noise), affine, masks


def shifted(hu, affine, masks, by_hu):
    """All HU more by a constant, as of a scanner out of calibration."""
    return as_hu(hu.astype(np.float32) + by_hu), affine, masks


def with_table(hu, affine, masks):
    """One more curved table with its mattress right below the patient, that of the synthetic CTs, always the same draw.

    Where the CT ends too close to the back, air is put below it first (TABLE_ROOM_MM).
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
    # The table is the same in each slice and spares all that is patient in any: one plane of it is enough. Square pixels.
    silhouette = body_mask(lain, spacing).any(axis=2, keepdims=True)
    plane = Grid((0.0, 0.0, 0.0), float(spacing[1]), silhouette.shape)
    for share, value in scanner.table(np.where(silhouette, 1, -1), plane, np.random.default_rng(0)):
        for k in range(lain.shape[2]):
            lain[:, :, k] += share[:, :, 0] * (value - lain[:, :, k])
    return as_hu(lain), new, {name: np.pad(mask, below) for name, mask in masks.items()}


def native_shifts(hu, masks):
    """{class: HU that takes its median to the native mean of its tissue} of the classes that enhance; 0 where it is lower."""
    return {name: min(0.0, round(tissues.centre(ENHANCING[name], "native") - float(np.median(hu[mask])), 1))
            for name, mask in masks.items() if name in ENHANCING and mask.any()}


def without_contrast(hu, affine, masks):
    """Blood and organs that enhance as dark as without contrast: each lowered by its own constant (`native_shifts`), which fades
    over EDGE_MM at its edge. Vessels overrule the organs they lie in. Texture stays, so a kidney's cortex stays brighter than its
    medulla; what the case does not label (heart, gut wall, other vessels) stays bright: a harder CT than a true native one."""
    shifts = native_shifts(hu, masks)
    if not shifts:
        raise NotPossible("no class that enhances is labelled")
    field = np.zeros(hu.shape, np.float32, order="F")
    for name in sorted(shifts, key=merging_rank):
        field[masks[name]] = shifts[name]
    field = ndimage.gaussian_filter(field, EDGE_MM / voxel_size_mm(affine), mode="nearest")
    return as_hu(field + hu), affine, masks


def heights(masks, names):
    """The lowest and the highest slice in which one of the classes is labelled, or None."""
    found = [np.flatnonzero(masks[name].any(axis=(0, 1))) for name in names if name in masks and masks[name].any()]
    return (min(int(z[0]) for z in found), max(int(z[-1]) for z in found)) if found else None


def chest_alone(hu, affine, masks):
    """The CT from 2 cm above the upper end of the kidneys upwards; without kidneys, the upper SHARE_OF_LUNGS of the lungs' height."""
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


PERTURBATIONS = {
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

def differing(one, affine, other, other_affine):
    """How many voxels of two label maps differ, whatever the orientation they are stored in; None if they are other voxels."""
    (one, affine, _), (other, other_affine, _) = to_ras(one, affine), to_ras(other, other_affine)
    if one.shape != other.shape or not np.allclose(affine, other_affine):
        return None
    return int(np.count_nonzero(one != other))


def score_case(segmenter, hu, affine, masks):
    """{perturbation: {"dice", "mean", "change", "differing_voxels", "outside_ml", "warnings"}, or {"not possible": why}}.

    masks: of every class that is annotated and there. "outside_ml": ml found of classes that the perturbed CT does not show.
    """
    rows, plain = {}, None
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
        rows[name] = {"dice": scores, "mean": mean(scores.values()), "change": mean(scores[c] - first[c] for c in scores),
                      "differing_voxels": differing(plain.label_map, plain.affine, result.label_map, result.affine),
                      "outside_ml": {c: result.stats["classes"][c]["ml"] for c in outside}, "warnings": result.stats["warnings"]}
    return rows


def mean(values):
    values = list(values)
    return float(np.mean(values)) if values else None


def shown(value, form=".3f"):
    return "-" if value is None else format(value, form)


def case_lines(rows):
    """The Markdown table of one case, and below it what was found outside of the CT."""
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


def contrast_lines(shifts):
    """What `without_contrast` could do to this case."""
    yield "\ncontrast removed, HU by class: " + (", ".join(f"{c} {hu:+.0f}" for c, hu in shifts.items()) or "none")
    missing = [c for c in ENHANCING if c not in shifts]
    yield f"not labelled here, left as it is: {', '.join([*missing, 'heart, gut wall and all other vessels'])}"


def summary_lines(report):
    """All cases in one table: mean Dice and, in brackets, the change."""
    yield f"| perturbation | {' | '.join(report)} | mean change |"
    yield "|--" * (len(report) + 2) + "|"
    for name in PERTURBATIONS:
        rows = [case["rows"][name] for case in report.values()]
        cells = [f"{row['mean']:.3f} ({row['change']:+.3f})" if row.get("mean") is not None else "-" for row in rows]
        change = mean(row["change"] for row in rows if row.get("mean") is not None)
        yield f"| {name} | {' | '.join(cells)} | {shown(change, '+.3f')} |"


def score_head(segmenter, path):
    """{"ml": {class: ml found}, "warnings"} of a CT of a head, which shows none of the classes."""
    stats = segmenter.segment(path).stats
    return {"ml": {c: found["ml"] for c, found in stats["classes"].items()}, "warnings": stats["warnings"]}


def run(args):
    """Print all tables; returns what --json writes. Raises ValueError."""
    if not (args.root or args.head):
        raise ValueError("nothing to segment. Give DATA_ROOT, or --head CT.")
    cases = [(d, c) for d in find_datasets(args.root) for c in d.cases] if args.root else []
    segmenter = uniseg.load(args.weights, args.device)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {segmenter.device}, torch {torch.__version__}, weights "
          f"{segmenter.weights['file']} {segmenter.weights['sha256'][:12]}, {len(cases)} cases")
    report = {}
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
        print("\nhead, ml found: " + (", ".join(f"{c} {ml:.1f}" for c, ml in report["head"]["ml"].items() if ml) or "none")
              + f"\nwarnings: {'; '.join(report['head']['warnings']) or 'none'}")
    return report


def main(argv=None):
    """Returns the exit code: 0 done, 2 bad arguments or data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", metavar="DATA_ROOT")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--head", type=Path, metavar="CT", help="segment a CT of a head as well (head_ct.py makes one)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers into this file")
    args = parser.parse_args(argv)
    try:
        report = run(args)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
