"""What the coarse pass of `uniseg infer --classes` saves, and whether its result is that of the whole body.

    python benchmarks/focus.py CT [CT ...] [--weights FILE] [--classes liver spleen] [--precision float32]

Without --weights the built-in network is put on a grid twice as fine, 1.5 mm: a window of 96^3 voxels is averaged to
48^3, and the logits are interpolated back. So it sees 144 mm at a time, as networks at 1.5 mm do, but at an eighth of
their cost. With --full-cost the network also runs on the 96^3 voxels, and that result is thrown away: the seconds are
then those of a network that was trained at 1.5 mm.

Every CT is segmented in the whole body for all classes named (--no-focus), and then for each group of them near the
organs that the coarse pass finds. The table has the windows of either run, those of the coarse pass, the seconds of
`Segmenter.segment`, and the least Dice of the group's classes with the run over the whole body. One process, with no
other work beside it.
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

    def __init__(self, network: UniversalModel, full_cost: bool) -> None:
        super().__init__()
        self.network, self.classes, self.config, self.full_cost = network, network.classes, network.config, full_cost

    def forward(self, image: torch.Tensor, only: Sequence[int] | None = None) -> torch.Tensor:
        """(B, 1, D, H, W), even sizes -> logits (B, K, D, H, W)"""
        if self.full_cost:
            self.network.forward(image, only)
        logits = self.network.forward(F.avg_pool3d(image, 2), only)
        return F.interpolate(logits, scale_factor=2, mode="trilinear")


def built_in_twice_as_fine(full_cost: bool) -> uniseg.Segmenter:
    """The built-in weights at 1.5 mm, with themselves at 3 mm as the locator."""
    built_in = uniseg.load()
    grid = built_in.preprocessing
    fine = dataclasses.replace(grid, spacing_mm=tuple(mm / 2 for mm in grid.spacing_mm))
    return uniseg.Segmenter(TwiceAsFine(built_in.network, full_cost), fine, built_in.device, built_in.weights,
                            built_in.experimental, built_in.in_pieces, locator=lambda: built_in)


class Counted:
    """A Segmenter and its locator, whose windows are counted."""

    def __init__(self, model: uniseg.Segmenter) -> None:
        self.model, self.fine, self.coarse = model, 0, 0
        assert model.locator is not None
        locator = model.locator()
        model.locator = lambda: locator
        model.network.register_forward_hook(lambda _, inputs, __: self._add(fine=len(inputs[0])))
        locator.network.register_forward_hook(lambda _, inputs, __: self._add(coarse=len(inputs[0])))

    def _add(self, fine: int = 0, coarse: int = 0) -> None:
        self.fine, self.coarse = self.fine + fine, self.coarse + coarse

    def segment(self, ct: Path, classes: str, focus: bool, precision: str) -> tuple[Segmentation, int, int]:
        """(result, windows of the fine network, windows of the coarse pass)"""
        self.fine = self.coarse = 0
        result = self.model.segment(ct, classes=classes, focus=focus, precision=precision)
        return result, self.fine, self.coarse


def row(model: Counted, ct: Path, asked: str, whole: Segmentation, windows: int, precision: str) -> str:
    """One line of the table. whole: the result of the whole body; windows: its"""
    near, some, coarse = model.segment(ct, asked, True, precision)
    found = [name for name in near.classes if whole.mask(name).any() or near.mask(name).any()]
    least = f"{min(dice(near.mask(name), whole.mask(name)) for name in found):.4f}" if found else "both empty"
    looked_at = ", ".join(near.stats["settings"]["focused_on"] or ["whole body"])
    times = [float(result.stats["seconds"]["total"]) for result in (whole, near)]
    return (f"| {case_name(ct.name)} | {asked} | {looked_at} | {windows} | {some} + {coarse} | {times[0]:.1f} | "
            f"{times[1]:.1f} | {times[0] / times[1]:.1f} | {least} |")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", nargs="+", type=Path, metavar="CT")
    parser.add_argument("--weights", type=Path, help="default: the built-in ones on a grid twice as fine")
    parser.add_argument("--full-cost", action="store_true", help="without --weights: windows at the cost of 96^3")
    parser.add_argument("--classes", nargs="+", default=["liver", "spleen"], help="groups of classes, each asked alone")
    parser.add_argument("--precision", default="float32")
    args = parser.parse_args(argv)
    model = uniseg.load(args.weights) if args.weights else built_in_twice_as_fine(args.full_cost)
    counted = Counted(model)
    print("| CT | classes | looked at | windows, whole body | near + coarse | whole body, s | near, s | ratio | Dice |")
    print("|--|--|--|--|--|--|--|--|--|")
    for ct in args.cts:
        whole, windows, _ = counted.segment(ct, ",".join(args.classes), False, args.precision)
        for asked in args.classes:
            print(row(counted, ct, asked, whole, windows, args.precision), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
