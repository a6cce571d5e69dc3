"""On one GPU, in less than ten minutes: windows, a training step and a whole CT beside MONAI, and where the time goes.

    python benchmarks/gpu.py                              uniseg beside MONAI, where MONAI is installed
    python benchmarks/gpu.py --monai FOLDER               MONAI in a folder (`pip install --no-deps -t FOLDER monai`)
    python benchmarks/gpu.py --device cpu --tiny          the same on a CPU with small networks: whether it runs

It needs no network, and of packages only those of uniseg. Every part is printed as soon as it is measured; after
--minutes no further one begins, and a part that fails says so in one line. The peer and its settings are those of
speed.py: MONAI with the obvious heads and loss (peers.py).

    float32   products and convolutions without TF32
    TF32      what uniseg's commands do in float32 on a GPU (machine/device.py, with_tensor_cores); the peer likewise
    bf16      autocast; `compiled`: the backbone through torch.compile besides

Milliseconds are medians, from the call until the GPU has finished. The memory is the most that PyTorch's tensors took.
The share is of the peak that the product of two large matrices reaches on this card in that precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import peers
import torch
import works
from measuring import Work, machine, today

from uniseg import sliding_window
from uniseg.heads import HEAD_CHANNELS, THETA, class_logits
from uniseg.losses import masked_loss, unpack_bits
from uniseg.machine.device import PRECISIONS, autocast, choose_device, with_tensor_cores

KINDS = ("float32", "TF32", "bf16")
WHO = ("MONAI", "uniseg")
AT_ONCE = (1, 2, 4, 8)
SAMPLES = 2                          # patches of a training step
Peaks = dict[str, float]             # {kind: operations per second}
Lines = Iterator[str]


def precision_of(kind: str) -> str:
    """What autocast is given for a kind of arithmetic; TF32 is switched on or off for the process."""
    tf32 = kind != "float32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return "bf16" if kind == "bf16" else "float32"


def wait(device: torch.device) -> None:
    """Until the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Work, args: argparse.Namespace, repeats: int = 5, warm_ups: int = 2) -> tuple[float, float]:
    """(seconds, median of the repeats; GiB at most)."""
    device = args.device
    if args.tiny:
        repeats, warm_ups = 1, 0
    for _ in range(warm_ups):
        work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        spent.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return statistics.median(spent), memory / 2 ** 30


def sides(kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, str]]:
    """(who, kind): both sides in turn; without MONAI only uniseg."""
    return ((who, kind) for kind in kinds for who in WHO if who == "uniseg" or peers.available())


# ------------------------------------------------------------------------------------------------ the parts

def peak_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """The peak of the card, which the other parts are compared with, and how fast memory is copied."""
    size = 256 if args.tiny else 8192
    yield from ("| product of two matrices | ms | TFLOP/s |", "|--" * 3 + "|")
    for kind in KINDS:
        dtype = PRECISIONS[precision_of(kind)] or torch.float32
        a, b = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
        seconds, _ = measure(lambda: a @ b, args)
        peaks[kind] = 2 * size ** 3 / seconds
        yield f"| {size}^2, {kind} | {1e3 * seconds:.2f} | {peaks[kind] / 1e12:.1f} |"
    logits = torch.empty(len(args.classes), *args.window)
    yield from ("", f"| a window's logits, {logits.nbytes / 2 ** 20:.0f} MiB | ms | GB/s |", "|--" * 3 + "|")
    on_card = logits.to(args.device)
    copies: dict[str, Work] = {"to the card": lambda: logits.to(args.device), "from the card": lambda: on_card.cpu()}
    if args.device.type == "cuda":
        pinned = logits.pin_memory()
        copies |= {"to the card, pinned": lambda: pinned.to(args.device, non_blocking=True),
                   "from the card, pinned": lambda: pinned.copy_(on_card, non_blocking=True)}
    for name, copy in copies.items():
        seconds, _ = measure(copy, args)
        yield f"| {name} | {1e3 * seconds:.2f} | {logits.nbytes / seconds / 1e9:.1f} |"


def window_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """One window of 96^3 through each network and 32 heads."""
    yield from ("| window | | | ms | GiB | share of the peak |", "|--" * 6 + "|")
    for title, backbone in works.BACKBONES.items():
        for who, kind in sides():
            work = works.forward(args, works.model_of(args, backbone, who == "MONAI"), precision_of(kind))
            yield _window_line(f"{title} | {who} | {kind}", work, works.gflops(args, backbone), peaks[kind], args)


def _window_line(name: str, work: Work, gflops: float, peak: float, args: argparse.Namespace, at_once: int = 1) -> str:
    seconds, memory = measure(work, args)
    share = 100 * 1e9 * gflops * at_once / seconds / peak
    return f"| {name} | {1e3 * seconds / at_once:.1f} | {memory:.2f} | {share:.0f} % |"


def at_once_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """Several windows at once, in bf16: what a batch brings."""
    yield from ("| windows at once, bf16 | | ms a window | GiB | share of the peak |", "|--" * 5 + "|")
    for title, backbone in works.BACKBONES.items():
        model = works.model_of(args, backbone)
        for at_once in AT_ONCE:
            work = works.forward(args, model, precision_of("bf16"), at_once)
            yield _window_line(f"{title} | {at_once}", work, works.gflops(args, backbone), peaks["bf16"], args, at_once)


def part_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """Where the time of a training step goes: Swin UNETR, heads of 32 classes, loss of 14 of them."""
    yield from (f"| part of a step, {SAMPLES} patches | | forward, ms | forward and backward, ms | GiB |",
                "|--" * 5 + "|")
    for kind in KINDS:
        precision = precision_of(kind)
        for name, part in _parts(args, precision).items():
            forward, _ = measure(lambda: part(False), args)
            both, memory = measure(lambda: part(True), args)
            yield f"| {name} | {kind} | {1e3 * forward:.1f} | {1e3 * both:.1f} | {memory:.2f} |"


def _parts(args: argparse.Namespace, precision: str) -> dict[str, Callable[[bool], None]]:
    """{part: function that runs it once; its argument says whether backward as well}"""
    size, classes = args.window, len(args.classes)
    backbone = works.model_of(args, "swin_unetr").train().get_submodule("backbone")
    batch = works.random_batch(args, SAMPLES)
    image, labelled = batch["image"].to(args.device), batch["labelled"].to(args.device)
    target = unpack_bits(batch["bits"].to(args.device), classes)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(SAMPLES, *shape, device=args.device).requires_grad_()

    features, theta, logits = leaf(HEAD_CHANNELS, *size), leaf(classes, THETA), leaf(classes, *size)
    gradient = torch.full_like(logits, 1e-6).detach()

    def run_backbone(backward: bool) -> None:
        with torch.set_grad_enabled(backward), autocast(args.device, precision):
            outputs = backbone(image)
        if backward:
            sum(out.float().sum() for out in outputs).backward()

    def run_heads(backward: bool) -> None:
        with torch.set_grad_enabled(backward), autocast(args.device, precision):
            out = class_logits(features, theta)
        if backward:
            out.backward(gradient.to(out.dtype))

    def run_loss(backward: bool) -> None:
        value = masked_loss(logits, target, labelled)
        if backward:
            value.backward()

    return {"backbone": run_backbone, "class heads": run_heads, "masked loss": run_loss}


def step_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """A training step with AdamW, 14 of 32 classes annotated."""
    yield from (f"| training step, {SAMPLES} patches | | | ms | GiB |", "|--" * 5 + "|")
    for title, backbone in works.BACKBONES.items():
        for who, kind in sides(("TF32", "bf16")):
            make = works.peer_step if who == "MONAI" else works.our_step
            seconds, memory = measure(make(args, backbone, precision_of(kind), SAMPLES), args, 3)
            yield f"| {title} | {who} | {kind} | {1e3 * seconds:.1f} | {memory:.2f} |"


def ct_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """A whole CT from file to label map, Swin UNETR, 32 classes at 1.5 mm; also with several windows at once."""
    yield from ("| CT of 512x512x119 | | | s | of these, network | GiB |", "|--" * 6 + "|")
    for who, kind in sides(("TF32", "bf16")):
        make = works.peer_ct if who == "MONAI" else works.our_ct
        seconds, memory = measure(make(args, "swin_unetr", precision_of(kind)), args, 1, warm_ups=0)
        yield f"| Swin UNETR | {who} | {kind} | {seconds:.2f} | {_network(args, who)} | {memory:.2f} |"
    usual = sliding_window.windows_at_once
    try:
        for at_once in AT_ONCE[1:]:
            sliding_window.windows_at_once = lambda window, device, n=at_once: n
            seconds, memory = measure(works.our_ct(args, "swin_unetr", precision_of("bf16")), args, 1, 0)
            network = _network(args, "uniseg")
            yield f"| Swin UNETR | uniseg, {at_once} at once | bf16 | {seconds:.2f} | {network} | {memory:.2f} |"
    finally:
        sliding_window.windows_at_once = usual


def _network(args: argparse.Namespace, who: str) -> str:
    """Seconds of the network, as the JSON of a result says; the peer does not tell."""
    if who == "MONAI":
        return "-"
    return f"{json.loads((args.work / 'seg.json').read_text())['seconds'].get('network', 0):.2f}"


def compiled_lines(args: argparse.Namespace, peaks: Peaks) -> Lines:
    """torch.compile, last because compiling takes its time: one window in bf16, and how long the first call took."""
    yield from ("| window, bf16, compiled | | ms | GiB | share of the peak | compiling, s |", "|--" * 6 + "|")
    for title, backbone in works.BACKBONES.items():
        for who, _ in sides(("bf16",)):
            model = works.model_of(args, backbone, who == "MONAI")
            model.backbone = torch.compile(model.backbone)
            work = works.forward(args, model, precision_of("bf16"))
            start = time.monotonic()
            work()
            wait(args.device)
            compiling = time.monotonic() - start
            line = _window_line(f"{title} | {who}", work, works.gflops(args, backbone), peaks["bf16"], args)
            yield f"{line} {compiling:.0f} |"


PARTS: dict[str, Callable[[argparse.Namespace, Peaks], Lines]] = {
    "peak": peak_lines, "windows": window_lines, "parts of a training step": part_lines,
    "windows at once": at_once_lines, "training steps": step_lines, "a CT": ct_lines, "compiled": compiled_lines}


# ------------------------------------------------------------------------------------------------ the command

def report(args: argparse.Namespace) -> Lines:
    """All parts, line by line, until the minutes are over."""
    until, peaks = time.monotonic() + 60 * args.minutes, dict.fromkeys(KINDS, float("nan"))
    for name, part in PARTS.items():
        if args.only and args.only not in name:
            continue
        yield from ("", f"**{name[0].upper()}{name[1:]}**", "")
        try:
            for line in part(args, peaks):
                yield line
                if time.monotonic() > until:
                    yield "\nThe minutes are over; the rest is not measured."
                    return
        except (RuntimeError, OSError) as error:            # out of memory, no compiler: the other parts go on
            yield f"\nnot measured: {str(error).splitlines()[0][:200]}"
        if args.device.type == "cuda":
            torch.cuda.empty_cache()


def card(device: torch.device) -> str:
    """The card's name and memory."""
    if device.type != "cuda":
        return "no GPU"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2 ** 30:.0f} GiB, CUDA {torch.version.cuda}"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1, cpu (default %(default)s)")
    add("--monai", type=Path, metavar="FOLDER", help="folder that holds the package monai")
    add("--minutes", type=float, default=9.0, help="begin nothing after so many minutes (default %(default)s)")
    add("--only", metavar="TEXT", default="", help=f"only the parts with this in their name: {', '.join(PARTS)}")
    add("--ct", type=Path, help="CT of the row from file to label map (default: a synthetic one)")
    add("--tiny", action="store_true", help="small networks and files: whether it runs, not how fast")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.monai is not None:
        sys.path.insert(0, str(args.monai))
    try:
        args.device = with_tensor_cores(choose_device(args.device))
    except ValueError as error:
        print(f"gpu.py: error: {error}", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    monai = "MONAI beside it" if peers.available() else \
        "MONAI is not installed: uniseg alone (pip install monai einops, or --monai FOLDER)"
    print(f"{today()}, {card(args.device)}, {machine()}, {monai}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        vars(args).update(works.TINY if args.tiny else works.FULL, work=Path(folder))
        for line in report(args):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
