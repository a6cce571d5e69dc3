"""Peak memory and seconds of `python -m uniseg.infer` on a CT of full clinical length, 512 x 512 x 600 voxels.

    python benchmarks/long_ct.py                     the built-in weights
    python benchmarks/long_ct.py --all-classes       a U-Net with untrained weights, all 32 classes, 1.5 mm, 96^3 windows

The CT is the synthetic abdomen of `--demo` stacked head to feet, at 0.78 x 0.78 x 1.0 mm. Untrained weights are the worst case
for memory: their masks fill the whole body. The figure is VmHWM of the command's own process.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
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


def long_ct(path):
    """Write the CT: two phantoms stacked, cut or padded with air to SHAPE."""
    hu, _, affine = make_phantom(spacing_mm=(3.0, 3.0, 3.0))
    fine, affine = resample(np.concatenate([hu, hu], axis=2), affine, SPACING_MM, dtype=np.int16)
    ct = np.full(SHAPE, -1000, np.int16, order="F")
    n = [min(a, b) for a, b in zip(fine.shape, SHAPE)]
    at = [(b - m) // 2 for b, m in zip(SHAPE, n)]
    ct[tuple(slice(a, a + m) for a, m in zip(at, n))] = fine[:n[0], :n[1], :n[2]]
    write_volume(path, ct, affine)


def untrained(path, width):
    torch.manual_seed(0)
    embedding = torch.from_numpy(class_embeddings(taxonomy.NAMES))
    network = UniversalModel(ModelConfig(taxonomy.NAMES, "unet", width, lpg_hidden=32, text_width=embedding.shape[1]), embedding)
    checkpoint.save(path, network, Preprocessing())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all-classes", action="store_true")
    parser.add_argument("--width", type=int, default=8, help="of the untrained U-Net")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
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
