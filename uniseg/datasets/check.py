"""A look at the data before training: `python -m uniseg.data ROOT [--preview DIR]`. Sections 3.1, 4.1.1 and 4.1.2.

Every case of every dataset is read as training would read it, one at a time, and what is in it is listed: grid, HU, label
values, classes. Whatever training would refuse is an error; what it would take although it is probably a mistake (right
and left exchanged, grey values that are no HU, a class without a voxel, one image twice) is a warning. No case stops the
others. Read datasets.py and data.py first.
"""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from .. import taxonomy
from ..imaging import anatomy
from ..imaging.bits import bit_dtype, bounding_box
from ..imaging.body import body_mask
from ..imaging.nifti import format_mm
from ..imaging.preprocessing import Preprocessing
from ..imaging.resampling import resampled_shape
from ..imaging.volume import read_ct, read_label_map, voxel_size_mm
from ..machine.about import NOT_A_MEDICAL_DEVICE
from ..machine.console import Parser, error_line, say
from ..machine.files import atomic_write
from ..pictures.canvas import write_png
from ..pictures.slices import overlay
from .cases import CLASS_VOXELS_KEPT, FOREGROUND_KEPT, array_hash
from .check_table import problems_of, table, totals
from .find import DataError, dataset_folders, find_datasets, named_folder, read_folder, read_map
from .masks import case_masks, check_same_grid, class_masks

PLAUSIBLE_MM = (0.2, 8.0)         # voxel sizes of clinical CTs
LEAST_ML = 1.0                    # of a structure whose side is judged: less may be a crumb at the edge of the view
SIDES = {c.name: c.name.split("_")[0] for c in taxonomy.CLASSES if c.partner} | {"liver": "right", "spleen": "left"}
SPACING_MM = Preprocessing().spacing_mm[0]
DESCRIPTION = ("Check the datasets of a folder before training. Exit code: 0 nothing but warnings, 1 errors in some case, 2 a "
               "dataset or the folder cannot be used at all.")


# -------------------------------------------------------------------------------------------------------------- one case

def check_case(dataset, case, spacing_mm, picture=None):
    """What one case of a Dataset holds and what is wrong with it, as a dict for the table and for --json; never raises DataError.

    picture: path of its PNG, or None
    """
    row = {"case": case.id, "problems": [], "values": {}, "voxels": {}}
    ct = _read(read_ct, case.image, "image", row["problems"])
    in_files = case.label.is_dir()                                          # a file of its own for each structure
    label = None if in_files else _read(read_label_map, case.label, "label", row["problems"])
    if ct is not None:
        _describe_image(ct, row)
    if label is not None:
        values, counts = np.unique(label.array.T, return_counts=True)       # .T: in the order of memory
        row["values"] = {int(v): int(n) for v, n in zip(values, counts)}
    if ct is None or (label is None and not in_files):
        return row
    try:
        if in_files:
            masks = case_masks(dataset, case, ct)
        else:
            check_same_grid(ct, label, case.image, case.label)
            annotated = dataset.annotated_in(case)
            masks = ((name, mask) for name, mask in class_masks(dataset, label.array, ct.array, ct.affine, case.label)
                     if name in annotated)
        shown = _check_classes(dataset, ct, masks, row)
        row["cache_bytes"], row["memory_bytes"] = estimate(ct, shown, len(dataset.annotated), spacing_mm)
        if in_files:
            row["labelled"] = int(np.count_nonzero(shown))
    except (ValueError, OSError) as error:
        row["problems"].append(f"error: {error}")
        return row
    if picture is not None:
        write_png(picture, overlay(ct.array, shown, ct.affine, size=400))
    return row


def _read(reader, path, what, problems):
    """The Volume of a file, its warnings noted; None and an error noted where it cannot be read."""
    try:
        volume = reader(path)
    except (ValueError, OSError, MemoryError) as error:
        problems.append(f"error: {error or f'{path}: does not fit into memory'}")
        return None
    problems += [f"warning: {what}: {note}" for note in volume.warnings]
    return volume


def _describe_image(ct, row):
    """Shape and spacing in RAS+, orientation as stored, HU, and a hash of grid size and HU that no recompression changes."""
    spacing = voxel_size_mm(ct.affine)
    row |= {"shape": list(ct.array.shape), "spacing_mm": [round(float(s), 4) for s in spacing],
            "orientation": "".join(nib.aff2axcodes(ct.geometry.affine)),
            "hu": [float(v) for v in (ct.array.min(), *np.percentile(ct.array[::3, ::5, ::7], (0.5, 99.5)), ct.array.max())]}
    if not PLAUSIBLE_MM[0] <= spacing.min() <= spacing.max() <= PLAUSIBLE_MM[1]:
        row["problems"].append(f"warning: voxels of {format_mm(spacing)} mm are unusual for a CT")
    row["hash"] = array_hash(ct.array)


def _check_classes(dataset, ct, masks, row):
    """masks: (class name, mask) one by one. Count the voxels of each class and judge its side. Returns a label map (D, H, W) uint8 of class numbers; tumours on top."""
    shown, plane, wrong = np.zeros(ct.array.shape, np.uint8, order="F"), None, {}
    numbers = taxonomy.label_values(dataset.annotated)
    voxel_ml = float(np.prod(voxel_size_mm(ct.affine))) / 1000
    for name, mask in masks:
        row["voxels"][name] = int(np.count_nonzero(mask))
        np.maximum(shown, np.uint8(numbers[name]), out=shown, where=mask)
        if name in SIDES and row["voxels"][name] * voxel_ml >= LEAST_ML:
            plane = plane or anatomy.midsagittal_plane(ct.array, ct.affine)
            box = bounding_box(mask)
            right = np.count_nonzero(mask[box] & anatomy.right_side(mask.shape, ct.affine, plane, box)) / row["voxels"][name]
            away = right if SIDES[name] == "left" else 1 - right
            if away > 0.5:
                wrong[name] = away
    if wrong:
        row["problems"].append(_wrong_side(wrong))
    return shown


def _wrong_side(wrong):
    """The warning about {class: share of its voxels beyond the mid-sagittal plane}."""
    listed = ", ".join(f"{name} ({share:.0%})" for name, share in wrong.items())
    cause = ("Is the image or the label map flipped, or is it situs inversus?" if {"liver", "spleen"} & set(wrong)
             else "Are the names of right and left exchanged, or is the label map flipped?")
    return f"warning: on the wrong side of the patient: {listed}. {cause}"


def estimate(ct, shown, classes, spacing_mm):
    """Bytes of the cached case and of the memory that `data.prepare` needs for it. Both are estimates."""
    spacing = voxel_size_mm(ct.affine)
    shape = resampled_shape(ct.array.shape, spacing, spacing_mm)
    body = body_mask(ct.array, spacing)
    body |= shown > 0
    box = bounding_box(body) or tuple(slice(0, n) for n in body.shape)
    crop = [min(n, math.ceil((b.stop - b.start) * s / spacing_mm) + 4) for n, b, s in zip(shape, box, spacing)]  # + its margin
    labelled = np.count_nonzero(shown) * float(np.prod(spacing)) / spacing_mm ** 3
    indices = 8 * (min(labelled, FOREGROUND_KEPT) + min(labelled, classes * CLASS_VOXELS_KEPT))
    native, model = math.prod(ct.array.shape), math.prod(shape)
    # Measured peaks: reading and splitting the labels at native size, or cropping and indexing at the model's.
    memory = 60e6 + max(9 * native + 6 * model, 4 * native + 17 * model)
    return int(math.prod(crop) * (2 + bit_dtype(classes).itemsize) + indices), int(memory)


# ---------------------------------------------------------------------------------------------------------- one dataset

def check_dataset(dataset, spacing_mm, preview, seen):
    """All cases of a Dataset: a dict for the table and for --json. seen: {image hash: case} of all datasets, added to."""
    block = {"dataset": dataset.name, "folder": str(dataset.folder), "classes": taxonomy.label_values(dataset.annotated),
             "problems": [], "cases": []}
    for case in tqdm(dataset.cases, desc=dataset.name, leave=False, disable=not sys.stderr.isatty()):
        picture = preview / (re.sub(r"[^\w.-]+", "_", f"{dataset.name}_{case.id}") + ".png") if preview else None
        row = check_case(dataset, case, spacing_mm, picture)
        name = f"{dataset.name}/{case.id}"
        first = seen.setdefault(row.get("hash", name), name)
        if first != name:
            row["problems"].append(f"warning: the same image as {first}. One of them may validate what the other trained")
        block["cases"].append(row)
    block["labels"] = _label_table(dataset, block["cases"])
    seen_classes = {name for row in block["cases"] for name, n in row["voxels"].items() if n}
    if any(row["voxels"] for row in block["cases"]) and (never := [n for n in dataset.annotated if n not in seen_classes]):
        block["problems"].append(f"warning: annotated, but without a voxel in any case: {', '.join(never)}")
    if len(dataset.cases) == 1:
        block["problems"].append("warning: one case: it trains or validates, never both")
    block["problems"] += _unlisted(dataset) + _wrong_number(dataset)
    return block


def _label_table(dataset, rows):
    """One entry a label of the dataset.json: values, name, classes, voxels in all cases, number of cases that have it."""
    used = {value for entry in dataset.labels for value in entry.values}
    labels = [(list(entry.values), entry.name, list(entry.classes)) for entry in dataset.labels]
    labels += [([value], "dropped", []) for value in dataset.values if value and value not in used]
    counts = [[sum(row["values"].get(value, 0) for value in values) for row in rows] for values, _, _ in labels]
    return [{"values": values, "name": name, "classes": classes, "voxels": sum(n), "cases": sum(map(bool, n))}
            for (values, name, classes), n in zip(labels, counts)]


def _unlisted(dataset):
    """What lies in imagesTr and labelsTr without being a case: halves of a case are errors, whole cases a warning."""
    if dataset.published:                                                     # its files are paired by datasets.read_published
        return []
    listed = {Path(path).resolve() for case in dataset.cases for path in (case.image, case.label)}
    images, labels = ({re.sub(r"(_0000)?\.nii(\.gz)?$", "", f.name): f for f in sorted((dataset.folder / name).glob("*.nii*"))
                       if not f.name.startswith(".")} for name in ("imagesTr", "labelsTr"))

    def found(text, files):
        files = [f.name for f in files if f.resolve() not in listed]
        return [f"{text}: {', '.join(files)}"] if files else []

    return (found("error: images without a label in imagesTr", (f for k, f in images.items() if k not in labels))
            + found("error: labels without an image in labelsTr", (f for k, f in labels.items() if k not in images))
            + found("warning: cases that the dataset.json does not list", (f for k, f in images.items() if k in labels)))


def _wrong_number(dataset):
    path, many = dataset.folder / "dataset.json", len(dataset.cases)
    if dataset.published:                                                     # MR cases are left out, for one
        return []
    number = json.loads(path.read_text(encoding="utf-8-sig")).get("numTraining", many) if path.is_file() else many
    return [f"warning: numTraining is {number}, there are {many} cases"] if number != many else []


# -------------------------------------------------------------------------------------------------------------- all of it

def check_root(root, name_map=None, named=(), spacing_mm=SPACING_MM, preview=None, allow=(), show=say):
    """Check every dataset of a root and of `named` (datasets.find_datasets), showing each as it is done. Returns a dict, see --json.

    A dataset that cannot be used is "unusable" and does not stop the others. Raises DataError where there is none at all.
    """
    blocks, seen, notes = [], {}, []
    for folder, name in dataset_folders(root, named, notes):
        left_out = []
        try:
            dataset = read_folder(folder, name, name_map, left_out, {"missing", *allow})
        except (ValueError, OSError) as error:
            blocks.append({"dataset": name or folder.name, "folder": str(folder), "unusable": True, "classes": {},
                           "problems": [f"error: {error}"], "cases": [], "labels": []})
        else:
            blocks.append(check_dataset(dataset, spacing_mm, preview, seen))
            blocks[-1]["problems"] += [f"{'error' if note.endswith('--skip-bad') else 'warning'}: {note}" for note in left_out]
        show("\n".join(table(blocks[-1])))
    result = {"root": str(root), "spacing_mm": spacing_mm, "datasets": blocks, "problems": [f"warning: {note}" for note in notes]}
    if not any(p.startswith("error") for p in problems_of(result)):
        try:
            find_datasets(root, name_map, named, allow=allow)                   # what holds between datasets
        except DataError as error:
            result |= {"unusable": True, "problems": [*result["problems"], f"error: {error}"]}
    result["cache_bytes"] = sum(row.get("cache_bytes", 0) for block in blocks for row in block["cases"])
    free = shutil.disk_usage(Path.cwd()).free
    if result["cache_bytes"] > free:
        result["problems"].append(f"warning: {free / 1e9:.1f} GB are free in {Path.cwd()}. Give --cache a larger disk's folder")
    show("\n".join(totals(result)))
    return result


def exit_code(result):
    """0: nothing but warnings; 1: errors in some case; 2: a dataset that training cannot even list."""
    if result.get("unusable") or any(block.get("unusable") for block in result["datasets"]):
        return 2
    return int(any(p.startswith("error") for p in problems_of(result)))


# -------------------------------------------------------------------------------------------------------------- the command

def build_parser():
    parser = Parser(prog="python -m uniseg.data", epilog=NOT_A_MEDICAL_DEVICE, description=DESCRIPTION)
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT", help="folder with one sub-folder per dataset: --data-root of training")
    parser.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                        help="a dataset that the name of its folder does not tell (python -m uniseg layouts); repeat for more")
    parser.add_argument("--allow-outside", action="store_true", help="allow files that lie outside their dataset's folder")
    parser.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label}")
    parser.add_argument("--spacing", type=float, default=SPACING_MM, help="mm, of the estimates (default %(default)s)")
    parser.add_argument("--preview", type=Path, metavar="DIR", help="write a PNG per case: three slices, contours, class numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it as JSON")
    return parser


def main(argv=None):
    """Returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        if not 0.1 <= args.spacing <= 20:
            raise DataError(f"--spacing {args.spacing:g}: not between 0.1 and 20 mm. Give that of training.")
        if args.root is None and not args.dataset:
            raise DataError("no data: give ROOT, --dataset NAME=FOLDER, or both.")
        if args.preview:
            args.preview.mkdir(parents=True, exist_ok=True)
        result = check_root(args.root, read_map(args.map) if args.map else None, args.dataset, args.spacing,
                            args.preview, ("outside",) * args.allow_outside)
        if args.json:
            with atomic_write(args.json) as temporary:
                temporary.write_text(json.dumps(result, indent=1))
    except DataError as error:
        error_line(error)
        return 2
    except (ValueError, OSError) as error:                  # a picture or the JSON file cannot be written
        error_line(error)
        return 1
    return exit_code(result)
