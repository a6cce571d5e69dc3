"""Speed and memory of whole pieces of work, beside what people use: networks, training, a CT, data, scores, growth.

    pip install monai einops && python benchmarks/speed.py        all rows, an hour and a half on two cores
    python benchmarks/speed.py --only window --minutes 4          some rows, the rest another time

The peer is MONAI with the obvious heads and loss (peers.py). Every turn of a side runs in a process of its own, the
sides one after the other, and the table has the medians. Finished turns are kept in --out, so that the command goes on
where it stopped. Without MONAI only uniseg is measured.

    MONAI           float32, everything as its documentation has it
    MONAI, tuned    bf16 autocast, and the C library keeps freed memory as in uniseg's commands (machine/memory.py)
    uniseg float32, uniseg bf16   what the commands run with --precision or --amp

Seconds are wall seconds of one call after the imports; in brackets CPU seconds of all threads; the memory is the peak
(VmHWM) of the whole process; the factor is the first column's time by this one's. "disturbed": other processes used
more than 0.15 of a core meanwhile. Results: docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import growth
import inputs
import peers
import torch
import works
from measuring import Results, Row, Side, Work, machine, measure, run_rows, table, today

from uniseg import evaluate
from uniseg.data import PatchDataset
from uniseg.datasets.cases import Case, prepare
from uniseg.datasets.dataset import Dataset
from uniseg.datasets.find import find_datasets
from uniseg.datasets.preparing import prepare_each
from uniseg.heads import THETA, class_logits, plain_class_logits
from uniseg.losses import masked_loss, plain_masked_sum, unpack_bits
from uniseg.machine.device import PRECISIONS, autocast
from uniseg.machine.processes import Process
from uniseg.taxonomy import NAMES
from uniseg.training.recipe import TrainConfig
from uniseg.training.validation import validate


def sides(peer: Callable[..., Work], ours: Callable[..., Work], **more: int) -> dict[str, Side]:
    """The four columns: peer(args, precision) and ours(args, precision) prepare the work."""
    return {"MONAI": Side(lambda args: peer(args, "float32"), peer=True, keep_memory=False, **more),
            "MONAI, tuned": Side(lambda args: peer(args, "bf16"), peer=True, **more),
            "uniseg float32": Side(lambda args: ours(args, "float32"), **more),
            "uniseg bf16": Side(lambda args: ours(args, "bf16"), **more)}


# ------------------------------------------------------------------------------------------------ networks, a CT

def window_row(title: str, backbone: str) -> Row:
    """One window of 96^3 through network and 32 heads."""
    def ours(args: argparse.Namespace, precision: str) -> Work:
        return works.forward(args, works.model_of(args, backbone), precision)

    def peer(args: argparse.Namespace, precision: str) -> Work:
        return works.forward(args, works.model_of(args, backbone, True), precision)

    return Row(f"{title}: window", sides(peer, ours, calls=2, warm_ups=1),
               gflops=lambda args: works.gflops(args, backbone))


def step_row(title: str, backbone: str) -> Row:
    """A training step on one patch of 96^3, 14 of 32 classes annotated."""
    return Row(f"{title}: training step, {works.LABELLED} of 32 classes", turns=1, sides=sides(
        lambda args, precision: works.peer_step(args, backbone, precision),
        lambda args, precision: works.our_step(args, backbone, precision), calls=1, warm_ups=1))


def ct_row(title: str, backbone: str) -> Row:
    """A CT from file to label map, 32 classes at 1.5 mm."""
    return Row(f"{title}: CT of 512x512x119, file to label map", turns=1, sides=sides(
        lambda args, precision: works.peer_ct(args, backbone, precision),
        lambda args, precision: works.our_ct(args, backbone, precision)))


# ------------------------------------------------------------------------------------------------ data and scores

def datasets_of(args: argparse.Namespace) -> list[Dataset]:
    """Two datasets of a CT each."""
    return find_datasets(args.data_root or inputs.made(args.work / "data", inputs.make_datasets, args.coarse_shape))


def files_of(datasets: Sequence[Dataset]) -> list[dict[str, str]]:
    """The same as MONAI wants them."""
    return [{"image": str(case.image), "label": str(case.label)} for one in datasets for case in one.cases]


def cases_of(args: argparse.Namespace, datasets: Sequence[Dataset], cache: str = "cache") -> list[Case]:
    """The cases in uniseg's cache."""
    pre = TrainConfig(patch_size=args.window).preprocessing
    return [prepare(one, case, pre, args.work / cache) for one in datasets for case in one.cases]


def our_patches(args: argparse.Namespace, config: TrainConfig, samples: int) -> Iterator[dict[str, Any]]:
    """Endless batches from uniseg's cache."""
    numbers = (range(first, first + samples) for first in itertools.count(0, samples))
    patches = PatchDataset(cases_of(args, datasets_of(args)), args.classes, config)
    return iter(torch.utils.data.DataLoader(patches, batch_sampler=numbers))


def peer_target(label: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (B, K, D, H, W) from MONAI's label maps (B, 1, D, H, W), and (B, K), what is annotated."""
    annotated = torch.arange(classes)[None] < len(inputs.ORGANS)
    target = torch.cat([(label == k + 1).float() for k in range(classes)], dim=1)
    return target, annotated.expand(len(label), -1)


def training_row(samples: int = 2) -> Row:
    """From patches in the cache to the optimiser, two patches a step."""
    def ours(args: argparse.Namespace, precision: str) -> Work:
        learner, config = works.learner_of(args, "segresnet", precision)
        batches = our_patches(args, config, samples)
        return lambda: works.one_step(learner, config, next(batches))

    def peer(args: argparse.Namespace, precision: str) -> Work:
        (model, optimizer), size = works.peer_of(args, "segresnet"), args.window
        data = peers.patches_data(files_of(datasets_of(args)), cached=True, patch=size)
        batches = peers.patches(data, samples, patch=size)

        def work() -> None:
            batch = next(batches)
            target, annotated = peer_target(batch["label"], len(args.classes))
            peers.one_step(model, optimizer, batch["image"], target, annotated, precision)
        return work

    return Row("SegResNet: training from the cache, a patch", sides(peer, ours, calls=2, warm_ups=1), units=samples)


def validation_row() -> Row:
    """A case of 144^3 voxels on the network's grid: eight windows, and the Dice of 13 classes."""
    def block(args: argparse.Namespace) -> list[Dataset]:
        return find_datasets(inputs.made(args.work / "block", inputs.make_block, args.window[-1] * 3 // 2))

    def ours(args: argparse.Namespace, precision: str) -> Work:
        learner, config = works.learner_of(args, "segresnet", precision)
        cases = cases_of(args, block(args))
        return lambda: validate(learner.network, cases, config, Process(0, 1, args.device))

    def peer(args: argparse.Namespace, precision: str) -> Work:
        from monai.metrics import compute_dice

        model, window = works.model_of(args, "segresnet", True).eval(), args.window
        case = peers.patches_data(files_of(block(args)), cached=True, patch=window)._cache[0]
        image, label = (case[key].as_tensor()[None] for key in ("image", "label"))
        target, annotated = peer_target(label, len(args.classes))

        def work() -> None:
            with torch.inference_mode(), autocast(args.device, precision):
                logits = peers.windows(image, model, window)
            predicted = torch.sigmoid(logits.float()) > 0.5
            compute_dice(predicted[annotated][None], target[annotated][None])
        return work

    return Row("SegResNet: validation, a case of 8 windows", sides(peer, ours))


def preparing_row() -> Row:
    """Datasets made ready for training, a case."""
    def ours(args: argparse.Namespace, processes: int) -> Work:
        cases = [(one, case) for one in datasets_of(args) for case in one.cases]

        def work() -> None:
            shutil.rmtree(args.work / "fresh", ignore_errors=True)
            pre = TrainConfig(patch_size=args.window).preprocessing
            for _, error in prepare_each(cases, pre, args.work / "fresh", processes):
                assert error is None, error
        return work

    def peer(args: argparse.Namespace) -> Work:
        files = files_of(datasets_of(args))
        return lambda: peers.patches_data(files, cached=True, patch=args.window)

    return Row("preparing a training case of 512x512x200", turns=3, units=2, sides={
        "MONAI": Side(peer, peer=True, keep_memory=False), "uniseg": Side(lambda args: ours(args, 1)),
        "uniseg, two processes": Side(lambda args: ours(args, 2))})


def scoring_row() -> Row:
    """Dice, NSD and HD95 of a case."""
    def readings(args: argparse.Namespace) -> Path:
        return inputs.made(args.work / "readings", inputs.make_readings, args.coarse_shape)

    def ours(args: argparse.Namespace) -> Work:
        folder = readings(args)
        command = ["--pred", str(folder / "pred"), "--ref", str(folder / "ref"), "--out", str(args.work / "scores"),
                   "--overwrite", "--quiet"]
        return lambda: evaluate.main(command)

    def peer(args: argparse.Namespace) -> Work:
        folder = readings(args)
        files = folder / "pred" / "case.nii.gz", folder / "ref" / "case.nii.gz"
        return lambda: peers.scores(*files, values=range(1, len(NAMES) + 1))

    return Row("scoring a case of 512x512x200, Dice, NSD and HD95", turns=2, sides={
        "MONAI": Side(peer, peer=True, keep_memory=False), "uniseg": Side(ours)})


def patches_row(draws: int = 20) -> Row:
    """Training patches from prepared cases, batches of two."""
    def ours(args: argparse.Namespace) -> Work:
        batches = our_patches(args, TrainConfig(patch_size=args.window), 2)
        return lambda: [next(batches) for _ in range(draws // 2)]

    def peer(args: argparse.Namespace, tuned: bool) -> Work:
        size = args.window
        data = peers.patches_data(files_of(datasets_of(args)), cached=True, tuned=tuned, patch=size)
        batches = peers.patches(data, 2, tuned, size)
        return lambda: [next(batches) for _ in range(draws // 2)]

    return Row("drawing a training patch", turns=3, units=draws, sides={
        "MONAI CacheDataset": Side(lambda args: peer(args, False), 5, 1, peer=True),
        "the same, tuned beyond the released code": Side(lambda args: peer(args, True), 5, 1, peer=True),
        "uniseg": Side(ours, 5, 1)})


# ------------------------------------------------------------------------------------------------ heads, loss, the peak

def kernel_rows() -> Iterator[Row]:
    """Heads and loss of one patch: the obvious form, the readable one (UNISEG_KERNELS=0), and the kernel."""
    forms = {"obvious": peers.repeated_class_logits, "readable": plain_class_logits, "kernel": class_logits}
    losses = {"obvious": peers.looped_loss, "readable": _readable_loss, "kernel": masked_loss}

    def heads(args: argparse.Namespace, form: Callable[..., Any], backward: bool) -> Work:
        features, theta = torch.randn(1, 8, *args.window), 0.3 * torch.randn(1, len(args.classes), THETA)
        gradient = torch.full((1, len(args.classes), *args.window), 1e-6)

        def work() -> None:
            if not backward:
                with torch.inference_mode():
                    form(features, theta)
                return
            form(features.requires_grad_(), theta.requires_grad_()).backward(gradient)
            features.grad = theta.grad = None
        return work

    def loss(args: argparse.Namespace, form: Callable[..., Any]) -> Work:
        batch = works.random_batch(args)
        target = unpack_bits(batch["bits"], len(args.classes))
        logits = torch.randn(1, len(args.classes), *args.window)

        def work() -> None:
            form(logits.requires_grad_(), target, batch["labelled"]).backward()
            logits.grad = None
        return work

    for name, backward in (("forward", False), ("forward and backward", True)):
        yield Row(f"class heads, {name}", turns=2, sides={
            who: Side(lambda args, form=form, backward=backward: heads(args, form, backward), 3, 1)
            for who, form in forms.items()})
    yield Row(f"masked loss, {works.LABELLED} of 32 classes, forward and backward", turns=2, sides={
        who: Side(lambda args, form=form: loss(args, form), 3, 1) for who, form in losses.items()})


def sure_row() -> Row:
    """Heads of one patch with gradients from 1 down to 1e-45, as where a trained network is sure of most voxels.

    Values below 1.2e-38 stay what they are, or are 0 as in uniseg.train.
    """
    def heads(args: argparse.Namespace, denormals: bool) -> Work:
        torch.set_flush_denormal(not denormals)                # before torch starts threads, which inherit it
        features, theta = torch.randn(1, 8, *args.window), 0.3 * torch.randn(1, len(args.classes), THETA)
        gradient = 10 ** (-45 * torch.rand(1, len(args.classes), *args.window))

        def work() -> None:
            class_logits(features.requires_grad_(), theta.requires_grad_()).backward(gradient)
        return work

    return Row("class heads, forward and backward, tiny gradients", turns=2, sides={
        name: Side(lambda args, denormals=name == DENORMALS: heads(args, denormals), 3, 1)
        for name in (DENORMALS, "uniseg")})


def _readable_loss(logits: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    return plain_masked_sum(logits, target, labelled)[0] / labelled.sum()


DENORMALS = "denormals kept"
PRODUCT, CHANNELS, GRID = 2048, 64, 48                     # rows of the matrices; of the convolution


def peak_rows() -> Iterator[Row]:
    """The processor's measured peak: a product of two matrices, a 3x3x3 convolution."""
    def product(precision: str) -> Work:
        a, b = (torch.randn(PRODUCT, PRODUCT, dtype=PRECISIONS[precision] or torch.float32) for _ in range(2))
        return lambda: a @ b

    def convolution(precision: str) -> Work:
        dtype = PRECISIONS[precision] or torch.float32
        layer = torch.nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, bias=False, dtype=dtype)
        x = torch.randn(1, CHANNELS, *(GRID,) * 3, dtype=dtype).to(memory_format=torch.channels_last_3d)
        return lambda: torch.inference_mode()(layer)(x)

    for name, gflop, make in ((f"product of two matrices of {PRODUCT}^2", 2e-9 * PRODUCT ** 3, product),
                              (f"3x3x3 convolution of {CHANNELS} channels, which lie last, on {GRID}^3",
                               2e-9 * 27 * CHANNELS ** 2 * GRID ** 3, convolution)):
        yield Row(name, gflops=lambda _, gflop=gflop: gflop, compared=False, sides={
            precision: Side(lambda args, make=make, precision=precision: make(precision), 20, 5)
            for precision in ("float32", "bf16")})


def share_lines(rows: Sequence[Row], results: Results, args: argparse.Namespace) -> Iterator[str]:
    """The roofline: what share of the measured peak each window reaches, float32 beside float32, bf16 beside bf16.

    Operations are those of the layers one by one; where a fast form has fewer products, the share can exceed 100 %.
    """
    peaks = list(peak_rows())
    rates = {precision: max((row.gflops(args) / spent.seconds for row in peaks
                             if (spent := results.median(row.name, precision))), default=0.0)
             for precision in ("float32", "bf16")}
    if not all(rates.values()):
        return
    yield (f"Peak, the faster of {' and '.join(row.name for row in peaks)}: float32 {rates['float32']:.0f} GFLOP/s, "
           f"bf16 {rates['bf16']:.0f} GFLOP/s.\n")
    yield "| share of the peak | GFLOP | MONAI | MONAI, tuned | uniseg float32 | uniseg bf16 |\n" + "|--" * 6 + "|"
    for row in rows:
        if row.gflops is None or row.name in [peak.name for peak in peaks]:
            continue
        cells = []
        for side in row.sides:
            rate = rates["bf16" if side in ("MONAI, tuned", "uniseg bf16") else "float32"]
            spent = results.median(row.name, side)
            cells.append(f"{100 * row.gflops(args) / spent.seconds / rate:.0f} %" if spent else "not measured")
        yield f"| {row.name} | {row.gflops(args):.0f} | {' | '.join(cells)} |"


# ------------------------------------------------------------------------------------------------ the command

ROWS = [*peak_rows(), *(window_row(*backbone) for backbone in works.BACKBONES.items()),
        step_row("Swin UNETR", "swin_unetr"), training_row(), validation_row(), ct_row("SegResNet", "segresnet"),
        preparing_row(), scoring_row(), patches_row(), *kernel_rows(), sure_row(), *growth.rows()]


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/speed"), help="folder of inputs and results (default %(default)s)")
    add("--only", nargs="+", default=[""], metavar="TEXT", help="only the rows whose name contains one of these")
    add("--minutes", type=float, default=1e9, help="begin no turn after so many minutes")
    add("--again", action="store_true", help="measure again where other processes used more than 0.15 of a core")
    add("--threads", type=int, default=2, help="of torch (default %(default)s)")
    add("--ct", type=Path, help="CT for the row from file to label map (default: a synthetic one)")
    add("--data-root", type=Path, help="datasets for preparing and drawing (default: two synthetic ones)")
    add("--tiny", action="store_true", help="small networks and files: whether it runs, not how fast")
    add("--turn", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or one turn for --turn, and print the tables. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(argv)
    vars(args).update(works.TINY if args.tiny else works.FULL, work=args.out / "work", device=torch.device("cpu"))
    torch.set_num_threads(args.threads)
    if args.turn:
        row, side = args.turn
        print(json.dumps(measure(next(one for one in ROWS if one.name == row).sides[side], args)))
        return 0
    if not peers.available():
        print("speed.py: MONAI is not installed, only uniseg is measured. pip install monai einops", file=sys.stderr)
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        results = Results(args.out / "results.json", f"{machine()}{', tiny' if args.tiny else ''}")
    except ValueError as error:
        print(f"speed.py: error: {error}", file=sys.stderr)
        return 2
    rows = [row._replace(turns=1) if args.tiny else row for row in ROWS
            if any(text.lower() in row.name.lower() for text in args.only)]
    for row, side in ((row.name, side) for row in rows for side in row.sides if args.again):
        results.forget_disturbed(row, side)
    run_rows(rows, results, [sys.executable, __file__, *argv, "--turn"], time.monotonic() + 60 * args.minutes,
             peers.available())
    print(f"{today()}, {results.content['machine']}\n")
    print("\n".join([*table(rows, results), "", *share_lines(rows, results, args)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
