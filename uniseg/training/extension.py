"""The command's side of an extension by new classes: its options, and the report extension.json (Sections 5.1.3 and 5.4).

What is learned, and from which targets, is in continual.py.
"""

import math
import sys

import torch

from ..machine.console import say
from ..model import ModelConfig, build
from ..paper import complexity
from . import report
from .run_folder import write_json
from .validation import mean_dice, validate


def end_of_extension(args, config, learner, objective, val_cases, place):
    """Old classes before and after, new ones after, and what a class costs: extension.json, and printed."""
    before = validate(objective.teacher, val_cases, config, place)
    if place[0] == 0:
        after = report.read_metrics(args.out / "metrics.jsonl")[-1].get("dice", {})
        found = summary(args.old["network"]["classes"], learner.network,
                                  mean_dice(before, val_cases, objective.teacher.classes), after, config.patch_size)
        write_json(args.out / "extension.json", {"checkpoint": args.extend.name, "cases": [c.id for c in val_cases], **found})
        for line in lines(found):
            say(line, sys.stderr)


RECIPE = {"epochs": 100, "warmup_epochs": 0, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-5}       # Section 5.1.3
NETWORK = ("backbone", "width", "lpg", "lpg_hidden", "encoding", "head")                # what an extension cannot change
PREPROCESSING = ("spacing", "hu_window", "antialias", "pad", "input_windows")


def options(content):
    """Defaults of the command's options for the extension of a checkpoint's content: Section 5.1.3's recipe, its own network."""
    config, pre = ModelConfig.of(content["network"]), content["preprocessing"]
    low, high = pre["hu_window"]
    windows = tuple(round(low + end * (high - low), 3) for window in config.input_windows for end in window)
    return {**RECIPE, **{name: getattr(config, name) for name in NETWORK}, "spacing": pre["spacing_mm"][0], "hu_window": (low, high),
            "antialias": pre["antialias"], "pad": pre.get("pad", "air"), "input_windows": windows, "patch_size": tuple(pre["window"])}


def refuse_another_network(args, content):
    """Raises ValueError where the options ask for another network or grid than the checkpoint's."""
    defaults = options(content)
    for name in (*NETWORK, *PREPROCESSING):
        given = tuple(value) if isinstance(value := getattr(args, name), list) else value
        if given != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')}: {args.extend} has {defaults[name]}, which --extend keeps. Leave the option out.")
    if len(set(content["preprocessing"]["spacing_mm"])) > 1:
        raise ValueError(f"{args.extend}: its grid is not isotropic. Extend a checkpoint of uniseg.train.")


def cost(network, patch):
    """What one more class adds to a network: {"parameters", "flops", "decoder_flops"}, Section 5.4; FLOPs are two a multiply-add.

    decoder_flops: of the decoder on one patch (D, H, W), which a method that adds a decoder for each class adds
    """
    with torch.device("meta"):
        one = build({**network.describe(), "classes": ["one"], "head": "class-specific"})
    decoder = complexity.count(one, patch)["decoder"].flops
    if network.config.head == "softmax":                            # a row of the output layer, at every voxel
        channels = one.backbone.decoder_channels
        return {"parameters": channels + 1, "flops": (2 * channels + 1) * math.prod(patch), "decoder_flops": decoder}
    mlp = list(one.lpg.parameters()) if network.config.lpg == "independent" else []
    flops = sum(2 * p.numel() if p.ndim == 2 else p.numel() for p in mlp)
    return {"parameters": sum(p.numel() for p in mlp), "flops": flops, "decoder_flops": decoder}


def summary(old, network, before, after, patch):
    """What extension.json holds: Dice of every class before and after, and the cost of a class.

    old: names of the old classes; network: the extended one, which works on patches (D, H, W)
    before, after: {class: mean Dice on the validation cases that have it} of the old and of the extended network
    """
    table = {name: {"new": name not in old, "before": before.get(name), "after": after.get(name)} for name in network.classes}
    kept = [row for row in table.values() if None not in (row["before"], row["after"])]
    new = [row["after"] for row in table.values() if row["new"] and row["after"] is not None]
    return {"classes": table, "cost_of_a_class": cost(network, patch),
            "mean": {"old_before": _mean([row["before"] for row in kept]), "old_after": _mean([row["after"] for row in kept]),
                     "new": _mean(new)}}


def _mean(values):
    return sum(values) / len(values) if values else None


def lines(found):
    """The content of extension.json to be read, the paper's figures beside ours."""
    def row(name, before, after, change=""):
        return f"  {name:30}{_number(before):>8}{_number(after):>8}{change:>9}"

    yield "Dice on the validation cases, on the model's grid, of the old model and of the extended one:"
    yield f"  {'class':30}{'before':>8}{'after':>8}{'change':>9}"
    for name, one in found["classes"].items():
        both = None not in (one["before"], one["after"])
        yield row(name, one["before"], one["after"], f"{one['after'] - one['before']:+.3f}" if both else "new" if one["new"] else "")
    yield row("mean of old classes", found["mean"]["old_before"], found["mean"]["old_after"])
    yield row("mean of new classes", None, found["mean"]["new"])
    cost_ = found["cost_of_a_class"]
    yield (f"One class more costs {cost_['parameters']:,} parameters and {cost_['flops'] / 1e9:.3g} GFLOPs (paper, Section 5.4: 9.44e-4); a "
           f"decoder of its own would cost {cost_['decoder_flops'] / 1e9:.4g} GFLOPs a patch (paper: 466.08).")


def _number(value):
    return "-" if value is None else f"{value:.3f}"
