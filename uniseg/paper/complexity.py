"""What the networks cost: parameters, multiply-adds, memory of a patch, and what one more class adds (Fig. 3, Fig. 7, Section 5.4).

    python -m uniseg complexity                         all backbones, 32 classes, 96^3
    python -m uniseg complexity --backbone unet --patch 64 64 64 --classes 20 --width 16

Nothing is typed in by hand but what the paper prints: the networks are built on PyTorch's meta device, which has shapes but
no numbers, and hooks count while a patch goes through. A multiply-add (MAC) is one product and one sum, two FLOPs. Counted
are convolutions, linear layers and the matrix products of attention and class heads; left out are norms, activations,
softmax and interpolation. Many papers print MACs under the name of FLOPs.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..backbones import BACKBONES
from ..backbones.build import PAPER_WIDTH
from ..backbones.swin_unetr import WindowAttention
from ..heads import LPGS, SIZES, THETA
from ..machine.console import Parser, error_line, say
from ..model import build

# Part of the network by the start of a module's name; the first that fits.
PARTS = (("backbone.swinViT", "transformer"), ("backbone.encoder", "encoder convolutions"), ("backbone.down_", "encoder"),
         ("backbone.convInit", "encoder"), ("backbone.decoder", "decoder"), ("backbone.up_", "decoder"),
         ("GAP", "pooling (GAP)"), ("precls_conv", "reduction to 8 channels"), ("lpg", "LPG, Eq. (1)"))
HEADS = "class heads, Eq. (2)"
PAPER_PARAMETERS = {"swin_unetr": "62.19 M", "unet": "19.08 M", "segresnet": "4.7 M"}      # Fig. 3
PAPER_DECODER, PAPER_NEW_CLASS = 466.08e9, 9.44e-4 * 1e9                                    # Section 5.4, FLOPs


@dataclass
class Cost:
    """Of one part of a network, for one patch."""

    parameters: int = 0
    macs: int = 0              # multiply-adds
    bias_adds: int = 0

    @property
    def flops(self):
        return 2 * self.macs + self.bias_adds


def part_of(name):
    """Part of the network that a module or parameter of this name belongs to."""
    return next(part for start, part in PARTS if name.startswith(start))


def macs_of(module, inputs, output):
    """(multiply-adds, additions of biases) of one call of a convolution, a linear layer or a window attention's two products."""
    if isinstance(module, nn.ConvTranspose3d):
        macs = inputs[0].numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    elif isinstance(module, nn.Conv3d):
        macs = output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    elif isinstance(module, nn.Linear):
        macs = output.numel() * module.in_features
    else:                                                # q k^T and its product with v: n x n x C each, in every window
        windows, n, channels = inputs[0].shape
        return 2 * windows * n * n * channels, 0
    return macs, output.numel() if module.bias is not None else 0


def meta_network(backbone, lpg="independent", classes=32, width=0, text_width=512):
    """The network without numbers. Raises ValueError for a width the backbone cannot have."""
    with torch.device("meta"):
        return build({"classes": [f"class {i}" for i in range(classes)], "backbone": backbone, "width": width, "lpg": lpg,
                      "text_width": text_width})


def count(network, patch=(96, 96, 96)):
    """{part: Cost} of one patch (1, 1, D, H, W) going through the network, which may be on the meta device."""
    costs = defaultdict(Cost)
    for name, parameter in network.named_parameters():
        costs[part_of(name)].parameters += parameter.numel()

    def hook(name):
        def add(module, inputs, output):
            macs, biases = macs_of(module, inputs, output)
            costs[part_of(name)].macs += macs
            costs[part_of(name)].bias_adds += biases
        return add

    counted = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear, WindowAttention)
    hooks = [m.register_forward_hook(hook(name)) for name, m in network.named_modules() if isinstance(m, counted)]
    try:
        with torch.no_grad():
            logits = network(torch.empty(1, 1, *patch, device=next(network.parameters()).device))
    finally:
        for handle in hooks:
            handle.remove()
    costs[HEADS].macs = logits.numel() * sum(SIZES[:3])               # 64 + 64 + 8 products a voxel and class
    costs[HEADS].bias_adds = logits.numel() * sum(SIZES[3:])
    return {part: costs[part] for part in dict.fromkeys([p for _, p in PARTS] + [HEADS]) if part in costs}


def total(costs):
    return Cost(*(sum(getattr(c, field) for c in costs.values()) for field in ("parameters", "macs", "bias_adds")))


def activation_bytes(network, patch=(96, 96, 96), batch=1):
    """Bytes that autograd keeps for the backward pass of one step, parameters aside; each storage once."""
    parameters = {id(p) for p in network.parameters()}
    kept = {}                                                         # the tensors are held, so that no storage is used twice

    def keep(tensor):
        if id(tensor) not in parameters:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.empty(batch, 1, *patch, device=next(network.parameters()).device))
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    del logits
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def measure(backbone, patch, classes, width=0, text_width=512):
    """All figures of one backbone as a plain dict."""
    forms = {lpg: count(meta_network(backbone, lpg, classes, width, text_width), patch) for lpg in LPGS}
    parts = forms["independent"]
    parameters = total(parts).parameters
    one_more = meta_network(backbone, "independent", 1, width, text_width).lpg
    return {"backbone": backbone, "width": width or PAPER_WIDTH[backbone],
            "parts": {lpg: {part: {**asdict(c), "flops": c.flops} for part, c in costs.items()} for lpg, costs in forms.items()},
            "backbone_parameters": sum(p.numel() for p in meta_network(backbone, width=width).backbone.parameters()),
            "new_class": {"parameters": sum(p.numel() for p in one_more.parameters()),
                          "flops": parts["LPG, Eq. (1)"].flops // classes,
                          "head_flops": parts[HEADS].flops // classes},
            "memory_bytes": {"activations": activation_bytes(meta_network(backbone, "independent", classes, width, text_width),
                                                             patch),
                             "weights_gradients_adamw": 4 * 4 * parameters}}


def print_parts(figures):
    say(f"\n{figures['backbone']}, width {figures['width']}")
    say(f"  {'':26}{'parameters':>24}{'G multiply-adds':>18}{'GFLOPs':>12}")
    for lpg, parts in figures["parts"].items():
        rows = parts if lpg == "independent" else {p: c for p, c in parts.items() if "LPG" in p}
        for part, c in rows.items():
            label = f"{part}, {lpg}" if "LPG" in part else part
            say(f"  {label:30}{c['parameters']:>20,}{c['macs'] / 1e9:>18.4g}{c['flops'] / 1e9:>12.4g}")
    for lpg, parts in figures["parts"].items():
        sums = {key: sum(c[key] for c in parts.values()) for key in ("parameters", "macs", "flops")}
        say(f"  {'whole, ' + lpg:30}{sums['parameters']:>20,}{sums['macs'] / 1e9:>18.4g}{sums['flops'] / 1e9:>12.4g}")
    memory = figures["memory_bytes"]
    say(f"  one patch in training: {memory['activations'] / 2**30:.2f} GiB of activations in float32, beside "
        f"{memory['weights_gradients_adamw'] / 2**30:.2f} GiB of weights, gradients and AdamW's two moments;\n"
        f"  two patches: {(2 * memory['activations'] + memory['weights_gradients_adamw']) / 2**30:.1f} GiB"
        + (" (the authors fit two into 24 GB)" if (figures["backbone"], figures["width"]) == ("swin_unetr", 48) else ""))


def print_fig_3(all_figures):
    say("\nFig. 3, parameters of the backbones (each original has an output layer of its own, which the heads replace)")
    say(f"  {'':14}{'here':>14}{'with output layer':>20}{'paper':>10}")
    for f in all_figures:
        name, width = f["backbone"], f["width"]
        # 32 classes; SegResNet-Tiny: a group norm and 2 classes, the library's default.
        output = {"swin_unetr": 32 * width + 32, "unet": 32 * width + 32, "segresnet": 2 * width + 2 * width + 2}[name]
        printed = PAPER_PARAMETERS[name] if width == PAPER_WIDTH[name] else ""
        say(f"  {name:14}{f['backbone_parameters']:>14,}{f['backbone_parameters'] + output:>20,}{printed:>10}")


def print_fig_7(f, classes, patch):
    parts = f["parts"]["independent"]
    one = sum(c["flops"] for c in parts.values())
    backbone = sum(c["flops"] for p, c in parts.items() if p in ("transformer", "encoder convolutions", "encoder", "decoder"))
    say(f"\nFig. 7, one universal model or six dataset-specific ones, {f['backbone']}, {' x '.join(map(str, patch))}")
    say(f"  six backbones {6 * backbone / 1e9:.1f} GFLOPs, one with {classes} class heads {one / 1e9:.1f}: "
        f"{6 * backbone / one:.2f} times less. The paper's \"over 6 times\" compares with other groups' networks.")


def print_section_5_4(f, text_width, patch, classes):
    decoder, new = f["parts"]["independent"]["decoder"], f["new_class"]
    at_paper = f["backbone"] == "swin_unetr" and f["width"] == 48 and tuple(patch) == (96, 96, 96)
    say(f"\nSection 5.4, what one more class costs, {f['backbone']}")
    say(f"  its MLP in the LPG: {new['parameters']:,} parameters, {new['flops']:,} FLOPs"
        + (f"; paper: {PAPER_NEW_CLASS:,.0f}, the same to its three digits" if text_width == 512 else "; paper: 944,000 at 512"))
    say(f"  its head on the patch, which the paper leaves out: {new['head_flops'] / 1e9:.3f} GFLOPs, no parameters of its own "
        f"(theta has {THETA} numbers)")
    say(f"  instead, a decoder of its own: {decoder['flops'] / 1e9:.1f} GFLOPs ({decoder['macs'] / 1e9:.1f} G multiply-adds)")
    if at_paper:
        encoders = f["parts"]["independent"]["encoder convolutions"]
        both = decoder["flops"] + encoders["flops"]
        say(f"  The paper prints {PAPER_DECODER / 1e9:.2f} GFLOPs for the decoder. decoder1 to decoder5 have "
            f"{decoder['flops'] / 1e9:.2f}; with the convolutions\n  between transformer and decoder (encoder1 to encoder10) it is "
            f"{both / 1e9:.2f}. Neither is the paper's count; it does not say what was counted.")
    grown = [(k, sum(c["flops"] for c in f["parts"]["independent"].values()) + (k - classes) * (new["flops"] + new["head_flops"]))
             for k in (1, 32, 38, 117)]
    alone = sum(c["flops"] for c in f["parts"]["independent"].values()) - decoder["flops"]
    say("  classes, GFLOPs here, GFLOPs with a decoder each: "
        + "; ".join(f"{k}, {g / 1e9:.0f}, {(alone + k * decoder['flops']) / 1e9:.0f}" for k, g in grown))


def main(argv=None):
    """Returns the exit code: 0, or 2 for sizes that no network takes."""
    parser = Parser(prog="python -m uniseg complexity", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", choices=list(BACKBONES), action="append", help="default: all")
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), metavar=("D", "H", "W"), help="voxels")
    parser.add_argument("--classes", type=int, default=32, help="class heads")
    parser.add_argument("--text-width", type=int, default=512, help="numbers in a text embedding; CLIP's 512")
    parser.add_argument("--width", type=int, default=0, help="first-level channels; 0: the paper's 48, 64, 16")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    try:
        if min(args.classes, args.text_width) < 1:
            raise ValueError("--classes and --text-width: at least 1.")
        found = [measure(b, tuple(args.patch), args.classes, args.width, args.text_width) for b in args.backbone or BACKBONES]
    except ValueError as error:
        error_line(error)
        return 2
    if args.json:
        say(json.dumps({"patch": list(args.patch), "classes": args.classes, "text_width": args.text_width,
                        "networks": found}, indent=1))
        return 0
    say(f"One patch of {' x '.join(map(str, args.patch))}, {args.classes} classes, text embeddings of {args.text_width} numbers.")
    for figures in found:
        print_parts(figures)
    print_fig_3(found)
    print_fig_7(found[0], args.classes, args.patch)
    print_section_5_4(found[0], args.text_width, args.patch, args.classes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
