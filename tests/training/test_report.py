"""What a run leaves to be read: charts pixel by pixel, the table, the overlays, the card; then a whole run's folder.

The whole run is test_train.py's: a U-Net of 2 channels on phantoms of 12 mm voxels, validated at epochs 5 and 10.
"""

import csv
import json
import os
import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from png import read_png
from runs import metrics
from test_data import handmade
from uniseg import taxonomy, train
from uniseg.datasets.cases import Case
from uniseg.pictures import canvas as canvas_module
from uniseg.pictures import chart
from uniseg.pictures.canvas import GLYPHS, GRID, INK, blank, stroke, write_png
from uniseg.pictures.colors import on_white
from uniseg.train import main
from uniseg.training import model_card, progress, report
from uniseg.training.recipe import TrainConfig
from uniseg.training.steps import training_step
from uniseg.training.validation import mean_dice, validate

BLACK = (0, 0, 0)


def record(epoch, loss=1.0, lr=1e-4, **dice):
    scores = {"dice": dice, "mean_dice": float(np.mean(list(dice.values())))} if dice else {}
    return {"epoch": epoch, "step": 2 * epoch, "loss": loss, "lr": lr, "seconds": 0.5 * epoch, **scores}


# --------------------------------------------------------------------------------------------------------------- charts

def dark(points, width, size=(40, 40)):
    """(rows, columns) from 0 (white) to 1 (black) of one curve."""
    canvas = blank(*size)
    chart.curve(canvas, *zip(*points), width, BLACK)
    return 1 - canvas[..., 0] / 255


def test_a_level_line_fills_the_pixels_it_covers_and_no_other():
    """From x 5 to 25 at y 10, 2 wide: rows 9 and 10; half a pixel of the pen's round ends beyond."""
    cover = dark([(5, 10), (25, 10)], 2)
    assert (cover[9:11, 5:25] == 1).all()
    cover[8:12, 4:26] = 0
    assert not cover.any()


def test_a_line_is_as_wide_across_whatever_its_slope():
    """The sum of the coverage is its area, length times width and the pen's half discs at the ends: to half a pixel
    of width."""
    for end in ((30, 10), (25, 25), (20, 28), (11, 30), (10.5, 30)):
        length = np.hypot(end[0] - 10, end[1] - 10)
        assert dark([(10, 10), end], 3).sum() == pytest.approx(3 * length + np.pi * 1.5 ** 2, abs=length / 2), end


def test_a_line_runs_through_the_points_of_its_series():
    cover = dark([(5, 30), (15, 10), (35, 20)], 2)
    for x, y in ((5, 30), (10, 20), (15, 10), (25, 15), (34, 19)):
        assert cover[y - 1:y + 1, x - 1:x + 1].max() > 0.7, (x, y)
        assert cover[y + 6:y + 9, x].max() == 0


def test_of_many_points_in_one_column_both_extremes_are_seen():
    y = np.full(2000, 20.0)
    y[700], y[701] = 5.0, 35.0
    cover = dark(list(zip(np.linspace(5, 35, 2000), y)), 1)
    column = cover[:, 15:17].max(axis=1)
    assert (column[6:34] > 0.4).all() and column[:4].max() == column[36:].max() == 0


def test_a_single_point_is_a_dot():
    cover = dark([(20, 20)], 4)
    assert cover.sum() == pytest.approx(np.pi * 2 ** 2, rel=0.15) and cover[19:21, 19:21].min() == 1


def test_what_lies_outside_the_picture_is_cut_off():
    for points in ([(-30, -30), (-20, -10)], [(-10, 20), (60, 20)], [(20, -50), (21, 90)], [(50, 50), (60, 60)]):
        dark(points, 3)
        stroke(blank(40, 40), points, 3, BLACK)
    assert (dark([(-10, 20), (60, 20)], 2)[19:21] == 1).all()


def test_axes_turn_values_into_pixels():
    """A panel 200 wide and 100 high with its corner at (100, 50); y runs upwards."""
    canvas = blank(200, 400)
    to_x, to_y = chart.axes(canvas, (100, 50, 200, 100), (0, 10), (0, 1), "title", [0, 5], [0.25])
    assert to_x([0, 5, 10]).tolist() == [100, 200, 300] and to_y([0, 0.25, 1]).tolist() == [150, 125, 50]
    assert (canvas[125, 110:190] == GRID).all() and (canvas[60:120, 200] == GRID).all()
    assert to_y([-1, 2]).tolist() == [150, 50]                                        # kept inside
    _, to_y = chart.axes(canvas, (100, 50, 200, 100), (0, 10), (0.01, 100), "title", [], [], log=True)
    assert to_y([0.01, 1, 10]).tolist() == [150, 100, 75]


def test_ticks_are_round_numbers():
    assert chart.nice_ticks(0, 2000, 5, whole=True) == [0, 500, 1000, 1500, 2000]
    assert chart.nice_ticks(0, 1, 5, whole=True) == [0, 1]
    assert chart.nice_ticks(0.31, 0.52) == [0.35, 0.4, 0.45, 0.5]
    assert chart.nice_ticks(0, 1e-4, 5) == pytest.approx([0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert chart.log_ticks(0.3, 3) == pytest.approx([0.5, 1, 2])
    assert chart.log_ticks(1e-4, 10) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])


@pytest.mark.parametrize("value, written", [(0, "0"), (0.25, "0.25"), (1500, "1500"), (1e-4, "1e-4"), (2e-5, "2e-5"),
                                            (2.5e-3, "2.5e-3"), (0.05, "0.05"), (1e7, "1e7")])
def test_numbers_are_short(value, written):
    assert chart.number(value) == written


def test_the_font_has_every_letter_that_is_written():
    used = set("".join([*taxonomy.NAMES, "training loss, logarithmic", "validation Dice", "learning rate",
                        "not validated", "mean", "epoch 0123456789 of 1.2e-5 best",
                        "Chest/c0, reference: of classes annotated", "prediction after epoch"]))
    assert used <= set(GLYPHS)
    assert set(map(chr, range(ord("A"), ord("Z") + 1))) | set(map(chr, range(ord("a"), ord("z") + 1))) <= set(GLYPHS)


def test_no_two_letters_look_alike():
    def drawn(character):
        canvas = blank(30, 30)
        canvas_module.text(canvas, 5, 22, character, BLACK)
        return canvas.tobytes()
    pictures = {c: drawn(c) for c in GLYPHS if c != " "}
    assert len(set(pictures.values())) == len(pictures)
    assert drawn("\u0416") == drawn("\u4e2d") not in pictures.values()  # a box stands for what the font lacks


def test_text_stands_where_it_is_put():
    """Capitals are 6 units of 2 pixels high above the baseline, with half a pen's width around; this word is 29 units
    long."""
    for align, left in (("left", 100), ("right", 100 - 58), ("centre", 100 - 29)):
        canvas = blank(60, 200)
        canvas_module.text(canvas, 100, 40, "HELLO", BLACK, 2.0, align=align)
        rows, columns = np.nonzero(canvas[..., 0] < 128)
        assert (rows.min(), rows.max()) == (27, 40)
        assert abs(columns.min() - left) <= 1 and abs(columns.max() - left - 58) <= 1


def test_a_png_holds_the_pixels_it_was_given(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    write_png(tmp_path / "a.png", rgb)
    assert (read_png(tmp_path / "a.png") == rgb).all()


# --------------------------------------------------------------------------------------------------------- progress.png

def test_each_class_has_a_line_of_its_colour_through_its_scores():
    """The Dice panel is 460 wide from x 555 and 730 high from y 110: half-way, 0.75 is at y 110 + 182.5, the mean 0.5
    at 475."""
    drawn = progress.progress_picture([record(e, liver=0.75, aorta=0.25) for e in range(1, 101)], ["liver", "aorta"],
                                      "run", 100)
    assert drawn.shape == (900, 1400, 3) and drawn.dtype == np.uint8
    for y, color in ((292, on_white(taxonomy.BY_NAME["liver"].color)), (475, INK),
                     (657, on_white(taxonomy.BY_NAME["aorta"].color))):
        assert np.abs(drawn[y, 700].astype(int) - color).max() < 32, y
    assert (drawn[350, 690:700] == 255).all()


def test_where_it_was_logged_each_class_has_a_line_through_its_probabilities():
    """That panel is 395 wide from x 85 and 230 high from y 390, from 0.01 to 1: 0.1 is in its middle, y 505."""
    logged = {"liver": {"probability": 0.1, "dice": 0.1}, "aorta": {"probability": 0.01, "dice": 0.0}}
    drawn = progress.progress_picture([{**record(e), "learning": logged} for e in range(1, 101)], ["liver", "aorta"],
                                      "run", 100)
    color = on_white(taxonomy.BY_NAME["liver"].color)
    assert np.abs(drawn[504:507, 250].astype(int) - color).max(1).min() < 60
    assert (drawn[473:500, 250] == 255).all()  # up to the grid line of 0.2 there is nothing
    without = progress.progress_picture([record(e) for e in range(1, 101)], ["liver", "aorta"], "run", 100)
    assert (without[504:507, 250] == 255).all()                                        # the loss has this place


def test_the_picture_says_which_epoch_and_score_was_best():
    """It differs in the title and the ring only where another epoch was best."""
    a, b = (progress.progress_picture([record(1, liver=0.5), record(2, liver=s), record(3, liver=0.5)], ["liver"],
                                      "run", 3)
            for s in (0.6, 0.4))
    assert (a[:60] != b[:60]).any()
    assert progress.best_record([record(1, liver=0.5), record(2, liver=0.6), record(3, liver=0.6)])["epoch"] == 2
    assert progress.best_record([record(1)]) is None


def test_names_stand_in_the_order_of_the_last_scores_and_those_not_measured_below(monkeypatch):
    written = []
    monkeypatch.setattr(progress, "text",
                        lambda picture, x, y, string, *more, **options: written.append((x, y, string)))
    progress.progress_picture([record(1, liver=0.1, aorta=0.9, spleen=0.8),
                               record(2, liver=0.3, aorta=0.2, spleen=0.8)],
                              ["spleen", "liver", "colon", "aorta"], "run", 2)
    labels = [(y, string) for x, y, string in written if 1050 < x < 1100]
    assert [string for _, string in sorted(labels)] == ["spleen", "mean", "liver", "aorta", "colon"]
    assert [string for x, _, string in written if x == 1376][1:] == ["0.800", "0.433", "0.300", "0.200", "-"]


@pytest.mark.slow
@pytest.mark.parametrize("records", [
    [], [record(1)], [record(1, liver=0.0)], [record(e, loss=0.7) for e in range(1, 4)],
    [record(1, loss=None), record(2, loss=2.0)], [{**record(1), "dice": {}, "mean_dice": None}],
    [record(1, loss=0.0, lr=0.0)], [record(e, loss=10.0 ** -e) for e in range(1, 90)],
    [record(1, loss=-1.0), record(2, loss=5.0)],
    [{**record(1), "learning": {"liver": {"probability": 0.0, "dice": 0.0}}}, record(2),
     {**record(3), "learning": {"liver": {"probability": 1.0, "dice": 1.0}}}]],
    ids=["none", "no validation", "one epoch", "level", "a loss missing", "nothing measured", "zeros", "steep",
         "negative", "probabilities 0 and 1"])
def test_any_log_can_be_drawn(records):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (["liver", "pancreatic_duct"], [*taxonomy.NAMES, *(f"new_{i}" for i in range(32))]):
            assert progress.progress_picture(records, classes, "a name longer than its place " * 3, 10).std() > 0


@pytest.mark.slow
def test_2000_epochs_of_32_classes_are_drawn():
    rng = np.random.default_rng(0)
    records = [record(e, 1 / e, 1e-4, **dict(zip(taxonomy.NAMES, rng.random(32)))) for e in range(1, 2001)]
    assert progress.progress_picture(records, taxonomy.NAMES, "run", 2000).std() > 0


def test_names_are_pushed_apart_as_little_as_needed():
    assert progress.spread([10, 50, 90], 20, 0, 100) == [10, 50, 90]
    assert progress.spread([50, 50, 50], 20, 0, 100) == [50, 70, 90]
    assert progress.spread([90, 95, 99], 20, 0, 100) == [60, 80, 100]


# ---------------------------------------------------------------------------------------------------------- metrics.csv

def test_the_table_has_a_row_per_epoch_and_a_column_per_class():
    text = report.metrics_csv([record(1, 1.5), record(2, None, aorta=0.25, liver=0.75)], ["liver", "spleen", "aorta"])
    assert text == ("epoch,step,loss,lr,seconds,mean_dice,dice_liver,dice_spleen,dice_aorta\n"
                    "1,2,1.5,0.0001,0.5,,,,\n"
                    "2,4,,0.0001,1.0,0.5,0.75,,0.25\n")


def test_a_line_that_a_killed_run_did_not_finish_is_no_row(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 2}\n{"epoch": 2, "st')
    assert report.read_metrics(tmp_path / "metrics.jsonl") == [{"epoch": 1, "step": 2}]


# ------------------------------------------------------------------------------------------------------------- overlays

def test_a_label_map_has_tumours_over_vessels_over_organs_and_the_likelier_of_a_kind():
    """Columns: nothing; liver; liver and spleen, which is likelier; liver with its vessel; with vessel and tumour."""
    names = ["spleen", "liver", "hepatic_vessel", "liver_tumor"]
    logits = torch.tensor([[-1.0, -1, 2, -1, -1], [-1, 3, 1, 3, 3], [-1, -1, -1, 0.1, 2], [-1, -1, 0, -2, 0.1]])
    logits = logits[:, None, None]
    merged = report.label_map(logits, names)
    assert merged.dtype == np.uint8 and merged.tolist() == [[[0, 6, 1, 15, 27]]]


def test_the_reference_is_merged_in_the_same_order_whatever_the_order_of_its_bits(tmp_path):
    bits = np.zeros((8, 8, 8), int)
    bits[:, :, :6] = 0b010                                                            # liver
    bits[:, :, 2:4] = 0b011                                                           # with a tumour in it
    bits[:, :, 7] = 0b100  # a class that the model does not have
    case = handmade(tmp_path / "c", "a", bits, ["liver_tumor", "liver", "spleen"])
    assert report.reference_map(case, ["liver", "liver_tumor"])[0, 0].tolist() == [6, 6, 27, 27, 6, 6, 0, 0]


def test_a_case_of_each_dataset_is_shown_before_a_second_of_any():
    cases = [Case(Path(), d, f"{d}/{i}", (), {}) for d, i in (("b", 2), ("b", 1), ("a", 3), ("a", 4))]
    assert [c.id for c in report.shown_cases(cases, 3)] == ["a/3", "b/1", "a/4"]
    assert report.shown_cases(cases, 0) == [] and len(report.shown_cases(cases, 9)) == 4


class Bright:
    """A stand-in for a network: says "liver" where the image is bright, "spleen" nowhere."""

    classes = ("spleen", "liver")

    def __call__(self, image):
        return torch.cat([-torch.ones_like(image), image - 0.5], dim=1)

    def eval(self): pass

    def train(self): pass


def test_validation_hands_on_the_predicted_label_map_of_the_cases_that_are_shown(tmp_path):
    """Two boxes of livers, one near the feet and one near the head, in seven slabs of windows; and nothing of the
    other case."""
    boxes = np.zeros((16, 16, 30), int)
    boxes[2:6, 3:8, 1:4] = boxes[9:12, 8:15, 20:28] = 1
    cases = [handmade(tmp_path / name, "a", boxes, ["liver"], image=np.where(boxes, 250, -175)) for name in ("x", "y")]
    drawn = []
    config = TrainConfig(patch_size=(8, 8, 8))
    place = (0, 1, torch.device("cpu"))
    counts = validate(Bright(), cases, config, place, shown=[cases[1]], draw=lambda *given: drawn.append(given))
    assert np.array_equal(counts, validate(Bright(), cases, config, place))
    assert mean_dice(counts, cases, Bright().classes)["liver"] == 1
    [(case, predicted)] = drawn
    assert case is cases[1] and predicted.dtype == np.uint8 and (predicted == 6 * boxes).all()


def test_the_reference_stands_above_and_the_prediction_below(tmp_path):
    """16 of 24 voxels of the axial slice, which is 300 pixels wide, are liver; half as many are called spleen below."""
    box = np.zeros((24, 24, 24), int)
    box[4:20, 4:20, 4:20] = 1
    case = handmade(tmp_path / "c", "a", box, ["liver"])
    predicted = np.zeros(box.shape, np.uint8)
    predicted[8:16, 8:16, 8:16] = taxonomy.BY_NAME["spleen"].index
    drawn = report.overlay_picture(case, predicted, ["liver", "spleen"], 2.0, (-175, 250), 7)

    def outline(name):
        color = np.array(taxonomy.BY_NAME[name].color, np.uint8)
        found = (drawn == color).all(axis=-1)
        found[-60:] = False                                                           # the legend
        rows, columns = np.nonzero(found[:, :370])
        return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    liver, spleen = outline("liver"), outline("spleen")
    assert liver[1] - liver[0] == pytest.approx(200, abs=4) and liver[3] - liver[2] == pytest.approx(200, abs=4)
    assert spleen[1] - spleen[0] == pytest.approx(100, abs=4) and spleen[3] - spleen[2] == pytest.approx(100, abs=4)
    assert liver[1] + 100 < spleen[0] and spleen[2] - liver[2] == pytest.approx(50, abs=3)


# ------------------------------------------------------------------------------------------------------------- the card

SETTINGS = {"ema": 0.0, "backbone": "unet", "width": 0, "lpg": "shared", "encoding": "v3",
            "classes": ["liver", "aorta"], "hu_window": [-175, 250], "spacing": 1.5, "patch_size": [96, 96, 96],
            "epochs": 9, "batch_size": 2, "accumulate": 3, "seed": 4, "amp": "bf16"}
TRAIN = [Case(Path(), "A", "A/1", ("liver", "spleen"), {"liver": 100, "spleen": 0}),
         Case(Path(), "B", "B/1", ("aorta",), {"aorta": 7}),
         Case(Path(), "A", "A/2", ("liver", "spleen"), {"liver": 0, "spleen": 0})]
VALIDATION = [Case(Path(), "A", "A/3", ("liver", "spleen"), {"liver": 50, "spleen": 0})]


def card(records, train_cases=TRAIN, val_cases=VALIDATION, **about):
    about = {"command": "python -m uniseg.train --data-root d --resume", "processes": 2, **about}
    return model_card.model_card("run7", SETTINGS, records, about, 1.234, torch.device("cpu"), train_cases, val_cases)


def rows(text):
    """{first cell: other cells} of all tables."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
             if line.startswith("|")]
    return {first: others for first, *others in cells}


def test_the_card_counts_cases_and_voxels():
    table = rows(card([record(1), record(3, liver=0.5), record(6, liver=0.75), record(9, liver=0.6)]))
    assert table["A"] == ["2", "1", "liver, spleen (not trained)"] and table["B"] == ["1", "0", "aorta"]
    assert table["all"][:2] == ["3", "1"]
    assert table["class"][-2:] == ["Dice, best (epoch 6)", "Dice, last (epoch 9)"]
    assert table["liver"] == ["6", "2", "1", "100", "1", "0.750", "0.600"]
    assert table["aorta"] == ["8", "1", "1", "7", "0", "", ""]
    assert table["mean"][-2:] == ["0.750", "0.600"]
    assert "9 of 9 epochs, 18 steps of 12 patches, from random weights, seed 4, precision bf16" in table["training"]
    assert table["network"] == ["unet, the paper's width, shared LPG, embeddings v3, 1.23 M parameters"]


def test_the_card_says_what_its_scores_are_worth():
    text = card([record(3, liver=0.5)])
    assert "not a medical device" in text and "These cases also chose `best.pt`" in text and "run7/best.pt" in text
    assert "Annotated but not trained (left out, or no voxel in a training case): spleen." in text
    assert "Trained but not measured, since no validation case has them: aorta." in text
    assert "by heart" not in text and "by heart" in card([record(3, liver=0.5)], TRAIN, TRAIN[:1])


def test_without_a_validation_the_card_has_no_scores():
    for records in ([], [record(1)], [{**record(1), "dice": {}, "mean_dice": None}]):
        text = card(records, val_cases=[])
        assert "Nothing was measured" in text and "Dice," not in text and "best.pt" not in text
        assert "run7/last.pt" in text


def test_the_card_repeats_the_command_without_resume_and_names_the_weights_it_began_with():
    text = card([record(1)], init={"file": "start.pt", "sha256": "abc"})
    assert "\npython -m uniseg.train --data-root d\n" in text and "from start.pt (sha256 abc)" in text


# ---------------------------------------------------------------------------------------------------------- a whole run

@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a run of 10 epochs, named as those that are compared with it: the name stands in its report. Not
    to be written to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(flags(out)) == 0
    return out


OVERLAYS = {f"epoch_{epoch:04d}_{case}.png" for epoch in (5, 10) for case in ("Abdomen_a1", "Chest_c0")}


def test_a_run_leaves_pictures_that_can_be_decoded(finished):
    assert {p.name for p in (finished / "overlays").iterdir()} == OVERLAYS
    assert read_png(finished / "progress.png").shape == (900, 1400, 3)
    for name in OVERLAYS:
        assert read_png(finished / "overlays" / name).std() > 10


def test_the_table_of_a_run_is_its_log(finished):
    with open(finished / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    classes = json.loads((finished / "config.json").read_text())["classes"]
    assert list(table[0]) == ["epoch", "step", "loss", "lr", "seconds", "mean_dice", *(f"dice_{c}" for c in classes)]
    assert len(table) == 10
    for row, logged in zip(table, metrics(finished)):
        assert all(float(row[key]) == logged[key] for key in ("epoch", "step", "loss", "lr", "seconds"))
        assert {c: float(row[f"dice_{c}"]) for c in classes if row[f"dice_{c}"]} == logged.get("dice", {})
        assert row["mean_dice"] == str(logged.get("mean_dice", ""))


def test_the_numbers_of_the_card_are_those_of_the_log(finished):
    text, logged = (finished / "MODEL_CARD.md").read_text(), metrics(finished)
    table, config = rows(text), json.loads((finished / "config.json").read_text())
    best = max((logged[4], logged[9]), key=lambda r: r["mean_dice"])
    for name in config["classes"]:
        assert table[name][-2:] == [f"{r['dice'][name]:.3f}" if name in r["dice"] else "" for r in (best, logged[9])]
    assert table["mean"][-2:] == [f"{r['mean_dice']:.3f}" for r in (best, logged[9])]
    assert table["all"][:2] == [str(len(config["cases"])), str(len(config["validation"]))]
    assert table["Vessels"] == ["1", "0", "hepatic_vessel, hepatic_vessel_tumor"]
    assert re.search(r"10 of 10 epochs, 20 steps of 2 patches", table["training"][0])
    assert "one process" in table["machine"][0]
    assert f"--out {finished}" in text and "colon_tumor" in text.split("not trained")[1]


@pytest.mark.slow
def test_r1_a_run_that_was_stopped_and_resumed_leaves_the_same_report(flags, finished, tmp_path, monkeypatch):
    """Stopped in epoch 7, after the validation of epoch 5. Seconds apart, the table is the same; pictures and card
    wholly."""
    out, step, done = tmp_path / "run", training_step, []

    def counted(*arguments):
        done.append(True)
        if len(done) == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)
    monkeypatch.setattr(train, "training_step", counted)
    assert main(flags(out)) == 143
    assert len((out / "metrics.csv").read_text().splitlines()) == 7
    assert "5 of 10 epochs" in (out / "MODEL_CARD.md").read_text()
    assert main(flags(out, "--resume")) == 0
    tables = [[{k: v for k, v in row.items() if k != "seconds"}
               for row in csv.DictReader((folder / "metrics.csv").open())]
              for folder in (out, finished)]
    assert tables[0] == tables[1]
    assert (out / "MODEL_CARD.md").read_text().replace(str(out), "OUT") == \
        (finished / "MODEL_CARD.md").read_text().replace(str(finished), "OUT")
    for name in ("progress.png", *(f"overlays/{name}" for name in OVERLAYS)):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.slow
def test_how_many_cases_are_shown_is_an_option(flags, tmp_path):
    assert main(flags(tmp_path / "none", "--overlays", 0, "--epochs", 1)) == 0
    assert not (tmp_path / "none" / "overlays").exists() and (tmp_path / "none" / "progress.png").exists()
    assert main(flags(tmp_path / "one", "--overlays", 1, "--epochs", 1)) == 0
    assert [p.name for p in (tmp_path / "one" / "overlays").iterdir()] == ["epoch_0001_Abdomen_a1.png"]


def test_without_validation_there_is_a_report_all_the_same(flags, tmp_path):
    assert main(flags(tmp_path / "run", "--folds", 1, "--fold", 0, "--epochs", 1)) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.json", "metrics.jsonl", "last.pt", "metrics.csv",
                                                              "progress.png", "MODEL_CARD.md"}
    assert "Nothing was measured" in (tmp_path / "run" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_a_warning_and_the_run_goes_on(flags, finished, tmp_path, capsys):
    out = tmp_path / "run"
    (out / "progress.png").mkdir(parents=True)
    (out / "metrics.csv").mkdir()
    (out / "overlays").touch()
    assert main(flags(out)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 10 + 1 + 3 + 4  # table: 10 epochs and the end; pictures: twice and the end; overlays: 4
    assert all(line.startswith("uniseg: warning: ") and line.endswith("training goes on.") for line in said)
    assert any(str(out / "progress.png") in line for line in said)
    assert any(str(out / "overlays") in line for line in said)
    assert [r["loss"] for r in metrics(out)] == [r["loss"] for r in metrics(finished)]
    assert (out / "MODEL_CARD.md").is_file() and (out / "last.pt").is_file()


@pytest.mark.slow
def test_a_fault_in_the_drawing_is_a_warning_too(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "progress_picture", lambda *_: {}["no such key"])
    assert main(flags(tmp_path / "run", "--epochs", 1)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == ["uniseg: warning: KeyError('no such key') The report is incomplete; training goes on."]
    assert (tmp_path / "run" / "MODEL_CARD.md").is_file()
