"""What `python -m uniseg complexity` prints: the dicts of complexity.measure as text, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..backbones.build import PAPER_WIDTH
from ..heads import THETA

PAPER_PARAMETERS = {"swin_unetr": "62.19 M", "unet": "19.08 M", "segresnet": "4.7 M"}      # Fig. 3
PAPER_DECODER, PAPER_NEW_CLASS = 466.08e9, 9.44e-4 * 1e9                                    # Section 5.4, FLOPs
BACKBONE = ("transformer", "encoder convolutions", "encoder", "decoder")                    # parts of it

Figures = Mapping[str, Any]       # of complexity.measure


def part_lines(figures: Figures) -> Iterator[str]:
    """Yield the table of the parts of one network, with its memory in training."""
    yield f"{figures['backbone']}, width {figures['width']}"
    yield f"  {'':26}{'parameters':>24}{'G multiply-adds':>18}{'GFLOPs':>12}"
    for lpg, parts in figures["parts"].items():
        shown = parts if lpg == "independent" else {part: cost for part, cost in parts.items() if "LPG" in part}
        for part, cost in shown.items():
            yield _cost_line(f"{part}, {lpg}" if "LPG" in part else part, cost)
    for lpg, parts in figures["parts"].items():
        yield _cost_line(f"whole, {lpg}",
                         {key: sum(cost[key] for cost in parts.values()) for key in ("parameters", "macs", "flops")})
    memory = figures["memory_bytes"]
    activations, weights = memory["activations"], memory["weights_gradients_adamw"]
    is_papers = (figures["backbone"], figures["width"]) == ("swin_unetr", 48)
    yield (f"  one patch in training: {activations / 2**30:.2f} GiB of activations in float32, beside "
           f"{weights / 2**30:.2f} GiB of weights, gradients and AdamW's two moments;")
    yield (f"  two patches: {(2 * activations + weights) / 2**30:.1f} GiB"
           + (" (the authors fit two into 24 GB)" if is_papers else ""))


def _cost_line(label: str, cost: Mapping[str, int]) -> str:
    return f"  {label:30}{cost['parameters']:>20,}{cost['macs'] / 1e9:>18.4g}{cost['flops'] / 1e9:>12.4g}"


def fig_3_lines(networks: Sequence[Figures]) -> Iterator[str]:
    """Yield the parameters of the backbones beside those of Fig. 3."""
    yield "Fig. 3, parameters of the backbones (each original has its own output layer, which the heads replace)"
    yield f"  {'':14}{'here':>14}{'with output layer':>20}{'paper':>10}"
    for figures in networks:
        name, width = figures["backbone"], figures["width"]
        # 32 classes; SegResNet-Tiny: a group norm and 2 classes, the library's default.
        output = {"swin_unetr": 32 * width + 32, "unet": 32 * width + 32, "segresnet": 2 * width + 2 * width + 2}[name]
        printed = PAPER_PARAMETERS[name] if width == PAPER_WIDTH[name] else ""
        yield (f"  {name:14}{figures['backbone_parameters']:>14,}{figures['backbone_parameters'] + output:>20,}"
               f"{printed:>10}")


def fig_7_lines(figures: Figures, classes: int, patch: Sequence[int]) -> Iterator[str]:
    """Yield the cost of one universal model beside that of six dataset-specific ones, Fig. 7."""
    parts = figures["parts"]["independent"]
    universal = sum(cost["flops"] for cost in parts.values())
    six = 6 * sum(cost["flops"] for part, cost in parts.items() if part in BACKBONE)
    yield (f"Fig. 7, one universal model or six dataset-specific ones, {figures['backbone']}, "
           f"{' x '.join(map(str, patch))}")
    yield (f"  six backbones {six / 1e9:.1f} GFLOPs, one with {classes} class heads {universal / 1e9:.1f}: six cost "
           f"{six / universal:.2f} times as much. The paper's \"over 6 times\" compares with other groups' networks.")


def section_5_4_lines(figures: Figures, text_width: int, patch: Sequence[int], classes: int) -> Iterator[str]:
    """Yield what one more class costs, Section 5.4."""
    parts, new = figures["parts"]["independent"], figures["new_class"]
    decoder = parts["decoder"]
    yield f"Section 5.4, what one more class costs, {figures['backbone']}"
    yield (f"  its MLP in the LPG: {new['parameters']:,} parameters, {new['flops']:,} FLOPs"
           + (f"; paper: {PAPER_NEW_CLASS:,.0f}, the same to its three digits" if text_width == 512
              else "; paper: 944,000 at 512"))
    yield (f"  its head on the patch, which the paper leaves out: {new['head_flops'] / 1e9:.3f} GFLOPs, "
           f"no parameters of its own (theta has {THETA} numbers)")
    yield (f"  instead, a decoder of its own: {decoder['flops'] / 1e9:.1f} GFLOPs "
           f"({decoder['macs'] / 1e9:.1f} G multiply-adds)")
    if (figures["backbone"], figures["width"], tuple(patch)) == ("swin_unetr", 48, (96, 96, 96)):
        both = decoder["flops"] + parts["encoder convolutions"]["flops"]
        yield (f"  The paper prints {PAPER_DECODER / 1e9:.2f} GFLOPs for the decoder. decoder1 to decoder5 have "
               f"{decoder['flops'] / 1e9:.2f}; with the convolutions")
        yield (f"  between transformer and decoder (encoder1 to encoder10) it is {both / 1e9:.2f}. "
               "Neither is the paper's count; it does not say what was counted.")
    whole = sum(cost["flops"] for cost in parts.values())
    numbers = []
    for k in (1, 32, 38, 117):
        here = whole + (k - classes) * (new["flops"] + new["head_flops"])
        with_decoders = whole - decoder["flops"] + k * decoder["flops"]
        numbers.append(f"{k}, {here / 1e9:.0f}, {with_decoders / 1e9:.0f}")
    yield f"  classes, GFLOPs here, GFLOPs with a decoder each: {'; '.join(numbers)}"
