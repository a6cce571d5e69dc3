"""train.py: the recipe's pure parts by hand, one step against a joint batch, then whole runs: interrupted, refused, in parallel.

Whole runs use a U-Net of 2 channels on phantoms of 12 mm voxels; two steps an epoch take a tenth of a second. Ids like D24, R1, T3
are those of the project's table of faults.
"""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Patient, write_dataset

from uniseg import checkpoint, recipe, split, train
from uniseg.data import Case, PatchDataset
from uniseg.datasets import find_datasets
from uniseg.model import ModelConfig, UniversalModel, build
from uniseg.phantom import make_phantom
from uniseg.recipe import TrainConfig, build_parser, lr_at
from uniseg.run_folder import trim_metrics
from uniseg.train import SampleNumbers, main, positive_weights, training_step, unpack_bits, validate

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--backbone", "unet", "--width", "2", "--lpg-hidden", "8", "--spacing", "12", "--patch-size", "16", "16", "16", "--batch-size",
        "2", "--steps-per-epoch", "2", "--epochs", "10", "--warmup-epochs", "2", "--lr", "1e-3", "--val-every", "5", "--folds", "3",
        "--fold", "1", "--prior", "0.6", "--workers", "0", "--device", "cpu"]             # prior: so that there is a Dice from the start

LEFT = {"config.json", "metrics.jsonl", "metrics.csv", "progress.png", "overlays", "MODEL_CARD.md", "last.pt", "best.pt"}


@pytest.fixture(scope="module")
def flags(phantom_root, tmp_path_factory):
    """Options of a small run; the preprocessed cases are shared by all tests of this file."""
    cache = tmp_path_factory.mktemp("cache")

    def options(out, *more, root=phantom_root):
        return ["--data-root", str(root), "--cache", str(cache), "--out", str(out), *TINY, *map(str, more)]
    return options


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a run of 10 epochs that nothing interrupted. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main(flags(out)) == 0
    return out


@pytest.fixture
def refused(flags, capsys, tmp_path):
    """Start a run that is refused: its one line on stderr."""
    def start(*more, out=tmp_path / "run", code=2, **options):
        assert main(flags(out, *more, **options)) == code
        lines = capsys.readouterr().err.strip().splitlines()
        error = [line for line in lines if line.startswith("uniseg: error: ")]
        assert len(error) == 1 and "Traceback" not in "".join(lines)
        return error[0].removeprefix("uniseg: error: ")
    return start


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_seconds(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_equal_state(a, b, path=""):
    """Two nested dicts and lists with tensors are equal, bit by bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal_state(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal_state(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_run(a, b):
    """P5: weights, best weights, optimiser, position and log are the same."""
    for name in ("last.pt", "best.pt"):
        one, other = checkpoint.read(a / name), checkpoint.read(b / name)
        assert_equal_state(one["weights"], other["weights"], name)
        assert_equal_state(one.get("training"), other.get("training"), name)
    assert without_seconds(metrics(a)) == without_seconds(metrics(b))


# ------------------------------------------------------------------------------------------------------------- the defaults

def test_without_options_the_recipe_is_the_papers():
    """Section 4.1.2; the learning rate's digit and the epochs are those of the released code."""
    c = TrainConfig()
    assert (c.backbone, c.encoding, c.lpg) == ("swin_unetr", "v3", "independent")
    assert (c.spacing, c.hu_window, c.patch_size) == (1.5, (-175.0, 250.0), (96, 96, 96))
    assert (c.foreground, c.rotate_probability, c.shift_probability) == (2 / 3, 0.1, 0.2)
    assert (c.batch_size, c.lr, c.beta1, c.weight_decay, c.warmup_epochs, c.epochs, c.folds) == (6, 1e-4, 0.9, 1e-5, 50, 2000, 5)
    assert (c.augment, c.balance, c.weight_positives, c.prior, c.antialias, c.amp) == ("paper", 0.0, False, 0.5, False, "off")


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda f: f.name)
def test_the_commands_default_is_the_recipes(field):
    args = build_parser().parse_args(["--data-root", "x"])
    assert getattr(args, field.name) == field.default


def test_an_option_reaches_the_config():
    args = build_parser().parse_args(["--data-root", "x", "--device", "cpu", "--patch-size", "32", "96", "64", "--lr", "0.5",
                                      "--weight-positives"])
    config = recipe.make_config(args, train_cases=7, world=1)
    assert (config.patch_size, config.lr, config.weight_positives) == ((32, 96, 64), 0.5, True)


@pytest.mark.parametrize("cases, world, accumulate, steps", [(12, 1, 1, 2), (13, 1, 1, 3), (13, 2, 1, 2), (13, 2, 2, 1), (1, 1, 1, 1)])
def test_an_epoch_draws_each_case_once_on_average(cases, world, accumulate, steps):
    args = build_parser().parse_args(["--data-root", "x", "--device", "cpu", "--accumulate", str(accumulate)])
    assert recipe.make_config(args, cases, world).steps_per_epoch == steps                     # of 6 patches a process


@pytest.mark.parametrize("option", [
    ("--lr", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--lr", "inf"), ("--epochs", "0"), ("--epochs", "ten"), ("--batch-size", "0"),
    ("--accumulate", "0"), ("--foreground", "1.5"), ("--prior", "-0.1"), ("--patch-size", "4", "4", "4"), ("--overfit", "0"),
    ("--seed", "-1"), ("--workers", "-1"), ("--backbone", "resnet"), ("--folds", "0"), ("--fold", "-1"), ("--spacing", "0")],
    ids=" ".join)
def test_d26_impossible_numbers_are_refused_by_the_parser(option, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["--data-root", "x", *option])
    assert end.value.code == 2 and f"argument {option[0]}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- pure parts

def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine():
    c = TrainConfig(lr=1.0, epochs=30, warmup_epochs=10, steps_per_epoch=2)           # 20 steps of warm-up, 40 of cosine
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


def test_d22_metrics_after_the_last_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    """A killed run may have logged an epoch whose checkpoint it could not write, or half a line."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"epoch": 1, "step": 2}\n{"epoch": 2, "step": 4}\n{"epoch": 3, "step": 6}\n{"epoch": 4, "st')
    trim_metrics(log, 4)
    assert log.read_text() == '{"epoch": 1, "step": 2}\n{"epoch": 2, "step": 4}\n'
    trim_metrics(tmp_path / "none.jsonl", 4)
    assert not (tmp_path / "none.jsonl").exists()


# -------------------------------------------------------------------------------------------------------------------- a step

CLASSES = ("spleen", "liver", "aorta")


def small_network(lpg="independent"):
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, "unet", 2, lpg, 8, text_width=4)
    return UniversalModel(config, torch.randn(3, 4))


def batch_of(seed, *labelled):
    """One sample a row of `labelled`, which is a string such as "101": which classes are annotated."""
    g = torch.Generator().manual_seed(seed)
    size = (len(labelled), 16, 16, 16)
    return {"image": torch.rand(size, generator=g)[:, None], "bits": torch.randint(0, 8, size, generator=g),
            "labelled": torch.tensor([[c == "1" for c in row] for row in labelled]), "case": [str(seed)] * len(labelled)}


def joined(*batches):
    return {key: torch.cat([b[key] for b in batches]) if key != "case" else [c for b in batches for c in b[key]] for key in batches[0]}


def gradients(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


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
        pushed[labelled] = network.lpg.controllers[1][2].bias.grad[-1].item()         # theta's last number: the logit's bias
    assert pushed["010"] > 0 and pushed["000"] == 0                                   # descent subtracts the gradient


# ------------------------------------------------------------------------------------------- the step in two processes (gloo)

PAIRS_OF_RANKS = {
    "unequal": (["111"], ["010"]), "apart": (["100"], ["011"]), "rank 1 has none": (["111"], ["000"]), "nobody": (["000"], ["000"])}


def one_rank(rank, folder):
    """What each of two processes does: steps with unequally labelled batches; results go into a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, shares in PAIRS_OF_RANKS.items():
        network = small_network()
        loss = training_step(torch.nn.parallel.DistributedDataParallel(network), [batch_of(rank, *shares[rank])], TrainConfig(), 2)
        found[name] = loss, gradients(network)

    network = small_network()                                                         # two micro-batches in each of two ranks
    model = torch.nn.parallel.DistributedDataParallel(network)
    parts = [batch_of(2 * part + rank, ["111", "010", "100", "000"][2 * part + rank]) for part in range(2)]
    found["accumulate"] = training_step(model, parts, TrainConfig(accumulate=2), 2), gradients(network)

    network = small_network()
    torch.manual_seed(rank)                                                           # ranks must not need the same state
    model, optimizer = torch.nn.parallel.DistributedDataParallel(network), torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        training_step(model, [batch_of(10 + 2 * step + rank, "000" if rank else "110")], TrainConfig(), 2)
        optimizer.step()
    found["weights"] = network.state_dict()

    broken = batch_of(0, "111")
    broken["image"][rank == 1] = float("nan")                                         # of rank 1 alone
    found["nan"] = training_step(torch.nn.parallel.DistributedDataParallel(small_network()), [broken], TrainConfig(), 2)
    torch.save(found, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)                                                                       # why: runtime.leave


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = torch.multiprocessing.spawn(one_rank, (str(folder),), nprocs=2, join=False)
    end = time.monotonic() + 120
    try:
        while not processes.join(timeout=max(0.1, end - time.monotonic())):
            assert time.monotonic() < end, "the two processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", PAIRS_OF_RANKS)
def test_t1_two_processes_give_loss_and_gradient_of_the_joint_batch(ranks, name):
    """T1, T3, T4: whatever the shares of labelled pairs are, none included."""
    network = small_network()
    loss = training_step(network, [joined(*(batch_of(rank, *PAIRS_OF_RANKS[name][rank]) for rank in (0, 1)))], TrainConfig())
    for rank in (0, 1):
        assert torch.allclose(ranks[rank][name][0], loss)
        assert torch.allclose(ranks[rank][name][1], gradients(network), rtol=1e-4, atol=1e-6)
    assert loss.item() == 0 if name == "nobody" else loss.item() > 0.5


def test_t1_micro_batches_in_two_processes_give_the_gradient_of_the_joint_batch(ranks):
    network = small_network()
    batches = [batch_of(i, share) for i, share in enumerate(["111", "010", "100", "000"])]
    loss = training_step(network, [joined(*batches)], TrainConfig())
    for rank in (0, 1):
        assert torch.allclose(ranks[rank]["accumulate"][0], loss)
        assert torch.allclose(ranks[rank]["accumulate"][1], gradients(network), rtol=1e-4, atol=1e-6)


def test_t3_a_process_without_labelled_classes_keeps_its_weights_equal_to_the_others(ranks):
    a, b = (ranks[rank]["weights"] for rank in (0, 1))
    assert_equal_state(a, b)
    assert not torch.equal(a["precls_conv.2.weight"], small_network().state_dict()["precls_conv.2.weight"])     # steps were made


def test_t15_a_nan_in_one_process_is_seen_by_all(ranks):
    assert torch.isnan(ranks[0]["nan"]) and torch.isnan(ranks[1]["nan"])


# ---------------------------------------------------------------------------------------------------------------- validation

class Threshold:
    """A stand-in for a network: says "liver" where the image is bright, "aorta" everywhere, "colon" nowhere."""

    classes = ("liver", "aorta", "colon")

    def __call__(self, image):
        bright = image - 0.5
        return torch.cat([bright, torch.ones_like(bright), -torch.ones_like(bright)], dim=1)

    def eval(self): pass

    def train(self): pass


def test_validation_gives_the_mean_dice_of_the_cases_that_have_the_class(tmp_path):
    """A 10^3 liver, bright, in 20^3 voxels. Its aorta is 1/8 of the volume, so calling all of it aorta has Dice 2/8 / (9/8)."""
    from test_data import handmade

    box = np.zeros((20, 20, 20), int)
    box[5:15, 5:15, 5:15] = 1
    both = handmade(tmp_path / "both", "a", box * 0b11, ["liver", "aorta"], image=np.where(box, 250, -175))
    empty = handmade(tmp_path / "empty", "b", box * 0b00, ["liver"], image=np.full(box.shape, 250))      # annotated and absent
    other = handmade(tmp_path / "other", "c", box, ["colon"], image=np.full(box.shape, -175))
    config = replace(TrainConfig(), patch_size=(8, 16, 12))
    scores = validate(Threshold(), [both, empty, other], config, torch.device("cpu"))
    assert scores == {"liver": 1.0, "aorta": pytest.approx(2 / 9), "colon": 0.0}


# ---------------------------------------------------------------------------------------------------------------- whole runs

def test_a_run_leaves_its_settings_its_log_and_two_checkpoints(finished):
    assert {p.name for p in finished.iterdir()} == LEFT
    records = metrics(finished)
    assert [r["epoch"] for r in records] == list(range(1, 11)) and [r["step"] for r in records] == list(range(2, 21, 2))
    assert all(set(r) == {"epoch", "step", "loss", "lr", "seconds"} for r in records if r["epoch"] % 5)
    for record in (records[4], records[9]):
        assert record["mean_dice"] == pytest.approx(np.mean(list(record["dice"].values()))) and record["mean_dice"] > 0
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[1]["lr"] == pytest.approx(1e-3)                                    # the end of 2 epochs of warm-up


def test_the_config_file_holds_every_setting_and_the_split_of_the_cases(finished):
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {f.name for f in fields(TrainConfig)} | {"classes", "cases", "validation"}
    assert (config["lr"], config["width"], config["patch_size"], config["steps_per_epoch"]) == (1e-3, 2, [16, 16, 16], 2)
    assert config["cases"] == ["Abdomen/a0", "Chest/c1", "Vessels/v0"]
    assert config["validation"] == ["Abdomen/a1", "Chest/c0"]
    in_checkpoint = json.loads(json.dumps(checkpoint.read(finished / "last.pt")["training"]["config"]))       # tuples as lists
    assert in_checkpoint == {f.name: config[f.name] for f in fields(TrainConfig)}


def test_the_model_has_the_classes_seen_in_the_order_of_table_2_and_no_other(finished):
    """Chest annotates colon tumours, but no patient has one: a class never seen cannot be learned, so it is not offered."""
    classes = json.loads((finished / "config.json").read_text())["classes"]
    assert classes == ["spleen", "right_kidney", "left_kidney", "liver", "hepatic_vessel", "right_lung", "left_lung", "kidney_tumor",
                       "hepatic_vessel_tumor"]
    assert list(checkpoint.read(finished / "last.pt")["network"]["classes"]) == classes


def test_checkpoints_say_what_inference_has_to_repeat_and_what_they_come_from(finished):
    last, best = checkpoint.read(finished / "last.pt"), checkpoint.read(finished / "best.pt")
    for content in (last, best):
        assert content["preprocessing"] == {"spacing_mm": [12.0] * 3, "hu_window": [-175.0, 250.0], "window": [16] * 3, "antialias": False}
        assert content["about"]["data"]["Vessels/v0"] == ["hepatic_vessel", "hepatic_vessel_tumor"]
        assert checkpoint.load_network(content).classes[0] == "spleen"
    assert "training" not in best and last["training"]["step"] == 20
    assert last["training"]["best"] == max(r["mean_dice"] for r in metrics(finished) if "mean_dice" in r)


def test_r1_workers_change_nothing(flags, finished, tmp_path):
    """Nor does a second run: the same seed gives the same bits."""
    assert main(flags(tmp_path / "run", "--workers", 2)) == 0
    assert_same_run(tmp_path / "run", finished)


def test_another_seed_is_another_run(flags, finished, tmp_path):
    assert main(flags(tmp_path / "run", "--seed", 1, "--epochs", 1)) == 0
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(finished)[0]["loss"]


def test_folds_part_the_cases(flags, phantom_root):
    every = {f"{d.name}/{case[0]}" for d in find_datasets(phantom_root) for case in d.cases}
    held_out = []
    for fold in range(2):
        args = build_parser().parse_args(flags("unused", "--folds", 2, "--fold", fold))
        training, validation = ({c.id for c in cases} for cases in split.gather_cases(args, 0, 1))
        assert training | validation == every and not training & validation
        held_out.append(validation)
    assert held_out[0] | held_out[1] == every and not held_out[0] & held_out[1]


def test_one_fold_trains_on_every_case_and_a_folder_may_validate(flags, phantom_root):
    args = build_parser().parse_args(flags("unused", "--folds", 1, "--fold", 0))
    training, validation = split.gather_cases(args, 0, 1)
    assert len(training) == 5 and not validation
    args = build_parser().parse_args(flags("unused", "--val-root", phantom_root / "Chest", "--exclude", "Chest"))
    training, validation = split.gather_cases(args, 0, 1)
    assert len(training) == 3 and [c.id for c in validation] == ["Chest/c0", "Chest/c1"]
    args = build_parser().parse_args(flags("unused", "--val-root", phantom_root / "Chest"))
    with pytest.raises(ValueError, match="2 training cases are the same CT as a validation case"):
        split.gather_cases(args, 0, 1)


def test_chosen_classes_are_all_that_is_trained(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--classes", "Kidneys, spleen", "--epochs", 1)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"] == ["spleen", "right_kidney", "left_kidney"]


def test_a_map_brings_a_class_that_table_2_lacks(flags, tmp_path, phantom_root):
    (tmp_path / "map.json").write_text('{"spleen": "pancreatic_duct", "kidney tumor": null}')
    assert main(flags(tmp_path / "run", "--map", tmp_path / "map.json", "--classes", "kidneys,pancreatic_duct", "--epochs", 1)) == 0
    classes = json.loads((tmp_path / "run" / "config.json").read_text())["classes"]
    assert classes == ["right_kidney", "left_kidney", "pancreatic_duct"]


def test_what_goes_beyond_the_paper_runs(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--augment", "strong", "--balance", 0.5, "--weight-positives", "--prior", 0.1, "--antialias",
                      "--amp", "bf16", "--accumulate", 2, "--batch-size", 1, "--lpg", "shared", "--encoding", "random",
                      "--patch-size", 24, 16, 16, "--epochs", 2)) == 0
    assert all(math.isfinite(r["loss"]) for r in metrics(tmp_path / "run"))


def test_one_case_is_learned_by_heart(tmp_path):
    """The sanity run of the README: the whole path from files to a Dice above 0.9."""
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",), "spleen": ("spleen",), "lungs": ("left_lung", "right_lung")},
                  {"x": Patient(*make_phantom((12.0, 12.0, 12.0)))})
    assert main(["--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--overfit", "1", *TINY, "--width", "8",
                 "--lpg-hidden", "32", "--patch-size", "24", "16", "24", "--batch-size", "1", "--epochs", "8", "--steps-per-epoch", "10",
                 "--warmup-epochs", "1", "--lr", "5e-3", "--prior", "0.1", "--val-every", "8"]) == 0
    [last] = [r for r in metrics(tmp_path / "run") if "dice" in r]
    assert set(last["dice"]) == {"spleen", "liver", "right_lung", "left_lung"}
    assert last["mean_dice"] > 0.9


def test_the_sanity_run_draws_plain_patches_whatever_the_augmentation(flags, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(train, "PatchDataset", lambda *arguments: made.append(PatchDataset(*arguments)) or made[0])
    assert main(flags(tmp_path / "run", "--overfit", 1, "--augment", "strong", "--rotate-probability", 1, "--epochs", 1)) == 0
    assert (made[0].augment, made[0].rotate_probability, made[0].shift_probability) == ("paper", 0.0, 0.0)


# ---------------------------------------------------------------------------------------------------- interrupted, and resumed

def in_a_process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, "-m", "uniseg.train", *arguments], env=environment, text=True, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, start_new_session=True, **options)


def wait_until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    if not condition():
        process.kill()
        pytest.fail(process.communicate()[1])


def test_r1_a_killed_run_resumes_as_if_nothing_had_happened(flags, finished, tmp_path):
    out = tmp_path / "run"
    process = in_a_process(*flags(out))
    wait_until((out / "last.pt").exists, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert 0 < checkpoint.read(out / "last.pt")["training"]["step"] < 20
    assert main(flags(out, "--resume")) == 0
    assert_same_run(out, finished)


def test_d24_sigterm_to_the_whole_job_saves_and_exits_143(flags, finished, tmp_path):
    """SLURM signals every process of a job, those that load patches as well."""
    out = tmp_path / "run"
    process = in_a_process(*flags(out, "--workers", 1))
    wait_until((out / "last.pt").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM after step" in err and "go on with --resume" in err
    assert main(flags(out, "--resume")) == 0
    assert_same_run(out, finished)


def test_r5_sigterm_in_the_middle_of_an_epoch_resumes_at_the_same_step(flags, finished, tmp_path, monkeypatch):
    out, step, handler = tmp_path / "run", train.training_step, signal.getsignal(signal.SIGTERM)
    done = []

    def counted(*arguments):
        done.append(True)
        if len(done) == 13:                                                           # the first of the two steps of epoch 7
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", counted)
    assert main(flags(out)) == 143
    assert len(done) == 13 and checkpoint.read(out / "last.pt")["training"]["step"] == 13 and len(metrics(out)) == 6
    assert main(flags(out, "--resume")) == 0
    assert len(done) == 20
    assert_same_run(out, finished)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_r2_a_run_killed_20_times_ends_like_one_that_never_was(flags, tmp_path):
    """At a random instant each time: in a step, in a validation, while it writes its log or a checkpoint.

    A life lasts one epoch and a half or so more, whatever the machine's pace: 20 of them are over before the run is.
    """
    whole, out, draw = tmp_path / "whole", tmp_path / "run", random.Random(0)
    options = ("--epochs", 100, "--val-every", 4)
    assert main(flags(whole, *options)) == 0
    epoch_seconds = metrics(whole)[-1]["seconds"] / 100
    last, steps = out / "last.pt", [0]
    for _ in range(20):
        before = last.stat().st_mtime_ns if last.exists() else None
        process = in_a_process(*flags(out, *options, *["--resume"] * last.exists()))
        wait_until(lambda: last.exists() and last.stat().st_mtime_ns != before, process)
        time.sleep(draw.uniform(0, 1.5 * epoch_seconds))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        steps.append(checkpoint.read(last)["training"]["step"])                       # never a torn file
    assert steps == sorted(set(steps)) and steps[-1] < 200
    assert main(flags(out, *options, "--resume")) == 0
    assert_same_run(out, whole)


def test_d15_a_nan_loss_stops_the_run_and_leaves_the_last_good_state(flags, finished, refused, tmp_path, monkeypatch):
    out, step, handler = tmp_path / "run", train.training_step, signal.getsignal(signal.SIGTERM)
    done = []

    def breaks(*arguments):
        done.append(True)
        return step(*arguments) * (math.nan if len(done) == 7 else 1)
    monkeypatch.setattr(train, "training_step", breaks)
    error = refused(out=out, code=1)
    assert error.startswith("loss is nan at step 6, cases [") and f"{out / 'last.pt'} is left as it was" in error
    assert checkpoint.read(out / "last.pt")["training"]["step"] == 6
    assert signal.getsignal(signal.SIGTERM) is handler
    assert main(flags(out, "--resume")) == 0                                          # the next time it is no NaN
    assert_same_run(out, finished)


def test_resuming_a_finished_run_does_nothing(flags, finished, tmp_path):
    for name in ("config.json", "metrics.jsonl", "last.pt", "best.pt"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    before = (tmp_path / "last.pt").stat().st_mtime_ns
    assert main(flags(tmp_path, "--resume")) == 0
    assert (tmp_path / "last.pt").stat().st_mtime_ns == before
    assert (tmp_path / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


# ------------------------------------------------------------------------------------------------------------------- refusals

def test_d19_a_folder_that_holds_a_run_is_not_started_in_again(finished, refused):
    before = {p.name: p.stat().st_mtime_ns for p in finished.iterdir()}
    assert refused(out=finished) == f"{finished}: holds a run already. Give --resume to go on with it or another --out."
    assert {p.name: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_d18_there_is_nothing_to_resume_without_a_checkpoint(refused, tmp_path):
    assert "last.pt: no checkpoint to resume from, no epoch was finished. Start without --resume in an empty --out." in refused("--resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option, difference", [
    (("--lr", "2e-3"), "lr: 0.001 -> 0.002"), (("--seed", "7"), "seed: 0 -> 7"), (("--width", "4"), "width: 2 -> 4"),
    (("--patch-size", "16", "16", "24"), r"patch_size: \(16, 16, 16\) -> \(16, 16, 24\)"), (("--fold", "2"), "fold: 1 -> 2"),
    (("--classes", "liver,spleen"), "classes"), (("--overfit", "2"), "training cases")], ids=lambda o: o[0] if isinstance(o, tuple) else "")
def test_d20_a_run_is_not_resumed_with_other_settings(finished, refused, option, difference):
    before = (finished / "metrics.jsonl").read_bytes()
    error = refused("--resume", *option, out=finished)
    assert re.search(rf"was started otherwise \(.*{difference}.*\). Repeat its options or start a new run.", error), error
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_d20_all_differences_are_listed_at_once(finished, refused):
    error = refused("--resume", "--lr", "2e-3", "--epochs", "99", out=finished)
    assert "(epochs: 10 -> 99; lr: 0.001 -> 0.002)" in error


def test_best_pt_cannot_be_resumed(finished, refused, tmp_path):
    (tmp_path / "last.pt").write_bytes((finished / "best.pt").read_bytes())
    assert "holds weights only. Start a new run." in refused("--resume", out=tmp_path)


@pytest.mark.parametrize("options, message", [
    (("--fold", "3"), "--fold 3: folds are numbered 0 to 2"),
    (("--classes", "livr"), "unknown class name 'livr'. Did you mean liver"),
    (("--classes", ""), "unknown class name ''"),
    (("--classes", "liver,pancreas,aorta"), "--classes: no training case has voxels of pancreas, aorta. Leave them out."),
    (("--classes", "colon tumor"), "--classes: no training case has voxels of colon_tumor"),
    (("--amp", "fp16"), "--amp fp16 needs a GPU. Use --amp bf16 or off on a CPU."),
    (("--device", "abacus"), "--device abacus: not usable here"),
    (("--hu-window", "250", "-175"), "--hu-window 250 -175: give the lower end first"),
    (("--overlap", "1"), "--overlap 1: windows would never move on"),
    (("--patch-size", "20", "16", "16"), "--patch-size 20 16 16: unet needs multiples of 8"),
    (("--amp", "bf16", "--patch-size", "16", "24", "24"), "--amp bf16 on a CPU: gradients are wrong for patches of D 16 or less"),
    (("--width", "3"), "width must be even"),
    (("--map", "nowhere.json"), "--map nowhere.json: cannot be read as JSON"),
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
    write_dataset(tmp_path / "data" / "set", {"liver": ("liver",)}, {"x": Patient(hu, {"liver": np.zeros_like(masks["liver"])}, affine)})
    assert "the training cases have no labelled voxel. Check their labels." in refused("--folds", 1, "--fold", 0, root=tmp_path / "data")


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


def test_a_refused_start_does_not_stand_in_the_way_of_the_next(refused, flags, tmp_path):
    refused("--classes", "livr")
    refused("--patch-size", "20", "20", "20")
    assert main(flags(tmp_path / "run", "--epochs", 1)) == 0


# ------------------------------------------------------------------------------------------------------ two processes, torchrun

def torchrun(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "uniseg.train", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def ended(process, seconds=120):
    """The process's stderr once it has ended; with a limit, so that a hang is a failure."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs: {process.communicate()[1][-2000:]}")


@pytest.mark.parametrize("world, said", [("1", "done, taken down"), ("2", "done, ")])
def test_a_process_of_several_leaves_with_its_exit_code_before_gloo_meets_a_dying_interpreter(world, said):
    code = "import atexit; from uniseg.runtime import leave; atexit.register(print, 'taken down', end=''); print('done, ', end=''); leave(3)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": world},
                          capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, said)


def test_t9_two_processes_train_like_one_with_twice_the_batch(flags, finished, tmp_path):
    """And only one of them writes: twice the lines in the log, or a file more, would be the other's."""
    out = tmp_path / "run"
    process = torchrun(*flags(out, "--batch-size", 1))
    err = ended(process)
    assert process.returncode == 0, err
    assert {p.name for p in out.iterdir()} == LEFT
    assert {p.name for p in (out / "overlays").iterdir()} == {f"epoch_{e:04d}_Abdomen_a1.png" for e in (5, 10)}     # of rank 0's case
    together, alone = metrics(out), metrics(finished)
    assert len(together) == len(alone) == 10
    for a, b in zip(together, alone):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a.get("dice", {}).keys() == b.get("dice", {}).keys()                   # T11: validation shared out
        assert a.get("dice", {}) == pytest.approx(b.get("dice", {}), abs=0.02)
    contents = [checkpoint.read(folder / "last.pt") for folder in (out, finished)]
    torch.manual_seed(0)
    start = build(contents[0]["network"]).state_dict()
    # A bias before an instance norm has no effect; its gradient is rounding noise, which AdamW makes as large as any other.
    ours, theirs, start = (torch.cat([w[n].flatten() for n in start if not n.endswith(("conv1.bias", "organ_embedding"))])
                           for w in (*(c["weights"] for c in contents), start))
    assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()                    # far from the start, near each other


@pytest.mark.slow
def test_t10_a_run_of_two_processes_stopped_by_sigterm_resumes_as_if_nothing_had_happened(flags, tmp_path):
    options = ["--batch-size", 1, "--epochs", 40, "--val-every", 20]
    whole = torchrun(*flags(tmp_path / "whole", *options))
    err = ended(whole)
    assert whole.returncode == 0, err
    process = torchrun(*flags(tmp_path / "run", *options))
    wait_until((tmp_path / "run" / "last.pt").exists, process)
    process.terminate()                                                               # torchrun passes it on
    assert "stopped by SIGTERM after step" in ended(process) and process.returncode != 0
    process = torchrun(*flags(tmp_path / "run", *options, "--resume"))
    err = ended(process)
    assert process.returncode == 0, err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_t6_when_one_of_two_processes_is_killed_all_end_and_the_run_resumes(flags, tmp_path):
    options = ["--batch-size", 1, "--epochs", 40, "--val-every", 20]
    process = torchrun(*flags(tmp_path / "run", *options))
    wait_until((tmp_path / "run" / "last.pt").exists, process)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(max(workers), signal.SIGKILL)
    ended(process, seconds=60)
    assert process.returncode != 0
    for name, more in (("run", ["--resume"]), ("whole", [])):
        again = torchrun(*flags(tmp_path / name, *options, *more))
        err = ended(again)
        assert again.returncode == 0, err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_t12_a_run_is_not_resumed_with_another_number_of_processes(flags, finished):
    process = torchrun(*flags(finished, "--resume"))
    err = ended(process)
    assert process.returncode != 0 and "processes: 1 -> 2" in err


@pytest.mark.slow
def test_a_refusal_in_two_processes_ends_both_and_says_why(finished, flags):
    process = torchrun(*flags(finished))
    err = ended(process)
    assert process.returncode != 0 and "holds a run already" in err
