"""What a training run leaves for its readers: metrics.csv, progress.png, overlays of validation cases, MODEL_CARD.md.

Every time, all of it is made again from config.json, metrics.jsonl and the cases, so that a resumed run ends with the
same files as one that was never stopped. Nothing here changes what is trained. A file that cannot be written is a
warning.
Read run_folder.py first; progress.py draws the curves, model_card.py writes the card.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import taxonomy
from ..datasets.cases import Case
from ..imaging.bits import get_bit
from ..imaging.merging import merge_masks, merging_groups, paint_where_surer
from ..machine.console import warn
from ..machine.files import atomic_write
from ..machine.json_files import read_json
from ..pictures.canvas import write_png
from ..pictures.preview import comparison
from .model_card import model_card
from .progress import progress_picture
from .recipe import TrainConfig


def write(out: Path, about: dict[str, Any], network: torch.nn.Module, device: torch.device, train_cases: Sequence[Case],
          val_cases: Sequence[Case], everything: bool) -> None:
    """metrics.csv, and with `everything` progress.png and MODEL_CARD.md, of the run in the folder `out`.

    about: what checkpoints say about the run, with the number of its "processes"
    """
    with only_warn():
        settings, records = read_json(out / "config.json"), read_metrics(out / "metrics.jsonl")
        name = out.resolve().name
        with only_warn():
            save_text(out / "metrics.csv", metrics_csv(records, settings["classes"]))
        if everything:
            with only_warn():
                picture = progress_picture(records, settings["classes"], name, settings["epochs"])
                write_png(out / "progress.png", picture)
            with only_warn():
                millions = sum(p.numel() for p in network.parameters()) / 1e6
                card = model_card(name, settings, records, about, millions, device, train_cases, val_cases)
                save_text(out / "MODEL_CARD.md", card)


@contextlib.contextmanager
def only_warn() -> Iterator[None]:
    """Turn every exception of the block into a warning: no training ends because its report cannot be written."""
    try:
        yield
    except Exception as error:
        what = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
        warn(f"{' '.join(what.split())} The report is incomplete; training goes on.")


def save_text(path: Path, content: str) -> None:
    """Write a text file; an interrupted write leaves the former file."""
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- metrics.csv

def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first, without a line that a killed run did not finish."""
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def metrics_csv(records: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
    """One row per epoch and a column dice_<class> per class, in the model's order; empty where nothing was measured."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    plain = ["epoch", "step", "loss", "lr", "seconds", "mean_dice"]
    table.writerow(plain + [f"dice_{name}" for name in classes])
    for record in records:
        dice = record.get("dice", {})
        table.writerow([record.get(key) for key in plain] + [dice.get(name) for name in classes])
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------- overlays

def shown_cases(cases: Sequence[Case], most: int) -> list[Case]:
    """The cases that each validation draws, at most `most`: by id, the first of every dataset before any second one."""
    earlier: dict[str, int] = {}                               # dataset: how many of its cases came before
    ranked = []
    for case in sorted(cases, key=lambda c: c.id):
        ranked.append((earlier.get(case.dataset, 0), case.id, case))
        earlier[case.dataset] = earlier.get(case.dataset, 0) + 1
    return [case for _, _, case in sorted(ranked, key=lambda r: r[:2])[:most]]


def label_map(logits: torch.Tensor, classes: Sequence[str]) -> np.ndarray:
    """(K, D, H, dz) logits -> (D, H, dz) uint8 label map: within a kind, the class with the largest logit above 0 wins.

    Organs come first, then vessels, then tumours (Section 4.1.2), on the model's grid and without post-processing.
    """
    values, merged = taxonomy.label_values(classes), np.zeros(logits.shape[1:], np.uint8)
    for group in merging_groups(classes):
        surest = np.zeros(merged.shape, np.float32)
        for k in group:
            paint_where_surer(merged, surest, values[classes[k]], logits[k].numpy())
    return merged


def reference_map(case: Case, classes: Sequence[str]) -> np.ndarray:
    """(D, H, W) uint8 label map of a case's own labels, merged in the same order, without classes the model lacks."""
    values, bits = taxonomy.label_values(classes), np.asarray(case.bits)
    known = [name for name in case.names if name in values]
    return merge_masks(known, [values[name] for name in known],
                       lambda k: get_bit(bits, case.names.index(known[k])), bits.shape)


def write_overlay(out: Path, config: TrainConfig, classes: Sequence[str], epoch: int, case: Case,
                  predicted: np.ndarray) -> None:
    """overlays/epoch_<epoch>_<case>.png: three planes of the CT with the reference's masks, below with the predictions.

    predicted: (D, H, W) uint8 label map
    """
    with only_warn():
        name = re.sub(r"[^\w.-]", "_", case.id)
        (out / "overlays").mkdir(exist_ok=True)
        write_png(out / "overlays" / f"epoch_{epoch:04d}_{name}.png",
                  overlay_picture(case, predicted, classes, config.spacing, config.hu_window, epoch))


def overlay_picture(case: Case, predicted: np.ndarray, classes: Sequence[str], spacing_mm: float,
                    hu_window: tuple[float, float], epoch: int) -> np.ndarray:
    """The reference above, the prediction below, with the names of the classes: (rows, columns, 3) uint8 RGB.

    Both are drawn through the slices that show most of the reference. predicted: (D, H, W) uint8 label map
    """
    reference, affine = reference_map(case, classes), np.diag([spacing_mm] * 3 + [1.0])
    annotated = sum(name in case.names for name in classes)
    rows = ((f"Reference: {annotated} of {len(classes)} classes annotated", reference),
            (f"Prediction after epoch {epoch}: {len(classes)} classes", predicted))
    return comparison(case.image, rows, affine, taxonomy.label_values(classes), case.id, hu_window=hu_window)
