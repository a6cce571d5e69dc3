"""One HTML file that shows a CT with its masks in any browser, without a network: `infer --view`.

The file holds the images, compressed, beside the page that draws them. display.py makes the grid, encoding.py turns
voxels into text, page.py puts the page together, and web/ has its HTML, style and scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import inv_ornt_aff

from .. import taxonomy
from ..formats.labels import own_numbers
from ..imaging.grid import voxel_size_mm
from ..imaging.volume import Volume
from ..machine.about import NOT_A_MEDICAL_DEVICE, __version__
from ..machine.console import printable
from ..machine.files import atomic_write
from ..pictures.colors import class_color
from ..pictures.preview import degrees_oblique
from .display import Display, display_spacing, make_display, middles
from .encoding import HU_OF_BYTE, ct_bytes, packed
from .page import as_json, assemble
from .thumbnail import thumbnail

LARGEST_BYTES = 10_000_000         # of the images in a file
FIRST_VOXELS = 18e6                # of the grid that is tried first
STYLES = ("common.css", "view.css")
SCRIPTS = ("words.js", "volume.js", "planes.js", "legend.js", "controls.js", "main.js")
COMPOUND = np.sin(np.radians(15))  # an axis that is turned further than this has two letters, such as RA


def write_view(path: str | Path, ct: Volume, bits: np.ndarray, label_map: np.ndarray, names: Sequence[str],
               stats: Mapping[str, Any]) -> None:
    """Write the viewer of a case. The file appears complete or not at all, and equal results give equal files.

    ct:        the CT
    bits:      (D, H, W) RAS+ on the grid of the CT; bit k is the mask of names[k]
    label_map: (D, H, W) RAS+ the number of the class on top
    stats:     the content of the JSON file: its classes with volumes and remarks, its warnings, the model
    Raises FileError where the file cannot be written.
    """
    text = view_page(ct, bits, label_map, names, stats)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def view_page(ct: Volume, bits: np.ndarray, label_map: np.ndarray, names: Sequence[str], stats: Mapping[str, Any],
              largest_bytes: int = LARGEST_BYTES) -> str:
    """The text of the viewer; parameters are those of write_view.

    largest_bytes: that the images may take; the CT is made coarser until they do
    """
    values = [stats["classes"][name]["label"] for name in names]
    display, images = fitted(ct, bits, label_map, values, names, largest_bytes)
    content = _content(display, ct, names, stats)
    numbers = own_numbers(stats["classes"])
    shown = thumbnail(display, content["start"], content["main"], [class_color(numbers[name]) for name in names])
    return assemble("view.html", STYLES, SCRIPTS, {"data": as_json(content), "thumbnail": as_json(shown), **images})


def fitted(ct: Volume, bits: np.ndarray, label_map: np.ndarray, values: Sequence[int | None], names: Sequence[str],
           largest_bytes: int) -> tuple[Display, dict[str, str]]:
    """The finest grid whose images take at most `largest_bytes`, and their texts "ct" and "codes".

    How well a CT compresses depends on its noise; so grids are tried until one fits well.
    """
    most, native = FIRST_VOXELS, voxel_size_mm(ct.affine)
    for _ in range(8):
        spacing = display_spacing(ct.array.shape, native, most)
        display = make_display(ct.array, ct.affine, bits, label_map, values, names, spacing)
        images = {"ct": packed(ct_bytes(display.hu)), "codes": packed(display.codes)}
        share = sum(map(len, images.values())) / largest_bytes
        if share <= 1 and (share > 0.75 or np.array_equal(spacing, native)):
            break
        most = display.hu.size * 0.93 / share
    return display, images


# --------------------------------------------------------------------------------------------- what the page states

def _content(display: Display, ct: Volume, names: Sequence[str], stats: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the images, as web/legend.js and web/volume.js read it."""
    spacing = voxel_size_mm(display.affine)
    numbers = own_numbers(stats["classes"])
    classes, found = [], sorted((name for name in names if stats["classes"][name]["voxels"]), key=lambda n: numbers[n])
    middle = middles(display, len(names))
    for name in found:
        figures = stats["classes"][name]
        classes.append({"title": title(name), "color": class_color(numbers[name]),
                        "ml": figures["ml"], "voxels": figures["voxels"], "border": figures["touches_border"],
                        "experimental": printable(str(figures.get("experimental", ""))),
                        "middle": middle[names.index(name)]})
    position = {names.index(name): place for place, name in enumerate(found)}
    extent = spacing * display.hu.shape
    return {
        "case": printable(stats["input"]),
        "grid": {"shape": display.hu.shape, "spacing_mm": spacing.tolist(), "affine": display.affine.tolist(),
                 "to_file": file_index(display.affine, ct).tolist(), "letters": letters(display.affine),
                 "bytes_per_code": display.codes.dtype.itemsize, "note": grid_note(display, ct)},
        "hu_of_byte": HU_OF_BYTE.tolist(),
        "combinations": [[position[k] for k in those] for those in display.combinations],
        "classes": classes,
        "absent": [title(name) for name in names if name not in found],
        "warnings": [printable(warning) for warning in stats["warnings"]],
        "about": about(display, ct, stats),
        "start": start([one["middle"] for one in classes], display.hu.shape),
        "main": ("axial", "coronal", "sagittal")[int(np.argmax([extent[a] * extent[b] for a, b
                                                                in ((0, 1), (0, 2), (1, 2))]))]}


def title(name: str) -> str:
    """The name of a class as a clinician reads it: right_kidney -> right kidney. Control characters are escaped."""
    return printable(taxonomy.spoken(name).replace("_", " "))


def start(middles: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> list[int]:
    """The voxel where the crosshair stands first: of the middles of the classes the one in the middle of them all."""
    if not middles:
        return [n // 2 for n in shape]
    away = np.abs(np.array(middles) - np.median(middles, axis=0)) / shape
    return list(middles[int(away.sum(axis=1).argmin())])


def file_index(affine: np.ndarray, ct: Volume) -> np.ndarray:
    """The affine (4, 4) from indices of the grid that is shown to those of the file, in the order it is stored in."""
    return inv_ornt_aff(ct.geometry.orientation, ct.geometry.shape) @ np.linalg.inv(ct.affine) @ affine


def letters(affine: np.ndarray) -> list[tuple[str, str]]:
    """Per axis, what lies at its low and at its high end: L and R, P and A, I and S; two letters where it is oblique.

    >>> letters(np.diag([0.8, 0.8, 5.0, 1.0]))
    [('L', 'R'), ('P', 'A'), ('I', 'S')]
    """
    ends = []
    for axis in range(3):
        direction = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
        parts = [p for p in np.argsort(-np.abs(direction)) if abs(direction[p]) > COMPOUND]
        low, high = ("".join("LPI"[p] if (direction[p] > 0) == at_low else "RAS"[p] for p in parts)
                     for at_low in (True, False))
        ends.append((low, high))
    return ends


def reduced(display: Display, ct: Volume) -> bool:
    """Whether the grid that is shown is coarser than the CT's."""
    return not np.array_equal(display.affine, ct.affine)


def grid_note(display: Display, ct: Volume) -> str:
    """What the page says about its resolution."""
    def size(shape: Sequence[int], affine: np.ndarray) -> str:
        return f"{' × '.join(map(str, shape))} voxels of {' × '.join(f'{mm:.2f}' for mm in voxel_size_mm(affine))} mm"

    stored = size(ct.array.shape, ct.affine)
    if not reduced(display, ct):
        return f"{stored}, all of them shown"
    return f"{stored}; shown here: {size(display.hu.shape, display.affine)}, to keep this file small"


def about(display: Display, ct: Volume, stats: Mapping[str, Any]) -> list[str]:
    """What the page says about itself, a sentence or two each."""
    turned = degrees_oblique(display.affine)
    lines = [f"{NOT_A_MEDICAL_DEVICE.rstrip('.')}.",
             "Volumes are counted on all voxels of the CT.",
             "HU are kept in steps: of 4 HU in soft tissue, 16 in lung, 20 and more in bone."
             + (" Each is the mean over a voxel as shown here." if reduced(display, ct) else ""),
             "Where classes overlap, a tumour lies on its organ. Both are named under the cursor, and hiding one shows "
             "the other.",
             "Millimetres are those of the scanner, as the CT states them."]
    if turned > 1:
        lines.append(f"The axes of this CT are turned against the patient's by up to {turned:.0f} degrees. The planes "
                     "follow the CT's axes, and the letters name the nearest directions.")
    lines.append(f"uniseg {__version__}, weights {printable(str(stats['weights']['file']))}.")
    return lines
