"""The options of training: their help, and those beyond the paper's recipe, which are off by default; fine-tuning
(Section 4.6)."""

import inspect
import json
import re
import signal
from dataclasses import fields

import numpy as np
import pytest
import torch

import uniseg
from conftest import Patient, write_dataset
from runs import assert_same_run, interrupted_by
from uniseg import checkpoint
from uniseg.data import PatchDataset
from uniseg.datasets.cases import prepare
from uniseg.datasets.dataset_json import read_dataset
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.machine.command_line import (
    HelpFormatter,
    default_text,
    finite,
    fraction,
    not_negative,
    positive,
)
from uniseg.train import main
from uniseg.training.learner import averaged
from uniseg.training.options import build_parser
from uniseg.training.recipe import TrainConfig

TINY = ["--backbone", "unet", "--width", "2", "--lpg-hidden", "8", "--spacing", "12", "--patch-size", "16", "16", "16",
        "--batch-size", "2", "--steps-per-epoch", "2", "--epochs", "2", "--warmup-epochs", "0", "--lr", "1e-3",
        "--val-every", "1", "--folds", "3", "--fold", "1", "--prior", "0.6", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def flags(phantom_root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return lambda out, *more: ["--data-root", str(phantom_root), "--cache", str(cache), "--out", str(out), *TINY,
                               *map(str, more)]


@pytest.fixture(scope="module")
def plain(flags, tmp_path_factory):
    """A run without options. Not to be written to."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert main(flags(out)) == 0
    return out


def weights(out, name="last.pt"):
    return checkpoint.read(out / name)["weights"]


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def refusal(capsys, arguments):
    assert main(arguments) == 2
    return capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- averaged weights

def test_the_average_forgets_its_start_and_then_decays_as_asked():
    """Weights 1, 2, 3, ... after each step; the average by hand: a += (1 - d) (w - a), d = min(decay, (1 + n) / (10 +
    n))."""
    network = torch.nn.Linear(1, 1, bias=False)
    average, by_hand = averaged(network, 0.5), None
    for step in range(20):
        with torch.no_grad():
            network.weight.fill_(step + 1.0)
        average.update_parameters(network)
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = step + 1.0 if by_hand is None else by_hand + (1 - decay) * (step + 1 - by_hand)
        assert average.module.weight.item() == pytest.approx(by_hand)
    assert 18 < by_hand < 20


@pytest.mark.slow
def test_best_pt_holds_the_average_and_last_pt_what_is_trained(flags, plain, tmp_path):
    assert main(flags(tmp_path / "run", "--ema", 0.9)) == 0
    trained = weights(tmp_path / "run")
    assert "those of the averaged weights (`--ema`)" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert all(torch.equal(t, trained[n]) for n, t in weights(plain).items())        # the training itself is the same
    kept = checkpoint.read(tmp_path / "run" / "last.pt")["training"]["average"]
    best = weights(tmp_path / "run", "best.pt")
    assert not all(torch.equal(best[n], trained[n]) for n in trained)
    assert {n.removeprefix("module.") for n in kept} - {"n_averaged"} == set(best)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_average(flags, tmp_path):
    assert main(flags(tmp_path / "whole", "--ema", 0.9, "--epochs", 3)) == 0
    assert main(flags(tmp_path / "half", "--ema", 0.9, "--epochs", 3)) == 0
    content = checkpoint.read(tmp_path / "whole" / "last.pt")
    assert content["training"]["average"]["n_averaged"] == 6
    halves = checkpoint.read(tmp_path / "half" / "last.pt")["training"]["average"]
    assert all(torch.equal(t, halves[n]) for n, t in content["training"]["average"].items())


# ------------------------------------------------------------------------------------------ the same numbers, otherwise

@pytest.mark.slow
def test_activation_checkpointing_trains_the_same_swin_unetr(flags, tmp_path):
    swin = ("--backbone", "swin_unetr", "--width", 12, "--patch-size", 32, 32, 64, "--batch-size", 1, "--epochs", 1)
    assert main(flags(tmp_path / "plain", *swin)) == 0
    assert main(flags(tmp_path / "sparing", *swin, "--activation-checkpointing")) == 0
    assert losses(tmp_path / "sparing") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    sparing = weights(tmp_path / "sparing")
    assert all(torch.allclose(t.float(), sparing[n].float(), atol=1e-6) for n, t in weights(tmp_path / "plain").items())


# -------------------------------------------------------------------------------------------------------------- lesions

@pytest.fixture(scope="module")
def two_lesions(tmp_path_factory):
    """A liver with a tumour of 9 x 9 x 9 voxels and one of a single voxel, at 1.5 mm."""
    root = tmp_path_factory.mktemp("lesions")
    masks = {name: np.zeros((40, 40, 40), bool) for name in ("liver", "liver_tumor")}
    masks["liver"][5:35, 5:35, 5:35] = True
    masks["liver_tumor"][8:17, 8:17, 8:17] = masks["liver_tumor"][30, 30, 30] = True
    folder = write_dataset(root / "set", {"liver": ("liver",), "liver tumor": ("liver_tumor",)},
                           {"x": Patient(np.zeros((40, 40, 40), np.int16), masks, np.diag([1.5, 1.5, 1.5, 1.0]))})
    dataset = read_dataset(folder)
    return prepare(dataset, dataset.cases[0], Preprocessing(), root / "cache")


def centres(case, **options):
    """The patches' centre voxels, as bits, of 400 samples of one voxel."""
    config = TrainConfig(patch_size=(1, 1, 1), rotate_probability=0.0, shift_probability=0.0, foreground=1.0, **options)
    dataset = PatchDataset([case], ("liver", "liver_tumor"), config)
    rng = [np.random.default_rng((0, g)) for g in range(400)]
    return [tuple(int(c) for c in dataset._centre(case, r)) for r in rng]


def test_each_lesion_is_drawn_as_often_however_small(two_lesions):
    """Of 27000 voxels of liver one is the small lesion. Standard deviation of the share: 0.025."""
    small = (27, 27, 27)  # the cache begins 2 voxels before the liver, at 3
    drawn = centres(two_lesions, lesions=1.0)
    bits = two_lesions.bits
    assert all(bits[c] & 2 for c in drawn)                                   # every centre is in a lesion
    assert abs(drawn.count(small) / 400 - 0.5) < 0.1
    without = centres(two_lesions)
    assert sum(bool(bits[c] & 2) for c in without) < 40 and without.count(small) < 3


def test_a_case_without_lesions_is_drawn_as_ever(tmp_path, two_lesions):
    masks = {"liver": np.zeros((12, 12, 12), bool), "liver_tumor": np.zeros((12, 12, 12), bool)}
    masks["liver"][4:8, 4:8, 4:8] = True
    folder = write_dataset(tmp_path / "set", {"liver": ("liver",), "liver tumor": ("liver_tumor",)},
                           {"x": Patient(np.zeros((12, 12, 12), np.int16), masks, np.diag([1.5, 1.5, 1.5, 1.0]))})
    dataset = read_dataset(folder)
    case = prepare(dataset, dataset.cases[0], Preprocessing(), tmp_path / "cache")
    assert centres(case, lesions=1.0) == centres(case)


@pytest.mark.slow
def test_all_of_it_together_runs(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--lesions", 0.5, "--augment", "strong", "--ema", 0.99, "--epochs", 1)) == 0
    assert np.isfinite(losses(tmp_path / "run")).all()


# ----------------------------------------------------------------------------------- input windows, weights of datasets

WINDOWS = ("--hu-window", -1000, 1000, "--input-windows", -175, 250, -1000, 1000, -1000, -200)
WEIGHTS = ("--dataset-weights", "Chest=3", "Vessels=0.5")


@pytest.fixture(scope="module")
def windowed(flags, tmp_path_factory):
    """A run of two epochs with three windows and weights of datasets. Not to be written to."""
    out = tmp_path_factory.mktemp("windowed") / "run"
    assert main(flags(out, *WINDOWS, *WEIGHTS)) == 0
    return out


@pytest.mark.slow
def test_a_network_of_three_windows_is_trained_and_segments(windowed, phantom_ct):
    content = checkpoint.read(windowed / "last.pt")
    assert content["network"]["input_windows"] == [[0.4125, 0.625], [0.0, 1.0], [0.0, 0.4]]  # of 2000 HU from -1000
    assert content["preprocessing"]["hu_window"] == [-1000.0, 1000.0]
    assert content["weights"]["backbone.down_tr64.ops.0.conv1.weight"].shape[1] == 3
    assert np.isfinite(losses(windowed)).all()
    found = uniseg.load(windowed / "last.pt").segment(phantom_ct.path, threshold=1e-6, postprocess=False)
    assert set(found.stats["classes"]) == set(content["network"]["classes"])
    assert found.mask("liver").shape == phantom_ct.masks["liver"].shape


@pytest.mark.slow
def test_windows_and_weights_are_kept_by_resume_and_others_refused(flags, windowed, tmp_path, capsys, monkeypatch):
    """Stopped within its second epoch, it ends like the run that was not."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_by(signal.SIGTERM, patch, "training_step", call=3)
        assert main(flags(out, *WINDOWS, *WEIGHTS)) == 143
    assert main(flags(out, *WINDOWS, *WEIGHTS, "--resume")) == 0
    assert_same_run(out, windowed)
    said = refusal(capsys, flags(out, *WINDOWS[:6], *WEIGHTS[:2], "--resume"))
    assert "input_windows: ((-175.0, 250.0), (-1000.0, 1000.0), (-1000.0, -200.0)) -> ((-175.0, 250.0),)" in said
    assert "dataset_weights: (('Chest', 3.0), ('Vessels', 0.5)) -> (('Chest', 3.0),)" in said


@pytest.mark.slow
def test_weights_of_another_number_of_windows_are_taken_but_for_the_first_convolution(flags, plain, tmp_path, capsys):
    """The same classes at learning rate 1e-12: all else stays as it was."""
    assert main(flags(tmp_path / "run", "--init", plain / "last.pt", *WINDOWS, "--lr", "1e-12", "--epochs", 1)) == 0
    said, (before, after) = capsys.readouterr().err, (weights(plain), weights(tmp_path / "run"))
    changed = [n for n, t in before.items() if t.shape != after[n].shape or not torch.allclose(t, after[n], atol=1e-9)]
    assert changed == ["backbone.down_tr64.ops.0.conv1.weight"] and after[changed[0]].shape[1] == 3
    assert f"{len(before) - 1} tensors taken, 1 start anew" in said


# --------------------------------------------------------------------------------------------- fine-tuning, Section 4.6

@pytest.mark.slow
def test_a_frozen_backbone_stays_bit_for_bit_while_the_heads_learn(flags, plain, tmp_path):
    before = weights(plain, "best.pt")
    assert main(flags(tmp_path / "run", "--init", plain / "best.pt", "--freeze", "backbone")) == 0
    after = weights(tmp_path / "run")
    learned = {n.split(".")[0] for n in after if not torch.equal(after[n], before[n])}
    assert learned == {"GAP", "precls_conv", "lpg"}


@pytest.mark.slow
def test_another_class_list_keeps_the_backbone_and_by_name_the_classes_both_know(flags, plain, tmp_path, capsys):
    """Learning rate 1e-12: what was taken stays as it was, to the last printed digit."""
    assert main(flags(tmp_path / "run", "--init", plain / "best.pt", "--classes", "left_lung,liver,spleen", "--lr",
                      "1e-12")) == 0
    said = capsys.readouterr().err
    before, after = checkpoint.read(plain / "best.pt"), checkpoint.read(tmp_path / "run" / "last.pt")
    assert after["network"]["classes"] == ["spleen", "liver", "left_lung"]
    assert "classes kept: spleen, liver, left_lung" in said
    for new, name in enumerate(after["network"]["classes"]):
        old = before["network"]["classes"].index(name)
        assert old != new or name == "spleen"                                # by name, not by place
        for part in ("0.weight", "2.bias"):
            assert torch.allclose(after["weights"][f"lpg.controllers.{new}.{part}"],
                                  before["weights"][f"lpg.controllers.{old}.{part}"], atol=1e-9)


@pytest.mark.slow
def test_a_class_that_the_file_never_learned_starts_anew(flags, plain, tmp_path, capsys):
    options = ("--init", plain / "best.pt", "--anew", "liver", "--prior", "0.02", "--lr", "1e-12")
    assert main(flags(tmp_path / "run", *options)) == 0
    before, after = (checkpoint.read(path) for path in (plain / "best.pt", tmp_path / "run" / "last.pt"))
    names = after["network"]["classes"]
    assert f"classes kept: {', '.join(n for n in names if n != 'liver')}\n" in capsys.readouterr().err
    for k, name in enumerate(names):
        old, new = (c["weights"][f"lpg.controllers.{k}.2.bias"] for c in (before, after))
        assert torch.allclose(old, new, atol=1e-9) == (name != "liver"), name
    prior = torch.sigmoid(after["weights"][f"lpg.controllers.{names.index('liver')}.2.bias"][-1])
    assert abs(float(prior) - 0.02) < 1e-6
    assert main(flags(tmp_path / "other", "--init", plain / "best.pt", "--anew", "livre")) == 2
    assert "--anew livre: no class of this training. It has spleen, " in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (("--freeze", "backbone"),
     "--freeze backbone without --init: a random backbone would stay random. Give --init WEIGHTS."),
    (("--weight-positives", "--balance-loss", "0.7"),
     "--weight-positives and --balance-loss: both weigh the same voxels."),
    (("--dice-present", "--head", "softmax"),
     "--dice-present: the losses of --extend and --head softmax know no absent classes."),
    (("--anew", "liver"), "--anew without --init: every class starts anew. Leave --anew out, or give --init WEIGHTS."),
    (("--init", "x.pt", "--anew", "liver", "--lpg", "shared"),
     "--anew with --lpg shared: one layer serves all classes"),
    (("--init", "x.pt", "--anew", "liver", "--head", "softmax"),
     "--anew with --head softmax: one layer serves all classes"),
    (("--head-start", "he", "--head", "softmax"), "--head-start: a softmax has no generated heads."),
    (("--reduction", "sum", "--head", "softmax"), "--reduction sum: Eq. (4) is the loss of class-specific heads."),
    (("--old-weight", "1"), "--old-weight without --extend: there is no old model."),
    (("--old-dice", "squared"), "--old-dice without --extend: there is no old model."),
    (("--extend", "plain", "--old-weight", "1", "--reduction", "sum"), "--old-weight and --reduction sum"),
    (("--extend", "plain", "--old-dice", "none", "--freeze", "old"), "--freeze old: the old classes have no loss."),
    (("--split", "split.json", "--overfit", "1"), "--split: --val-root and --overfit choose the validation cases too."),
    (("--activation-checkpointing",), "--activation-checkpointing: the unet has no Swin blocks. Leave it out."),
    (("--ema", "1"), "--ema 1: the average would never change. Use less than 1, e.g. 0.999.")])
def test_options_that_make_no_sense_are_refused(flags, plain, tmp_path, capsys, options, message):
    options = [plain / "last.pt" if option == "plain" else option for option in options]
    arguments = flags(tmp_path / "run", *options)
    if "--extend" in options:                                 # the network is the checkpoint's
        arguments = ["--data-root", arguments[1], "--out", str(tmp_path / "run"), *map(str, options)]
    assert message in refusal(capsys, arguments)


def test_a_division_by_a_file_and_what_else_is_not_the_default_reach_the_run(flags, tmp_path, capsys):
    """The run's own record says which cases train and validate; Vessels is in neither list."""
    split = {"training": ["Abdomen", "Chest/c0"], "validation": ["Chest/c1"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    assert main(flags(tmp_path / "run", "--split", tmp_path / "split.json", "--reduction", "sum", "--background",
                      "tissue", "--head-start", "he", "--epochs", 1, "--warmup-epochs", 1)) == 0
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["cases"] == ["Abdomen/a0", "Abdomen/a1", "Chest/c0"] and content["validation"] == ["Chest/c1"]
    assert (content["folds"], content["reduction"], content["background"], content["head_start"]) == \
        (1, "sum", "tissue", "he")
    said = capsys.readouterr().err
    assert "1 cases are in neither list and are left out" in said
    assert "uniseg: warning: --epochs 1 ends within the 1 epochs of the warm-up" in said
    assert losses(tmp_path / "run")[0] > 2          # a sum over four classes or more; the mean of each is near 1


def test_every_option_beyond_the_paper_is_off_by_default():
    args = build_parser().parse_args(["--data-root", "x"])
    assert (args.accumulate, args.amp, args.ema, args.lesions, args.balance, args.augment, args.freeze) == \
        (1, "off", 0, 0, 0, "paper", "nothing")
    assert (args.pad, args.background, args.reduction, args.head_start) == ("air", "anywhere", "mean", "torch")
    assert (args.old_weight, args.old_dice) == (0, "linear")
    assert not (args.activation_checkpointing or args.weight_positives or args.antialias or args.input_windows
                or args.dataset_weights or args.balance_loss or args.dice_present)


# -------------------------------------------------------------------------------------------------------- the help page

ACTIONS = [action for action in build_parser()._actions if action.dest not in ("help", "help_all")]
SOURCE = re.compile(r" \[(P, (Section [0-9.]+|Table \d+|Fig\. \d+|Eq\. \(\d\))|R|U)\]")


def help_of(action):
    return HelpFormatter("train")._expand_help(action)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: a.option_strings[0])
def test_the_help_of_an_option_ends_with_its_source_and_its_default(action):
    shown = help_of(action)
    assert len(SOURCE.findall(shown)) == 1
    end = SOURCE.search(shown).end()
    default = default_text(action.default)
    assert shown[end:] == (f" (default: {default})" if default else "")
    assert not re.search(r"None|\(\)|\[\]|\d\.\d{5,}|\(default.*\(default", shown)


def test_defaults_are_shown_as_one_would_type_them():
    shown = {action.dest: help_of(action) for action in ACTIONS}
    for name, default in (("patch_size", "96 96 96"), ("hu_window", "-175 250"), ("foreground", "0.667"),
                          ("lr", "0.0001"), ("weight_decay", "1e-05"), ("timeout", "30"), ("out", "runs/uniseg"),
                          ("val_every", "10")):
        assert shown[name].endswith(f" (default: {default})"), shown[name]
    for name in ("embeddings", "cache", "classes", "input_windows", "dataset", "resume", "data_root"):
        assert "default" not in shown[name], shown[name]


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_the_help_names_the_source_that_the_recipe_names(name):
    """The letter in the comment of TrainConfig is that of the option."""
    [line] = [line for line in inspect.getsource(TrainConfig).splitlines() if line.startswith(f"    {name}: ")]
    letter = re.search(r"# ([PRU])\b", line).group(1)
    [action] = [action for action in ACTIONS if action.dest == name]
    assert SOURCE.search(action.help).group(1)[0] == letter


# ------------------------------------------------------------------------------------------ numbers that are no numbers

NUMBERS = [action for action in ACTIONS if action.type in (finite, positive, not_negative, fraction)]


def test_no_option_takes_any_float():
    assert len(NUMBERS) >= 15
    assert not [action.dest for action in ACTIONS if action.type is float]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("action", NUMBERS, ids=lambda a: a.option_strings[0])
def test_nan_and_infinity_are_refused_with_one_line(action, value, capsys):
    option = action.option_strings[0]
    values = [value] * action.nargs if isinstance(action.nargs, int) else [value]
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["--data-root", "x", f"{option}={value}", *values[1:]] if len(values) == 1 else
                                  ["--data-root", "x", option, *(f" {v}" for v in values)])
    assert end.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"argument {option}: " in line and value in line


@pytest.mark.parametrize("option, line", [
    (("--hu-window", "nan", "nan"), "argument --hu-window: nan is not a finite number"),
    (("--lr", "ten"), "argument --lr: 'ten' is not a number"),
    (("--weight-decay", "-1"), "argument --weight-decay: -1 is not a number from 0 to 1e9")])
def test_the_line_says_what_is_expected(option, line, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--data-root", "x", *option])
    assert line in capsys.readouterr().err
