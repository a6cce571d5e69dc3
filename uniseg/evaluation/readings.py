"""What somebody, a model or a person, says about each case, in whatever form it is stored, as masks by the name of the class.

    a result of uniseg.infer     CASE_seg.nii.gz and CASE_seg.json, which names the classes; CASE_seg/ of --masks is preferred
    a folder of masks            CASE/liver.nii.gz, one file a class
    a label map                  CASE.nii.gz with the numbers of Table 2, or with those of a dataset.json beside it (nnU-Net)
    a case of a dataset          its label as published, through data.case_masks: only what is annotated there

A label map has one value a voxel, so that a tumour's voxels are missing in its organ: they are put back, as in training
(Section 4.1.1). One full-size mask is in memory at a time. Read datasets.py and data.py first; evaluate.py compares readings.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import taxonomy
from ..datasets import layouts
from ..datasets.dataset import DataError, Label, in_order
from ..datasets.dataset_json import read_labels
from ..datasets.find import find_datasets
from ..datasets.masks import by_the_plane, case_masks, has_value, label_masks, read_mask
from ..imaging import file_names
from ..imaging.bits import bit_dtype, bounding_box, get_bit, set_bit
from ..imaging.file_names import SUFFIXES
from ..imaging.volume import read_ct, read_label_map

RESULT = "_seg"                   # of the names that uniseg.infer gives
TABLE_2 = tuple(Label(name, (number,), (name,)) for name, number in taxonomy.label_values(taxonomy.NAMES).items())


class Reading(NamedTuple):
    """Where one case's masks are. One of `labels`, `masks` and `source` says what is in the files."""

    dataset: str                  # "" outside a dataset
    case: str
    path: Path                    # a label map, or the folder of the masks
    labels: tuple = ()            # of datasets.Label: the values of a label map and their classes
    values: tuple = ()            # every value that a label map may have, dropped ones included
    masks: dict = None            # {class: path of its mask, None where the file is not there: an empty mask}
    source: tuple = ()            # (Dataset, CaseFiles)
    known: bool = True            # whether somebody says which classes it tells; else all of Table 2 are possible

    @property
    def name(self):
        """DATASET/CASE, or CASE."""
        return f"{self.dataset}/{self.case}" if self.dataset else self.case

    @property
    def classes(self):
        """Names of the classes it tells, in the order of Table 2."""
        if self.source:
            return self.source[0].annotated_in(self.source[1])
        return in_order(self.masks if self.masks is not None else {c for label in self.labels for c in label.classes})


# ---------------------------------------------------------------------------------------------------------- finding them

def stem(name):
    """The case of a file's or folder's name.

    >>> stem("a0_seg.nii.gz"), stem("a0_0000.nii.gz"), stem("a0_0000_seg")
    ('a0', 'a0', 'a0')
    """
    return file_names.bare(name).removesuffix(RESULT).removesuffix("_0000")


def safe(name):
    """A dataset's name as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name)


def references(folder, name_map=None, named=(), notes=None):
    """The readings of a folder of datasets, or of one dataset, or of a plain folder (`in_folder`): a list. Raises DataError.

    Labels of datasets that are no known class, nor in the name_map, are left out with a note.
    """
    if not named and _is_plain(folder):
        return list(in_folder(folder, name_map=name_map).values())
    found = {}
    for dataset in find_datasets(folder, name_map, named, notes, allow=("unknown",)):
        for case in dataset.cases:
            reading = Reading(dataset.name, stem(case.id), case.label, source=(dataset, case))
            if reading.name in found:
                raise DataError(f"{case.label}: the same case, {reading.name}, as {found[reading.name].path}. Rename one.")
            found[reading.name] = reading
    return list(found.values())


def names_beyond_table_2(folder):
    """The classes that results of uniseg.infer in a folder, or in its sub-folders, name and Table 2 does not list."""
    files = [path for pattern in ("*.nii*", "*/*.nii*") for path in sorted(folder.glob(pattern))]
    return {label.name for path in files for label in _labels_of_json(path)} - set(taxonomy.NAMES)


def _is_plain(folder):
    """Whether a folder holds the labels themselves, not datasets. A dataset.json alone may say what a model's numbers mean."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give one with labels.")
    path = folder / "dataset.json"
    if path.is_file():
        return "training" not in read_labels(path, allow=("unknown",))[0] and not (folder / "labelsTr").is_dir()
    files = list(layouts.files_below(folder))
    if any(layouts.pair(row, files)[1] for row in layouts.known_as(folder.absolute().name)):
        return False
    return any("/" not in name for name in files) or any(_single_masks(f) for f in folder.iterdir() if f.is_dir()
                                                         and not f.name.startswith(".") and not layouts.known_as(f.name))


def in_folder(folder, dataset="", name_map=None):
    """{case: Reading} of a plain folder, {} where there is none; see the module. Raises DataError.

    Beside results of uniseg.infer (..._seg), other files, such as the CTs they were made of, are left alone.
    """
    said = read_labels(folder / "dataset.json", name_map)[1:] if (folder / "dataset.json").is_file() else ()
    entries = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and (f.is_dir() or f.name.endswith(SUFFIXES))]
    results = [f for f in entries if re.search(RESULT + r"(\.nii(\.gz)?)?$", f.name)]
    found = {}
    for path in results or entries:
        reading = _of_path(path, dataset, said)
        other = found.get(stem(path.name))
        if reading is None or (other and other.masks is not None and reading.masks is None):
            continue
        if other and (other.masks is None) == (reading.masks is None):
            raise DataError(f"{path}: the same case as {other.path}. Keep one of them.")
        found[stem(path.name)] = reading
    return found


def _of_path(path, dataset, said):
    """The Reading of one file or folder, or None where it is none. said: (labels, values) of a dataset.json beside it, or ()."""
    told = _labels_of_json(path)
    if path.is_dir():
        masks = _single_masks(path, told)
        return Reading(dataset, stem(path.name), path, masks=masks, known=bool(told)) if masks else None
    labels, values = said if said and not told else (told or TABLE_2, ())
    values = {0, *values}.union(*(label.values for label in labels))
    return Reading(dataset, stem(path.name), path, labels, tuple(sorted(values)), known=bool(told or said))


def _labels_of_json(path):
    """The labels that the JSON of a result of uniseg.infer names; () where there is none. Raises DataError."""
    beside = path.with_name(file_names.bare(path.name) + ".json")
    if not beside.is_file():
        return ()
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        return tuple(Label(name, (int(found["label"]),), (name,)) for name, found in content.get("classes", {}).items())
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{beside}: not the JSON of a result ({error}). Segment the case again, or move it away.") from None


def _single_masks(folder, told=()):
    """{class: path} of a folder with a mask a class; other files are left out.

    told: of Label, whose names are then the only ones; they may lie beyond Table 2
    """
    files = {file_names.bare(name): folder / name for name in layouts.files_below(folder) if "/" not in name}
    if told:
        return {label.name: files[label.name] for label in told if label.name in files}
    masks = {}
    for bare, path in files.items():
        try:
            classes = taxonomy.resolve(bare)
        except ValueError:
            continue
        if len(classes) == 1:
            masks[classes[0]] = path
    return masks


def predictions(folder, wanted, name_map=None):
    """{name of a wanted Reading: the prediction's Reading} from a folder, or from its sub-folders named as the datasets.

    Of folders of masks without a JSON, a class that some case has is taken as predicted in all; where its file is missing it
    is empty. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Give the one with the predictions.")
    flat = in_folder(folder, name_map=name_map)
    places = {name: folder / safe(name) for name in {r.dataset for r in wanted} if name}
    inner = {name: in_folder(place, name, name_map) for name, place in places.items() if place.is_dir()}
    found, taken = {}, {}
    for reading in wanted:
        hit = inner.get(reading.dataset, {}).get(reading.case)
        if hit is None and (hit := flat.get(reading.case)):
            other = taken.setdefault(reading.case, reading.name)
            if other != reading.name:
                raise DataError(f"{hit.path}: may be {other} or {reading.name}. Put the predictions of each dataset into a "
                                "folder of the dataset's name.")
        if hit:
            found[reading.name] = hit
    return with_empty(found)


def with_empty(readings):
    """{name: Reading} of one tool's predictions, each with every class that one of them has a mask of; others are empty."""
    every = {c for r in readings.values() if r.masks is not None and not r.known for c in r.masks}
    return {name: r if r.masks is None or r.known else r._replace(masks={c: r.masks.get(c) for c in every})
            for name, r in readings.items()}


# -------------------------------------------------------------------------------------------------------------- opening

def open_masks(reading, ct=None):
    """(Volume whose grid the masks have, function: class name -> bool mask (D, H, W)) of a Reading.

    ct: a Volume, whose mid-sagittal plane tells right from left; a label that holds both sides cannot do without.
    The masks of a dataset's case, which come in an order of their own, are kept as one bit a class.
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
        _refuse_strange(reading, labels.array)
        split = ct and by_the_plane(ct.array, ct.affine)
        return labels, lambda name: _mask_in_map(reading, labels, name, split)
    first = read_label_map(next(path for path in reading.masks.values() if path))
    return first, lambda name: read_mask(path, first, "the case's other masks") if (path := reading.masks[name]) \
        else np.zeros(first.array.shape, bool, order="F")


def open_in_order(reading):
    """(Volume, iterable of (class name, bool mask)) of a Reading; that of a dataset's case is its CT."""
    if reading.source:
        ct = read_ct(reading.source[1].image)
        return ct, case_masks(*reading.source, ct)
    volume, mask_of = open_masks(reading)
    return volume, ((name, mask_of(name)) for name in reading.classes)


def _refuse_strange(reading, array):
    """Raise DataError for values of a label map that nothing explains; one plane is sorted at a time."""
    strange = sorted({int(v) for z in range(array.shape[2]) for v in np.unique(array[:, :, z])} - set(reading.values))
    if strange:
        said = "its JSON or dataset.json does not name" if reading.known else "Table 2 does not have; 1 to 32 are its numbers"
        raise DataError(f"{reading.path}: label values {', '.join(map(str, strange[:5]))}, which {said}. Put a dataset.json "
                        "with the labels beside it.")


def _mask_in_map(reading, labels, name, split):
    """The mask of a class in a label map, with what lies in the organ put back into it (Section 4.1.1).

    split: see data.label_masks; None without a CT
    """
    def by_the_organs(mask, label):
        """Without a CT: by the two organs as they are drawn."""
        if len(label.classes) == 2:
            raise DataError(f"{reading.path}: its label {label.name!r} holds both sides; to split it takes the CT. "
                            "Give a dataset with the CTs as --ref.")
        partner = taxonomy.BY_NAME[name].partner
        organs = [_organ_alone(reading, labels.array, organ) for organ in sorted((name, partner), reverse=True)]   # right, left
        return _of_side(mask, *organs), _of_side(mask, *organs[::-1])

    label = next(each for each in reading.labels if name in each.classes)
    return dict(label_masks(labels.array, label, reading.labels, split or by_the_organs))[name]


def _organ_alone(reading, array, name):
    """The mask of a class as drawn; empty where no label has it."""
    label = next((each for each in reading.labels if each.classes == (name,)), None)
    return has_value(array, label.values) if label else np.zeros_like(array, bool)


def _of_side(lesion, organ, other):
    """The voxels of `lesion` on the organ's side, where there is no CT: nearer to it than to its partner, from left to right.

    The border is half-way between the middles of the two organs' boxes; where one is not there, all is the other's.
    """
    here, there = bounding_box(organ), bounding_box(other)
    if here is None or there is None:
        return lesion if here is not None else np.zeros_like(lesion)
    own, others = ((box[0].start + box[0].stop - 1) / 2 for box in (here, there))
    x, border = np.arange(lesion.shape[0])[:, None, None], (own + others) / 2
    return lesion & (x > border if own > others else x <= border)
