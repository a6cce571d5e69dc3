"""What happens to a CT before a network sees it: grid, HU window, padding (Section 4.1.2)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Section 4.1.2; stored in the checkpoint, so that inference repeats it."""

    spacing_mm: tuple = (1.5, 1.5, 1.5)        # isotropic
    hu_window: tuple = (-175.0, 250.0)         # clipped, then scaled to [0, 1]
    antialias: bool = False                    # beyond the paper: average instead of pick when the grid gets coarser
    pad: str = "air"                           # beyond the paper, "edge": a case smaller than the patch goes on as its outermost voxels
