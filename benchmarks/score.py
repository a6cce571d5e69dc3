"""Dice per class, seconds and peak memory of a checkpoint on labelled CTs, with pictures to look at.

    python benchmarks/score.py DATA_ROOT [--weights W] [--pictures DIR] [--no-postprocess] [--fast]

DATA_ROOT holds folders with a dataset.json (as for training) or plain NIfTI files. Every class is scored, experimental
ones too. Every case runs in a process of its own by the command that a user runs,
`python -m uniseg.infer --experimental`, so seconds and memory are those of the command.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uniseg.datasets.dataset import CaseFiles, Dataset
from uniseg.datasets.find import find_datasets
from uniseg.datasets.masks import case_masks
from uniseg.imaging.volume import Volume, read_ct, read_label_map
from uniseg.metrics import dice
from uniseg.pictures.canvas import write_png
from uniseg.pictures.preview import preview


def infer(ct: Path, folder: Path, args: argparse.Namespace) -> tuple[Path, dict[str, Any], float]:
    """Run the command: (the label map's file, statistics, wall seconds). Masks are in the folder `out` of `folder`."""
    result = folder / "out.nii.gz"
    command = [sys.executable, "-m", "uniseg.infer", str(ct), "-o", str(result), "--masks", "--experimental",
               "--device", args.device]
    command += ["--weights", str(args.weights)] if args.weights else []
    command += ["--no-postprocess"] if args.no_postprocess else []
    command += ["--fast"] if args.fast else []
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    return result, json.loads((folder / "out.json").read_text(encoding="utf-8")), seconds


def print_dice(dataset: Dataset, case: CaseFiles, ct: Volume, masks: Path) -> None:
    """Print the Dice of each class that the case shows.

    masks: folder of the predicted masks, one file per class
    """
    for name, truth in case_masks(dataset, case, ct):
        if truth.any():
            file = masks / f"{name}.nii.gz"
            score = f"{dice(read_label_map(file).array > 0, truth):.3f}" if file.exists() else "not offered"
            print(f"  {name:26s} Dice {score}")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DATA_ROOT", help="folder of datasets or of CTs (.nii.gz)")
    parser.add_argument("--weights", type=Path, help="checkpoint to score (default: the built-in weights)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write a picture of each case here")
    parser.add_argument("--no-postprocess", action="store_true", help="score the masks without post-processing")
    parser.add_argument("--fast", action="store_true", help="one view, and windows that overlap by 0.25 at most")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Segment all cases and print their scores."""
    args = build_parser().parse_args(argv)
    plain = sorted(args.root.glob("*.nii.gz"))
    cases: list[tuple[Dataset | None, CaseFiles]] = \
        [(None, CaseFiles(file.name.split(".")[0], file, None)) for file in plain] or \
        [(dataset, case) for dataset in find_datasets(args.root) for case in dataset.cases]
    print(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, {len(cases)} cases")
    for dataset, case in cases:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            result, stats, seconds = infer(case.image, folder, args)
            ct, label_map = read_ct(case.image), read_label_map(result)
            print(f"\n{case.id}  {'x'.join(map(str, stats['shape']))}, "
                  f"{' x '.join(f'{mm:.2f}' for mm in stats['spacing_mm'])} mm"
                  f"  {seconds:.1f} s, peak {stats['peak_memory_mib']} MiB")
            if dataset is not None:
                print_dice(dataset, case, ct, folder / "out")
            else:
                for name, numbers in stats["classes"].items():
                    print(f"  {name:26s} {numbers['ml']:8.1f} ml")
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                write_png(args.pictures / f"{case.id}.png",
                          preview(ct.array, label_map.array, ct.affine, stats["classes"], case.id, stats["warnings"]))


if __name__ == "__main__":
    main()
