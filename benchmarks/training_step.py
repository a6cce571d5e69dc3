"""Where the time of a training step goes: backbone, class heads, masked loss. Beyond the paper.

    python benchmarks/training_step.py [--device cuda] [--patch 96] [--batch 4]

Prints milliseconds of the three parts of a network of the built-in weights' form, forward alone and forward + backward.
Images and masks are random, and all classes are annotated. A figure is the mean of five calls after one to warm up. On
a GPU the backbone is also timed under bf16.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import torch
from heads_and_loss import machine

from uniseg import checkpoint
from uniseg.heads import class_logits
from uniseg.losses import masked_loss, unpack_bits
from uniseg.machine.device import choose_device
from uniseg.machine.memory import keep_freed_memory
from uniseg.model import UniversalModel
from uniseg.segmenter import DEFAULT_WEIGHTS

REPEATS = 5


def milliseconds(work: Callable[[], None], device: torch.device) -> float:
    """Mean over REPEATS calls after one to warm up; on a GPU, until it has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    wait()
    return 1000 * (time.perf_counter() - start) / REPEATS


def parts(network: UniversalModel, device: torch.device, patch: int,
          batch: int) -> dict[str, Callable[[bool], None]]:
    """{part: function that runs it once; its argument says whether backward as well}"""
    classes, size = len(network.classes), (patch,) * 3
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device).requires_grad_()

    image, features = draw(batch, network.backbone.in_channels, *size).detach(), draw(batch, 8, *size)
    theta, logits = draw(batch, classes, 153), draw(batch, classes, *size)
    gradient = draw(batch, classes, *size).detach()
    target = unpack_bits(torch.randint(0, 2 ** classes, (batch, *size), generator=random).to(device), classes)
    labelled = torch.ones(batch, classes, dtype=torch.bool, device=device)
    weight = torch.full((batch, classes), 3.0, device=device)

    def backbone(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            outputs = network.backbone(image)
        if backward:
            sum(out.float().sum() for out in outputs).backward()

    def mixed(backward: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            backbone(backward)

    def heads(backward: bool) -> None:
        out = class_logits(features, theta)
        if backward:
            out.backward(gradient)

    def loss(backward: bool) -> None:
        value = masked_loss(logits, target, labelled, positive_weight=weight, dice_of_absent=False)
        if backward:
            value.backward()

    on_gpu = {"backbone, bf16": mixed} if device.type == "cuda" else {}
    return {"backbone": backbone, **on_gpu, "class heads": heads, "masked loss": loss}


def main(argv: Sequence[str] | None = None) -> None:
    """Time the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--patch", type=int, default=96, help="voxels along each axis (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="patches (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(),
                        help="CPU threads (default %(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    device = choose_device(args.device)
    network = checkpoint.load_network(checkpoint.read(DEFAULT_WEIGHTS)).to(device).train()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    print(f"{gpu}{machine(args)}; {len(network.classes)} classes, {args.batch} x {args.patch}^3\n")
    print("| part | forward, ms | forward + backward, ms |\n|--|--|--|")
    for part, work in parts(network, device, args.patch, args.batch).items():
        forward, both = (milliseconds(functools.partial(work, backward), device) for backward in (False, True))
        print(f"| {part} | {forward:.1f} | {both:.1f} |", flush=True)


if __name__ == "__main__":
    main()
