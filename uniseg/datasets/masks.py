"""From the labels of a case to one mask per class: transfer, inclusion, left and right (Section 4.1.1).

    transfer   label values become classes, as the Dataset says
    inclusion  a tumour or vessel inside an organ is part of that organ too
    sides      a label that holds both sides of a paired organ is split by the CT's mid-sagittal plane

Read find.py first, cases.py next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from .. import taxonomy
from ..formats.label_table import read_label_table
from ..imaging import anatomy
from ..imaging.bits import bounding_box
from ..imaging.grid import voxel_size_mm
from ..imaging.volume import Volume, read_label_map
from . import layouts
from .dataset import CaseFiles, DataError, Dataset, Label

ROUNDING_MM = 1e-3                # affines in single precision differ by less
SAME_GRID = 0.1                   # of a voxel: the largest distance between the grids of image and label

# (mask of both sides, its Label) -> (mask of the right side, mask of the left side)
Split = Callable[[np.ndarray, Label], "tuple[np.ndarray, np.ndarray]"]


def case_masks(dataset: Dataset, case: CaseFiles, ct: Volume, label: Volume | None = None,
               ignored: list[np.ndarray] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (class name, (D, H, W) bool mask) for each class annotated in one case of a Dataset, on the grid of its CT.

    ct:      the case's image
    label:   its label map, where the caller has read it already
    ignored: gets the mask of the voxels of which nobody says what they hold; without it a case that has some is refused

    Where the label is a folder of masks, only one of its files is in memory at a time. Raises DataError or VolumeError
    for files that cannot be used. Warnings about a label that is read here are added to those of `ct`.
    """
    if case.label.is_dir():
        yield from _folder_masks(case, ct)
        return
    if label is None:
        label = read_label_map(case.label)
        _pass_on(label.warnings, ct)
    check_same_grid(ct, label, case.image, case.label)
    refuse_other_names(dataset, case.label)
    annotated = dataset.annotated_in(case)
    for name, mask in class_masks(dataset, label.array, ct.array, ct.affine, case.label, ignored):
        if name in annotated:
            yield name, mask


# ----------------------------------------------------------------------------------------------------------- label maps

def refuse_other_names(dataset: Dataset, path: Path) -> None:
    """Raise DataError where a label map of uniseg says in its header that a value is another class than in the dataset.

    Such maps are pseudo labels that were written with another set of label numbers (infer --numbers).
    """
    table = read_label_table(path)
    if table is None or not table.is_ours:
        return
    for label in dataset.labels:
        for value in label.values:
            stated = table.pairs.get(value, (table.names[value],)) if value in table.names else label.classes
            if not set(stated) & set(label.classes):
                raise DataError(f"{path}: its header says that {value} is {table.names[value]}, and in {dataset.name} "
                                f"it is {label.name}. Correct the numbers, or write the map without header extension.")


def class_masks(dataset: Dataset, labels: np.ndarray, hu: np.ndarray, affine: np.ndarray, path: str | Path = "label",
                ignored: list[np.ndarray] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (class name, bool mask) for each class that the dataset annotates, on the grid of the label map.

    labels: (D, H, W) integers
    hu: (D, H, W) of the same grid; the mid-sagittal plane that splits merged pairs is found in it
    path: of the label map, for the message
    ignored: as in case_masks

    Tumours and vessels are added to the organ that holds them, and merged pairs are split into right and left (Section
    4.1.1). Raises DataError for values that the dataset does not have, and for ignored ones without a list for them.
    """
    values, counts = np.unique(labels.ravel(order="K"), return_counts=True)
    unknown = [f"{v} ({n} voxels)" for v, n in zip(values, counts) if v not in dataset.values]
    if unknown:
        if dataset.published:
            remedy = (f"are not those of {dataset.name}, 0 to {max(dataset.values)}. "
                      "Another edition? docs/datasets.md lists them.")
        else:
            remedy = f"are not in {dataset.folder / 'dataset.json'}. Add them there (or to --map as null)."
        raise DataError(f"{path}: label values {', '.join(unknown[:5])} {remedy}")
    unjudged = sum(int(n) for v, n in zip(values, counts) if v in dataset.ignored)
    if unjudged and ignored is None:
        raise DataError(f'{path}: {unjudged:,} voxels have the label "ignore", and single voxels cannot be left out '
                        "here, as they can in training. Annotate them, or leave this case out.")
    if unjudged and ignored is not None:
        ignored.append(has_value(labels, dataset.ignored))

    def drawn(name: str) -> np.ndarray:
        """The mask of an organ as drawn, without lesions; empty where no label is it alone."""
        own = next((label for label in dataset.labels if label.classes == (name,)), None)
        return has_value(labels, own.values) if own else np.zeros(labels.shape, bool)

    split = split_by_plane(hu, affine, path, drawn)
    for label in dataset.labels:
        yield from label_masks(labels, label, dataset.labels, split)


def split_by_plane(hu: np.ndarray, affine: np.ndarray, path: str | Path = "label",
                   drawn: Callable[[str], np.ndarray] | None = None) -> Split:
    """The `split` of label_masks that uses the CT's mid-sagittal plane. The plane is found when it is first needed.

    path:  of the label map, for the message
    drawn: gives the mask of an organ that has a label of its own. Where the CT does not show the patient's middle, the
           lesions of such an organ are divided by where it and its partner lie

    The split raises DataError where neither tells right from left.
    """
    plane = functools.lru_cache(lambda: anatomy.midsagittal_plane(hu, affine))

    def split(mask: np.ndarray, label: Label) -> tuple[np.ndarray, np.ndarray]:
        if mask.any() and not plane().sure:
            if drawn is not None and len(label.classes) == 1:
                (name,) = label.classes
                left, right = map(drawn, sorted((name, taxonomy.BY_NAME[name].partner or name)))   # "left_..." is first
                if right.any() or left.any():
                    return on_side(mask, right, left), on_side(mask, left, right)
            raise DataError(f"{path}: label {label.name!r} has to be split into right and left, and the CT does not "
                            "show surely where the patient's middle is (a field of view of one side?). Give each side "
                            "its own label, or leave this case out (training: --exclude or --skip-bad).")
        return anatomy.split_left_right(mask, affine, plane()) if mask.any() else (mask, mask.copy(order="K"))
    return split


def on_side(lesion: np.ndarray, organ: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """The voxels of `lesion` on the organ's side of the patient, where no CT tells.

    The border is half-way between the centres of the bounding boxes of the organ and its partner. If only one of the
    two was drawn, the whole lesion belongs to that one.
    """
    own_box, partner_box = bounding_box(organ), bounding_box(partner)
    if own_box is None or partner_box is None:
        return lesion if own_box is not None else np.zeros_like(lesion)
    own_x, partner_x = ((box[0].start + box[0].stop - 1) / 2 for box in (own_box, partner_box))
    x, border = np.arange(lesion.shape[0])[:, None, None], (own_x + partner_x) / 2
    return lesion & (x > border if own_x > partner_x else x <= border)


def label_masks(labels: np.ndarray, label: Label, others: Iterable[Label],
                split: Split) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (class name, bool mask) of one Label of a label map: two masks of a merged pair, else one.

    labels: (D, H, W) integers
    others: all Labels of the map; those that lie inside this one are added to its mask (Section 4.1.1)
    split:  function (mask of both sides, Label) -> (right, left)
    """
    mask = has_value(labels, label.values)
    inner = [other for other in others if _lies_in(other, label)]
    if len(label.classes) == 2:                                  # a merged pair
        for other in inner:
            mask |= has_value(labels, other.values)
        yield from zip(label.classes, split(mask, label))
        return
    (name,) = label.classes
    for other in inner:
        lesion = has_value(labels, other.values)
        if taxonomy.BY_NAME[name].partner:                       # a kidney's tumour belongs to the kidney of its side
            right, left = split(lesion, label)
            lesion = right if name.startswith("right") else left
        mask |= lesion
    yield name, mask


def has_value(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Bool mask of where `labels` is one of `values`.

    (np.isin first copies an array in Fortran order, which is slow.)
    """
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask


def _lies_in(inner: Label, outer: Label) -> bool:
    """True where label `inner` (a tumour or vessel) is part of the organ of label `outer`."""
    return any(set(taxonomy.BY_NAME[c].parents) & set(outer.classes) for c in inner.classes if c in taxonomy.BY_NAME)


# ----------------------------------------------------------------------------------------------------- folders of masks

def _folder_masks(case: CaseFiles, ct: Volume) -> Iterator[tuple[str, np.ndarray]]:
    for name, paths in layouts.mask_files(case.label, case.annotated or ()).items():
        whole = np.zeros(ct.array.shape, bool, order="F")
        for path in paths:
            whole |= read_mask(path, ct, case.image)
        if whole.any() or name not in layouts.ABSENT_IS_UNKNOWN:
            yield name, whole


def read_mask(path: Path, like: Volume, like_path: str | Path) -> np.ndarray:
    """The (D, H, W) bool mask in a file of 0 and 1, on the grid of the Volume `like`. Raises DataError."""
    part = read_label_map(path)
    _pass_on(part.warnings, like)
    check_same_grid(like, part, like_path, path)
    if part.array.min() < 0 or part.array.max() > 1:
        raise DataError(f"{path}: values from {part.array.min()} to {part.array.max()}, no mask of 0 and 1. "
                        "Save it again.")
    return part.array != 0


def _pass_on(warnings: Iterable[str], ct: Volume) -> None:
    """Add warnings about a label to those of its CT, each text once."""
    texts = dict.fromkeys(f"label: {text}" for text in warnings)
    ct.warnings.extend(text for text in texts if text not in ct.warnings)


def check_same_grid(image: Volume, label: Volume, image_path: str | Path, label_path: str | Path) -> None:
    """Raise DataError unless image and label have the same shape and, to a tenth of a voxel, the same affine.

    The affines are compared at the corners. A difference of more than ROUNDING_MM is added to the image's warnings.
    """
    if image.array.shape != label.array.shape:
        raise DataError(f"{label_path}: shape {label.array.shape} differs from the image's {image.array.shape} "
                        f"({image_path}). Resample the label onto the image's grid.")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.array.shape])).reshape(3, -1)
    shift = (image.affine - label.affine)[:3]
    worst = np.abs(shift[:, :3] @ corners + shift[:, 3:]).max()
    if worst > SAME_GRID * voxel_size_mm(image.affine).min():
        raise DataError(f"{label_path}: its affine places voxels up to {worst:.3g} mm away from the image's "
                        f"({image_path}). Copy the image's affine if the label was drawn on it.")
    if worst > ROUNDING_MM:
        note = f"affine up to {worst:.2g} mm off the image's; below a tenth of a voxel, it is taken as the same grid"
        _pass_on([note], image)
