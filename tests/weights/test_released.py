"""Released files: each file of docs/released_weights.md is recognised and renamed; what does not fit is reported.

The files are stand-ins with the real containers, names and shapes (released_files.py); that the networks they make
compute what the originals do is in test_model.py and test_backbones.py.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
import torch

import uniseg
from released_files import FILES, write_released
from stand_in import stand_in
from uniseg import checkpoint, train
from uniseg.backbones.swin_unetr import relative_position_index
from uniseg.checkpoint import CheckpointError
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.model import ModelConfig, UniversalModel
from uniseg.taxonomy import NAMES
from uniseg.weights.released import find_weights, our_name, recognise, translate

GENESIS = "Genesis_Chest_CT.pt"
SEGRESNET = "supervised_suprem_segresnet_2100.pth"
SWINVIT = "model_swinvit.pt"
UNET = "clip_driven_universal_unet.pth"

# file: (backbone, width, lpg, classes, loaded, missing, ignored); counts by hand:
# a Swin backbone has 157 tensors, 126 of them in its transformer; a U-Net 62 and 42 running statistics; SegResNet 79.
FACTS = {
    "clip_driven_universal_swin_unetr.pth": ("swin_unetr", 48, "shared", 32, 157 + 13, 0, 0),
    UNET: ("unet", 64, "shared", 32, 62 + 13, 0, 42),
    "continual_swin_unetr_38class.pth": ("swin_unetr", 48, "independent", 38, 157 + 9 + 4 * 38, 0, 0),
    "supervised_suprem_swinunetr_2100.pth": ("swin_unetr", 48, "shared", 32, 157 + 13, 0, 0),
    "supervised_suprem_unet_2100.pth": ("unet", 64, "shared", 32, 62 + 13, 0, 42),
    SEGRESNET: ("segresnet", 16, None, 0, 79, 0, 4),
    "swin_unetr.base_5000ep_f48_lr2e-4_pretrained.pt": ("swin_unetr", 48, None, 0, 157, 0, 2),
    SWINVIT: ("swin_unetr", 48, None, 0, 126, 157 - 126, 8),
    GENESIS: ("unet", 64, None, 0, 62, 0, 42 + 2),
}


def zeros(file, **changed):
    """The state dict of a released file without the cost of its numbers."""
    return {name: torch.zeros(shape) for name, shape in FILES[file][1].items()
            if not name.endswith("relative_position_index")} | changed


def refused(path, **options):
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(path, **options)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def run(*arguments):
    """(exit code, stdout, stderr) of python -m uniseg.checkpoint, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = checkpoint.main([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def run_anew(*arguments):
    """The same in a process of its own, as users start it."""
    done = subprocess.run([sys.executable, "-m", "uniseg.checkpoint", *map(str, arguments)], capture_output=True,
                          text=True,
                          cwd=Path(__file__).parents[2])
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """{name of a released file: path of its stand-in}, written when it is first asked for. Not to be written to."""
    folder = tmp_path_factory.mktemp("released")

    class Files(dict):
        def __missing__(self, file):
            self[file] = write_released(folder / file, file, epoch=3)
            return self[file]
    return Files()


# ---------------------------------------------------------------------------------------------------------- recognition

@pytest.mark.parametrize("file", FILES)
def test_every_released_file_is_recognised_by_its_keys(file):
    backbone, width, lpg, classes, loaded, missing, ignored = FACTS[file]
    container, shapes = FILES[file]
    state = {name: relative_position_index() if name.endswith("relative_position_index") else torch.empty(shape)
             for name, shape in shapes.items()}
    config, weights, report = translate({container: state, "optimizer": {"state": {}}, "epoch": 400})
    assert (config["backbone"], config["width"], config.get("lpg"), len(config["classes"])) == (backbone, width, lpg,
                                                                                                classes)
    assert config["merging"] == ("v090" if backbone == "swin_unetr" else "standard")
    assert (report.container, report.entries) == (container, len(shapes))
    assert (len(report.loaded), len(report.missing), len(report.ignored)) == (loaded, missing, ignored)
    assert report.unexpected == report.mismatched == {} and len(weights) == loaded
    assert loaded + ignored == len(shapes), "an entry was skipped in silence"
    assert report.complete == (file != SWINVIT)


def test_the_lists_of_names_are_those_of_the_real_files():
    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "keys.json"
    if not path.is_file():
        pytest.skip(f"no list of the real files' entries at {path}")
    for file, content in json.loads(path.read_text()).items():
        assert FILES[file] == (content["container"],
                               {name: tuple(shape) for name, (shape, _) in content["entries"].items()}), file


def test_the_32_classes_are_table_2_and_the_continual_ones_go_on_with_six_of_jhh():
    for file, more in [(UNET, ()), ("continual_swin_unetr_38class.pth", (
            "common_bile_duct", "pancreatic_duct", "superior_mesenteric_artery", "left_renal_vein", "right_renal_vein",
            "cbd_stent"))]:
        entries = {our_name(n): torch.empty(s, device="meta") for n, s in FILES[file][1].items()}
        assert tuple(recognise(entries)["classes"]) == NAMES + more


def test_another_number_of_classes_gets_numbers_for_names():
    config, _, report = translate({"net": zeros(UNET, **{"module.organ_embedding": torch.ones(3, 512)})})
    assert config["classes"] == ["class_1", "class_2", "class_3"] and report.complete


@pytest.mark.parametrize("container", ["net", "state_dict", "model", None])
def test_every_container_and_a_bare_state_dict_are_opened(container):
    state = zeros(GENESIS)
    content = {container: state, "epoch": 1} if container else state
    assert find_weights(content)[0] == (container or "") and find_weights(content)[1].keys() == state.keys()
    assert len(translate(content)[2].loaded) == 62


def test_module_is_stripped_only_where_it_stands():
    assert our_name("module.GAP.0.weight") == our_name("GAP.0.weight") == "GAP.0.weight"
    assert our_name("module.backbone.down_tr64.ops.0.bn1.bias") == our_name("down_tr64.ops.0.bn1.bias") \
        == "backbone.down_tr64.ops.0.bn1.bias"


def test_a_1x1x1_convolution_becomes_the_linear_layer_with_the_same_numbers():
    theirs = torch.arange(153 * 512.0).reshape(153, 512, 1, 1, 1)
    _, weights, _ = translate({"net": zeros(UNET, **{"module.controller.weight": theirs})})
    assert torch.equal(weights["lpg.controller.weight"], theirs[:, :, 0, 0, 0])


def test_half_and_double_precision_become_float32():
    state = {n: t.half() if i % 2 else t.double() for i, (n, t) in enumerate(zeros(SEGRESNET).items())}
    assert {t.dtype for t in translate({"net": state})[1].values()} == {torch.float32}


@pytest.mark.slow
def test_the_files_own_text_embedding_is_used(released):
    network = checkpoint.load_network(checkpoint.read(released[UNET]))
    name = "module.organ_embedding"
    assert torch.equal(network.organ_embedding, torch.from_numpy(stand_in(name, FILES[UNET][1][name])))
    assert network.classes == NAMES


def test_an_old_file_format_of_torch_is_read_too(tmp_path):
    torch.save({"state_dict": zeros(GENESIS)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert checkpoint.read(tmp_path / "old.pt")["part"] == "backbone"


# --------------------------------------------------------------------------------------------------- what does not fit

@pytest.mark.slow
def test_an_entry_that_is_missing_left_over_or_of_another_shape_needs_partial(tmp_path):
    state = zeros(GENESIS)
    del state["module.up_tr64.ops.1.bn1.bias"]
    state["module.stray.weight"] = torch.zeros(2, 3)
    state["module.down_tr64.ops.0.conv1.bias"] = torch.zeros(7)
    torch.save({"state_dict": state}, tmp_path / "g.pt")
    message = refused(tmp_path / "g.pt")
    assert "60 loaded, 1 missing, 1 unexpected, 1 of another shape" in message and "--partial" in message
    content = checkpoint.read(tmp_path / "g.pt", partial=True)
    report = content["report"]
    assert report.missing == {"backbone.up_tr64.ops.1.bn1.bias": (64,)}
    assert report.unexpected == {"module.stray.weight": (2, 3)}
    assert report.mismatched == {"module.down_tr64.ops.0.conv1.bias": ((7,), (32,))}
    assert content["part"] == "partial" and len(content["weights"]) == 60


@pytest.mark.slow
def test_an_index_of_another_window_is_no_match(released):
    state = torch.load(released[SWINVIT], weights_only=True)["state_dict"]
    name = "module.layers2.0.blocks.1.attn.relative_position_index"
    state[name] = state[name].flip(0)
    assert list(translate({"state_dict": state})[2].mismatched) == [name]


@pytest.mark.parametrize("content, reason", [
    ({"net": {"conv.weight": torch.zeros(3)}}, "no entry belongs to a backbone"),
    ({"epoch": 3, "optimizer": {}}, "no weights found (it holds epoch, optimizer)"),
    ({"net": {"module.convInit.conv.weight": torch.zeros(16, 4, 3, 3, 3)}}, "takes 4 input channels, a CT has one"),
    ({"net": {"module.convInit.conv.weight": torch.zeros(16)}}, "no entry fits the SegResNet"),
    ([torch.zeros(3)], "no weights found (it holds list)")])
def test_where_nothing_matches_the_reason_is_told(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.pt")
    assert reason in refused(tmp_path / "x.pt") and reason in refused(tmp_path / "x.pt", partial=True)


def test_nan_in_a_released_file_is_refused(tmp_path):
    torch.save({"net": zeros(SEGRESNET, **{"module.convInit.conv.weight": torch.full((16, 1, 3, 3, 3), float("nan"))})},
               tmp_path / "x.pt")
    assert "convInit.conv.weight holds NaN or infinity" in refused(tmp_path / "x.pt")


@pytest.mark.slow
def test_a_backbone_or_a_part_does_not_segment(released):
    for file, words in [(GENESIS, "a backbone without class heads"), (SWINVIT, "part of a model only")]:
        path = released[file]
        with pytest.raises(CheckpointError, match=f"{words}, it cannot segment. Train from it: python -m uniseg.train "
                                                  f"--init"):
            checkpoint.load_network(checkpoint.read(path, partial=True), path)


# ------------------------------------------------------------------------------------------------------------- command

@pytest.mark.slow
def test_the_command_tells_what_a_file_is_in_one_screen(released):
    path = released[UNET]
    code, out, err = run_anew(path)
    assert (code, err) == (0, "")
    assert "what       Universal Model, U-Net, shared LPG, 32 classes" in out
    assert "backbone   U-Net, width 64, 19,073,600 parameters" in out and "parameters 19,416,417" in out
    assert checkpoint.file_sha256(path) in out and "117, under net: 75 loaded, 42 ignored" in out
    assert f"use        python -m uniseg.infer ct.nii.gz --weights {path}" in out
    assert "liver, stomach" in out.replace("\n           ", " ")
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 160


@pytest.mark.slow
def test_the_command_lists_what_is_missing_and_converts_a_part_only_when_told(released, tmp_path):
    path, out_path = released[SWINVIT], tmp_path / "out.pt"
    code, out, _ = run(path)
    assert code == 0 and "126 loaded, 31 missing, 8 ignored" in out and "... and 27 more; --all lists them" in out
    assert "missing    backbone.encoder1.layer.conv1.conv.weight (48, 1, 3, 3, 3)" in out
    assert f"--init {path} --partial" in out
    assert run(path, "--all")[1].count("missing    backbone.") == 31
    code, out, err = run(path, "-o", out_path)
    assert code == 2 and out == "" and err.count("\n") == 1 and "--partial" in err and not out_path.exists()
    assert run(path, "-o", out_path, "--partial")[0] == 0
    assert checkpoint.read(out_path)["part"] == "partial"


@pytest.mark.slow
def test_a_converted_file_gives_the_same_network_and_names_its_origin(released, tmp_path):
    path, out_path = released[UNET], tmp_path / "out.pt"
    code, out, _ = run(path, "-o", out_path)
    assert code == 0 and f"made from  {UNET}, sha256 {checkpoint.file_sha256(path)}" in out
    before, after = (checkpoint.load_network(checkpoint.read(p)) for p in (path, out_path))
    assert before.config == after.config
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())
    assert run(path, "-o", tmp_path / "half.pt", "--half")[0] == 0
    assert (tmp_path / "half.pt").stat().st_size < 0.51 * out_path.stat().st_size


@pytest.mark.slow
def test_the_command_refuses_a_bad_file_in_one_line(tmp_path):
    code, out, err = run_anew(tmp_path / "none.pt")
    assert (code, out) == (2, "") and err.startswith("uniseg: error: ") and err.count("\n") == 1


def test_the_command_describes_a_checkpoint_of_ones_own(tmp_path, capsys):
    network = UniversalModel(ModelConfig(("liver", "spleen"), "unet", 4, text_width=3, lpg_hidden=4), torch.randn(2, 3))
    checkpoint.save(tmp_path / "own.pt", network, Preprocessing((2.0, 2.0, 3.0), (-100.0, 200.0), (64, 64, 32)),
                    {"command": "train it"})
    assert checkpoint.main([str(tmp_path / "own.pt")]) == 0
    out = capsys.readouterr().out
    for line in ("what       Universal Model, U-Net, independent LPG, 2 classes", "classes    2: liver, spleen",
                 "made by    train it",
                 "input      2 x 2 x 3 mm, HU -100 to 200, windows 64 x 64 x 32", "backbone   U-Net, width 4,"):
        assert line in out
    assert "entries" not in out


# --------------------------------------------------------------------------------------------------- starting from it

def small(classes, width=4, text=3, lpg="independent", backbone="unet", seed=0):
    torch.manual_seed(seed)
    return UniversalModel(ModelConfig(tuple(classes), backbone, width, lpg, lpg_hidden=4, text_width=text),
                          torch.randn(len(classes), text))


def content_of(network, tmp_path):
    checkpoint.save(tmp_path / "init.pt", network, Preprocessing((4.0,) * 3, (0.0, 1.0), (16,) * 3))
    return checkpoint.read(tmp_path / "init.pt")


def test_classes_that_both_know_keep_their_mlp_and_text_by_name_whatever_their_place(tmp_path):
    old, new = small(("liver", "spleen", "aorta"), seed=1), small(("aorta", "colon", "liver"), seed=2)
    colon = {n: t.clone() for n, t in new.lpg.controllers[1].state_dict().items()}
    text = new.organ_embedding[1].clone()
    fresh = checkpoint.initialise(new, content_of(old, tmp_path))
    for ours, theirs in ((0, 2), (2, 0)):                                             # aorta, liver
        for name, tensor in new.lpg.controllers[ours].state_dict().items():
            assert torch.equal(tensor, old.lpg.controllers[theirs].state_dict()[name])
        assert torch.equal(new.organ_embedding[ours], old.organ_embedding[theirs])
    assert all(torch.equal(t, colon[n]) for n, t in new.lpg.controllers[1].state_dict().items())
    assert torch.equal(new.organ_embedding[1], text)
    assert sorted(fresh) == sorted(f"lpg.controllers.1.{n}" for n in colon)
    for name, tensor in new.state_dict().items():
        if name.startswith(("backbone.", "GAP.", "precls_conv.")):
            assert torch.equal(tensor, old.state_dict()[name]), name


def test_an_mlp_made_for_texts_of_another_width_is_not_taken(tmp_path):
    new = small(("liver",), text=5)
    before = new.organ_embedding.clone()
    fresh = checkpoint.initialise(new, content_of(small(("liver",), text=3, seed=1), tmp_path))
    assert {n.split(".")[0] for n in fresh} == {"lpg", "organ_embedding"} and torch.equal(new.organ_embedding, before)


def test_another_backbone_or_width_is_refused_with_the_options_that_would_do(tmp_path):
    content = content_of(small(("liver",)), tmp_path)
    for network in (small(("liver",), width=8), small(("liver",), width=8, backbone="segresnet")):
        with pytest.raises(CheckpointError, match="holds a U-Net of width 4. Give --backbone unet --width 4."):
            checkpoint.initialise(network, content, "init.pt")


TINY = ["--spacing", "12", "--patch-size", "16", "16", "16", "--batch-size", "1", "--steps-per-epoch", "1",
        "--warmup-epochs", "0",
        "--folds", "1", "--workers", "0", "--device", "cpu", "--classes", "spleen,liver"]


@pytest.mark.slow
def test_training_starts_from_a_released_backbone(phantom_root, tmp_path, capsys):
    path = write_released(tmp_path / SEGRESNET, SEGRESNET)
    start = ["--data-root", str(phantom_root), "--out", str(tmp_path / "run"), "--backbone", "segresnet",
             "--lpg-hidden", "8", *TINY]
    assert train.main([*start, "--init", str(path), "--epochs", "1", "--lr", "1e-12"]) == 0
    assert "79 tensors taken" in capsys.readouterr().err
    content = checkpoint.read(tmp_path / "run" / "last.pt")
    released = checkpoint.read(path)
    for name, tensor in released["weights"].items():
        torch.testing.assert_close(content["weights"][name], tensor, rtol=0, atol=1e-10)
    assert content["about"]["init"] == {"file": SEGRESNET, "sha256": checkpoint.file_sha256(path), "cases": []}


@pytest.mark.slow
def test_training_from_the_transformer_alone_needs_partial_and_keeps_its_order_of_corners(phantom_root, tmp_path,
                                                                                          capsys):
    """A Swin UNETR of 12 channels, whose file stands for model_swinvit.pt."""
    donor = UniversalModel(ModelConfig(("liver",), "swin_unetr", 12, text_width=3), torch.ones(1, 3))
    state = {n.removeprefix("backbone.swinViT."): t for n, t in donor.state_dict().items()
             if n.startswith("backbone.swinViT.")}
    torch.save({"state_dict": {"module." + n.replace("linear", "fc"): t for n, t in state.items()}}, tmp_path / "v.pt")
    start = ["--data-root", str(phantom_root), "--out", str(tmp_path / "run"), "--backbone", "swin_unetr", "--width",
             "12", *TINY,
             "--patch-size", "64", "32", "32", "--epochs", "1", "--init", str(tmp_path / "v.pt")]
    assert train.main(start) == 2
    assert "126 loaded, 31 missing" in capsys.readouterr().err
    assert train.main([*start, "--partial"]) == 0
    assert checkpoint.read(tmp_path / "run" / "last.pt")["network"]["merging"] == "v090"
    assert train.main([*start, "--partial", "--resume"]) == 0
    without = [a for a in start if a not in ("--init", str(tmp_path / "v.pt"))]
    assert train.main([*without, "--resume"]) == 0                       # the run knows what it was started from


# ----------------------------------------------------------------------------------------------------------- segmenting

@pytest.mark.slow
def test_a_file_of_the_continual_form_segments_with_38_classes_numbered_on_after_table_2(tmp_path, phantom_ct):
    """Narrow (12 channels), in the container and under the names of the released one, on the middle of a phantom."""
    torch.manual_seed(0)
    network = UniversalModel(ModelConfig(tuple(f"c{i}" for i in range(38)), "swin_unetr", 12, merging="v090"),
                             torch.randn(38, 512))
    released = {"module." + n.removeprefix("lpg.").removeprefix("backbone."):
                t[..., None, None, None] if n.startswith("lpg.") and t.ndim == 2 else t for n,
                t in network.state_dict().items()}
    torch.save({"net": released, "epoch": 1}, tmp_path / "continual.pth")
    whole = nib.load(phantom_ct.path)
    middle = whole.slicer[tuple(slice(n // 2 - 4, n // 2 + 4) for n in whole.shape)]                # 64 mm: one window
    seg = uniseg.load(tmp_path / "continual.pth", device="cpu").segment(middle)
    numbers = {name: c["label"] for name, c in seg.stats["classes"].items()}
    assert list(numbers.values()) == list(range(1, 39))
    assert numbers["common_bile_duct"] == 33 and numbers["cbd_stent"] == 38
    assert seg.stats["weights"]["sha256"] == checkpoint.file_sha256(tmp_path / "continual.pth")
    assert seg.label_map.shape == middle.shape and seg.label_map.max() > 0
    network.eval()
    image = torch.rand(1, 1, 64, 32, 32)
    with torch.inference_mode():
        assert torch.equal(uniseg.load(tmp_path / "continual.pth", device="cpu").network(image), network(image))
