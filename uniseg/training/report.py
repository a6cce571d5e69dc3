"""What a training run leaves to be read: metrics.csv, progress.png, overlays of validation cases, MODEL_CARD.md.

All of it is made from config.json, metrics.jsonl and the cases, anew each time: a resumed run ends with the same files as
one that was never stopped. Nothing here changes what is trained, and a file that cannot be written is a warning.
Read run_folder.py first; progress.py draws the curves, model_card.py writes the card.
"""

import contextlib
import csv
import io
import json
import re

import numpy as np
import torch

from .. import taxonomy
from ..imaging.bits import get_bit
from ..machine.console import warn
from ..machine.files import atomic_write
from ..pictures.canvas import blank, text, write_png
from ..pictures.slices import class_color, middle, overlay
from .model_card import model_card
from .progress import progress_picture

PLANE = 300                       # pixels of a side of each plane of an overlay
CAPTION, LEGEND = 28, 230         # rows above the planes, columns beside them


def write(out, about, network, device, train_cases, val_cases, everything):
    """metrics.csv, and with `everything` progress.png and MODEL_CARD.md, of the run in folder `out`."""
    with only_warn():
        settings, records = json.loads((out / "config.json").read_text()), read_metrics(out / "metrics.jsonl")
        name = out.resolve().name
        with only_warn():
            save_text(out / "metrics.csv", metrics_csv(records, settings["classes"]))
        if everything:
            with only_warn():
                write_png(out / "progress.png", progress_picture(records, settings["classes"], name, settings["epochs"]))
            with only_warn():
                millions = sum(p.numel() for p in network.parameters()) / 1e6
                card = model_card(name, settings, records, about, millions, device, train_cases, val_cases)
                save_text(out / "MODEL_CARD.md", card)


@contextlib.contextmanager
def only_warn():
    """Whatever goes wrong with a report, a full disk or a fault of ours, the training is worth more."""
    try:
        yield
    except Exception as error:
        what = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
        warn(f"{' '.join(what.split())} The report is incomplete; training goes on.")


def save_text(path, content):
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- metrics.csv

def read_metrics(path):
    """The records of a metrics.jsonl, oldest first; a line that a killed run did not finish is left out."""
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def metrics_csv(records, classes):
    """One row per epoch, a column dice_<class> per class in the model's order, empty where nothing was measured."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    plain = ["epoch", "step", "loss", "lr", "seconds", "mean_dice"]
    table.writerow(plain + [f"dice_{name}" for name in classes])
    for record in records:
        dice = record.get("dice", {})
        table.writerow([record.get(key) for key in plain] + [dice.get(name) for name in classes])
    return out.getvalue()


# ----------------------------------------------------------------------------------------------------------------- overlays

def shown_cases(cases, most):
    """The cases drawn at each validation, at most `most`: in order of id, the first of each dataset before any second."""
    places = {}                                                # dataset -> how many of it came before
    ranked = []
    for case in sorted(cases, key=lambda c: c.id):
        places[case.dataset] = places.get(case.dataset, -1) + 1
        ranked.append((places[case.dataset], case.id, case))
    return [case for _, _, case in sorted(ranked, key=lambda r: r[:2])[:most]]


def label_map(logits, classes):
    """(K, D, H, dz) logits -> (D, H, dz) uint8: organs, then vessels, then tumours; within a kind the largest logit above 0.

    The rule of Section 4.1.2 on the model's grid, without post-processing.
    """
    values, merged = taxonomy.label_values(classes), np.zeros(logits.shape[1:], np.uint8)
    for kind in taxonomy.MERGING_ORDER:
        best = torch.zeros(logits.shape[1:])
        for k, name in enumerate(classes):
            if taxonomy.kind_of(name) == kind:
                merged[(logits[k] > best).numpy()] = values[name]
                best = torch.maximum(best, logits[k])
    return merged


def reference_map(case, classes):
    """(D, H, W) uint8 of a case's own labels, merged in the same order; classes the model does not have are left out."""
    values, bits = taxonomy.label_values(classes), np.asarray(case.bits)
    merged = np.zeros(bits.shape, np.uint8)
    for kind in taxonomy.MERGING_ORDER:
        for k, name in enumerate(case.names):
            if name in values and taxonomy.kind_of(name) == kind:
                merged[get_bit(bits, k)] = values[name]
    return merged


def write_overlay(out, config, classes, epoch, case, predicted):
    """overlays/epoch_<epoch>_<case>.png: three planes of the CT with the reference's masks, and below with the predicted ones.

    predicted: (D, H, W) uint8 of `label_map`
    """
    with only_warn():
        name = re.sub(r"[^\w.-]", "_", case.id)
        (out / "overlays").mkdir(exist_ok=True)
        write_png(out / "overlays" / f"epoch_{epoch:04d}_{name}.png",
                  overlay_picture(case, predicted, classes, config.spacing, config.hu_window, epoch))


def overlay_picture(case, predicted, classes, spacing_mm, hu_window, epoch):
    """Reference above, prediction below, both through the middle of the reference; names of the classes beside: uint8 RGB."""
    reference, affine = reference_map(case, classes), np.diag([spacing_mm] * 3 + [1.0])
    annotated = sum(name in case.names for name in classes)
    picture = blank(2 * (CAPTION + PLANE), 3 * PLANE + LEGEND, (0, 0, 0))
    for row, (labels, title) in enumerate((
            (reference, f"{case.id[:40]}, reference: {annotated} of {len(classes)} classes annotated"),
            (predicted, f"prediction after epoch {epoch}: {len(classes)} classes"))):
        top = row * (CAPTION + PLANE)
        text(picture, 8, top + 20, title, (255, 255, 255), 2.0)
        planes = overlay(case.image, labels, affine, middle(reference), hu_window, PLANE)
        picture[top + CAPTION:top + CAPTION + PLANE, :3 * PLANE] = planes
    found = np.bincount(reference.ravel(), minlength=256) + np.bincount(predicted.ravel(), minlength=256)
    present = [(n, v) for n, v in taxonomy.label_values(classes).items() if found[v]]
    pitch = min(24.0, len(picture) / (len(present) + 1))
    for i, (name, value) in enumerate(present):
        text(picture, 3 * PLANE + 14, (i + 1) * pitch, name.replace("_", " "), class_color(value), min(1.75, pitch / 12))
    return picture.round().astype(np.uint8) & 0xFC                 # 64 shades: a third less in the file
