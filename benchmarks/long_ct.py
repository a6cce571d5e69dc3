"""Peak memory and seconds of `python -m uniseg.infer` on a CT of full clinical length, 512 x 512 x 600 voxels.

    python benchmarks/long_ct.py                     the built-in weights
    python benchmarks/long_ct.py --all-classes       a U-Net with untrained weights, all 32 classes, 1.5 mm, 96^3
    windows

The CT is two synthetic abdomens of `--demo` stacked along z, with voxels of 0.78 x 0.78 x 1.0 mm. Untrained weights are
the worst case for memory, as their masks fill the whole body. The memory is the peak (VmHWM) of the command's process.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from uniseg import checkpoint, taxonomy
from uniseg.embeddings import class_embeddings
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import write_volume
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom

SPACING_MM, SHAPE = (0.78, 0.78, 1.0), (512, 512, 600)


def long_ct(path: Path) -> None:
    """Write the CT: two stacked phantoms, cut or padded with air to SHAPE."""
    hu, _, affine = make_phantom(spacing_mm=(3.0, 3.0, 3.0))
    fine, affine = resample(np.concatenate([hu, hu], axis=2), affine, SPACING_MM)
    ct = np.full(SHAPE, -1000, np.int16, order="F")
    size = [min(a, b) for a, b in zip(fine.shape, SHAPE)]
    start = [(whole - part) // 2 for whole, part in zip(SHAPE, size)]
    ct[tuple(slice(a, a + part) for a, part in zip(start, size))] = np.rint(fine[tuple(map(slice, size))])
    write_volume(path, ct, affine)


def untrained(path: Path, width: int) -> None:
    """Write a checkpoint of a U-Net with random weights and all classes."""
    torch.manual_seed(0)
    embedding = torch.from_numpy(class_embeddings(taxonomy.NAMES))
    config = ModelConfig(taxonomy.NAMES, "unet", width, lpg_hidden=32, text_width=embedding.shape[1])
    checkpoint.save(path, UniversalModel(config, embedding), Preprocessing())


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the CT and print memory and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all-classes", action="store_true",
                        help="all 32 classes with untrained weights, instead of the built-in weights")
    parser.add_argument("--width", type=int, default=8, help="width of the untrained U-Net (default %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        long_ct(folder / "long.nii.gz")
        command = [sys.executable, "-m", "uniseg.infer", str(folder / "long.nii.gz")]
        if args.all_classes:
            untrained(folder / "untrained.pt", args.width)
            command += ["--weights", str(folder / "untrained.pt")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stats = json.loads((folder / "long_seg.json").read_text())
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {len(stats['classes'])} classes, "
          f"{'x'.join(map(str, stats['shape']))} voxels, model grid {stats['preprocessing']['spacing_mm'][0]} mm")
    print(f"peak {stats['peak_memory_mib'] / 1024:.2f} GiB; seconds {stats['seconds']}")


if __name__ == "__main__":
    main()
