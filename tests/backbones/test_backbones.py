"""Backbones: sizes, names and outputs of the released architectures; the pitfalls of Swin UNETR one by one."""

import itertools
import json

import pytest
import torch
from torch import nn

from stand_in import GOLDEN, TOLERANCE, deviation, golden, load_stand_in, stand_in_image
from uniseg.backbones import BACKBONES, SegResNet, SwinUNETR, UNet
from uniseg.backbones.swin_unetr import (
    CORNERS,
    PatchMerging,
    SwinBlock,
    WindowAttention,
    partition,
    relative_position_index,
    shift_mask,
    unpartition,
    window_and_shift,
)
from uniseg.backbones.unet import ConvNormReLU
from uniseg.machine.memory import keep_freed_memory

PAPER_PARAMETERS = {"swin_unetr": 62_186_610, "unet": 19_073_600, "segresnet": 4_700_848}
NARROW = [("swin_unetr", 12), ("swin_unetr", 24), ("unet", 16), ("unet", 24), ("segresnet", 8), ("segresnet", 12)]


def without_memory(name, **options):
    """The backbone on the meta device: shapes and names, no values."""
    with torch.device("meta"):
        return BACKBONES[name](**options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def outputs(network):
    keep_freed_memory()
    with torch.inference_mode():
        return network(stand_in_image())


def deviations(outputs, file):
    """Deviation of (bottleneck, features) from golden/<file>.npz, in standard deviations. `pytest -s` prints both."""
    figures = golden(file)
    found = [deviation(figures, name, actual) for name, actual in zip(("bottleneck", "decoder"), outputs)]
    print(file, [f"{d:.1e}" for d in found])
    return found


# ---------------------------------------------------------------------------------------------- contract of all three

@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_parameter_counts_are_the_papers(name):
    assert count(without_memory(name)) == PAPER_PARAMETERS[name]


def test_segresnet_with_the_originals_final_convolution_of_two_classes_has_the_papers_count():
    conv_final = nn.Sequential(nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv3d(16, 2, kernel_size=1))
    assert count(without_memory("segresnet")) + count(conv_final) == 4_700_914


@pytest.mark.parametrize("name, whole", [("swin_unetr", 62_595_315), ("unet", 19_416_417)])
def test_backbone_and_shared_heads_have_the_count_of_the_whole_released_model(name, whole):
    backbone = without_memory(name)
    e, c = backbone.bottleneck_channels, backbone.decoder_channels
    gap = 2 * e + 256 * e + 256                 # group norm, 1x1x1 convolution E -> 256
    reduce = 2 * c + 8 * c + 8                  # group norm, 1x1x1 convolution C -> 8
    controller = 512 * 153 + 153
    text_to_vision = 512 * 256 + 256
    assert count(backbone) + gap + reduce + controller + text_to_vision == whole


@pytest.mark.parametrize("name", BACKBONES)
def test_state_dict_has_the_names_and_shapes_of_the_released_file(name):
    released = json.loads((GOLDEN / "keys_backbone.json").read_text())[name]["entries"]
    ours = {key: list(tensor.shape) for key, tensor in without_memory(name).state_dict().items()}
    assert ours == released


@pytest.mark.slow
@pytest.mark.parametrize("name, e, c", [("swin_unetr", 768, 48), ("unet", 512, 64), ("segresnet", 128, 16)])
@pytest.mark.parametrize("size", [(96, 96, 96), (64, 96, 32)])
def test_shapes_at_the_papers_width(name, e, c, size):
    backbone = without_memory(name)
    bottleneck, features = backbone(torch.empty(2, 1, *size, device="meta"))
    s = backbone.size_multiple
    assert (backbone.bottleneck_channels, backbone.decoder_channels) == (e, c)
    assert bottleneck.shape == (2, e, *(n // s for n in size))
    assert features.shape == (2, c, *size)


@pytest.mark.parametrize("name, width", [
    pytest.param(*narrow, marks=pytest.mark.slow) if narrow == ("swin_unetr", 24) else narrow for narrow in NARROW])
def test_narrow_backbones_run_on_small_windows_and_every_parameter_learns(name, width):
    torch.manual_seed(0)
    backbone = BACKBONES[name](in_channels=2, width=width)
    s = backbone.size_multiple
    bottleneck, features = backbone(torch.rand(1, 2, 2 * s, s, s))
    assert bottleneck.shape == (1, backbone.bottleneck_channels, 2, 1, 1)
    assert features.shape == (1, width, 2 * s, s, s)
    (bottleneck.square().mean() + features.square().mean()).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@pytest.mark.slow
@pytest.mark.parametrize("name, width", NARROW[::2])
def test_a_window_gives_the_same_result_alone_and_in_a_batch(name, width):
    torch.manual_seed(0)
    backbone = BACKBONES[name](width=width).eval()
    s = backbone.size_multiple
    images = torch.rand(2, 1, 2 * s, s, s)
    with torch.inference_mode():
        together = backbone(images)
        alone = backbone(images[1:])
    for a, b in zip(together, alone):
        torch.testing.assert_close(a[1:], b, rtol=0, atol=5e-3)  # norms over two voxels amplify rounding


@pytest.mark.parametrize("name", BACKBONES)
def test_a_size_that_is_no_multiple_is_refused_by_name(name):
    backbone = without_memory(name)
    bad = backbone.size_multiple + 4
    with pytest.raises(ValueError, match=rf"multiple of {backbone.size_multiple}, got \({bad}, {bad}, 64\)"):
        backbone(torch.empty(1, 1, bad, bad, 64, device="meta"))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("shape", [(1, 64, 64, 64), (1, 3, 64, 64, 64)])
def test_a_wrong_number_of_axes_or_channels_is_refused(name, shape):
    with pytest.raises(ValueError, match=r"expected an image of shape \(B, 1, D, H, W\)"):
        without_memory(name)(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("name", ["swin_unetr", "unet"])
def test_a_window_of_one_bottleneck_voxel_is_refused_because_instance_norm_would_empty_it(name):
    backbone = without_memory(name)
    s = backbone.size_multiple
    with pytest.raises(ValueError, match=f"one voxel at the bottleneck.*at least {2 * s} along one axis"):
        backbone(torch.empty(1, 1, s, s, s, device="meta"))


def test_segresnet_takes_a_window_of_one_bottleneck_voxel():
    bottleneck, features = SegResNet(width=8)(torch.rand(1, 1, 8, 8, 8))
    assert bottleneck.shape == (1, 64, 1, 1, 1) and features.shape == (1, 8, 8, 8, 8)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="width must be even"):
        UNet(width=15)
    with pytest.raises(ValueError, match="multiple of 3"):
        SwinUNETR(width=16)
    with pytest.raises(ValueError, match="one of standard, v090"):
        SwinUNETR(width=12, merging="v091")


# ------------------------------------------------------------------------------------------------------------- U-Net

def test_unet_norm_equals_a_batch_norm_with_batch_statistics_at_one_window():
    torch.manual_seed(0)
    ours = ConvNormReLU(3, 5)
    nn.init.normal_(ours.bn1.weight)
    nn.init.normal_(ours.bn1.bias)
    theirs = nn.BatchNorm3d(5, track_running_stats=False)
    theirs.load_state_dict(ours.bn1.state_dict())
    x = torch.randn(1, 3, 6, 6, 6)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        torch.testing.assert_close(ours(x), theirs(ours.conv1(x)).relu())


# -------------------------------------------------------------------------------------------------------- Swin UNETR

def test_partition_cuts_a_grid_into_its_blocks_and_unpartition_restores_it():
    grid = torch.arange(2 * 4 * 6 * 2 * 3.0).view(2, 4, 6, 2, 3)
    windows = partition(grid, (2, 3, 1))
    assert windows.shape == (2 * 2 * 2 * 2, 6, 3)
    assert torch.equal(windows[0], grid[0, :2, :3, :1].reshape(6, 3))
    assert torch.equal(windows[-1], grid[1, 2:, 3:, 1:].reshape(6, 3))
    assert torch.equal(unpartition(windows, (2, 3, 1), (4, 6, 2)), grid)


@pytest.mark.parametrize("size, window, shift", [((4, 4, 4), (2, 2, 2), (1, 1, 1)),
                                                 ((6, 2, 9), (3, 2, 3), (1, 0, 2)),
                                                 ((3, 3, 3), (3, 3, 3), (0, 0, 0))])
def test_shift_mask_parts_what_the_roll_brought_together(size, window, shift):
    # After a roll by -s, place p of an axis of length L holds the token of place p + s, or of p + s - L if it came
    # round. Two tokens of one window were neighbours only if on each axis both came round or neither.
    mask = shift_mask(size, window, shift)
    origins = itertools.product(*(range(0, n, w) for n, w in zip(size, window)))
    for index, origin in enumerate(origins):
        places = [tuple(o + i for o, i in zip(origin, inside)) for inside in itertools.product(*map(range, window))]
        for a, p in enumerate(places):
            for b, q in enumerate(places):
                apart = any((x + s >= n) != (y + s >= n) for x, y, s, n in zip(p, q, shift, size))
                assert mask[index, a, b] == apart
    assert mask.shape == (index + 1, len(places), len(places))


def test_masked_tokens_do_not_reach_each_other():
    torch.manual_seed(0)
    attention = WindowAttention(channels=6, heads=3)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[1, :2, 2:] = mask[1, 2:, :2] = True                     # second window: tokens 0, 1 apart from 2, 3
    x = torch.randn(4, 4, 6)                                     # two images of two windows
    changed = x.clone()
    changed[:, 3] += 1
    difference = (attention(changed, mask) - attention(x, mask)).abs().amax(dim=-1)   # (4, 4)
    assert (difference[[0, 2], 0] > 1e-5).all()
    assert (difference[[1, 3], :2] < 1e-12).all() and (difference[[1, 3], 2] > 1e-5).all()


def test_attention_equals_a_slow_loop():
    torch.manual_seed(0)
    attention = WindowAttention(channels=6, heads=3)
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, 5, 6)
    q, k, v = attention.qkv(x).split(6, dim=-1)
    bias = attention.bias(5)
    expected = torch.zeros_like(x)
    for window, head, token in itertools.product(range(2), range(3), range(5)):
        c = slice(2 * head, 2 * head + 2)
        scores = torch.stack([q[window, token, c] @ k[window, other, c] / 2 ** 0.5 + bias[head, token, other]
                              for other in range(5)])
        expected[window, token, c] = scores.softmax(0) @ v[window, :, c]
    torch.testing.assert_close(attention(x, None), attention.proj(expected))


def test_relative_position_index_counts_differences_of_place():
    index = relative_position_index()
    place = list(itertools.product(range(7), repeat=3))
    for a, b in [(0, 0), (0, 342), (342, 0), (5, 100), (48, 49), (200, 17)]:
        d, h, w = (x - y + 6 for x, y in zip(place[a], place[b]))
        assert index[a, b] == 169 * d + 13 * h + w
    assert index.min() == 0 and index.max() == 13 ** 3 - 1 and len(index.unique()) == 13 ** 3


def test_a_small_window_reads_the_corner_of_the_full_windows_bias_not_its_own_geometry():
    attention = WindowAttention(channels=3, heads=3)
    rows = torch.arange(13.0 ** 3)
    with torch.no_grad():
        attention.relative_position_bias_table.copy_(rows[:, None].expand(-1, 3))
    bias = attention.bias(27)                                    # a 3x3x3 window
    assert torch.equal(bias[0], relative_position_index()[:27, :27].float())
    # Tokens 0 and 3 are (0,0,0) and (0,1,0) in a 3x3x3 window, but the row read is that of (0,0,0) and (0,0,3).
    assert bias[0, 0, 3] == 169 * 6 + 13 * 6 + (0 - 3 + 6)


def test_an_axis_of_seven_tokens_or_fewer_is_one_window_without_shift():
    assert window_and_shift((12, 7, 3), shifted=True) == ((7, 7, 3), (3, 0, 0))
    assert window_and_shift((12, 7, 3), shifted=False) == ((7, 7, 3), (0, 0, 0))


def test_padding_tokens_take_their_share_of_the_attention():
    # Equal scores and value = token: each token becomes the mean of its window. A grid of 8 ones is padded to 14, so
    # that the last window along an axis holds one plane of ones and six of zeros.
    block = SwinBlock(channels=3, heads=3, shifted=False)
    with torch.no_grad():
        for tensor in block.attn.parameters():
            tensor.zero_()
        block.attn.qkv.weight[6:] = torch.eye(3)
        block.attn.proj.weight.copy_(torch.eye(3))
        out = block.attend(torch.ones(1, 8, 8, 8, 3))
    assert out.shape == (1, 8, 8, 8, 3)
    for place, share in {(0, 0, 0): 1, (7, 0, 0): 1 / 7, (0, 7, 7): 1 / 49, (7, 7, 7): 1 / 343}.items():
        torch.testing.assert_close(out[0][place], torch.full((3,), float(share)))


def test_patch_merging_concatenates_the_corners_in_the_order_of_its_version():
    cell = torch.tensor([100 * i + 10 * j + k for i, j, k in itertools.product((0, 1), repeat=3)]).view(1, 2, 2, 2, 1)
    expected = {"standard": [0, 100, 10, 1, 110, 101, 11, 111], "v090": [0, 100, 10, 1, 101, 10, 1, 111]}
    for version, order in expected.items():
        merging = PatchMerging(1, CORNERS[version])
        merging.norm, merging.reduction = nn.Identity(), nn.Identity()
        assert merging(cell).flatten().tolist() == order


@pytest.mark.slow
def test_the_two_orders_of_patch_merging_share_a_state_dict_but_not_their_features():
    torch.manual_seed(0)
    standard = SwinUNETR(width=12, merging="standard").eval()
    v090 = SwinUNETR(width=12, merging="v090").eval()
    v090.load_state_dict(standard.state_dict())
    image = torch.rand(1, 1, 64, 32, 32)
    with torch.inference_mode():
        a, b = standard(image)[0], v090(image)[0]
    assert (a - b).abs().max() > 0.1 * a.std()


@pytest.mark.slow
def test_checkpointing_changes_neither_output_nor_gradients():
    torch.manual_seed(0)
    plain, sparing = SwinUNETR(width=12), SwinUNETR(width=12)
    sparing.checkpoint_activations()
    sparing.load_state_dict(plain.state_dict())
    image, kept = torch.rand(1, 1, 64, 32, 32), []
    for network in (plain, sparing):
        kept.append(0)

        def count(tensor):
            kept[-1] += tensor.nbytes
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network(image)[1].square().mean()
        loss.backward()
    assert kept[1] < 0.6 * kept[0]                               # bytes kept for the backward pass
    for (key, p), q in zip(plain.named_parameters(), sparing.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=key)


@pytest.mark.slow
# ----------------------------------------------------------------------------------------------------- golden figures

def test_segresnet_computes_what_the_original_does():
    network = load_stand_in(SegResNet(), "module.")
    assert max(deviations(outputs(network), "segresnet16")) <= TOLERANCE


@pytest.mark.parametrize("part, largest, rms", [("bottleneck", 1.854, 0.355), ("decoder", 1.094, 0.217)])
def test_with_the_same_weights_the_two_orders_of_corners_are_a_third_of_a_standard_deviation_apart(part, largest, rms):
    """The difference between the original networks' outputs: the cost of a wrong order with the released weights."""
    v090, standard = (golden(file)[part] for file in ("universal_swinunetr_shared", "monai16_swin_backbone"))
    difference = (standard - v090) / v090.std()
    assert abs(difference).max() == pytest.approx(largest, abs=1e-3)
    assert (difference ** 2).mean() ** 0.5 == pytest.approx(rms, abs=1e-3)


@pytest.mark.slow
def test_swin_unetr_standard_computes_what_the_library_of_today_does_and_the_released_model_does_not():
    network = load_stand_in(SwinUNETR(merging="standard"), "module.")
    computed = outputs(network)
    assert max(deviations(computed, "monai16_swin_backbone")) <= TOLERANCE
    assert min(deviations(computed, "universal_swinunetr_shared")) > 10 * TOLERANCE
