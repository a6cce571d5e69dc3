"""uniseg: the CLIP-Driven Universal Model for abdominal CT (Liu et al., Medical Image Analysis 2024).

>>> import uniseg
>>> model = uniseg.load()                        # the built-in weights, or uniseg.load("last.pt", device="cuda")
>>> segmentation = model.segment("ct.nii.gz")    # doctest: +SKIP

To read the code beside the paper, begin with taxonomy.py; README has the whole order. docs/api.md describes the public names.
"""

from typing import TYPE_CHECKING, Any

from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .taxonomy import CLASSES

if TYPE_CHECKING:
    from .segmenter import Segmentation, Segmenter, load

__all__ = ["CLASSES", "NOT_A_MEDICAL_DEVICE", "Segmentation", "Segmenter", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, `Segmenter` and `Segmentation` import torch when they are first asked for, so that `--help` answers at once."""
    if name in ("load", "Segmenter", "Segmentation"):
        from . import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'uniseg' has no attribute {name!r}")
