"""What a weights file is, in about one screen of text: the answer of `python -m uniseg.checkpoint FILE`.

Read checkpoint.py first for the form of the content, and released.py for files of others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..backbones.build import PAPER_WIDTH
from ..machine.console import printable
from ..machine.files import file_sha256
from . import released
from .released import Report

WIDTH = 120                                            # characters per line
NOT_WRAPPED = ("file", "made by", "use")               # lines to be copied and pasted
SHOWN = 4                                              # entries of each kind that do not fit, without --all

Line = tuple[str, str]                                 # title and text


def describe(path: str | Path, content: Mapping[str, Any], every: bool = False) -> list[str]:
    """Lines that tell what a weights file is and how to use it.

    content: of checkpoint.read; every: list all entries that do not fit, not only the first few
    """
    report, part = content.get("report"), content.get("part")
    lines = [("file", f"{path}, {Path(path).stat().st_size / 1e6:.1f} MB"), ("sha256", file_sha256(path)),
             *_network_lines(content)]
    if not part:
        lines += _input_lines(content)
    lines += _origin_lines(content)
    if report:
        lines += _report_lines(report, every)
    if part:
        more = " --partial" if report and not report.complete else ""
        lines.append(("use", f"python -m uniseg.train --data-root ROOT --init {path}{more}"))
    else:
        lines.append(("use", f"python -m uniseg.infer ct.nii.gz --weights {path}"))
    return [_wrapped(title, text) for title, text in lines]


def _wrapped(title: str, text: str) -> str:
    text = printable(text)                             # names and commands come from the file
    if title in NOT_WRAPPED:
        return f"{title:11}{text}"
    return textwrap.fill(text, WIDTH, initial_indent=f"{title:11}", subsequent_indent=" " * 11, break_on_hyphens=False)


def _network_lines(content: Mapping[str, Any]) -> Iterator[Line]:
    """The network: backbone, LPG, text embedding, classes, parameters."""
    network, weights, about = content["network"], content["weights"], content["about"]
    backbone, width = network["backbone"], network["width"] or PAPER_WIDTH[network["backbone"]]
    learned = {n: t for n, t in weights.items() if t.is_floating_point() and n != "organ_embedding"}
    in_backbone = sum(t.numel() for n, t in learned.items() if n.startswith("backbone."))
    merging = f", patch merging {network['merging']}" if backbone == "swin_unetr" else ""
    yield "what", released.title(network) + (", in part" if content.get("part") == "partial" else "")
    yield "backbone", f"{released.TITLES[backbone]}, width {width}{merging}, {in_backbone:,} parameters"
    if network["classes"] and network.get("head") != "softmax":
        encoder = about.get("embedding", {}).get("encoder", "vectors from the file")
        yield "LPG", f"{network['lpg']}, hidden width {network['lpg_hidden'] or 'of the released code'}"
        yield "text", f"{network['text_width']} numbers per class, encoding {network.get('encoding', 'v3')}, {encoder}"
    experimental = about.get("experimental", {})
    marked = [f"{name} (experimental)" if name in experimental else name for name in network["classes"]]
    if marked:
        yield "classes", f"{len(marked)}: {', '.join(marked)}"
    yield "parameters", f"{sum(t.numel() for t in learned.values()):,}"


def _input_lines(content: Mapping[str, Any]) -> Iterator[Line]:
    """The input: spacing, HU window, size of the sliding window, channels."""
    settings = content["preprocessing"]
    low, high = settings["hu_window"]
    assumed = " (the paper's; the file does not say)" if content.get("report") else ""
    yield "input", (f"{' x '.join(f'{s:g}' for s in settings['spacing_mm'])} mm, HU {low:g} to {high:g}, "
                    f"windows {' x '.join(map(str, settings['window']))}{assumed}")
    windows = [tuple(low + end * (high - low) for end in pair) for pair in content["network"].get("input_windows", ())]
    if windows:
        yield "", f"{len(windows)} channels: HU {', '.join(f'{a:g} to {b:g}' for a, b in windows)}"


def _origin_lines(content: Mapping[str, Any]) -> Iterator[Line]:
    """Where the weights come from."""
    about = content["about"]
    if "extend" in about:
        yield "extends", f"{about['extend']['file']}, sha256 {about['extend']['sha256']}"
    if "command" in about:
        yield "made by", about["command"]
    if "converted_from" in about and not content.get("report"):
        yield "made from", f"{about['converted_from']}, sha256 {about['sha256']}"
    if "training" in content:
        yield "training", f"step {content['training']['step']}; --resume goes on"


def _report_lines(report: Report, every: bool) -> Iterator[Line]:
    """What became of the entries of a released file."""
    container = f"under {report.container}" if report.container else "a bare state dict"
    yield "entries", f"{report.entries}, {container}: {report.summary()}, {len(report.ignored)} ignored"
    for reason in dict.fromkeys(report.ignored.values()):
        names = [name for name, why in report.ignored.items() if why == reason]
        yield "ignored", f"{len(names)} ({names[0]}{', ...' if len(names) > 1 else ''}): {reason}"
    mismatched = {name: f"{theirs}, not {ours}" for name, (theirs, ours) in report.mismatched.items()}
    for title, entries in (("missing", report.missing), ("unexpected", report.unexpected), ("shape", mismatched)):
        shown = list(entries.items())[:None if every else SHOWN]
        yield from ((title, f"{name[:200]} {shape}") for name, shape in shown)
        if len(entries) > len(shown):
            yield title, f"... and {len(entries) - len(shown)} more; --all lists them"
