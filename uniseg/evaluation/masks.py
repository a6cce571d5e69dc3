"""From a Reading to masks by the name of the class, on the grid of its file. One full-size mask is in memory at a time.

A label map has one value per voxel, so the voxels of a tumour are missing in its organ: they are added to the organ
again, as in training (Section 4.1.1). Read readings.py and datasets/masks.py first, scores.py next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from .. import taxonomy
from ..datasets.dataset import DataError, Label
from ..datasets.masks import Split, case_masks, has_value, label_masks, on_side, read_mask, split_by_plane
from ..imaging.bits import bit_dtype, bounding_box, get_bit, set_bit
from ..imaging.volume import Volume, read_ct, read_label_map
from .readings import Reading

MaskOf = Callable[[str], np.ndarray]      # class name -> (D, H, W) bool


def open_masks(reading: Reading, ct: Volume | None = None) -> tuple[Volume, MaskOf]:
    """(the Volume whose grid the masks have, function: class name -> (D, H, W) bool mask) of a Reading.

    ct: the case's CT, whose mid-sagittal plane tells right from left; a label that holds both sides needs it

    The masks of a dataset's case come in a fixed order, so they are kept in memory, one bit per class. Raises
    DataError or VolumeError for files that cannot be used.
    """
    if reading.source:
        volume, masks = open_in_order(reading)
        bits = np.zeros(volume.array.shape, bit_dtype(len(reading.classes)), order="F")
        for name, mask in masks:
            if box := bounding_box(mask):
                set_bit(bits, reading.classes.index(name), mask[box], box)
        return volume, lambda name: get_bit(bits, reading.classes.index(name))
    if reading.masks is None:
        labels = read_label_map(reading.path)
        _refuse_unknown_values(reading, labels.array)
        split = split_by_plane(ct.array, ct.affine, reading.path) if ct else None
        return labels, lambda name: _mask_in_map(reading, labels.array, name, split)
    return _open_folder(reading.masks)


def _open_folder(paths: Mapping[str, Path | None]) -> tuple[Volume, MaskOf]:
    """open_masks of a folder of masks. paths: {class: path of its mask, None where it is empty}"""
    first = read_label_map(next(path for path in paths.values() if path))

    def mask_of(name: str) -> np.ndarray:
        path = paths[name]
        if path is None:
            return np.zeros(first.array.shape, bool, order="F")
        return read_mask(path, first, "the case's other masks")

    return first, mask_of


def open_in_order(reading: Reading) -> tuple[Volume, Iterable[tuple[str, np.ndarray]]]:
    """(Volume, iterable of (class name, (D, H, W) bool mask)) of a Reading.

    The Volume of a dataset's case is its CT.
    """
    if reading.source:
        dataset, case = reading.source
        ct = read_ct(case.image)
        return ct, case_masks(dataset, case, ct)
    volume, mask_of = open_masks(reading)
    return volume, ((name, mask_of(name)) for name in reading.classes)


def _refuse_unknown_values(reading: Reading, array: np.ndarray) -> None:
    """Raise DataError for values of a label map that have no meaning, or nobody's; one plane is sorted at a time."""
    present = {int(value) for z in range(array.shape[2]) for value in np.unique(array[:, :, z])}
    if present & set(reading.ignored):
        raise DataError(f'{reading.path}: has voxels with the label "ignore", and single voxels cannot be left out of '
                        "the scores. Leave this case out.")
    unknown = sorted(present - set(reading.values))
    if unknown:
        reason = ("its JSON, header or dataset.json does not name" if reading.classes_known
                  else "Table 2 does not have; 1 to 32 are its numbers")
        raise DataError(f"{reading.path}: label values {', '.join(map(str, unknown[:5]))}, which {reason}. "
                        "Put a dataset.json with the labels beside it.")


# -------------------------------------------------------------------------------------------- one class of a label map

def _mask_in_map(reading: Reading, labels: np.ndarray, name: str, split: Split | None) -> np.ndarray:
    """The mask of a class in a label map, with the tumours and vessels inside the organ (Section 4.1.1).

    split: see datasets.masks.label_masks; None without a CT
    """
    def split_by_organs(mask: np.ndarray, label: Label) -> tuple[np.ndarray, np.ndarray]:
        """Right and left without a CT: by the two organs as they are drawn."""
        if len(label.classes) == 2:
            raise DataError(f"{reading.path}: label {label.name!r} covers both sides; splitting it needs the CT. "
                            "Pass a dataset with CTs as --ref.")
        left, right = sorted((name, taxonomy.BY_NAME[name].partner))        # "left_..." sorts before "right_..."
        organs = [_organ_alone(reading, labels, organ) for organ in (right, left)]
        return on_side(mask, *organs), on_side(mask, *organs[::-1])

    label = next(label for label in reading.labels if name in label.classes)
    return dict(label_masks(labels, label, reading.labels, split or split_by_organs))[name]


def _organ_alone(reading: Reading, labels: np.ndarray, name: str) -> np.ndarray:
    """The mask of a class as drawn, without tumours and vessels inside; empty where no label has the class."""
    label = next((label for label in reading.labels if label.classes == (name,)), None)
    return has_value(labels, label.values) if label else np.zeros_like(labels, bool)
