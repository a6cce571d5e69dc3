"""How time and memory grow with slices, classes and files: rows of speed.py.

The network of the long CTs and of many classes is a U-Net of width 8 with untrained weights at 1.5 mm, windows of 96^3,
whose masks fill the body: the worst case for memory. The built-in weights (20 classes, 3 mm) stand beside it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import inputs
import peers
import torch
from measuring import Row, Side, Work

from uniseg import infer

SLICES, CLASSES, FILES = (100, 300, 600, 1200), (1, 4, 16, 32, 64), (1, 10, 50)
SPACING_MM = (0.78, 0.78, 1.0)
NARROW = 8


def command(args: argparse.Namespace, ct: Path, weights: Path | None = None) -> Work:
    """`python -m uniseg.infer` on a CT or a folder, float32."""
    shutil.rmtree(args.work / "results", ignore_errors=True)
    words = [str(ct), "-o", str(args.work / "results"), "--overwrite", "--precision", "float32", "--quiet"]
    if ct.is_file():
        (args.work / "results").mkdir()
        words[2] = str(args.work / "results" / "seg.nii.gz")
    return lambda: infer.main(words + (["--weights", str(weights)] if weights else []))


def weights_of(args: argparse.Namespace, classes: int) -> Path:
    """Untrained weights of a narrow U-Net."""
    return inputs.made(args.work / f"unet-{classes}.pt", inputs.make_weights, "unet", NARROW, classes, args.window)


def long_ct(args: argparse.Namespace, slices: int) -> Path:
    """A CT of so many slices of 1 mm."""
    shape = (*args.ct_shape[:2], round(slices * args.share))
    return inputs.made(args.work / f"slices-{slices}.nii.gz", inputs.make_ct, shape, SPACING_MM)


def rows() -> Iterator[Row]:
    """The rows of all three."""
    for slices in SLICES:
        def built_in(args: argparse.Namespace, slices: int = slices) -> Work:
            return command(args, long_ct(args, slices))

        def untrained(args: argparse.Namespace, slices: int = slices) -> Work:
            return command(args, long_ct(args, slices), weights_of(args, 32))

        yield Row(f"slices: CT of 512x512x{slices}", turns=1, compared=False, sides={
            "built-in weights": Side(built_in), "32 classes at 1.5 mm": Side(untrained)})
    for classes in CLASSES:
        def window(args: argparse.Namespace, peer: bool, classes: int = classes) -> Work:
            model = inputs.untrained("segresnet", args.widths.get("segresnet", 0), classes)
            model, image = (peers.PeerModel.like(model) if peer else model).eval(), torch.rand(1, 1, *args.window)
            return lambda: torch.inference_mode()(model)(image)

        yield Row(f"classes: SegResNet window, {classes}", turns=1, sides={
            "MONAI": Side(lambda args, window=window: window(args, True), 3, 1, keep_memory=False, peer=True),
            "uniseg": Side(lambda args, window=window: window(args, False), 3, 1)})
    for classes in CLASSES:
        def whole(args: argparse.Namespace, classes: int = classes) -> Work:
            return command(args, long_ct(args, 300), weights_of(args, classes))

        yield Row(f"classes: CT of 512x512x300, {classes}", turns=1, sides={"U-Net of width 8 at 1.5 mm": Side(whole)})
    for files in FILES:
        def folder(args: argparse.Namespace, files: int = files) -> Work:
            cts = inputs.made(args.work / f"files-{files}", inputs.make_folder_of_cts,
                              max(1, round(files * args.share)), (96, 96, 80), (3.0, 3.0, 3.0))
            return command(args, cts)

        yield Row(f"files: {files} CTs of 96x96x80", turns=1, sides={"built-in weights": Side(folder)})
