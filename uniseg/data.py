"""From folders of partially labelled datasets to training patches: Sections 3.2.4, 4.1.1 and 4.1.2.

    ROOT/<dataset>/dataset.json        the Medical Segmentation Decathlon's form or nnU-Net v2's
      -> Dataset: which label value is which class, which classes are annotated at all
      -> cached case: int16 HU and one bit a class on the 1.5 mm RAS+ grid, memory-mapped
      -> patch: image (1, D, H, W) in [0, 1], bits (D, H, W), labelled (K,)

A class that a dataset does not annotate is *unlabelled*, never background. Read volume.py and anatomy.py first.
"""

import functools
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from . import anatomy, taxonomy
from .bits import bit_dtype
from .volume import atomic_write, read_ct, read_label_map, resample, resample_mask, scale_hu, voxel_size_mm

AIR_HU = -1024
FORMAT = 1                        # of the cache; part of its key
FOREGROUND_KEPT = 1 << 20         # voxels remembered a case as possible patch centres
CLASS_VOXELS_KEPT = 1 << 12       # the same for each class
SUFFIXES = (".nii.gz", ".nii")


class DataError(ValueError):
    """A dataset that cannot be used; the message names the file and says what to do."""


# ---------------------------------------------------------------------------------------------------- finding datasets

@dataclass(frozen=True)
class Label:
    """One label of a dataset.json: its raw values and the class (or right and left classes) it stands for."""

    name: str
    values: tuple
    classes: tuple                # one name, or (right, left) for a merged pair


@dataclass(frozen=True)
class Dataset:
    """A folder with a dataset.json, its names mapped to classes."""

    name: str
    folder: Path
    labels: tuple                 # of Label
    values: tuple                 # every raw value that may occur, background and dropped labels included
    cases: tuple                  # of (case id, image path, label path)

    @property
    def annotated(self):
        """Names of the classes this dataset annotates, in the order of Table 2, others after them."""
        names = {c for label in self.labels for c in label.classes}
        rank = {n: i for i, n in enumerate(taxonomy.NAMES)}
        return tuple(sorted(names, key=lambda n: (rank.get(n, len(rank)), n)))


def find_datasets(root, name_map=None):
    """Every sub-folder of `root` with a dataset.json (or `root` itself), sorted by name. Raises DataError."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --data-root holds one folder per dataset, each with a dataset.json.")
    folders = [root] if (root / "dataset.json").is_file() else \
        sorted(f for f in root.iterdir() if (f / "dataset.json").is_file())
    if not folders:
        raise DataError(f"{root}: no dataset.json in it or in its sub-folders. See README, Data, for the layout.")
    datasets = {}
    for folder in folders:
        dataset = read_dataset(folder, name_map)
        if other := datasets.get(dataset.name):
            raise DataError(f'{other.folder} and {folder} both have the "name" {dataset.name}. Change one dataset.json.')
        datasets[dataset.name] = dataset
    return list(datasets.values())


def read_dataset(folder, name_map=None):
    """Parse one dataset.json. name_map: {label name: class name or null}, consulted before the aliases."""
    path = Path(folder) / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}). Mend it.") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f'{path}: no "labels". Add e.g. "labels": {{"0": "background", "1": "liver"}}.')
    labels, values = [], {0}
    for name, raw in _label_values(content["labels"], path):
        values.update(raw)
        classes = _classes_of(name, name_map or {}, path)
        if classes and 0 in raw:
            raise DataError(f"{path}: label {name!r} has the value 0, which is background. Number the labels from 1.")
        if classes:
            labels.append(Label(name, tuple(raw), classes))
    _refuse_double_classes(labels, path)
    cases = _nnunet_cases(Path(folder), content) if "training" not in content else _decathlon_cases(Path(folder), content)
    if not cases:
        raise DataError(f"{path}: no training case. List them under \"training\" or put files into imagesTr and labelsTr.")
    lost = [str(f) for _, image, label in cases for f in (image, label) if not f.is_file()]
    if lost:
        raise DataError(f"{path}: {len(lost)} files it needs are missing: {', '.join(lost[:5])}. Add them or edit the list.")
    return Dataset(content.get("name") or Path(folder).name, Path(folder), tuple(labels), tuple(sorted(values)), tuple(cases))


def _label_values(labels, path):
    """(name, [values]) of both forms: {"1": "liver"} (Decathlon) and {"liver": 1} or {"liver": [1, 2]} (nnU-Net v2)."""
    for key, value in labels.items():
        if isinstance(value, str) and key.strip().lstrip("-").isdigit():
            yield value, [int(key)]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, [value]
        elif isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            yield key, value
        else:
            raise DataError(f'{path}: label {key!r}: {value!r} is neither "1": "liver" nor "liver": 1. Mend it.')


def _classes_of(name, name_map, path):
    """The class names of one label; () where it is background or dropped. A map may name classes that Table 2 lacks."""
    if name in name_map:
        given = name_map[name]
        if given is None:
            return ()
        if not isinstance(given, str):
            raise DataError(f"--map: {name!r} -> {given!r} is neither a class name nor null. Both sides are e.g. \"kidneys\".")
        try:
            return taxonomy.resolve(given)
        except ValueError:
            return (given,)
    if taxonomy.normalise_name(name) in ("background", "bg", "clear_label"):
        return ()
    try:
        return taxonomy.resolve(name)
    except ValueError as error:
        raise DataError(f"{path}: {error} Or give --map FILE with {{\"{name}\": \"class\"}}, null to drop it.") from None


def _refuse_double_classes(labels, path):
    seen = {}
    for label in labels:
        for name in label.classes:
            if name in seen:
                raise DataError(f"{path}: labels {seen[name]!r} and {label.name!r} are both class {name}. "
                                "Name one label per class, with several values if need be: \"liver\": [1, 2].")
            seen[name] = label.name


def _inside(folder, relative, path):
    """folder/relative, refused where it leads out of the folder."""
    full = (folder / relative).resolve()
    if not full.is_relative_to(folder.resolve()):
        raise DataError(f"{path}: {relative!r} leads out of the dataset's folder. Use paths inside it.")
    return folder / relative


def _decathlon_cases(folder, content):
    path, cases = folder / "dataset.json", []
    for entry in content["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise DataError(f'{path}: training entry {entry!r} lacks "image" or "label". Mend it.')
        image, label = (_inside(folder, entry[key], path) for key in ("image", "label"))
        cases.append((_stem(image), image, label))
    return cases


def _nnunet_cases(folder, content):
    ending = content.get("file_ending", ".nii.gz")
    labels = sorted(f for f in (folder / "labelsTr").glob("*" + ending) if not f.name.startswith("."))
    return [(_stem(f), folder / "imagesTr" / (f.name[:-len(ending)] + "_0000" + ending), f) for f in labels]


def _stem(path):
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


# ------------------------------------------------------------------------------------------ a case: labels to class masks

def class_masks(dataset, labels, hu, affine, where="label"):
    """Yield (class name, bool mask) for each class the dataset annotates, on the grid of the label map.

    labels: (D, H, W) integers, hu: (D, H, W) of the same grid, needed for the mid-sagittal plane of merged pairs.
    Tumours and vessels are put back into the organ that holds them (Section 4.1.1); merged pairs are split into right
    and left by the plane. Raises DataError for values the dataset.json does not list.
    """
    values, counts = np.unique(labels.ravel(order="K"), return_counts=True)
    strange = [f"{v} ({n} voxels)" for v, n in zip(values, counts) if v not in dataset.values]
    if strange:
        raise DataError(f"{where}: label values {', '.join(strange[:5])} are not in {dataset.folder / 'dataset.json'}. "
                        "Add them there (or to --map as null).")
    plane = None
    for label in dataset.labels:
        mask = _has_value(labels, label.values)
        inner = [other for other in dataset.labels if _lies_in(other, label)]
        if len(label.classes) == 2:                              # a merged pair
            for other in inner:
                mask |= _has_value(labels, other.values)
            plane = plane or anatomy.midsagittal_plane(hu, affine)
            yield from zip(label.classes, anatomy.split_left_right(mask, affine, plane))
            continue
        (name,) = label.classes
        for other in inner:
            lesion = _has_value(labels, other.values)
            partner = taxonomy.BY_NAME[name].partner
            if partner:                                          # a kidney's tumour belongs to the kidney of its side
                plane = plane or anatomy.midsagittal_plane(hu, affine)
                right, left = anatomy.split_left_right(lesion, affine, plane)
                lesion = right if name.startswith("right") else left
            mask |= lesion
        yield name, mask


def _has_value(labels, values):
    """Where `labels` is one of `values`. (np.isin first copies a Fortran-ordered map: 100 times slower on a whole CT.)"""
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask


def _lies_in(inner, outer):
    """True where label `inner` (a tumour or vessel) is part of the organ of label `outer`."""
    return any(set(taxonomy.BY_NAME[c].parents) & set(outer.classes) for c in inner.classes if c in taxonomy.BY_NAME)


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


# ---------------------------------------------------------------------------------------------------------- the cache

@dataclass(frozen=True)
class Preprocessing:
    """Section 4.1.2; stored in the checkpoint, so that inference repeats it."""

    spacing_mm: tuple = (1.5, 1.5, 1.5)        # isotropic
    hu_window: tuple = (-175.0, 250.0)         # clipped, then scaled to [0, 1]
    antialias: bool = False                    # beyond the paper: average instead of pick when the grid gets coarser


@dataclass(frozen=True)
class Case:
    """A preprocessed case on disk; arrays are memory-mapped, so that a patch reads only its own pages."""

    folder: Path
    dataset: str
    id: str
    names: tuple                               # class of each bit: the classes annotated in this case
    voxels: dict = field(hash=False)           # class -> voxels on the model grid

    @property
    def image(self):
        return _mapped(self.folder / "image.npy")                      # (D, H, W) int16 HU

    @property
    def bits(self):
        return _mapped(self.folder / "bits.npy")                       # (D, H, W) unsigned, bit k: names[k]


@functools.lru_cache(maxsize=256)
def _mapped(path):
    """A .npy file as a memory-mapped array. The maps last used stay open: to map a case anew for each patch and fault its
    pages in takes as long as the rest of the patch. They are clean pages of a folder named after what went into it."""
    return np.load(path, mmap_mode="r")


def prepare(dataset, case, preprocessing, cache):
    """The cached form of one case of a Dataset, made if it is not there. Returns a Case."""
    case_id, image_path, label_path = case
    key = hashlib.sha256(json.dumps([
        FORMAT, _content_hash(image_path, cache), _content_hash(label_path, cache), preprocessing.spacing_mm,
        preprocessing.antialias, [(label.values, label.classes) for label in dataset.labels]]).encode()).hexdigest()[:24]
    folder = Path(cache) / key
    if not (folder / "meta.json").is_file():
        _preprocess(dataset, image_path, label_path, preprocessing, folder)
    meta = json.loads((folder / "meta.json").read_text())
    return Case(folder, dataset.name, f"{dataset.name}/{case_id}", tuple(meta["names"]), meta["voxels"])


def _content_hash(path, cache):
    """sha256 of a file's bytes, remembered by path, size and time so that a second start need not read it again."""
    stat = Path(path).stat()
    stamp = f"{Path(path).resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    memo = Path(cache) / "hashes" / hashlib.sha256(stamp.encode()).hexdigest()
    if memo.is_file():
        return memo.read_text()
    h = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            h.update(block)
    memo.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memo) as temporary:
        Path(temporary).write_text(h.hexdigest())
    return h.hexdigest()


def _preprocess(dataset, image_path, label_path, preprocessing, folder):
    """RAS+, 1.5 mm, cropped to the body (Section 4.1.2); the folder appears complete or not at all."""
    ct, label = read_ct(image_path), read_label_map(label_path)
    check_same_grid(ct, label, image_path, label_path)
    spacing = preprocessing.spacing_mm
    image, affine = resample(ct.array, ct.affine, spacing, antialias=preprocessing.antialias)
    image = np.clip(np.rint(image), AIR_HU, 3071).astype(np.int16)
    names = dataset.annotated
    bits = np.zeros(image.shape, bit_dtype(len(names)))
    voxels = {}
    for name, mask in class_masks(dataset, label.array, ct.array, ct.affine, label_path):
        coarse = resample_mask(mask, ct.affine, spacing)
        voxels[name] = int(coarse.sum())
        bits[coarse] |= bits.dtype.type(1 << names.index(name))
    body = anatomy.body_mask(image, voxel_size_mm(affine))
    box = anatomy.bounding_box(body | (bits != 0), margin=2) or tuple(slice(0, n) for n in image.shape)
    image, bits = np.ascontiguousarray(image[box]), np.ascontiguousarray(bits[box])
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / "image.npy", image)
    np.save(temporary / "bits.npy", bits)
    foreground = np.flatnonzero(bits)
    keep = np.random.default_rng(0)
    np.save(temporary / "foreground.npy", _some(foreground, FOREGROUND_KEPT, keep))
    for k, name in enumerate(names):
        own = np.flatnonzero(bits >> bits.dtype.type(k) & bits.dtype.type(1))
        np.save(temporary / f"voxels_{k}.npy", _some(own, CLASS_VOXELS_KEPT, keep))
    (temporary / "meta.json").write_text(json.dumps(
        {"names": names, "voxels": voxels, "image": str(image_path), "shape": image.shape, "spacing_mm": spacing}))
    if not (folder / "meta.json").is_file():   # the remains of a damaged folder would be in the way
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(temporary, folder)
    except OSError:                            # another process was first; its folder holds the same
        shutil.rmtree(temporary, ignore_errors=True)


def _some(indices, most, rng):
    """At most `most` of the flat voxel indices, sorted, int64."""
    if len(indices) > most:
        indices = np.sort(rng.choice(indices, most, replace=False))
    return indices.astype(np.int64)


# --------------------------------------------------------------------------------------------------- patches for training

def rotate_90(array, times):
    """Turn the last three axes (D, H, W) by `times` x 90 degrees in the axial plane.

    A rotation is a motion a patient can make (180 degrees: lying prone), not a mirror: every voxel keeps its label, the
    right kidney stays the right kidney, and the liver stays on the same side of the spine as seen from the front.
    """
    return np.rot90(array, times, axes=(-3, -2))


class PatchDataset:
    """Training patches by number: sample g is a pure function of (seed, g).

    Hence nothing about the draw has to be saved for an exact resume, and neither workers nor the number of processes
    change what is drawn. Each dataset has the same probability, then each of its cases (Section 4.1.2).
    """

    def __init__(self, cases, classes, preprocessing, patch_size=(96, 96, 96), seed=0, foreground=2 / 3,
                 rotate_probability=0.1, shift_probability=0.2, balance=0.0, augment="paper"):
        self.groups = {}                       # dataset -> its cases
        for case in cases:
            self.groups.setdefault(case.dataset, []).append(case)
        self.groups = [group for _, group in sorted(self.groups.items())]
        self.classes, self.preprocessing, self.patch_size, self.seed = classes, preprocessing, tuple(patch_size), seed
        self.foreground = foreground           # foreground : background centres = 2 : 1
        self.rotate_probability, self.shift_probability = rotate_probability, shift_probability
        self.balance, self.augment = balance, augment

    def __getitem__(self, number):
        """dict of image (1, D, H, W) float32, [0, 1] shifted by up to 0.1; bits (D, H, W) int64, bit k is class k;
        labelled (K,) bool; case, its name."""
        rng = np.random.default_rng((self.seed, int(number)))
        group = self.groups[rng.integers(len(self.groups))]
        case = group[rng.integers(len(group))]
        centre = self._centre(case, rng)
        if self.augment != "paper":
            hu, bits = self._deformed_patch(case, centre, rng)
        else:
            hu, bits = self._patch(case.image, centre, AIR_HU), self._patch(case.bits, centre, 0)
        image = scale_hu(hu, self.preprocessing.hu_window)
        if rng.random() < self.rotate_probability:
            square = self.patch_size[0] == self.patch_size[1]
            times = int(rng.integers(1, 4)) if square else 2
            image, bits = rotate_90(image, times), rotate_90(bits, times)
        if rng.random() < self.shift_probability:
            image = image + rng.uniform(-0.1, 0.1)             # released code: offsets 0.10
        return {"image": np.ascontiguousarray(image, np.float32)[None], "bits": self._channel_bits(bits, case.names),
                "labelled": np.array([name in case.names for name in self.classes]), "case": case.id}

    def _centre(self, case, rng):
        """Index of the patch's centre voxel: foreground with probability 2/3, else background."""
        bits = case.bits
        foreground = _mapped(case.folder / "foreground.npy")
        if len(foreground) and rng.random() < self.foreground:
            present = [k for k, name in enumerate(case.names) if case.voxels.get(name) and name in self.classes]
            if present and rng.random() < self.balance:        # beyond the paper: a class first, then one of its voxels
                foreground = _mapped(case.folder / f"voxels_{present[rng.integers(len(present))]}.npy")
            return np.unravel_index(int(foreground[rng.integers(len(foreground))]), bits.shape)
        for _ in range(64):                                    # a volume that is all foreground has no background
            centre = tuple(int(rng.integers(n)) for n in bits.shape)
            if bits[centre] == 0:
                break
        return centre

    def _patch(self, array, centre, fill, size=None):
        """Cut a patch, moved inside where the volume is large enough, padded with `fill` where it is not."""
        size = size or self.patch_size
        starts = [min(max(c - w // 2, 0), n - w) if n >= w else -((w - n) // 2)
                  for c, n, w in zip(centre, array.shape, size)]
        source = tuple(slice(max(s, 0), max(s, 0) + min(n, w)) for s, n, w in zip(starts, array.shape, size))
        block = np.asarray(array[source])
        if block.shape == tuple(size):
            return block
        before = [max(-s, 0) for s in starts]
        return np.pad(block, [(b, w - b - m) for b, w, m in zip(before, size, block.shape)], constant_values=fill)

    def _deformed_patch(self, case, centre, rng):
        """Beyond the paper (--augment strong, contrast): small rotation, zoom, contrast, blur and noise; never a mirror."""
        size = np.array(self.patch_size)
        angles, zoom = np.deg2rad(rng.uniform(-12, 12, 3)), rng.uniform(0.8, 1.25, 3) ** 0.5 * rng.uniform(0.85, 1.2)
        matrix = _rotation(angles) @ np.diag(1 / zoom)           # output offset from the centre -> input offset
        reach = np.ceil(np.abs(matrix) @ (size / 2)).astype(int) * 2 + 2
        hu, bits = (self._patch(a, centre, fill, tuple(reach)) for a, fill in ((case.image, AIR_HU), (case.bits, 0)))
        offset = (reach - 1) / 2 - matrix @ ((size - 1) / 2)
        hu = ndimage.affine_transform(hu.astype(np.float32), matrix, offset, tuple(size), order=1, mode="nearest")
        bits = ndimage.affine_transform(bits, matrix, offset, tuple(size), order=0, mode="nearest")
        if self.augment == "contrast":
            hu = recontrast(hu, bits, rng)
        else:
            hu = hu * rng.uniform(0.9, 1.1) + rng.uniform(-25, 25)
        if rng.random() < 0.3:
            hu = ndimage.gaussian_filter(hu, rng.uniform(0.3, 1.0, 3))
        if rng.random() < 0.5:
            hu = hu + rng.normal(0, rng.uniform(0, 40), hu.shape).astype(np.float32)
        return hu, bits

    def _channel_bits(self, bits, names):
        """Reorder a case's bits into the model's channels: (D, H, W) int64."""
        moves = {}                                             # channel - bit -> mask of the bits that move so far
        for k, name in enumerate(names):
            if name in self.classes:
                move = self.classes.index(name) - k
                moves[move] = moves.get(move, 0) | 1 << k
        unsigned = np.promote_types(bits.dtype, bit_dtype(len(self.classes))).type
        out = np.empty(bits.shape, np.int64)
        for plane, channels in zip(bits, out):                 # a plane at a time stays in the processor's cache
            moved = np.zeros(plane.shape, unsigned)
            for move, mask in moves.items():
                part = plane & unsigned(mask)
                moved |= part << unsigned(move) if move >= 0 else part >> unsigned(-move)
            channels[:] = moved
        return out


def recontrast(hu, bits, rng):
    """Another contrast phase, roughly (--augment contrast): each annotated structure as a whole brighter or darker, then a random curve of HU.

    Few CTs show few phases; a network that has seen organs at many grey values has to learn shape and place.
    hu, bits: (D, H, W) of one patch; returns float32 HU. The curve is monotone, so that darker stays darker.
    """
    offset = np.zeros(hu.shape, np.float32)
    for k in range(bits.dtype.itemsize * 8):
        offset[(bits >> bits.dtype.type(k)) & bits.dtype.type(1) != 0] += rng.normal(0, 30)
    hu = hu + ndimage.gaussian_filter(offset, 0.7)
    knots = np.array([-1000.0, -175, -75, 0, 75, 150, 250, 1000])
    return np.interp(hu, knots, np.maximum.accumulate(knots + rng.normal(0, 15, len(knots)))).astype(np.float32)


def _rotation(angles):
    """Rotation matrix of three small angles in radians about the axes D, H, W; determinant +1."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (i, j) = np.eye(3), [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def fold_of(datasets, folds):
    """{(dataset name, case id): fold}, stratified by dataset, by sorted case id: the same on every machine.

    The first case of the d-th dataset starts at fold d, so that datasets of one case do not all fall into one fold.
    """
    return {(d.name, case[0]): (j + start) % folds
            for start, d in enumerate(datasets) for j, case in enumerate(sorted(d.cases, key=lambda c: c[0]))}
