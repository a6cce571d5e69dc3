"""The masked loss, Eq. (3)-(4): numbers to check by hand, a slow loop, and exact zeros where nothing is annotated."""

import itertools
import math

import pytest
import torch

from uniseg import kernels
from uniseg.kernels.masked_sum import ROWS
from uniseg.losses import masked_loss, masked_sum, plain_masked_sum, without_ignored


@pytest.fixture(autouse=True, params=["readable form", "kernel"])
def form(request, monkeypatch):
    """Every test here runs with the form that losses.py shows, and with the kernel that is used by default."""
    monkeypatch.setattr(kernels, "ENABLED", request.param == "kernel")


CERTAIN = 50.0          # a logit whose sigmoid is 1 (or 0, negated) to the last digit: its cross-entropy is below 1e-20


def slow_loss(logits, label_maps, annotated, reduction="mean", positive_weight=None):
    """Eq. (3)-(4) voxel by voxel: for each class that the sample's dataset annotates, Dice loss + mean cross-entropy.

    label_maps: (B, D, H, W) class number of every voxel, Y of Eq. (3)
    annotated:  for each sample the class numbers its dataset annotates
    """
    summands = []
    for b, classes in enumerate(annotated):
        for k in classes:
            overlap = predicted = true = cross_entropy = 0.0
            places = list(itertools.product(*map(range, label_maps.shape[1:])))
            for d, h, w in places:
                m = 1 if label_maps[b, d, h, w] == k else 0                          # Eq. (3)
                p = 1 / (1 + math.exp(-logits[b, k, d, h, w].item()))                # the sigmoid of Eq. (2)
                weight = 1 if positive_weight is None else positive_weight[b, k].item()
                cross_entropy -= weight * m * math.log(p) + (1 - m) * math.log(1 - p)
                overlap, predicted, true = overlap + p * m, predicted + p, true + m
            dice_loss = 1 - (2 * overlap + 1) / (predicted + true + 1)
            summands.append(dice_loss + cross_entropy / len(places))                   # one summand of Eq. (4)
    return sum(summands) / (len(summands) if reduction == "mean" else 1)


def random_example(dtype=torch.float32):
    """Two samples, three classes; the first sample's dataset annotates classes 0 and 2, the second's class 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 3, 4, 2, generator=generator, dtype=dtype)
    label_maps = torch.randint(0, 3, (2, 3, 4, 2), generator=generator)
    target = torch.stack([label_maps == k for k in range(3)], dim=1)
    labelled = torch.tensor([[True, False, True], [False, True, False]])
    return logits, label_maps, target, labelled


def one_class(logits, target):
    """Loss of one sample and one annotated class given as flat lists."""
    x, t = (torch.tensor(v, dtype=torch.float32).view(1, 1, -1, 1, 1) for v in (logits, target))
    return masked_loss(x, t, torch.tensor([[True]])).item()


# ----------------------------------------------------------------------------------------------------------- its value

def test_the_loss_is_eq_4_voxel_by_voxel_as_a_mean_and_as_printed_a_sum():
    logits, label_maps, target, labelled = random_example()
    mean, total = (slow_loss(logits, label_maps, [[0, 2], [1]], reduction) for reduction in ("mean", "sum"))
    assert masked_loss(logits, target, labelled).item() == pytest.approx(mean, rel=1e-5)
    assert masked_sum(logits, target, labelled)[0].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("dice_of_absent", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_kernel_gives_the_numbers_and_the_gradient_of_the_readable_form(dice_of_absent, dtype):
    logits, _, target, labelled = random_example()
    target[0, 2] = False                                                             # annotated and absent
    weight, results = torch.tensor([[1.0, 7.0, 2.5], [7.0, 12.0, 7.0]]), []
    for function in (plain_masked_sum, masked_sum):
        x = logits.to(dtype).requires_grad_()
        total, sums = function(x, target, labelled, weight, dice_of_absent)
        results.append((total, sums, torch.autograd.grad(total, x)[0].float()))
    for plain, fast in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=1e-6)


def test_positive_weights_multiply_the_cross_entropy_of_positive_voxels():
    logits, label_maps, target, labelled = random_example()
    weight = torch.tensor([[1.0, 7.0, 2.5], [7.0, 12.0, 7.0]])                       # 7: classes not annotated
    expected = slow_loss(logits, label_maps, annotated=[[0, 2], [1]], positive_weight=weight)
    assert masked_loss(logits, target, labelled, positive_weight=weight).item() == pytest.approx(expected, rel=1e-5)
    ones = torch.ones(2, 3)
    assert masked_loss(logits, target, labelled, positive_weight=ones) == masked_loss(logits, target, labelled)


def test_the_sums_are_those_of_the_annotated_pairs_voxels_and_are_added_to():
    """Logit 0 is probability 1/2, log 3 is 3/4. Two samples of two voxels; the second does not annotate class 1."""
    third = math.log(3)
    logits = torch.tensor([[[third, 0.0], [0.0, 0.0]], [[0.0, 0.0], [third, third]]]).view(2, 2, 2, 1, 1)
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]).view(2, 2, 2, 1, 1)
    labelled, sums = torch.tensor([[True, True], [True, False]]), torch.ones(3, 2)
    loss = masked_loss(logits, target, labelled, sums=sums)
    assert torch.allclose(sums - 1, torch.tensor([[0.75 + 1, 0], [1.25 + 1, 1], [1.0 + 2, 0]]))        # of p t, p and t
    assert loss == masked_loss(logits, target, labelled) and not sums.requires_grad


def test_a_perfect_prediction_costs_nothing():
    assert one_class([CERTAIN, -CERTAIN, -CERTAIN], [1, 0, 0]) == pytest.approx(0, abs=1e-6)


def test_finding_nothing_where_there_is_nothing_costs_nothing():
    assert one_class([-CERTAIN] * 4, [0] * 4) == pytest.approx(0, abs=1e-6)


def test_two_undecided_voxels_one_of_them_positive():
    # p = 1/2 twice: cross-entropy ln 2; Dice quotient (2 * 1/2 + 1) / (1 + 1 + 1) = 2/3
    assert one_class([0.0, 0.0], [1, 0]) == pytest.approx(math.log(2) + 1 / 3)


def test_two_voxels_exactly_wrong():
    # p = (0, 1), target (1, 0): Dice quotient (0 + 1) / (1 + 1 + 1); each cross-entropy is the logit, 50
    assert one_class([-CERTAIN, CERTAIN], [1, 0]) == pytest.approx(50 + 2 / 3)


def test_a_false_alarm_of_three_voxels_where_the_class_is_absent():
    # Dice quotient (0 + 1) / (3 + 0 + 1); cross-entropy 3 * 50 / 4
    assert one_class([CERTAIN] * 3 + [-CERTAIN], [0] * 4) == pytest.approx(37.5 + 3 / 4)


@pytest.mark.parametrize("labelled", [[[1, 0, 1], [0, 1, 0]], [[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [0, 1, 1]]])
@pytest.mark.parametrize("dice_of_absent", [True, False])
def test_rows_taken_together_as_on_a_gpu_are_as_each_alone(monkeypatch, labelled, dice_of_absent):
    logits, _, target, _ = random_example()
    target[1, 1] = False
    labelled, weight, results = torch.tensor(labelled) == 1, torch.tensor([[1., 2, 3], [1.5, 4, 1]]), []
    for rows in (1, 2, 32):
        monkeypatch.setitem(ROWS, "cpu", rows)
        x, sums = logits.clone().requires_grad_(), torch.zeros(3, 3)
        loss = masked_loss(x, target, labelled, positive_weight=weight, sums=sums, dice_of_absent=dice_of_absent)
        results.append((loss, torch.autograd.grad(loss, x)[0], sums))
    for together in results[1:]:
        torch.testing.assert_close(together, results[0])


def test_without_the_dice_of_absent_classes_a_false_alarm_costs_its_cross_entropy_and_the_others_what_they_did():
    logits, _, target, labelled = random_example()
    target[0, 2] = False                                                    # annotated and absent
    with_it, without = (masked_sum(logits, target, labelled, dice_of_absent=dice)[0] for dice in (True, False))
    falsely = torch.sigmoid(logits[0, 2]).sum().item()
    assert (with_it - without).item() == pytest.approx(falsely / (falsely + 1), rel=1e-5)
    target[0, 2, 0, 0, 0] = True                                            # one voxel, and its Dice counts
    assert masked_loss(logits, target, labelled, dice_of_absent=False) == masked_loss(logits, target, labelled)


@pytest.mark.slow
def test_the_dice_of_patches_without_it_takes_a_rare_class_to_nothing():
    """One probability for all voxels of eight patches of 4000 voxels; one patch has ten voxels of the class."""
    target = torch.zeros(8, 1, 4000, 1, 1)
    target[0, 0, :10] = 1
    learned = []
    for dice_of_absent in (True, False):
        logit = torch.tensor(-4.0, requires_grad=True)                      # a prior of 0.018
        optimizer = torch.optim.Adam([logit], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            masked_loss(logit.expand(target.shape), target, torch.ones(8, 1, dtype=torch.bool),
                        dice_of_absent=dice_of_absent).backward()
            optimizer.step()
        learned.append(torch.sigmoid(logit).item())
    assert learned[0] < 5e-6 < 5e-5 < learned[1] < 10 / 32000


def test_dice_is_taken_over_the_volume_not_slice_by_slice():
    """An organ on 32 of 96 slices, found exactly. With a Dice of 0 for each empty slice the loss would be 64 / 96."""
    target = torch.zeros(1, 1, 96, 4, 4)
    target[:, :, :32] = 1
    logits = CERTAIN * (2 * target - 1)
    assert masked_loss(logits, target, torch.tensor([[True]])).item() == pytest.approx(0, abs=1e-6)
    # and an imperfect one: all of the 96 slices predicted, the cross-entropy of 64 of them is 50
    everything = torch.full_like(target, CERTAIN)
    quotient = (2 * 512 + 1) / (1536 + 512 + 1)
    assert masked_loss(everything, target, torch.tensor([[True]])).item() == pytest.approx(50 * 2 / 3 + 1 - quotient)


def test_classes_may_overlap():
    target = torch.ones(1, 2, 2, 2, 2)                      # a tumour that fills its organ: both are right
    assert masked_loss(CERTAIN * target, target, torch.tensor([[True, True]])).item() == pytest.approx(0, abs=1e-6)


# -------------------------------------------------------------------------------------------- what is not annotated

def test_a_class_that_is_not_annotated_changes_neither_the_loss_nor_any_gradient():
    logits, _, target, labelled = random_example()
    target, spoilt_target = target.float(), target.float()
    spoilt = logits.clone()
    spoilt[0, 1], spoilt[1, 0], spoilt[1, 2] = math.nan, math.inf, -math.inf
    spoilt_target[~labelled] = math.nan
    results = []
    for x, t in ((logits, target), (spoilt, spoilt_target)):
        x.requires_grad_()
        loss = masked_loss(x, t, labelled)
        results.append((loss, *torch.autograd.grad(loss, x)))
    (loss, gradient), (spoilt_loss, spoilt_gradient) = results
    assert loss == spoilt_loss and torch.equal(gradient, spoilt_gradient)
    assert (gradient[~labelled] == 0).all() and (gradient[labelled] != 0).all()


def test_annotated_and_absent_is_not_the_same_as_not_annotated():
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    masked_loss(logits, torch.zeros(1, 2, 2, 2, 2), torch.tensor([[True, False]])).backward()
    assert (logits.grad[0, 0] > 0).all()                    # absent: every voxel is background
    assert (logits.grad[0, 1] == 0).all()                   # not annotated: nothing is known


@pytest.mark.parametrize("loss_of", [masked_loss, lambda *arguments: masked_sum(*arguments)[0]], ids=["mean", "sum"])
def test_where_nothing_is_annotated_the_loss_is_zero_and_so_is_every_gradient(loss_of):
    logits, _, target, labelled = random_example()
    logits.requires_grad_()
    loss = loss_of(logits, target, torch.zeros_like(labelled))
    loss.backward()
    assert loss.item() == 0 and loss.shape == ()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# --------------------------------------------------------------------------------------------------------- gradients

def test_gradients_agree_with_finite_differences():
    logits, _, target, labelled = random_example(torch.float64)
    logits.requires_grad_()
    weight = torch.tensor([[1.0, 7.0, 2.5], [7.0, 12.0, 7.0]], dtype=torch.float64)
    for options in ({}, {"pairs": 7.0}, {"positive_weight": weight}, {"dice_of_absent": False}):
        assert torch.autograd.gradcheck(lambda x: masked_loss(x, target, labelled, **options), logits)
    target[0, 0] = False                                    # absent: with its Dice and without
    for dice in (True, False):
        assert torch.autograd.gradcheck(lambda x: masked_loss(x, target, labelled, dice_of_absent=dice), logits)


def test_gradients_agree_with_finite_differences_for_soft_targets():
    logits, _, target, labelled = random_example(torch.float64)
    soft = 0.1 + 0.7 * target.double()                      # pseudo labels may be probabilities, Eq. (5)
    assert torch.autograd.gradcheck(lambda x: masked_loss(x, soft, labelled), logits.requires_grad_())


def test_a_second_backward_pass_gives_the_same_gradient():
    logits, _, target, labelled = random_example()
    logits.requires_grad_()
    loss = 3 * masked_loss(logits, target, labelled)
    first, = torch.autograd.grad(loss, logits, retain_graph=True)
    second, = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_the_scale_of_a_gradient_scaler_reaches_small_half_precision_gradients():
    # p = sigmoid(-18) = 1.5e-8 is 0 in half precision, which stops at 6e-8, unless the scale is multiplied in first.
    logits = torch.full((1, 1, 16, 16, 16), -18.0, dtype=torch.float16, requires_grad=True)
    labelled = torch.tensor([[True]])
    (65536 * masked_loss(logits, torch.zeros_like(logits), labelled)).backward()
    assert (logits.grad > 0).all()


def test_dividing_by_the_pairs_of_all_processes_adds_up_to_the_joint_batch():
    """Two processes with 2 and 1 annotated pairs: their mean must be that of one process with the joint batch."""
    logits, _, target, labelled = random_example()
    joint = masked_loss(logits, target, labelled)
    pairs = labelled.sum() / 2                              # over all ranks, divided by the number of ranks
    ranks = [masked_loss(logits[b:b + 1], target[b:b + 1], labelled[b:b + 1], pairs=pairs) for b in range(2)]
    torch.testing.assert_close(sum(ranks) / 2, joint)
    torch.testing.assert_close(masked_loss(logits, target, labelled, pairs=1.5), 2 * joint)       # a plain number too


# ------------------------------------------------------------------------------------------------------------- types

@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_the_target_may_have_any_type(dtype):
    logits, _, target, labelled = random_example()
    assert masked_loss(logits, target.to(dtype), labelled) == masked_loss(logits, target.float(), labelled)


def test_logits_in_bfloat16_give_a_float32_loss_and_bfloat16_gradients():
    logits, _, target, labelled = random_example()
    rounded = logits.bfloat16().requires_grad_()
    loss = masked_loss(rounded, target, labelled)
    loss.backward()
    assert loss.dtype == torch.float32 and rounded.grad.dtype == torch.bfloat16
    exact = rounded.detach().float().requires_grad_()
    expected = masked_loss(exact, target, labelled)
    expected.backward()
    assert loss == expected and torch.equal(rounded.grad, exact.grad.bfloat16())


@pytest.mark.parametrize("target, labelled", [((2, 3, 3, 4, 1), (2, 3)), ((2, 1, 3, 4, 2), (2, 3)),
                                              ((2, 3, 3, 4, 2), (2, 1)),
                                              ((2, 3, 3, 4, 2), (3,))])
def test_shapes_that_do_not_fit_are_refused_by_number(target, labelled):
    with pytest.raises(ValueError, match=r"logits \(2, 3, 3, 4, 2\), target .* do not fit. Expected \(B, K, D, H, W\)"):
        masked_loss(torch.zeros(2, 3, 3, 4, 2), torch.zeros(target), torch.ones(labelled, dtype=torch.bool))



# ------------------------------------------------------------------------------------ other kinds of Dice, soft targets

def slow_dice_loss(p, t, kind):
    overlap = sum(a * b for a, b in zip(p, t))
    sizes = sum(a * a + b * b for a, b in zip(p, t)) if kind == "squared" else sum(p) + sum(t)
    return 1 - (2 * overlap + 1) / (sizes + 1)


@pytest.mark.parametrize("kind", ["linear", "squared", "none"])
def test_the_dice_of_soft_targets_is_that_of_a_slow_loop(kind):
    x = torch.tensor([-2.0, 0.5, 1.0, 3.0])
    t = torch.tensor([0.1, 0.6, 0.8, 0.9])
    p = torch.sigmoid(x).tolist()
    bce = -sum(a * math.log(b) + (1 - a) * math.log(1 - b) for a, b in zip(t.tolist(), p)) / 4
    expected = bce + (slow_dice_loss(p, t.tolist(), kind) if kind != "none" else 0)
    shape = (1, 1, 4, 1, 1)
    found = masked_loss(x.view(shape), t.view(shape), torch.tensor([[True]]), dice=kind)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_where_student_and_soft_target_are_equal_only_the_squared_dice_is_at_rest():
    """The linear Dice pulls sure voxels up and unsure ones down even there: what keeps new classes back (Eq. (5))."""
    target = torch.tensor([0.1, 0.3, 0.7, 0.9]).view(1, 1, 4, 1, 1)
    pull = {}
    for kind in ("linear", "squared", "none"):
        logits = torch.logit(target).requires_grad_()
        masked_loss(logits, target, torch.tensor([[True]]), dice=kind).backward()
        pull[kind] = logits.grad.abs().max().item()
    assert pull["squared"] < 1e-6 and pull["none"] < 1e-6 < 0.01 < pull["linear"]


def test_an_ignored_voxel_adds_nothing_and_gets_no_gradient():
    """Four voxels at probability 1/2; the class is in the first and the third. The last two are ignored.

    BCE: ln 2 in two voxels, divided by all four. Dice of the first two: 1 - (2 * 1/2 + 1) / (1 + 1 + 1) = 1/3.
    """
    logits = torch.zeros(1, 1, 4, 1, 1, requires_grad=True)
    target = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 4, 1, 1)
    bits = torch.tensor([1, 0, 1 - 2 ** 63, -2 ** 63]).view(1, 4, 1, 1)
    loss = masked_loss(*without_ignored(logits, target, bits), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(math.log(2) / 2 + 1 / 3, rel=1e-6)
    loss.backward()
    assert logits.grad.ravel()[2:].tolist() == [0.0, 0.0] and logits.grad.ravel()[:2].abs().min() > 0


def test_a_patch_without_ignored_voxels_is_left_as_it_is():
    logits, _, target, _ = random_example()
    bits = torch.zeros(2, 3, 4, 2, dtype=torch.int64)
    same = without_ignored(logits, target, bits)
    assert same[0] is logits and same[1] is target
