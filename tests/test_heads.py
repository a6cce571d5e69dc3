"""Eq. (1) and Eq. (2) of the paper against slow loops, and what the heads cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from uniseg import kernels
from uniseg.heads import (
    SIZES,
    THETA,
    IndependentLPG,
    SharedLPG,
    class_logits,
    global_average_pooling,
    group_norm,
    plain_class_logits,
    reduce_features,
)
from uniseg.kernels import class_heads
from uniseg.kernels.class_heads import ClassHeads, _blocks, _of_blocks, classes_in_one


def random_input(batch=2, classes=3, size=(2, 3, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 8, *size, generator=generator, dtype=dtype)
    theta = torch.randn(batch, classes, THETA, generator=generator, dtype=dtype)
    return features, theta


def slow_class_logits(features, theta):
    """Eq. (2) as printed, without its sigmoid: one voxel and one class at a time, in Python's own numbers.

    phi(phi(F * theta_1) * theta_2) * theta_3 with phi = ReLU. theta: three weight matrices, then three biases.
    """
    def convolve(x, weights, biases):            # 1x1x1: a matrix (out, in) stored row by row, times a voxel's channels
        inputs = len(x)
        return [sum(w * v for w, v in zip(weights[o * inputs:(o + 1) * inputs], x)) + b for o, b in enumerate(biases)]

    logits = torch.empty(len(features), theta.shape[1], *features.shape[2:])
    for b, k, d, h, w in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        numbers = theta[b, k].tolist()
        x = features[b, :, d, h, w].tolist()
        x = [max(v, 0) for v in convolve(x, numbers[0:64], numbers[136:144])]
        x = [max(v, 0) for v in convolve(x, numbers[64:128], numbers[144:152])]
        [logits[b, k, d, h, w]] = convolve(x, numbers[128:136], numbers[152:153])
    return logits


@pytest.fixture(params=["readable form", "kernel"])
def form(request, monkeypatch):
    """Run a test with the form that heads.py shows, and with the kernel that is used by default."""
    monkeypatch.setattr(kernels, "ENABLED", request.param == "kernel")


# ------------------------------------------------------------------------------------ Eq. (2), the class-specific heads

@pytest.mark.usefixtures("form")
def test_class_logits_are_eq_2_voxel_by_voxel_and_class_by_class():
    features, theta = random_input()
    logits = class_logits(features, theta)
    assert logits.shape == (2, 3, 2, 3, 4)
    torch.testing.assert_close(logits, slow_class_logits(features, theta), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("form")
def test_theta_is_64_64_8_weights_stored_out_in_and_then_8_8_1_biases():
    theta = torch.zeros(1, 1, 153)
    theta[0, 0, 8 * 2 + 5] = 3.0                     # layer 1: channel 2 = 3 x channel 5 of the feature map
    theta[0, 0, 64 + 8 * 7 + 2] = 10.0               # layer 2: channel 7 = 10 x channel 2
    theta[0, 0, 128 + 7] = -1.0                      # layer 3: the logit = -channel 7
    theta[0, 0, 136 + 2] = 1.0                       # biases
    theta[0, 0, 144 + 7] = 0.5
    theta[0, 0, 152] = 100.0
    features = torch.zeros(1, 8, 1, 1, 2)
    features[0, 5, 0, 0] = torch.tensor([4.0, -4.0])
    # -(10 (3 * 4 + 1) + 0.5) + 100 = -30.5, and where layer 1 is negative ReLU leaves -0.5 + 100
    assert class_logits(features, theta).flatten().tolist() == [-30.5, 99.5]


@pytest.mark.parametrize("chunk", [1, 5, 23, 24, 25, 4096])
def test_any_chunk_of_voxels_gives_the_same_logits_and_gradients(chunk):
    features, theta = random_input()
    results = []
    for n in (None, chunk):
        inputs = features.clone().requires_grad_(), theta.clone().requires_grad_()
        logits = class_heads.class_logits(*inputs, SIZES, chunk=n)
        results.append([logits, *torch.autograd.grad(logits.sum(), inputs)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 2])
def test_gradients_agree_with_finite_differences(group):
    features, theta = random_input(classes=2, size=(5, 1, 1), dtype=torch.float64)
    features, theta = features.flatten(2).requires_grad_(), theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, t: ClassHeads.apply(f, t, SIZES, 2, group), (features, theta))


@pytest.mark.parametrize("group", [2, 3, 4, 5, 6, 100])
def test_classes_that_share_a_matrix_product_have_the_logits_and_gradients_of_each_alone(group):
    """Six classes: 4 and 5 do not divide them, so 3 share a product; 100 are not there, so all do."""
    assert classes_in_one(6, group) == {2: 2, 3: 3, 4: 3, 5: 3, 6: 6, 100: 6}[group]
    features, theta = random_input(classes=6)
    weight = torch.randn(2, 6, *features.shape[2:], generator=torch.Generator().manual_seed(2))
    results = []
    for n in (1, group):
        inputs = features.clone().requires_grad_(), theta.clone().requires_grad_()
        with LargestTensor() as largest:
            logits = class_heads.class_logits(*inputs, SIZES, chunk=7, group=n)
        assert largest.elements >= 6 * 64 * classes_in_one(6, n)         # the second layers' matrices, of 8 x 8 a class
        results.append([logits, *torch.autograd.grad((logits * weight).sum(), inputs)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_matrices_become_blocks_of_a_diagonal_and_come_back():
    matrices = torch.tensor([[[1., 2.]], [[3., 4.]], [[5., 6.]], [[7., 8.]]])                # 4 classes, each 1 x 2
    wide = _blocks(matrices, 2)
    assert wide.tolist() == [[[1, 2, 0, 0], [0, 0, 3, 4]], [[5, 6, 0, 0], [0, 0, 7, 8]]]
    assert torch.equal(_of_blocks(wide + (wide == 0), 1, 2), matrices)        # what is beside the blocks does not count


def test_gradients_are_those_that_autograd_finds_for_the_equation():
    features, theta = random_input(batch=2, classes=4, size=(5, 6, 7), dtype=torch.float64)
    weight = torch.randn(2, 4, 5, 6, 7)
    gradients = []
    for forward in (plain_class_logits, class_logits):
        inputs = features.clone().requires_grad_(), theta.clone().requires_grad_()
        gradients.append(torch.autograd.grad((forward(*inputs) * weight).sum(), inputs))
    for expected, actual in zip(*gradients):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)   # ours in float32, theirs in float64


@pytest.mark.usefixtures("form")
def test_a_class_reads_its_own_parameters_and_an_image_its_own_features():
    features, theta = random_input()
    before = class_logits(features, theta)
    theta[0, 1] += 1
    changed = (class_logits(features, theta) != before).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, True, False], [False, False, False]]
    features[1] += 1
    changed = (class_logits(features, theta) != before).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, True, False], [True, True, True]]


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation inside the block gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_the_feature_map_is_never_repeated_and_no_hidden_layer_is_kept():
    features, theta = (x.requires_grad_() for x in random_input(batch=1, classes=32, size=(8, 8, 16)))
    kept = []
    with LargestTensor() as largest, saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        logits = class_heads.class_logits(features, theta, SIZES, chunk=64)
        logits.sum().backward()
    assert largest.elements == logits.numel()                       # repeated, the feature map would be 8 times that
    assert sum(t.numel() for t in kept) == features.numel() + theta.numel()
    with LargestTensor() as largest:
        plain_class_logits(features, theta)
    assert largest.elements == 8 * logits.numel()


@pytest.mark.usefixtures("form")
def test_class_logits_are_float32_under_autocast():
    features, theta = random_input()
    expected = class_logits(features, theta)
    features, theta = features.requires_grad_(), theta.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = class_logits(features, theta)
        assert logits.dtype == torch.float32 and torch.equal(logits, expected)
        assert class_logits(features.bfloat16(), theta.bfloat16()).dtype == torch.float32
    gradients = torch.autograd.grad(logits.sum(), (features, theta))                  # outside, as in training
    assert all(g.dtype == torch.float32 for g in gradients)
    torch.testing.assert_close(gradients, torch.autograd.grad(class_logits(features, theta).sum(), (features, theta)))


def test_the_kernels_backward_pass_is_float32_even_inside_autocast():
    features, theta = (x.requires_grad_() for x in random_input())
    expected = torch.autograd.grad(class_logits(features, theta).sum(), (features, theta))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = torch.autograd.grad(class_logits(features, theta).sum(), (features, theta))
    torch.testing.assert_close(gradients, expected)


# --------------------------------------------------------------------- Eq. (1), the language-driven parameter generator

def test_theta_of_a_class_is_its_mlp_of_its_text_embedding_and_the_image_feature():
    torch.manual_seed(0)
    lpg = IndependentLPG(classes=3, text_width=5, hidden=7)
    pooled, text = torch.randn(2, 256), torch.randn(3, 5)
    theta = lpg(pooled, text)
    assert theta.shape == (2, 3, 153)
    for b in range(2):
        for k in range(3):
            hidden_layer, _, last_layer = lpg.controllers[k]
            hidden = F.relu(hidden_layer.weight @ torch.cat([pooled[b], text[k]]) + hidden_layer.bias)
            torch.testing.assert_close(theta[b, k], last_layer.weight @ hidden + last_layer.bias)


@pytest.mark.parametrize("form", [IndependentLPG, SharedLPG])
def test_the_image_feature_comes_before_the_text(form):
    lpg = form(classes=2, text_width=4)
    for parameter in lpg.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        if form is IndependentLPG:
            first, last = lpg.controllers[1][0], lpg.controllers[1][2]
            first.weight[0, 255] = first.weight[1, 256] = 1.0       # last of 256 image numbers, first of the text's
            last.weight[10, 0] = last.weight[11, 1] = 1.0
        else:
            lpg.text_to_vision.weight[0, 0] = 1.0
            lpg.controller.weight[10, 255] = lpg.controller.weight[11, 256] = 1.0
    pooled, text = torch.zeros(1, 256), torch.zeros(2, 4)
    pooled[0, 255], text[1, 0] = 2.0, 3.0
    assert lpg(pooled, text)[0, 1, 9:13].tolist() == [0.0, 2.0, 3.0, 0.0]


def test_the_shared_form_has_a_relu_after_the_text_layer_and_none_on_the_image_feature():
    lpg = SharedLPG(classes=1, text_width=1)
    for parameter in lpg.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        lpg.text_to_vision.weight[:] = 1.0
        lpg.controller.weight[0, 0] = lpg.controller.weight[1, 256] = 1.0
    pooled = torch.full((1, 256), -2.0)
    assert lpg(pooled, torch.tensor([[3.0]]))[0, 0, :2].tolist() == [-2.0, 3.0]
    assert lpg(pooled, torch.tensor([[-3.0]]))[0, 0, :2].tolist() == [-2.0, 0.0]


def test_a_changed_mlp_changes_its_own_class_only():
    torch.manual_seed(0)
    lpg = IndependentLPG(classes=3, text_width=5, hidden=7)
    pooled, text = torch.randn(2, 256), torch.randn(3, 5)
    before = lpg(pooled, text)
    with torch.no_grad():
        for parameter in lpg.controllers[1].parameters():
            parameter.add_(1)
    assert (lpg(pooled, text) != before).any(dim=2).tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("form", [IndependentLPG, SharedLPG])
def test_only_gives_the_parameters_of_the_chosen_classes_in_the_order_asked(form):
    torch.manual_seed(0)
    lpg = form(classes=4, text_width=5)
    pooled, text = torch.randn(2, 256), torch.randn(4, 5)
    torch.testing.assert_close(lpg(pooled, text, only=[3, 1]), lpg(pooled, text)[:, [3, 1]])


def test_a_new_class_costs_what_section_5_4_says():
    mlp = IndependentLPG(classes=1, text_width=512).controllers[0]      # 512: CLIP
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(768, 512), (512, 153)]
    assert sum(p.numel() for p in mlp.parameters()) == 472_217
    # An output is a sum of `in` products and a bias: in multiplications, in additions and one for the bias.
    operations = sum(layer.out_features * (2 * layer.in_features + 1) for layer in linear)
    assert operations == 943_769
    assert f"{operations / 1e9:.2e} GFLOPs" == "9.44e-04 GFLOPs"


def test_32_classes_of_the_independent_form_have_15_11_million_parameters():
    with torch.device("meta"):
        lpg = IndependentLPG(classes=32, text_width=512)
    assert sum(p.numel() for p in lpg.parameters()) == 15_110_944


# --------------------------------------------------------------------------------------------- what surrounds the heads

@pytest.mark.parametrize("channels, groups", [(768, 16), (512, 16), (64, 16), (48, 16), (16, 16), (24, 8), (12, 4),
                                              (8, 8), (7, 1)])
def test_group_norm_has_16_groups_or_as_many_of_them_as_divide_the_channels(channels, groups):
    norm = group_norm(channels)
    assert (norm.num_groups, norm.num_channels) == (groups, channels)


def test_pooling_gives_256_numbers_an_image_and_the_reduction_8_channels_a_voxel():
    assert global_average_pooling(24)(torch.rand(2, 24, 3, 2, 1)).shape == (2, 256, 1, 1, 1)
    assert reduce_features(12)(torch.rand(2, 12, 3, 4, 5)).shape == (2, 8, 3, 4, 5)


def test_pooling_is_the_mean_over_voxels_of_the_rectified_feature():
    pool = global_average_pooling(16)
    x = torch.randn(1, 16, 4, 4, 4)
    pooled = F.relu(pool[0](x)).mean(dim=(2, 3, 4))                     # (1, 16)
    torch.testing.assert_close(pool(x).flatten(1), pooled @ pool[3].weight.flatten(1).T + pool[3].bias)
