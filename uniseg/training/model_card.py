"""MODEL_CARD.md of a training run: what the model is, what it was trained on, how it scored, what was not measured.

Every number comes from config.json, metrics.jsonl and the cases. report.py writes the file: read that first.
"""

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import taxonomy
from ..datasets.cases import Case
from ..machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .progress import best_record

Record = dict[str, Any]             # one line of metrics.jsonl

STARTS = {"init": "", "extend": ", extended by new classes (extension.json: old classes before and after)"}


def model_card(name: str, settings: dict[str, Any], records: Sequence[Record], about: dict[str, Any], millions: float,
               device: torch.device, train_cases: Sequence[Case], val_cases: Sequence[Case]) -> str:
    """The text of the card.

    name:     of the run; settings: of config.json; records: of metrics.jsonl
    about:    what checkpoints say about the run, with the number of its "processes"
    millions: of parameters
    """
    classes, best = settings["classes"], best_record(records)
    return f"""# Model card: {name}

Written by uniseg {__version__} from `config.json`, `metrics.jsonl` and the cases of the run, and overwritten at each
validation: copy it before you add to it. **{NOT_A_MEDICAL_DEVICE}**

## What it is

{facts(settings, records, about, millions, device)}

```
{about["command"].replace(" --resume", "")}
```

## Data

{data_table(classes, train_cases, val_cases)}

Licence and origin of the data, scanners and patients are not known to the program: add them to your copy.

## Scores

{scores_table(classes, records, train_cases, val_cases)}

{how_measured(settings, records, train_cases, val_cases)}

## Use

```
python -m uniseg.infer ct.nii.gz --weights {name}/{"best.pt" if best else "last.pt"}
```

## What it cannot do, and what is not known

{limits(classes, records, train_cases, val_cases)}
"""


def facts(settings: dict[str, Any], records: Sequence[Record], about: dict[str, Any], millions: float,
          device: torch.device) -> str:
    """A table of network, classes, input, training, machine and versions."""
    s = settings
    patches = s["batch_size"] * s["accumulate"] * about["processes"]
    epoch, step = (records[-1]["epoch"], records[-1]["step"]) if records else (0, 0)
    width = f"width {s['width']}" if s["width"] else "the paper's width"
    start = next((f"{about[how]['file']} (sha256 {about[how]['sha256']}){more}" for how, more in STARTS.items()
                  if how in about), "random weights")
    heads = f"{s['lpg']} LPG, embeddings {s['encoding']}"
    if s.get("head") == "softmax":
        heads = "softmax (a baseline of Section 5)"
    processes = f"{about['processes']} processes" if about["processes"] > 1 else "one process"
    rows = [("network", f"{s['backbone']}, {width}, {heads}, {millions:.2f} M parameters"),
            ("classes", f"{len(s['classes'])}: {', '.join(s['classes'])}"),
            ("input", f"CT in HU, clipped to {s['hu_window'][0]:g} ... {s['hu_window'][1]:g}, at {s['spacing']:g} mm, "
                      f"windows of {' x '.join(map(str, s['patch_size']))} voxels"),
            ("training", f"{epoch} of {s['epochs']} epochs, {step} steps of {patches} patches, "
                         f"from {start}, seed {s['seed']}, precision {'float32' if s['amp'] == 'off' else s['amp']}"
                         f"{', TF32 in products' if device.type == 'cuda' else ''}"),
            ("machine", f"{processor(device)}, {processes}"),
            ("versions", f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def processor(device: torch.device) -> str:
    """The name of the GPU, or the name that the system gives the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def data_table(classes: Sequence[str], train_cases: Sequence[Case], val_cases: Sequence[Case]) -> str:
    """A row per dataset: the number of its cases, and the classes that it annotates."""
    lines = ["| dataset | training cases | validation cases | annotates |", "| --- | --- | --- | --- |"]
    for dataset in sorted({c.dataset for c in [*train_cases, *val_cases]}):
        train, val = ([c for c in cases if c.dataset == dataset] for cases in (train_cases, val_cases))
        named = {name for c in train + val for name in c.names}
        annotated = [n for n in classes if n in named] + [f"{n} (not trained)" for n in sorted(named - set(classes))]
        lines.append(f"| {dataset} | {len(train)} | {len(val)} | {', '.join(annotated)} |")
    return "\n".join([*lines, f"| all | {len(train_cases)} | {len(val_cases)} | |"])


def cases_with(name: str, cases: Sequence[Case]) -> list[Case]:
    """The cases that annotate a class and have voxels of it."""
    return [c for c in cases if name in c.names and c.voxels.get(name)]


def scores_table(classes: Sequence[str], records: Sequence[Record], train_cases: Sequence[Case],
                 val_cases: Sequence[Case]) -> str:
    """A row per class: its training and validation cases, and its Dice at the best and at the last validation."""
    both = ("best", best_record(records)), ("last", last_validation(records))
    validations = [(title, record) for title, record in both if record]
    heads: list[object] = ["class", "label", "training cases that annotate it", "that have it", "voxels in these",
                           "validation cases that have it",
                           *(f"Dice, {title} (epoch {record['epoch']})" for title, record in validations)]
    rows: list[list[object]] = []
    for name, value in taxonomy.label_values(classes).items():
        having = cases_with(name, train_cases)
        rows.append([name, value, sum(name in c.names for c in train_cases), len(having),
                     sum(c.voxels[name] for c in having), len(cases_with(name, val_cases)),
                     *(rounded(record["dice"].get(name)) for _, record in validations)])
    rows.append(["mean", "", "", "", "", "", *(rounded(record["mean_dice"]) for _, record in validations)])
    table: list[list[object]] = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table)


def last_validation(records: Sequence[Record]) -> Record | None:
    """The record of the last epoch that measured a class, or None."""
    return next((r for r in reversed(records) if r.get("dice")), None)


def rounded(score: float | None) -> str:
    """A Dice as text, "" for None."""
    return "" if score is None else f"{score:.3f}"


def how_measured(settings: dict[str, Any], records: Sequence[Record], train_cases: Sequence[Case],
                 val_cases: Sequence[Case]) -> str:
    """How the scores were measured, and what they say nothing about."""
    if last_validation(records) is None:
        return "Nothing was measured: no validation has taken place."
    text = ("Mean Dice over the validation cases that have the class, on the model's grid, at probability one half, "
            "without post-processing.\n**These cases also chose `best.pt`: its scores are those of a development set, "
            "too good for new cases.**")
    if settings["ema"]:
        text += (" The scores are those of the averaged weights (`--ema`); `last.pt` segments with the weights of the "
                 "last step.")
    if shared := {c.id for c in train_cases} & {c.id for c in val_cases}:
        text += (f"\n**{len(shared)} of {len(val_cases)} validation cases are training cases: their scores show what "
                 "was learned by heart.**")
    return text


def limits(classes: Sequence[str], records: Sequence[Record], train_cases: Sequence[Case],
           val_cases: Sequence[Case]) -> str:
    """What the model has no class for, and what was not measured."""
    dropped = sorted({name for c in [*train_cases, *val_cases] for name in c.names} - set(classes))
    unknown = [n for n in taxonomy.NAMES if n not in classes]
    measured = (last_validation(records) or {"dice": {}})["dice"]
    unmeasured = [n for n in classes if n not in measured]
    lines = [f"- Classes of Table 2 that it does not offer: {', '.join(unknown) or 'none'}."]
    if dropped:
        lines.append(f"- Annotated but not trained (left out, or no voxel in a training case): {', '.join(dropped)}.")
    if unmeasured:
        lines.append(f"- Trained but not measured, since no validation case has them: {', '.join(unmeasured)}.")
    lines.append("- Not measured: distances of surfaces, detection of lesions, false positives where a class is "
                 "absent, other\n  hospitals, scanners, phases and ages.")
    return "\n".join(lines)
