"""New classes: Eq. (5) against a slow loop; a grown network keeps its old logits; the command from end to end."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import uniseg
from conftest import Patient, write_dataset
from runs import TINY, assert_equal_state, batch_of, gradients, metrics
from uniseg import checkpoint, continual, train
from uniseg.datasets.cases import Case
from uniseg.datasets.find import find_datasets
from uniseg.embeddings import class_embeddings
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume
from uniseg.model import ModelConfig, UniversalModel
from uniseg.phantom import make_phantom
from uniseg.training.extension import cost, kept_of, lines, smaller_patches, summary
from uniseg.training.objective import PartialLabels
from uniseg.training.options import make_config
from uniseg.training.recipe import TrainConfig
from uniseg.training.steps import training_step

OLD, NEW = ("spleen", "liver"), ("aorta", "superior_mesenteric_artery")
PREPROCESSING = Preprocessing((12.0, 12.0, 12.0), window=(16, 16, 16))


def old_content(encoding="v3", lpg="independent", classes=OLD):
    """The content of a checkpoint of a small network with random weights."""
    torch.manual_seed(1)
    rows = class_embeddings(classes, encoding)
    network = UniversalModel(ModelConfig(tuple(classes), "unet", 2, lpg, 8, text_width=rows.shape[1],
                                         encoding=encoding),
                             torch.from_numpy(rows))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return {"network": network.describe(), "weights": weights, "about": {}, "preprocessing": PREPROCESSING.to_dict()}


def grown(content, new=NEW):
    classes = (*content["network"]["classes"], *new)
    return continual.grow(content, classes, continual.new_embeddings(content, classes))


# ------------------------------------------------------------------------------------- what a checkpoint says of itself

def test_w25_an_extended_checkpoint_offers_no_more_of_its_old_classes():
    """Which old classes are experimental, and how the weights are used, goes on; where they come from is told anew."""
    old = {"experimental": {"spleen": "never scored"}, "in_pieces": ["liver"], "second_view": 0.7, "data": {"a": []}}
    kept = {name: old[name] for name in ("experimental", "in_pieces", "second_view")}
    assert kept_of({"about": old}) == kept and kept_of({"about": {}}) == kept_of(None) == {}
    args = train.parse(["--data-root", "x"])
    args.old = {"about": old}
    about = train.provenance_of(args, [])
    assert {name: about[name] for name in kept} == kept and about["data"] == {}


# ------------------------------------------------------------------------------------------ a network with more classes

@pytest.mark.parametrize("encoding", ["v3", "one-hot", "random"])
@pytest.mark.parametrize("lpg", ["independent", "shared"])
def test_a_grown_network_computes_the_same_for_its_old_classes(encoding, lpg):
    content = old_content(encoding, lpg)
    before, after = checkpoint.load_network(content), grown(content).eval()
    image = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(after(image)[:, :2], before(image), atol=1e-6)
        assert after(image).shape == (2, 4, 16, 16, 16)
    assert after.classes == (*OLD, *NEW)


def test_every_old_weight_is_there_and_a_new_class_adds_one_mlp_and_one_row():
    content = old_content()
    network = grown(content)
    state = network.state_dict()
    for name, theirs in content["weights"].items():
        assert torch.equal(state[name][tuple(slice(0, n) for n in theirs.shape)], theirs), name
    assert {n.split(".")[2] for n in set(state) - set(content["weights"])} == {"2", "3"}           # controllers 2 and 3
    assert torch.equal(network.organ_embedding[2:], torch.from_numpy(class_embeddings(NEW, "v3")))
    added = sum(t.numel() for n, t in state.items() if n not in content["weights"])
    assert added == 2 * cost(network, (16, 16, 16))["parameters"] == 2 * ((256 + 384) * 8 + 8 + 8 * 153 + 153)


def test_a_class_more_costs_what_section_5_4_says():
    content = old_content()
    content["network"].update(text_width=512, lpg_hidden=0)
    with torch.device("meta"):
        network = checkpoint.build_network({**content["network"]})
    found = cost(network, (96, 96, 96))
    assert (found["parameters"], found["flops"]) == (472_217, 943_769)                                  # 9.44e-4 GFLOPs


def test_one_hot_vectors_get_longer_and_keep_their_places():
    network = grown(old_content("one-hot"))
    assert torch.equal(network.organ_embedding, torch.eye(4))
    # an old MLP does not listen to the new elements
    assert (network.lpg.controllers[0][0].weight[:, 256 + 2:] == 0).all()


def test_new_sigmoids_start_at_the_prior_and_old_ones_where_they_are():
    content = old_content()
    classes = (*OLD, *NEW)
    network = continual.grow(content, classes, continual.new_embeddings(content, classes), prior=0.02)
    biases = [bias[-1].item() for bias in network.lpg.last_bias()]
    assert biases[:2] == [content["weights"][f"lpg.controllers.{k}.2.bias"][-1].item() for k in (0, 1)]
    assert biases[2:] == pytest.approx([math.log(0.02 / 0.98)] * 2)


def test_a_table_of_another_width_is_refused_with_what_to_make():
    content = old_content()
    content["network"]["text_width"] = 512
    reason = "vectors of 384 numbers, the checkpoint's have 512 .*tools/make_embeddings.py"
    with pytest.raises(ValueError, match=reason):
        continual.new_embeddings(content, (*OLD, "aorta"))


# -------------------------------------------------------------------------------------------------------------- Eq. (5)

class Known(torch.nn.Module):
    """A stand-in teacher of two classes, whose logits can be computed from the image by hand."""

    classes = OLD

    def forward(self, image):
        return torch.cat([4 * image - 2, 1 - 3 * image], dim=1)


def new_batch():
    """Two samples of the new data: both label class 2, the second also class 3, the first also old class 1."""
    batch = batch_of(3, "0110", "0011")
    batch["bits"] = torch.randint(0, 16, batch["bits"].shape, generator=torch.Generator().manual_seed(5))
    return batch


def slow_targets(batch, hard=False, labels=False):
    """Eq. (5), voxel by voxel: (targets, labelled)."""
    labelled, target = batch["labelled"].clone(), torch.zeros(2, 4, 16, 16, 16)
    for b in range(2):
        for k in range(4):
            for voxel in np.ndindex(16, 16, 16):
                y = float((int(batch["bits"][(b, *voxel)]) >> k) & 1)
                if k >= 2 or (labels and batch["labelled"][b, k]):
                    target[(b, k, *voxel)] = y                                        # the new data's label
                else:
                    x = float(batch["image"][(b, 0, *voxel)])
                    logit = (4 * x - 2, 1 - 3 * x)[k]
                    target[(b, k, *voxel)] = float(logit > 0) if hard else 1 / (1 + math.exp(-logit))
    labelled[:, :2] = True
    return target, labelled


@pytest.mark.parametrize("hard, labels", [(False, False), (True, False), (False, True)])
def test_targets_are_eq_5_voxel_by_voxel(hard, labels):
    batch = new_batch()
    extension = continual.Extension(Known(), hard, labels)
    expected, labelled = slow_targets(batch, hard, labels)
    found = extension.targets(batch["image"], batch["bits"], batch["labelled"])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(extension.labelled(batch["labelled"]), labelled)
    assert extension.pairs(batch["labelled"]) == 2 * 2 + 3                    # old ones always, new ones where labelled
    assert hard == bool(((found[:, :2] == 0) | (found[:, :2] == 1)).all())


@pytest.mark.slow
def test_the_loss_is_eq_4_of_these_targets_and_an_unlabelled_new_class_gets_no_gradient():
    batch, network = new_batch(), grown(old_content())
    objective = continual.Extension(Known())
    loss = training_step(network, [batch], TrainConfig(), objective=objective)
    with torch.no_grad():
        logits = network(batch["image"])
    target, labelled = slow_targets(batch)
    total = 0.0
    for b, k in labelled.nonzero().tolist():
        p, t = torch.sigmoid(logits[b, k]).double(), target[b, k].double()
        bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        total += float(bce + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)
    batch["labelled"][1, 3] = False                                                    # nobody labels class 3
    network.zero_grad()
    training_step(network, [batch], TrainConfig(), objective=objective)
    assert all((p.grad == 0).all() for p in network.lpg.controllers[3].parameters())


class Untrained(torch.nn.Module):
    """Four logits of each voxel's grey value."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))

    def forward(self, image):
        return image * self.slope.view(1, 4, 1, 1, 1)


@pytest.mark.parametrize("reduction, old_weight, old_dice", [
    ("mean", 0.0, "linear"), ("sum", 0.0, "linear"), ("mean", 0.0, "squared"), ("sum", 0.0, "none"),
    ("mean", 0.5, "linear"), ("mean", 2.0, "squared")])
def test_old_and_new_classes_are_weighed_as_asked(reduction, old_weight, old_dice):
    """Two old classes; the first sample labels one new class, the second two. Dice and BCE of each pair by themselves:
    over all pairs, as the sum over a sample's classes, or a mean for each group."""
    batch, network = new_batch(), Untrained()
    objective = continual.Extension(Known(), reduction=reduction, old_weight=old_weight, old_dice=old_dice)
    loss = training_step(network, [batch], TrainConfig(), objective=objective)
    target, labelled = objective.targets(batch["image"], batch["bits"], batch["labelled"]), [[0, 1, 2], [0, 1, 2, 3]]
    logits, groups, total = network(batch["image"]).detach(), [], 0.0
    for b, classes in enumerate(labelled):
        of_sample = {True: [], False: []}
        for k in classes:
            p, t = torch.sigmoid(logits[b, k]).double(), target[b, k].double()
            bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            dice = old_dice if k < 2 else "linear"
            sizes = (p * p + t * t).sum() if dice == "squared" else p.sum() + t.sum()
            of_sample[k < 2].append(float(bce + (0 if dice == "none" else 1 - (2 * (p * t).sum() + 1) / (sizes + 1))))
        groups.append(np.mean(of_sample[False]) + old_weight * np.mean(of_sample[True]))
        total += sum(of_sample[True]) + sum(of_sample[False])
    expected = np.mean(groups) if old_weight else total / (2 if reduction == "sum" else 7)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(network.slope.grad).all() and network.slope.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"old_weight": 0.5, "old_dice": "squared"}], ids=str)
def test_micro_batches_give_the_gradient_of_the_joint_batch(options):
    one, two = batch_of(3, "0010"), batch_of(4, "0011")
    both = {key: torch.cat([one[key], two[key]]) if key != "case" else one[key] + two[key] for key in one}
    network, objective = grown(old_content()), continual.Extension(Known(), **options)
    training_step(network, [both], TrainConfig(), objective=objective)
    expected = gradients(network).clone()
    network.zero_grad()
    training_step(network, [one, two], TrainConfig(accumulate=2), objective=objective)
    assert torch.allclose(gradients(network), expected, atol=1e-6)


def test_partial_labels_stay_the_default():
    network, batch = grown(old_content()), new_batch()
    assert training_step(network, [batch], TrainConfig()).item() == \
        training_step(network, [batch], TrainConfig(), objective=PartialLabels()).item()


def test_with_old_weights_frozen_only_the_new_mlps_learn():
    network = grown(old_content())
    continual.freeze_old(network, 2)
    training_step(network, [new_batch()], TrainConfig(), objective=continual.Extension(Known(), frozen=True))
    learning = {n for n, p in network.named_parameters() if p.grad is not None}
    assert learning == {n for n in network.state_dict() if n.startswith(("lpg.controllers.2.", "lpg.controllers.3."))}
    with pytest.raises(ValueError, match="--freeze old: only a network with one MLP per class"):
        continual.freeze_old(grown(old_content(lpg="shared")), 2)


# --------------------------------------------------------------------------------------------------------- what is said

def test_the_summary_compares_old_classes_before_and_after():
    network = grown(old_content())
    found = summary(OLD, network, {"spleen": 0.9, "liver": 0.8}, {"spleen": 0.7, "liver": 0.9, "aorta": 0.5},
                    (16, 16, 16))
    assert found["mean"] == pytest.approx({"old_before": 0.85, "old_after": 0.8, "new": 0.5})
    assert found["classes"]["aorta"] == {"new": True, "before": None, "after": 0.5}
    text = "\n".join(lines(found))
    for expected in ("spleen                           0.900   0.700   -0.200",
                     "aorta                                -   0.500      new",
                     "superior_mesenteric_artery           -       -      new",
                     "mean of old classes              0.850   0.800"):
        assert expected in text
    assert f"{found['cost_of_a_class']['parameters']:,} parameters" in text and "9.44e-4" in text and "466.08" in text


# ---------------------------------------------------------------------------------------------------------- the command

EXTEND = ["--batch-size", "2", "--steps-per-epoch", "2", "--epochs", "4", "--val-every", "2", "--lr", "1e-3",
          "--workers", "0",
          "--device", "cpu"]


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """old: liver, spleen. new: aorta, superior mesenteric artery, liver again, and an unknown label. val: all."""
    root = tmp_path_factory.mktemp("extension")
    patients = [Patient(*make_phantom((12.0, 12.0, 12.0), seed, beyond=True)) for seed in range(5)]
    both = {"liver": ("liver",), "spleen": ("spleen",)}
    new = {"Aorta": ("aorta",), "Superior mesenteric artery": ("superior_mesenteric_artery",)}
    write_dataset(root / "old" / "Old", both, {"a0": patients[0], "a1": patients[1]})
    write_dataset(root / "new" / "New", {**new, "liver": ("liver",), "Zorp": ("colon",)},
                  {"b0": patients[2], "b1": patients[3]})
    write_dataset(root / "val" / "Val", {**both, **new}, {"v0": patients[4]})
    write_volume(root / "ct.nii.gz", patients[4].hu, patients[4].affine)
    plain = [*TINY, "--folds", "1", "--fold", "0", "--epochs", "4", "--cache", str(root / "cache")]
    assert train.main(["--data-root", str(root / "old"), "--out", str(root / "first"), *plain]) == 0
    content = checkpoint.read(root / "first" / "last.pt")
    del content["network"]["head"]                              # a checkpoint of a time when there was one kind of head
    checkpoint.write(root / "before_heads.pt", {key: content[key]
                                                for key in ("network", "preprocessing", "weights", "about")})
    return root


def extend(root, out, *more, data="new", classes="aorta,superior mesenteric artery", start="first/last.pt"):
    chosen = ["--classes", classes] if classes else []
    return train.main(["--extend", str(root / start), "--data-root", str(root / data), "--val-root", str(root / "val"),
                       "--out", str(out),
                       "--cache", str(root / "cache"), *chosen, *EXTEND, *map(str, more)])


@pytest.mark.parametrize("size, warned", [((64, 64, 64), True), ((96, 96, 80), True), ((96, 96, 96), False),
                                          ((128, 96, 96), False)])
def test_patches_smaller_than_those_of_the_old_model_are_warned_about_in_one_line(size, warned):
    """Beside a smaller part of the body, the old network is unsure of the old classes: its targets get worse."""
    content = {"preprocessing": Preprocessing(window=(96, 96, 96)).to_dict()}
    said = smaller_patches(TrainConfig(patch_size=size), content)
    assert said == (f"--patch-size {' '.join(map(str, size))}: smaller than the window 96 96 96 of the checkpoint, "
                    "whose old classes then get worse. Leave the option out." if warned else "")
    assert smaller_patches(TrainConfig(patch_size=size), None) == ""


@pytest.fixture(scope="module")
def extended(assembly, tmp_path_factory):
    out = tmp_path_factory.mktemp("extended") / "run"
    assert extend(assembly, out) == 0
    return out


@pytest.mark.slow
def test_the_weight_of_the_old_classes_their_dice_and_a_he_start_reach_the_run(assembly, extended, tmp_path):
    """The frozen parts say so: other weights than the default's, and the first logits of the new heads are wider."""
    assert extend(assembly, tmp_path / "run", "--old-weight", 0.5, "--old-dice", "squared", "--head-start", "he") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["old_weight"], config["old_dice"], config["head_start"]) == (0.5, "squared", "he")
    ours, default = (checkpoint.read(folder / "last.pt")["weights"] for folder in (tmp_path / "run", extended))
    spread = [w["lpg.controllers.2.2.bias"][:64].std().item() for w in (ours, default)]
    assert abs(spread[0] - 0.5) < 0.15 and spread[1] < 0.25
    assert not torch.equal(ours["lpg.controllers.0.2.bias"], default["lpg.controllers.0.2.bias"])


@pytest.mark.slow
def test_the_command_extends_a_checkpoint_and_reports_old_classes_before_and_after(assembly, extended, tmp_path,
                                                                                   capsys):
    content = checkpoint.read(extended / "last.pt")
    assert content["network"]["classes"] == [*OLD, "aorta", "superior_mesenteric_artery"]
    assert content["about"]["extend"] == {"file": "last.pt",
                                          "sha256": checkpoint.file_sha256(assembly / "first" / "last.pt"),
                                          "cases": ["Old/a0", "Old/a1"]}
    found = json.loads((extended / "extension.json").read_text())
    assert set(found["classes"]) == set(content["network"]["classes"]) and found["cases"] == ["Val/v0"]
    assert found["classes"]["aorta"]["before"] is None and found["classes"]["aorta"]["after"] is not None
    assert found["classes"]["liver"]["after"] == metrics(extended)[-1]["dice"]["liver"]
    first = metrics(assembly / "first")
    assert all(record.get("dice") is None for record in first)         # it had no validation; "before" is measured here
    assert found["classes"]["liver"]["before"] is not None
    assert "extended by new classes (extension.json" in (extended / "MODEL_CARD.md").read_text()
    assert extend(assembly, tmp_path / "again") == 0
    said = capsys.readouterr().err
    assert "2 classes kept, 2 new: aorta, superior_mesenteric_artery" in said
    assert "label 'Zorp' is left out, it is no known class and --classes does not name it" in said
    assert "mean of old classes" in said and "paper, Section 5.4: 9.44e-4" in said


@pytest.mark.slow
def test_its_defaults_are_those_of_section_5_1_3_and_of_the_checkpoint(assembly):
    args = train.parse(["--extend", str(assembly / "first" / "last.pt"), "--data-root", "x"])
    assert (args.epochs, args.warmup_epochs, args.batch_size, args.lr, args.weight_decay) == (100, 0, 2, 1e-4, 1e-5)
    assert (args.backbone, args.width, args.lpg_hidden, args.spacing, args.patch_size) == ("unet", 2, 8, 12.0,
                                                                                           (16, 16, 16))


def test_the_windows_of_a_checkpoint_are_kept_and_others_refused(tmp_path, capsys):
    content = old_content()
    config = ModelConfig.of({**content["network"], "input_windows": ((0.4125, 0.625), (0.0, 1.0))})
    checkpoint.save(tmp_path / "old.pt", UniversalModel(config, content["weights"]["organ_embedding"]),
                    replace(PREPROCESSING, hu_window=(-1000.0, 1000.0)))
    command = ["--extend", str(tmp_path / "old.pt"), "--data-root", "x", "--device", "cpu", "--out",
               str(tmp_path / "run")]
    for args in (train.parse(command), train.parse([*command, "--input-windows", "-175", "250", "-1000", "1000"])):
        assert make_config(args, train_cases=3, world=1).input_windows == ((-175.0, 250.0), (-1000.0, 1000.0))
    assert grown(checkpoint.read(tmp_path / "old.pt")).config.input_windows == ((0.4125, 0.625), (0.0, 1.0))
    assert train.main([*command, "--input-windows", "-175", "250"]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "--input-windows: " in said
    assert "has (-175.0, 250.0, -1000.0, 1000.0), which --extend keeps. Leave the option out." in said


def test_dice_of_present_classes_alone_is_not_for_an_extension(assembly, tmp_path, capsys):
    assert extend(assembly, tmp_path / "run", "--dice-present") == 2
    error = capsys.readouterr().err
    assert "--dice-present: the losses of --extend and --head softmax know no absent classes. Leave it out." in error
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.slow
def test_the_extended_model_segments_and_its_new_class_has_number_33(assembly, extended):
    segmentation = uniseg.load(extended / "last.pt").segment(assembly / "ct.nii.gz", threshold=1e-6)
    assert segmentation.stats["classes"]["superior_mesenteric_artery"]["label"] == 33
    voxels = segmentation.stats["classes"]["superior_mesenteric_artery"]["voxels"]
    assert segmentation.mask("Superior mesenteric artery").sum() == voxels
    assert segmentation.stats["classes"]["aorta"]["label"] == 8


@pytest.mark.slow
def test_old_data_is_not_read(assembly, tmp_path, monkeypatch):
    """During an extension, no file below the folder of the old data is opened."""
    opened = []
    import builtins
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(str(file)), real(file, *a, **k))[1])
    assert extend(assembly, tmp_path / "run") == 0
    assert opened and not [f for f in opened if str(assembly / "old") in f]


@pytest.mark.slow
def test_an_extension_extends_further(assembly, extended, tmp_path):
    write_dataset(tmp_path / "more" / "More", {"stomach": ("stomach",)}, {"s": Patient(*make_phantom((12.0,) * 3, 7))})
    assert train.main(["--extend", str(extended / "last.pt"), "--data-root", str(tmp_path / "more"), "--folds", "1",
                       "--out",
                       str(tmp_path / "run"), *EXTEND]) == 0
    network = checkpoint.read(tmp_path / "run" / "last.pt")["network"]
    assert network["classes"] == [*OLD, "aorta", "superior_mesenteric_artery", "stomach"]
    found = json.loads((tmp_path / "run" / "extension.json").read_text())
    assert found["mean"] == {"old_before": None, "old_after": None, "new": None} and found["cases"] == []


@pytest.mark.slow
def test_with_old_weights_frozen_old_classes_are_bit_for_bit_as_before(assembly, tmp_path):
    assert extend(assembly, tmp_path / "run", "--freeze", "old", "--weight-decay", 0.1) == 0
    before, after = (checkpoint.read(p)["weights"] for p in (assembly / "first" / "last.pt",
                                                             tmp_path / "run" / "last.pt"))
    for name, theirs in before.items():
        assert torch.equal(after[name][tuple(slice(0, n) for n in theirs.shape)], theirs), name
    found = json.loads((tmp_path / "run" / "extension.json").read_text())["classes"]
    assert all(found[name]["before"] == found[name]["after"] for name in OLD)


@pytest.mark.slow
def test_a_killed_extension_resumes_to_the_same_weights(assembly, extended, tmp_path, monkeypatch):
    steps = []

    def broken(*arguments, **options):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return training_step(*arguments, **options)
    with monkeypatch.context() as patch:
        patch.setattr(train, "training_step", broken)
        assert extend(assembly, tmp_path / "run") == 130
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 0      # the first command names the rest
    assert_equal_state(checkpoint.read(tmp_path / "run" / "last.pt")["weights"],
                       checkpoint.read(extended / "last.pt")["weights"])
    assert (tmp_path / "run" / "extension.json").read_text() == (extended / "extension.json").read_text()


@pytest.mark.slow
def test_a_finished_extension_resumed_ends_at_once(assembly, tmp_path, monkeypatch):
    assert extend(assembly, tmp_path / "run") == 0
    before = (tmp_path / "run" / "extension.json").stat().st_mtime_ns
    monkeypatch.setattr(train, "validate", lambda *_: pytest.fail("validates again"))
    assert extend(assembly, tmp_path / "run", "--resume") == 0
    assert (tmp_path / "run" / "extension.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_checkpoint_that_does_not_name_its_head_has_class_specific_ones(assembly, tmp_path):
    assert extend(assembly, tmp_path / "run", start="before_heads.pt") == 0
    assert checkpoint.read(tmp_path / "run" / "last.pt")["network"]["classes"] == [*OLD, "aorta",
                                                                                   "superior_mesenteric_artery"]


def test_a_resume_from_another_old_model_is_refused(assembly, extended, capsys):
    assert extend(assembly, extended, "--resume", start="first/last.prev.pt") == 2
    assert "the checkpoint of --extend" in capsys.readouterr().err


@pytest.mark.slow
def test_one_class_is_learned_where_the_folder_is_one_of_masks(assembly, tmp_path):
    """TotalSegmentator's form: one file per structure. A class beyond Table 2 is read from the file of its name."""
    hu, masks, affine = make_phantom((12.0,) * 3, 9, beyond=True)
    case = tmp_path / "TotalSegmentator" / "s0001"
    (case / "segmentations").mkdir(parents=True)
    write_volume(case / "ct.nii.gz", hu, affine)
    for name in ("liver", "superior_mesenteric_artery", "colon"):
        write_volume(case / "segmentations" / f"{name}.nii.gz", masks[name].astype(np.uint8), affine)
    assert train.main(["--extend", str(assembly / "first" / "last.pt"), "--data-root", str(tmp_path), "--classes",
                       "superior mesenteric artery", "--folds", "1", "--out", str(tmp_path / "run"), *EXTEND]) == 0
    assert checkpoint.read(tmp_path / "run" / "last.pt")["network"]["classes"] == [*OLD, "superior_mesenteric_artery"]


@pytest.mark.parametrize("meaning, expected", [("superior_mesenteric_artery", ("liver", "superior_mesenteric_artery")),
                                               (None, ("liver",)), ("aorta", ("liver",))])
def test_a_map_that_drops_or_renames_a_label_asks_for_no_mask_file_of_its_name(tmp_path, meaning, expected):
    hu, masks, affine = make_phantom((12.0,) * 3, 9, beyond=True)
    case = tmp_path / "TotalSegmentator" / "s0001"
    (case / "segmentations").mkdir(parents=True)
    write_volume(case / "ct.nii.gz", hu, affine)
    for name in ("liver", "superior_mesenteric_artery"):
        write_volume(case / "segmentations" / f"{name}.nii.gz", masks[name].astype(np.uint8), affine)
    [dataset] = find_datasets(tmp_path, {"superior_mesenteric_artery": meaning})
    assert dataset.annotated == expected


BAD = [
    (dict(classes="liver"), [], "--classes: the checkpoint of --extend has liver already. Name new ones only."),
    (dict(classes="flux_capacitor"), [], "no text embedding"),
    (dict(data="old", classes=None), [], "label no class that the checkpoint of --extend lacks. It has spleen, liver."),
    (dict(start="first/none.pt"), [], "no such weights file"),
    (dict(), ["--width", 4], "--width: "),
    (dict(), ["--encoding", "one-hot"], "--encoding: "),
    (dict(), ["--spacing", 6], "--spacing: "),
    (dict(start="before_heads.pt"), ["--head", "softmax"], "--head: "),
    (dict(), ["--init", "x.pt"], "--init and --extend: the network starts from one of them."),
    (dict(), ["--baseline", "lwf"], "--baseline lwf: for a checkpoint that was trained with --head softmax"),
]


@pytest.mark.parametrize("how, more, expected", BAD)
def test_what_cannot_be_extended_is_refused_in_one_line(assembly, tmp_path, capsys, how, more, expected):
    assert extend(assembly, tmp_path / "run", *more, **how) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniseg: error: ")]
    if expected == "no text embedding":
        expected = "A class beyond Table 2 needs a text embedding: `python -m uniseg.embeddings` prints the names " \
                   "that have one, tools/make_embeddings.py --names FILE makes a table with more"
    assert len(errors) == 1 and expected in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--hard-pseudo", "--old-labels"])
def test_options_of_an_extension_need_one(refused, option):
    assert f"{option} without --extend: there is no old model." in refused(option)


def test_old_alone_can_be_frozen_only_in_an_extension(refused):
    assert "--freeze old without --extend" in refused("--freeze", "old")


# -------------------------------------------------------------------------------------------- more classes than Table 2

def many(count):
    """`count` class names: Table 2's first, then others of the shipped table of embeddings."""
    from uniseg.embeddings import load_table
    return tuple(load_table()["name"][:count].tolist())


def test_40_classes_grow_to_64_and_to_no_more(tmp_path):
    content = old_content(classes=many(40))
    network = grown(content, many(64)[40:])
    assert network(torch.rand(1, 1, 16, 16, 16)).shape[1] == 64

    class Args:
        data_root, dataset, classes = tmp_path, [], None
    cases = [Case(tmp_path, "d", "c", (), {name: 1 for name in many(65)[40:]})]
    with pytest.raises(ValueError, match="65 classes; one bit each, 63 fit"):
        train.choose_classes(Args, cases, many(40))


@pytest.mark.slow
def test_64_classes_go_through_training_bits_label_map_and_json(tmp_path):
    """Bit 63 is the sign of the int64 bits of a batch. Labels of classes beyond Table 2 start at 33."""
    classes = many(64)
    batch = {"image": torch.rand(1, 1, 16, 16, 16), "bits": torch.full((1, 16, 16, 16), -2 ** 63),
             "labelled": torch.ones(1, 64, dtype=bool),
             "case": ["c"]}
    network = grown(old_content(classes=classes[:40]), classes[40:])
    assert training_step(network, [batch], TrainConfig()).isfinite()
    checkpoint.save(tmp_path / "w.pt", network, PREPROCESSING)
    hu, _, affine = make_phantom((12.0,) * 3)
    write_volume(tmp_path / "ct.nii.gz", hu, affine)
    model = uniseg.load(tmp_path / "w.pt")
    result = model.segment(tmp_path / "ct.nii.gz", threshold=1e-6, postprocess=False)
    assert [c["label"] for c in result.stats["classes"].values()] == list(range(1, 65))
    assert result.mask(classes[63]).any()
    chosen = model.segment(tmp_path / "ct.nii.gz", classes=[classes[63]], threshold=1e-6, postprocess=False)
    assert chosen.stats["classes"][classes[63]]["label"] == 64          # its number does not depend on what is computed
    assert np.array_equal(chosen.mask(classes[63]), result.mask(classes[63]))
    chosen.save(tmp_path / "seg.nii.gz", tmp_path / "masks")
    assert json.loads((tmp_path / "seg.json").read_text())["classes"][classes[63]]["label"] == 64


@pytest.mark.slow
def test_a_label_map_beyond_255_classes_is_uint16_and_classes_are_computed_in_parts(tmp_path):
    classes = tuple(f"part_{i}" for i in range(300))
    torch.manual_seed(0)
    network = UniversalModel(ModelConfig(classes, "unet", 2, "independent", 8, text_width=4), torch.randn(300, 4))
    checkpoint.save(tmp_path / "w.pt", network, PREPROCESSING)
    hu, _, affine = make_phantom((12.0,) * 3)
    write_volume(tmp_path / "ct.nii.gz", hu, affine)
    model = uniseg.load(tmp_path / "w.pt")
    reason = "300 classes do not fit one integer per voxel. Use at most 64 classes at a time"
    with pytest.raises(ValueError, match=reason):
        model.segment(tmp_path / "ct.nii.gz")
    result = model.segment(tmp_path / "ct.nii.gz", classes=["part_299"], threshold=1e-6, postprocess=False)
    assert result.label_map.dtype == np.uint16 and set(np.unique(result.label_map)) == {0, 332}
    result.save(tmp_path / "seg.nii.gz")
    from uniseg.imaging.volume import read_label_map
    assert set(np.unique(read_label_map(tmp_path / "seg.nii.gz").array)) == {0, 332}
