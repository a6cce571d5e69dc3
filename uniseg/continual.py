"""New classes without forgetting: Section 3.3, Eq. (5).

    python -m uniseg.train --extend CHECKPOINT --data-root NEW --classes superior_mesenteric_artery

A checkpoint of K classes becomes a network of K + n: the same weights, the text embeddings of n more names, and n more MLPs.
It trains on the new data alone. There, the labels are the targets of the new classes, and the frozen old model's own
prediction is the target of the old ones, so that what it knows is kept while backbone and heads learn. Nothing of the old
data is read, and no feature is distilled (Section 5.1.3).

train.py calls this module; baselines.py holds what the paper compares with.
"""

import math

import torch

from . import checkpoint, complexity
from .embeddings import PROMPTS, class_embeddings
from .losses import masked_loss, unpack_bits
from .model import ModelConfig, build

RECIPE = {"epochs": 100, "warmup_epochs": 0, "batch_size": 2, "lr": 1e-4, "weight_decay": 1e-5}       # Section 5.1.3
NETWORK = ("backbone", "width", "lpg", "lpg_hidden", "encoding", "head")                # what an extension cannot change
PREPROCESSING = ("spacing", "hu_window", "antialias", "pad", "input_windows")


# --------------------------------------------------------------------------------------------------- a network with more classes

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


def new_embeddings(content, classes, path=None, seed=0):
    """Text embeddings of the classes that the checkpoint's content lacks, the last of `classes`: (n, T).

    path: of an own table. Raises embeddings.EmbeddingError for a name without one, ValueError for a table of another width.
    """
    old = ModelConfig.of(content["network"])
    if old.encoding not in PROMPTS:                                 # a row belongs to a place in the list
        return torch.from_numpy(class_embeddings(classes, old.encoding, seed=seed)[len(old.classes):])
    rows = class_embeddings(classes[len(old.classes):], old.encoding, path)
    if rows.shape[1] != old.text_width:
        encoder = content["about"].get("embedding", {}).get("encoder", "another encoder")
        raise ValueError(f"{path or 'the shipped embeddings'}: vectors of {rows.shape[1]} numbers, the checkpoint's have "
                         f"{old.text_width} ({encoder}). Make a table with its encoder by tools/make_embeddings.py and give it "
                         "with --embeddings.")
    return torch.from_numpy(rows)


def grow(content, classes, rows, prior=0.5):
    """The network of a checkpoint's content with more classes; what it computes for the old ones is unchanged.

    classes: all names, the checkpoint's own first; rows: (n, T) embeddings of the others
    prior:   probability at which the new sigmoids start

    Every old tensor keeps its place at the front of the new one: MLP k is MLP k, row k of the embedding is row k. One-hot
    vectors get longer, their new elements are 0 for the old classes.
    """
    network = build({**content["network"], "classes": classes, "text_width": rows.shape[1]})
    if prior != 0.5:
        network.set_prior(prior)
    state = network.state_dict()
    for name, theirs in content["weights"].items():
        ours = state[name]
        if name.startswith("lpg.controllers.") and ours.shape != theirs.shape:
            ours.zero_()                                            # columns of the new elements of a one-hot vector
        ours[tuple(slice(0, size) for size in theirs.shape)] = theirs.to(ours.dtype)
    if "organ_embedding" in state:
        state["organ_embedding"][len(content["network"]["classes"]):] = rows
    network.load_state_dict(state)
    return network


def freeze_old(network, old):
    """Let only the MLPs of the new classes learn, from channel `old` on: the old classes then stay bit for bit as they are."""
    if network.config.head != "class-specific" or network.config.lpg != "independent":
        raise ValueError("--freeze old: only a network with one MLP a class has weights of the new classes alone. Leave it out.")
    network.requires_grad_(False)
    network.lpg.controllers[old:].requires_grad_(True)


# ------------------------------------------------------------------------------------------------------------- the loss of a batch

class Extension:
    """Eq. (5): targets are the labels for new classes, the frozen old model's prediction for old ones; then Eq. (4).

    teacher: the old network, of the first K classes
    hard:    its thresholded prediction instead of the soft one
    labels:  where the new data label an old class as well, take their labels for it; beyond Eq. (5)
    frozen:  of the network, all but the new classes' MLPs are frozen: old classes then need no target
    """

    def __init__(self, teacher, hard=False, labels=False, frozen=False):
        self.teacher, self.hard, self.labels, self.frozen = teacher, hard, labels, frozen
        self.old = len(teacher.classes)

    def labelled(self, labelled):
        """(B, K + n) bool: which targets there are."""
        known = labelled.clone()
        known[:, :self.old] = not self.frozen
        return known

    def pairs(self, labelled):
        """Number of (sample, class) pairs that count in the loss."""
        return float(self.labelled(labelled).sum())

    @torch.no_grad()
    def targets(self, image, bits, labelled):
        """(B, K + n, D, H, W) float32: M of Eq. (5)."""
        target = unpack_bits(bits, labelled.shape[1])
        if not self.frozen:
            logits = self.teacher(image)                                             # (B, K, D, H, W)
            pseudo = (logits > 0).float() if self.hard else torch.sigmoid(logits.float())
            ours = labelled[:, :self.old] & self.labels                              # (B, K)
            target[:, :self.old] = torch.where(ours[:, :, None, None, None], target[:, :self.old], pseudo)
        return target

    def __call__(self, model, image, bits, labelled, pairs, weight, cast):
        """See train.PartialLabels."""
        with cast():
            target = self.targets(image, bits, labelled)     # first: the teacher's activations are gone before the model's are kept
            logits = model(image)                                                    # (B, K + n, D, H, W)
        return masked_loss(logits, target, self.labelled(labelled), pairs, positive_weight=weight)


def frozen_teacher(content, path, device):
    """The network of a checkpoint's content as it is, in eval mode, without gradients."""
    return checkpoint.load_network(content, path).to(device).requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------------- what it cost

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
