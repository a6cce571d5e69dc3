"""A case, preprocessed and cached on disk as memory-mapped arrays (Sections 3.2.4 and 4.1.2)."""

import functools
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from .. import taxonomy
from ..imaging.bits import bit_dtype, bounding_box, drop_bit, get_bit
from ..imaging.body import body_mask
from ..imaging.components import CONNECTED_26
from ..imaging.resampling import resample, resample_mask
from ..imaging.volume import AIR_HU, read_ct, voxel_size_mm
from ..machine.files import atomic_write
from . import layouts
from .masks import case_masks

FORMAT = 3                        # of the cache; part of its key
FOREGROUND_KEPT = 1 << 20         # voxels remembered a case as possible patch centres
CLASS_VOXELS_KEPT = 1 << 12       # the same for each class
LESION_VOXELS_KEPT = 16           # the same for each lesion


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
    body = body_mask(image, voxel_size_mm(affine))
    box = bounding_box(body | (bits != 0), margin=2) or tuple(slice(0, n) for n in image.shape)
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
            labels, _ = ndimage.label(get_bit(bits, k), structure=CONNECTED_26)
            for lesion, box in enumerate(ndimage.find_objects(labels), start=1):
                inside = np.argwhere(labels[box] == lesion) + [s.start for s in box]
                kept.append(rng.choice(np.ravel_multi_index(inside.T, bits.shape), LESION_VOXELS_KEPT))
    return np.array(kept, np.int64).reshape(-1, LESION_VOXELS_KEPT)
