"""From the labels of a case to one mask a class: transfer, inclusion, left and right (Section 4.1.1)."""

import functools

import numpy as np

from .. import taxonomy
from ..imaging import anatomy
from ..imaging.volume import read_label_map
from . import layouts
from .find import DataError


def class_masks(dataset, labels, hu, affine, where="label"):
    """Yield (class name, bool mask) for each class the dataset annotates, on the grid of the label map.

    labels: (D, H, W) integers, hu: (D, H, W) of the same grid, needed for the mid-sagittal plane of merged pairs.
    Tumours and vessels are put back into the organ that holds them (Section 4.1.1); merged pairs are split into right
    and left by the plane. Raises DataError for values that the dataset does not have.
    """
    values, counts = np.unique(labels.ravel(order="K"), return_counts=True)
    strange = [f"{v} ({n} voxels)" for v, n in zip(values, counts) if v not in dataset.values]
    if strange:
        remedy = f"are not those of {dataset.name}, 0 to {max(dataset.values)}. Another edition? docs/datasets.md lists them." \
            if dataset.published else f"are not in {dataset.folder / 'dataset.json'}. Add them there (or to --map as null)."
        raise DataError(f"{where}: label values {', '.join(strange[:5])} {remedy}")
    split = by_the_plane(hu, affine)
    for label in dataset.labels:
        yield from label_masks(labels, label, dataset.labels, split)


def by_the_plane(hu, affine):
    """`split` of label_masks by the CT's mid-sagittal plane, which is found when it is first asked for."""
    plane = functools.lru_cache(lambda: anatomy.midsagittal_plane(hu, affine))
    return lambda mask, label: anatomy.split_left_right(mask, affine, plane())


def label_masks(labels, label, others, split):
    """Yield (class name, bool mask) of one Label of a label map: two of a merged pair, else one.

    labels: (D, H, W) integers; others: all its Labels, of which those inside this one are put back (Section 4.1.1)
    split:  function (mask, label) -> (right, left) halves of a mask of both sides
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


def has_value(labels, values):
    """Where `labels` is one of `values`. (np.isin copies a Fortran-ordered map first, slowly.)"""
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask


def _lies_in(inner, outer):
    """True where label `inner` (a tumour or vessel) is part of the organ of label `outer`."""
    return any(set(taxonomy.BY_NAME[c].parents) & set(outer.classes) for c in inner.classes if c in taxonomy.BY_NAME)


def case_masks(dataset, case, ct):
    """Yield (class name, bool mask) for each class that is annotated in one case of a Dataset, on the grid of its CT.

    case: CaseFiles, ct: its image as a Volume. Of a folder of masks one file at a time is in memory.
    """
    if case.label.is_dir():
        yield from _folder_masks(case, ct)
        return
    label = read_label_map(case.label)
    check_same_grid(ct, label, case.image, case.label)
    annotated = dataset.annotated_in(case)
    for name, mask in class_masks(dataset, label.array, ct.array, ct.affine, case.label):
        if name in annotated:
            yield name, mask


def _folder_masks(case, ct):
    for name, paths in layouts.mask_files(case.label, case.annotated or ()).items():
        whole = np.zeros(ct.array.shape, bool, order="F")
        for path in paths:
            whole |= read_mask(path, ct, case.image)
        if whole.any() or name not in layouts.ABSENT_IS_UNKNOWN:
            yield name, whole


def read_mask(path, like, like_path):
    """The bool mask (D, H, W) of a file of 0 and 1 on the grid of the Volume `like`. Raises DataError."""
    part = read_label_map(path)
    check_same_grid(like, part, like_path, path)
    if part.array.min() < 0 or part.array.max() > 1:
        raise DataError(f"{path}: values from {part.array.min()} to {part.array.max()}, no mask of 0 and 1. Save it again.")
    return part.array != 0


def check_same_grid(image, label, image_path, label_path):
    """Raise DataError unless image and label share shape and affine (to 1e-3 mm at every corner)."""
    if image.array.shape != label.array.shape:
        raise DataError(f"{label_path}: shape {label.array.shape} differs from the image's {image.array.shape} "
                        f"({image_path}). Resample the label onto the image's grid.")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.array.shape])).reshape(3, -1)
    shift = (image.affine - label.affine)[:3]
    worst = np.abs(shift[:, :3] @ corners + shift[:, 3:]).max()
    if worst > 1e-3:
        raise DataError(f"{label_path}: its affine places voxels up to {worst:.3g} mm away from the image's "
                        f"({image_path}). Copy the image's affine if the label was drawn on it.")
