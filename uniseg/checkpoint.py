"""Checkpoints: written atomically with plain types only, read with weights_only=True, checked against their own hash.

    {"format": 1, "network": ModelConfig, "preprocessing": {...}, "weights": state dict, "digest": sha256 of the weights,
     "about": {...}, "training": {...} only in a run's own checkpoints}
"""

import hashlib
import zipfile
from pathlib import Path

import torch

from . import __version__
from .model import build
from .volume import atomic_write

FORMAT = 1


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names it and says what to do."""


def digest(weights):
    """sha256 over names, shapes, types and values of a state dict."""
    h = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def not_finite(weights):
    """Name of the first tensor that holds NaN or infinity, or None."""
    return next((n for n, t in weights.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)


def released_name(name, backbone):
    """What the authors' files call entry `name` of a network's state dict (after the `module.` that all their names have).

    They know no LPG module, and only their U-Net stands in a module of its own.

    >>> released_name("backbone.swinViT.patch_embed.proj.weight", "swin_unetr"), released_name("lpg.controller.bias", "unet")
    ('swinViT.patch_embed.proj.weight', 'controller.bias')
    """
    return name.removeprefix("lpg.") if backbone == "unet" else name.removeprefix("lpg.").removeprefix("backbone.")


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()  # Python 3.10


def save(path, network, preprocessing, about=None, training=None, half=False):
    """Write a checkpoint; an interrupted write leaves the former file.

    preprocessing: {"spacing_mm", "hu_window", "window", "antialias"}, what inference has to repeat
    half:          store floating-point weights in float16 (for shipping)
    """
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    if half:
        weights = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    if broken := not_finite(weights):
        raise CheckpointError(f"{path}: not written, {broken} holds NaN or infinity. Lower --lr.")
    content = {"format": FORMAT, "uniseg": __version__, "network": network.describe(),
               "preprocessing": preprocessing, "weights": weights, "digest": digest(weights), "about": about or {}}
    if training is not None:
        content["training"] = training
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's words for a full disk are "unexpected pos 768 vs 662"
            raise error.__context__ if isinstance(error.__context__, OSError) else error


def read(path):
    """The content of a uniseg checkpoint as a dict, its weights verified. Raises CheckpointError.

    Only tensors and plain Python values are unpickled (weights_only=True): a weights file cannot run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file. Give --weights a checkpoint of uniseg.train.")
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{path}: empty file. Copy or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a git-lfs pointer, not the weights. Run `git lfs pull`.")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: an HTML page, not weights (a failed download?). Download it again.")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: truncated. Copy or download it again.")
    if start.startswith(b"PK") and not _intact(path):  # torch does not look at the checksums: class names could change
        raise CheckpointError(f"{path}: damaged, a checksum does not match. Copy or download it again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file; all mean the same here
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({reason}). "
                              "Use a checkpoint written by uniseg.train.") from None
    if not isinstance(content, dict) or not {"network", "weights", "digest"} <= content.keys():
        raise CheckpointError(f"{path}: not a uniseg checkpoint. Use a checkpoint written by uniseg.train.")
    if content.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}, this version reads up to {FORMAT}. Upgrade uniseg.")
    if digest(content["weights"]) != content["digest"]:
        raise CheckpointError(f"{path}: damaged, its weights do not match their sha256. Copy or download it again.")
    if broken := not_finite(content["weights"]):
        raise CheckpointError(f"{path}: {broken} holds NaN or infinity. Use another checkpoint.")
    return content


def _intact(path):
    """Whether every part of the zip file, names and settings included, has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises many kinds for a damaged file
        return False


def load_network(content, path="checkpoint"):
    """The network of `read()`'s content, in float32 and eval mode."""
    try:
        network = build(content["network"])
        missing, unexpected = network.load_state_dict(content["weights"], strict=False)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: weights do not fit their network ({reason}). Use a matching file.") from None
    if missing or unexpected:
        raise CheckpointError(f"{path}: weights do not fit the {content['network']['backbone']} network: "
                              f"missing {list(missing)[:3]}, unexpected {list(unexpected)[:3]}. Use a matching file.")
    return network.eval()
