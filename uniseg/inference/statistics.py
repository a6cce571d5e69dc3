"""The figures and the record of a segmentation: the content of the JSON file beside a label map."""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy
import torch

from ..imaging.grid import voxel_size_mm
from ..imaging.volume import Geometry
from ..machine.about import NOT_A_MEDICAL_DEVICE, __version__
from ..machine.memory import peak_memory_bytes
from .finished import identity, stamp


class Clock:
    """Seconds of each named stage: `with clock("read"): ...`"""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.stages[stage] = round(time.monotonic() - start, 3)

    def seconds(self) -> dict[str, float]:
        """{stage: its seconds}, and "total" since the clock was made."""
        return {**self.stages, "total": round(time.monotonic() - self.began, 3)}


def record(source: object, stamp_before: object, geometry: Geometry, native_affine: np.ndarray,
           model: Mapping[str, Any], settings: Mapping[str, Any], counted: Mapping[str, dict[str, Any]],
           notes: Sequence[str], warnings: Sequence[str], clock: Clock) -> dict[str, Any]:
    """How a result came about, ready for JSON.

    source:        the CT as the user gave it: a path or an image
    stamp_before:  finished.stamp of the source before it was read; where it changed since, nothing identifies it
    native_affine: (4, 4) of the CT in RAS+, mm
    model:         weights, backbone and preprocessing
    settings:      of this run
    counted:       what measures.measure returns
    notes:         what post-processing changed
    """
    axes = geometry.orientation[:, 0].astype(int)            # the stored axes in RAS+
    spacing_mm = voxel_size_mm(native_affine)[axes]          # in the order of the file
    return {
        "disclaimer": NOT_A_MEDICAL_DEVICE,
        "versions": {"uniseg": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
                     "scipy": scipy.__version__, "nibabel": nibabel.__version__, "python": platform.python_version()},
        "input": Path(source).name if isinstance(source, (str, Path)) else "image in memory",
        "shape": list(geometry.shape),
        "spacing_mm": [round(float(s), 6) for s in spacing_mm],
        **model,
        "settings": dict(settings),
        "classes": dict(counted),
        "not_found": [name for name, figures in counted.items() if not figures["voxels"]],
        "not_in_the_label_map": [name for name, figures in counted.items() if figures["label"] is None],
        "empty": not any(figures["voxels"] for figures in counted.values()),
        "postprocessing": list(notes),
        "warnings": list(warnings),
        "seconds": clock.seconds(),
        "peak_memory_mib": round(peak_memory_bytes() / 2 ** 20),
        "input_file": identity(source) if stamp_before == stamp(source) else None}
