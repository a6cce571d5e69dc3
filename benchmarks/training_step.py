"""Where the time of a training step goes: `python benchmarks/training_step.py [--device cuda] [--patch 96] [--batch 4]`. Beyond the paper.

Milliseconds of the backbone, the class heads and the masked loss of the built-in network's form, forward and forward + backward, on
random images and masks, all classes annotated; the mean of five after one to warm up. On a GPU the backbone also under bf16.
"""

import argparse
import time

import torch
from heads_and_loss import machine

from uniseg import checkpoint
from uniseg.heads import class_logits
from uniseg.losses import masked_loss, unpack_bits
from uniseg.machine.device import choose_device
from uniseg.machine.memory import keep_freed_memory
from uniseg.segmenter import DEFAULT_WEIGHTS


def milliseconds(work, device, repeats=5):
    """Mean over `repeats` calls, after one to warm up; of a GPU, until it has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return 1000 * (time.perf_counter() - start) / repeats


def parts(network, device, patch, batch):
    """{part: function without arguments that does its work}"""
    classes, size = len(network.classes), (patch,) * 3
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=random).to(device).requires_grad_()
    image, features = draw(batch, network.backbone.in_channels, *size).detach(), draw(batch, 8, *size)
    theta, logits, gradient = draw(batch, classes, 153), draw(batch, classes, *size), draw(batch, classes, *size).detach()
    target = unpack_bits(torch.randint(0, 2 ** classes, (batch, *size), generator=random).to(device), classes)
    labelled, weight = torch.ones(batch, classes, dtype=torch.bool, device=device), torch.full((batch, classes), 3.0, device=device)

    def backbone(backward):
        with torch.set_grad_enabled(backward):
            outputs = network.backbone(image)
        if backward:
            sum(out.float().sum() for out in outputs).backward()

    def mixed(backward):
        with torch.autocast(device.type, torch.bfloat16):
            backbone(backward)

    def heads(backward):
        out = class_logits(features, theta)
        if backward:
            out.backward(gradient)

    def loss(backward):
        value = masked_loss(logits, target, labelled, positive_weight=weight, dice_of_absent=False)
        if backward:
            value.backward()
    return {"backbone": backbone, **({"backbone, bf16": mixed} if device.type == "cuda" else {}), "class heads": heads, "masked loss": loss}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--patch", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    device = choose_device(args.device)
    network = checkpoint.load_network(checkpoint.read(DEFAULT_WEIGHTS)).to(device).train()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    print(f"{gpu}{machine(args)}; {len(network.classes)} classes, {args.batch} x {args.patch}^3\n")
    print("| part | forward, ms | forward + backward, ms |\n|--|--|--|")
    for part, work in parts(network, device, args.patch, args.batch).items():
        print(f"| {part} | {milliseconds(lambda: work(False), device):.1f} | {milliseconds(lambda: work(True), device):.1f} |", flush=True)


if __name__ == "__main__":
    main()
