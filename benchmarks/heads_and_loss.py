"""Time and memory of the kernels of Eq. (2) and Eq. (3)-(4), beside the readable form and the most obvious one.

    python benchmarks/heads_and_loss.py [--size 96] [--classes 32] [--labelled 14] [--threads 1] [--repeats 5]

One image, float32, on the CPU, with uniseg installed (`pip install -e .`). `--size 64` takes a third of the time.

kernel    what `heads.class_logits` and `losses.masked_loss` run by default (uniseg/kernels)
readable  the form that heads.py and losses.py show, `plain_class_logits` and `plain_masked_sum` (UNISEG_KERNELS=0)
obvious   heads: the 8-channel feature map is repeated for each class, and three grouped convolutions follow
          loss: the classes are added up one by one, and autograd computes the gradient

The results of all forms of a row are first compared, then the forms are timed in turns (median of the repeats). Peak
memory is measured in one process per form, beyond that of the inputs.
"""

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uniseg import kernels
from uniseg.heads import SIZES, THETA, class_logits, plain_class_logits
from uniseg.losses import masked_loss, plain_masked_sum
from uniseg.machine.memory import keep_freed_memory, peak_memory_bytes


def repeated_class_logits(features: Tensor, theta: Tensor) -> Tensor:
    """Eq. (2) for one image, one group of channels per class.

    features (1, 8, D, H, W), theta (1, K, 153) -> (1, K, D, H, W)
    """
    classes = theta.shape[1]
    w1, w2, w3, b1, b2, b3 = theta[0].split(SIZES, dim=1)
    x = features.repeat(1, classes, 1, 1, 1)                                                    # (1, 8K, D, H, W)
    x = F.relu(F.conv3d(x, w1.reshape(8 * classes, 8, 1, 1, 1), b1.flatten(), groups=classes))  # (1, 8K, D, H, W)
    x = F.relu(F.conv3d(x, w2.reshape(8 * classes, 8, 1, 1, 1), b2.flatten(), groups=classes))  # (1, 8K, D, H, W)
    return F.conv3d(x, w3.reshape(classes, 8, 1, 1, 1), b3.flatten(), groups=classes)           # (1, K, D, H, W)


def readable_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Eq. (4), averaged over the annotated pairs, in the form that losses.py shows."""
    return plain_masked_sum(logits, target, labelled)[0] / labelled.sum()


def looped_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Eq. (4), averaged over the annotated pairs: Dice loss and cross-entropy of one class after the other."""
    total, pairs = logits.new_zeros(()), labelled.nonzero().tolist()
    for b, k in pairs:
        x, t = logits[b, k], target[b, k].to(logits.dtype)
        p = torch.sigmoid(x)
        dice_loss = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        total = total + dice_loss + F.binary_cross_entropy_with_logits(x, t)
    return total / len(pairs)


def head_inputs(args: argparse.Namespace) -> list[Tensor]:
    """A feature map (1, 8, size, size, size) and parameters (1, K, 153)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, args.size, args.size, args.size, generator=generator)
    return [features, 0.3 * torch.randn(1, args.classes, THETA, generator=generator)]


def loss_inputs(args: argparse.Namespace) -> list[Tensor]:
    """Logits and targets (1, K, size, size, size), and which of the K classes are annotated."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, args.classes, args.size, args.size, args.size)
    target = torch.empty(shape, dtype=torch.uint8).random_(0, 20, generator=generator) == 0
    return [torch.randn(shape, generator=generator), target, torch.arange(args.classes)[None] < args.labelled]


def heads_forward(function: Callable[..., Tensor], features: Tensor, theta: Tensor) -> list[Tensor]:
    """The logits."""
    with torch.inference_mode():
        return [function(features, theta)]


def heads_both(function: Callable[..., Tensor], features: Tensor, theta: Tensor) -> list[Tensor]:
    """The logits, and the gradients of features and theta."""
    logits = function(features.requires_grad_(), theta.requires_grad_())
    weight = torch.ones_like(logits) / logits[0, 0].numel()
    return [logits.detach(), *torch.autograd.grad(logits, (features, theta), weight)]


def loss_both(function: Callable[..., Tensor], logits: Tensor, target: Tensor, labelled: Tensor) -> list[Tensor]:
    """The loss, and the gradient of the logits."""
    loss = function(logits.requires_grad_(), target, labelled)
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


Form = Callable[..., Tensor]
HEADS: dict[str, Form] = {"obvious": repeated_class_logits, "readable": plain_class_logits, "kernel": class_logits}
LOSS: dict[str, Form] = {"obvious": looped_loss, "readable": readable_loss, "kernel": masked_loss}
# name: (inputs, what is measured, {form: function})
ROWS: dict[str, tuple[Callable[[argparse.Namespace], list[Tensor]], Callable[..., list[Tensor]], dict[str, Form]]] = {
    "heads, forward": (head_inputs, heads_forward, HEADS),
    "heads, forward + backward": (head_inputs, heads_both, HEADS),
    "loss, forward + backward": (loss_inputs, loss_both, LOSS),
}


def relative_difference(results: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest over the outputs of max |a - b| / max |b|."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(results, others))


def time_row(row: str, args: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """{form: (median seconds, median CPU seconds, how far its results differ from the kernel's)}."""
    make_inputs, measure, forms = ROWS[row]
    inputs = make_inputs(args)
    expected = measure(forms["kernel"], *inputs)
    differences = {form: relative_difference(measure(function, *inputs), expected)         # and a warm-up
                   for form, function in forms.items()}
    seconds: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    for _ in range(args.repeats):
        for form, function in forms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            measure(function, *inputs)
            seconds[form].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {form: (statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times),
                   differences[form]) for form, times in seconds.items()}


def peak_of(row: str, form: str, args: argparse.Namespace) -> float:
    """MiB that one run needs beyond its inputs; run in a process of its own."""
    make_inputs, measure, forms = ROWS[row]
    inputs = make_inputs(args)
    before = peak_memory_bytes()
    measure(forms[form], *inputs)
    return (peak_memory_bytes() - before) / 2 ** 20


def machine(args: argparse.Namespace) -> str:
    """One line: date, processor, threads, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return (f"{datetime.date.today()}, {processor}, {args.threads} thread(s), {platform.system()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis (default %(default)s; quick: 64)")
    parser.add_argument("--classes", type=int, default=32, help="classes of the model (default %(default)s)")
    parser.add_argument("--labelled", type=int, default=14, help="annotated classes of the case (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each form (default %(default)s)")
    parser.add_argument("--keep-freed-memory", action="store_true",
                        help="keep freed memory for reuse, as the commands do (machine/memory.py)")
    parser.add_argument("--peak-of", nargs=2, metavar=("ROW", "FORM"), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table in Markdown."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if not kernels.ENABLED:
        raise SystemExit("UNISEG_KERNELS=0 is set: the kernels would not run. Unset it.")
    if args.keep_freed_memory:
        keep_freed_memory()
    if args.peak_of:
        row, form = args.peak_of
        print(peak_of(row, form, args))
        return
    print(f"{machine(args)}\n1 image of {args.size}^3, {args.classes} classes, {args.labelled} annotated, "
          f"median of {args.repeats}{', keep_freed_memory' if args.keep_freed_memory else ''}\n")
    print("| | form | s | CPU s | peak MiB | time (CPU) beside the kernel's | memory beside the kernel's "
          "| largest difference |\n" + "|--" * 8 + "|")
    for row, (_, _, forms) in ROWS.items():
        peak = {form: float(subprocess.run([sys.executable, __file__, *argv, "--peak-of", row, form],
                                           check=True, capture_output=True, text=True).stdout) for form in forms}
        times = time_row(row, args)
        for form, (wall, cpu, difference) in times.items():
            ratios = "| | |" if form == "kernel" else (
                f"| {wall / times['kernel'][0]:.1f} ({cpu / times['kernel'][1]:.1f}) x "
                f"| {peak[form] / peak['kernel']:.1f} x | {difference:.0e}")
            print(f"| {row} | {form} | {wall:.3f} | {cpu:.3f} | {peak[form]:.0f} {ratios} |", flush=True)


if __name__ == "__main__":
    main()
