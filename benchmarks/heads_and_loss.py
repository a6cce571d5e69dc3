"""Time and memory of class_logits, Eq. (2), and masked_loss, Eq. (3)-(4), against the obvious ways to write them.

    python benchmarks/heads_and_loss.py [--size 96] [--classes 32] [--labelled 14] [--threads 1] [--repeats 5]

One image, float32, on the CPU, with uniseg installed (`pip install -e .`). Heads: the obvious way repeats the 8-channel
feature map once a class and runs three grouped convolutions. Loss: the obvious way adds up the classes one by one and
leaves the gradient to autograd. Both ways of a row are first checked to agree, then timed in turns (median of the
repeats); peak memory, beyond that of the inputs, is that of a process of its own for each way.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from uniseg.heads import SIZES, THETA, class_logits
from uniseg.losses import masked_loss
from uniseg.machine.memory import keep_freed_memory, peak_memory_bytes


def repeated_class_logits(features, theta):
    """Eq. (2) for one image, a group of channels a class: features (1, 8, D, H, W), theta (1, K, 153) -> (1, K, D, H, W)."""
    classes = theta.shape[1]
    w1, w2, w3, b1, b2, b3 = theta[0].split(SIZES, dim=1)
    x = features.repeat(1, classes, 1, 1, 1)                                                    # (1, 8K, D, H, W)
    x = F.relu(F.conv3d(x, w1.reshape(8 * classes, 8, 1, 1, 1), b1.flatten(), groups=classes))  # (1, 8K, D, H, W)
    x = F.relu(F.conv3d(x, w2.reshape(8 * classes, 8, 1, 1, 1), b2.flatten(), groups=classes))  # (1, 8K, D, H, W)
    return F.conv3d(x, w3.reshape(classes, 8, 1, 1, 1), b3.flatten(), groups=classes)           # (1, K, D, H, W)


def looped_loss(logits, target, labelled):
    """Eq. (4), averaged: Dice loss and cross-entropy of each annotated class in turn, differentiated by autograd."""
    total, pairs = 0.0, labelled.nonzero().tolist()
    for b, k in pairs:
        x, t = logits[b, k], target[b, k].to(logits.dtype)
        p = torch.sigmoid(x)
        dice_loss = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        total = total + dice_loss + F.binary_cross_entropy_with_logits(x, t)
    return total / len(pairs)


def head_inputs(args):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, args.size, args.size, args.size, generator=generator)
    return features, 0.3 * torch.randn(1, args.classes, THETA, generator=generator)


def loss_inputs(args):
    generator = torch.Generator().manual_seed(0)
    shape = (1, args.classes, args.size, args.size, args.size)
    target = torch.empty(shape, dtype=torch.uint8).random_(0, 20, generator=generator) == 0
    return torch.randn(shape, generator=generator), target, torch.arange(args.classes)[None] < args.labelled


def heads_forward(function, features, theta):
    with torch.inference_mode():
        return [function(features, theta)]


def heads_both(function, features, theta):
    logits = function(features.requires_grad_(), theta.requires_grad_())
    return [logits.detach(), *torch.autograd.grad(logits, (features, theta), torch.ones_like(logits) / logits[0, 0].numel())]


def loss_both(function, logits, target, labelled):
    loss = function(logits.requires_grad_(), target, labelled)
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


ROWS = {  # name: (inputs, what is measured, {way: function})
    "heads, forward": (head_inputs, heads_forward, {"repeat": repeated_class_logits, "ours": class_logits}),
    "heads, forward + backward": (head_inputs, heads_both, {"repeat": repeated_class_logits, "ours": class_logits}),
    "loss, forward + backward": (loss_inputs, loss_both, {"loop": looped_loss, "ours": masked_loss}),
}


def relative_difference(results, others):
    """Largest over the outputs of max |a - b| / max |b|."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(results, others))


def time_row(row, args):
    """{way: (median wall seconds, median CPU seconds)} and how far the two ways' results differ."""
    make_inputs, measure, ways = ROWS[row]
    inputs = make_inputs(args)
    difference = relative_difference(*(measure(function, *inputs) for function in ways.values()))  # and a warm-up
    seconds = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, function in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            measure(function, *inputs)
            seconds[way].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {way: tuple(statistics.median(s) for s in zip(*pairs)) for way, pairs in seconds.items()}, difference


def peak_of(row, way, args):
    """MiB that one run needs beyond its inputs; run in a process of its own."""
    make_inputs, measure, ways = ROWS[row]
    inputs = make_inputs(args)
    before = peak_memory_bytes()
    measure(ways[way], *inputs)
    return (peak_memory_bytes() - before) / 2 ** 20


def machine(args):
    """One line: processor, threads, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return (f"{processor}, {args.threads} thread(s), {platform.system()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, numpy {np.__version__}")


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--classes", type=int, default=32)
    parser.add_argument("--labelled", type=int, default=14, help="classes the case's dataset annotates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep-freed-memory", action="store_true", help="runtime.keep_freed_memory for both ways, as in the commands")
    parser.add_argument("--peak-of", nargs=2, metavar=("ROW", "WAY"), help=argparse.SUPPRESS)
    return parser


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_freed_memory:
        keep_freed_memory()
    if args.peak_of:
        print(peak_of(*args.peak_of, args))
        return
    print(f"{machine(args)}\n1 image of {args.size}^3, {args.classes} classes, {args.labelled} annotated, "
          f"median of {args.repeats}{', keep_freed_memory' if args.keep_freed_memory else ''}\n")
    print("| | way | s | CPU s | peak MiB | times faster (CPU) | times less memory | largest difference |\n" + "|--" * 8 + "|")
    for row in ROWS:
        peak = {way: float(subprocess.run([sys.executable, __file__, *argv, "--peak-of", row, way],
                                          check=True, capture_output=True, text=True).stdout) for way in ROWS[row][2]}
        seconds, difference = time_row(row, args)
        obvious = next(iter(seconds))
        for way, (wall, cpu) in seconds.items():
            ratios = "| | | |" if way == obvious else (
                f"| {seconds[obvious][0] / wall:.1f} ({seconds[obvious][1] / cpu:.1f}) | {peak[obvious] / peak[way]:.1f} | {difference:.0e} |")
            print(f"| {row} | {way} | {wall:.3f} | {cpu:.3f} | {peak[way]:.0f} {ratios}", flush=True)


if __name__ == "__main__":
    main()
