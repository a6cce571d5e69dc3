"""Six dataset-specific models or one universal one on one CT: seconds by the clock. Section 5.4, Fig. 7.

    python benchmarks/six_models.py                                    a phantom, small networks
    python benchmarks/six_models.py --ct ct.nii.gz --width 48 --spacing 1.5 --window 96 --device cuda

The six CT tasks of the Decathlon have nine classes. Dataset-specific: for each task a network of its own, the same
backbone with one output layer and a softmax (baselines.PlainModel), and the CT is segmented six times, as six tools
would. Universal: one network with nine heads, and the CT is segmented once. Weights are random, as they do not change
the time; a low prior keeps the masks empty, so that post-processing takes no time in either. The two turn by turn,
medians over the turns.

The paper's "over 6 times" counts FLOPs and compares with other groups' networks (`python -m uniseg complexity` counts
ours); this is the same claim for one backbone, by the clock.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from uniseg.backbones import BACKBONES
from uniseg.baselines import PlainModel
from uniseg.embeddings import class_embeddings
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume
from uniseg.machine.device import choose_device
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom
from uniseg.segmenter import Segmenter

TASKS = {                                     # the Decathlon's CT tasks: what each labels
    "Task03 liver": ("liver", "liver_tumor"), "Task06 lung": ("lung_tumor",),
    "Task07 pancreas": ("pancreas", "pancreatic_tumor"), "Task08 hepatic vessel": ("hepatic_vessel",
                                                                                   "hepatic_vessel_tumor"),
    "Task09 spleen": ("spleen",), "Task10 colon": ("colon_tumor",),
}
CLASSES = tuple(name for classes in TASKS.values() for name in classes)
PRIOR = 1e-4


def segmenter(classes: Sequence[str], args: argparse.Namespace, universal: bool) -> Segmenter:
    """A Segmenter with random weights: of the universal model, or of a plain network for these classes."""
    torch.manual_seed(0)
    if universal:
        embedding = class_embeddings(classes)
        config = ModelConfig(tuple(classes), args.backbone, args.width, text_width=embedding.shape[1])
        network: UniversalModel | PlainModel = UniversalModel(config, embedding)
    else:
        network = PlainModel(ModelConfig(tuple(classes), args.backbone, args.width, head="softmax"))
    network.set_prior(PRIOR)
    pre = Preprocessing(spacing_mm=(args.spacing,) * 3, window=(args.window,) * 3)
    return Segmenter(network, pre, choose_device(args.device), {"file": "random weights", "sha256": ""})


def measure(ct: Path, args: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """{"six", "one": (all seconds, seconds of the network) of each turn}."""
    models = {"six": [segmenter(classes, args, universal=False) for classes in TASKS.values()],
              "one": [segmenter(CLASSES, args, universal=True)]}
    taken: dict[str, list[tuple[float, float]]] = {"six": [], "one": []}
    for turn in range(args.turns + 1):                                                    # the first one warms up
        for who, segmenters in models.items():
            seconds = [one.segment(ct).stats["seconds"] for one in segmenters]
            if turn:
                taken[who].append((sum(s["total"] for s in seconds), sum(s["network"] for s in seconds)))
    return taken


def lines(taken: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Markdown lines: medians over the turns, least and most in brackets, and how many times six take longer."""
    def shown(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    table = ["| | seconds | of the network |", "|--|--|--|"]
    columns = {who: list(map(list, zip(*turns))) for who, turns in taken.items()}
    for who, title in (("six", "six dataset-specific models"), ("one", "one universal model, nine heads")):
        table.append(f"| {title} | {' | '.join(shown(column) for column in columns[who])} |")
    ratios = [statistics.median(six) / statistics.median(one) for six, one in zip(columns["six"], columns["one"])]
    return [*table, f"| six take longer by | {ratios[0]:.2f} | {ratios[1]:.2f} |"]


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ct", type=Path, help="NIfTI file in HU (default: a phantom of --spacing)")
    add("--backbone", choices=tuple(BACKBONES), default="swin_unetr", help="default: %(default)s")
    add("--width", type=int, default=12, help="channels at the first level; the paper's Swin UNETR: 48 (default 12)")
    add("--spacing", type=float, default=6.0, help="mm of the network's grid; the paper's: 1.5 (default %(default)s)")
    add("--window", type=int, default=64, help="voxels along each axis; the paper's: 96 (default %(default)s)")
    add("--turns", type=int, default=3, help="measurements of each (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: a GPU if there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        ct = args.ct
        if ct is None:
            hu, _, affine = make_phantom((args.spacing,) * 3)
            ct = Path(folder) / "phantom.nii.gz"
            write_volume(ct, hu, affine)
        taken = measure(ct, args)
    print(f"{ct.name}, {args.backbone} of width {args.width}, {args.spacing:g} mm, windows of {args.window}^3, "
          f"{choose_device(args.device)}, {torch.get_num_threads()} threads, {platform.processor() or 'processor'}\n")
    print("\n".join(lines(taken)))


if __name__ == "__main__":
    main()
