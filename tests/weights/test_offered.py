"""What is computed unasked: experimental classes are not; and the warning where hardly anything is found in a body.

The networks are the stand-ins of test_segmenter.py, which call a voxel liver, spleen, ... by its HU alone.
"""

import doctest
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import uniseg
from conftest import Patient, write_dataset
from test_infer import CLASSES, one_line, save_weights
from test_segmenter import BODY, Bands, image, paint, stand_in
from uniseg import checkpoint, evaluate, infer, taxonomy
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import write_volume
from uniseg.inference import plausibility
from uniseg.phantom import make_phantom

REASON = "Dice 0.12 on unseen CT"
EXPERIMENTAL = {"spleen": REASON, "aorta": "learnt from drawn lesions only"}
WEIGHTS_EXPERIMENTAL = {"aorta": REASON, "left_kidney": "Dice 0.20 on unseen CT"}


def segmenter(network=None, experimental=EXPERIMENTAL):
    made = stand_in(network)
    made.experimental = experimental
    return made


class Recording(Bands):
    """Bands that notes which channels it was asked for."""

    def forward(self, image, only=None):
        self.asked = only
        return super().forward(image, only)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of CLASSES with two experimental ones. Not to be written to."""
    path = save_weights(tmp_path_factory.mktemp("weights") / "tiny.pt", CLASSES)
    content = checkpoint.read(path)
    checkpoint.save(path, checkpoint.load_network(content), Preprocessing.from_dict(content["preprocessing"]),
                    {"experimental": WEIGHTS_EXPERIMENTAL})
    return path


@pytest.fixture
def segment(weights, tmp_path, monkeypatch, capsys):
    """Run the command on a phantom ct.nii.gz in tmp_path: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    hu, _, affine = make_phantom((15.0, 15.0, 15.0))
    write_volume(tmp_path / "ct.nii.gz", hu, affine)

    def run(*arguments):
        code = infer.main(["ct.nii.gz", "--device", "cpu", "--weights", str(weights), *arguments])
        return code, *capsys.readouterr()
    return run


# --- In Python

def test_experimental_classes_are_computed_on_request_only_and_then_say_why_they_are():
    hu, masks, affine = paint()
    network = Recording()
    model = segmenter(network)
    assert model.classes == ("spleen", "liver", "aorta", "liver_tumor") and model.offered == ("liver", "liver_tumor")
    result = model.segment(image(hu, affine))
    assert result.classes == tuple(result.stats["classes"]) == ("liver", "liver_tumor")
    assert network.asked == [1, 3]                                          # the other heads did not run
    assert np.array_equal(result.mask("liver"), masks["liver"]) and set(np.unique(result.label_map)) == {0, 6, 27}
    assert not any("experimental" in entry for entry in result.stats["classes"].values())
    everything = model.segment(image(hu, affine), experimental=True)
    assert everything.classes == model.classes and network.asked is None
    assert {n: e["experimental"] for n, e in everything.stats["classes"].items() if "experimental" in e} == EXPERIMENTAL
    assert np.array_equal(everything.mask("spleen"), masks["spleen"])


def test_without_the_key_nothing_is_experimental(tmp_path):
    assert stand_in().experimental == {} and stand_in().offered == stand_in().classes
    assert uniseg.load(save_weights(tmp_path / "w.pt", CLASSES), device="cpu").offered == CLASSES


def test_a_checkpoint_carries_the_reasons_and_its_description_marks_the_classes(weights):
    model = uniseg.load(weights, device="cpu")
    assert model.experimental == WEIGHTS_EXPERIMENTAL and model.offered == ("spleen", "right_kidney", "liver")
    said = " ".join("\n".join(checkpoint.describe(weights, checkpoint.read(weights))).split())
    assert "5: spleen, right_kidney, left_kidney (experimental), liver, aorta (experimental)" in said


def test_naming_an_experimental_class_takes_the_option_an_alias_of_a_pair_too():
    model = segmenter(Bands({n: (60, 10) for n in ("left_kidney", "right_kidney", "left_lung", "right_lung",
                                                   "postcava")}),
                      {"left_lung": REASON, "postcava": REASON})
    assert model.select(["Kidneys"]) == ("left_kidney", "right_kidney")
    for name, class_name in (("IVC", "postcava"), ("lungs", "left_lung")):
        with pytest.raises(ValueError, match=f"^class {class_name} is experimental in these weights .stand-in.: "
                                             f"{REASON}. Add --exp"):
            model.select([name])
        assert class_name in model.select([name], experimental=True)
    with pytest.raises(ValueError, match="class liver is not in these weights .stand-in.. They offer left_kidney, "
                                         "right_kidney, right_"):
        model.select(["liver"])                                             # what is not offered is not praised
    with pytest.raises(ValueError, match="class postcava is experimental"):
        model.segment("unread.nii.gz", threshold={"IVC": 0.7})


def test_a_tumour_whose_organ_is_experimental_is_held_to_the_organ_only_where_that_is_computed():
    hu, masks, affine = paint()
    stray = np.zeros(hu.shape, bool)
    stray[8:13, 13:18, 5:10] = True  # 125 voxels of body, 8 ml, on the other side
    assert np.isin(hu[stray], (BODY, BODY + 1)).all()
    hu[stray] = 90
    model = segmenter(Bands({"liver": (66, 14), "liver_tumor": (90, 8)}), {"liver": REASON})
    assert np.array_equal(model.segment(image(hu, affine)).mask("liver_tumor"), masks["liver_tumor"] | stray)
    held = model.segment(image(hu, affine), experimental=True)
    assert held.mask("liver_tumor").any() and not (held.mask("liver_tumor") & stray).any()


# --- The command

@pytest.mark.slow
def test_the_option_adds_the_experimental_classes_to_json_table_and_masks(segment):
    code, out, _ = segment("--masks")
    assert code == 0 and "experimental" not in out
    assert {f.name for f in Path("ct_seg").iterdir()} == {"spleen.nii.gz", "right_kidney.nii.gz", "liver.nii.gz"}
    code, out, _ = segment("--experimental", "--overwrite")
    found = json.loads(Path("ct_seg.json").read_text())["classes"]
    assert code == 0 and {n: e["experimental"] for n, e in found.items() if "experimental" in e} == WEIGHTS_EXPERIMENTAL
    [line] = [line for line in out.splitlines() if " aorta " in line]
    assert f"ml  experimental: {REASON}" in line


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--classes=aorta", "--classes=liver,Aorta", "--threshold=aorta=0.4"])
def test_naming_one_without_the_option_is_exit_2_before_any_work_and_with_it_works(segment, tmp_path, option):
    code, _, err = segment(option)
    assert code == 2 and one_line(err) == (f"class aorta is experimental in these weights (tiny.pt): {REASON}. "
                                           "Add --experimental to compute it all the same.")
    assert [f.name for f in tmp_path.iterdir()] == ["ct.nii.gz"]
    assert segment(option, "--experimental")[0] == 0
    assert "aorta" in json.loads(Path("ct_seg.json").read_text())["classes"]


def test_the_list_of_classes_tells_offered_experimental_and_unknown_apart(tmp_path, monkeypatch, capsys):
    sidecar = tmp_path / "default.json"
    sidecar.write_text(json.dumps({"classes": ["spleen", "liver"], "about": {"experimental": {"spleen": REASON}}}))
    monkeypatch.setattr(infer, "SIDECAR", sidecar)
    assert infer.main(["--list-classes"]) == 0
    table = capsys.readouterr().out.splitlines()[1:1 + len(taxonomy.CLASSES)]
    marks = {line.split()[1]: line.split()[3] for line in table}
    assert marks == {**dict.fromkeys(taxonomy.NAMES, "-"), "spleen": "experimental", "liver": "offered"}


@pytest.mark.slow
def test_an_evaluation_computes_and_scores_every_class_and_notes_the_experimental_ones(weights, tmp_path, capsys):
    patient = Patient(*make_phantom((15.0, 15.0, 15.0)))
    write_dataset(tmp_path / "Set", {"liver": ("liver",), "aorta": ("aorta",)}, {"a": patient})
    out = tmp_path / "out"
    assert evaluate.main(["--data-root", str(tmp_path / "Set"), "--weights", str(weights), "--device", "cpu",
                          "--bootstrap", "0",
                          "--out", str(out)]) == 0
    assert set(json.loads((out / "summary.json").read_text())["classes"]) == {"liver", "aorta"}
    assert "note: experimental in these weights, computed all the same: aorta, left_kidney" in capsys.readouterr().out


# --- Shipping

@pytest.fixture
def ship(tmp_path, monkeypatch, capsys):
    """Run tools/ship_weights.py on a run's checkpoint of liver and spleen, with a JSON file.

    Returns (exit code, stderr, folder).
    """
    path = Path(__file__).resolve().parents[2] / "tools" / "ship_weights.py"
    spec = importlib.util.spec_from_file_location("ship_weights", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "FOLDER", tmp_path / "shipped")
    source = save_weights(tmp_path / "last.pt", ("spleen", "liver"))
    content = checkpoint.read(source)
    checkpoint.save(source, checkpoint.load_network(content), Preprocessing.from_dict(content["preprocessing"]),
                    {"command": "train", "data": {"A/1": ["liver"], "A/2": ["liver", "spleen"], "B/1": []}},
                    {"step": 7, "config": {"lr": 1e-3}})

    assert not doctest.testmod(tool).failed

    def run(text=None, *more, others=()):
        (tmp_path / "reasons.json").write_text(text or "")
        code = tool.main([str(source), *map(str, others),
                          *(["--experimental", str(tmp_path / "reasons.json")] if text else []), *more])
        return code, capsys.readouterr().err, tmp_path / "shipped"
    return run


@pytest.mark.slow
def test_reasons_are_shipped_in_the_weights_and_in_their_sidecar(ship):
    code, _, folder = ship(json.dumps({"spleen": REASON}))
    data = {"A/1": ["liver"], "A/2": ["liver", "spleen"], "B/1": []}
    about = {"command": "train", "data": data, "steps": 7, "recipe": {"lr": 1e-3}, "experimental": {"spleen": REASON}}
    assert code == 0 and checkpoint.read(folder / "default.pt")["about"] == about
    # in the order of Table 2
    in_short = {"A": {"cases": 2, "classes": ["spleen", "liver"]}, "B": {"cases": 1, "classes": []}}
    assert json.loads((folder / "default.json").read_text())["about"] == {**about, "data": in_short}
    assert uniseg.load(folder / "default.pt", device="cpu").offered == ("liver",)


def test_what_the_start_has_seen_is_shipped_too(ship, tmp_path):
    content = checkpoint.read(tmp_path / "last.pt")
    about = {**content["about"], "init": {"file": "start.pt", "sha256": "0", "cases": ["C/1", "C/2"]}}
    checkpoint.save(tmp_path / "last.pt", checkpoint.load_network(content),
                    Preprocessing.from_dict(content["preprocessing"]), about, content["training"])
    rows = [{"what": f"{name}: a CT", "licence": "CC BY 4.0", "source": "here"} for name in ("C", "D")]
    (tmp_path / "sources.json").write_text(json.dumps(rows))
    code, _, folder = ship(None, "--sources", str(tmp_path / "sources.json"))
    shipped = json.loads((folder / "default.json").read_text())["about"]
    assert code == 0 and shipped["sources"] == rows[:1] and shipped["init"]["cases"] == {"C": 2}
    assert checkpoint.read(folder / "default.pt")["about"]["init"]["cases"] == ["C/1", "C/2"]
    code, _, folder = ship(None, others=(tmp_path / "last.pt",))
    assert code == 0 and checkpoint.read(folder / "default.pt")["about"]["init"]["cases"] == ["C/1", "C/2"]


def test_a_second_view_is_shipped_in_the_weights(ship):
    code, _, folder = ship(None, "--second-view", "0.7")
    assert code == 0 and uniseg.load(folder / "default.pt", device="cpu").second_view == 0.7
    code, err, _ = ship(None, "--second-view", "1")
    assert code == 2 and "--second-view 1.0: choose a share from 0.3 up to, not including, 1." in one_line(err)


def test_organs_found_in_pieces_are_shipped_in_the_weights_and_reach_the_result(ship):
    code, _, folder = ship(None, "--in-pieces", "spleen")
    assert code == 0
    model = uniseg.load(folder / "default.pt", device="cpu")
    hu, _, affine = paint()
    assert model.segment(image(hu, affine)).stats["settings"]["in_pieces"] == ["spleen"]
    code, err, _ = ship(None, "--in-pieces", "splen")
    assert code == 2 and "--in-pieces splen: no class of the network. It has spleen, liver." in one_line(err)


def moved_by(path, source, change, **parts):
    """A run's checkpoint like `source`, each weight more by `change`; parts: what else is another in it."""
    content = checkpoint.read(source)
    weights = {n: t + change if t.is_floating_point() else t for n, t in content["weights"].items()}
    about = {"command": "train more", "data": {"C/1": ["spleen"]}}
    checkpoint.write(path, {**content, "weights": weights, "about": about,
                            "training": {"step": 9, "config": {"lr": 1e-4}}, **parts})
    return path


@pytest.mark.slow
def test_of_several_runs_the_mean_is_shipped_and_all_are_named(ship, tmp_path):
    source = tmp_path / "last.pt"
    code, _, folder = ship(None, others=[moved_by(tmp_path / "b.pt", source, 0.25),
                                         moved_by(tmp_path / "c.pt", source, 0.5)])
    assert code == 0
    before, mean = checkpoint.read(source)["weights"], checkpoint.read(folder / "default.pt")["weights"]
    for name, tensor in before.items():
        if tensor.is_floating_point():
            assert torch.allclose(mean[name].float(), tensor.float() + 0.25, atol=2e-3), name                # float16
    about = json.loads((folder / "default.json").read_text())["about"]
    assert about["mean_of"] == [{"command": "train", "steps": 7}, *[{"command": "train more", "steps": 9}] * 2]
    assert set(about["data"]) == {"A", "B", "C"} and about["steps"] == 7


def mlp_of(content, name):
    """(text embedding, last layer of the MLP) of a class, float32."""
    k = content["network"]["classes"].index(name)
    return (content["weights"]["organ_embedding"][k].float(),
            content["weights"][f"lpg.controllers.{k}.2.weight"].float())


def as_run(path, classes, **about):
    """A run's checkpoint of some classes."""
    content = checkpoint.read(save_weights(path, classes))
    checkpoint.save(path, checkpoint.load_network(content), Preprocessing.from_dict(content["preprocessing"]),
                    {"command": "train", "data": {"C/1": ["aorta"]}, **about}, {"step": 9, "config": {}})
    return path


def test_of_runs_with_different_classes_those_that_all_know_are_shipped(ship, tmp_path):
    """Runs that leave out different datasets know different classes. Liver has another place in each."""
    source, other = tmp_path / "last.pt", as_run(tmp_path / "other.pt", ("aorta", "colon", "liver"))
    code, _, folder = ship(None, others=[other])
    a, b, mean = (checkpoint.read(path) for path in (source, other, folder / "default.pt"))
    assert code == 0 and mean["network"]["classes"] == ["liver"]
    embedding, weight = mlp_of(mean, "liver")
    of_a, of_b = mlp_of(a, "liver"), mlp_of(b, "liver")
    assert torch.allclose(embedding, of_a[0], atol=2e-3)                                                 # float16
    assert torch.allclose(weight, (of_a[1] + of_b[1]) / 2, atol=2e-3) and not torch.allclose(*of_a[1:], of_b[1])


def test_the_new_classes_of_an_extension_whose_old_ones_were_frozen_are_added(ship, tmp_path):
    source, extension = checkpoint.read(tmp_path / "last.pt"), as_run(tmp_path / "x.pt", ("spleen", "liver", "aorta"))
    content = checkpoint.read(extension)
    frozen = {name: tensor for name, tensor in source["weights"].items() if name != "organ_embedding"}
    checkpoint.write(extension, {**content, "weights": {**content["weights"], **frozen}})
    code, _, folder = ship(None, "--add", str(extension))
    shipped = checkpoint.read(folder / "default.pt")
    assert code == 0 and shipped["network"]["classes"] == ["spleen", "liver", "aorta"]
    for name, of in (("spleen", source), ("liver", source), ("aorta", content)):
        for found, expected in zip(mlp_of(shipped, name), mlp_of(of, name)):
            assert torch.allclose(found, expected, atol=2e-3), name                                      # float16
    about = json.loads((folder / "default.json").read_text())["about"]
    assert about["added"] == {"command": "train", "steps": 9, "classes": ["aorta"]} and set(about["data"]) == {
        "A", "B", "C"}
    code, err, _ = ship(None, "--add", str(moved_by(extension, extension, 0.25)))
    assert code == 2 and "x.pt: no extension of these weights, as its old ones differ." in one_line(err)


def test_the_start_has_its_share_in_the_mean_of_the_classes_that_it_knows(ship, tmp_path):
    """Runs at +0.25 and +0.5 from the start, whose share is 0.6: 0.4 times 0.375 from it."""
    start, source = save_weights(tmp_path / "start.pt", ("spleen",)), tmp_path / "last.pt"
    moved_by(source, source, 0.25)
    code, _, folder = ship(None, "--start", str(start), "--start-share", "0.6",
                           others=[moved_by(tmp_path / "b.pt", source, 0.25)])
    assert code == 0
    mean, runs, before = (checkpoint.read(path)["weights"] for path in (folder / "default.pt", source, start))
    moved = 0
    for name, tensor in before.items():
        run = runs[name].float() + 0.125
        if tensor.is_floating_point() and name != "organ_embedding":           # spleen is class 0 in both
            assert torch.allclose(mean[name].float(), 0.6 * tensor.float() + 0.4 * run, atol=2e-3), name     # float16
            moved += 1
    assert moved > 20
    liver = "lpg.controllers.1.2.weight"                                       # the start does not know it
    assert torch.allclose(mean[liver].float(), runs[liver].float() + 0.125, atol=2e-3)
    assert json.loads((folder / "default.json").read_text())["about"]["start_share"] == 0.6
    code, err, _ = ship(None, "--start", str(start), "--start-share", "1")
    assert code == 2 and "--start-share 1.0: choose a share between 0 and 1." in one_line(err)


def test_of_a_run_with_averaged_weights_the_average_is_shipped(ship, tmp_path):
    source = tmp_path / "last.pt"
    average = {f"module.{n}": t + 0.25 if t.is_floating_point() else t
               for n, t in checkpoint.read(source)["weights"].items()}
    moved_by(source, source, 1.0, training={
        "step": 9, "config": {"lr": 1e-4}, "average": {"n_averaged": torch.tensor(9), **average}})
    code, _, folder = ship()
    assert code == 0
    for name, tensor in checkpoint.read(folder / "default.pt")["weights"].items():
        assert torch.allclose(tensor.float(), average[f"module.{name}"].float(), atol=2e-3), name        # float16


def test_a_window_larger_than_the_patches_is_shipped(ship):
    code, _, folder = ship(None, "--window", "32", "32", "48")
    assert code == 0 and uniseg.load(folder / "default.pt", device="cpu").preprocessing.window == (32, 32, 48)


def test_the_sources_of_the_data_that_a_run_has_seen_are_shipped(ship, tmp_path):
    rows = [{"what": what, "licence": "CC BY 4.0", "source": "TCIA"}
            for what in ("label maps", "1, 5: CTs", "7: CT")]                   # the run has seen A/1, A/2, B/1
    (tmp_path / "sources.json").write_text(json.dumps(rows))
    code, _, folder = ship(None, "--sources", str(tmp_path / "sources.json"))
    assert code == 0 and json.loads((folder / "default.json").read_text())["about"]["sources"] == rows[:2]
    (tmp_path / "sources.json").write_text('[{"what": "label maps"}]')
    code, err, _ = ship(None, "--sources", str(tmp_path / "sources.json"))
    assert code == 2 and "sources.json: not [" in one_line(err)


def test_runs_of_another_grid_have_no_mean(ship, tmp_path):
    source = tmp_path / "last.pt"
    other = moved_by(tmp_path / "b.pt", source, 0.0,
                     preprocessing={**checkpoint.read(source)["preprocessing"], "spacing_mm": [9.0] * 3})
    code, err, folder = ship(None, others=[other])
    assert code == 2 and not folder.exists()
    words = f"{other}: another preprocessing than {source}. Only runs of one network and one grid have a mean."
    assert words in one_line(err)


def test_weights_are_shipped_without_reasons_as_well(ship):
    code, _, folder = ship()
    assert code == 0 and "experimental" not in json.loads((folder / "default.json").read_text())["about"]


@pytest.mark.slow
@pytest.mark.parametrize("text, said", [
    ('{"splen": "why"}', "reasons.json: splen: no class of the network. It has spleen, liver."),
    ('["spleen"]', "reasons.json: not {class: reason"), ('{"spleen": 0.12}', "reasons.json: not {class: reason"),
    ("{spleen}", "reasons.json: not JSON"),
    ('{"spleen": "why", "liver": "why"}', "reasons.json: names every class, nothing would be offered.")])
def test_reasons_that_are_none_are_one_line_and_nothing_is_written(ship, text, said):
    code, err, folder = ship(text)
    assert code == 2 and said in one_line(err) and not folder.exists()


# --- Hardly anything found

KNOWN = {"liver": (60, 10), "right_lung": (200, 5), "left_lung": (220, 5)}  # no voxel below has a lung's HU
BLOCK = 30  # voxels of 4 mm: 27000, 1.728 litres; 2 % are 540


def block(liver, side=BLOCK):
    """A CT of a cube of body in air, in it a liver of `liver` (shape in voxels)."""
    hu = np.full((side + 10,) * 3, -1000, np.int16)
    hu[5:-5, 5:-5, 5:-5] = BODY
    hu[tuple(slice(8, 8 + n) for n in liver)] = 60
    return image(hu, np.diag([4.0, 4, 4, 1]))


def hardly(stats):
    return [w for w in stats["warnings"] if w.startswith(("hardly anything found", "nothing found"))]


@pytest.mark.slow
@pytest.mark.parametrize("liver, share, warned", [((0, 0, 0), 0, True), ((8, 8, 8), 512 / 27000, True),
                                                  ((9, 8, 8), 576 / 27000, False)])
def test_organs_of_less_than_2_percent_of_a_body_are_a_warning_nothing_at_all_too(liver, share, warned):
    assert warned is (share < 0.02)
    stats = stand_in(Bands(KNOWN)).segment(block(liver)).stats
    assert stats["classes"]["liver"]["voxels"] == np.prod(liver) and stats["empty"] is not any(liver)
    few = (f"hardly anything found: {np.prod(liver) * 0.064:.0f} ml of organs in 1.7 litres of body. These weights "
           "know chest and abdomen. Check that the CT shows these, in Hounsfield units")
    assert hardly(stats) == ([few if any(liver) else plausibility.NOTHING] if warned else [])


# 3.7 and 4.1 % of 27000 voxels
@pytest.mark.slow
@pytest.mark.parametrize("bowel, warned", [((10, 10, 10), True), ((11, 10, 10), False)])
def test_without_liver_and_lungs_organs_of_less_than_4_percent_are_a_warning(bowel, warned):
    """Bowel found in the air of a head, for one."""
    model = stand_in(Bands({"colon": (60, 10), "liver": (150, 5), "right_lung": (200, 5), "left_lung": (220, 5)}))
    stats = model.segment(block(bowel)).stats
    assert stats["classes"]["colon"]["voxels"] == np.prod(bowel) and bool(hardly(stats)) is warned


@pytest.mark.slow
def test_no_warning_where_classes_were_named_but_where_all_of_them_were():
    model = stand_in(Bands(KNOWN))
    assert not hardly(model.segment(block((2, 2, 2)), classes=["liver", "right_lung"]).stats)
    assert hardly(model.segment(block((2, 2, 2)), classes=["liver", "lungs"]).stats)


def test_nothing_in_a_small_body_is_a_warning_too():
    for side in (24, 26):                                      # 24^3 voxels: 0.88 litres, 26^3: 1.12
        assert hardly(stand_in(Bands(KNOWN)).segment(block((0, 0, 0), side=side)).stats) == [plausibility.NOTHING]


@pytest.mark.slow
def test_weights_that_do_not_know_liver_and_lungs_warn_of_nothing_only():
    """Weights for a pancreas alone find some 80 ml in a patient, those for a tumour nothing in most."""
    for missing in KNOWN:
        weights = stand_in(Bands({n: b for n, b in KNOWN.items() if n != missing}))
        [warning] = hardly(weights.segment(block((0, 0, 0))).stats)
        assert warning == plausibility.NOTHING


@pytest.mark.slow
def test_what_an_experimental_class_finds_does_not_count():
    model = segmenter(Bands({"colon": (BODY, 20), **KNOWN}), {"colon": REASON})
    plain, everything = (model.segment(block((2, 2, 2)), experimental=e).stats for e in (False, True))
    assert everything["classes"]["colon"]["voxels"] > 0.9 * BLOCK ** 3
    assert hardly(plain) == hardly(everything) != []
