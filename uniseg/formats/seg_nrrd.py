"""A segmentation for 3D Slicer, `.seg.nrrd`: names, colours, SNOMED CT codes, and overlapping masks kept as they are.

https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html describes the file: a text header, an
empty line, gzip data. Segments that overlap lie in different layers; several layers are the first axis of the data. The
grid is that of the CT as stored, in the left-posterior-superior axes of DICOM. Read snomed.py first.
"""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..imaging.bits import Box, bounding_box, get_bit
from ..imaging.merging import merging_order
from ..machine.files import atomic_write
from .labels import Color
from .snomed import Code, terms_of

BLOCK_VOXELS = 1 << 20               # written at a time
TO_LPS = np.diag([-1.0, -1.0, 1.0])  # from right-anterior-superior to left-posterior-superior
ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
REGION = "Anatomic codes - DICOM master list"


class Segment(NamedTuple):
    """One mask."""

    bit: int          # its position in the bit volume
    value: int        # of its voxels in the file, different for every segment
    name: str
    color: Color


def write_seg_nrrd(path: str | Path, bits: np.ndarray, segments: Sequence[Segment], affine: np.ndarray) -> None:
    """Write the masks that are not empty. Equal bytes for equal input; memory grows with a few planes only.

    bits:   (X, Y, Z) one bit per class, in the order of the CT's file
    affine: (4, 4) of that grid: indices to mm in right-anterior-superior axes
    Raises FileError where the file cannot be written.
    """
    boxes = {segment.bit: box for segment in segments if (box := bounding_box(get_bit(bits, segment.bit)))}
    present = [segment for segment in segments if segment.bit in boxes]
    layers = layers_of(bits, present, boxes)
    count = max(layers.values(), default=0) + 1
    dtype = np.dtype(np.uint8 if max((s.value for s in present), default=0) <= 255 else "<u2")
    lines = [*_grid_lines(bits.shape, affine, count, dtype), *_about_the_file()]
    for number, segment in enumerate(present):
        lines += _segment_lines(number, segment, layers[segment.bit], boxes[segment.bit])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
            _write_voxels(packed, bits, present, layers, count, dtype)


def layers_of(bits: np.ndarray, segments: Sequence[Segment], boxes: dict[int, Box]) -> dict[int, int]:
    """{bit: layer} such that segments of one layer share no voxel. Organs come first, then vessels, then tumours.

    boxes: {bit: the box of its mask}; of non-empty masks
    """
    sharing: dict[int, int] = {}             # bit -> all bits that share a voxel with it
    for segment in segments:
        part = bits[boxes[segment.bit]]
        sharing[segment.bit] = int(np.bitwise_or.reduce(part[get_bit(part, segment.bit)]))
    layers: dict[int, int] = {}
    for position in merging_order([segment.name for segment in segments]):
        bit = segments[position].bit
        taken = {layer for other, layer in layers.items() if sharing[bit] >> other & 1}
        layers[bit] = next(layer for layer in range(len(segments)) if layer not in taken)
    return layers


def _write_voxels(file: gzip.GzipFile, bits: np.ndarray, segments: Sequence[Segment], layers: dict[int, int],
                  count: int, dtype: np.dtype) -> None:
    for planes in _blocks(bits):
        voxels = np.zeros((count, *planes.shape), dtype, order="F")
        for segment in segments:
            np.putmask(voxels[layers[segment.bit]], get_bit(planes, segment.bit), segment.value)
        file.write(voxels.tobytes(order="F"))


def _blocks(bits: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_VOXELS // max(1, bits.shape[0] * bits.shape[1]))
    return (bits[..., start:start + step] for start in range(0, bits.shape[2], step))


# ----------------------------------------------------------------------------------------------------------- the header

def _grid_lines(shape: Sequence[int], affine: np.ndarray, layers: int, dtype: np.dtype) -> list[str]:
    several = layers > 1
    lps = TO_LPS @ affine[:3]
    directions = [_vector(column) for column in lps[:, :3].T]
    sizes = [*([layers] if several else []), *shape]
    return ["NRRD0004", "# https://teem.sourceforge.net/nrrd/format.html",
            f"type: {'unsigned char' if dtype.itemsize == 1 else 'unsigned short'}", f"dimension: {len(sizes)}",
            "space: left-posterior-superior", f"sizes: {' '.join(map(str, sizes))}",
            f"space directions: {' '.join([*(['none'] if several else []), *directions])}",
            f"kinds: {'list ' if several else ''}domain domain domain",
            *([] if dtype.itemsize == 1 else ["endian: little"]), "encoding: gzip",
            f"space origin: {_vector(lps[:, 3])}"]


def _vector(numbers: np.ndarray) -> str:
    return "(" + ",".join(repr(float(number) + 0.0) for number in numbers) + ")"         # + 0.0: no -0.0


def _about_the_file() -> list[str]:
    return ["Segmentation_ContainedRepresentationNames:=Binary labelmap|",
            "Segmentation_MasterRepresentation:=Binary labelmap", "Segmentation_SourceRepresentation:=Binary labelmap",
            "Segmentation_ReferenceImageExtentOffset:=0 0 0"]


def _segment_lines(number: int, segment: Segment, layer: int, box: Box) -> list[str]:
    fields = {"ID": segment.name, "Name": segment.name, "NameAutoGenerated": "0",
              "Color": " ".join(f"{part / 255:.6g}" for part in segment.color), "ColorAutoGenerated": "0",
              "LabelValue": str(segment.value), "Layer": str(layer),
              "Extent": " ".join(f"{part.start} {part.stop - 1}" for part in box)}
    if tag := _terminology(segment.name):
        fields["Tags"] = f"{tag}|"
    return [f"Segment{number}_{key}:={value}" for key, value in fields.items()]


def _terminology(name: str) -> str:
    """What Slicer calls a terminology entry; "" for a class without codes."""
    terms = terms_of(name)
    if terms is None:
        return ""
    parts = [ANATOMY, _coded(terms.category), _coded(terms.type), _coded(terms.side), REGION, _coded(terms.region),
             _coded(None)]
    return "TerminologyEntry:" + "~".join(parts)


def _coded(code: Code | None) -> str:
    return f"SCT^{code.value}^{code.meaning}" if code else "^^"
