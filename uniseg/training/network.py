"""The network at the start of a run: random, with weights of a file (Section 4.6), or a trained one with more classes.

Read model.py and checkpoint.initialise first; continual.py for the third kind.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from .. import checkpoint, continual
from ..backbones import SwinUNETR
from ..baselines import PlainModel
from ..embeddings import class_embeddings
from ..machine.console import say
from ..model import UniversalModel
from .recipe import TrainConfig

Network = UniversalModel | PlainModel


def make_network(args: argparse.Namespace, config: TrainConfig, classes: Sequence[str], rank: int) -> Network:
    """The network at the start of the run, with the weights frozen that --freeze names.

    Rank 0 prints what was taken from a file. Raises ValueError (also CheckpointError, EmbeddingError).
    """
    network, summary = (extended_network if args.old else new_network)(args, config, classes)
    network.backbone.requires_grad_(config.freeze != "backbone")
    if config.freeze == "old":
        continual.freeze_old(network, len(args.old["network"]["classes"]))
    if config.activation_checkpointing:
        assert isinstance(network.backbone, SwinUNETR)     # refusals.py refuses it for other backbones
        network.backbone.checkpoint_activations()
    if summary and rank == 0:
        say(summary, sys.stderr)
    return network


def extended_network(args: argparse.Namespace, config: TrainConfig, classes: Sequence[str]) -> tuple[Network, str]:
    """The network of --extend with more classes, and one line that names them."""
    rows = continual.new_embeddings(args.old, classes, args.embeddings, config.seed)
    old = len(args.old["network"]["classes"])
    return (continual.grow(args.old, classes, rows, config.prior, config.head_start),
            f"{args.extend}: {old} classes kept, {len(classes) - old} new: {', '.join(classes[old:])}")


def new_network(args: argparse.Namespace, config: TrainConfig, classes: Sequence[str]) -> tuple[Network, str]:
    """A random network into which --init puts all weights that fit, and one line about them ("" without --init)."""
    content = checkpoint.read(args.init, args.partial) if args.init is not None else {"network": {}}
    network = random_network(args, config, classes, content["network"].get("merging", "standard"))
    if args.init is None:
        return network, ""
    start_again = [name.strip() for name in (args.anew or "").split(",") if name.strip()]
    if unknown := [name for name in start_again if name not in classes]:
        raise ValueError(f"--anew {unknown[0]}: no class of this training. It has {', '.join(classes)}.")
    at_random = checkpoint.initialise(network, content, args.init, start_again)
    kept = [name for k, name in enumerate(classes) if name in content["network"]["classes"]
            and not any(tensor.startswith((f"lpg.controllers.{k}.", "out.")) for tensor in at_random)]
    taken = len(network.state_dict()) - len(at_random)
    return network, (f"{args.init}: {taken} tensors taken, {len(at_random)} start anew; "
                     f"classes kept: {', '.join(kept) or 'none'}")


def random_network(args: argparse.Namespace, config: TrainConfig, classes: Sequence[str], merging: str) -> Network:
    """The network of a TrainConfig with random weights.

    merging: order of the corners in Swin UNETR's patch merging; weights of "v090" need theirs
    """
    embedding = torch.from_numpy(class_embeddings(classes, config.encoding, args.embeddings, config.seed))
    description = {"classes": classes, "backbone": config.backbone, "width": config.width, "lpg": config.lpg,
                   "lpg_hidden": config.lpg_hidden, "merging": merging, "text_width": embedding.shape[1],
                   "encoding": config.encoding, "head": config.head, "input_windows": relative(config)}
    network = checkpoint.build_network(description, embedding)
    if config.head_start == "he" and isinstance(network, UniversalModel):
        network.start_heads()
    if config.prior != 0.5:
        network.set_prior(config.prior)
    return network


def relative(config: TrainConfig) -> tuple[tuple[float, float], ...]:
    """The input windows of a TrainConfig relative to its HU window, which the image has scaled to [0, 1].

    >>> relative(TrainConfig(hu_window=(-1000.0, 1000.0), input_windows=((-1000.0, 0.0),)))
    ((0.0, 0.5),)
    """
    low, high = config.hu_window
    return tuple(((a - low) / (high - low), (b - low) / (high - low)) for a, b in config.input_windows)
