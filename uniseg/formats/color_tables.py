"""Small text files that give the values of a label map their names and colours in other viewers.

    .ctbl          3D Slicer, colour table
    .txt           ITK-SNAP, label descriptions
    .json          niivue, colour map of labels
    .lut, .txt     MRIcron, 256 colours and the names

Each function makes the content of one file of the rows of labels.py. Names of classes are letters, digits, space, _, .
and - (imaging/file_names.py), so nothing in them can end a name or a line.
"""

import json
from collections.abc import Sequence

from .labels import LabelRow


def slicer_color_table(rows: Sequence[LabelRow], name: str) -> bytes:
    """Slicer's `.ctbl`: `index name R G B A` from 0 to 255; a space would end the name."""
    lines = [f"# Color table file {name}", f"# {len(rows) + 1} values", "0 Background 0 0 0 0"]
    lines += [f"{row.value} {row.name.replace(' ', '_')} {_numbers(row)} 255" for row in rows]
    return _text(lines)


def itksnap_labels(rows: Sequence[LabelRow]) -> bytes:
    """ITK-SNAP's label descriptions: `index R G B alpha visible mesh "name"`."""
    lines = ["# ITK-SNAP label descriptions: Segmentation, Import Label Descriptions",
             '0 0 0 0 0 0 0 "Clear Label"', *(f'{row.value} {_numbers(row)} 1 1 1 "{row.name}"' for row in rows)]
    return _text(lines)


def niivue_labels(rows: Sequence[LabelRow]) -> bytes:
    """niivue's colour map: `nv.volumes[1].setColormapLabel(json)`."""
    red, green, blue = ([0, *(row.color[k] for row in rows)] for k in range(3))
    content = {"R": red, "G": green, "B": blue, "A": [0, *(255 for _ in rows)], "I": [0, *(row.value for row in rows)],
               "labels": ["background", *(row.name for row in rows)]}
    return (json.dumps(content) + "\n").encode()


def mricron_colors(rows: Sequence[LabelRow]) -> bytes:
    """MRIcron's `.lut`: 256 times red, then green, then blue. Values above 255 have no place in it."""
    table = bytearray(768)
    for row in rows:
        if row.value <= 255:
            table[row.value::256] = bytes(row.color)
    return bytes(table)


def mricron_names(rows: Sequence[LabelRow]) -> bytes:
    """MRIcron's names: `index name`."""
    return _text([f"{row.value} {row.name}" for row in rows])


def _numbers(row: LabelRow) -> str:
    return " ".join(map(str, row.color))


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
