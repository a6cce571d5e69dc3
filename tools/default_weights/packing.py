"""What travels to a lent machine: label maps, and the real CTs on the model's grid, a few megabytes each.

Beyond the paper. CTs are resampled and cropped as training does it, labels are written as one map. A CT that a training
reads from the pack differs from the original by the rounding of a second, trivial resampling alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from uniseg.datasets.cases import prepare
from uniseg.datasets.find import find_datasets
from uniseg.imaging.bits import get_bit
from uniseg.imaging.file_names import bare
from uniseg.imaging.merging import merge_masks
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import read_ct, write_volume
from uniseg.machine.console import say
from uniseg.machine.files import atomic_write

from .plan import HELD_OUT_MAPS, NO_PSEUDO_CTS, OTHER_PHASES, START, Size

MOST_MIB = 43                      # of the 64 that may travel; the repository and the wheel of nibabel take 20


def pack(data: Path, out: Path, size: Size, start: Path) -> None:
    """Write PACK with labelmaps, train, unlabelled and the checkpoint `start`. Raises ValueError where it is too large
    to travel."""
    for name in ("labelmaps", "train", "unlabelled"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "labelmaps").iterdir()):
        if not path.name.startswith(HELD_OUT_MAPS):
            shutil.copyfile(path, out / "labelmaps" / path.name)
    if start != out / START:
        shutil.copyfile(start, out / START)
    for name in size.finetune.shares:
        pack_dataset(data / "train" / name, out / "train" / name, size.spacing_mm, out / "cache")
    for path in sorted((data / "unlabelled").glob("*.nii.gz")):
        if bare(path.name) in (*NO_PSEUDO_CTS, *OTHER_PHASES):
            continue
        ct = read_ct(path)
        hu, affine = resample(ct.array, ct.affine, (size.spacing_mm,) * 3, antialias=True)
        write_volume(out / "unlabelled" / path.name, np.rint(hu).astype(np.int16), affine)
    shutil.rmtree(out / "cache", ignore_errors=True)
    mib = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2 ** 20
    if mib > MOST_MIB:
        raise ValueError(f"{out}: {mib:.0f} MiB, at most {MOST_MIB} travel. Leave CTs out.")
    say(f"{out}: {mib:.0f} MiB")


def pack_dataset(source: Path, target: Path, spacing_mm: float, cache: Path) -> None:
    """A labelled dataset on the model's grid. Ignored voxels have the label "ignore"."""
    (dataset,) = find_datasets(source)
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True, exist_ok=True)
    files, names = [], dataset.annotated
    for files_of_case in dataset.cases:
        case = prepare(dataset, files_of_case, Preprocessing((spacing_mm,) * 3, antialias=True, pad="edge"), cache)
        if case.names != names:
            raise ValueError(f"{source}: its cases annotate different classes. Give each a dataset of its own.")
        bits, affine = np.asarray(case.bits), np.diag([spacing_mm] * 3 + [1.0])
        labels = merge_masks(names, range(1, len(names) + 1), lambda k, bits=bits: get_bit(bits, k), bits.shape)
        if case.ignored:
            labels[get_bit(bits, len(names))] = len(names) + 1
        file = f"{files_of_case.id}.nii.gz"
        write_volume(target / "imagesTr" / file, np.asarray(case.image), affine)
        write_volume(target / "labelsTr" / file, labels, affine)
        files.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    content = {"name": dataset.name, "labels": {"0": "background", **{str(n): name for n, name in enumerate(names, 1)},
                                                str(len(names) + 1): "ignore"},
               "modality": {"0": "CT"}, "training": files}
    with atomic_write(target / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
