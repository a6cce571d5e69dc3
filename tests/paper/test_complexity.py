"""Costs: each part of a network against formulas for its layers, and the paper's numbers."""

import json
import math

import pytest
import torch
from torch import nn

from uniseg.backbones import BACKBONES
from uniseg.backbones.swin_unetr import WindowAttention
from uniseg.model import build
from uniseg.paper.complexity import HEADS, activation_bytes, count, main, measure, meta_network, part_of, total

SMALL = {"swin_unetr": (12, (64, 32, 32)), "unet": (8, (16, 24, 16)), "segresnet": (8, (16, 8, 24))}     # width, patch


def macs_by_hand(module, inputs, output):
    """Multiply-adds of one call of a convolution, a linear layer or a window attention's own two products."""
    if isinstance(module, nn.ConvTranspose3d):
        return inputs[0].numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Conv3d):
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    windows, tokens, channels = inputs[0].shape      # q k^T and its product with v: n x n x C each, in every window
    return 2 * windows * tokens * tokens * channels


def count_by_hand(network, patch):
    """{part: [multiply-adds, additions of biases]} of one patch, by formulas instead of PyTorch's counter."""
    costs = {}

    def hook(name):
        def add(module, inputs, output):
            cost = costs.setdefault(part_of(name), [0, 0])
            cost[0] += macs_by_hand(module, inputs, output)
            cost[1] += output.numel() if not isinstance(module, WindowAttention) and module.bias is not None else 0
        return add

    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear, WindowAttention)):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        voxels = network(torch.empty(1, 1, *patch, device="meta")).numel()
    costs[HEADS] = [voxels * (64 + 64 + 8), voxels * (8 + 8 + 1)]
    return costs


def called(module, *shape):
    """macs_by_hand for one call on an input of this shape."""
    module, x = module.to("meta"), torch.empty(shape, device="meta")
    return macs_by_hand(module, (x,), module(x))


def test_the_formulas_give_what_can_be_counted_on_paper():
    assert called(nn.Conv3d(2, 5, 3, padding=1), 1, 2, 4, 4, 4) == 5 * 64 * 2 * 27         # per output: 2 x 27 products
    assert called(nn.Conv3d(4, 4, 1, groups=4, bias=False), 1, 4, 2, 2, 2) == 4 * 8
    assert called(nn.ConvTranspose3d(3, 2, 2, stride=2), 1, 3, 4, 4, 4) == 3 * 64 * 2 * 8   # per input: 2 x 8 products
    assert called(nn.Linear(7, 3), 5, 7) == 5 * 21
    attention = WindowAttention(6, heads=3)                                                 # q k^T, then times v
    assert macs_by_hand(attention, (torch.empty(4, 27, 6),), None) == 4 * 2 * 27 * 27 * 6


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_network_with_values_costs_what_the_same_one_without_costs(backbone):
    """On a CPU, inference runs fast forms, whose operations are others or not counted. They do not change the cost."""
    width, patch = SMALL[backbone]
    network = meta_network(backbone, classes=2, width=width, text_width=4)
    without = count(network, patch)
    assert count(network.to_empty(device="cpu"), patch) == without


def test_embeddings_that_are_learned_belong_to_the_lpg():
    """Two classes with vectors of 5 numbers, and nothing else more."""
    parameters = {}
    for encoding in ("v3", "random"):
        network = build({"classes": ["a", "b"], "backbone": "unet", "width": 8, "text_width": 5, "encoding": encoding})
        parameters[encoding] = count(network, SMALL["unet"][1])["LPG, Eq. (1)"].parameters
    assert parameters["random"] - parameters["v3"] == 2 * 5


@pytest.mark.slow
@pytest.mark.parametrize("lpg", ["independent", "shared"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_part_costs_what_the_formulas_say(backbone, lpg):
    width, patch = SMALL[backbone]
    network = meta_network(backbone, lpg, classes=3, width=width, text_width=6)
    costs = count(network, patch)
    assert {part: [cost.macs, cost.bias_adds] for part, cost in costs.items()} == count_by_hand(network, patch)
    assert total(costs).parameters == sum(p.numel() for p in network.parameters())
    assert all(cost.macs > 0 for cost in costs.values()) and set(costs) >= {HEADS, "decoder", "LPG, Eq. (1)"}


@pytest.mark.slow
@pytest.mark.parametrize("backbone, millions, giga", [("swin_unetr", 62_186_610, 317.9), ("unet", 19_073_600, 824.2),
                                                      ("segresnet", 4_700_848, 61.3)])
def test_the_papers_backbones(backbone, millions, giga):
    """Parameters of Fig. 3; multiply-adds at 96^3 as measured on the original networks."""
    figures = measure(backbone, (96, 96, 96), 32)
    assert figures["backbone_parameters"] == millions
    of_backbone = [c["macs"] for part, c in figures["parts"]["shared"].items()
                   if part in ("transformer", "encoder convolutions", "encoder", "decoder")]
    assert sum(of_backbone) / 1e9 == pytest.approx(giga, abs=0.06)


def test_one_more_class_costs_the_943769_flops_of_section_5_4():
    """By hand: (256 + 512) x 512 + 512 x 153 products, two FLOPs each, and 512 + 153 sums of biases."""
    new = measure("unet", (16, 16, 16), 5, width=8)["new_class"]
    assert new["flops"] == 2 * (768 * 512 + 512 * 153) + 512 + 153 == 943_769
    assert new["parameters"] == 768 * 512 + 512 + 512 * 153 + 153 == 472_217
    assert new["head_flops"] == 16 ** 3 * (2 * (64 + 64 + 8) + 8 + 8 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_memory_of_a_patch_is_the_same_with_numbers_as_without(backbone):
    width, patch = SMALL[backbone]
    network = meta_network(backbone, classes=3, width=width, text_width=6)
    real = network.to_empty(device="cpu")
    for p in real.parameters():
        nn.init.zeros_(p)
    for name, buffer in real.named_buffers():
        buffer.zero_()
    on_meta = activation_bytes(meta_network(backbone, classes=3, width=width, text_width=6), patch)
    assert on_meta == pytest.approx(activation_bytes(real, patch), rel=0.02)
    two = activation_bytes(meta_network(backbone, classes=3, width=width, text_width=6), patch, batch=2)
    assert two == pytest.approx(2 * on_meta, rel=0.1)


def test_activations_by_hand():
    """A chain of two products keeps its input and the hidden map: 4 + 4 numbers; its weights are no activations."""
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.b(torch.relu(self.a(x.flatten()[:4].clone().requires_grad_())))

    assert activation_bytes(Chain(), (1, 1, 4)) == 4 * (4 + 4)


@pytest.mark.slow
def test_the_command_prints_here_beside_paper(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for text in ("62,186,610", "19,075,680   19.08 M", "4,700,914     4.7 M", "472,217 parameters, 943,769 FLOPs",
                 "77,496,442",
                 "The paper prints 466.08 GFLOPs", "decoder5 have 423.68;", "it is 586.01.", "62,595,315"):
        assert text in out, text


def test_the_command_speaks_json_and_of_other_sizes(capsys):
    assert main(["--json", "--backbone", "unet", "--width", "8", "--patch", "16", "16", "32", "--classes", "5",
                 "--text-width", "7"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["patch"] == [16, 16, 32] and [n["backbone"] for n in content["networks"]] == ["unet"]
    parts = content["networks"][0]["parts"]["independent"]
    assert parts[HEADS]["macs"] == 5 * 16 * 16 * 32 * 136


@pytest.mark.parametrize("options, reason", [
    (["--patch", "20", "16", "16"], "multiple of"), (["--classes", "0"], "at least 1"),
    (["--backbone", "unet", "--width", "7"], "width must be even")])
def test_sizes_that_no_network_takes_are_refused_in_one_line(options, reason, capsys):
    assert main(options) == 2
    err = capsys.readouterr().err
    assert err.startswith("uniseg: error: ") and reason in err and err.count("\n") == 1
