"""Copies of the labelled CTs, with labels that mean what the synthetic CTs' mean.

Beyond the paper. FEMORA calls "head of femur" what is the whole upper femur. In its copy the head is cut out of the
bone as tools.synthetic cuts it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tools.synthetic import with_heads
from uniseg.imaging.volume import read_label_map, write_volume

FEMORA = "CCTH"


def copy_dataset(source: Path, target: Path) -> None:
    """Copy a dataset; the copy appears complete or not at all."""
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=shutil.copyfile)
    if source.name == FEMORA:
        for path in sorted((temporary / "labelsTr").glob("*.nii.gz")):
            cut_heads(path, json.loads((temporary / "dataset.json").read_text(encoding="utf-8"))["labels"])
    temporary.rename(target)


def cut_heads(path: Path, labels: Mapping[str, str]) -> None:
    """Leave the heads alone of what a label map calls heads of femur. labels: {value: name} of its dataset.json"""
    value = {side: int(number) for number, name in labels.items() for side in ("left", "right")
             if name.casefold().replace("_", " ") == f"{side} head of femur"}
    volume = read_label_map(path)
    cut, ids = with_heads(volume.array, volume.affine, {number: f"femur_{side}" for side, number in value.items()})
    array = volume.array.copy()
    for side, number in value.items():
        array[array == number] = 0
        array[cut == ids[f"femur_head_{side}"]] = number
    write_volume(path, array, volume.affine)
