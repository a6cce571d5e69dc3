"""The network at the start of a run: random, from other weights, or a trained one with more classes."""

import sys

import torch

from .. import checkpoint, continual
from ..embeddings import class_embeddings
from ..machine.console import say


def make_network(args, config, classes, rank):
    """The network at the start of the run: random, from the weights of --init, or that of --extend with more classes."""
    network, said = (extended_network if args.old else new_network)(args, config, classes)
    network.backbone.requires_grad_(config.freeze != "backbone")
    if config.freeze == "old":
        continual.freeze_old(network, len(args.old["network"]["classes"]))
    if config.activation_checkpointing:
        network.backbone.checkpoint_activations()
    if said and rank == 0:
        say(said, sys.stderr)
    return network


def extended_network(args, config, classes):
    """(network of --extend with more classes, what is said of it)"""
    rows = continual.new_embeddings(args.old, classes, args.embeddings, config.seed)
    old = len(args.old["network"]["classes"])
    return (continual.grow(args.old, classes, rows, config.prior),
            f"{args.extend}: {old} classes kept, {len(classes) - old} new: {', '.join(classes[old:])}")


def new_network(args, config, classes):
    """(random network, with --init as much as fits taken from there; what is said of that, "" without --init)"""
    content = checkpoint.read(args.init, args.partial) if args.init is not None else {"network": {}}
    embedding = torch.from_numpy(class_embeddings(classes, config.encoding, args.embeddings, config.seed))
    merging = content["network"].get("merging", "standard")                        # weights of v090 keep its order of corners
    network = checkpoint.build_network({"classes": classes, "backbone": config.backbone, "width": config.width, "lpg": config.lpg,
                     "lpg_hidden": config.lpg_hidden, "merging": merging, "text_width": embedding.shape[1],
                     "encoding": config.encoding, "head": config.head, "input_windows": relative(config)}, embedding)
    if config.prior != 0.5:
        network.set_prior(config.prior)
    if args.init is None:
        return network, ""
    anew = [c.strip() for c in (args.anew or "").split(",") if c.strip()]
    if unknown := [c for c in anew if c not in classes]:
        raise ValueError(f"--anew {unknown[0]}: no class of this training. It has {', '.join(classes)}.")
    fresh = checkpoint.initialise(network, content, args.init, anew)
    known = [c for k, c in enumerate(classes) if not any(n.startswith((f"lpg.controllers.{k}.", "out.")) for n in fresh)
             and c in content["network"]["classes"]]
    return network, (f"{args.init}: {len(network.state_dict()) - len(fresh)} tensors taken, {len(fresh)} start anew; "
                     f"classes kept: {', '.join(known) or 'none'}")


def relative(config):
    """The input windows of a TrainConfig as parts of the image's range [0, 1], which is its HU window."""
    low, high = config.hu_window
    return tuple(((a - low) / (high - low), (b - low) / (high - low)) for a, b in config.input_windows)


def averaged(network, decay):
    """The network with averaged weights: decay of the old average a step, less at first so that the start is forgotten.

    The ramp (1 + n) / (10 + n) after n steps is that of Exponential Moving Average in TensorFlow,
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    def update(averages, weights, steps):
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + steps.item()) / (10 + steps.item())))
    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=update)
