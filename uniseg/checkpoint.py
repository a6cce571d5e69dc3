"""Checkpoints: written atomically with plain types only; read without running code; each value and hash is checked.

    {"format": 1,
     "network": ModelConfig.describe(),  "preprocessing": what inference repeats,
     "weights": state dict,              "digest": sha256 of the weights,
     "about": {"command", "data", ...,   where the weights come from
               "experimental": {class: why it is computed on request only},
               "in_pieces": [class],     classes of which every piece is kept
               "second_view": share},    see inference/second_view.py
     "part": "backbone" or "partial",    only where the file is no whole model
     "training": state of the run}       only in a run's own checkpoints

Files of the authors and of others are read too (weights/released.py). weights/unpickling.py reads what is in a file,
weights/schema.py says what may be in it. Read model.py first, segmenter.py next.

    python -m uniseg.checkpoint FILE               says what it is: backbone, heads, classes, sha256, and how to use it
    python -m uniseg.checkpoint FILE -o OUT.pt     converts it into the form above
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from .backbones.build import PAPER_WIDTH
from .baselines import PlainModel
from .imaging.preprocessing import Preprocessing
from .machine.about import __version__
from .machine.console import error_line, printable, say
from .machine.files import atomic_write, file_sha256
from .model import ModelConfig, UniversalModel, build
from .weights import released, schema
from .weights.description import describe
from .weights.options import build_parser
from .weights.schema import FORMAT, SchemaError
from .weights.torch_file import FileRefused, read_torch_file

OWN = ("network", "preprocessing", "weights", "about", "part", "training")      # what a file of our own form may hold



class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names it and says what to do."""


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and values of a state dict."""
    h = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, or None."""
    return next((n for n, t in weights.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)


def save(path: str | Path, network: UniversalModel | PlainModel, preprocessing: Preprocessing,
         about: dict | None = None, training: dict | None = None, half: bool = False) -> None:
    """Write a network as a checkpoint; an interrupted write leaves the former file.

    With the state of `training`, the former file stays as well: `last.pt` becomes `last.prev.pt`.
    preprocessing: what inference has to repeat
    half:          store floating-point weights in float16 (for shipping)
    """
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    if half:
        weights = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    if broken := not_finite(weights):
        raise CheckpointError(f"{path}: not written, {broken} holds NaN or infinity. Lower --lr.")
    more = {} if training is None else {"training": training}
    write(path, {"network": network.describe(), "preprocessing": preprocessing.to_dict(), "weights": weights,
                 "about": about or {}, **more}, keep=None if training is None else previous(path))


def previous(path: str | Path) -> Path:
    """The name of the former checkpoint beside a new one: last.pt -> last.prev.pt"""
    return Path(path).with_suffix(".prev.pt")


def write(path: str | Path, content: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write the content of a checkpoint with its format and digest; an interrupted write leaves the former file.

    content: as in the head of this module, without "format" and "digest"
    keep: path that the former file gets; None: it is replaced

    The file is read back before it takes the former file's place. Raises OSError or machine.files.FileError.
    """
    content = {"format": FORMAT, "uniseg": __version__, **content, "digest": digest(content["weights"])}
    try:
        schema.check(content)
    except SchemaError as error:                # such as a class whose name cannot be that of a file
        raise CheckpointError(f"{path}: not written, {printable(str(error))}.") from None
    with atomic_write(path, keep) as temporary:
        with open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch reports a full disk as "unexpected pos 768 vs 662"
                raise error.__context__ if isinstance(error.__context__, OSError) else error
            file.flush()
            os.fsync(file.fileno())
        try:
            read(temporary)
        except CheckpointError:
            raise OSError(errno.EIO, "what was written reads back damaged") from None


def read(path: str | Path, partial: bool = False) -> dict[str, Any]:
    """The content of a weights file as a dict in the form of this module's head; its weights are verified.

    A file of the authors or of others (weights/released.py) comes in the same form, with a "report" of what became of
    its entries.

    partial: accept such a file where entries are missing, unexpected or of another shape; "part" is then "partial"

    A file cannot run code: its pickle is read by weights/unpickling.py. Raises CheckpointError.
    """
    path = Path(path)
    try:
        content = read_torch_file(path)
    except FileRefused as refusal:
        raise CheckpointError(f"{path}: {printable(str(refusal))}") from None
    if isinstance(content, dict) and {"network", "weights", "digest"} <= content.keys():
        content = _from_own(content, path)
    else:
        content = _from_released(content, path, partial)
    if broken := not_finite(content["weights"]):
        raise CheckpointError(f"{path}: {broken} holds NaN or infinity. Use another checkpoint.")
    return content


def cases_seen(about: Mapping[str, Any]) -> list[str]:
    """The "DATASET/case" that have trained weights, or the weights that these go on from; sorted.

    about: that of a checkpoint; "data" holds the cases of the last training, "init" or "extend" what its start has seen
    """
    before = [about[how].get("cases", ()) for how in ("init", "extend") if how in about]
    return sorted({*about.get("data", {}), *itertools.chain(*before)})


def _from_own(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a file of our own form, whose values are possible and whose weights match their sha256."""
    version = content.get("format", FORMAT)
    if type(version) is int and version > FORMAT:
        raise CheckpointError(f"{path}: format {version}, this version reads up to {FORMAT}. Upgrade uniseg.")
    own = {"about": {}, **{key: content[key] for key in OWN if key in content}}
    for settings in (own.get("preprocessing"), _entry(own.get("training"), "config")):
        if isinstance(settings, dict) and "pad_slices" in settings:    # another name of "pad"; it padded along z only
            settings["pad"] = settings.pop("pad_slices")
    try:
        if type(version) is not int or version < 1:
            raise SchemaError("its format is not a whole number from 1 on")
        schema.check(own)
    except SchemaError as error:
        raise CheckpointError(f"{path}: not a checkpoint that can be used: {printable(str(error))}. "
                              "Use a checkpoint written by uniseg.train.") from None
    if type(content["digest"]) is not str or digest(own["weights"]) != content["digest"]:
        raise CheckpointError(f"{path}: damaged, its weights do not match their sha256. Copy or download it again.")
    return {"format": version, "digest": content["digest"], **own}


def _entry(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, dict) else None


def _from_released(content: Any, path: Path, partial: bool) -> dict[str, Any]:
    """The content of a file that others have published, in this module's form."""
    try:
        config, weights, report = released.translate(content)
        schema.check_weights(weights, ModelConfig.of(config), None if report.complete else "partial")
    except ValueError as error:
        reason = printable(str(error))
        raise CheckpointError(f"{path}: not a uniseg checkpoint nor one that it can convert: {reason}. "
                              "Use a checkpoint of uniseg.train or a file of docs/released_weights.md.") from None
    if not report.complete and not partial:
        raise CheckpointError(f"{path}: fits a {released.title(config)} in part only: {report.summary()}. "
                              "`python -m uniseg.checkpoint FILE` lists them, -o OUT.pt --partial takes what fits.")
    content = {"format": FORMAT, "network": config, "preprocessing": released.PREPROCESSING.to_dict(),
               "weights": weights, "digest": digest(weights), "report": report,
               "about": {"converted_from": path.name, "sha256": file_sha256(path)}}
    if not report.complete or not config["classes"]:
        content["part"] = "backbone" if report.complete else "partial"
    return content


def build_network(description: Mapping[str, Any], embedding: Any = None) -> UniversalModel | PlainModel:
    """The network of a `describe()` dict: the Universal Model, or with a softmax the plain network of the baselines.

    embedding: (K, T) text embedding of the Universal Model; None: zeros, to be filled by load_state_dict
    """
    config = ModelConfig.of(description)
    return PlainModel(config) if config.head == "softmax" else build(description, embedding)


def load_network(content: Mapping[str, Any], path: str | Path = "checkpoint") -> UniversalModel | PlainModel:
    """The network of the content that `read` gives, in float32 and eval mode.

    path: of the file, for the message of the CheckpointError that is raised where the weights do not fit
    """
    if part := content.get("part"):
        what = "a backbone without class heads" if part == "backbone" else "part of a model only"
        raise CheckpointError(f"{path}: {what}, it cannot segment. Train from it: python -m uniseg.train --init FILE.")
    try:
        schema.check_network(content["network"])
        schema.check_weights(content["weights"], ModelConfig.of(content["network"]))
    except SchemaError as error:
        raise CheckpointError(f"{path}: {printable(str(error))}. Use a matching file.") from None
    network = build_network(content["network"])
    network.load_state_dict(content["weights"])
    return network.eval()


def initialise(network: UniversalModel | PlainModel, content: Mapping[str, Any], path: str | Path = "checkpoint",
               anew: Collection[str] = ()) -> list[str]:
    """Start `network` from the weights of another one (Section 4.6). content: of `read`; path: for the message

    The network takes all weights that do not belong to single classes. Of the LPG it takes what belongs to classes that
    both networks have, by name, with their text embeddings.

    anew: classes that keep the network's own start

    Returns the names of the network's tensors that keep their start. Raises CheckpointError where the backbone differs.
    """
    source, ours, theirs = content["network"], network.state_dict(), content["weights"]
    backbone, width = source["backbone"], source["width"] or PAPER_WIDTH[source["backbone"]]
    if (backbone, width) != (network.config.backbone, network.config.width or PAPER_WIDTH[network.config.backbone]):
        raise CheckpointError(f"{path}: holds a {released.TITLES[backbone]} of width {width}. "
                              f"Give --backbone {backbone} --width {width}.")
    channels = [(source["classes"].index(name), k) for k, name in enumerate(network.classes)      # (theirs, ours)
                if name in source["classes"] and name not in anew]
    of_classes = ("lpg.", "organ_embedding") + (("out.",) if source["classes"] != list(network.classes) else ())
    name_there = {name: name for name in ours if not name.startswith(of_classes)}
    if (source.get("lpg"), source.get("text_width")) == (network.config.lpg, network.config.text_width):
        if network.config.lpg == "shared":
            name_there |= {name: name for name in ours if name.startswith("lpg.")}
        for old, new in channels:
            prefix = f"lpg.controllers.{new}."
            name_there |= {name: f"lpg.controllers.{old}.{name.removeprefix(prefix)}"
                           for name in ours if name.startswith(prefix)}
    taken = {name: theirs[there].to(ours[name].dtype) for name, there in name_there.items()
             if there in theirs and theirs[there].shape == ours[name].shape}
    if "organ_embedding" in theirs and any(name.startswith("lpg.") for name in taken):
        rows = ours["organ_embedding"].clone()
        for old, new in channels:
            rows[new] = theirs["organ_embedding"][old]
        taken["organ_embedding"] = rows
    network.load_state_dict(taken, strict=False)
    return [name for name in ours if name not in taken]


def convert(path: str | Path, content: Mapping[str, Any], half: bool = False) -> None:
    """Write the content that `read` gives as a checkpoint without the state of a run.

    half: store floating-point weights in float16
    """
    kept = {k: v for k, v in content.items() if k in ("network", "preprocessing", "weights", "about", "part")}
    if half:
        kept["weights"] = {n: t.half() if t.is_floating_point() else t for n, t in kept["weights"].items()}
        if broken := not_finite(kept["weights"]):
            raise CheckpointError(f"{path}: not written, {broken} does not fit into float16. Leave out --half.")
    write(path, kept)


# --------------------------------------------------------------------------------------------------------- the command

def main(argv: list[str] | None = None) -> int:
    """The command `python -m uniseg.checkpoint`. Returns the exit code: 0, 1 (cannot be written) or 2 (not usable)."""
    args = build_parser().parse_args(argv)
    try:
        content = read(args.file, partial=args.partial or args.output is None)   # describing shows what does not fit
        if args.output is None:
            say("\n".join(describe(args.file, content, args.all)))
            return 0
        convert(args.output, content, args.half)
    except ValueError as error:
        error_line(error)
        return 2
    except OSError as error:
        error_line(error)
        return 1
    say("\n".join(describe(args.output, read(args.output), args.all)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
