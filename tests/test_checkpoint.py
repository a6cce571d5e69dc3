"""Weights files: what is written comes back, a write is whole or not at all, and a bad file is refused in one line.

W01 to W09 are ids of docs/faults.md.
"""

import os
import pickle
import random

import pytest
import torch

from uniseg import checkpoint
from uniseg.checkpoint import CheckpointError, load_network, read, save
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.model import ModelConfig, UniversalModel

PREPROCESSING = Preprocessing()
ABOUT = {"datasets": ["phantom"], "epochs": 3}


def small_network(classes=("liver", "spleen"), seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(classes, "unet", 4, text_width=3, lpg_hidden=4)
    return UniversalModel(config, torch.randn(len(classes), 3)).eval()


@pytest.fixture
def network():
    return small_network()


@pytest.fixture
def file(network, tmp_path):
    """A good checkpoint."""
    path = tmp_path / "last.pt"
    save(path, network, PREPROCESSING, ABOUT)
    return path


def refused(path):
    """The one-line reason with which `read` refuses the file."""
    with pytest.raises(CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def rewrite(path, **changes):
    """Change entries of a checkpoint's content, with a right zip container around them."""
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


# --------------------------------------------------------------------------------------------------------- round trip

def test_the_former_name_of_the_padding_is_understood(file):
    stored = PREPROCESSING.to_dict()
    del stored["pad"]
    rewrite(file, preprocessing={**stored, "pad_slices": "edge"})
    assert Preprocessing.from_dict(read(file)["preprocessing"]).pad == "edge"
    rewrite(file, training={"step": 3, "config": {"pad_slices": "edge"}})
    assert read(file)["training"]["config"] == {"pad": "edge"}


def test_a_network_comes_back_bit_for_bit_with_its_configuration_and_preprocessing(network, file):
    content = read(file)
    again = load_network(content, file)
    assert not again.training and again.config == network.config
    assert content["preprocessing"] == PREPROCESSING.to_dict()
    assert content["about"] == ABOUT and "training" not in content
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(again(image), network(image))


def test_half_precision_halves_the_file_and_loads_as_float32(network, file, tmp_path):
    save(tmp_path / "half.pt", network, PREPROCESSING, half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.7 * file.stat().st_size
    again = load_network(read(tmp_path / "half.pt"))
    for name, tensor in network.state_dict().items():
        assert again.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_run_stores_and_gets_back_the_state_of_its_optimiser(network, tmp_path):
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(1, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    training = {"step": 1, "optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state(), "best": 0.5}
    save(tmp_path / "last.pt", network, PREPROCESSING, training=training)
    stored = read(tmp_path / "last.pt")["training"]
    assert (stored["step"], stored["best"]) == (1, 0.5) and torch.equal(stored["torch_rng"], training["torch_rng"])
    torch.testing.assert_close(stored["optimizer"], optimizer.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_holds_tensors_and_plain_values_only(file):
    def check(value):
        if isinstance(value, dict):
            assert type(value) is dict
            for key, inner in value.items():
                assert type(key) is str
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)
        else:
            assert type(value) in (str, int, float, bool, torch.Tensor), type(value)

    check(dict(torch.load(file, weights_only=True), weights=dict(read(file)["weights"])))


def test_equal_networks_give_equal_bytes(network, file, tmp_path):
    save(tmp_path / "again.pt", network, PREPROCESSING, ABOUT)
    assert checkpoint.file_sha256(tmp_path / "again.pt") == checkpoint.file_sha256(file)


def test_the_digest_notices_a_value_a_name_a_shape_and_a_type():
    weights = {"a": torch.zeros(2, 3), "b": torch.tensor(7)}
    others = [{"a": torch.full((2, 3), 1e-30), "b": torch.tensor(7)}, {"c": torch.zeros(2, 3), "b": torch.tensor(7)},
              {"a": torch.zeros(3, 2), "b": torch.tensor(7)}, {"a": torch.zeros(2, 3), "b": torch.tensor(7.0)}]
    assert len({checkpoint.digest(w) for w in [weights, *others]}) == 5
    assert checkpoint.digest(weights) == checkpoint.digest(dict(reversed(weights.items())))
    assert checkpoint.digest({"a": torch.zeros(3, 2).T, "b": torch.tensor(7)}) == checkpoint.digest(weights)


# --------------------------------------------------------------------------------------------------------- whole or not

def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(network, file, monkeypatch):
    before = file.read_bytes()

    def half_way(content, target):
        target.write(b"PK half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", half_way)
    with pytest.raises(KeyboardInterrupt):
        save(file, network, PREPROCESSING)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_full_disk_is_named_and_leaves_the_old_file(network, file):
    """Torch's own words are "unexpected pos 768 vs 662". Here a limit on the size of files stands for the disk."""
    resource = pytest.importorskip("resource")                                # not on Windows
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="last.pt: cannot be written: File too large"):
            save(file, network, PREPROCESSING)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_not_written_over_good_ones(network, file, value):
    before = file.read_bytes()
    with torch.no_grad():
        network.lpg.controllers[1][2].bias[7] = value
    words = r"last.pt: not written, lpg.controllers.1.2.bias holds NaN or infinity. Lower --lr"
    with pytest.raises(CheckpointError, match=words):
        save(file, network, PREPROCESSING)
    assert file.read_bytes() == before


def test_a_weight_too_large_for_half_precision_is_not_written(network, tmp_path):
    with torch.no_grad():
        network.GAP[3].bias[0] = 70_000
    with pytest.raises(CheckpointError, match="GAP.3.bias holds NaN or infinity"):
        save(tmp_path / "half.pt", network, PREPROCESSING, half=True)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------- bad files

def test_w01_a_missing_file_or_a_folder_is_refused(tmp_path):
    assert "no such weights file. Give --weights" in refused(tmp_path / "none.pt")
    assert "no such weights file" in refused(tmp_path)


class Bomb:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


@pytest.mark.parametrize("how", ["plain pickle", "torch.save", "inside a checkpoint"])
def test_w02_a_file_that_would_run_a_command_is_refused_and_runs_nothing(file, tmp_path, how):
    sentinel = tmp_path / "ran"
    if how == "plain pickle":
        file.write_bytes(pickle.dumps(Bomb(sentinel), protocol=2))
    elif how == "torch.save":
        torch.save(Bomb(sentinel), file)
    else:
        rewrite(file, about=Bomb(sentinel))
    assert "not a checkpoint that can be read safely" in refused(file)
    assert not sentinel.exists()
    if how != "plain pickle":                             # the bomb is live: read carelessly, it goes off
        torch.load(file, weights_only=False)
        assert sentinel.exists()


@pytest.mark.parametrize("start, reason", [
    (b"", "empty file. Copy or download it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
     "a git-lfs pointer, not the weights. Run `git lfs pull`"),
    (b"\n <!DOCTYPE html><html>Not found</html>", "an HTML page, not weights"),
    (b"x" * 1000, "not a checkpoint that can be read safely"),
])
def test_w03_what_is_no_checkpoint_at_all_is_named_for_what_it_is(tmp_path, start, reason):
    path = tmp_path / "weights.pt"
    path.write_bytes(start)
    assert reason in refused(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_w03_a_truncated_file_is_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[:int(share * len(whole))])
    assert "truncated. Copy or download it again" in refused(file)


def flip(path, position):
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)


def test_w04_one_flipped_bit_in_the_weights_is_refused(network, file):
    weight = network.state_dict()["backbone.down_tr64.ops.0.conv1.weight"].numpy().tobytes()
    flip(file, file.read_bytes().index(weight) + 2)
    torch.load(file, weights_only=True)                   # torch itself does not notice
    assert "damaged, a checksum does not match" in refused(file)


def test_w04_one_flipped_bit_in_a_class_name_is_refused(file):
    flip(file, file.read_bytes().index(b"spleen"))
    assert torch.load(file, weights_only=True)["network"]["classes"] == ["liver", "rpleen"]
    assert "damaged, a checksum does not match" in refused(file)


def test_w04_weights_exchanged_in_a_right_container_are_refused(file):
    weights = torch.load(file, weights_only=True)["weights"]
    weights["GAP.3.bias"][0] += 1e-6
    rewrite(file, weights=weights)
    assert "damaged, its weights do not match their sha256" in refused(file)


@pytest.mark.slow
def test_w04_a_flipped_bit_anywhere_is_refused_or_changes_nothing(network, file):
    """At its end the file has zip's own tables, where a bit may be a date or a spare field."""
    whole = file.read_bytes()
    expected = read(file)
    draw = random.Random(0)
    places = [draw.randrange(len(whole)) for _ in range(20)] + [len(whole) - draw.randrange(1, 8000) for _ in range(40)]
    for place in places:
        flip(file, place)
        try:
            content = read(file)
        except CheckpointError:
            pass
        else:
            assert {k: v for k, v in content.items() if k != "weights"} == {k: v for k, v in expected.items()
                                                                            if k != "weights"}
            assert checkpoint.digest(content["weights"]) == checkpoint.digest(network.state_dict())
        file.write_bytes(whole)


def test_w05_nan_in_stored_weights_is_refused(file):
    weights = torch.load(file, weights_only=True)["weights"]
    weights["GAP.3.bias"][0] = float("nan")
    rewrite(file, weights=weights, digest=checkpoint.digest(weights))
    assert "GAP.3.bias holds NaN or infinity. Use another checkpoint" in refused(file)


def test_w06_weights_of_another_network_are_refused_with_the_names_that_do_not_fit(file):
    content = read(file)
    for network, reason in [(small_network(("liver",)), r"organ_embedding.*\[2, 3\].*\[1, 3\]"),
                            (small_network(("liver", "spleen", "aorta")), "organ_embedding")]:
        with pytest.raises(CheckpointError, match=f"(?s)last.pt: weights do not fit.*{reason}") as error:
            load_network({**content, "network": network.describe()}, "last.pt")
        assert "\n" not in str(error.value)
    weights = dict(content["weights"])
    weights["lpg.stray"] = weights.pop("GAP.3.bias")
    with pytest.raises(CheckpointError, match="missing .'GAP.3.bias'., unexpected .'lpg.stray'."):
        load_network({**content, "weights": weights}, "last.pt")


@pytest.mark.parametrize("change, reason", [({"backbone": "resnet"}, "backbone is 'resnet', not one of swin_unetr"),
                                            ({"lpg": "none"}, "lpg is 'none', not one of independent, shared"),
                                            ({"depth": 3}, "this version knows no 'depth'"),
                                            ({"width": 3}, "width must be even")])
def test_w06_a_network_that_this_version_cannot_build_is_refused(file, change, reason):
    content = read(file)
    with pytest.raises(CheckpointError, match=f"last.pt: .*{reason}"):
        load_network({**content, "network": content["network"] | change}, "last.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"network": {}, "weights": {}}])
def test_w07_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pt")
    assert "no weights found" in refused(tmp_path / "foreign.pt")


def test_w09_a_newer_format_is_refused_by_its_number(file):
    rewrite(file, format=checkpoint.FORMAT + 2)
    assert "format 3, this version reads up to 1. Upgrade uniseg" in refused(file)
