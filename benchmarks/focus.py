"""What the coarse pass of `uniseg infer --classes` saves, and whether its result is that of the whole body.

    python benchmarks/focus.py CT [CT ...] [--weights FILE] [--classes liver spleen] [--precision float32]

Without --weights the built-in network is put on a grid twice as fine, 1.5 mm: a window of 96^3 voxels is averaged to
48^3, and the logits are interpolated back. So it sees 144 mm at a time, as networks at 1.5 mm do, at an eighth of their
cost. With a network of the full cost, what is saved is a larger share.

Every CT is segmented in the whole body for all classes named (--no-focus), and then for each group of them near the
organs that the coarse pass finds. The table has the seconds of `Segmenter.segment`, and the least Dice of the group's
classes with the run over the whole body. One process, with no other work beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

import uniseg
from uniseg.imaging.file_names import case_name
from uniseg.inference.result import Segmentation
from uniseg.metrics import dice
from uniseg.model import UniversalModel


class TwiceAsFine(torch.nn.Module):
    """A network of one grid on the grid of half its voxel size."""

    def __init__(self, network: UniversalModel) -> None:
        super().__init__()
        self.network, self.classes, self.config = network, network.classes, network.config

    def forward(self, image: torch.Tensor, only: Sequence[int] | None = None) -> torch.Tensor:
        """(B, 1, D, H, W), even sizes -> logits (B, K, D, H, W)"""
        logits = self.network(F.avg_pool3d(image, 2), only)
        return F.interpolate(logits, scale_factor=2, mode="trilinear")


def built_in_twice_as_fine() -> uniseg.Segmenter:
    """The built-in weights at 1.5 mm, with themselves at 3 mm as the locator."""
    built_in = uniseg.load()
    grid = built_in.preprocessing
    fine = dataclasses.replace(grid, spacing_mm=tuple(mm / 2 for mm in grid.spacing_mm))
    return uniseg.Segmenter(TwiceAsFine(built_in.network), fine, built_in.device, built_in.weights,
                            built_in.experimental, built_in.in_pieces, locator=lambda: built_in)


def row(model: uniseg.Segmenter, ct: Path, asked: str, whole: Segmentation, precision: str) -> str:
    """One line of the table. whole: the result of the whole body"""
    near = model.segment(ct, classes=asked, precision=precision)
    found = [name for name in near.classes if whole.mask(name).any() or near.mask(name).any()]
    least = f"{min(dice(near.mask(name), whole.mask(name)) for name in found):.4f}" if found else "both empty"
    looked_at = ", ".join(near.stats["settings"]["focused_on"] or ["whole body"])
    return (f"| {case_name(ct.name)} | {asked} | {seconds(whole):.1f} | {seconds(near):.1f} | "
            f"{seconds(whole) / seconds(near):.1f} | {looked_at} | {least} |")


def seconds(result: Segmentation) -> float:
    return float(result.stats["seconds"]["total"])


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", nargs="+", type=Path, metavar="CT")
    parser.add_argument("--weights", type=Path, help="default: the built-in ones on a grid twice as fine")
    parser.add_argument("--classes", nargs="+", default=["liver", "spleen"], help="groups of classes, each asked alone")
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args(argv)
    model = uniseg.load(args.weights) if args.weights else built_in_twice_as_fine()
    print("| CT | classes | whole body, s | near the organs, s | ratio | looked at | least Dice |")
    print("|--|--|--|--|--|--|--|")
    for ct in args.cts:
        whole = model.segment(ct, classes=",".join(args.classes), focus=False, precision=args.precision)
        for asked in args.classes:
            print(row(model, ct, asked, whole, args.precision), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
