"""The picture of a result: three slices with the classes over them, and beside them who is who and how large.

`preview` draws one result, `comparison` several label maps over the same slices. Both choose the slices, the part that
is shown and the layout by themselves. Read slices.py and blocks.py first; docs/pictures.md shows examples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import taxonomy
from . import blocks
from .blocks import LETTER, SMALL_WORDS, Block, Entry, below, beside, empty, indented, paragraph
from .canvas import FAINT, INK
from .colors import class_color
from .slices import HU_WINDOW, PLANES, Case, Plane, make_case, shown_part, slice_picture

LEAST, MOST = 600, 1200           # pixels of the longer side of each slice
GAP = 10                          # pixels between blocks
TITLE_WORDS = 2.5                 # pixels per unit of the letters of the case's name
NARROWEST, WIDE = 330, 700        # pixels of words: at least, and for a legend of two columns
SCREEN = 1.4                      # width of a screen or a page for its height
WARNING = (176, 48, 0)            # colour of warnings
OBLIQUE = 1.0                     # degrees from which an axis is said not to be the patient's

Figures = Mapping[str, Mapping[str, Any]]    # {class: its figures}, as under "classes" in the JSON of a result


def preview(hu: np.ndarray | None, label_map: np.ndarray, affine: np.ndarray, figures: Figures, case_name: str = "",
            warnings: Sequence[str] = (), hu_window: Sequence[float] = HU_WINDOW,
            at: Sequence[int] | None = None, least: int = LEAST) -> Block:
    """The picture of one result, uint8 (rows, columns, 3).

    The longer side of each slice has at least `least` pixels. All slices have one scale unless one would then have more
    than MOST pixels. A volume of one slice has one panel.

    hu:        (D, H, W) RAS+ in HU, or None where there is a label map only
    label_map: (D, H, W) RAS+; where classes overlap, it shows the tumour, then the vessel (imaging/merging.py)
    affine:    (4, 4)
    figures:   of each class that was looked for: "label", "ml" (missing: not written), and where it is so
               "touches_border" and "experimental"; a class without "voxels" or "ml" is listed as not found
    warnings:  sentences that are written under the name
    at:        voxel that the slices go through (default: on each axis the slice that shows most)
    """
    case = make_case(hu, label_map, affine, at, hu_window)
    planes = _planes(case)
    scales = mm_per_pixel(case, planes, least)
    panels = [_panel(case, plane, scale, planes) for plane, scale in zip(planes, scales)]
    found = {name: one for name, one in figures.items() if one.get("voxels", one.get("ml", 1))}
    seen = _seen(case, planes)
    entries = [Entry(taxonomy.spoken(name) + (" *" if one.get("experimental") else ""), class_color(one["label"]),
                     _amount(one), one["label"] in seen) for name, one in found.items()]
    notes = _notes(case, affine, entries, [name for name in figures if name not in found])
    return _with_words(_arranged(panels, entries), case_name, warnings, notes)


def comparison(hu: np.ndarray | None, rows: Sequence[tuple[str, np.ndarray]], affine: np.ndarray,
               classes: Mapping[str, int], title: str = "", at: Sequence[int] | None = None,
               hu_window: Sequence[float] = HU_WINDOW, least: int = 300) -> Block:
    """Several label maps of one CT below each other, in the same slices, uint8 (rows, columns, 3).

    A CT is shown as a whole, so that the pictures of a training can be compared; without one, all labels are.

    rows:    (what it is, label map (D, H, W)), such as a reference and a prediction
    classes: {name: value}; those that no label map has are left out of the legend
    The other arguments are those of `preview`. Without `at` the slices show most of the first label map.
    """
    case = make_case(hu, rows[0][1], affine, at, hu_window)
    box = tuple(slice(0, n) for n in case.label_map.shape)
    if hu is None:
        parts = [shown_part(case._replace(label_map=labels)) for _, labels in rows]
        box = tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*parts))
    case = case._replace(box=box)
    planes = _planes(case)
    scales = mm_per_pixel(case, planes, least)
    drawn: list[Block] = []
    seen: set[int] = set()
    present: set[int] = set()
    for words, labels in rows:
        same = case._replace(label_map=labels)
        panels = beside([_panel(same, plane, scale, planes) for plane, scale in zip(planes, scales)], GAP)
        drawn.append(below([indented(paragraph(words, panels.shape[1] - LETTER)), panels], 2))
        seen |= _seen(same, planes)
        present |= {int(value) for value in np.unique(labels)}
    entries = [Entry(name, class_color(value), filled=value in seen) for name, value in classes.items()
               if value in present]
    picture = below([*drawn, _names(entries, drawn[0].shape[1])], GAP)
    return _with_words(picture, title, (), _notes(case, affine, entries, []))


# ------------------------------------------------------------------------------------------------------------- panels

def _planes(case: Case) -> list[Plane]:
    """The planes that show more than a line of voxels; if there is none, the axial one."""
    sizes = [part.stop - part.start for part in case.box]
    return [plane for plane in PLANES if min(sizes[plane.across], sizes[plane.down]) > 1] or [PLANES[0]]


def mm_per_pixel(case: Case, planes: Sequence[Plane], least: int = LEAST) -> list[float]:
    """The size of a pixel in each plane: the longer side of each slice has at least `least` pixels.

    It is the same in all planes unless a slice would then have more than MOST pixels; that one gets MOST.
    """
    longest = [max(case.extent_mm(plane)) for plane in planes]
    most = max(MOST * least / LEAST, least)
    return [max(min(longest) / least, mm / most) for mm in longest]


def _panel(case: Case, plane: Plane, scale: float, planes: Sequence[Plane]) -> Block:
    """One slice in its frame, with ticks where the other `planes` cut it."""
    image = slice_picture(case, plane, scale)

    def mark(axis: int) -> list[float]:
        """Where the slice of another plane lies, in pixels; indices run to the left and up."""
        voxels = case.box[axis].stop - case.at[axis] - 0.5
        return [voxels * float(case.spacing_mm[axis]) / scale for other in planes if other.axis == axis]

    number = f"{plane.name} {case.at[plane.axis] + 1}/{case.label_map.shape[plane.axis]}"
    return blocks.framed(image, plane.letters, number, scale, (mark(plane.across), mark(plane.down)))


def _seen(case: Case, planes: Sequence[Plane]) -> set[int]:
    """The values that the label map has in the slices."""
    cuts = [case.label_map[(slice(None),) * plane.axis + (case.at[plane.axis],)] for plane in planes]
    return {int(value) for cut in cuts for value in np.unique(cut)}


# -------------------------------------------------------------------------------------------------------------- words

def _amount(figures: Mapping[str, Any]) -> str:
    """The volume, with a > before it where the class touches the border of the CT."""
    ml = figures.get("ml")
    if ml is None:
        return ""
    if ml < 0.01:
        return "< 0.01 ml"
    digits = 0 if ml >= 100 else 1 if ml >= 1 else 2
    return f"{'> ' if figures.get('touches_border') else ''}{ml:.{digits}f} ml"


def _notes(case: Case, affine: np.ndarray, entries: Sequence[Entry], missing: Sequence[str]) -> list[str]:
    """What a reader has to know besides, a sentence each."""
    notes = []
    if any(entry.amount.startswith(">") for entry in entries):
        notes.append("> touches the border of the CT: the volume is that of a part.")
    if any(entry.name.endswith(" *") for entry in entries):
        notes.append("* experimental: scored too low to be offered.")
    if not all(entry.filled for entry in entries):
        notes.append("White inside: in none of these slices.")
    if not entries:
        notes.append("Nothing found.")
    if missing:
        notes.append(f"Looked for, not found: {', '.join(taxonomy.spoken(n).replace('_', ' ') for n in missing)}.")
    if case.hu is None:
        notes.append("Labels without a CT.")
    else:
        notes.append("Grey: {:g} to {:g} HU.".format(*case.hu_window))
    degrees = degrees_oblique(affine)
    if degrees >= OBLIQUE:
        notes.append("The CT is oblique: planes and letters are those of its own axes, up to "
                     f"{degrees:.0f} degrees from the patient's.")
    return notes


def degrees_oblique(affine: np.ndarray) -> float:
    """The largest angle between an axis of a RAS+ array and the direction that it is named after.

    >>> degrees_oblique(np.diag([2.0, 2.0, 5.0, 1.0]))
    0.0
    """
    columns = np.asarray(affine, float)[:3, :3]
    cosines = np.diag(columns) / np.linalg.norm(columns, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


# ------------------------------------------------------------------------------------------------------------- layout

def _arranged(panels: Sequence[Block], entries: Sequence[Entry]) -> Block:
    """Panels and legend in the arrangement that is largest on a screen.

    The legend stands beside the first panel, with the others below; or below the first, with the others beside; or
    below all of them.
    """
    first, others = panels[0], list(panels[1:])
    right = others[-1].shape[1] if others else 0
    ways = [below([beside([first, _names(entries, width)], GAP), *([beside(others, GAP)] if others else [])], GAP)
            for width in (right, WIDE)]
    ways += [beside([below([first, _names(entries, first.shape[1])], GAP), *others], GAP),
             below([beside(panels, GAP), _names(entries, beside(panels, GAP).shape[1])], GAP)]
    return min(ways, key=lambda block: max(block.shape[0], block.shape[1] / SCREEN))


def _names(entries: Sequence[Entry], width: int) -> Block:
    """The legend below or beside a slice, with the margins that the slice has."""
    return below([empty(LETTER // 2, 1), indented(blocks.legend(entries, width - LETTER))], 0)


def _with_words(picture: Block, title: str, warnings: Sequence[str], notes: Sequence[str]) -> Block:
    """The picture between its name and warnings above and notes below, with a margin."""
    width = max(picture.shape[1], NARROWEST) - LETTER
    name = blocks.shortened(title, width, TITLE_WORDS)
    head = [paragraph(name, width, TITLE_WORDS, INK, bold=True, most=1)] if name else []
    head += [paragraph(f"Warning: {warning}", width, SMALL_WORDS, WARNING) for warning in warnings]
    foot = paragraph(" ".join(notes), width, SMALL_WORDS, FAINT, most=6)
    whole = below([*map(indented, head), picture, indented(foot)], 8)
    return blocks.on_page(whole)
