"""A case, preprocessed and cached on disk as memory-mapped arrays (Sections 3.2.4 and 4.1.2).

    CACHE/KEY/image.npy       (D, H, W) int16 HU on the model's grid, cropped to the body
              bits.npy        (D, H, W) unsigned, bit k: class names[k]; the bit after the last class: nobody says what
                              the voxel holds. These are voxels of the label "ignore" and, with pad "edge", those that
                              field_of_view.continued has made up, so that training sees what inference shows
              foreground.npy, voxels_K.npy, lesions.npy    flat indices of possible patch centres
              meta.json       names of the bits, whether there are ignored voxels, voxels per class, hash of the image,
                              warnings; written last

KEY has to differ wherever one of these bytes may differ. It covers the contents of the image and of its label files,
the label values and their classes, the ignored values, the classes annotated in the case, spacing, antialiasing and
padding (`_cache_key`). All that the *code* decides is covered by FORMAT alone: resampling, body mask, margin of the
crop, which masks belong to an organ, the numbers of voxels that are kept. tests/datasets/test_cases.py pins the bytes
beside FORMAT and fails where they change without it. The HU window is not part of the key: it is applied when a patch
is drawn.

Read masks.py first, data.py next: it draws the patches.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..imaging.bits import bit_dtype, bounding_box, drop_bit, get_bit, set_bit
from ..imaging.body import body_mask
from ..imaging.components import CONNECTED_26
from ..imaging.field_of_view import continued
from ..imaging.grid import voxel_size_mm
from ..imaging.preprocessing import Preprocessing
from ..imaging.resampling import resample, resample_mask
from ..imaging.volume import AIR_HU, Volume, read_ct
from ..machine.files import FileError, atomic_write, file_sha256, sweep, temporary_beside
from ..machine.json_files import read_json
from . import layouts
from .dataset import CaseFiles, DataError, Dataset
from .masks import case_masks
from .placement import Placement

FORMAT = 6                        # part of the cache's key: raise it with every change of the cached bytes
MOST_HU = 3071                    # the largest value of a 12-bit CT
MARGIN = 2                        # voxels around body and labels that the crop keeps
FOREGROUND_KEPT = 1 << 20         # voxels per case that are remembered as possible patch centres
CLASS_VOXELS_KEPT = 1 << 12       # the same per class
LESION_VOXELS_KEPT = 16           # the same per lesion


@dataclass(frozen=True)
class Case:
    """A preprocessed case on disk. Its arrays are memory-mapped, so that a patch reads only its own pages."""

    folder: Path
    dataset: str
    id: str
    names: tuple[str, ...]                     # class of each bit: the classes annotated in this case
    voxels: dict[str, int] = field(hash=False)  # class -> voxels on the model's grid
    content: str = ""                          # sha256 of the resampled image: equal for the same CT in any compression
    warnings: tuple[str, ...] = ()             # what is doubtful about the files
    ignored: bool = False                      # whether nobody says of some voxels what they hold: bit len(names)

    @property
    def image(self) -> np.ndarray:
        """(D, H, W) int16 HU."""
        return self.array("image")

    @property
    def bits(self) -> np.ndarray:
        """(D, H, W) unsigned integers; bit k is class names[k], bit len(names) is set in ignored voxels."""
        return self.array("bits")

    def array(self, name: str) -> np.ndarray:
        """One of the folder's arrays, memory-mapped. Raises OSError where its file is missing or truncated."""
        path = os.path.join(self.folder, f"{name}.npy")        # a pathlib.Path takes a tenth of a patch's time
        try:
            stat = os.stat(path)
            return _mapped(path, stat.st_size, stat.st_mtime_ns)
        except (OSError, ValueError, EOFError) as error:
            raise OSError(f"{path}: the cached case {self.id} is damaged ({error}). "
                          "Remove this folder; the next start makes it again.") from None


@functools.lru_cache(maxsize=256)
def _mapped(path: str, size: int, changed: int) -> np.ndarray:
    """Memory-map a file; recent maps stay open, as remapping costs a fifth of a patch's time.

    Size and time are part of the cache key: reading past the end of a truncated file would crash the process.
    """
    return np.load(path, mmap_mode="r")


def prepare(dataset: Dataset, case: CaseFiles, preprocessing: Preprocessing, cache: Path) -> Case:
    """The cached form of one case of a Dataset, made where it does not exist.

    Raises DataError, VolumeError or OSError.
    """
    folder = Path(cache) / _cache_key(dataset, case, preprocessing, cache)
    meta = _meta(folder)
    if meta is None:
        _preprocess(dataset, case, preprocessing, folder)
        meta = _meta(folder)
    if meta is None:
        raise OSError(f"{folder}: the cached case {case.id} cannot be read back. Check the disk, or give another "
                      "--cache.")
    return Case(folder, dataset.name, f"{dataset.name}/{case.id}", tuple(meta["names"]), meta["voxels"],
                meta["content"], tuple(meta["warnings"]), meta["ignored"])


def is_cached(dataset: Dataset, case: CaseFiles, preprocessing: Preprocessing, cache: Path) -> bool:
    """Whether `prepare` finds this case made, as far as a look tells that reads none of its images."""
    try:
        return _meta(Path(cache) / _cache_key(dataset, case, preprocessing, cache, _known_hash)) is not None
    except (LookupError, ValueError, OSError):             # `prepare` says what is wrong
        return False


def _meta(folder: Path) -> dict[str, Any] | None:
    """The meta.json of a cached case; None where it is missing or damaged, so that the case is made again."""
    try:
        meta = read_json(folder / "meta.json")
    except FileError:
        return None
    kinds = {"names": list, "voxels": dict, "content": str, "warnings": list,
             "ignored": bool}
    whole = isinstance(meta, dict) and all(isinstance(meta.get(key), kind) for key, kind in kinds.items())
    return meta if whole else None


# -------------------------------------------------------------------------------------------------------------- the key

def _cache_key(dataset: Dataset, case: CaseFiles, preprocessing: Preprocessing, cache: Path,
               hash_of: Callable[[Path, Path], str] | None = None) -> str:
    """Name of the case's folder: a hash of everything that decides what is in it (see the module).

    hash_of: (file, cache) -> sha256 of the file; default: _content_hash
    """
    hash_of = hash_of or _content_hash
    if case.label.is_dir():
        label_files = layouts.mask_files(case.label, case.annotated or ())
    else:
        label_files = {"": (case.label,)}
    labels = [(name, [hash_of(path, cache) for path in paths]) for name, paths in label_files.items()]
    meanings = [(label.values, label.classes) for label in dataset.labels]
    parts = [FORMAT, hash_of(case.image, cache), labels, preprocessing.spacing_mm, preprocessing.antialias,
             preprocessing.pad, meanings, dataset.ignored, dataset.annotated_in(case)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _content_hash(path: Path, cache: Path) -> str:
    """sha256 of a file's bytes, remembered by path, size and time: a second start does not read the file again."""
    memo = _memo(path, cache)
    if memo.is_file():
        return memo.read_text()
    digest = file_sha256(path)
    memo.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(memo) as temporary:
        Path(temporary).write_text(digest)
    return digest


def _known_hash(path: Path, cache: Path) -> str:
    """`_content_hash` of a file that was read before. Raises LookupError for another one."""
    memo = _memo(path, cache)
    if not memo.is_file():
        raise LookupError(f"{path}: not read yet")
    return memo.read_text()


def _memo(path: Path, cache: Path) -> Path:
    """The file in which the hash of a file is remembered."""
    stat = Path(path).stat()
    stamp = f"{Path(path).resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return Path(cache) / "hashes" / hashlib.sha256(stamp.encode()).hexdigest()


def array_hash(array: np.ndarray) -> str:
    """sha256 of shape and values of a (D, H, W) array, whatever its order in memory. It copies a plane at a time."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for k in range(array.shape[2]):
        digest.update(np.ascontiguousarray(array[:, :, k].T).data)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------- preprocessing

def _preprocess(dataset: Dataset, case: CaseFiles, preprocessing: Preprocessing, folder: Path) -> None:
    """RAS+, 1.5 mm, cropped to the body (Section 4.1.2). The folder appears complete or not at all."""
    ct, spacing = read_ct(case.image), preprocessing.spacing_mm
    image, affine = resample(ct.array, ct.affine, spacing, antialias=preprocessing.antialias)
    image = np.clip(np.rint(image), AIR_HU, MOST_HU).astype(np.int16)
    content = array_hash(image)
    bits, names, voxels, ignored = _labels_on_grid(dataset, case, ct, image.shape, spacing)
    outside = ct.outside_on(image, affine)
    body = body_mask(image, voxel_size_mm(affine), outside)
    box = bounding_box(body | (bits != 0), margin=MARGIN) or tuple(slice(0, n) for n in image.shape)
    if outside is not None and preprocessing.pad == "edge":          # as the network will see it in inference
        shown = continued(image, outside, body, spacing)
        ignored, image = ignored | outside & (shown != image), shown
    image, bits, ignored = (np.ascontiguousarray(array[box]) for array in (image, bits, ignored))
    sweep(folder.parent, {folder.name})        # what a killed process left of this case; it holds whole volumes
    temporary = temporary_beside(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    centres = _patch_centres(bits, names)
    set_bit(bits, len(names), ignored)
    for name, array in {"image": image, "bits": bits, **centres}.items():
        np.save(temporary / f"{name}.npy", array)
    (temporary / "meta.json").write_text(json.dumps(
        {"names": names, "ignored": bool(ignored.any()), "voxels": voxels, "content": content,
         "image": str(case.image), "shape": image.shape, "spacing_mm": spacing, "warnings": ct.warnings}))
    if _meta(folder) is None:                  # the remains of a damaged folder would be in the way
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(temporary, folder)
    except OSError:                            # another process was first; its folder holds the same
        shutil.rmtree(temporary, ignore_errors=True)


def _labels_on_grid(dataset: Dataset, case: CaseFiles, ct: Volume, shape: tuple[int, ...],
                    spacing_mm: Sequence[float]) -> tuple[np.ndarray, list[str], dict[str, int], np.ndarray]:
    """Bits (D, H, W) of the case's masks on the model's grid, the class of each bit, {class: voxels}, and the mask of
    the ignored voxels.

    Raises DataError where the labels do not lie where the image shows their organs.
    """
    names = list(dataset.annotated_in(case))
    bits = np.zeros(shape, bit_dtype(len(names) + 1))
    voxels, placement, unjudged = {}, Placement(ct), list[np.ndarray]()
    for name, mask in case_masks(dataset, case, ct, ignored=unjudged):
        placement.add(name, mask)
        coarse = resample_mask(mask, ct.affine, spacing_mm)
        voxels[name] = int(coarse.sum())
        bits[coarse] |= bits.dtype.type(1 << names.index(name))
    if problem := placement.problem():
        raise DataError(f"{case.label}: {problem}")
    for name in set(names) - set(voxels):      # nothing tells whether the class is absent: it is not annotated here
        bits, names = drop_bit(bits, names.index(name)), [n for n in names if n != name]
    ignored = np.zeros(shape, bool)
    for mask in unjudged:
        ignored |= resample_mask(mask, ct.affine, spacing_mm)
    if ignored.any():                          # a voxel of the new grid that is both is ignored
        bits[ignored] = 0
        voxels = {name: int(np.count_nonzero(get_bit(bits, names.index(name)))) for name in voxels}
    return bits, names, voxels, ignored


def _patch_centres(bits: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """{name of the array: flat indices into `bits`} of voxels that patches may be centred on."""
    rng = np.random.default_rng(0)             # the same voxels are kept whenever a case is preprocessed
    centres = {"foreground": _some(np.flatnonzero(bits), FOREGROUND_KEPT, rng)}
    for k in range(len(names)):
        in_class = np.flatnonzero(bits >> bits.dtype.type(k) & bits.dtype.type(1))
        centres[f"voxels_{k}"] = _some(in_class, CLASS_VOXELS_KEPT, rng)
    centres["lesions"] = _lesions(bits, names, rng)
    return centres


def _some(indices: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of the flat voxel indices, sorted, int64."""
    if len(indices) > most:
        indices = np.sort(rng.choice(indices, most, replace=False))
    return indices.astype(np.int64)


def _lesions(bits: np.ndarray, names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Flat indices of some voxels of each lesion, (lesions, LESION_VOXELS_KEPT) int64.

    A lesion is a 26-connected component of a tumour class. A small one has voxels that occur several times.
    """
    drawn = []
    for k, name in enumerate(names):
        if taxonomy.kind_of(name) == taxonomy.TUMOUR:
            labels, _ = ndimage.label(get_bit(bits, k), structure=CONNECTED_26)
            for lesion, box in enumerate(ndimage.find_objects(labels), start=1):
                inside = np.argwhere(labels[box] == lesion) + [s.start for s in box]
                drawn.append(rng.choice(np.ravel_multi_index(inside.T, bits.shape), LESION_VOXELS_KEPT))
    return np.array(drawn, np.int64).reshape(-1, LESION_VOXELS_KEPT)
