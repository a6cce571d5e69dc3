"""Weights files that are whole and rightly signed, yet hold what no run writes: refused in one line, at once.

W15 to W22 are ids of docs/faults.md. Each file is made by hand from a small good one.
"""

import os
import re
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from uniseg import checkpoint, infer
from uniseg.checkpoint import CheckpointError, digest, load_network, read, save
from uniseg.imaging.file_names import class_name_fault, mask_path, same_file_name
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.model import ModelConfig, UniversalModel
from uniseg.weights import released, torch_file, unpickling

PREPROCESSING = Preprocessing((4.0, 4.0, 4.0), window=(16, 16, 16))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of a small checkpoint with the state of a run, as torch.load gives it."""
    torch.manual_seed(0)
    network = UniversalModel(ModelConfig(("liver", "spleen"), "unet", 4, text_width=3, lpg_hidden=4), torch.ones(2, 3))
    path = tmp_path_factory.mktemp("good") / "good.pt"
    training = {"step": 1, "config": {}, "optimizer": {"state": {}, "param_groups": []}, "best": 0.5,
                "sums": torch.zeros(3, 2, dtype=torch.float64)}
    save(path, network, PREPROCESSING, {"command": "train it"}, training)
    return torch.load(path, weights_only=True)


def changed(content, *path, value):
    """A copy of nested dicts in which the entry at `path` is `value`; without it where `value` is ..."""
    key, *rest = path
    new = dict(content)
    if value is ... and not rest:
        del new[key]
    else:
        new[key] = changed(new[key], *rest, value=value) if rest else value
    return new


def refused(path, read=read):
    """The one-line reason with which the file is refused, within five seconds."""
    began = time.process_time()
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert time.process_time() - began < 5
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 600 and message.endswith(".")
    return message


def refused_when_saved(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    return refused(tmp_path / "x.pt")


def test_the_good_file_is_good(good, tmp_path):
    torch.save(good, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")["training"]["best"] == 0.5 and load_network(read(tmp_path / "x.pt"))


# ------------------------------------------------------------------------------------------------ the names of classes

BAD_NAMES = ["../ct", "/abs/x", "a/b", "..", ".", ".liver", "", " ", "liver ", " liver", "liver.", "a" * 65, "a\nb",
             "a\0b", "a\\b", "C:ct", "a*b", "x\x1b[2J", "𝔸" * 60]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_w15_a_class_whose_name_cannot_be_that_of_a_file_is_refused(good, tmp_path, name):
    message = refused_when_saved(changed(good, "network", "classes", value=["liver", name]), tmp_path)
    assert "the class" in message and message.isprintable()


@pytest.mark.parametrize("name", ["liver", "Portal vein", "c1", "Größe", "a.b-c_d", "肝臓", "x" * 64])
def test_w15_names_of_files_may_be_names_of_classes(name):
    assert class_name_fault(name) == "" and mask_path("masks", name) == Path("masks", f"{name}.nii.gz")


@pytest.mark.parametrize("twins", [("liver", "liver"), ("liver", "Liver"), ("Straße", "strasse"), ("é", "É")])
def test_w15_two_classes_of_one_file_name_are_refused(good, tmp_path, twins):
    assert same_file_name(["aorta", *twins]) == twins
    message = refused_when_saved(changed(good, "network", "classes", value=list(twins)), tmp_path)
    assert "would have one file name" in message


def test_w15_whatever_writes_a_mask_refuses_such_a_name_too():
    for name in BAD_NAMES:
        with pytest.raises(ValueError, match="A file cannot have its name"):
            mask_path("masks", name)


def test_w15_a_network_of_such_a_class_is_not_saved_either(tmp_path):
    network = UniversalModel(ModelConfig(("../ct",), "unet", 4, text_width=3, lpg_hidden=4), torch.ones(1, 3))
    with pytest.raises(CheckpointError, match="not written, the class '../ct' has other characters"):
        save(tmp_path / "x.pt", network, PREPROCESSING)
    assert os.listdir(tmp_path) == []


def test_w15_infer_leaves_the_ct_as_it_is(good, tmp_path, phantom_ct, capsys):
    ct = tmp_path / "ct.nii.gz"
    ct.write_bytes(before := phantom_ct.path.read_bytes())
    torch.save(changed(good, "network", "classes", value=["../ct", str(tmp_path / "x")]), tmp_path / "x.pt")
    assert infer.main([str(ct), "--weights", str(tmp_path / "x.pt"), "--masks", "--overwrite"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"uniseg: error: {tmp_path / 'x.pt'}: ")
    assert ct.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["ct.nii.gz", "x.pt"]


# --------------------------------------------------------------------------------------------------- types and ranges

NAN, INF = float("nan"), float("inf")
VALUES = {
    ("format",): ["1", 1.0, True, None, 0, -1, [1], torch.ones(1)],
    ("weights",): [None, [], "x", 3, {"a": 1}, {1: torch.ones(1)}],
    ("digest",): [None, 3, b"x"],
    ("part",): ["whole", 3, torch.ones(2), ["backbone"]],
    ("network",): [None, [], "unet", 3, {}],
    ("network", "classes"): [..., None, "liver", [], [1, 2], ["liver", None], {"liver": 1}, [["liver"], ["spleen"]],
                             [f"c{i}" for i in range(10_000)]],
    ("network", "backbone"): [..., None, 3, "resnet", ["unet"]],
    ("network", "width"): [True, -4, 3, 1025, 4.0, "4", None, 10**30],
    ("network", "lpg"): [None, "both", 1],
    ("network", "lpg_hidden"): [-1, 2_000_000, 4.0, True],
    ("network", "merging"): [None, "v0", 3],
    ("network", "text_width"): [0, -3, 10**9, 3.0, True],
    ("network", "encoding"): [None, "v4"],
    ("network", "head"): [None, "sigmoid"],
    ("network", "input_windows"): [None, 3, [1], [[1, 0]], [[0, NAN]], [[0, 1, 2]], [["a", "b"]], [[0, 1]] * 100],
    ("network", "depth"): [3],
    ("preprocessing",): [..., None, [], {}, 3],
    ("preprocessing", "spacing_mm"): [..., [1.5], [-1, 1, 1], [0, 1, 1], [NAN, 1, 1], [INF, 1, 1], [1e-9, 1, 1],
                                      [1e9, 1, 1], ["1", 1, 1], 1.5, [1.5] * 4, [True, 1, 1], None],
    ("preprocessing", "hu_window"): [..., [250, -175], [0, 0], [NAN, 1], [-INF, INF], [0], "ab", [0, 10**30]],
    ("preprocessing", "window"): [..., [0, 16, 16], [-16, 16, 16], [10**9] * 3, [1024, 1024, 1024], [16.0, 16, 16],
                                  [16], [15, 16, 16], [True, 16, 16], None],
    ("preprocessing", "antialias"): [..., 1, None, "yes"],
    ("preprocessing", "pad"): [None, "zero", 3],
    ("preprocessing", "flip"): [True],
    ("about",): [None, [], "x", {"a": torch.ones(1)}, {"a": {1.5j: 1}}],
    ("about", "experimental"): [[], {"liver": 3}, {"aorta": "small"}, "liver"],
    ("about", "in_pieces"): ["liver", [3], ["aorta"], {"liver": 1}],
    ("about", "second_view"): [0.2, 1.1, NAN, True, "0.7", 0, [0.7]],
    ("about", "command"): [3, ["a"], {}],
    ("about", "extend"): ["x", {}, {"file": 3, "sha256": "x"}],
    ("about", "embedding"): ["x", {"encoder": ["x"]}],
    ("training",): [None, [], 3],
    ("training", "step"): ["1", -1, 1.0, True, NAN],
    ("training", "best"): [NAN, "0.5", None],
    ("training", "config"): [None, [], {"lr": torch.nn.Module}],
    ("training", "optimizer"): [None, [1]],
    ("training", "sums"): [None, torch.zeros(3, 3), torch.zeros(3, 2)],
}
CASES = [pytest.param(path, value, id=f"{'.'.join(path)}-{i}")
         for path, values in VALUES.items() for i, value in enumerate(values)]


@pytest.mark.parametrize("path, value", CASES)
def test_w16_a_value_of_another_type_or_out_of_range_is_refused_by_its_name(good, tmp_path, path, value):
    message = refused_when_saved(changed(good, *path, value=value), tmp_path)
    named = {"classes": "class", "digest": "their sha256"}.get(path[-1], path[-1])
    assert named in message or re.search(f"{path[0]}(:| holds) ", message) or "read safely" in message, message


def test_w16_the_command_that_describes_a_file_prints_no_control_characters(good, tmp_path, capsys):
    torch.save(changed(good, "about", "command", value="train\x1b[2J it"), tmp_path / "x.pt")
    assert checkpoint.main([str(tmp_path / "x.pt")]) == 0
    assert "made by    train\\x1b[2J it" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- tensors of other kinds

def quantized():
    return torch.quantize_per_tensor(torch.zeros(256), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [
    pytest.param(lambda: torch.zeros(256).to_sparse(), id="sparse"),
    pytest.param(lambda: torch.zeros(16, 16).to_sparse_csr(), id="csr"),
    pytest.param(lambda: torch.empty(256, device="meta"), id="meta"),
    pytest.param(lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]), id="nested"),
    pytest.param(quantized, id="quantized"),
    pytest.param(lambda: torch.zeros(256, dtype=torch.complex64), id="complex"),
    pytest.param(lambda: torch.zeros(256).to(torch.float8_e4m3fn), id="float8"),
    pytest.param(lambda: torch.zeros(256, dtype=torch.int64), id="integers"),
    pytest.param(lambda: torch.zeros(256, dtype=torch.bool), id="bool"),
    pytest.param(lambda: torch.zeros(257), id="longer"),
    pytest.param(lambda: torch.zeros(0), id="empty"),
])
def test_w17_a_tensor_that_is_no_dense_one_of_real_numbers_is_refused(good, tmp_path, make):
    content = changed(good, "weights", "GAP.3.bias", value=make())
    try:
        content["digest"] = digest(content["weights"])
    except (RuntimeError, NotImplementedError, TypeError):
        pass                                                          # no bytes to be signed
    assert "GAP.3.bias" in (message := refused_when_saved(content, tmp_path)) or "read safely" in message


def test_w17_such_a_tensor_in_a_released_file_is_named(tmp_path):
    sparse = {"convInit.conv.weight": torch.zeros(16, 1, 3, 3, 3).to_sparse(), "a": torch.zeros(1)}
    torch.save({"state_dict": sparse, "rng": torch.zeros(2).to_sparse()}, tmp_path / "x.pt")
    assert "convInit.conv.weight is a torch._utils._rebuild_sparse_tensor, not a dense" in refused(tmp_path / "x.pt")


# ------------------------------------------------------------------------------------------- more than the file holds

def test_w18_a_tensor_larger_than_its_storage_is_refused(good, tmp_path):
    wide = torch.zeros(1).as_strided((50_000, 50_000), (0, 0))
    assert "a tensor of 50000 x 50000 numbers in a storage of 1" in refused_when_saved(
        changed(good, "weights", "GAP.3.bias", value=wide), tmp_path)


def test_w18_many_views_of_one_storage_are_refused(tmp_path):
    one = torch.zeros(100_000)
    views = {"net": {str(i): one[:] for i in range(100)}}
    assert "together are larger than the file" in refused_when_saved(views, tmp_path)


def patched(path, old, new):
    """Replace bytes of data.pkl, with the right checksums."""
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    [name] = [n for n in members if n.endswith("data.pkl")]
    assert old in members[name]
    members[name] = members[name].replace(old, new)
    write_zip(path, members)


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def test_w18_a_storage_larger_than_its_record_is_refused(tmp_path):
    """torch itself reads beyond the record: other memory of the process."""
    torch.save({"net": torch.zeros(251)}, tmp_path / "x.pt")
    patched(tmp_path / "x.pt", b"K\xfb", b"K\xfd")
    assert "a storage of 1,012 bytes, for which there is a record of 1,004" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("change", [
    {"text_width": 65_536}, {"lpg_hidden": 65_536}, {"width": 1000}, {"classes": [f"c{i}" for i in range(500)]},
    {"backbone": "swin_unetr", "width": 960}])
def test_w18_a_network_much_larger_than_its_weights_is_never_built(good, tmp_path, change, monkeypatch):
    monkeypatch.setattr(checkpoint, "build_network", None)
    content = changed(good, "network", value=good["network"] | change)
    assert "weights do not fit" in refused_when_saved(content, tmp_path)


# ----------------------------------------------------------------------------------------------------- the zip file

def test_w19_compressed_entries_are_refused_before_they_are_unpacked(good, tmp_path):
    path = tmp_path / "x.pt"
    write_zip(path, {"x/data.pkl": b"(" * 1_000_000, "x/version": b"3\n"}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    assert "compressed or encrypted" in refused(path)


def test_w19_entries_that_overlap_or_are_too_many_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    write_zip(path, {f"x/{i}": bytes(100_000) for i in range(20)} | {"x/data.pkl": b"."})
    data = bytearray(path.read_bytes())
    at, = struct.unpack("<I", data[-6:-2])                              # the table of entries
    for _ in range(21):                                                 # all of them at the first one's place
        data[at + 42:at + 46] = bytes(4)
        at += 46 + sum(struct.unpack("<HHH", data[at + 28:at + 34]))
    path.write_bytes(data)
    assert "overlap" in refused(path)
    monkeypatch.setattr(torch_file, "MOST_ENTRIES", 20)
    assert "a zip file of 21 entries" in refused(path)


@pytest.mark.parametrize("members, words", [
    ({}, "without entries"), ({"data.pkl": b"."}, "without data.pkl in one folder"),
    ({"x/data.pkl": b"N.", "y/data.pkl": b"N."}, "without data.pkl in one folder"),
    ({"x/data.pkl": b"N.", "x/constants.pkl": b""}, "TorchScript"),
    ({"x/data.pkl": b"N."}, "no weights found (it holds NoneType)"),
    ({"x/data.pkl": b"N"}, "damaged"), ({"x/data.pkl": b"R."}, "damaged"), ({"x/data.pkl": b"\xff."}, "does not write"),
])
def test_w19_another_zip_file_is_refused(tmp_path, members, words):
    write_zip(tmp_path / "x.pt", members)
    assert words in refused(tmp_path / "x.pt")


def test_w19_a_file_of_the_other_byte_order_gives_the_same_numbers(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(5.0)}, path)
    with zipfile.ZipFile(path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    members["x/byteorder"] = b"big" if sys.byteorder == "little" else b"little"
    members["x/data/0"] = np.arange(5, dtype="f4").byteswap().tobytes()
    write_zip(path, members)
    assert torch_file.read_torch_file(path)["a"].tolist() == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------- the pickle

def raw(tmp_path, pickled):
    write_zip(tmp_path / "x.pt", {"x/data.pkl": pickled})
    return refused(tmp_path / "x.pt")


def test_w20_nested_tuples_are_no_keys(tmp_path):
    """Each level doubles the time of a hash: 60 levels in 400 bytes would take as long as a life."""
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    assert "a key of the type tuple" in raw(tmp_path, b"\x80\x02}N" + doubled + b"Ns.")


@pytest.mark.parametrize("pickled, words", [
    (b"}" * 1001, "more than 1,000 operations"), (b"(" * 1001, "more than 1,000 operations"),
    (b"X\xff\xff\xff\xffab.", "cut off"), (b"\x8a\xff" + bytes(255) + b".", "an integer of more than ten bytes"),
    (b"cos\nsystem\nX\4\0\0\0true\x85R.", "it asks for os.system"),
    (b"cbuiltins\neval\n.", "it asks for builtins.eval"),
    (b"ccollections\nOrderedDict\n]K\1a\x85R.", "damaged"), (b"ccollections\nOrderedDict\n](NNNea\x85R.", "damaged"),
    (b"}X\1\0\0\0aNs" * 3 + b"b.", "damaged"), (b"K\1Q.", "damaged"), (b"h\0.", "does not write"),
    (b"}ctorch\nFloatStorage\n(X\7\0\0\0storagector.", "damaged")])
def test_w20_a_pickle_that_torch_does_not_write_is_refused(tmp_path, pickled, words, monkeypatch):
    monkeypatch.setattr(unpickling, "MOST_OPERATIONS", 1000)
    assert words in raw(tmp_path, pickled)


def test_w20_a_list_that_holds_itself_is_refused(good, tmp_path):
    endless = []
    endless.append(endless)
    torch.save(changed(good, "about", "data", value={"a": endless}), tmp_path / "x.pt")
    read(tmp_path / "x.pt")                                           # plain, if odd; nothing goes round in circles
    deep = []
    for _ in range(200):
        deep = [deep]
    content = changed(good, "about", "data", value={"a": deep})
    assert "nested more than 100 deep" in refused_when_saved(content, tmp_path)


@pytest.mark.parametrize("start", [b"", b"PK", b"\x80\x02", b"\x80\x04.", torch_file.LEGACY_START])
def test_w20_noise_behind_any_beginning_is_refused(tmp_path, start):
    (tmp_path / "x.pt").write_bytes(start + np.random.default_rng(0).bytes(1000))
    refused(tmp_path / "x.pt")


def test_w20_a_storage_of_the_old_format_is_no_larger_than_its_file(tmp_path):
    torch.save({"net": torch.zeros(251)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data.replace(b"K\xfb", b"J\xff\xff\xff\x7f", 1))
    assert "larger than the file" in refused(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(data[:-100])
    assert "cut off" in refused(tmp_path / "x.pt")


# --------------------------------------------------------------------------------------------------- released files

@pytest.mark.parametrize("state, words", [
    ({"down_tr64.ops.1.conv1.weight": torch.tensor(3.0)}, "its width has the shape ()"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(10**6, 0)}, "its width has the shape (1000000, 0)"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(2000)}, "width is 2000"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(4), "organ_embedding": torch.zeros(10**9, 0)}, "text embedding"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(4), "organ_embedding": torch.zeros(3)}, "text embedding"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(4), "organ_embedding": torch.zeros(2000, 1)}, "classes"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(4), "organ_embedding": torch.zeros(2, 3),
      "controllers.0.0.weight": torch.tensor(1.0)}, "LPG"),
    ({"down_tr64.ops.1.conv1.weight": torch.zeros(3)}, "width must be even"),
])
def test_w21_sizes_of_a_released_file_are_checked_too(tmp_path, state, words):
    assert words in refused_when_saved({"net": state}, tmp_path)
    torch.save({"net": state}, tmp_path / "x.pt")
    assert words in refused(tmp_path / "x.pt", lambda path: read(path, partial=True))


def test_w21_an_entry_with_and_without_module_is_reported():
    state = {"module.down_tr64.ops.1.conv1.weight": torch.zeros(4, 2, 3, 3, 3),
             "down_tr64.ops.1.conv1.weight": torch.ones(4)}
    assert released.translate({"net": state})[2].unexpected == {"down_tr64.ops.1.conv1.weight": (4,)}


# ---------------------------------------------------------------------------------------------- the other readers

@pytest.mark.parametrize("header", [b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b'{"__metadata__":{}}'])
@pytest.mark.parametrize("length", [None, 0, 2**40, 2**63, 200 << 20])
def test_w08_a_safetensors_file_sound_or_broken_is_named_and_what_to_do(tmp_path, header, length):
    """It is not read at all: neither its header, of any length, nor offsets, types and keys in it."""
    for name in ("model.safetensors", "model.pt"):
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(4))
        message = refused(path)
        assert "a safetensors file, which uniseg does not read. Convert it" in message and "torch.save(" in message


def test_w16_a_pipe_or_a_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    assert "not a regular file" in refused(tmp_path / "x.pt")
    assert "not a regular file" in refused(Path("/dev/zero"))
