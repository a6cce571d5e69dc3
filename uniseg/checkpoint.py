"""Checkpoints: written atomically with plain types only, read with weights_only=True, checked against their own hash.

    {"format": 1, "network": ModelConfig, "preprocessing": {...}, "weights": state dict, "digest": sha256 of the weights,
     "about": {..., "experimental": {class: why it is computed on request only}, "in_pieces": [class], "second_view": share}, "part": "backbone" or "partial" where it is no whole model,
     "training": {...} only in a run's own checkpoints}

Files of the authors and of others are read too (released.py):

    python -m uniseg.checkpoint FILE               what it is, its backbone, heads, classes, sha256, and how to use it
    python -m uniseg.checkpoint FILE -o OUT.pt     convert it into the form above
"""

import errno
import hashlib
import os
import sys
import textwrap
import zipfile
from pathlib import Path

import torch

from .backbones.build import PAPER_WIDTH
from .baselines import PlainModel
from .machine.about import __version__
from .machine.console import Parser, error_line, say
from .machine.files import atomic_write
from .model import ModelConfig, build
from .weights import released

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


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()  # Python 3.10


def save(path, network, preprocessing, about=None, training=None, half=False):
    """Write a network as a checkpoint; an interrupted write leaves the former file.

    With the state of `training`, the former file stays as well: `last.pt` becomes `last.prev.pt`.
    preprocessing: {"spacing_mm", "hu_window", "window", "antialias", "pad" (data.Preprocessing)}, what inference has
                   to repeat
    half:          store floating-point weights in float16 (for shipping)
    """
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    if half:
        weights = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    if broken := not_finite(weights):
        raise CheckpointError(f"{path}: not written, {broken} holds NaN or infinity. Lower --lr.")
    more = {} if training is None else {"training": training}
    write(path, {"network": network.describe(), "preprocessing": preprocessing, "weights": weights, "about": about or {},
                 **more}, keep=None if training is None else previous(path))


def previous(path):
    """last.pt -> last.prev.pt"""
    return Path(path).with_suffix(".prev.pt")


def write(path, content, keep=None):
    """Write the content of a checkpoint, with its format and digest, and read it back before it takes the place of the
    former file, which goes to `keep`; an interrupted write leaves the former file."""
    content = {"format": FORMAT, "uniseg": __version__, **content, "digest": digest(content["weights"])}
    with atomic_write(path, keep) as temporary:
        with open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's words for a full disk are "unexpected pos 768 vs 662"
                raise error.__context__ if isinstance(error.__context__, OSError) else error
            file.flush()
            os.fsync(file.fileno())
        try:
            read(temporary)
        except CheckpointError:
            raise OSError(errno.EIO, "what was written reads back damaged") from None


def read(path, partial=False):
    """The content of a weights file as a dict in the form of this module's head, its weights verified.

    A file of the authors or of others (released.py) comes in the same form, with a `report` of what became of its entries.
    partial: accept such a file where entries are missing, unexpected or of another shape; `part` is then "partial".

    Only tensors and plain Python values are unpickled (weights_only=True): a weights file cannot run code.
    Raises CheckpointError.
    """
    path = Path(path)
    content = _unpickle(path)
    if not isinstance(content, dict) or not {"network", "weights", "digest"} <= content.keys():
        content = _from_released(content, path, partial)
    elif content.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path}: format {content['format']}, this version reads up to {FORMAT}. Upgrade uniseg.")
    elif digest(content["weights"]) != content["digest"]:
        raise CheckpointError(f"{path}: damaged, its weights do not match their sha256. Copy or download it again.")
    for settings in (content.get("preprocessing", {}), content.get("training", {}).get("config", {})):
        if "pad_slices" in settings:                               # another name of it; "edge" is then of slices alone in training
            settings["pad"] = settings.pop("pad_slices")
    if broken := not_finite(content["weights"]):
        raise CheckpointError(f"{path}: {broken} holds NaN or infinity. Use another checkpoint.")
    return content


def _unpickle(path):
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
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file; all mean the same here
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({reason}). "
                              "Use a checkpoint written by uniseg.train.") from None


def _from_released(content, path, partial):
    """The content of a file of others, in this module's form."""
    try:
        config, weights, report = released.translate(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a uniseg checkpoint nor one that it can convert: {error}. "
                              "Use a checkpoint of uniseg.train or a file of README's table.") from None
    if not report.complete and not partial:
        raise CheckpointError(f"{path}: fits a {released.title(config)} in part only: {_summary(report)}. "
                              "`python -m uniseg.checkpoint FILE` lists them, -o OUT.pt --partial takes what fits.")
    content = {"format": FORMAT, "network": config, "preprocessing": released.PREPROCESSING, "weights": weights,
               "digest": digest(weights), "about": {"converted_from": path.name, "sha256": file_sha256(path)}, "report": report}
    if not report.complete or not config["classes"]:
        content["part"] = "backbone" if report.complete else "partial"
    return content


def _summary(report):
    counts = {"loaded": report.loaded, "missing": report.missing, "unexpected": report.unexpected,
              "of another shape": report.mismatched}
    return ", ".join(f"{len(entries)} {what}" for what, entries in counts.items() if entries)


def _intact(path):
    """Whether every part of the zip file, names and settings included, has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises many kinds for a damaged file
        return False


def build_network(description, embedding=None):
    """The network of a `describe()` dict: the universal model, or the plain network of the baselines where it has a softmax."""
    config = ModelConfig.of(description)
    return PlainModel(config) if config.head == "softmax" else build(description, embedding)


def load_network(content, path="checkpoint"):
    """The network of `read()`'s content, in float32 and eval mode."""
    if part := content.get("part"):
        what = "a backbone without class heads" if part == "backbone" else "part of a model only"
        raise CheckpointError(f"{path}: {what}, it cannot segment. Train from it: python -m uniseg.train --init FILE.")
    try:
        network = build_network(content["network"])
        missing, unexpected = network.load_state_dict(content["weights"], strict=False)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: weights do not fit their network ({reason}). Use a matching file.") from None
    if missing or unexpected:
        raise CheckpointError(f"{path}: weights do not fit the {content['network']['backbone']} network: "
                              f"missing {list(missing)[:3]}, unexpected {list(unexpected)[:3]}. Use a matching file.")
    return network.eval()


def initialise(network, content, path="checkpoint", anew=()):
    """Start `network` from the weights of `content` (`read()`), Section 4.6: all that does not belong to single classes, and
    of the LPG what belongs to classes that both have, by name, with their text embeddings. Classes in `anew` keep the network's.

    Returns the names of the network's tensors that were left at their start. Raises CheckpointError where the backbone differs.
    """
    then, ours, theirs = content["network"], network.state_dict(), content["weights"]
    backbone, width = then["backbone"], then["width"] or PAPER_WIDTH[then["backbone"]]
    if (backbone, width) != (network.config.backbone, network.config.width or PAPER_WIDTH[network.config.backbone]):
        raise CheckpointError(f"{path}: holds a {released.TITLES[backbone]} of width {width}. "
                              f"Give --backbone {backbone} --width {width}.")
    shared = {c: (then["classes"].index(c), k) for k, c in enumerate(network.classes)
              if c in then["classes"] and c not in anew}
    apart = ("lpg.", "organ_embedding") + (("out.",) if then["classes"] != list(network.classes) else ())
    pairs = {n: n for n in ours if not n.startswith(apart)}                                 # our name: theirs
    if (then.get("lpg"), then.get("text_width")) == (network.config.lpg, network.config.text_width):
        if network.config.lpg == "shared":
            pairs |= {n: n for n in ours if n.startswith("lpg.")}
        for old, new in shared.values():
            prefix = f"lpg.controllers.{new}."
            pairs |= {n: f"lpg.controllers.{old}.{n.removeprefix(prefix)}" for n in ours if n.startswith(prefix)}
    taken = {n: theirs[m].to(ours[n].dtype) for n, m in pairs.items() if m in theirs and theirs[m].shape == ours[n].shape}
    if "organ_embedding" in theirs and any(n.startswith("lpg.") for n in taken):
        rows = ours["organ_embedding"].clone()
        for old, new in shared.values():
            rows[new] = theirs["organ_embedding"][old]
        taken["organ_embedding"] = rows
    network.load_state_dict(taken, strict=False)
    return [n for n in ours if n not in taken]


# ------------------------------------------------------------------------------------------------------------ the command

def describe(path, content, every=False):
    """Lines that tell what a weights file is and how to use it, about one screen; every: list all entries that do not fit."""
    network, weights, about, part = content["network"], content["weights"], content["about"], content.get("part")
    learned = {n: t for n, t in weights.items() if t.is_floating_point() and n != "organ_embedding"}
    in_backbone = sum(t.numel() for n, t in learned.items() if n.startswith("backbone."))
    merging = f", patch merging {network['merging']}" if network["backbone"] == "swin_unetr" else ""
    name, width = network["backbone"], network["width"] or PAPER_WIDTH[network["backbone"]]
    lines = [("file", f"{path}, {Path(path).stat().st_size / 1e6:.1f} MB"), ("sha256", file_sha256(path)),
             ("what", released.title(network) + (", in part" if part == "partial" else "")),
             ("backbone", f"{released.TITLES[name]}, width {width}{merging}, {in_backbone:,} parameters")]
    if network["classes"] and network.get("head") != "softmax":
        encoder = about.get("embedding", {}).get("encoder", "vectors from the file")
        lines += [("LPG", f"{network['lpg']}, hidden width {network['lpg_hidden'] or 'of the released code'}"),
                  ("text", f"{network['text_width']} numbers a class, encoding {network.get('encoding', 'v3')}, {encoder}")]
    marked = [f"{name} (experimental)" if name in about.get("experimental", {}) else name for name in network["classes"]]
    lines += [("classes", f"{len(marked)}: {', '.join(marked)}")] if marked else []
    lines.append(("parameters", f"{sum(t.numel() for t in learned.values()):,}"))
    pre, report = content["preprocessing"], content.get("report")
    if not part:
        assumed = " (the paper's; the file does not say)" if report else ""
        low, high = pre["hu_window"]
        lines.append(("input", f"{' x '.join(f'{s:g}' for s in pre['spacing_mm'])} mm, HU {low:g} to {high:g}, "
                               f"windows {' x '.join(map(str, pre['window']))}{assumed}"))
        if channels := [tuple(low + end * (high - low) for end in pair) for pair in network.get("input_windows", ())]:
            lines.append(("", f"{len(channels)} channels: HU {', '.join(f'{a:g} to {b:g}' for a, b in channels)}"))
    lines += [("extends", f"{about['extend']['file']}, sha256 {about['extend']['sha256']}")] if "extend" in about else []
    lines += [("made by", about["command"])] if "command" in about else []
    if "converted_from" in about and not report:
        lines.append(("made from", f"{about['converted_from']}, sha256 {about['sha256']}"))
    lines += [("training", f"step {content['training']['step']}; --resume goes on")] if "training" in content else []
    lines += _fate(report, every) if report else []
    if part:
        more = " --partial" if report and not report.complete else ""
        lines.append(("use", f"python -m uniseg.train --data-root ROOT --init {path}{more}"))
    else:
        lines.append(("use", f"python -m uniseg.infer ct.nii.gz --weights {path}"))
    whole = ("file", "made by", "use")                                             # to be pasted
    return [f"{key:11}{value}" if key in whole else
            textwrap.fill(value, 120, initial_indent=f"{key:11}", subsequent_indent=" " * 11, break_on_hyphens=False)
            for key, value in lines]


def _fate(report, every):
    """What became of the entries of a released file, as lines of `describe`."""
    where = f"under {report.container}" if report.container else "a bare state dict"
    lines = [("entries", f"{report.entries}, {where}: {_summary(report)}, {len(report.ignored)} ignored")]
    for reason in dict.fromkeys(report.ignored.values()):
        names = [n for n, r in report.ignored.items() if r == reason]
        lines.append(("ignored", f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''}): {reason}"))
    mismatched = {n: f"{theirs}, not {ours}" for n, (theirs, ours) in report.mismatched.items()}
    for what, entries in (("missing", report.missing), ("unexpected", report.unexpected), ("shape", mismatched)):
        shown = list(entries.items())[:None if every else 4]
        lines += [(what, f"{name} {shape}") for name, shape in shown]
        if len(entries) > len(shown):
            lines.append((what, f"... and {len(entries) - len(shown)} more; --all lists them"))
    return lines


def main(argv=None):
    """Returns the exit code: 0, 1 (cannot be written) or 2 (not usable)."""
    parser = Parser(prog="python -m uniseg.checkpoint", description="Say what a weights file is; convert it.")
    parser.add_argument("file", type=Path, help="weights of uniseg, of the authors, of SuPreM, MONAI or Models Genesis")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.pt", help="write it as a checkpoint of uniseg")
    parser.add_argument("--partial", action="store_true", help="convert what fits, although entries are missing or left over")
    parser.add_argument("--half", action="store_true", help="with -o: in float16, half the size")
    parser.add_argument("--all", action="store_true", help="list every entry that does not fit")
    args = parser.parse_args(argv)
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


def convert(path, content, half=False):
    """Write what `read()` returned as a checkpoint without a run's state."""
    kept = {k: v for k, v in content.items() if k in ("network", "preprocessing", "weights", "about", "part")}
    if half:
        kept["weights"] = {n: t.half() if t.is_floating_point() else t for n, t in kept["weights"].items()}
        if broken := not_finite(kept["weights"]):
            raise CheckpointError(f"{path}: not written, {broken} does not fit into float16. Leave out --half.")
    write(path, kept)


if __name__ == "__main__":
    sys.exit(main())
