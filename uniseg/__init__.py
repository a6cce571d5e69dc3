"""uniseg: the CLIP-Driven Universal Model for abdominal CT (Liu et al., Medical Image Analysis 2024).

>>> import uniseg
>>> model = uniseg.load()                        # the built-in weights, or uniseg.load("last.pt", device="cuda")
>>> segmentation = model.segment("ct.nii.gz")    # doctest: +SKIP

docs/api.md describes the public names. To read the code beside the paper, begin with taxonomy.py; README has the order.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .taxonomy import CLASSES

if TYPE_CHECKING:
    from .segmenter import Segmentation, Segmenter, load

# As a command, not where somebody's program imports the package: Ctrl-C ends it with one line, even while it starts,
# and its help page waits for no library. `python -m uniseg.train` runs this file first; argv[0] is then "-m".
_words = sys.orig_argv[sys.orig_argv.index("-m") + 1:] if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv else []
_module = _words[0] if _words and _words[0].split(".")[0] == "uniseg" else ""
_script = os.path.basename((sys.argv or [""])[0])
if _module or _script in ("uniseg", "uniseg-infer", "uniseg-train", "uniseg-evaluate"):
    from .machine.console import end_quietly

    end_quietly()
    if "uniseg" not in (_module, _script):
        from .machine.commands import answer_help

        answer_help(_module.removeprefix("uniseg.") or _script.removeprefix("uniseg-"), sys.argv[1:])

__all__ = ["CLASSES", "NOT_A_MEDICAL_DEVICE", "Segmentation", "Segmenter", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load`, `Segmenter`, `Segmentation`, and torch with them, at their first use: `--help` needs no torch."""
    if name in ("load", "Segmenter", "Segmentation"):
        from . import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'uniseg' has no attribute {name!r}")
