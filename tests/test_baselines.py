"""The baselines of Section 5: the terms of their losses against slow loops, targets and margins, the command."""

import json
import math

import numpy as np
import pytest
import torch

import uniseg
from conftest import Patient, write_dataset
from runs import TINY, batch_of
from uniseg import checkpoint, continual, train
from uniseg.baselines import (
    BOTTLENECK,
    LEVELS,
    PlainModel,
    Softmax,
    cross_entropy,
    index_map,
    insiders,
    local_pod,
    margins,
    pod_distance,
    refuse_unlabelled,
    softmax_dice,
    watched,
)
from uniseg.datasets.cases import Case
from uniseg.imaging.volume import write_volume
from uniseg.machine.choices import BASELINES
from uniseg.model import ModelConfig
from uniseg.phantom import make_phantom
from uniseg.training.extension import cost
from uniseg.training.recipe import TrainConfig
from uniseg.training.steps import training_step

CLASSES = ("spleen", "liver", "liver_tumor")                # the last is the new one
SCORES = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INDEX = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))


def plain(classes=CLASSES, backbone="unet", width=2, seed=2):
    torch.manual_seed(seed)
    return PlainModel(ModelConfig(classes, backbone, width, head="softmax"))


# -------------------------------------------------------------------------------------------------- one class per voxel

def test_a_voxel_gets_the_class_of_the_latest_kind_organs_vessels_tumours():
    target = torch.zeros(1, 3, 1, 1, 4)
    target[0, 1, 0, 0, :3] = 1                              # liver in voxels 0, 1, 2
    target[0, 2, 0, 0, 2:] = 1                              # its tumour in 2, 3
    target[0, 0, 0, 0, 1] = 1                       # spleen in 1, of the same kind as the liver: the later channel wins
    assert index_map(target, CLASSES).flatten().tolist() == [2, 2, 3, 3]


# D34
def test_a_label_covers_every_pseudo_label_but_what_lies_inside_its_class():
    """Pseudo labels: background, spleen, liver, its tumour, postcava. The true stomach covers them all.

    The true liver covers all but its tumour, which the label of a whole liver holds (Section 4.1.1).
    """
    classes = ("spleen", "liver", "liver_tumor", "postcava", "stomach")
    pseudo = torch.tensor([0, 1, 2, 3, 4]).view(1, 1, 1, 5)
    for new, expected in (("stomach", [5, 5, 5, 5, 5]), ("liver", [2, 2, 2, 3, 2]), ("liver_tumor", [3, 3, 3, 3, 3])):
        target = torch.zeros(1, 5, 1, 1, 5)
        target[:, classes.index(new)] = 1
        assert index_map(target, classes, pseudo, [classes.index(new)]).flatten().tolist() == expected


def test_where_nothing_is_labelled_the_pseudo_label_stays():
    tumour = torch.zeros(1, 3, 1, 1, 4)
    tumour[0, 2, 0, 0, 1:3] = 1
    old = torch.tensor([0, 1, 2, 3]).view(1, 1, 1, 4)       # background, spleen, liver, tumour as the old model has it
    assert index_map(tumour, CLASSES, old, [2]).flatten().tolist() == [0, 3, 3, 3]
    both = torch.zeros(1, 3, 1, 1, 4)                       # two new classes: between labels, the kind decides
    both[0, 1], both[0, 2, 0, 0, 0] = 1, 1
    assert index_map(both, CLASSES, torch.zeros_like(old), [1, 2]).flatten().tolist() == [3, 2, 2, 2]


def test_a_tumours_score_counts_for_its_organ_too():
    assert insiders(CLASSES) == [[0], [1, 2], [2]]
    assert insiders(("right_kidney", "left_kidney", "kidney_tumor")) == [[0], [1], [2]]     # of which side nobody knows
    scores = torch.tensor([1.0, 0.0, 2.0, 5.0]).view(1, 4, 1, 1, 1)                  # background, spleen, liver, tumour
    assert margins(scores, CLASSES).flatten().tolist() == [0 - 5, 5 - 1, 5 - 2]
    assert margins(scores, CLASSES, only=[2, 0]).flatten().tolist() == [3, -5]


def test_a_margin_is_above_zero_just_where_the_class_has_the_largest_score():
    found = margins(SCORES, ("spleen", "liver", "aorta"))
    for k in range(3):
        assert torch.equal(found[:, k] > 0, SCORES.argmax(1) == k + 1)


# ------------------------------------------------------------------------------------------------- terms, by slow loops

def softmax_at(b, voxel):
    e = [math.exp(SCORES[(b, c, *voxel)]) for c in range(4)]
    return [value / sum(e) for value in e]


def test_cross_entropy_is_the_mean_over_voxels():
    total, weighted, weight = 0.0, 0.0, [1.0, 1.0, 3.0, 5.0]
    for b in range(2):
        for voxel in np.ndindex(4, 4, 4):
            y = int(INDEX[(b, *voxel)])
            total -= math.log(softmax_at(b, voxel)[y])
            weighted -= weight[y] * math.log(softmax_at(b, voxel)[y])
    assert cross_entropy(SCORES, INDEX).item() == pytest.approx(total / 128, rel=1e-5)
    assert cross_entropy(SCORES, INDEX, torch.tensor(weight)).item() == pytest.approx(weighted / 128, rel=1e-5)


def slow_dice(channels):
    losses = []
    for b in range(2):
        for k in channels:
            product = p_sum = t_sum = 0.0
            for voxel in np.ndindex(4, 4, 4):
                p, t = softmax_at(b, voxel)[k + 1], float(INDEX[(b, *voxel)] == k + 1)
                product, p_sum, t_sum = product + p * t, p_sum + p, t_sum + t
            losses.append(1 - (2 * product + 1) / (p_sum + t_sum + 1))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("channels", [[2], [0, 1], [0, 1, 2]])
def test_dice_is_that_of_the_softmax_over_the_patch(channels):
    assert softmax_dice(SCORES, INDEX, channels).item() == pytest.approx(slow_dice(channels), rel=1e-5)


def slow_pod(x, scales=(1, 2, 4)):
    """All means along one axis within all blocks, as a sorted list: a distance does not depend on the order."""
    values = []
    channels, sizes = x.shape[0], x.shape[1:]
    for s in scales:
        d, h, w = (n // s for n in sizes)
        for c in range(channels):
            for i, j, k in np.ndindex(s, s, s):
                block = x[c, i * d:(i + 1) * d, j * h:(j + 1) * h, k * w:(k + 1) * w].numpy()
                for axis in range(3):
                    values += block.mean(axis).ravel().tolist()
    return sorted(values)


def test_the_local_pod_embedding_holds_the_means_along_each_axis_in_each_block_of_each_scale():
    x = SCORES[0, :2]                                                                               # (2, 4, 4, 4)
    found = local_pod(x[None])[0]
    assert sorted(found.tolist()) == pytest.approx(slow_pod(x))
    # scale s: s^3 blocks of (4/s)^3 voxels, three faces each, two channels
    assert len(found) == 2 * sum(s ** 3 * 3 * (4 // s) ** 2 for s in (1, 2, 4))
    assert len(local_pod(torch.zeros(1, 1, 2, 2, 2))[0]) == 3 * 4 + 8 * 3                    # 2 voxels have no quarters


def test_plops_distance_by_hand():
    """Maps of ones and of twos: their squares 1 and 4 differ by 3 in every mean."""
    a, b = torch.full((1, 1, 4, 4, 4), 1.0), torch.full((1, 1, 4, 4, 4), 2.0)
    length = sum(s ** 3 * 3 * (4 // s) ** 2 for s in (1, 2, 4))
    expected = 5e-4 * math.sqrt(14 / 1) * math.sqrt(length * 3.0 ** 2)
    assert pod_distance([a], [b], 14, 1).item() == pytest.approx(expected)
    assert pod_distance([a, a], [b, a], 14, 1).item() == pytest.approx(expected / 2)              # the mean over levels
    assert pod_distance([a], [b], 16, 4).item() == pytest.approx(expected * math.sqrt(4 / 14))
    assert pod_distance([a], [a], 14, 1).item() == 0


# ------------------------------------------------------------------------------------------------------- the whole loss

def teacher_of_two():
    """A plain network of the first two classes, with other weights."""
    return plain(CLASSES[:2], seed=3).eval()


def step_loss(method, teacher=True, old_weight=1.0):
    batch, network, old = batch_of(6, "111", "111"), plain(), teacher_of_two() if teacher else None
    loss = training_step(network, [batch], TrainConfig(), objective=Softmax(network, old, method, old_weight))
    return batch, network, old, loss.item()


def expected_terms(batch, network, old):
    """{term: value} of the losses as documented, from the functions that the slow loops above test."""
    with torch.no_grad():
        names = {*LEVELS["unet"]}
        with watched(network.backbone, names) as maps:
            scores = network(batch["image"], scores=True)
        target = torch.stack([(batch["bits"] >> k) & 1 for k in range(3)], dim=1)
        if old is None:
            index = index_map(target, CLASSES)
            return {"ce": cross_entropy(scores, index), "dice": softmax_dice(scores, index, [0, 1, 2])}
        with watched(old.backbone, names) as before:
            raw = old(batch["image"], scores=True)
        index = raw.argmax(1)
        index[target[:, 2] > 0] = 3                                                            # tumour: the latest kind
        return {"ce": cross_entropy(scores, index), "new dice": softmax_dice(scores, index, [2]),
                "old dice": softmax_dice(scores, index, [0, 1]),
                "mse": ((maps["down_tr512"] - before["down_tr512"]) ** 2).mean(),
                "pod": pod_distance([maps[n] for n in LEVELS["unet"]], [before[n] for n in LEVELS["unet"]], 3, 1)}


@pytest.mark.parametrize("old_weight", [1.0, 10.0])
@pytest.mark.parametrize("method, last", [("lwf", "old dice"), ("ilt", "mse"), ("plop", "pod")])
def test_each_method_is_the_sum_of_its_terms_the_one_that_keeps_old_classes_weighed_as_asked(method, last, old_weight):
    batch, network, old, loss = step_loss(method, old_weight=old_weight)
    found = expected_terms(batch, network, old)
    assert loss == pytest.approx((found["ce"] + found["new dice"] + old_weight * found[last]).item(), rel=1e-5)
    assert all(found[t] > 0 for t in ("ce", "new dice", last))


def test_a_first_training_is_cross_entropy_and_dice():
    batch, network, _, loss = step_loss("none", teacher=False)
    assert loss == pytest.approx(sum(v.item() for v in expected_terms(batch, network, None).values()), rel=1e-5)


def test_the_old_labels_of_the_new_data_are_not_looked_at():
    batch = batch_of(6, "111", "111")
    losses = []
    for bits in (batch["bits"], batch["bits"] & 4):                                        # with and without old labels
        network = plain()
        losses.append(training_step(network, [{**batch, "bits": bits}], TrainConfig(),
                                    objective=Softmax(network, teacher_of_two(), "lwf")).item())
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("backbone, width", [("unet", 2), ("segresnet", 4), ("swin_unetr", 3)])
def test_every_backbone_has_its_levels_and_its_bottleneck(backbone, width):
    network = plain(backbone=backbone, width=width)
    with torch.no_grad(), watched(network.backbone, LEVELS[backbone]) as maps:
        bottleneck, features = network.backbone(torch.rand(1, 1, 64, 64, 64))
    assert torch.equal(maps[BOTTLENECK[backbone]], bottleneck)
    assert list(maps) == list(LEVELS[backbone]) or set(maps) == set(LEVELS[backbone])
    # all levels but the last
    assert not any(m.shape == features.shape and torch.equal(m, features) for m in maps.values())
    sizes = {m.shape[2] for m in maps.values()}
    assert len(sizes) == (6 if backbone == "swin_unetr" else 4)                            # 64 ... 8, for Swin 64 ... 2


# ---------------------------------------------------------------------------------------------------------- the network

def test_a_plain_network_grows_by_a_row_and_its_old_scores_stay():
    network = plain(CLASSES[:2]).eval()
    content = {"network": network.describe(), "weights": network.state_dict(), "about": {}}
    more = continual.grow(content, CLASSES, torch.zeros(1, 384)).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(more(image, scores=True)[:, :3], network(image, scores=True), atol=1e-6)
    assert more.out.weight.shape[0] == 4 and checkpoint.build_network(more.describe()).classes == CLASSES
    assert cost(more, (16, 16, 16))["parameters"] == 2 + 1


def test_a_plain_networks_prior_is_the_probability_of_every_class():
    network = plain()
    network.set_prior(0.02)
    assert torch.softmax(network.out.bias, 0).tolist() == pytest.approx([0.94, 0.02, 0.02, 0.02])


def test_a_softmax_refuses_cases_that_lack_a_label(tmp_path):
    reason = "D/1: does not annotate liver; a softmax takes what is unlabelled for background"
    with pytest.raises(ValueError, match=reason):
        refuse_unlabelled([Case(tmp_path, "D", "D/1", ("spleen",), {})], ("spleen", "liver"))


# ---------------------------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A plain network of spleen and liver, trained for two epochs, and new data with the liver tumour."""
    root = tmp_path_factory.mktemp("baselines")
    patients = [Patient(*make_phantom((12.0, 12.0, 12.0), seed)) for seed in range(3)]
    write_dataset(root / "old" / "Old", {"spleen": ("spleen",), "liver": ("liver",)}, {"a": patients[0]})
    write_dataset(root / "new" / "New", {"liver": ("liver",), "liver tumor": ("liver_tumor",)}, {"b": patients[1]})
    write_dataset(root / "part" / "Part", {"spleen": ("spleen",)}, {"c": patients[2]})
    write_volume(root / "ct.nii.gz", patients[2].hu, patients[2].affine)
    assert train.main(["--data-root", str(root / "old"), "--out", str(root / "first"), *TINY, "--folds", "1", "--fold",
                       "0", "--epochs", "2",
                       "--head", "softmax"]) == 0
    return root


def extend(root, out, *more):
    return train.main(["--extend", str(root / "first" / "last.pt"), "--data-root", str(root / "new"), "--classes",
                       "liver tumor", "--folds", "1",
                       "--epochs", "2", "--steps-per-epoch", "2", "--workers", "0", "--device", "cpu", "--out",
                       str(out), *more])


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_extends_a_softmax_and_the_result_segments(first, tmp_path, method):
    assert extend(first, tmp_path / "run", "--baseline", method, "--weight-positives", "--prior", "0.02") == 0
    content = checkpoint.read(tmp_path / "run" / "last.pt")
    assert content["network"]["classes"] == ["spleen", "liver",
                                             "liver_tumor"] and content["network"]["head"] == "softmax"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["baseline"] == method
    said = "\n".join(checkpoint.describe(tmp_path / "run" / "last.pt", content))
    assert "U-Net with a softmax, a baseline of Section 5, 3 classes" in said and "LPG" not in said
    assert "extends    last.pt, sha256 " in said
    assert "softmax (a baseline of Section 5)" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    result = uniseg.load(tmp_path / "run" / "last.pt").segment(first / "ct.nii.gz", postprocess=False)
    assert result.classes == ("spleen", "liver", "liver_tumor")


@pytest.mark.slow
def test_what_a_baseline_cannot_do_is_refused_in_one_line(first, tmp_path, capsys):
    def refused(*arguments):
        assert train.main([*map(str, arguments), "--out", str(tmp_path / "run"), "--workers", "0"]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]
    new = ("--extend", first / "first" / "last.pt", "--data-root", first / "new", "--folds", 1, "--classes",
           "liver tumor")
    assert "a network with a softmax. Say how to extend it: --baseline lwf, ilt, plop." in refused(*new)
    assert "--hard-pseudo and --old-labels are for class-specific heads" in refused(*new, "--baseline", "lwf",
                                                                                    "--hard-pseudo")
    assert "--old-dice is for class-specific heads" in refused(*new, "--baseline", "lwf", "--old-dice", "squared")
    assert "--freeze old: only a network with one MLP per class" in refused(*new, "--baseline", "lwf", "--freeze",
                                                                            "old")
    assert ("does not annotate liver; a softmax takes what is unlabelled for background. "
            "Choose --classes that all cases annotate") in refused(
        "--data-root", first, "--include", "Old", "Part", "--head", "softmax", "--folds", 1, *TINY[:12])
