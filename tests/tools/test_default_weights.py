"""tools.default_weights: pseudo labels, the clock, the comparison, and the whole chain in small."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_synthetic import NAMES_OF, hand_made_map

from conftest import Patient, write_dataset
from tools.default_weights import __main__ as command
from tools.default_weights import ablation, labelled, lesions, packing, plan, scoring, stages
from tools.default_weights.pseudo import Opinion, ask, believe
from tools.default_weights.running import Clock, CommandFailed, call
from tools.default_weights.stages import Work
from uniseg import checkpoint
from uniseg.datasets.cases import prepare
from uniseg.datasets.find import find_datasets
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.volume import read_ct, read_label_map, write_volume
from uniseg.phantom import make_phantom
from uniseg.segmenter import DEFAULT_WEIGHTS

# ------------------------------------------------------------------------------------------------------ pseudo labels

SHAPE = (24, 18, 24)                                   # of 16 mm: 384 x 288 x 384 mm


def opinion(**probabilities):
    """What a teacher says of a body with a spine. probabilities: {class: {(box): probability}}"""
    affine = np.diag([16.0, 16.0, 16.0, 1.0])
    affine[:3, 3] = [-184, -136, 0]
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:22, 2:16] = 40
    hu[11:13, 3:5] = 400
    body = hu > -300
    values = np.zeros((len(probabilities), *SHAPE), np.float32)
    for k, boxes in enumerate(probabilities.values()):
        for box, value in boxes.items():
            values[(k, *box)] = value
    whole = tuple(slice(0, n) for n in SHAPE)
    return Opinion(hu, affine, whole, body, values, np.ones(SHAPE, bool))


class Box(tuple):
    """Slices that may be the key of a dict."""

    def __hash__(self):
        return hash(str(self))


def box(x, y, z):
    return Box((slice(*x), slice(*y), slice(*z)))


LIVER, SPLEEN = box((14, 20), (6, 12), (10, 16)), box((4, 7), (5, 8), (10, 14))


def test_what_is_sure_is_a_class_what_is_unlikely_is_none_and_what_is_between_is_ignored():
    edge = box((20, 21), (6, 12), (10, 16))            # 36 voxels beside the liver at probability 0.6
    said = opinion(liver={LIVER: 0.9, edge: 0.6}, spleen={SPLEEN: 0.8})
    belief = believe(said, ("liver", "spleen"))
    assert belief.classes == ("liver", "spleen") and not belief.left_out
    assert (belief.labels[LIVER] == 1).all() and (belief.labels[SPLEEN] == 2).all()
    assert (belief.labels[edge] == 3).all()            # ignore
    assert np.bincount(belief.labels.ravel()).tolist() == [24 * 18 * 24 - 216 - 36 - 36, 216, 36, 36]
    assert belief.ml["liver"] == pytest.approx(216 * 4.096)


def test_a_second_piece_is_ignored_and_two_classes_in_one_voxel_are_too():
    piece, both = box((10, 11), (6, 8), (2, 4)), box((14, 15), (6, 12), (10, 16))
    belief = believe(opinion(liver={LIVER: 0.9, piece: 0.95}, stomach={both: 0.9}), ("liver", "stomach"))
    ignore = len(belief.classes) + 1
    assert (belief.labels[piece] == ignore).all() and (belief.labels[both] == ignore).all()


def test_a_class_that_no_adult_has_so_or_that_is_nowhere_sure_is_not_annotated():
    below = box((14, 20), (6, 12), (2, 8))             # a liver below the bladder
    belief = believe(opinion(liver={below: 0.9}, bladder={box((10, 14), (8, 12), (14, 17)): 0.9}, colon={SPLEEN: 0.6},
                             spleen={box((2, 11), (2, 16), (2, 22)): 0.9}), ("liver", "bladder", "colon", "spleen"))
    assert belief.classes == () and set(belief.left_out) == {"liver", "bladder", "colon", "spleen"}
    assert "lies below" in belief.left_out["liver"] and "more than an adult has" in belief.left_out["spleen"]
    assert belief.left_out["colon"] == "not found surely"


def test_what_lies_outside_the_field_of_view_is_ignored():
    said = opinion(liver={LIVER: 0.9})
    said.seen[:3] = False
    assert (believe(said, ("liver",)).labels[:3] == 2).all()


# ------------------------------------------------------------------------------------------------------------ the clock

def test_a_command_that_outlasts_its_clock_is_ended_and_one_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    assert not call("sleeps", [], Clock(0.02))
    assert time.monotonic() - start < 10
    with pytest.raises(CommandFailed, match="fails: ended with exit code 3"):
        call("fails", [], Clock(None))


def test_a_share_of_the_clock_is_a_share_of_what_is_left():
    assert Clock(10).share(1, 4).left_s() == pytest.approx(150, abs=1)
    assert Clock(None).share(1, 4).left_s() == float("inf")


def test_a_training_has_the_steps_that_the_clock_allows_by_the_speed_of_its_probe(tmp_path):
    """Two epochs of 50 steps, 10 s apart: 0.2 s a step. Of 112 s 12 are spare, and 92 % of the speed is counted on."""
    (tmp_path / "metrics.jsonl").write_text('{"seconds": 14.0}\n{"seconds": 24.0}\n')
    work = Work(tmp_path, tmp_path, plan.SIZES["gpu"], "cpu", 1, tmp_path, Clock(112 / 60))
    assert stages.steps_in_time(tmp_path, work) == pytest.approx(0.92 * 100 / 0.2, abs=2)
    assert stages.steps_in_time(tmp_path / "none", work) == 50


# ------------------------------------------------------------------------------------- where a training goes on from

def start_of(path, data=(), before=()):
    """The built-in network as a checkpoint that says that it was trained on `data`, from weights that saw `before`."""
    content = checkpoint.read(DEFAULT_WEIGHTS)
    about = {**content["about"], "data": dict(data), "init": {"file": "a.pt", "sha256": "0", "cases": list(before)}}
    checkpoint.save(path, checkpoint.load_network(content, DEFAULT_WEIGHTS),
                    Preprocessing.from_dict(content["preprocessing"]), about)
    return path


def test_weights_that_have_seen_a_ct_are_no_start_for_what_it_scores(tmp_path, capfd):
    seen = start_of(tmp_path / "seen.pt", {"Mixed/a": ["liver"], "CCTH/ccth_a01": ["liver"]})
    (tmp_path / "labelmaps").mkdir()
    arguments = [str(tmp_path), "--out", str(tmp_path / "work"), "--start", str(seen), "--stages"]
    for stage in ("train", "pseudo", "finetune", "score", "ship", "ablate"):
        assert command.main([*arguments, stage]) == 2
        assert "seen.pt: was trained on CCTH, so these CTs cannot score what goes on from it" in capfd.readouterr().err
    assert command.main([str(tmp_path), "--pack", str(tmp_path / "pack"), "--start", str(seen)]) == 2
    stages.refuse_seen(seen, ("IRCAD", "TotalSegNeck"))                        # those it has not seen


def test_weights_remember_what_the_weights_before_them_have_seen(tmp_path):
    seen = start_of(tmp_path / "seen.pt", {"Mixed/a": ["liver"]}, ["CCTH/ccth_a01", "Women/b"])
    with pytest.raises(ValueError, match="was trained on CCTH, so"):
        stages.refuse_seen(seen, ("CCTH", "TotalSegNeck"))
    stages.refuse_seen(seen, ("TotalSegNeck",))


def test_where_the_shipped_weights_do_not_do_the_last_ones_that_do_are_taken_from_git(tmp_path, monkeypatch):
    seen = start_of(tmp_path / "seen.pt", {"CCTH/ccth_a01": ["liver"]})
    monkeypatch.setattr(stages, "DEFAULT_WEIGHTS", start_of(tmp_path / "unseen.pt"))
    assert stages.default_start(tmp_path / "work") == tmp_path / "unseen.pt" and not (tmp_path / "work").exists()
    monkeypatch.setattr(stages, "DEFAULT_WEIGHTS", seen)
    monkeypatch.setattr(stages, "UNSEEN", "0" * 40)
    with pytest.raises(ValueError, match="was trained on CCTH"):
        stages.default_start(tmp_path / "work")
    monkeypatch.undo()
    monkeypatch.setattr(stages, "DEFAULT_WEIGHTS", seen)
    if subprocess.run(["git", "cat-file", "-e", plan.UNSEEN], cwd=stages.ROOT, capture_output=True).returncode:
        pytest.skip("this copy has no history of git")
    start = stages.default_start(tmp_path / "work")
    stages.refuse_seen(start, plan.LABELLED)
    assert start == tmp_path / "work" / "start.pt" and checkpoint.read(start)["about"]["steps"] == 225


def test_what_is_scored_is_the_mean_of_all_runs_of_the_fine_tuning(tmp_path, capfd):
    (tmp_path / "labelmaps").mkdir()
    arguments = [str(tmp_path), "--out", str(tmp_path), "--stages", "score", "--start",
                 str(start_of(tmp_path / "start.pt"))]
    (tmp_path / "without_b").mkdir()
    (tmp_path / "without_b" / "last.pt").write_bytes(b"")                      # the other fold was not trained
    assert command.main(arguments) == 1
    assert "without_a/last.pt: not there. Run the stage finetune to its end." in capfd.readouterr().err


def test_a_start_that_the_runs_did_not_go_on_from_has_no_share_in_their_mean(tmp_path, capfd):
    (tmp_path / "labelmaps").mkdir()
    for name in plan.FOLDS:                                                    # they say that they went on from "0"
        (tmp_path / name).mkdir()
        start_of(tmp_path / name / "last.pt")
    assert command.main([str(tmp_path), "--out", str(tmp_path), "--stages", "score", "--start",
                         str(start_of(tmp_path / "start.pt"))]) == 1
    assert "without_a/last.pt: went on from other weights than" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------- packing

def test_what_travels_gives_the_labels_that_the_original_gives(tmp_path, monkeypatch):
    patient = Patient(*make_phantom((24.0, 24.0, 24.0)))
    data, small = tmp_path / "DATA", plan.SIZES["gpu"]
    write_dataset(data / "train" / "T", {"liver": ("liver",), "spleen": ("spleen",), "ignore": ("left_lung",)},
                  {"a": patient})
    for name in ("labelmaps", "unlabelled"):
        (data / name).mkdir()
    for name in ("u", *plan.NO_PSEUDO_CTS, *plan.OTHER_PHASES):
        write_volume(data / "unlabelled" / f"{name}.nii.gz", patient.hu, patient.affine)
    (data / "labelmaps" / "names.json").write_text("{}")
    (data / "labelmaps" / "ts_s0009.nii.gz").write_bytes(b"")
    monkeypatch.setitem(plan.SIZES, "gpu",
                        small._replace(spacing_mm=12.0, finetune=small.finetune._replace(shares={"T": 1.0})))
    start = start_of(tmp_path / "start.pt")
    assert command.main([str(data), "--pack", str(tmp_path / "pack"), "--start", str(start)]) == 0
    assert checkpoint.file_sha256(tmp_path / "pack" / "start.pt") == checkpoint.file_sha256(start)
    assert {path.name for path in (tmp_path / "pack" / "labelmaps").iterdir()} == {"names.json"}     # the held-out: no
    found = []
    for root in (data, tmp_path / "pack"):
        (dataset,) = find_datasets(root / "train")
        case = prepare(dataset, dataset.cases[0], Preprocessing((12.0, 12.0, 12.0), antialias=True, pad="edge"),
                       tmp_path / "cache")
        found.append((case.names, case.voxels, case.ignored, np.asarray(case.image).shape))
    assert found[0] == found[1] and found[0][2]
    assert [path.name for path in (tmp_path / "pack" / "unlabelled").iterdir()] == ["u.nii.gz"]
    packed = read_ct(tmp_path / "pack" / "unlabelled" / "u.nii.gz")
    assert np.allclose(np.diag(packed.affine)[:3], 12.0)


def test_what_is_too_large_to_travel_is_refused(tmp_path, monkeypatch, capfd):
    for name in ("labelmaps", "train", "unlabelled"):
        (tmp_path / name).mkdir()
    monkeypatch.setitem(plan.SIZES, "tiny", plan.SIZES["tiny"]._replace(finetune=plan.SIZES["tiny"].train))
    arguments = [str(tmp_path), "--pack", str(tmp_path / "pack"), "--size", "tiny", "--start",
                 str(start_of(tmp_path / "start.pt"))]
    assert command.main(arguments) == 0
    monkeypatch.setattr(packing, "MOST_MIB", 1)
    assert command.main(arguments) == 2
    assert "MiB, at most 1 travel. Leave CTs out." in capfd.readouterr().err


def test_the_page_has_the_minutes_of_the_plan():
    page = (Path(command.__file__).parents[2] / "docs" / "weights_history.md").read_text(encoding="utf-8")
    for stage, minutes in plan.MINUTES.items():
        gpu = f"{minutes['gpu']:g}" if minutes["gpu"] else "not there"
        assert re.search(rf"^\| {stage} \| .* \| {minutes['cpu']:g} \| {gpu} \|$", page, re.M), stage


# ---------------------------------------------------------------------------------------------------------- comparison

def test_new_weights_are_refused_for_a_lower_mean_a_class_that_is_worse_or_more_found_where_nothing_is():
    better = {("liver", "a"): (0.90, 0.95), ("spleen", "a"): (0.80, 0.85)}
    assert scoring.objections_to(better, {}, ("liver", "spleen")) == []
    assert scoring.objections_to({("liver", "a"): (0.9, 0.9)}, {}, ("liver",)) == [
        "the mean Dice over 1 classes is 0.900, 0.900 before"]
    traded = better | {("colon", "a"): (0.60, 0.54)}
    assert scoring.objections_to(traded, {}, ("liver", "spleen", "colon")) == ["colon 0.54, 0.60 before"]
    assert scoring.objections_to(better, {("colon", "neck"): (5.0, 20.0)}, ("liver", "spleen", "colon")) == [
        "20 ml are found where there is nothing, 5 before"]
    assert scoring.objections_to(better, {("colon", "neck"): (5.0, 20.0)}, ("liver", "spleen")) == []


def test_the_table_of_ingredients_has_means_over_cases_then_over_classes():
    def rows(liver_a, liver_b, colon_a, colon_b_ml):
        return {("liver", "a"): {"reference_voxels": "5", "dice": liver_a},
                ("liver", "b"): {"reference_voxels": "5", "dice": liver_b},
                ("colon", "a"): {"reference_voxels": "5", "dice": colon_a},
                ("colon", "b"): {"reference_voxels": "0", "dice": "", "predicted_ml": colon_b_ml}}
    table = ablation.table_of({"before": rows("0.8", "0.6", "0.5", "12"), "after": rows("0.9", "0.9", "0.1", "")},
                              ("liver", "colon"))
    assert list(table) == ["| class | cases | before | after |", "|--|--|--|--|",
                           "| liver | 2 | 0.700 | 0.900 |", "| colon | 1 | 0.500 | 0.100 |",
                           "| mean of liver, spleen, kidneys, lungs, aorta | | 0.700 | 0.900 |",
                           "| mean of the others | | 0.500 | 0.100 |", "| **mean** | | 0.600 | 0.500 |",
                           "| ml found where nothing is | 1 | 12 | 0 |"]


def test_lesions_are_counted_per_ct_that_shows_the_organ():
    found = {"liver_tumor": [lesions.Found("a", 3, 20.0), lesions.Found("b", 0, 0.0)], "colon_tumor": []}
    table = lesions.lesion_table({"shipped": found, "new": {"liver_tumor": [lesions.Found("a", 1, 8.0)]}})
    assert list(table) == ["| lesions per CT with the organ (lesions, CTs, ml) | shipped | new |", "|--|--|--|",
                           "| liver_tumor | 1.5 (3, 2, 20) | 1.0 (1, 1, 8) |", "| colon_tumor | - | - |"]


def test_maps_are_chosen_by_what_they_show_and_held_out_ones_never():
    shown = {"a": {"prostate", "liver"}, "b": {"liver", "humerus_left"}, "ts_s0009": {"prostate", "liver"}}
    assert [plan.chosen_maps(shown, shown, which) for which in ("men", "women", "torsos", "all")] == [
        ["a"], ["b"], ["b"], ["a", "b"]]


def test_of_a_whole_femur_that_is_called_its_head_the_upper_48_mm_are_scored(tmp_path):
    """The head is the bone within 26 mm of the point 22 mm below its upper end, so 48 mm from top to bottom."""
    shape, affine = (40, 20, 60), np.diag([3.0, 3.0, 3.0, 1.0])
    bones = np.zeros(shape, np.uint8)
    bones[5:13, 5:13, :50], bones[27:35, 5:13, :50] = 6, 7
    write_volume(tmp_path / "x.nii.gz", bones, affine)
    labelled.cut_heads(tmp_path / "x.nii.gz", {"6": "Left Head of Femur", "7": "right_head_of_femur"})
    heads = read_label_map(tmp_path / "x.nii.gz").array
    for value in (6, 7):
        slices = np.flatnonzero((heads == value).any(axis=(0, 1)))
        assert slices[-1] == 49 and 45 <= 3 * len(slices) <= 51 and not (heads[bones != value] == value).any()


# ------------------------------------------------------------------------------------------------------ the whole chain

@pytest.fixture
def data(tmp_path):
    """labelmaps, unlabelled, two CTs of 192 x 192 x 96 mm that train and one that never does, all of them drawn."""
    root = tmp_path / "DATA"
    labels, affine = hand_made_map()
    (root / "labelmaps").mkdir(parents=True)
    write_volume(root / "labelmaps" / "m.nii.gz", labels, affine)
    (root / "labelmaps" / "names.json").write_text(json.dumps(NAMES_OF))
    (root / "unlabelled").mkdir()
    shape = (32, 32, 16)
    x, y, _ = np.indices(shape)
    rng = np.random.default_rng(0)
    hu = np.where(((x - 16) / 14) ** 2 + ((y - 16) / 11) ** 2 < 1, 40, -1000) + rng.normal(0, 12, shape)
    hu, grid = hu.astype(np.int16), np.diag([6.0, 6.0, 6.0, 1.0])
    for name in ("u", "crlm1004"):                                             # the latter is in plan.NO_PSEUDO_CTS
        write_volume(root / "unlabelled" / f"{name}.nii.gz", hu, grid)
    liver = np.zeros(shape, bool)
    liver[18:26, 10:20, 4:12] = True
    for folder, case in (("validation/IRCAD", "i"), ("train/TotalSegNeck", "n")):
        write_dataset(root / folder, {"liver": ("liver",)}, {case: Patient(hu, {"liver": liver}, grid)})
    trunk = np.zeros(shape, bool)
    trunk[14:17, 14:17, 8:10] = True
    write_dataset(root / "train/AortaReport", {"liver": ("liver",), "celiac_trunk": ("celiac_trunk",)},
                  {"a": Patient(hu, {"liver": liver, "celiac_trunk": trunk}, grid)})
    return root


@pytest.mark.slow
def test_the_whole_chain_runs_from_a_pack_against_the_clock_and_is_scored_at_home(data, tmp_path, monkeypatch, capfd):
    """What a lent machine with a GPU does, in small and on a CPU, and what is done with its weights afterwards."""
    monkeypatch.setattr(stages, "SHIPPED", tmp_path / "shipped_scores.csv")     # that of these few cases
    small = ["--size", "tiny", "--device", "cpu"]
    there, out, home = tmp_path / "there", tmp_path / "out", tmp_path / "home"
    pack = tmp_path / "pack"
    start = start_of(tmp_path / "start.pt")
    assert command.main([str(data), "--pack", str(pack), "--size", "tiny", "--start", str(start)]) == 0
    lent = [str(pack), "--out", str(there), "--gpu", *small, "--jobs", "1", "--minutes", "9", "--export", str(out)]
    assert command.main(lent) == 0, capfd.readouterr().err
    for file in ("data/Mixed/dataset.json", "data/Heads/dataset.json", "train/last.pt"):
        assert (there / file).is_file(), file
    trained = {name: checkpoint.read(there / name / "last.pt")["about"]["data"] for name in ("without_a", "without_b")}
    assert trained["without_a"].keys() ^ trained["without_b"].keys() == {"TotalSegNeck/n", "AortaReport/a"}
    assert "AortaReport/a" in trained["without_b"]
    returned = [path for path in out.rglob("*") if path.is_file()]             # a lent machine gives back eight files
    assert len(returned) <= 5 and all(path.stat().st_size < 16 * 2 ** 20 for path in returned)
    assert {"without_a.json", "train/metrics.jsonl"} <= set(zipfile.ZipFile(out / "curves.zip").namelist())

    shutil.copytree(out, home)
    at_home = [str(data), "--out", str(home), *small, "--start", str(start), "--stages"]
    assert command.main([*at_home, "ship"]) == 1                               # nothing is shipped unscored
    assert "score: holds no scores. Run the stage score first." in capfd.readouterr().err
    assert command.main([*at_home, "score"]) == 0, capfd.readouterr().err
    content = json.loads((home / "candidate" / "mean" / "default.json").read_text())
    assert "celiac_trunk" not in content["classes"] and len(content["about"]["mean_of"]) == 2
    assert content["about"]["start_share"] == plan.START_SHARE
    page = (home / "score" / "scores.md").read_text()
    assert "| liver | a, i, n |" in page and "Against shipping: " in page
    assert "| lesions per CT with the organ (lesions, CTs, ml) | shipped | new |" in page

    monkeypatch.setattr(stages.ship_weights, "FOLDER", tmp_path / "package")
    monkeypatch.setattr(scoring, "objections_to", lambda *_: [])               # two steps have learned nothing
    assert command.main([*at_home, "extend", "ship"]) == 0, capfd.readouterr().err
    content = json.loads((tmp_path / "package" / "default.json").read_text())
    assert content["classes"][-1] == "celiac_trunk" and content["about"]["added"]["classes"] == ["celiac_trunk"]
    assert content["about"]["experimental"]["celiac_trunk"] in (
        stages.UNSCORED, stages.shipped_settings()["experimental"].get("celiac_trunk"))
    assert str(tmp_path) not in json.dumps([content["about"][key] for key in ("command", "mean_of", "added")])

    stamp = (there / "train" / "last.pt").stat().st_mtime_ns
    assert command.main([*lent, "--stages", "train"]) == 0                     # it is there already
    assert (there / "train" / "last.pt").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_each_ingredient_is_left_out_in_turn(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ablation, "FOUR", ("m",))
    arguments = [str(data), "--out", str(tmp_path), "--size", "tiny", "--device", "cpu", "--start",
                 str(start_of(tmp_path / "start.pt")), "--stages"]
    asked = []

    def recorded(segmenter, path, names):
        asked.append(path.name)
        return ask(segmenter, path, names)
    monkeypatch.setattr(stages, "ask", recorded)
    assert command.main([*arguments, "draw", "pseudo", "ablate"]) == 0, capfd.readouterr().err
    assert asked == ["u.nii.gz"]
    page = (tmp_path / "ablation" / "ablation.md").read_text().splitlines()
    assert page[0] == ("| class | cases | the start | all ingredients | four label maps | no unlabelled CTs | "
                       "no labelled CTs |")
    assert page[2].startswith("| liver | 3 | ") and page[-1].startswith("| ml found where nothing is | ")
    for name in ("everything", "four_maps", "no_unlabelled", "no_labels"):
        content = checkpoint.read(tmp_path / "ablation" / name / "last.pt")
        assert content["training"]["step"] == 2
        assert not any(case.startswith("TotalSegNeck") for case in content["about"]["data"])


@pytest.mark.slow
def test_a_signal_ends_the_chain_and_what_there_is_comes_back(data, tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "tools.default_weights", str(data), "--out", str(work), "--size",
                                "tiny", "--device", "cpu", "--start", str(start_of(tmp_path / "start.pt")),
                                "--stages", "draw", "train", "--export", str(out)])
    until = time.monotonic() + 120
    while not (work / "data" / "Mixed" / "imagesTr").is_dir() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    assert out.is_dir() and not list(out.rglob("*.pt"))                        # no training had begun


def test_bad_input_is_one_line(tmp_path, capfd):
    assert command.main([str(tmp_path), "--out", str(tmp_path / "work")]) == 2
    assert "holds no folder labelmaps" in capfd.readouterr().err
