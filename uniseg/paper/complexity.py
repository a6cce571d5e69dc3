"""What the networks cost, and what one more class adds (Fig. 3, Fig. 7, Section 5.4).

    python -m uniseg complexity                         all backbones, 32 classes, 96^3
    python -m uniseg complexity --backbone unet --patch 64 64 64 --classes 20 --width 16

The networks are built on PyTorch's meta device, whose tensors have shapes but no values, and PyTorch's FlopCounterMode
counts. A multiply-add (MAC) is one product and one sum, two FLOPs; many papers print MACs and call them FLOPs. Counted
are convolutions, linear layers and the matrix products of attention and class heads, not norms, activations, softmax
and interpolation. PyTorch leaves out the additions of biases, which a hook counts: without them one more class would
not cost the 9.44e-4 GFLOPs of Section 5.4.

Read model.py first; cost_tables.py prints the result.
"""

from __future__ import annotations

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..backbones import BACKBONES
from ..backbones.build import PAPER_WIDTH
from ..heads import LPGS, SIZES
from ..machine.console import error_line, say
from ..model import UniversalModel, build
from .complexity_options import build_parser
from .cost_tables import fig_3_lines, fig_7_lines, part_lines, section_5_4_lines

# Parts of the network, by the start of a module's name; the first that fits.
PARTS = (("backbone.swinViT", "transformer"), ("backbone.encoder", "encoder convolutions"),
         ("backbone.down_", "encoder"), ("backbone.convInit", "encoder"), ("backbone.decoder", "decoder"),
         ("backbone.up_", "decoder"),
         ("GAP", "pooling (GAP)"), ("precls_conv", "reduction to 8 channels"), ("lpg", "LPG, Eq. (1)"),
         ("organ_embedding", "LPG, Eq. (1)"))            # where it is learned, with the encoding `random`
HEADS = "class heads, Eq. (2)"


@dataclass
class Cost:
    """What one part of a network costs for one patch."""

    parameters: int = 0
    macs: int = 0              # multiply-adds
    bias_adds: int = 0         # additions of biases

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return 2 * self.macs + self.bias_adds


def part_of(name: str) -> str | None:
    """The part of the network that a module or parameter of this name belongs to; None for what holds several parts."""
    return next((part for start, part in PARTS if name.startswith(start)), None)


def meta_network(backbone: str, lpg: str = "independent", classes: int = 32, width: int = 0,
                 text_width: int = 512) -> UniversalModel:
    """A network without values, on the meta device. Raises ValueError for a width that the backbone cannot have."""
    with torch.device("meta"):
        return build({"classes": [f"class {i}" for i in range(classes)], "backbone": backbone, "width": width,
                      "lpg": lpg, "text_width": text_width})


def count(network: UniversalModel, patch: Sequence[int] = (96, 96, 96)) -> dict[str, Cost]:
    """{part: Cost} of one patch (1, 1, D, H, W) that goes through the network: layer by layer, as it is written.

    The copy on the meta device computes nothing, and does not run the fast forms, whose operations are others.
    """
    network = copy.deepcopy(network).to("meta")
    costs: dict[str, Cost] = defaultdict(Cost)
    for name, parameter in network.named_parameters():
        costs[_known_part(name)].parameters += parameter.numel()

    def count_biases(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            costs[_known_part(name)].bias_adds += output.numel()
        return hook

    with_bias = [(name, module) for name, module in network.named_modules()
                 if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)) and module.bias is not None]
    hooks = [module.register_forward_hook(count_biases(name)) for name, module in with_bias]
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            logits = network(torch.empty(1, 1, *patch, device="meta"))
    finally:
        for handle in hooks:
            handle.remove()
    for part, flops in _flops_of_parts(counter).items():
        costs[part].macs += flops // 2
    # The class heads are no module: what no part has counted is theirs.
    costs[HEADS].macs = counter.get_total_flops() // 2 - sum(cost.macs for cost in costs.values())
    costs[HEADS].bias_adds = logits.numel() * sum(SIZES[3:])          # b1, b2, b3: 8 + 8 + 1 per voxel and class
    return {part: costs[part] for part in dict.fromkeys([*(part for _, part in PARTS), HEADS]) if part in costs}


def _known_part(name: str) -> str:
    part = part_of(name)
    assert part is not None, name
    return part


def _flops_of_parts(counter: FlopCounterMode) -> dict[str, int]:
    """{part: FLOPs} of a finished count. Its names begin with the network's class; outer modules include inner ones."""
    flops = {name.partition(".")[2]: sum(by_operation.values())
             for name, by_operation in counter.get_flop_counts().items()}
    of_a_part = [name for name in flops if part_of(name)]
    sums: dict[str, int] = defaultdict(int)
    for name in of_a_part:
        if not any(name.startswith(f"{outer}.") for outer in of_a_part):
            sums[_known_part(name)] += flops[name]
    return sums


def total(costs: Mapping[str, Cost]) -> Cost:
    """The sum over all parts."""
    fields = ("parameters", "macs", "bias_adds")
    return Cost(*(sum(getattr(cost, field) for cost in costs.values()) for field in fields))


def activation_bytes(network: nn.Module, patch: Sequence[int] = (96, 96, 96), batch: int = 1) -> int:
    """Bytes that autograd keeps for the backward pass of one step, without the parameters; each storage counts once."""
    parameters = {id(p) for p in network.parameters()}
    saved = {}                                             # holds the storages, so that no key is used again

    def save(tensor: Tensor) -> Tensor:
        if id(tensor) not in parameters:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        logits = network(torch.empty(batch, 1, *patch, device=next(network.parameters()).device))
    of_parameters = {p.untyped_storage()._cdata for p in network.parameters()}
    del logits
    return sum(storage.nbytes() for key, storage in saved.items() if key not in of_parameters)


def measure(backbone: str, patch: Sequence[int], classes: int, width: int = 0, text_width: int = 512) -> dict[str, Any]:
    """All numbers of one backbone as a plain dict.

    patch: (D, H, W) voxels
    width: channels of the first level, 0 for the paper's
    text_width: numbers in the text embedding of a class
    """
    forms = {lpg: count(meta_network(backbone, lpg, classes, width, text_width), patch) for lpg in LPGS}
    parts = forms["independent"]
    one_class = meta_network(backbone, "independent", 1, width, text_width).lpg
    activations = activation_bytes(meta_network(backbone, "independent", classes, width, text_width), patch)
    return {"backbone": backbone, "width": width or PAPER_WIDTH[backbone],
            "parts": {lpg: {part: {**asdict(cost), "flops": cost.flops} for part, cost in costs.items()}
                      for lpg, costs in forms.items()},
            "backbone_parameters": sum(p.numel() for p in meta_network(backbone, width=width).backbone.parameters()),
            "new_class": {"parameters": sum(p.numel() for p in one_class.parameters()),
                          "flops": parts["LPG, Eq. (1)"].flops // classes,
                          "head_flops": parts[HEADS].flops // classes},
            "memory_bytes": {"activations": activations,
                             "weights_gradients_adamw": 4 * 4 * total(parts).parameters}}     # float32, 4 bytes each


def main(argv: list[str] | None = None) -> int:
    """The command `python -m uniseg complexity`. Returns the exit code: 0, or 2 for sizes that no network takes."""
    args = build_parser().parse_args(argv)
    patch, backbones = tuple(args.patch), args.backbone or BACKBONES
    try:
        if min(args.classes, args.text_width) < 1:
            raise ValueError("--classes and --text-width: at least 1.")
        networks = [measure(backbone, patch, args.classes, args.width, args.text_width) for backbone in backbones]
    except ValueError as error:
        error_line(error)
        return 2
    if args.json:
        say(json.dumps({"patch": list(patch), "classes": args.classes, "text_width": args.text_width,
                        "networks": networks}, indent=1))
        return 0
    say(f"One patch of {' x '.join(map(str, patch))}, {args.classes} classes, "
        f"text embeddings of {args.text_width} numbers.")
    first = networks[0]
    for lines in (*map(part_lines, networks), fig_3_lines(networks), fig_7_lines(first, args.classes, patch),
                  section_5_4_lines(first, args.text_width, patch, args.classes)):
        for line in ("", *lines):
            say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
