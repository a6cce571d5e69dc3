"""The inputs of the measurements: synthetic CTs, datasets, label maps and untrained weights, made once and kept.

Each is made in a process of its own, so that making it does not count in the peak memory of what is measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniseg import checkpoint
from uniseg.embeddings import class_embeddings
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import write_volume
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom
from uniseg.taxonomy import NAMES, resolve

COARSE_MM, FINER = (3.12, 3.12, 3.2), (4, 4, 2)          # a phantom is drawn on coarse voxels, then resampled
ORGANS = ("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava",
          "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland")
SHOWN = {"Organs": ORGANS, "LiverTumours": ("liver", "liver tumor")}


def made(path: Path, make: Callable[..., None], *inputs: Any) -> Path:
    """The path, after make(temporary path, *inputs) in another process where it does not exist yet."""
    if not path.exists():
        temporary = path.with_name(f"making.{os.getpid()}.{path.name}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(target=make, args=(temporary, *inputs))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{path}: could not be made.")
        temporary.rename(path)
    return path


# ------------------------------------------------------------------------------------------------ CTs

def make_ct(path: Path, shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """A CT of this size: phantoms stacked along z, cut or padded with air in the middle."""
    hu, _, affine = make_phantom(spacing_mm=(3.0, 3.0, 3.0))
    copies = int(np.ceil(shape[2] * spacing_mm[2] / (3.0 * hu.shape[2])))
    fine, affine = resample(np.concatenate([hu] * copies, axis=2), affine, spacing_mm)
    ct = np.full(shape, -1000, np.int16, order="F")
    size = [min(a, b) for a, b in zip(fine.shape, shape)]
    into, out_of = ([(whole - part) // 2 for whole, part in zip(one, size)] for one in (shape, fine.shape))
    ct[tuple(slice(a, a + n) for a, n in zip(into, size))] = np.rint(
        fine[tuple(slice(a, a + n) for a, n in zip(out_of, size))])
    write_volume(path, ct, affine)


def make_folder_of_cts(folder: Path, count: int, shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    """A folder with `count` copies of one CT."""
    folder.mkdir()
    make_ct(folder / "ct000.nii.gz", shape, spacing_mm)
    for i in range(1, count):
        shutil.copy(folder / "ct000.nii.gz", folder / f"ct{i:03}.nii.gz")


# ------------------------------------------------------------------------------------------------ datasets

def make_datasets(root: Path, coarse_shape: Sequence[int]) -> None:
    """Two datasets of one CT each, one with 13 organs, one with liver and liver tumours.

    (128, 128, 100) coarse voxels make CTs of 512 x 512 x 200 voxels of 0.78 x 0.78 x 1.6 mm.
    """
    for seed, (name, shown) in enumerate(SHOWN.items()):
        hu, masks, affine = make_phantom(COARSE_MM, seed, shape=coarse_shape)
        labels = np.zeros(hu.shape, np.uint8)
        for value, label in enumerate(shown, 1):
            labels[masks[resolve(label)[0]]] = value
        for axis, times in enumerate(FINER):
            labels = np.repeat(labels, times, axis)
        hu, affine = resample(hu, affine, np.divide(COARSE_MM, FINER))
        hu += 12 * np.random.default_rng(seed).standard_normal(hu.shape, np.float32)     # files as large as real ones
        write_case(root / name, shown, np.rint(hu).astype(np.int16), labels, affine)


def make_block(root: Path, size: int) -> None:
    """One dataset with one case: a cube of the phantom on the network's grid of 1.5 mm, 13 organs annotated."""
    hu, masks, affine = make_phantom((1.5, 1.5, 1.5), shape=(size,) * 3)
    labels = np.zeros(hu.shape, np.uint8)
    for value, label in enumerate(ORGANS, 1):
        labels[masks[resolve(label)[0]]] = value
    write_case(root / "Block", ORGANS, hu, labels, affine)


def write_case(folder: Path, shown: Sequence[str], hu: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> None:
    """A dataset of one case in the Medical Segmentation Decathlon's form."""
    for part, array in (("imagesTr", hu), ("labelsTr", labels)):
        (folder / part).mkdir(parents=True)
        write_volume(folder / part / "case.nii.gz", array, affine)
    (folder / "dataset.json").write_text(json.dumps({
        "labels": {"0": "background", **{str(value): label for value, label in enumerate(shown, 1)}},
        "training": [{"image": "./imagesTr/case.nii.gz", "label": "./labelsTr/case.nii.gz"}]}))


def make_readings(folder: Path, coarse_shape: Sequence[int]) -> None:
    """Label maps numbered as in Table 2: ref/case.nii.gz is the phantom, pred/case.nii.gz is moved by two voxels."""
    _, masks, affine = make_phantom(COARSE_MM, shape=coarse_shape)
    labels = np.zeros(coarse_shape, np.uint8)
    for value, name in enumerate(NAMES, 1):
        if name in masks:
            labels[masks[name]] = value
    for axis, times in enumerate(FINER):
        labels = np.repeat(labels, times, axis)
    affine = affine @ np.diag([*np.divide(1.0, FINER), 1.0])
    for part, array in (("ref", labels), ("pred", np.roll(labels, 2, axis=0))):
        (folder / part).mkdir(parents=True)
        write_volume(folder / part / "case.nii.gz", np.asfortranarray(array), affine)


# ------------------------------------------------------------------------------------------------ networks

def untrained(backbone: str, width: int = 0, classes: int = len(NAMES)) -> UniversalModel:
    """A UniversalModel with random weights. Beyond the 32 of Table 2 the classes have made-up names and embeddings.

    width 0: the paper's
    """
    torch.manual_seed(0)
    names = [*NAMES, *(f"class_{k}" for k in range(len(NAMES) + 1, classes + 1))][:classes]
    embedding = torch.from_numpy(class_embeddings(names[:len(NAMES)]))
    made_up = torch.randn(classes - len(embedding), embedding.shape[1]) / embedding.shape[1] ** 0.5
    config = ModelConfig(tuple(names), backbone, width, text_width=embedding.shape[1])
    return UniversalModel(config, torch.cat([embedding, made_up]))


def make_weights(path: Path, backbone: str, width: int, classes: int, window: Sequence[int]) -> None:
    """A checkpoint of `untrained`, at 1.5 mm. Its masks fill the body, the worst case for memory and refinement."""
    pre = Preprocessing(window=tuple(window))
    checkpoint.save(path, untrained(backbone, width, classes), pre)
