"""What the fast forms of layers on a CPU gain (uniseg/kernels/layers.py): seconds of each layer and of whole backbones.

    python benchmarks/layers.py [--size 96] [--threads 1] [--repeats 3]

Inference on one image of random numbers, with the layers' sizes in the paper's networks at 96^3 voxels. The forms are
run in turns; the figures are the least CPU seconds of the repeats, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from measuring import machine, today
from torch import Tensor

from uniseg import kernels
from uniseg.backbones import BACKBONES
from uniseg.backbones.layers import ImageConv, instance_norm
from uniseg.backbones.swin_unetr import Decoder, attention, shift_mask
from uniseg.backbones.unet import Up
from uniseg.kernels.layers import channels_last
from uniseg.machine.device import autocast
from uniseg.machine.memory import keep_freed_memory

CPU = torch.device("cpu")


Ready = Callable[[Tensor], Tensor]                         # gives a layer's input its number type and layout


def works(size: int) -> Iterator[tuple[str, Callable[[Ready], Callable[[], object]]]]:
    """(name, what makes the work from its inputs) of each layer, then of each backbone."""
    n = size // 2

    def maps(channels: int, side: int) -> Tensor:
        return torch.randn(1, channels, side, side, side)

    one, wide, low, swin_low, skip, swin_skip = (maps(1, size), maps(48, size), maps(128, n), maps(48, n),
                                                 maps(64, size), maps(48, size))
    yield "instance norm, 48 channels", lambda ready: partial(instance_norm, ready(wide))
    conv = ImageConv(1, 48, bias=False).eval()
    yield "first convolution, 1 to 48 channels (always float32)", lambda _: partial(conv, one)
    windows = -(-n // 7)
    q, k, v = torch.randn(3, windows ** 3, 3, 343, 16)
    bias, mask = torch.randn(3, 343, 343), shift_mask((7 * windows,) * 3, (7, 7, 7), (3, 3, 3))
    yield "attention of stage 1", lambda ready: partial(attention, ready(q), ready(k), ready(v), bias, None)
    yield "the same, shifted", lambda ready: partial(attention, ready(q), ready(k), ready(v), bias, mask)
    up, decoder = Up(128, 64).eval(), Decoder(48, 48).eval()
    yield "last level of the U-Net's decoder", lambda ready: partial(up, ready(low), ready(skip))
    yield "last level of Swin UNETR's decoder", lambda ready: partial(decoder, ready(swin_low), ready(swin_skip))
    for name, make in BACKBONES.items():
        yield f"backbone {name}", lambda _, backbone=make().eval(): partial(backbone, one)


def seconds(make: Callable[[Ready], Callable[[], object]], enabled: bool, precision: str) -> float:
    """CPU seconds of one run. Maps come as the layer before makes them: to the fast forms with channels last."""
    kernels.ENABLED = enabled
    kind = torch.bfloat16 if precision == "bf16" else torch.float32

    def ready(x: Tensor) -> Tensor:
        return channels_last(x.to(kind)) if enabled and x.dim() == 5 else x.to(kind)

    with torch.inference_mode(), autocast(CPU, precision):
        work = make(ready)
        start = time.process_time()
        work()
        return time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each form, after one (default %(default)s)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{today()}, {machine()}; CPU seconds\n")
    print("| | float32: readable | fast | bf16: readable | fast |\n|--|--|--|--|--|")
    forms = [(enabled, precision) for precision in ("float32", "bf16") for enabled in (False, True)]
    for name, work in works(args.size):
        runs = [[seconds(work, *form) for form in forms] for _ in range(1 + args.repeats)]
        print(f"| {name} | " + " | ".join(f"{min(of_form):.3f}" for of_form in zip(*runs[1:])) + " |", flush=True)


if __name__ == "__main__":
    main()
