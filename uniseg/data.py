"""From the files of a case to training patches: Sections 3.2.4, 4.1.1 and 4.1.2.

    a case of a Dataset (datasets.py): image and label map as published
      -> cached case: int16 HU and one bit a class on the 1.5 mm RAS+ grid, memory-mapped
      -> patch: image (1, D, H, W) in [0, 1], bits (D, H, W), labelled (K,)

`python -m uniseg.data ROOT` checks the data before training (check.py).
Read datasets.py, volume.py and anatomy.py first; augment.py changes the patches.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from . import anatomy, layouts, taxonomy
from .augment import Deformation, degrade, recontrast, rotate_90
from .bits import bit_dtype, drop_bit, get_bit
from .datasets import DataError
from .volume import atomic_write, read_ct, read_label_map, resample, resample_mask, scale_hu, voxel_size_mm

AIR_HU = -1024
FORMAT = 3                        # of the cache; part of its key
FOREGROUND_KEPT = 1 << 20         # voxels remembered a case as possible patch centres
CLASS_VOXELS_KEPT = 1 << 12       # the same for each class
LESION_VOXELS_KEPT = 16           # the same for each lesion


# ------------------------------------------------------------------------------------------ a case: labels to class masks

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


# ---------------------------------------------------------------------------------------------------------- the cache

@dataclass(frozen=True)
class Preprocessing:
    """Section 4.1.2; stored in the checkpoint, so that inference repeats it."""

    spacing_mm: tuple = (1.5, 1.5, 1.5)        # isotropic
    hu_window: tuple = (-175.0, 250.0)         # clipped, then scaled to [0, 1]
    antialias: bool = False                    # beyond the paper: average instead of pick when the grid gets coarser
    pad: str = "air"                           # beyond the paper, "edge": a case smaller than the patch goes on as its outermost voxels


@dataclass(frozen=True)
class Case:
    """A preprocessed case on disk; arrays are memory-mapped, so that a patch reads only its own pages."""

    folder: Path
    dataset: str
    id: str
    names: tuple                               # class of each bit: the classes annotated in this case
    voxels: dict = field(hash=False)           # class -> voxels on the model grid
    content: str = ""                          # sha256 of the resampled image: the same CT, however its file is packed

    @property
    def image(self):
        return self.array("image")                                     # (D, H, W) int16 HU

    @property
    def bits(self):
        return self.array("bits")                                      # (D, H, W) unsigned, bit k: names[k]

    def array(self, name):
        """One of the folder's arrays, memory-mapped. Raises OSError where the file was lost or cut since it was made."""
        path = self.folder / f"{name}.npy"
        try:
            stat = path.stat()
            return _mapped(path, stat.st_size, stat.st_mtime_ns)
        except (OSError, ValueError, EOFError) as error:
            raise OSError(f"{path}: the cached case {self.id} is damaged ({error}). "
                          "Remove this folder; the next start makes it again.") from None


@functools.lru_cache(maxsize=256)
def _mapped(path, size, changed):
    """A .npy file as a memory-mapped array. The maps last used stay open: to map a case anew for each patch and fault its
    pages in is a fifth of a patch's time or more. Size and time are for the cache: a file that was cut is not read beyond
    its end, which would end the process without a word."""
    return np.load(path, mmap_mode="r")


def prepare(dataset, case, preprocessing, cache):
    """The cached form of one case of a Dataset, made if it is not there. Returns a Case."""
    masks = layouts.mask_files(case.label, case.annotated or ()) if case.label.is_dir() else {"": (case.label,)}
    key = hashlib.sha256(json.dumps([
        FORMAT, _content_hash(case.image, cache),
        [(name, [_content_hash(path, cache) for path in paths]) for name, paths in masks.items()], preprocessing.spacing_mm,
        preprocessing.antialias, [(label.values, label.classes) for label in dataset.labels],
        dataset.annotated_in(case)]).encode()).hexdigest()[:24]
    folder = Path(cache) / key
    if not (folder / "meta.json").is_file():
        _preprocess(dataset, case, preprocessing, folder)
    meta = json.loads((folder / "meta.json").read_text())
    return Case(folder, dataset.name, f"{dataset.name}/{case.id}", tuple(meta["names"]), meta["voxels"], meta["content"])


def array_hash(array):
    """sha256 of shape and values of a (D, H, W) array, whatever its order in memory; one plane is copied at a time."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for k in range(array.shape[2]):
        digest.update(np.ascontiguousarray(array[:, :, k].T))
    return digest.hexdigest()


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


def _preprocess(dataset, case, preprocessing, folder):
    """RAS+, 1.5 mm, cropped to the body (Section 4.1.2); the folder appears complete or not at all."""
    ct, spacing = read_ct(case.image), preprocessing.spacing_mm
    image, affine = resample(ct.array, ct.affine, spacing, antialias=preprocessing.antialias)
    image = np.clip(np.rint(image), AIR_HU, 3071).astype(np.int16)
    content = array_hash(image)
    names = list(dataset.annotated_in(case))
    bits = np.zeros(image.shape, bit_dtype(len(names)))
    voxels = {}
    for name, mask in case_masks(dataset, case, ct):
        coarse = resample_mask(mask, ct.affine, spacing)
        voxels[name] = int(coarse.sum())
        bits[coarse] |= bits.dtype.type(1 << names.index(name))
    for name in set(names) - set(voxels):      # nobody can tell whether it is absent; its bit gives way to those after it
        bits, names = drop_bit(bits, names.index(name)), [n for n in names if n != name]
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
    np.save(temporary / "lesions.npy", _lesions(bits, names, keep))
    (temporary / "meta.json").write_text(json.dumps(
        {"names": names, "voxels": voxels, "content": content, "image": str(case.image), "shape": image.shape,
         "spacing_mm": spacing}))
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


def _lesions(bits, names, rng):
    """Flat indices of some voxels of each lesion (26-connected component of a tumour class), (lesions, LESION_VOXELS_KEPT)."""
    kept = []
    for k, name in enumerate(names):
        if name in taxonomy.BY_NAME and taxonomy.BY_NAME[name].kind == taxonomy.TUMOUR:
            labels, _ = ndimage.label(get_bit(bits, k), structure=anatomy.CONNECTED_26)
            for lesion, box in enumerate(ndimage.find_objects(labels), start=1):
                inside = np.argwhere(labels[box] == lesion) + [s.start for s in box]
                kept.append(rng.choice(np.ravel_multi_index(inside.T, bits.shape), LESION_VOXELS_KEPT))
    return np.array(kept, np.int64).reshape(-1, LESION_VOXELS_KEPT)


# --------------------------------------------------------------------------------------------------- patches for training

class PatchDataset:
    """Training patches by number: sample g is a pure function of (seed, g).

    Hence nothing about the draw has to be saved for an exact resume, and neither workers nor the number of processes
    change what is drawn. Each dataset has the same probability, then each of its cases (Section 4.1.2).
    """

    def __init__(self, cases, classes, preprocessing, patch_size=(96, 96, 96), seed=0, foreground=2 / 3,
                 rotate_probability=0.1, shift_probability=0.2, balance=0.0, augment="paper", lesions=0.0, deform_mm=0.0,
                 dataset_weights=None):
        self.groups = {}                       # dataset -> its cases
        for case in cases:
            self.groups.setdefault(case.dataset, []).append(case)
        self.groups = [group for _, group in sorted(self.groups.items())]
        self.classes, self.preprocessing, self.patch_size, self.seed = classes, preprocessing, tuple(patch_size), seed
        self.foreground = foreground           # foreground : background centres = 2 : 1
        self.rotate_probability, self.shift_probability = rotate_probability, shift_probability
        self.balance, self.augment, self.lesions, self.deform_mm = balance, augment, lesions, deform_mm
        self.shares = None                     # probability of each group, where they differ (beyond the paper)
        if dataset_weights:
            names = [group[0].dataset for group in self.groups]
            if unknown := sorted(set(dataset_weights) - set(names)):
                raise ValueError(f"--dataset-weights {unknown[0]}: no such dataset among {', '.join(names)}.")
            weights = np.array([dataset_weights.get(name, 1.0) for name in names])
            self.shares = weights / weights.sum()

    def __getitem__(self, number):
        """dict of image (1, D, H, W) float32, [0, 1] shifted by up to 0.1; bits (D, H, W) int64, bit k is class k;
        labelled (K,) bool; case, its name."""
        rng = np.random.default_rng((self.seed, int(number)))
        group = self.groups[rng.integers(len(self.groups)) if self.shares is None else rng.choice(len(self.groups), p=self.shares)]
        case = group[rng.integers(len(group))]
        centre = self._centre(case, rng)
        if self.augment != "paper" or self.deform_mm:
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
        foreground = case.array("foreground")
        if len(foreground) and rng.random() < self.foreground:
            lesions = case.array("lesions") if self.lesions else ()
            if len(lesions) and rng.random() < self.lesions:   # beyond the paper: each lesion alike, however small
                return np.unravel_index(int(rng.choice(lesions[rng.integers(len(lesions))])), bits.shape)
            present = [k for k, name in enumerate(case.names) if case.voxels.get(name) and name in self.classes]
            if present and rng.random() < self.balance:        # beyond the paper: a class first, then one of its voxels
                foreground = case.array(f"voxels_{present[rng.integers(len(present))]}")
            return np.unravel_index(int(foreground[rng.integers(len(foreground))]), bits.shape)
        for _ in range(64):                                    # a volume that is all foreground has no background
            centre = tuple(int(rng.integers(n)) for n in bits.shape)
            if bits[centre] == 0:
                break
        return centre

    def _patch(self, array, centre, fill, size=None):
        """Cut a patch, moved inside where the volume is large enough, padded (Preprocessing.pad; `fill`: air) where not."""
        size = size or self.patch_size
        starts = [min(max(c - w // 2, 0), n - w) if n >= w else -((w - n) // 2)
                  for c, n, w in zip(centre, array.shape, size)]
        source = tuple(slice(max(s, 0), max(s, 0) + min(n, w)) for s, n, w in zip(starts, array.shape, size))
        block = np.asarray(array[source])
        if block.shape == tuple(size):
            return block
        pads = [(max(-s, 0), w - max(-s, 0) - m) for s, w, m in zip(starts, size, block.shape)]
        if self.preprocessing.pad == "edge":
            return np.pad(block, pads, mode="edge")
        return np.pad(block, pads, constant_values=fill)

    def _deformed_patch(self, case, centre, rng):
        """Beyond the paper (--augment strong or contrast, --deform): another shape, another contrast, blur, noise."""
        strong = self.augment != "paper"
        deform = Deformation(self.patch_size, rng, strong, self.deform_mm / np.array(self.preprocessing.spacing_mm))
        hu, bits = deform(*(self._patch(a, centre, fill, deform.reach) for a, fill in ((case.image, AIR_HU), (case.bits, 0))))
        if self.augment == "contrast":
            hu = recontrast(hu, bits, rng)
        elif strong:
            hu = hu * rng.uniform(0.9, 1.1) + rng.uniform(-25, 25)
        return degrade(hu, rng) if strong else hu, bits

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


if __name__ == "__main__":        # python -m uniseg.data ROOT: look at the data before training
    from .check import main

    sys.exit(main())
