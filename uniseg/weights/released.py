"""Weights that others have published: recognised by their keys, renamed entry by entry, nothing skipped silently.

    Universal Model (ICCV 2023), SuPreM      net         shared LPG, 32 classes; Swin UNETR or U-Net
    continual learning (MedIA 2024)          net         independent LPG, 38 classes; Swin UNETR
    SuPreM's SegResNet                       net         backbone only
    MONAI's self-supervised Swin UNETR       state_dict  backbone only; model_swinvit.pt: its transformer only
    Models Genesis                           state_dict  U-Net backbone only

docs/released_weights.md says where each is published. checkpoint.py reads the project's own files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..backbones.swin_unetr import relative_position_index
from ..imaging.preprocessing import Preprocessing
from ..model import ModelConfig
from ..taxonomy import NAMES
from . import schema
from .unpickling import Opaque

CONTAINERS = ("net", "state_dict", "model")            # keys that may hold the weights
# Classes 33 to 38 of the continual model, as in utils/label_transfer_felix.py of
# https://github.com/MrGiovanni/ContinualLearning
JHH_NAMES = ("common_bile_duct", "pancreatic_duct", "superior_mesenteric_artery", "left_renal_vein", "right_renal_vein",
             "cbd_stent")
# No released file stores these: they are the paper's (Section 4.1.2).
PREPROCESSING = Preprocessing()
TITLES = {"swin_unetr": "Swin UNETR", "unet": "U-Net", "segresnet": "SegResNet"}

# The tensor by which each backbone is recognised; its first axis is the width.
ANCHORS = {"swin_unetr": "swinViT.patch_embed.proj.weight", "unet": "down_tr64.ops.1.conv1.weight",
           "segresnet": "convInit.conv.weight"}
FIRST_CONV = {"swin_unetr": "swinViT.patch_embed.proj.weight", "unet": "down_tr64.ops.0.conv1.weight",
              "segresnet": "convInit.conv.weight"}
HEADS = ("organ_embedding", "GAP.", "precls_conv.")
LPG = ("controller.", "controllers.", "text_to_vision.")
IGNORED = (
    (r"\.(running_mean|running_var|num_batches_tracked)$", "running statistics; the U-Net uses those of the window"),
    (r"^(out|out_tr|conv_final)\.", "classifier of the task it was trained on"),
    (r"^(rotation_head|rotation_pre|contrastive_head|contrastive_pre|convTrans3d|conv|norm|mask_token)\b",
     "head of its self-supervised training"),
)


@dataclass
class Report:
    """What became of every entry of a released file. Names map to shapes, which are tuples, unless said otherwise."""

    container: str                                     # key of the weights in the file; "" for a bare state dict
    entries: int = 0
    loaded: dict = field(default_factory=dict)         # our name: the file's name
    missing: dict = field(default_factory=dict)        # our name: shape
    unexpected: dict = field(default_factory=dict)     # the file's name: shape
    ignored: dict = field(default_factory=dict)        # the file's name: why it is not needed
    mismatched: dict = field(default_factory=dict)     # the file's name: (its shape, our shape)

    @property
    def complete(self) -> bool:
        """True where every entry has been loaded and none is missing."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """"117 loaded, 2 missing" """
        counts = {"loaded": self.loaded, "missing": self.missing, "unexpected": self.unexpected,
                  "of another shape": self.mismatched}
        return ", ".join(f"{len(entries)} {what}" for what, entries in counts.items() if entries)


def find_weights(content: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """(key, state dict) of an unpickled file: under one of CONTAINERS, or the file itself. Raises ValueError."""
    for key in (*CONTAINERS, ""):
        inner = content.get(key) if key and isinstance(content, dict) else content
        if isinstance(inner, dict) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            if strange := [(k, v.name) for k, v in inner.items() if isinstance(v, Opaque)]:
                raise ValueError(f"{str(strange[0][0])[:100]} is a {strange[0][1]}, not a dense tensor of real numbers")
            return key, {str(k): v for k, v in inner.items() if isinstance(v, torch.Tensor)}
    keys = ", ".join(map(str, content))[:80] if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"no weights found (it holds {keys or 'nothing'}). A state dict is expected, bare or under net, "
                     "state_dict or model")


def our_name(name: str) -> str:
    """The name in the state dict of model.UniversalModel for the entry that a released file calls `name`.

    >>> our_name("module.swinViT.patch_embed.proj.weight"), our_name("controller.bias")
    ('backbone.swinViT.patch_embed.proj.weight', 'lpg.controller.bias')
    >>> our_name("module.layers1.0.blocks.0.mlp.fc1.bias")       # model_swinvit.pt
    'backbone.swinViT.layers1.0.blocks.0.mlp.linear1.bias'
    """
    name = name.removeprefix("module.").removeprefix("backbone.")
    if name.startswith(HEADS):
        return name
    if name.startswith(LPG):
        return "lpg." + name
    name = name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")
    if re.match(r"(patch_embed|layers[1-4])\.", name):
        name = "swinViT." + name
    return "backbone." + name


def recognise(entries: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The ModelConfig, as a dict, that fits the entries; its `classes` are empty for a backbone without heads.

    entries: {our name: tensor}

    Raises ValueError where no backbone, or more than one input channel, is found.
    """
    backbone = next((b for b, anchor in ANCHORS.items() if "backbone." + anchor in entries), None)
    if backbone is None:
        raise ValueError(f"no entry belongs to a backbone of uniseg ({', '.join(TITLES.values())})")
    first = entries.get("backbone." + FIRST_CONV[backbone])
    if first is not None and first.ndim == 5 and first.shape[1] != 1:
        raise ValueError(f"its {TITLES[backbone]} takes {first.shape[1]} input channels, a CT has one")
    config = {"classes": [], "backbone": backbone, "width": _size(entries["backbone." + ANCHORS[backbone]], 0, "width"),
              "merging": "v090" if backbone == "swin_unetr" else "standard"}
    embedding = entries.get("organ_embedding")
    if embedding is None:
        return config
    classes, config["text_width"] = (_size(embedding, axis, "text embedding") for axis in (0, 1))
    config["classes"] = list(NAMES + JHH_NAMES if classes == 38 else
                             NAMES if classes == len(NAMES) else (f"class_{i}" for i in range(1, classes + 1)))
    if (controller := entries.get("lpg.controllers.0.0.weight")) is not None:
        config |= {"lpg": "independent", "lpg_hidden": _size(controller, 0, "LPG")}
    else:
        words = entries.get("lpg.text_to_vision.weight")
        config |= {"lpg": "shared", "lpg_hidden": 0 if words is None else _size(words, 0, "LPG")}
    return config


def _size(tensor: torch.Tensor, axis: int, what: str) -> int:
    """The size of an axis. Raises ValueError for a tensor without this axis, or without numbers."""
    if tensor.ndim <= axis or not tensor.numel() or tensor.shape[axis] > 1 << 16:
        raise ValueError(f"its {what} has the shape {tuple(tensor.shape)}")
    return tensor.shape[axis]


def translate(content: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], Report]:
    """(configuration, weights, report) of an unpickled released file, the weights in float32 under our names.

    The weights are those that fit, whether or not the report is complete. Raises ValueError where none fits.
    """
    container, state = find_weights(content)
    report = Report(container, len(state))
    ours = {}
    for theirs in state:
        if reason := _why_ignored(theirs):
            report.ignored[theirs] = reason
        elif our_name(theirs) in ours:                         # with and without `module.`
            report.unexpected[theirs] = tuple(state[theirs].shape)
        else:
            ours[our_name(theirs)] = theirs
    config = recognise({name: state[theirs] for name, theirs in ours.items()})
    schema.check_network(config, part="partial")
    expected = {name: tuple(tensor.shape) for name, tensor in schema.expected(ModelConfig.of(config)).items()}
    weights = {}
    for name, theirs in ours.items():
        tensor = state[theirs]
        if name not in expected:
            report.unexpected[theirs] = tuple(tensor.shape)
            continue
        # 1x1x1 convolutions of the released LPGs are linear layers here: (153, 512, 1, 1, 1) -> (153, 512).
        same = tuple(tensor.shape) == expected[name]
        if not same and tuple(tensor.shape) == expected[name] + (1, 1, 1):
            tensor, same = tensor.reshape(expected[name]), True
        if not same or name.endswith("relative_position_index") and not torch.equal(tensor, relative_position_index()):
            report.mismatched[theirs] = (tuple(tensor.shape), expected[name])
            continue
        weights[name] = tensor.float() if tensor.is_floating_point() else tensor
        report.loaded[name] = theirs
    report.missing = {n: shape for n, shape in expected.items() if n not in ours}
    if not weights:
        raise ValueError(f"no entry fits the {TITLES[config['backbone']]} that it seems to be")
    return config, weights, report


def _why_ignored(theirs: str) -> str | None:
    """Why an entry of a released file is not needed; None where it is."""
    name = theirs.removeprefix("module.").removeprefix("backbone.")
    return next((reason for pattern, reason in IGNORED if re.search(pattern, name)), None)


def title(config: Mapping[str, Any]) -> str:
    """What a file of this configuration holds, in words."""
    backbone = TITLES[config["backbone"]]
    if not config["classes"]:
        return f"{backbone} backbone, without class heads"
    if config.get("head") == "softmax":
        return f"{backbone} with a softmax, a baseline of Section 5, {len(config['classes'])} classes"
    return f"Universal Model, {backbone}, {config['lpg']} LPG, {len(config['classes'])} classes"
