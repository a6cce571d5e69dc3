"""A look at the data before training: `python -m uniseg.data ROOT [--preview DIR]`. Sections 3.1, 4.1.1 and 4.1.2.

Every case of every dataset is read as training would read it, one at a time, and its contents are listed: grid, HU,
label values, classes. Whatever training would refuse is an error. What training would accept although it is probably
a mistake (right and left exchanged, grey values that are not HU, a class without a voxel, one image twice) is a
warning. An error in one case does not stop the check of the others. Read find.py and masks.py first; check_table.py
prints the result.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .. import taxonomy
from ..imaging import anatomy
from ..imaging.bits import bit_dtype, bounding_box
from ..imaging.body import body_mask
from ..imaging.file_names import bare, is_nifti
from ..imaging.grid import voxel_size_mm, voxel_volume_mm3
from ..imaging.nifti import format_mm
from ..imaging.resampling import resampled_shape
from ..imaging.volume import Volume, read_ct, read_label_map
from ..machine.console import error_line, say
from ..machine.files import atomic_write
from ..machine.progress import each
from ..pictures.canvas import write_png
from ..pictures.preview import preview
from .cases import CLASS_VOXELS_KEPT, FOREGROUND_KEPT, MARGIN, array_hash
from .check_options import SPACING_MM, build_parser
from .check_table import problems_of, table, totals
from .dataset import CaseFiles, DataError, Dataset, short
from .dataset_json import NameMap, read_json, read_map
from .find import dataset_folders, find_datasets, read_folder
from .masks import case_masks
from .placement import Placement
from .preparing import preparing_bytes

PLAUSIBLE_MM = (0.2, 8.0)         # voxel sizes of clinical CTs
LEAST_ML = 1.0                    # smallest structure whose side is judged; less may be a remnant at the edge of the CT
# The side of the body on which a class lies.
SIDES = {c.name: c.name.split("_")[0] for c in taxonomy.CLASSES if c.partner} | {"liver": "right", "spleen": "left"}
PREVIEW_PIXELS = 450               # of the longer side of each slice, so that a thousand cases take half a GB


# ----------------------------------------------------------------------------------------------------------- one case

def check_case(dataset: Dataset, case: CaseFiles, spacing_mm: float, picture: Path | None = None) -> dict[str, Any]:
    """What one case of a Dataset holds and what is wrong with it, as a dict for the table and for --json.

    picture: path of the PNG to write, or None

    It never raises DataError: an error is one of the row's "problems".
    """
    row: dict[str, Any] = {"case": case.id, "problems": [], "values": {}, "voxels": {}}
    ct = _read(read_ct, case.image, "image", row["problems"])
    in_files = case.label.is_dir()                                          # one mask file per structure
    label = None if in_files else _read(read_label_map, case.label, "label", row["problems"])
    if ct is not None:
        _describe_image(ct, row)
    if label is not None:
        values, counts = np.unique(label.array.T, return_counts=True)       # .T: in the order of memory
        row["values"] = {int(v): int(n) for v, n in zip(values, counts)}
    if ct is None or (label is None and not in_files):
        return row
    told, ignored = len(ct.warnings), list[np.ndarray]()
    try:
        shown = _check_classes(dataset, case, ct, case_masks(dataset, case, ct, label, ignored), row)
        row["cache_bytes"], row["memory_bytes"] = estimate(ct, shown, len(dataset.annotated), spacing_mm)
        row["problems"] += [f'warning: {mask.sum():,} voxels have the label "ignore": training leaves them out of the '
                            "loss, and the evaluation refuses this case" for mask in ignored]
        if in_files:
            row["labelled"] = int(np.count_nonzero(shown))
    except (ValueError, OSError) as error:
        row["problems"].append(f"error: {error}")
        return row
    finally:                                                                # what was found while the labels were read
        row["problems"] += [f"warning: {text}" for text in ct.warnings[told:]]
    if picture is not None:
        _write_preview(picture, f"{dataset.name} {case.id}", ct, shown, dataset.annotated, row)
    return row


def _write_preview(path: Path, title: str, ct: Volume, shown: np.ndarray, annotated: Sequence[str],
                   row: Mapping[str, Any]) -> None:
    """The picture of a case: three slices, the classes with their volumes, and what was found wrong."""
    voxel_ml = voxel_volume_mm3(ct.affine) / 1000
    figures = {name: {"label": label, "voxels": row["voxels"][name], "ml": row["voxels"][name] * voxel_ml}
               for name, label in taxonomy.label_values(annotated).items()}
    problems = [problem.removeprefix("warning: ") for problem in row["problems"]]
    write_png(path, preview(ct.array, shown, ct.affine, figures, title, problems, least=PREVIEW_PIXELS))


def _read(reader: Callable[[Path], Volume], path: Path, what: str, problems: list[str]) -> Volume | None:
    """The Volume of a file, or None where it cannot be read. Its warnings, or the error, are added to `problems`."""
    try:
        volume = reader(path)
    except (ValueError, OSError, MemoryError) as error:
        problems.append(f"error: {error or f'{path}: does not fit into memory'}")
        return None
    problems += [f"warning: {what}: {note}" for note in volume.warnings]
    return volume


def _describe_image(ct: Volume, row: dict[str, Any]) -> None:
    """Add to the row: shape and spacing in RAS+, orientation as stored, HU, and a hash of shape and HU.

    The hash does not change when the file is compressed again.
    """
    spacing = voxel_size_mm(ct.affine)
    hu = ct.array.min(), *np.percentile(ct.array[::3, ::5, ::7], (0.5, 99.5)), ct.array.max()
    row |= {"shape": list(ct.array.shape), "spacing_mm": [round(float(s), 4) for s in spacing],
            "orientation": "".join(nib.aff2axcodes(ct.geometry.affine)),
            "hu": [float(v) for v in hu]}
    if not PLAUSIBLE_MM[0] <= spacing.min() <= spacing.max() <= PLAUSIBLE_MM[1]:
        row["problems"].append(f"warning: voxels of {format_mm(spacing)} mm are unusual for a CT")
    row["hash"] = array_hash(ct.array)


def _check_classes(dataset: Dataset, case: CaseFiles, ct: Volume, masks: Iterable[tuple[str, np.ndarray]],
                   row: dict[str, Any]) -> np.ndarray:
    """Count the voxels of each class, judge its side and its place. masks: (class name, mask) one by one.

    Returns a label map (D, H, W) uint8 for the picture; where classes overlap, it shows the one with the larger number.
    """
    shown, plane, wrong = np.zeros(ct.array.shape, np.uint8, order="F"), None, {}
    numbers = taxonomy.label_values(dataset.annotated)
    voxel_ml, placement = voxel_volume_mm3(ct.affine) / 1000, Placement(ct)
    for name, mask in masks:
        placement.add(name, mask)
        row["voxels"][name] = int(np.count_nonzero(mask))
        np.maximum(shown, np.uint8(numbers[name]), out=shown, where=mask)
        if name in SIDES and row["voxels"][name] * voxel_ml >= LEAST_ML:
            plane = plane or anatomy.midsagittal_plane(ct.array, ct.affine)
            box = bounding_box(mask)
            on_the_right = mask[box] & anatomy.right_side(mask.shape, ct.affine, plane, box)
            right = np.count_nonzero(on_the_right) / row["voxels"][name]
            away = right if SIDES[name] == "left" else 1 - right
            if away > 0.5 and plane.sure:
                wrong[name] = away
    if problem := placement.problem():
        row["problems"].append(f"error: {case.label}: {problem}")
    if wrong:
        row["problems"].append(_wrong_side(wrong))
    return shown


def _wrong_side(wrong: Mapping[str, float]) -> str:
    """The warning about {class: share of its voxels beyond the mid-sagittal plane}."""
    listed = ", ".join(f"{name} ({share:.0%})" for name, share in wrong.items())
    cause = ("Is the image or the label map flipped, or is it situs inversus?" if {"liver", "spleen"} & set(wrong)
             else "Are the names of right and left exchanged, or is the label map flipped?")
    return f"warning: on the wrong side of the patient: {listed}. {cause}"


def estimate(ct: Volume, shown: np.ndarray, classes: int, spacing_mm: float) -> tuple[int, int]:
    """Bytes of the cached case, and bytes of memory that `cases.prepare` needs for it. Both are estimates.

    shown: (D, H, W) label map of the case; classes: number of classes that the dataset annotates
    """
    spacing = voxel_size_mm(ct.affine)
    shape = resampled_shape(ct.array.shape, spacing, spacing_mm)
    body = body_mask(ct.array, spacing)
    body |= shown > 0
    box = bounding_box(body) or tuple(slice(0, n) for n in body.shape)
    crop = [min(n, math.ceil((b.stop - b.start) * s / spacing_mm) + 2 * MARGIN) for n, b, s in zip(shape, box, spacing)]
    labelled = np.count_nonzero(shown) * float(np.prod(spacing)) / spacing_mm ** 3
    indices = 8 * (min(labelled, FOREGROUND_KEPT) + min(labelled, classes * CLASS_VOXELS_KEPT))
    cached = int(math.prod(crop) * (2 + bit_dtype(classes + 1).itemsize) + indices)
    return cached, preparing_bytes(ct.array.shape, spacing, spacing_mm)


# ---------------------------------------------------------------------------------------------------------- one dataset

def check_dataset(dataset: Dataset, spacing_mm: float, preview: Path | None, seen: dict[str, str]) -> dict[str, Any]:
    """All cases of a Dataset, as a dict for the table and for --json.

    preview: folder for the pictures, or None
    seen: {image hash: case} of all datasets so far; the images of this one are added
    """
    block: dict[str, Any] = {"dataset": dataset.name, "folder": str(dataset.folder),
                             "classes": taxonomy.label_values(dataset.annotated), "problems": [], "cases": []}
    for case in each(dataset.cases, f"{dataset.name}: cases", len(dataset.cases), leave=False):
        picture = preview / (re.sub(r"[^\w.-]+", "_", f"{dataset.name}_{case.id}") + ".png") if preview else None
        row = check_case(dataset, case, spacing_mm, picture)
        name = f"{dataset.name}/{case.id}"
        first = seen.setdefault(row.get("hash", name), name)
        if first != name:
            row["problems"].append(f"warning: the same image as {first}. "
                                   "One of them may validate what the other trained")
        block["cases"].append(row)
    block["labels"] = _label_table(dataset, block["cases"])
    seen_classes = {name for row in block["cases"] for name, n in row["voxels"].items() if n}
    never = [name for name in dataset.annotated if name not in seen_classes]
    if never and any(row["voxels"] for row in block["cases"]):
        block["problems"].append(f"warning: annotated, but without a voxel in any case: {', '.join(never)}")
    if len(dataset.cases) == 1:
        block["problems"].append("warning: one case: it trains or validates, never both")
    block["problems"] += _unlisted(dataset) + _wrong_number(dataset)
    return block


def _label_table(dataset: Dataset, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per label of the dataset: values, name, classes, voxels in all cases, number of cases that have it."""
    used = {value for entry in dataset.labels for value in entry.values}
    labels = [(list(entry.values), entry.name, list(entry.classes)) for entry in dataset.labels]
    labels += [([value], "ignore" if value in dataset.ignored else "dropped", [])
               for value in dataset.values if value and value not in used]
    counts = [[sum(row["values"].get(value, 0) for value in values) for row in rows] for values, _, _ in labels]
    return [{"values": values, "name": name, "classes": classes, "voxels": sum(n), "cases": sum(map(bool, n))}
            for (values, name, classes), n in zip(labels, counts)]


def _unlisted(dataset: Dataset) -> list[str]:
    """Problems about files in imagesTr and labelsTr that belong to no case.

    An image without its label, or a label without its image, is an error; a complete case that is not listed is a
    warning.
    """
    if dataset.published:                                                     # published.py has paired its files
        return []
    listed = {Path(path).resolve() for case in dataset.cases for path in (case.image, case.label)}
    labels = _nifti_files(dataset.folder / "labelsTr")
    images = _nifti_files(dataset.folder / "imagesTr", labels)

    def problem(text: str, groups: Iterable[list[Path]]) -> list[str]:
        names = [f.name for files in groups if not listed & {f.resolve() for f in files} for f in files]
        return [f"{text}: {', '.join(names)}"] if names else []

    return (problem("error: images without a label in imagesTr", (f for k, f in images.items() if k not in labels))
            + problem("error: labels without an image in labelsTr", (f for k, f in labels.items() if k not in images))
            + problem("warning: cases that the dataset.json does not list",
                      (f for k, f in images.items() if k in labels)))


def _nifti_files(folder: Path, labels: Collection[str] = ()) -> dict[str, list[Path]]:
    """{case id: paths} of the NIfTI files in imagesTr or labelsTr, hidden files left out.

    labels: ids of the labels; an image of another name may end in the number of its channel
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if is_nifti(path.name) and not path.name.startswith("."):
            name = bare(path.name)
            files.setdefault(name if name in labels else re.sub(r"_0\d{3}$", "", name), []).append(path)
    return files


def _wrong_number(dataset: Dataset) -> list[str]:
    """A warning where numTraining of the dataset.json is not the number of cases."""
    path, cases = dataset.folder / "dataset.json", len(dataset.cases)
    if dataset.published or not path.is_file():                               # its MR cases, for example, are left out
        return []
    number = read_json(path).get("numTraining", cases)
    return [f"warning: numTraining is {short(number)}, there are {cases} cases"] if number != cases else []


# --------------------------------------------------------------------------------------------------------- all datasets

def check_root(root: Path | None, name_map: NameMap | None = None, named: Iterable[tuple[str, Path]] = (),
               spacing_mm: float = SPACING_MM, preview: Path | None = None, allow: Collection[str] = (),
               show: Callable[[str], object] = say) -> dict[str, Any]:
    """Check every dataset that find.find_datasets finds, and show each one when it is done. Returns the dict of --json.

    root, name_map, named, allow: see find.find_datasets
    spacing_mm: of the model's grid, for the estimates
    preview: folder for one picture per case, or None
    show: takes the text to print

    A dataset that cannot be used is marked "unusable" and does not stop the others. Raises DataError where there is no
    dataset at all.
    """
    named = tuple(named)
    blocks: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    notes: list[str] = []
    for folder, name in dataset_folders(root, named, notes):
        left_out: list[str] = []
        try:
            dataset = read_folder(folder, name, name_map, left_out, {"missing", *allow})
        except (ValueError, OSError) as error:
            blocks.append({"dataset": name or folder.name, "folder": str(folder), "unusable": True, "classes": {},
                           "problems": [f"error: {error}"], "cases": [], "labels": []})
        else:
            blocks.append(check_dataset(dataset, spacing_mm, preview, seen))
            levels = ["error" if note.endswith("--skip-bad") else "warning" for note in left_out]
            blocks[-1]["problems"] += [f"{level}: {note}" for level, note in zip(levels, left_out)]
        show("\n".join(table(blocks[-1])))
    result: dict[str, Any] = {"root": str(root), "spacing_mm": spacing_mm, "datasets": blocks,
                              "problems": [f"warning: {note}" for note in notes]}
    if not any(p.startswith("error") for p in problems_of(result)):
        try:
            find_datasets(root, name_map, named, allow=allow)                   # refuses what datasets must not share
        except DataError as error:
            result |= {"unusable": True, "problems": [*result["problems"], f"error: {error}"]}
    result["cache_bytes"] = sum(row.get("cache_bytes", 0) for block in blocks for row in block["cases"])
    free = shutil.disk_usage(Path.cwd()).free
    if result["cache_bytes"] > free:
        result["problems"].append(f"warning: {free / 1e9:.1f} GB are free in {Path.cwd()}. "
                                  "Give --cache a larger disk's folder")
    show("\n".join(totals(result)))
    return result


def exit_code(result: Mapping[str, Any]) -> int:
    """0: nothing but warnings; 1: errors in some case; 2: a dataset whose cases training cannot even list."""
    if result.get("unusable") or any(block.get("unusable") for block in result["datasets"]):
        return 2
    return int(any(p.startswith("error") for p in problems_of(result)))


# -------------------------------------------------------------------------------------------------------- the command

def main(argv: list[str] | None = None) -> int:
    """The command `python -m uniseg.data`.

    Returns the exit code of `exit_code`, or 1 where an output cannot be written.
    """
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
