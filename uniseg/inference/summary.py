"""A result as text: what `infer` prints of a case, and what Python prints of a Segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import taxonomy


def title(stats: Mapping[str, Any]) -> str:
    """The CT, its grid, and how long it took, in one line. stats: those of a Segmentation"""
    size = " x ".join(f"{mm:.3g}" for mm in stats["spacing_mm"])
    return (f"{stats['input']}: {' x '.join(map(str, stats['shape']))} voxels of {size} mm, segmented by "
            f"{stats['weights']['file']} in {stats['seconds']['total']:.1f} s")


def class_lines(stats: Mapping[str, Any]) -> Iterator[str]:
    """A line for each class that was found, with its number, its volume and what to know about it; then the others."""
    for name, figures in stats["classes"].items():
        if figures["voxels"]:
            remarks = [f"experimental: {figures['experimental']}"] if "experimental" in figures else []
            remarks += ["touches the border, so this is a part of it"] if figures["touches_border"] else []
            label = "-" if figures["label"] is None else figures["label"]
            row = f"  {label:>3}  {taxonomy.spoken(name):30s} {figures['ml']:10.1f} ml"
            yield "  ".join([row, *remarks])
    if stats["empty"]:
        yield "  nothing found"
    elif stats["not_found"]:
        yield f"  looked for and not found: {', '.join(stats['not_found'])}"


def found(stats: Mapping[str, Any]) -> int:
    """How many classes have a voxel."""
    return sum(bool(figures["voxels"]) for figures in stats["classes"].values())
