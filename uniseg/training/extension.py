"""An extension by new classes, on the command's side: its options, and extension.json (Sections 5.1.3 and 5.4).

What an extension learns, and from which targets, is in continual.py: read that first.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..baselines import Softmax
from ..continual import Extension
from ..imaging.preprocessing import Preprocessing
from ..machine.console import say
from ..model import ModelConfig, build
from ..paper import complexity
from . import report
from .learner import Learner
from .network import Network
from .objective import Objective
from .recipe import TrainConfig
from .run import Run
from .run_folder import write_json
from .validation import mean_dice, validate

RECIPE = {"epochs": 100, "warmup_epochs": 0, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-5}       # Section 5.1.3
NETWORK = ("backbone", "width", "lpg", "lpg_hidden", "encoding", "head")       # options that an extension cannot change
PREPROCESSING = ("spacing", "hu_window", "antialias", "pad", "input_windows")


def options(content: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the command's options for the extension of a checkpoint.

    They are the recipe of Section 5.1.3, and the network and the preprocessing of the checkpoint's content.
    """
    config, pre = ModelConfig.of(content["network"]), Preprocessing.from_dict(content["preprocessing"])
    low, high = pre.hu_window
    windows = tuple(round(low + end * (high - low), 3) for window in config.input_windows for end in window)
    return {**RECIPE, **{name: getattr(config, name) for name in NETWORK}, "spacing": pre.spacing_mm[0],
            "hu_window": pre.hu_window, "antialias": pre.antialias, "pad": pre.pad, "input_windows": windows,
            "patch_size": pre.window}


def refuse_another_network(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Raises ValueError where the options ask for another network or grid than that of the checkpoint."""
    defaults = options(content)
    for name in (*NETWORK, *PREPROCESSING):
        given = tuple(value) if isinstance(value := getattr(args, name), list) else value
        if given != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')}: {args.extend} has {defaults[name]}, which --extend keeps. "
                             "Leave the option out.")
    if len(set(content["preprocessing"]["spacing_mm"])) > 1:
        raise ValueError(f"{args.extend}: its grid is not isotropic. Extend a checkpoint of uniseg.train.")


def smaller_patches(config: TrainConfig, content: dict[str, Any] | None) -> str:
    """A warning where the patches of an extension are smaller than those of its checkpoint, else "".

    content: of the checkpoint of --extend, or None
    """
    window = Preprocessing.from_dict(content["preprocessing"]).window if content else (0, 0, 0)
    if all(new >= old for new, old in zip(config.patch_size, window)):
        return ""
    new, old = (" ".join(map(str, size)) for size in (config.patch_size, window))
    return (f"--patch-size {new}: smaller than the window {old} of the checkpoint, whose old classes then get worse. "
            "Leave the option out.")


def kept_of(content: dict[str, Any] | None) -> dict[str, Any]:
    """What an extended checkpoint says as the old one does: which old classes are not offered, and how it is used.

    content: of the checkpoint of --extend, or None
    """
    about = content["about"] if content else {}
    return {name: about[name] for name in ("experimental", "in_pieces", "second_view") if name in about}


def end_of_extension(args: argparse.Namespace, run: Run, learner: Learner, objective: Objective) -> None:
    """Write and print extension.json: old classes before and after, new ones after, and what a class costs.

    Every rank calls it: they validate the old network together.
    """
    assert isinstance(objective, (Extension, Softmax)) and objective.teacher is not None
    before = validate(objective.teacher, run.val_cases, run.config, run.process)
    if run.process.rank > 0 or before is None:
        return
    after = report.read_metrics(run.out / "metrics.jsonl")[-1].get("dice", {})
    table = summary(args.old["network"]["classes"], learner.network,
                    mean_dice(before, run.val_cases, objective.teacher.classes), after, run.config.patch_size)
    write_json(run.out / "extension.json",
               {"checkpoint": args.extend.name, "cases": [case.id for case in run.val_cases], **table})
    for line in lines(table):
        say(line, sys.stderr)


def cost(network: Network, patch_size: Sequence[int]) -> dict[str, int]:
    """What one more class adds to a network, Section 5.4: {"parameters", "flops", "decoder_flops"}.

    A multiply-add counts as two FLOPs. decoder_flops are those of the decoder on one patch (D, H, W): a method that
    adds a decoder per class adds them.
    """
    with torch.device("meta"):
        one = build({**network.describe(), "classes": ["one"], "head": "class-specific"})
    decoder = complexity.count(one, patch_size)["decoder"].flops
    if network.config.head == "softmax":                            # one row of the output layer, at every voxel
        channels = one.backbone.decoder_channels
        return {"parameters": channels + 1, "flops": (2 * channels + 1) * math.prod(patch_size),
                "decoder_flops": decoder}
    mlp = list(one.lpg.parameters()) if network.config.lpg == "independent" else []
    flops = sum(2 * p.numel() if p.ndim == 2 else p.numel() for p in mlp)
    return {"parameters": sum(p.numel() for p in mlp), "flops": flops, "decoder_flops": decoder}


def summary(old: Sequence[str], network: Network, before: dict[str, float], after: dict[str, float],
            patch_size: Sequence[int]) -> dict[str, Any]:
    """The content of extension.json: Dice of every class before and after, and the cost of a class.

    old: names of the old classes; network: the extended one, which works on patches (D, H, W)
    before, after: {class: mean Dice on the validation cases that have it} of the old and of the extended network
    """
    table: dict[str, Any] = {name: {"new": name not in old, "before": before.get(name), "after": after.get(name)}
                             for name in network.classes}
    compared = [row for row in table.values() if None not in (row["before"], row["after"])]
    new = [row["after"] for row in table.values() if row["new"] and row["after"] is not None]
    return {"classes": table, "cost_of_a_class": cost(network, patch_size),
            "mean": {"old_before": _mean([row["before"] for row in compared]),
                     "old_after": _mean([row["after"] for row in compared]), "new": _mean(new)}}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def lines(table: dict[str, Any]) -> Iterator[str]:
    """The content of extension.json as text, with the paper's figures beside ours."""
    def row(name: str, before: float | None, after: float | None, change: str = "") -> str:
        return f"  {name:30}{_number(before):>8}{_number(after):>8}{change:>9}"

    yield "Dice on the validation cases, on the model's grid, of the old model and of the extended one:"
    yield f"  {'class':30}{'before':>8}{'after':>8}{'change':>9}"
    for name, one in table["classes"].items():
        both = None not in (one["before"], one["after"])
        change = f"{one['after'] - one['before']:+.3f}" if both else "new" if one["new"] else ""
        yield row(name, one["before"], one["after"], change)
    yield row("mean of old classes", table["mean"]["old_before"], table["mean"]["old_after"])
    yield row("mean of new classes", None, table["mean"]["new"])
    one_class = table["cost_of_a_class"]
    yield (f"One class more costs {one_class['parameters']:,} parameters and {one_class['flops'] / 1e9:.3g} GFLOPs "
           "(paper, Section 5.4: 9.44e-4); a decoder of its own would cost "
           f"{one_class['decoder_flops'] / 1e9:.4g} GFLOPs per patch (paper: 466.08).")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
