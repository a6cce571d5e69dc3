"""What the coarse pass of `uniseg infer --classes` saves, and whether its result is that of the whole body.

    python benchmarks/focus.py CT [CT ...] [--weights FILE] [--classes liver spleen] [--precision float32]

Every CT is segmented for each group of classes: everything; these classes in the whole body (--no-focus); these classes
near the organs that the coarse pass finds. The table has the seconds of `Segmenter.segment`, and of the classes asked
for the least Dice of the last result with the one before it. One process, with no other work beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uniseg
from uniseg.imaging.file_names import case_name
from uniseg.inference.result import Segmentation
from uniseg.metrics import dice


def row(model: uniseg.Segmenter, ct: Path, asked: str, everything: float, precision: str) -> str:
    """One line of the table. everything: seconds of all classes"""
    whole = model.segment(ct, classes=asked, focus=False, precision=precision)
    near = model.segment(ct, classes=asked, precision=precision)
    found = [name for name in near.classes if whole.mask(name).any() or near.mask(name).any()]
    least = f"{min(dice(near.mask(name), whole.mask(name)) for name in found):.4f}" if found else "both empty"
    looked_at = ", ".join(near.stats["settings"]["focused_on"] or ["whole body"])
    return (f"| {case_name(ct.name)} | {asked} | {everything:.1f} | {seconds(whole):.1f} | {seconds(near):.1f} | "
            f"{seconds(whole) / seconds(near):.1f} | {looked_at} | {least} |")


def seconds(result: Segmentation) -> float:
    return float(result.stats["seconds"]["total"])


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", nargs="+", type=Path, metavar="CT")
    parser.add_argument("--weights", type=Path, help="default: the built-in ones")
    parser.add_argument("--classes", nargs="+", default=["liver", "spleen"], help="groups of classes, each asked alone")
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args(argv)
    model = uniseg.load(args.weights)
    print("| CT | classes | all classes, s | these, s | near the organs, s | ratio | looked at | least Dice |")
    print("|--|--|--|--|--|--|--|--|")
    for ct in args.cts:
        everything = seconds(model.segment(ct, precision=args.precision))
        for asked in args.classes:
            print(row(model, ct, asked, everything, args.precision), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
