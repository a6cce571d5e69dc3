"""Dice per class, seconds and peak memory of a checkpoint on labelled CTs, with pictures to look at.

    python benchmarks/score.py DATA_ROOT [--weights W] [--pictures DIR] [--no-postprocess]

DATA_ROOT holds folders with a dataset.json (as for training) or plain NIfTI files. Every class is
scored, experimental ones too. Every case runs in a process of its own, through the same command a user runs, so that seconds
and memory are those of `python -m uniseg.infer --experimental`.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from uniseg import taxonomy
from uniseg.datasets.dataset import CaseFiles
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import read_ct, read_label_map
from uniseg.metrics import dice
from uniseg.pictures.canvas import write_png
from uniseg.pictures.slices import overlay


def infer(ct, folder, args):
    """Run the command; returns the CT's predicted volume with overlaps {class: mask}, its stats and the wall seconds."""
    result = folder / "out.nii.gz"
    command = [sys.executable, "-m", "uniseg.infer", str(ct), "-o", str(result), "--masks", "--experimental",
               "--device", args.device]
    command += ["--weights", str(args.weights)] if args.weights else []
    command += ["--no-postprocess"] if args.no_postprocess else []
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    return result, json.loads((folder / "out.json").read_text()), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--no-postprocess", action="store_true")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    plain = sorted(args.root.glob("*.nii.gz"))
    cases = [(None, CaseFiles(f.name.split(".")[0], f, None)) for f in plain] or \
        [(d, c) for d in find_datasets(args.root) for c in d.cases]
    print(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, {len(cases)} cases")
    for dataset, files in cases:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            result, stats, seconds = infer(files.image, folder, args)
            ct, label_map = read_ct(files.image), read_label_map(result)
            print(f"\n{files.id}  {'x'.join(map(str, stats['shape']))}, {' x '.join(f'{s:.2f}' for s in stats['spacing_mm'])} mm"
                  f"  {seconds:.1f} s, peak {stats['peak_memory_mib']} MiB")
            if dataset is not None:
                for name, truth in case_masks(dataset, files, ct):
                    file = folder / "out" / f"{name}.nii.gz"
                    if not truth.any():
                        continue
                    score = f"{dice(read_label_map(file).array > 0, truth):.3f}" if file.exists() else "not offered"
                    print(f"  {name:26s} Dice {score}")
            else:
                for name, found in stats["classes"].items():
                    print(f"  {name:26s} {found['ml']:8.1f} ml")
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                big = [c.index for c in taxonomy.CLASSES if c.name in ("liver", "spleen", "right_kidney", "left_kidney")]
                spots = np.argwhere(np.isin(label_map.array[::4, ::4, ::4], big)) * 4
                at = spots.mean(axis=0).astype(int) if len(spots) else None
                write_png(args.pictures / f"{files.id}.png", overlay(ct.array, label_map.array, ct.affine, at))


if __name__ == "__main__":
    main()
