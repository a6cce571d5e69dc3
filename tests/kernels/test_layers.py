"""The fast forms of four layers of the backbones against the readable ones: results, gradients, which of them runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uniseg import kernels
from uniseg.backbones import BACKBONES, swin_unetr
from uniseg.backbones.layers import Conv, ImageConv, InstanceNorm
from uniseg.backbones.swin_unetr import MASKED, plain_attention, shift_mask
from uniseg.kernels.layers import (
    channels_last,
    conv3d,
    conv_of_doubled,
    double_size,
    group_norm,
    instance_norm,
    is_cheaper_at_once,
    same_masks,
    window_attention,
)


def both(readable, fast, *inputs):
    """Compare two functions of the same tensors: the results, and the gradients of a random weighting of them."""
    results = []
    for function in (readable, fast):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images, channels, size", [(1, 3, (4, 5, 6)), (2, 5, (1, 1, 2)), (3, 1, (7, 2, 3))])
def test_a_channel_is_normalised_alike(images, channels, size):
    torch.manual_seed(0)
    x, weight, bias = 3 * torch.randn(images, channels, *size) + 2, torch.randn(channels), torch.randn(channels)
    both(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), instance_norm, x, weight, bias)
    both(F.instance_norm, lambda x: instance_norm(x, None, None), x)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("images, i, o, size", [(1, 1, 4, (6, 7, 8)), (2, 3, 1, (1, 2, 3)), (1, 32, 8, (4, 4, 4))])
def test_a_convolution_is_the_same_without_the_slow_loop(images, i, o, size, stride):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(images, i, *size), torch.randn(o, i, 3, 3, 3), torch.randn(o)
    both(lambda x, w, b: F.conv3d(x, w, b, stride, padding=1),
         lambda x, w, b: conv3d(x, w, b, stride, (1, 1, 1)), x, weight, bias)
    both(lambda x, w, b: F.conv3d(x.mT, w, b, stride, padding=1),        # of which the memory is in another order
         lambda x, w, b: conv3d(x.mT, w, b, stride, (1, 1, 1)), x, weight, bias)


def test_a_transposed_convolution_puts_each_product_in_its_place():
    # One voxel of value 2 and two output channels: each cell is twice the kernel of its channel.
    out = double_size(torch.full((1, 1, 1, 1, 1), 2.0), torch.arange(16.0).view(1, 2, 2, 2, 2))
    assert out[0, 0].flatten().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert out[0, 1].flatten().tolist() == [16, 18, 20, 22, 24, 26, 28, 30]


@pytest.mark.parametrize("images, i, o, size", [(1, 4, 3, (2, 3, 4)), (2, 1, 5, (1, 1, 1)), (3, 2, 1, (3, 1, 2))])
def test_a_transposed_convolution_is_one_product(images, i, o, size):
    torch.manual_seed(0)
    both(lambda x, w: F.conv_transpose3d(x, w, stride=2), double_size, torch.randn(images, i, *size),
         torch.randn(i, o, 2, 2, 2))


@pytest.mark.parametrize("images, i, c, s, o, size", [
    (1, 3, 4, 2, 5, (3, 4, 5)), (2, 2, 1, 3, 1, (1, 2, 1)), (3, 1, 2, 1, 4, (1, 1, 1))])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_decoders_first_convolution_is_the_same_without_the_doubled_map(images, i, c, s, o, size, kernel, bias):
    torch.manual_seed(0)
    x, skip = torch.randn(images, i, *size), torch.randn(images, s, *(2 * n for n in size))
    up, conv = nn.ConvTranspose3d(i, c, 2, 2, bias=bias), Conv(c + s, o, kernel, bias=bias)
    both(lambda x, skip: conv(torch.cat([up(x), skip], dim=1)),
         lambda x, skip: conv_of_doubled(x, skip, up, conv), x, skip)


def test_the_layers_of_a_small_map_run_one_by_one():
    """One channel everywhere. Each voxel of the result takes 1 + 27 products one by one, 8 at once, which also takes
    8 * 27 for the response, once: 224 beside 64 + 216 for one voxel of x, 448 beside 128 + 216 for two."""
    up, conv = nn.ConvTranspose3d(1, 1, 2, 2), Conv(2, 1)
    assert not is_cheaper_at_once(torch.zeros(1, 1, 1, 1, 1), up, conv)
    assert is_cheaper_at_once(torch.zeros(1, 1, 1, 1, 2), up, conv)
    assert is_cheaper_at_once(torch.zeros(2, 1, 1, 1, 1), up, conv)


def test_at_the_papers_width_the_large_maps_of_a_window_of_96_are_cheaper_at_once():
    """Swin UNETR's decoders 5 and 4 begin from 3^3 and 6^3 voxels; the U-Net's first level from 12^3."""
    with torch.device("meta"):
        swin, unet = BACKBONES["swin_unetr"](), BACKBONES["unet"]()
        decoders = [getattr(swin, f"decoder{level}") for level in (5, 4, 3, 2, 1)]
        levels = [unet.up_tr256, unet.up_tr128, unet.up_tr64]
        cheaper = [is_cheaper_at_once(torch.empty(1, 1, *3 * [side]), of.transp_conv.conv, of.conv_block.conv1.conv)
                   for of, side in zip(decoders, (3, 6, 12, 24, 48))]
        assert cheaper == [False, False, True, True, True]
        assert all(is_cheaper_at_once(torch.empty(1, 1, *3 * [side]), level.up_conv, level.ops[0].conv1)
                   for level, side in zip(levels, (12, 24, 48)))


@pytest.mark.parametrize("name, width", [("swin_unetr", 12), ("unet", 8), ("segresnet", 8)])
def test_maps_have_their_channels_last_in_inference_alone(name, width):
    backbone, image = BACKBONES[name](width=width).eval(), torch.rand(1, 1, 64, 32, 32)
    with torch.inference_mode():
        assert all(m.is_contiguous(memory_format=torch.channels_last_3d) for m in backbone(image))
    assert all(m.is_contiguous() for m in backbone(image))


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_exact_where_channels_lie_last(groups, affine):
    """Two images of four channels and 40^3 voxels around 3, beside the formula in float64. PyTorch's operator is wrong
    by 1e-4 and more."""
    torch.manual_seed(0)
    x = 3 + torch.randn(2, 4, 40, 40, 40)
    weight, bias = (torch.randn(4), torch.randn(4)) if affine else (None, None)
    grouped = x.double().view(2, groups, -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    exact = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(x)
    if affine:
        exact = exact * weight.view(4, 1, 1, 1) + bias.view(4, 1, 1, 1)
    with torch.inference_mode():
        found = group_norm(channels_last(x), groups, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert (found - exact).abs().max() < 1e-5


def test_windows_with_the_same_mask_are_found_where_they_are_neighbours():
    # A grid of 2 x 2 x 3 windows that is shifted along all axes: only the first two of a row share their mask.
    mask = shift_mask((14, 14, 21), (7, 7, 7), (3, 3, 3))
    assert same_masks(mask) == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 8), (8, 9), (9, 11), (11, 12)]
    assert same_masks(mask[:1]) == [(0, 1)]


@pytest.mark.parametrize("images, masked", [(1, False), (2, False), (1, True), (2, True)])
def test_attention_in_windows_is_the_same_without_the_matrix_of_scores(images, masked):
    torch.manual_seed(0)
    mask = shift_mask((4, 4, 6), (2, 2, 2), (1, 1, 1)) if masked else None             # 12 windows of 8 tokens
    q, k, v = torch.randn(3, 12 * images, 3, 8, 4)
    both(lambda *tensors: plain_attention(*tensors, mask),
         lambda *tensors: window_attention(*tensors, mask, MASKED), q, k, v, torch.randn(3, 8, 8))


@pytest.mark.parametrize("name, width", [("swin_unetr", 12), ("unet", 8)])
@pytest.mark.parametrize("precision, tolerance, shape", [
    (torch.float32, 1e-4, (2, 1, 64, 32, 32)),
    (torch.bfloat16, 0.1, (1, 1, 64, 64, 32))])      # Swin UNETR normalises over 4 voxels here; 2 magnify the rounding
def test_a_backbone_gives_the_same_features_with_either_form(name, width, precision, tolerance, shape, monkeypatch):
    torch.manual_seed(0)
    backbone, image, results = BACKBONES[name](width=width).eval(), torch.rand(shape), []
    for enabled in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", enabled)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            results.append(backbone(image))
    for fast, readable in zip(*results):
        assert fast.dtype == readable.dtype == precision
        assert (fast - readable).float().square().mean().sqrt() <= tolerance * readable.float().std()


@pytest.mark.parametrize("layer, form, trains", [
    (InstanceNorm(2), "instance_norm", True), (Conv(2, 2), "conv3d", False)])
def test_the_fast_form_of_a_layer_runs_where_it_is_faster(layer, form, trains, monkeypatch):
    calls = []
    monkeypatch.setattr(f"uniseg.kernels.layers.{form}", lambda x, *rest: calls.append(form) or x)
    x = torch.randn(1, 2, 2, 2, 2)
    layer(x)
    assert calls == [form] * trains                              # with gradients
    with torch.no_grad():
        layer(x)
        assert calls == [form] * (trains + 1)
        monkeypatch.setattr(kernels, "ENABLED", False)
        layer(x), layer.to("meta")(x.to("meta"))
    assert calls == [form] * (trains + 1)


def test_attention_runs_the_fast_form_in_inference_only(monkeypatch):
    calls = []
    monkeypatch.setattr(swin_unetr, "window_attention", lambda q, *rest: calls.append("fast") or q)
    monkeypatch.setattr(swin_unetr, "plain_attention", lambda q, *rest: calls.append("plain") or q)
    attention, x = swin_unetr.WindowAttention(channels=6, heads=3), torch.randn(2, 5, 6)
    attention(x, None)
    with torch.no_grad():
        attention(x, None)
    assert calls == ["plain", "fast"]


def test_the_image_enters_in_float32_whatever_autocast_says():
    # 0.5 and 0.501 are the same number in bfloat16. Their difference reaches the output, which is in bfloat16.
    conv = ImageConv(1, 1, kernel_size=1)                        # takes away one half
    torch.nn.init.ones_(conv.weight), torch.nn.init.constant_(conv.bias, -0.5)
    image = torch.tensor([0.5, 0.501]).view(2, 1, 1, 1, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = conv(image)
    assert out.dtype == torch.bfloat16
    assert out.flatten().tolist() == pytest.approx([0, 0.001], rel=0.01)
    assert conv(image).dtype == torch.float32
