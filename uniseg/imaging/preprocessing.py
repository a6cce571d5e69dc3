"""What happens to a CT before a network sees it (Section 4.1.2): grid, HU window, patch size, padding.

Training takes these settings from its recipe (training/recipe.py). A checkpoint stores them, and inference repeats
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of one network. The defaults are those of Section 4.1.2."""

    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)    # of the grid, along D, H, W
    hu_window: tuple[float, float] = (-175.0, 250.0)            # HU are clipped to it, then scaled to [0, 1]
    window: tuple[int, int, int] = (96, 96, 96)                 # voxels of a patch and of a sliding window, D H W
    antialias: bool = False                                     # average when the grid gets coarser; beyond the paper
    pad: str = "air"                                            # or "edge": repeat edge voxels; beyond the paper

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain lists and values: what a checkpoint and the statistics of a result store."""
        return {"spacing_mm": list(self.spacing_mm), "hu_window": list(self.hu_window), "window": list(self.window),
                "antialias": self.antialias, "pad": self.pad}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Preprocessing:
        """The settings that `to_dict` stored. A dict without "pad" means air.

        Raises KeyError where another setting is missing.
        """
        return cls(tuple(stored["spacing_mm"]), tuple(stored["hu_window"]), tuple(stored["window"]),
                   stored["antialias"], stored.get("pad", "air"))
