"""train.py: the recipe's pure parts by hand, one step against a joint batch, then whole runs, and what is refused.

Runs that are interrupted: test_resume.py; several processes: test_distributed.py. Ids like D12 are those of
docs/faults.md.
"""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import Patient, write_dataset
from runs import RUN_FILES, TINY, batch_of, gradients, joined, metrics, small_network
from uniseg import checkpoint, train
from uniseg.data import PatchDataset
from uniseg.datasets.cases import Case
from uniseg.datasets.find import find_datasets
from uniseg.imaging.volume import write_volume
from uniseg.losses import unpack_bits
from uniseg.machine import processes
from uniseg.machine.processes import start_processes
from uniseg.phantom import make_phantom
from uniseg.train import main, parse
from uniseg.training import batches, split
from uniseg.training.batches import SampleNumbers
from uniseg.training.network import relative
from uniseg.training.objective import PartialLabels, make_objective, positive_weights
from uniseg.training.options import build_parser, make_config
from uniseg.training.recipe import TrainConfig, lr_at, never_leaves_warmup
from uniseg.training.steps import learning, training_step
from uniseg.training.validation import case_scores, mean_dice, validate

# --------------------------------------------------------------------------------------------------------- the defaults

def test_without_options_the_recipe_is_the_papers():
    """Section 4.1.2; the learning rate's digit and the epochs are those of the released code."""
    c = TrainConfig()
    assert (c.backbone, c.encoding, c.lpg) == ("swin_unetr", "v3", "independent")
    assert (c.spacing, c.hu_window, c.patch_size) == (1.5, (-175.0, 250.0), (96, 96, 96))
    assert (c.foreground, c.rotate_probability, c.shift_probability) == (2 / 3, 0.1, 0.2)
    assert (c.batch_size, c.lr, c.beta1, c.weight_decay, c.warmup_epochs, c.epochs, c.folds) == \
        (6, 1e-4, 0.9, 1e-5, 50, 2000, 5)
    assert (c.augment, c.balance, c.weight_positives, c.prior, c.antialias, c.amp) == \
        ("paper", 0.0, False, 0.5, False, "off")


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda f: f.name)
def test_the_commands_default_is_the_recipes(field):
    args = build_parser().parse_args(["--data-root", "x"])
    assert getattr(args, field.name) == field.default


def test_an_option_reaches_the_config():
    args = build_parser().parse_args(["--data-root", "x", "--device", "cpu", "--patch-size", "32", "96", "64", "--lr",
                                      "0.5", "--weight-positives"])
    config = make_config(args, train_cases=7, world=1)
    assert (config.patch_size, config.lr, config.weight_positives) == ((32, 96, 64), 0.5, True)


def test_pairs_of_hu_and_weights_of_datasets_reach_the_config():
    args = build_parser().parse_args(["--data-root", "x", "--device", "cpu", "--hu-window", "-1000", "1000",
                                      "--input-windows", "-175", "250", "-1000", "1000", "--dataset-weights", "LiTS=2",
                                      "a=b=0.5"])
    config = make_config(args, train_cases=7, world=1)
    assert config.input_windows == ((-175.0, 250.0), (-1000.0, 1000.0))
    assert config.dataset_weights == (("LiTS", 2.0), ("a=b", 0.5))  # the last "=" parts name and weight
    assert relative(config) == ((0.4125, 0.625), (0.0, 1.0))                    # 825 and 1250 of 2000 HU


@pytest.mark.parametrize("cases, world, accumulate, steps", [(12, 1, 1, 2), (13, 1, 1, 3), (13, 2, 1, 2), (13, 2, 2, 1),
                                                             (1, 1, 1, 1)])
def test_an_epoch_draws_each_case_once_on_average(cases, world, accumulate, steps):
    args = build_parser().parse_args(["--data-root", "x", "--device", "cpu", "--accumulate", str(accumulate)])
    assert make_config(args, cases, world).steps_per_epoch == steps                     # of 6 patches a process


@pytest.mark.parametrize("option", [
    ("--lr", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--lr", "inf"), ("--epochs", "0"), ("--epochs", "ten"),
    ("--batch-size", "0"), ("--accumulate", "0"), ("--foreground", "1.5"), ("--prior", "-0.1"),
    ("--patch-size", "4", "4", "4"), ("--overfit", "0"), ("--seed", "-1"), ("--workers", "-1"),
    ("--backbone", "resnet"), ("--folds", "0"), ("--fold", "-1"), ("--spacing", "0"), ("--dataset-weights", "Chest"),
    ("--dataset-weights", "=2"), ("--dataset-weights", "Chest=0"), ("--dataset-weights", "Chest=much"),
    ("--max-skipped", "-1"), ("--timeout", "0"), ("--timeout", "1e300"), ("--on-save-error", "shrug")], ids=" ".join)
def test_d26_impossible_numbers_are_refused_by_the_parser(option, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["--data-root", "x", *option])
    assert end.value.code == 2 and f"argument {option[0]}" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- pure parts

def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine():
    c = TrainConfig(lr=1.0, epochs=30, warmup_epochs=10, steps_per_epoch=2)  # 20 steps of warm-up, 40 of cosine
    assert lr_at(0, c) == 1 / 20
    assert lr_at(9, c) == 10 / 20
    assert lr_at(19, c) == lr_at(20, c) == 1.0                                        # the peak
    assert lr_at(20 + 10, c) == pytest.approx((1 + math.sqrt(0.5)) / 2)               # cos 45 degrees
    assert lr_at(20 + 20, c) == pytest.approx(0.5)                                    # half way down
    assert lr_at(60, c) == pytest.approx(0.0)
    rates = [lr_at(step, c) for step in range(61)]
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak():
    assert lr_at(0, TrainConfig(lr=0.3, epochs=4, warmup_epochs=0, steps_per_epoch=5)) == 0.3


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    c = TrainConfig(lr=1.0, epochs=5, warmup_epochs=50, steps_per_epoch=2)
    assert [lr_at(step, c) for step in (0, 9)] == [0.01, 0.1]


SHARINGS = [(world, accumulate, 12 // (world * accumulate)) for world in (1, 2, 3, 4) for accumulate in (1, 2, 3)
            if 12 % (world * accumulate) == 0]


@pytest.mark.parametrize("world, accumulate, batch", SHARINGS)
def test_step_s_draws_the_same_samples_however_they_are_shared_out(world, accumulate, batch):
    """12 samples a step: s * 12 ... s * 12 + 11, each computed once."""
    config = TrainConfig(epochs=2, steps_per_epoch=3, batch_size=batch, accumulate=accumulate)
    ranks = [list(SampleNumbers(config, 0, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {6 * accumulate} == {len(SampleNumbers(config, 0, 0, world))}
    for step in range(6):
        drawn = [n for batches in ranks for part in batches[step * accumulate:(step + 1) * accumulate] for n in part]
        assert sorted(drawn) == list(range(step * 12, step * 12 + 12))


def test_a_resumed_run_draws_what_the_rest_of_the_run_would_have_drawn():
    config = TrainConfig(epochs=2, steps_per_epoch=3, batch_size=2, accumulate=2)
    whole = list(SampleNumbers(config, 0, rank=1, world=2))
    rest = SampleNumbers(config, 4, rank=1, world=2)
    assert list(rest) == whole[8:] and len(rest) == 4


def test_bits_unpack_into_one_map_a_class():
    bits = torch.tensor([0b000, 0b001, 0b010, 0b101]).reshape(1, 2, 2, 1)
    target = unpack_bits(bits, 3)
    assert target.shape == (1, 3, 2, 2, 1) and target.dtype == torch.float32
    assert target.flatten(2).tolist() == [[[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]]


def test_bit_63_unpacks_although_it_is_the_sign():
    assert unpack_bits(torch.full((1, 1, 1, 1), -2 ** 63), 64).flatten().tolist() == [0.0] * 63 + [1.0]


def test_rare_classes_weigh_more_between_1_and_12():
    """(10000 / 2500)^0.6 = 2.297; the mean is over the cases that have the class."""
    cases = [Case(Path(), "a", "a/x", (), {"liver": 40000, "aorta": 2000, "adrenal": 10, "spleen": 0}),
             Case(Path(), "b", "b/y", (), {"aorta": 3000})]
    weights = positive_weights(cases, ("liver", "aorta", "adrenal", "spleen"))
    assert weights.tolist() == pytest.approx([1.0, 4 ** 0.6, 12.0, 1.0])


def test_at_power_1_a_rare_class_weighs_as_much_as_the_rest_of_the_patch():
    """32000 voxels a patch: 12.8 times those of the aorta, and fewer than those of the liver. At power 0.5 the square
    root."""
    cases = [Case(Path(), "a", "a/x", (), {"liver": 40000, "aorta": 2500, "adrenal": 20})]
    names = ("liver", "aorta", "adrenal")
    assert positive_weights(cases, names, 1.0, 32000).tolist() == pytest.approx([1.0, 12.8, 1600.0])
    assert positive_weights(cases, names, 0.5, 32000).tolist() == pytest.approx([1.0, 12.8 ** 0.5, 40.0])


# --------------------------------------------------------------------------------------------------------------- a step

def test_two_micro_batches_give_the_gradient_of_the_joint_batch():
    """Three labelled pairs in one, one in the other: the mean of their means would weigh the lone pair three times."""
    parts = [batch_of(0, "111"), batch_of(1, "010")]
    apart, together = small_network(), small_network()
    loss_apart = training_step(apart, parts, TrainConfig(accumulate=2))
    loss_together = training_step(together, [joined(*parts)], TrainConfig())
    assert torch.allclose(loss_apart, loss_together)
    assert torch.allclose(gradients(apart), gradients(together), rtol=1e-4, atol=1e-6)
    unequal = [small_network() for _ in parts]
    means = sum(training_step(n, [p], TrainConfig()) for n, p in zip(unequal, parts)) / 2
    assert not torch.allclose(means, loss_together, rtol=1e-4)                        # so the test can tell


@pytest.mark.parametrize("lpg", ["independent", "shared"])
def test_a_class_that_is_not_annotated_gets_no_gradient_at_all(lpg):
    """What its target holds does not matter either: the same gradients with all its bits turned."""
    network, other = small_network(lpg), small_network(lpg)
    batch = batch_of(0, "101", "001")
    training_step(network, [batch], TrainConfig())
    turned = {**batch, "bits": batch["bits"] ^ 0b010}                                 # liver, bit 1
    training_step(other, [turned], TrainConfig())
    assert torch.equal(gradients(network), gradients(other))
    if lpg == "independent":
        sums = [sum(p.grad.abs().sum().item() for p in mlp.parameters()) for mlp in network.lpg.controllers]
        assert sums[0] > 0 and sums[1] == 0 and sums[2] > 0


def test_a_batch_in_which_nothing_is_annotated_has_loss_and_gradients_of_zero():
    network = small_network()
    assert training_step(network, [batch_of(0, "000")], TrainConfig()).item() == 0
    assert gradients(network).abs().max() == 0


def test_annotated_and_absent_teaches_that_there_is_none():
    """D09. No voxel is liver. Annotated: the liver's last bias is pushed down; not annotated: it is left alone."""
    pushed = {}
    for labelled in ("010", "000"):
        network, batch = small_network(), batch_of(0, labelled)
        batch["bits"] &= 0b101
        training_step(network, [batch], TrainConfig())
        pushed[labelled] = network.lpg.controllers[1][2].bias.grad[-1].item()  # theta's last number: the logit's bias
    assert pushed["010"] > 0 and pushed["000"] == 0                                   # descent subtracts the gradient


def test_what_is_learned_of_a_class_is_said_by_its_probability_and_its_dice():
    """Spleen: 4 voxels in which the probabilities add up to 1, and 6 over all; no voxel of the liver was seen."""
    sums = torch.tensor([[1.0, 0.0, 3.0], [6.0, 2.0, 3.0], [4.0, 0.0, 3.0]])
    assert learning(sums, ("spleen", "liver", "aorta")) == {"spleen": {"probability": 0.25, "dice": 0.2},
                                                            "aorta": {"probability": 1.0, "dice": 1.0}}


def test_the_sums_of_a_step_are_those_of_its_micro_batches_and_change_nothing_else():
    """The untrained network's own logits, voxel by voxel; spleen (bit 0) and aorta (bit 2) are annotated in one
    batch, the aorta in both."""
    parts, sums = [batch_of(0, "101"), batch_of(1, "001")], torch.zeros(3, 3)
    network, other = small_network(), small_network()
    expected = torch.zeros(3, 3)
    with torch.no_grad():
        for part, annotated in zip(parts, ([0, 2], [2])):
            p, t = torch.sigmoid(other(part["image"]))[0], unpack_bits(part["bits"], 3)[0]
            for k in annotated:
                expected[:, k] += torch.stack([p[k][t[k] > 0].sum(), p[k].sum(), t[k].sum()])
    loss = training_step(network, parts, TrainConfig(accumulate=2), objective=PartialLabels(sums))
    assert torch.allclose(sums, expected, rtol=1e-5) and expected[2].count_nonzero() == 2
    assert loss == training_step(other, parts, TrainConfig(accumulate=2))
    assert torch.equal(gradients(network), gradients(other))


def test_the_sum_of_eq_4_as_printed_is_the_sum_over_the_classes_of_each_sample():
    """Three classes are annotated in one sample, one in the other: mean over four pairs, or sum over each sample's."""
    batch, losses = batch_of(0, "111", "010"), {}
    for reduction in ("mean", "sum"):
        config, network = TrainConfig(reduction=reduction), small_network()
        objective = make_objective(SimpleNamespace(old=None, extend=None), config, network, [], torch.device("cpu"))
        losses[reduction] = training_step(network, [batch], config, objective=objective).item()
    assert losses["sum"] == pytest.approx(losses["mean"] * 4 / 2, rel=1e-6)


# D35
@pytest.mark.parametrize("epochs, warmup, doubtful", [(50, 50, True), (1, 50, True), (51, 50, False), (1, 0, False)])
def test_a_run_that_ends_within_its_warm_up_is_doubted(epochs, warmup, doubtful):
    config = TrainConfig(epochs=epochs, warmup_epochs=warmup)
    assert ("never falls" in never_leaves_warmup(config)) == doubtful == bool(never_leaves_warmup(config))


@pytest.mark.parametrize("amp, warnings", [("bf16", 1), ("off", 0)])
def test_bf16_on_a_processor_that_imitates_it_is_a_warning_before_work(amp, warnings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uniseg.machine.device.has_bf16", lambda: False)
    assert main(["--data-root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), "--device", "cpu", "--amp",
                 amp, "--backbone", "unet", "--patch-size", "32", "32", "32", "--batch-size", "1"]) == 2
    *told, error = capsys.readouterr().err.splitlines()
    assert "nowhere: no such folder" in error
    assert sum(line.startswith("uniseg: warning: --amp bf16: this processor has no instructions for it, and PyTorch "
                               "imitates them") for line in told) == warnings


def test_dice_present_takes_the_dice_of_absent_classes_out_of_a_step():
    """Spleen (bit 0) is annotated and the batch has no voxel of it, and so is the aorta (bit 2), of which it has
    one."""
    batch, losses = batch_of(0, "101"), []
    batch["bits"] = torch.zeros_like(batch["bits"])
    batch["bits"][0, 0, 0, 0] = 4
    for dice_present in (False, True):
        config, network = TrainConfig(dice_present=dice_present), small_network()
        objective = make_objective(SimpleNamespace(old=None, extend=None), config, network, [], torch.device("cpu"))
        losses.append(training_step(network, [batch], config, objective=objective).item())
    with torch.no_grad():
        falsely = torch.sigmoid(small_network()(batch["image"]))[0, 0].sum().item()
    # mean of two annotated classes
    assert losses[0] - losses[1] == pytest.approx(falsely / (falsely + 1) / 2, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- validation

class Threshold:
    """A stand-in for a network: says "liver" where the image is bright, "aorta" everywhere, "colon" nowhere."""

    classes = ("liver", "aorta", "colon")

    def __call__(self, image):
        bright = image - 0.5
        return torch.cat([bright, torch.ones_like(bright), -torch.ones_like(bright)], dim=1)

    def eval(self): pass

    def train(self): pass


def test_validation_gives_the_mean_dice_of_the_cases_that_have_the_class(tmp_path):
    """A 10^3 liver, bright, in 20^3 voxels. Its aorta is 1/8 of the volume, so calling all of it aorta has Dice 2/8 /
    (9/8)."""
    from test_data import handmade

    box = np.zeros((20, 20, 20), int)
    box[5:15, 5:15, 5:15] = 1
    both = handmade(tmp_path / "both", "a", box * 0b11, ["liver", "aorta"], image=np.where(box, 250, -175))
    # annotated and absent
    empty = handmade(tmp_path / "empty", "b", box * 0b00, ["liver"], image=np.full(box.shape, 250))
    other = handmade(tmp_path / "other", "c", box, ["colon"], image=np.full(box.shape, -175))
    config = replace(TrainConfig(), patch_size=(8, 16, 12))
    cases = [both, empty, other]
    counts = validate(Threshold(), cases, config, (0, 1, torch.device("cpu")))
    scores = mean_dice(counts, cases, Threshold().classes)
    assert scores == {"liver": 1.0, "aorta": pytest.approx(2 / 9), "colon": 0.0}
    assert case_scores(counts, cases, Threshold().classes) == {
        "a/both": {"liver": {"dice": 1.0, "predicted": 1000, "reference": 1000},
                   "aorta": {"dice": pytest.approx(2 / 9), "predicted": 8000, "reference": 1000}},
        "b/empty": {"liver": {"dice": None, "predicted": 8000, "reference": 0}},             # all of it false
        "c/other": {"colon": {"dice": 0.0, "predicted": 0, "reference": 1000}}}


# ----------------------------------------------------------------------------------------------------------- whole runs

def test_a_run_leaves_its_settings_its_log_and_its_checkpoints(finished):
    assert {p.name for p in finished.iterdir()} == RUN_FILES
    records = metrics(finished)
    scores = json.loads((finished / "validation.json").read_text())
    assert (scores["fold"], scores["folds"], scores["last"]["epoch"]) == (1, 3, 10)
    best = max((r for r in records if "dice" in r), key=lambda r: r["mean_dice"])
    for part, record in (("last", records[9]), ("best", best)):
        assert scores[part]["epoch"] == record["epoch"]
        for name, mean in record["dice"].items():
            of_cases = [c[name]["dice"] for c in scores[part]["cases"].values() if c.get(name, {}).get("reference")]
            assert np.mean(of_cases) == pytest.approx(mean)
    assert [r["epoch"] for r in records] == list(range(1, 11)) and [r["step"] for r in records] == list(range(2, 21, 2))
    assert all(set(r) == {"epoch", "step", "loss", "lr", "seconds", "learning"} for r in records if r["epoch"] % 5)
    for record in (records[4], records[9]):
        assert record["mean_dice"] == pytest.approx(np.mean(list(record["dice"].values()))) and record["mean_dice"] > 0
    assert records[-1]["loss"] < records[0]["loss"]
    classes = set(json.loads((finished / "config.json").read_text())["classes"])
    for record in records:
        assert record["learning"] and set(record["learning"]) <= classes
        assert all(0 < one[key] < 1 for one in record["learning"].values() for key in ("probability", "dice"))
    assert set().union(*(r["learning"] for r in records)) == classes  # 40 patches of 3 cases show them all
    assert records[1]["lr"] == pytest.approx(1e-3)                                    # the end of 2 epochs of warm-up


def test_the_config_file_holds_every_setting_and_the_split_of_the_cases(finished):
    config = json.loads((finished / "config.json").read_text())
    more = {"classes", "cases", "validation", "left_out", "command", "typed_in"}
    assert set(config) == {f.name for f in fields(TrainConfig)} | more
    assert (config["lr"], config["width"], config["patch_size"], config["steps_per_epoch"]) == \
        (1e-3, 2, [16, 16, 16], 2)
    assert config["cases"] == ["Abdomen/a0", "Chest/c1", "Vessels/v0"]
    assert config["validation"] == ["Abdomen/a1", "Chest/c0"]
    # tuples as lists
    in_checkpoint = json.loads(json.dumps(checkpoint.read(finished / "last.pt")["training"]["config"]))
    assert in_checkpoint == {f.name: config[f.name] for f in fields(TrainConfig)}


def test_the_model_has_the_classes_seen_in_the_order_of_table_2_and_no_other(finished):
    """Chest annotates colon tumours, but no patient has one: a class never seen cannot be learned, so it is not
    offered."""
    classes = json.loads((finished / "config.json").read_text())["classes"]
    assert classes == ["spleen", "right_kidney", "left_kidney", "liver", "hepatic_vessel", "right_lung", "left_lung",
                       "kidney_tumor", "hepatic_vessel_tumor"]
    assert list(checkpoint.read(finished / "last.pt")["network"]["classes"]) == classes


def test_checkpoints_say_what_inference_has_to_repeat_and_what_they_come_from(finished):
    last, best = checkpoint.read(finished / "last.pt"), checkpoint.read(finished / "best.pt")
    for content in (last, best):
        assert content["preprocessing"] == {"spacing_mm": [12.0] * 3, "hu_window": [-175.0, 250.0], "window": [16] * 3,
                                            "antialias": False, "pad": "air"}
        assert content["about"]["data"]["Vessels/v0"] == ["hepatic_vessel", "hepatic_vessel_tumor"]
        assert checkpoint.load_network(content).classes[0] == "spleen"
    assert "training" not in best and last["training"]["step"] == 20
    assert last["training"]["best"] == max(r["mean_dice"] for r in metrics(finished) if "mean_dice" in r)


def test_another_seed_is_another_run(flags, finished, tmp_path):
    assert main(flags(tmp_path / "run", "--seed", 1, "--epochs", 1)) == 0
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(finished)[0]["loss"]


def test_folds_part_the_cases(flags, phantom_root):
    every = {f"{d.name}/{case[0]}" for d in find_datasets(phantom_root) for case in d.cases}
    held_out = []
    for fold in range(2):
        args = build_parser().parse_args(flags("unused", "--folds", 2, "--fold", fold))
        training, validation = ({c.id for c in cases} for cases in split.gather_cases(args, 0, 1)[:2])
        assert training | validation == every and not training & validation
        held_out.append(validation)
    assert held_out[0] | held_out[1] == every and not held_out[0] & held_out[1]


def test_one_fold_trains_on_every_case_and_a_folder_may_validate(flags, phantom_root):
    args = build_parser().parse_args(flags("unused", "--folds", 1, "--fold", 0))
    training, validation, _ = split.gather_cases(args, 0, 1)
    assert len(training) == 5 and not validation
    args = build_parser().parse_args(flags("unused", "--val-root", phantom_root / "Chest", "--exclude", "Chest"))
    training, validation, _ = split.gather_cases(args, 0, 1)
    assert len(training) == 3 and [c.id for c in validation] == ["Chest/c0", "Chest/c1"]
    args = build_parser().parse_args(flags("unused", "--val-root", phantom_root / "Chest"))
    with pytest.raises(ValueError, match="2 training cases are the same CT as a validation case"):
        split.gather_cases(args, 0, 1)


@pytest.mark.slow
def test_chosen_classes_are_all_that_is_trained(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--classes", "Kidneys, spleen", "--epochs", 1)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == \
        ["spleen", "right_kidney", "left_kidney"]


@pytest.mark.slow
def test_a_map_brings_a_class_that_table_2_lacks(flags, tmp_path, phantom_root):
    (tmp_path / "map.json").write_text('{"spleen": "pancreatic_duct", "kidney tumor": null}')
    assert main(flags(tmp_path / "run", "--map", tmp_path / "map.json", "--classes", "kidneys,pancreatic_duct",
                      "--epochs", 1)) == 0
    classes = json.loads((tmp_path / "run" / "config.json").read_text())["classes"]
    assert classes == ["right_kidney", "left_kidney", "pancreatic_duct"]


@pytest.mark.slow
def test_what_goes_beyond_the_paper_runs(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--augment", "strong", "--balance", 0.5, "--weight-positives", "--prior", 0.1,
                      "--antialias", "--pad", "edge", "--dice-present",
                      "--amp", "bf16", "--accumulate", 2, "--batch-size", 1, "--lpg", "shared", "--encoding", "random",
                      "--patch-size", 24, 16, 16, "--epochs", 2)) == 0
    assert all(math.isfinite(r["loss"]) for r in metrics(tmp_path / "run"))
    preprocessing = checkpoint.read(tmp_path / "run" / "last.pt")["preprocessing"]
    assert (preprocessing["antialias"], preprocessing["pad"]) == (True, "edge")


@pytest.mark.parametrize("kind, precision", [("cpu", "highest"), ("cuda", "high")])
def test_training_on_a_gpu_multiplies_in_tf32_and_on_a_cpu_as_ever(monkeypatch, kind, precision):
    monkeypatch.setattr(processes, "choose_device", torch.device)             # as if there were one
    try:
        assert start_processes(kind) == (0, 1, torch.device(kind))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.slow
def test_one_case_is_learned_by_heart(tmp_path):
    """The sanity run of the README: the whole path from files to a Dice above 0.9."""
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",), "spleen": ("spleen",),
                                                "lungs": ("left_lung", "right_lung")},
                  {"x": Patient(*make_phantom((12.0, 12.0, 12.0)))})
    assert main(["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--overfit", "1", *TINY,
                 "--width", "8", "--lpg-hidden", "32", "--patch-size", "24", "16", "24", "--batch-size", "1",
                 "--epochs", "14", "--steps-per-epoch", "10", "--warmup-epochs", "1", "--lr", "5e-3", "--prior", "0.1",
                 "--val-every", "14"]) == 0
    [last] = [r for r in metrics(tmp_path / "run") if "dice" in r]
    assert set(last["dice"]) == {"spleen", "liver", "right_lung", "left_lung"}
    assert last["mean_dice"] > 0.9


def test_a_checkpoint_names_the_cases_that_its_start_and_the_start_of_that_have_seen(flags, finished, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = sorted(checkpoint.read(finished / "last.pt")["about"]["data"])
    assert main(flags(one, "--init", finished / "last.pt", "--folds", 3, "--fold", 0, "--epochs", 1)) == 0
    assert main(flags(two, "--init", one / "last.pt", "--folds", 3, "--fold", 1, "--epochs", 1)) == 0
    of = [checkpoint.read(run / "last.pt")["about"] for run in (one, two)]
    assert of[0]["init"]["cases"] == first
    assert of[1]["init"]["cases"] == checkpoint.cases_seen(of[0]) == sorted({*first, *of[0]["data"]})
    assert set(checkpoint.cases_seen(of[1])) >= set(of[1]["data"])


def test_training_takes_denormals_as_zero(flags, tmp_path, monkeypatch):
    halves = []

    def step(*arguments):
        halves.append((torch.tensor([1.2e-38]) * 0.5).view(torch.int32).item())
        return training_step(*arguments)

    monkeypatch.setattr(train, "training_step", step)
    assert main(flags(tmp_path / "run", "--epochs", 1)) == 0
    assert halves == [0, 0] and (torch.tensor([1.2e-38]) * 0.5).view(torch.int32).item() != 0


@pytest.mark.slow
def test_the_sanity_run_draws_plain_patches_whatever_the_augmentation(flags, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(batches, "PatchDataset", lambda *arguments: made.append(PatchDataset(*arguments)) or made[0])
    assert main(flags(tmp_path / "run", "--overfit", 1, "--augment", "strong", "--rotate-probability", 1, "--epochs",
                      1)) == 0
    config = made[0].config
    assert (config.augment, config.rotate_probability, config.shift_probability) == ("paper", 0.0, 0.0)


# ------------------------------------------------------------------------------------------------------------- refusals

@pytest.mark.parametrize("options, message", [
    (("--fold", "3"), "--fold 3: folds are numbered 0 to 2"),
    (("--classes", "livr"), "unknown class name 'livr'. Did you mean liver"),
    (("--classes", ""), "unknown class name ''"),
    (("--classes", "liver,pancreas,aorta"),
     "--classes: no training case has voxels of pancreas, aorta. Leave them out."),
    (("--classes", "colon tumor"), "--classes: no training case has voxels of colon_tumor"),
    (("--amp", "fp16"), "--amp fp16 needs a GPU. Use --amp bf16 or off on a CPU."),
    (("--device", "abacus"), "--device abacus: not usable here"),
    (("--hu-window", "250", "-175"), "--hu-window 250 -175: give the lower end first"),
    (("--input-windows", "-175", "250", "0"),
     "--input-windows -175 250 0: give low and high of each window, in this order, within"),
    (("--input-windows", "100", "0"), "--input-windows 100 0: give low and high of each window"),
    (("--input-windows", "-1000", "250"), "within --hu-window -175 250."),
    (("--dataset-weights", "LiTS=2"), "--dataset-weights LiTS: no such dataset among Abdomen, Chest, Vessels."),
    (("--overlap", "1"), "--overlap 1: windows would never move on"),
    (("--patch-size", "20", "16", "16"), "--patch-size 20 16 16: unet needs multiples of 8"),
    (("--amp", "bf16", "--patch-size", "16", "24", "24"),
     "--amp bf16 on a CPU: gradients are wrong for patches of D 16 or less"),
    (("--width", "3"), "width must be even"),
    (("--map", "nowhere.json"), "nowhere.json: no such file"),
    (("--embeddings", "nowhere.npy"), "nowhere.npy: cannot be read"),
    (("--val-root", "nowhere"), "nowhere: no such folder"),
], ids=lambda o: " ".join(o) if isinstance(o, tuple) else "")
def test_what_cannot_be_trained_is_refused_in_one_line(refused, options, message):
    assert message in refused(*options)


def test_d12_a_fold_that_leaves_nothing_to_train_on_is_refused(refused, phantom_root):
    assert f"{phantom_root / 'Vessels'}: no training case is left beside fold 0 of 5. Give --folds 1" in refused(
        "--folds", 5, "--fold", 0, root=phantom_root / "Vessels")


def test_labels_without_a_voxel_are_refused(refused, tmp_path):
    hu, masks, affine = make_phantom((24.0, 24.0, 24.0))
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",)},
                  {"x": Patient(hu, {"liver": np.zeros_like(masks["liver"])}, affine)})
    assert "the training cases have no labelled voxel. Check their labels." in refused("--folds", 1, "--fold", 0,
                                                                                       root=tmp_path / "data")


def test_d28_d33_patients_whose_files_have_one_name_are_divided_among_folds_and_a_doubt_is_told_once(tmp_path, capsys):
    """patN/ct.nii.gz: validation.json keeps every case, and what the reader doubts is printed at each start."""
    hu, masks, affine = make_phantom((20.0, 20.0, 20.0))
    folder = tmp_path / "data" / "Set"
    for i in range(4):
        (folder / f"pat{i}").mkdir(parents=True)
        write_volume(folder / f"pat{i}" / "ct.nii.gz", hu + (1024 if i == 3 else i), affine)
        write_volume(folder / f"pat{i}" / "label.nii.gz", masks["liver"].astype(np.uint8), affine)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "training": [
        {"image": f"pat{i}/ct.nii.gz", "label": f"pat{i}/label.nii.gz"} for i in range(4)]}))
    args = parse(["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *TINY, "--folds", "2"])
    for _ in range(2):                                      # the second start finds its cases in the cache
        training, validation, _ = split.gather_cases(args, 0, 1)
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("uniseg: warning: Set/pat3_ct: ") and "look like HU + 1024" in line
        assert [case.id for case in training] == ["Set/pat0_ct", "Set/pat2_ct"]
        assert list(case_scores(np.zeros((2, 1, 3)), validation, ["liver"])) == ["Set/pat1_ct", "Set/pat3_ct"]


def test_d30_voxels_to_ignore_are_left_out_of_the_loss_and_refused_by_a_softmax(refused, tmp_path, capsys):
    """The spleen is ignored. The loss of patches that hold it is finite, and its voxels reach it as a sign."""
    hu, masks, affine = make_phantom((24.0, 24.0, 24.0))
    patients = {f"x{i}": Patient(hu + i, masks, affine) for i in range(2)}
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",), "ignore": ("spleen",)}, patients)
    arguments = ["--data-root", tmp_path / "data", *TINY, "--folds", 1, "--fold", 0, "--epochs", 1,
                 "--warmup-epochs", 0, "--spacing", 24, "--out", tmp_path / "good"]
    assert main(list(map(str, arguments))) == 0
    capsys.readouterr()
    args = parse(list(map(str, arguments)))
    cases, _, _ = split.gather_cases(args, 0, 1)
    patch = PatchDataset(cases, ("liver",), make_config(args, 2, 1))[0]
    assert (patch["bits"] < 0).any() and set(np.unique(patch["bits"])) <= {0, 1, -2 ** 63}
    assert "nobody says of some voxels what they hold" in refused("--folds", 1, "--fold", 0, "--head", "softmax",
                                                                  root=tmp_path / "data")


def test_d13_a_damaged_file_is_named(refused, tmp_path):
    hu, masks, affine = make_phantom((24.0, 24.0, 24.0))
    folder = write_dataset(tmp_path / "data" / "set", {"liver": ("liver",)}, {"x": Patient(hu, masks, affine)})
    damaged = folder / "imagesTr" / "x.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert refused("--folds", 1, "--fold", 0, root=tmp_path / "data").startswith(f"{damaged}: ")


def test_missing_data_is_refused(refused, tmp_path):
    assert "no such folder" in refused(root=tmp_path / "nowhere")


def test_a_map_that_is_no_dictionary_is_refused(refused, tmp_path):
    (tmp_path / "map.json").write_text("[1]")
    assert "map.json: not {label name: class name or null}" in refused("--map", tmp_path / "map.json")


def test_a_file_in_the_place_of_the_run_folder_is_one_line_too(refused, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(out=tmp_path / "file", code=1)


@pytest.mark.slow
def test_a_refused_start_does_not_stand_in_the_way_of_the_next(refused, flags, tmp_path):
    refused("--classes", "livr")
    refused("--patch-size", "20", "20", "20")
    refused("--dataset-weights", "LiTS=2")
    assert main(flags(tmp_path / "run", "--epochs", 1)) == 0
