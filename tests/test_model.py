"""The whole model: sizes, names and outputs of the released models, and what training and inference rely on."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from released_files import FILES, write_released
from stand_in import TOLERANCE, deviation, golden, stand_in_image
from uniseg import checkpoint
from uniseg.backbones import BACKBONES
from uniseg.backbones.build import input_channels
from uniseg.baselines import PlainModel
from uniseg.embeddings import class_embeddings
from uniseg.heads import SIZES, class_logits
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.losses import masked_loss, masked_sum
from uniseg.machine.memory import keep_freed_memory
from uniseg.model import ModelConfig, UniversalModel, build
from uniseg.taxonomy import NAMES
from uniseg.weights.released import our_name

SMALL = {"swin_unetr": 12, "unet": 8, "segresnet": 8}                   # widths
IMAGE = {"swin_unetr": (64, 32, 32), "unet": (16, 24, 16), "segresnet": (16, 8, 24)}
THREE = ("liver", "spleen", "pancreas")


def small_model(backbone="unet", lpg="independent", classes=THREE, **options):
    torch.manual_seed(0)
    config = ModelConfig(classes, backbone, SMALL[backbone], lpg, text_width=6, **options)
    return UniversalModel(config, torch.randn(len(classes), 6))


def random_image(backbone="unet", batch=1):
    return torch.rand(batch, 1, *IMAGE[backbone], generator=torch.Generator().manual_seed(1))


def paper_model(backbone, lpg, classes=NAMES):
    """The paper's width, with CLIP's 512 numbers per class, on the meta device: shapes and names, no values."""
    with torch.device("meta"):
        return build({"classes": classes, "backbone": backbone, "lpg": lpg, "text_width": 512})



@pytest.fixture(scope="module")
def swin_outputs():
    """What the released Universal Model with Swin UNETR computes."""
    return all_outputs(released_model("clip_driven_universal_swin_unetr.pth"))


@pytest.fixture(scope="module")
def unet_outputs():
    return all_outputs(released_model("clip_driven_universal_unet.pth"))


@pytest.fixture(scope="module")
def continual_model():
    return released_model("continual_swin_unetr_38class.pth")


def released_model(file):
    """The model that is loaded from a file of the released form, including its container and prefixes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        write_released(path, file)
        return checkpoint.load_network(checkpoint.read(path), path)


# ------------------------------------------------------------------------------------------------------ sizes and names

@pytest.mark.parametrize("lpg", ["independent", "shared"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_image_gives_one_logit_map_a_class_on_its_own_grid(backbone, lpg):
    model = small_model(backbone, lpg)
    logits = model(random_image(backbone, batch=2))
    assert logits.shape == (2, 3, *IMAGE[backbone]) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("backbone, lpg, parameters", [
    ("swin_unetr", "shared", 62_595_315),            # the released models of ICCV 2023
    ("unet", "shared", 19_416_417),
    ("swin_unetr", "independent", 77_496_442),       # 62,186,610 + 198,400 (GAP) + 488 (C -> 8) + 32 * 472,217
])
def test_parameter_counts_of_the_whole_models(backbone, lpg, parameters):
    assert sum(p.numel() for p in paper_model(backbone, lpg).parameters()) == parameters


def test_a_narrower_lpg_is_a_matter_of_one_setting():
    assert small_model(lpg_hidden=10).lpg.controllers[0][0].out_features == 10
    assert small_model(lpg="shared", lpg_hidden=10).lpg.text_to_vision.out_features == 10


@pytest.mark.parametrize("file, backbone, lpg, entries", [
    ("clip_driven_universal_swin_unetr.pth", "swin_unetr", "shared", 170),
    ("clip_driven_universal_unet.pth", "unet", "shared", 117 - 14 * 3),    # less the running statistics of its 14 norms
    ("continual_swin_unetr_38class.pth", "swin_unetr", "independent", 157 + 9 + 4 * 38)])
def test_every_tensor_has_a_name_and_size_of_the_released_files(file, backbone, lpg, entries):
    """The released files store linear layers as 1x1x1 convolutions, (153, 512, 1, 1, 1)."""
    released = {our_name(name): shape for name, shape in FILES[file][1].items()
                if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    released = {name: shape[:2] if name.startswith("lpg.") and shape[2:] == (1, 1, 1) else shape for name,
                shape in released.items()}
    model = paper_model(backbone, lpg, classes=tuple(f"class {i}" for i in range(released["organ_embedding"][0])))
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == released
    assert len(released) == entries


# -------------------------------------------------------------------------------------------------------- input windows

WINDOWS = ((0.0, 1.0), (0.5, 0.75), (0.0, 0.25))


def test_a_window_is_clipped_and_scaled_to_a_channel():
    """The window 0.5 to 0.75 of the range [0, 1]: 0 below, 0.5 in its middle, 1 above. Shifts may leave it."""
    image = torch.tensor([-0.1, 0.0, 0.125, 0.5, 0.625, 1.0, 1.1]).view(1, 1, 7, 1, 1)
    channels = input_channels(image, WINDOWS)
    assert channels.shape == (1, 3, 7, 1, 1)
    assert channels.flatten(2)[0].tolist() == [[0, 0, 0.125, 0.5, 0.625, 1, 1], [0, 0, 0, 0, 0.5, 1, 1],
                                               [0, 0, 0.5, 1, 1, 1, 1]]
    assert input_channels(image, ()) is image


@pytest.mark.parametrize("kind", [UniversalModel, PlainModel])
def test_a_network_with_windows_gives_its_backbone_the_channels(kind):
    torch.manual_seed(0)
    config = ModelConfig(THREE, "unet", 2, "independent", 8, text_width=6, input_windows=WINDOWS)
    model = UniversalModel(config, torch.randn(3, 6)) if kind is UniversalModel else PlainModel(config)
    image, seen = random_image(batch=2), []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits = model(image)
    assert torch.equal(seen[0], torch.cat([image, (4 * image - 2).clamp(0, 1), (4 * image).clamp(0, 1)], dim=1))
    model.config = replace(config, input_windows=())                                   # now the channels are given
    assert torch.equal(model(seen[0]), logits) and logits.shape == (2, 3, *IMAGE["unet"])


def test_windows_are_part_of_a_networks_description_and_an_older_one_has_none():
    config = small_model(input_windows=WINDOWS).config
    described = json.loads(json.dumps(config.describe()))
    assert described["input_windows"] == [[0.0, 1.0], [0.5, 0.75], [0.0, 0.25]] and ModelConfig.of(described) == config
    del described["input_windows"]
    assert ModelConfig.of(described).input_windows == ()


def test_a_checkpoint_keeps_the_windows(tmp_path):
    model, image = small_model(input_windows=WINDOWS).eval(), random_image()
    checkpoint.save(tmp_path / "x.pt", model, Preprocessing(hu_window=(-1000.0, 1000.0), window=(16,) * 3))
    content = checkpoint.read(tmp_path / "x.pt")
    again = checkpoint.load_network(content)
    with torch.no_grad():
        assert again.config == model.config and torch.equal(again(image), model(image))
    assert "3 channels: HU -1000 to 1000, 0 to 500, -1000 to -500" in "\n".join(checkpoint.describe(tmp_path / "x.pt",
                                                                                                    content))


# ------------------------------------------------------------------------------------------------------- golden figures

def check_figures(file, outputs):
    """Every array of golden/<file>.npz within TOLERANCE; `pytest -s` prints the deviations."""
    figures = golden(file)
    logits = outputs["logits"]
    outputs = outputs | {"logits_mean": logits.mean(dim=(2, 3, 4)), "logits_std": logits.std(dim=(2, 3, 4))}
    names = [name for name in figures if not name.endswith("_stride")]
    deviations = {name: deviation(figures, name, outputs[name]) for name in names}
    print(file, {name: f"{d:.1e}" for name, d in deviations.items()})
    assert max(deviations.values()) <= TOLERANCE, deviations
    return deviations


def all_outputs(model):
    """All tensors that the golden files hold, from one forward pass."""
    outputs = {}
    hooks = [model.backbone.register_forward_hook(lambda _, __, out: outputs.update(bottleneck=out[0], decoder=out[1])),
             model.GAP.register_forward_hook(lambda _, __, out: outputs.update(gap=out.flatten(1)))]
    keep_freed_memory()
    with torch.inference_mode():
        outputs["logits"] = model(stand_in_image())
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.slow
def test_swin_unetr_with_either_lpg_computes_what_the_released_models_do(swin_outputs, continual_model, monkeypatch):
    """The released Universal Model (shared) and the continual one (independent, 38 classes) share one backbone."""
    found = check_figures("universal_swinunetr_shared", swin_outputs)
    assert set(found) == {"bottleneck", "decoder", "gap", "logits", "logits_mean", "logits_std"}

    both = swin_outputs["bottleneck"], swin_outputs["decoder"]
    monkeypatch.setattr(continual_model.backbone, "forward", lambda image: both)             # saves a second long pass
    with torch.inference_mode():
        logits = continual_model(stand_in_image())
    check_figures("continual_swin_independent", {"logits": logits})


@pytest.mark.slow
def test_the_continual_model_computes_what_the_released_one_does_from_image_to_logits(continual_model):
    check_figures("continual_swin_independent", all_outputs(continual_model))


@pytest.mark.slow
def test_the_unet_model_computes_what_the_released_one_does(unet_outputs):
    check_figures("universal_unet_shared", unet_outputs)


@pytest.mark.slow
@pytest.mark.parametrize("file, outputs", [("universal_swinunetr_shared", "swin_outputs"),
                                           ("universal_unet_shared", "unet_outputs")])
def test_the_backbone_alone_computes_what_that_of_the_released_model_does(file, outputs, request):
    """test_backbones.py compares SegResNet and the standard Swin UNETR, which no whole model has."""
    outputs, figures = request.getfixturevalue(outputs), golden(file)
    assert max(deviation(figures, name, outputs[name]) for name in ("bottleneck", "decoder")) <= TOLERANCE


# ------------------------------------------------------------------------------------------------ learning and choosing

def test_what_is_not_annotated_teaches_its_mlp_nothing():
    model = small_model()
    image = random_image()
    target = torch.rand(1, 3, *IMAGE["unet"]) < 0.3
    masked_loss(model(image), target, torch.tensor([[True, False, True]])).backward()
    for k, mlp in enumerate(model.lpg.controllers):
        for name, parameter in mlp.named_parameters():
            if k == 1:
                assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name
            else:
                assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())  # as DDP demands
    assert model.backbone.down_tr64.ops[0].conv1.weight.grad.abs().sum() > 0


def test_an_annotated_class_gets_the_same_gradient_whatever_the_other_classes_hold():
    gradients = []
    for labelled in ([[True, False, False]], [[True, True, False]]):
        model = small_model()
        target = torch.ones(1, 3, *IMAGE["unet"])
        masked_sum(model(random_image()), target, torch.tensor(labelled))[0].backward()
        gradients.append([p.grad for p in model.lpg.controllers[0].parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lpg", ["independent", "shared"])
def test_only_computes_the_chosen_classes_in_the_order_asked(lpg):
    model = small_model(lpg=lpg).eval()
    with torch.inference_mode():
        chosen, all_classes = model(random_image(), only=[2, 0]), model(random_image())
    torch.testing.assert_close(chosen, all_classes[:, [2, 0]])


@pytest.mark.parametrize("lpg", ["independent", "shared"])
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9])
def test_a_prior_is_where_the_sigmoids_start(lpg, probability):
    model = small_model(lpg=lpg)
    model.set_prior(probability)
    with torch.inference_mode():
        mean = model(random_image()).sigmoid().mean(dim=(0, 2, 3, 4))                  # of each class
    odds = mean / (1 - mean) / (probability / (1 - probability))
    assert (odds > 1 / 2).all() and (odds < 2).all()


def test_a_he_start_gives_heads_whose_logits_spread_and_which_differ_from_class_to_class():
    """Torch starts theta near 0: logits of a random image hardly vary. By He et al. each layer keeps the signal."""
    torch.manual_seed(0)
    network = UniversalModel(ModelConfig(tuple(NAMES[:6]), "unet", 4, text_width=8), torch.randn(6, 8))
    features, pooled = torch.rand(1, 8, 6, 6, 6), torch.zeros(1, 256)

    def spread():
        theta = network.lpg(pooled, network.organ_embedding)
        return class_logits(features, theta).std(dim=(0, 2, 3, 4)), theta[0]

    (before, _), _ = spread(), network.start_heads()
    after, theta = spread()
    w1, w2, w3, *biases = theta.split(SIZES, dim=1)
    assert before.median() * 20 < after.median()
    assert all(abs(w.std().item() - expected) < 0.1 for w, expected in ((w1, 0.5), (w2, 0.5), (w3, 8 ** -0.5)))
    assert max(b.abs().max() for b in biases) < 0.2                        # 0, but for what the MLP makes of its input
    assert (theta[0] - theta[1]).abs().max() > 0.5
    network.set_prior(0.02)
    assert torch.sigmoid(network.lpg.last_bias()[0][-1]).item() == pytest.approx(0.02)


def test_the_text_embedding_is_fixed_and_only_the_random_encoding_is_learned():
    fixed, learned = small_model(encoding="v3"), small_model(encoding="random")
    assert "organ_embedding" in dict(fixed.named_buffers())
    assert "organ_embedding" in dict(learned.named_parameters())
    learned(random_image()).sum().backward()
    assert learned.organ_embedding.grad.abs().sum() > 0
    for model in (fixed, learned):
        assert "organ_embedding" in model.state_dict()                                # stored in checkpoints either way


def test_the_model_keeps_a_copy_of_the_embedding():
    embedding = torch.ones(3, 6)
    model = UniversalModel(ModelConfig(THREE, "unet", 8, text_width=6), embedding)
    embedding.zero_()
    assert (model.organ_embedding == 1).all()


@pytest.mark.parametrize("encoding, width", [("v3", 384), ("one-hot", 3), ("random", 512)])
def test_every_encoding_of_the_embeddings_file_builds_a_model(encoding, width):
    embedding = class_embeddings(THREE, encoding)
    model = UniversalModel(ModelConfig(THREE, "unet", 8, text_width=width, encoding=encoding), embedding)
    assert model(random_image()).shape == (1, 3, *IMAGE["unet"])


# -------------------------------------------------------------------------------------------------------- configuration

@pytest.mark.slow
def test_describe_is_plain_json_from_which_build_makes_the_same_network():
    model = small_model("swin_unetr", lpg_hidden=9, merging="v090", encoding="random").eval()
    described = json.loads(json.dumps(model.describe()))
    again = build(described)
    assert again.config == model.config and again.classes == THREE
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.eval()(random_image("swin_unetr")), model(random_image("swin_unetr")))


@pytest.mark.parametrize("shape", [(2, 6), (3, 5), (6, 3)])
def test_an_embedding_of_another_shape_is_refused(shape):
    reason = rf"has shape \({shape[0]}, {shape[1]}\), the model wants \(3, 6\): one row per class"
    with pytest.raises(ValueError, match=reason):
        UniversalModel(ModelConfig(THREE, "unet", 8, text_width=6), torch.zeros(shape))


def test_an_unknown_backbone_or_lpg_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown backbone 'resnet'. Choose one of swin_unetr, unet, segresnet"):
        UniversalModel(ModelConfig(THREE, "resnet", text_width=6), torch.zeros(3, 6))
    with pytest.raises(ValueError, match="unknown lpg 'none'. Choose one of independent, shared"):
        UniversalModel(ModelConfig(THREE, "unet", 8, lpg="none", text_width=6), torch.zeros(3, 6))
