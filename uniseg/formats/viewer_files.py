"""All files of `infer --viewer-files` beside a label map. Read seg_nrrd.py and color_tables.py first."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..imaging.file_names import viewer_paths
from ..machine.files import atomic_write
from . import color_tables
from .labels import LabelRow
from .seg_nrrd import Segment, write_seg_nrrd


def viewer_writers(result: Path, rows: Sequence[LabelRow], bits: np.ndarray, segments: Sequence[Segment],
                   affine: np.ndarray) -> dict[Path, Callable[[Path], None]]:
    """{file: the function that writes it} of one result. They raise FileError where a file cannot be written.

    result:   the label map
    rows:     of the values in the label map
    bits:     (X, Y, Z) the masks in the order of the CT's file, one bit per class
    segments: the masks, with the numbers that they have in the `.seg.nrrd`
    affine:   (4, 4) of the CT as stored, mm
    """
    paths = viewer_paths(result)
    contents = {"slicer colors": color_tables.slicer_color_table(rows, paths["slicer colors"].name),
                "itk-snap": color_tables.itksnap_labels(rows), "niivue": color_tables.niivue_labels(rows),
                "mricron colors": color_tables.mricron_colors(rows),
                "mricron names": color_tables.mricron_names(rows)}
    writers: dict[Path, Callable[[Path], None]] = {
        paths["slicer"]: partial(write_seg_nrrd, bits=bits, segments=segments, affine=affine)}
    return writers | {paths[kind]: partial(_write, content) for kind, content in contents.items()}


def _write(content: bytes, path: Path) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(content)
