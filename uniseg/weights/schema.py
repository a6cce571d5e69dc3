"""What a checkpoint may hold: types, ranges and names, checked before anything is built from them.

A weights file may come from anyone. What it holds decides how much memory a network takes, which files are written
(a mask has the name of its class), and what becomes of a CT. So each value is checked here once, where the file is
read, and the rest of the package relies on it. Shapes are compared on torch's `meta` device, which holds no numbers.

Read model.py and imaging/preprocessing.py first for what the values mean; checkpoint.py calls `check`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..backbones import BACKBONES
from ..backbones.swin_unetr import CORNERS, relative_position_index
from ..baselines import PlainModel
from ..embeddings import ENCODINGS
from ..heads import LPGS
from ..imaging.file_names import class_name_fault, same_file_name
from ..model import ModelConfig, UniversalModel
from .unpickling import Opaque

FORMAT = 1                         # of the checkpoints that this version writes, and the highest that it reads
MOST_CLASSES = 512
MOST_WINDOW_VOXELS = 1 << 24       # 256 x 256 x 256; the paper's window has 96 x 96 x 96
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SchemaError(ValueError):
    """A value that a checkpoint cannot have. The text says which, without the path."""


# ---------------------------------------------------------------------------------------------------------- the rules

class Rule(NamedTuple):
    """A test of a value, and what it must be, in words."""

    holds: Callable[[Any], bool]
    words: str


def whole(low: int, high: int) -> Rule:
    """An integer in a range; True and False are none."""
    return Rule(lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high:,}")


def number(low: float, high: float) -> Rule:
    """A number in a range; NaN is none."""
    return Rule(lambda v: type(v) in (int, float) and low <= v <= high, f"a number from {low:g} to {high:g}")


def one_of(*names: str) -> Rule:
    """One of a few names."""
    return Rule(lambda v: type(v) is str and v in names, f"one of {', '.join(names)}")


def text(most: int) -> Rule:
    """A string."""
    return Rule(lambda v: type(v) is str and len(v) <= most, f"text of at most {most:,} characters")


def several(rule: Rule, least: int, most: int) -> Rule:
    """A list or tuple, each of whose values keeps a rule."""
    count = f"{least}" if least == most else f"{least} to {most}"
    return Rule(lambda v: type(v) in (list, tuple) and least <= len(v) <= most and all(map(rule.holds, v)),
                f"a list of {count} values, each {rule.words}")


def increasing(low: float, high: float) -> Rule:
    """Two numbers, the smaller one first."""
    pair = several(number(low, high), 2, 2)
    return Rule(lambda v: pair.holds(v) and v[0] < v[1], f"two numbers from {low:g} to {high:g}, the smaller one first")


def mapping(keys: Rule, values: Rule) -> Rule:
    """A dict, whose keys and values keep a rule each."""
    return Rule(lambda v: isinstance(v, dict) and all(keys.holds(a) and values.holds(b) for a, b in v.items()),
                f"a dict of {keys.words}: {values.words}")


ANY = Rule(lambda v: True, "anything")
NAME = Rule(lambda v: True, "a name")          # check_network says what is wrong with one
YES_NO = Rule(lambda v: type(v) is bool, "true or false")
DICT = mapping(text(1000), ANY)
ORIGIN = Rule(lambda v: isinstance(v, dict) and all(text(1000).holds(v.get(k)) for k in ("file", "sha256"))
              and several(text(1000), 0, 10**7).holds(v.get("cases", ())), "a file, its sha256 and a list of cases")

NETWORK = {
    "classes": several(NAME, 0, MOST_CLASSES), "backbone": one_of(*BACKBONES), "width": whole(0, 1024),
    "lpg": one_of(*LPGS), "lpg_hidden": whole(0, 65_536), "merging": one_of(*CORNERS),
    "text_width": whole(1, 65_536), "encoding": one_of(*ENCODINGS), "head": one_of("class-specific", "softmax"),
    "input_windows": several(increasing(-100, 100), 0, 16)}
PREPROCESSING = {
    "spacing_mm": several(number(0.1, 50), 3, 3), "hu_window": increasing(-100_000, 100_000),
    "window": several(whole(1, 1024), 3, 3), "antialias": YES_NO, "pad": one_of("air", "edge")}
ABOUT = {
    "experimental": mapping(text(64), text(1000)), "in_pieces": several(text(64), 0, MOST_CLASSES),
    "second_view": Rule(lambda v: v is None or number(0.3, 1).holds(v), "a number from 0.3 to 1"),
    "command": text(100_000), "converted_from": text(1000), "sha256": text(100),
    "embedding": mapping(text(100), Rule(lambda v: type(v) in (str, int), "text or a whole number")),
    "data": DICT, "init": ORIGIN, "extend": ORIGIN}
TRAINING = {
    "step": whole(0, 10**12), "epoch": whole(0, 10**9), "best": number(-1, 1), "loss_sum": number(-1e30, 1e30),
    "skipped": whole(0, 10**9), "in_a_row": whole(0, 10**9), "world": whole(1, 10**6), "config": DICT,
    "optimizer": DICT, "scaler": DICT, "average": DICT}


def check(content: Mapping[str, Any]) -> None:
    """Raise SchemaError unless the content of a file of our own form (checkpoint.py) is as a run writes it."""
    part = content.get("part")
    _keep("part", part, Rule(lambda v: v is None or one_of("backbone", "partial").holds(v), "backbone or partial"))
    check_network(content["network"], part)
    check_weights(content["weights"], ModelConfig.of(content["network"]), part)
    check_preprocessing(content.get("preprocessing"), content["network"]["backbone"])
    check_about(content.get("about"), content["network"]["classes"])
    if "training" in content:
        check_training(content["training"], len(content["network"]["classes"]))


def check_network(network: Any, part: str | None = None) -> None:
    """Raise SchemaError unless `network` describes a network of a size that can be built (model.ModelConfig)."""
    _table("network", network, NETWORK, ("classes", "backbone"), others=False)
    classes = network["classes"]
    for name in classes:
        if fault := class_name_fault(name):
            raise SchemaError(f"the class {_shown(name)} {fault}")
    if twins := same_file_name(classes):
        raise SchemaError(f"the classes {twins[0]!r} and {twins[1]!r} would have one file name")
    if not classes and part is None:
        raise SchemaError("it has no classes")


def check_preprocessing(settings: Any, backbone: str) -> None:
    """Raise SchemaError unless a CT can be prepared in this way for this backbone."""
    _table("preprocessing", settings, PREPROCESSING, ("spacing_mm", "hu_window", "window", "antialias"), others=False)
    window, multiple = settings["window"], BACKBONES[backbone].size_multiple
    if any(n % multiple for n in window) or math.prod(window) > MOST_WINDOW_VOXELS:
        raise SchemaError(f"preprocessing: a window of {' x '.join(map(str, window))} voxels; {backbone} takes "
                          f"multiples of {multiple}, and at most {MOST_WINDOW_VOXELS:,} voxels")


def check_about(about: Any, classes: Any) -> None:
    """Raise SchemaError unless what the file says about itself is plain, and about its own classes."""
    _table("about", about, ABOUT)
    _plain("about", about)
    for key in ("experimental", "in_pieces"):
        if strange := [name for name in about.get(key, ()) if name not in classes]:
            raise SchemaError(f"about: {key} names {_shown(strange[0])}, which is none of its classes")


def check_training(training: Any, classes: int) -> None:
    """Raise SchemaError unless this may be the state of a run; training/resume.py compares it with the run."""
    _table("training", training, TRAINING)
    if "sums" in training:
        _keep("training: sums", training["sums"], Rule(
            lambda v: isinstance(v, torch.Tensor) and v.shape == (3, classes) and v.dtype == torch.float64,
            f"a tensor of 3 x {classes} float64 numbers"))
    _plain("training: config", training.get("config"))
    _plain("training", training, tensors=True)


# -------------------------------------------------------------------------------------------------------- the weights

@functools.lru_cache(maxsize=8)
def expected(config: ModelConfig) -> dict[str, torch.Tensor]:
    """{name: tensor without numbers} of all that a network of this configuration holds.

    Without classes, it is the backbone alone. Raises ValueError for a network that cannot be built.
    """
    whole = ModelConfig.of({**config.describe(), "classes": config.classes or ("any",)})
    with torch.device("meta"):
        network = (PlainModel(whole) if whole.head == "softmax" else
                   UniversalModel(whole, torch.empty(len(whole.classes), whole.text_width)))
    return {name: tensor for name, tensor in network.state_dict().items()
            if config.classes or name.startswith("backbone.")}


def check_weights(weights: Any, config: ModelConfig, part: str | None = None) -> None:
    """Raise SchemaError unless the weights are dense tensors that fit the network.

    part: entries may be missing where the file is no whole model
    """
    if not isinstance(weights, dict):
        raise SchemaError(f"weights: {_shown(weights)}, not a dict of tensors")
    for name, tensor in weights.items():
        if type(name) is not str or not isinstance(tensor, torch.Tensor):
            raise SchemaError(f"weights: {_shown(name)} is {_shown(tensor)}, not a dense tensor of real numbers")
    if config.head == "class-specific" and config.lpg == "independent" and part is None:
        if len(weights) < 4 * len(config.classes):             # of each MLP; building many takes seconds, even without
            raise SchemaError(f"weights do not fit their network ({len(weights):,} tensors for "
                              f"{len(config.classes)} classes)")
    try:
        there = expected(config)
    except ValueError as error:
        raise SchemaError(f"weights do not fit their network ({error})") from None
    for name, tensor in weights.items():
        ours = there[name] if name in there else tensor
        if tensor.shape != ours.shape:
            raise SchemaError(f"weights do not fit their network ({name} has the shape {list(tensor.shape)}, not "
                              f"{list(ours.shape)})")
        if (tensor.dtype in FLOATS) != ours.is_floating_point():
            raise SchemaError(f"weights do not fit their network ({name} holds numbers of the type {tensor.dtype})")
        if name.endswith("relative_position_index") and not torch.equal(tensor, relative_position_index()):
            raise SchemaError(f"weights do not fit their network ({name} is that of another window)")
    missing, unexpected = [n for n in there if n not in weights], [n for n in weights if n not in there]
    if unexpected or missing and part is None:
        raise SchemaError(f"weights do not fit the {config.backbone} network: missing {_shown(missing[:3])}, "
                          f"unexpected {_shown(unexpected[:3])}")


# ------------------------------------------------------------------------------------------------------------- checks

def _table(what: str, values: Any, rules: Mapping[str, Rule], needed: tuple[str, ...] = (),
           others: bool = True) -> None:
    """Raise SchemaError unless `values` is a dict that keeps the rules. others: whether it may have further keys"""
    _keep(what, values, Rule(lambda v: isinstance(v, dict) and all(type(k) is str for k in v), "a dict"))
    for key, value in values.items():
        if key in rules:
            _keep(f"{what}: {key}", value, rules[key])
        elif not others:
            raise SchemaError(f"{what}: this version knows no {_shown(key)}")
    if missing := [key for key in needed if key not in values]:
        raise SchemaError(f"{what}: {missing[0]} is missing")


def _keep(what: str, value: Any, rule: Rule) -> None:
    if not rule.holds(value):
        raise SchemaError(f"{what} is {_shown(value)}, not {rule.words}")


def _shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, Opaque):
        return f"a {value.name}"
    if isinstance(value, torch.Tensor):
        return f"a tensor of the shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, dict) or isinstance(value, (list, tuple)) and len(value) > 4:
        return f"a {type(value).__name__} of {len(value):,}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join("..." if isinstance(v, (list, tuple)) else _shown(v) for v in value) + "]"
    return repr(value[:70] if isinstance(value, str) else value)


def _plain(what: str, value: Any, tensors: bool = False) -> None:
    """Raise SchemaError for a value that holds anything but text, numbers, lists and dicts, at most 100 deep.

    tensors: whether it may hold tensors too
    """
    seen: set[int] = set()                                    # a list may hold another one many times, or itself
    level = [value]
    for _ in range(100):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, (dict, list, tuple)):
                if id(one) not in seen:
                    seen.add(id(one))
                    inner += one.values() if isinstance(one, dict) else one
            elif not (isinstance(one, torch.Tensor) and tensors or type(one) in (str, int, float, bool, type(None))):
                raise SchemaError(f"{what} holds {_shown(one)}, which is no plain value")
        level = inner
        if not level:
            return
    raise SchemaError(f"{what} is nested more than 100 deep")
