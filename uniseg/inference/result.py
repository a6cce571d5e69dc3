"""A result: the label map, the mask of each class, the statistics, and how they are written."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from .. import taxonomy
from ..formats import label_table
from ..formats.labels import LabelRow, label_rows, own_numbers
from ..formats.seg_nrrd import Segment
from ..formats.viewer_files import viewer_writers
from ..imaging.bits import get_bit
from ..imaging.byte_stream import refuse
from ..imaging.file_names import bare, json_path
from ..imaging.merging import merge_masks
from ..imaging.volume import Geometry, Volume, affine_in_mm, from_ras, label_image, read_ct, write_label_map
from ..machine.about import __version__
from ..machine.files import atomic_write, refused_in_one_line, sweep
from ..machine.locks import turn
from ..pictures.canvas import write_png
from ..pictures.colors import class_color
from ..pictures.preview import preview
from ..viewer.view import write_view
from . import summary
from .finished import digests, stamp, withdraw
from .outputs import Outputs

Writer = Callable[[Path], None]


@dataclass(repr=False, eq=False)
class Segmentation:
    """The result of Segmenter.segment, on the grid and in the orientation of the CT."""

    label_map: np.ndarray          # (X, Y, Z) as the CT is stored: uint8, or uint16 beyond 255; values: `numbers`
    classes: tuple[str, ...]       # names of the classes computed
    stats: dict[str, Any]          # the content of the JSON file: voxels, ml and touches_border of each class, why a
                                   # class is experimental, settings, warnings, seconds; `save` adds its files
    _bits: np.ndarray              # (D, H, W) RAS+; bit k is the mask of classes[k], with overlaps
    _geometry: Geometry
    _read: Callable[[], Volume]    # reads the CT again

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.label_map.shape))
        return (f"<Segmentation of {self.stats['input']}: {shape} voxels, {summary.found(self.stats)} of "
                f"{len(self.classes)} classes found>")

    def __str__(self) -> str:
        """The CT and its grid, each class that was found with its volume, and the warnings."""
        warnings = [f"  warning: {text}" for text in self.stats["warnings"]]
        return "\n".join([summary.title(self.stats), *summary.class_lines(self.stats), *warnings])

    @property
    def affine(self) -> np.ndarray:
        """The affine of the CT as stored, (4, 4)."""
        return self._geometry.affine

    def mask(self, name: str) -> np.ndarray:
        """The mask of a class, bool, shape of the CT. Unlike the label map it keeps overlaps (tumour and organ).

        name: of the class, or an alias; the name of a pair ("kidneys") gives both sides in one mask
        Raises ValueError for a class that is not in this result.
        """
        names = find_class(name, self.classes)
        if missing := [n for n in names if n not in self.classes]:
            raise ValueError(f"no class {missing[0]} in this result. It has {', '.join(self.classes)}.")
        mask = np.logical_or.reduce([get_bit(self._bits, self.classes.index(n)) for n in names])
        return from_ras(mask, self._geometry.orientation)

    @property
    def numbers(self) -> dict[str, int | None]:
        """{class: its value in the label map}; None for a class that has no number in the numbering asked for."""
        return {name: figures["label"] for name, figures in self.stats["classes"].items()}

    def masks(self) -> dict[str, np.ndarray]:
        """{class: its mask} of all classes computed, found or not; each is what `mask` gives."""
        return {name: self.mask(name) for name in self.classes}

    @property
    def image(self) -> nibabel.Nifti1Image:
        """The label map as a nibabel image, uint8 or uint16, with the header that `save` writes."""
        return label_image(self.label_map, self._geometry, *self._header_texts())

    def ct(self) -> Volume:
        """The CT that was segmented, in RAS+ and HU. It is read again, since a result holds no copy of it.

        Raises imaging.byte_stream.VolumeError for a file that is not there any more or that has changed since.
        """
        return self._read()

    def preview(self, path: str | Path) -> None:
        """Write a picture of the result as PNG: three slices with the classes, their names and volumes, the warnings.

        Raises what `ct` raises, and FileError where the file cannot be written.
        """
        self._write_preview(self.ct(), Path(path))

    def view(self, path: str | Path) -> None:
        """Write a page of one file that shows the CT with the masks in any browser (viewer/view.py).

        Raises VolumeError where the CT cannot be read again, FileError where the page cannot be written.
        """
        self._write_view(self.ct(), Path(path))

    def save(self, path: str | Path, masks_folder: str | Path | None = None) -> None:
        """Write the label map, the statistics beside it as JSON, and a mask per class into `masks_folder`, if given.

        A former result's JSON is removed first and the new one is written last: where it exists, the result is
        complete. It also holds size and sha256 of the other files. One process at a time writes into a folder.
        Raises FileError for what cannot be written.
        """
        folder = Path(masks_folder) if masks_folder is not None else None
        self.save_if(lambda: None, Path(path), Outputs(masks=folder is not None), folder)

    def save_if(self, check: Callable[[], None], path: Path, outputs: Outputs = Outputs(),
                masks_folder: Path | None = None) -> None:
        """`save` after `check`, which is called when no other process can write any more; it may raise an error.

        outputs: what is written besides the label map and the JSON
        """
        writers = self.writers(path, outputs, masks_folder)
        names = [path, *writers]
        with turn(path.parent):
            check()
            with refused_in_one_line(path):
                withdraw(path)
                for folder in {name.parent for name in names}:
                    folder.mkdir(parents=True, exist_ok=True)
                    sweep(folder, {name.name for name in (*names, json_path(path)) if name.parent == folder})
            ras = nibabel.orientations.apply_orientation(self.label_map, self._geometry.orientation)
            write_label_map(path, ras, self._geometry, *self._header_texts())
            for name, write in writers.items():
                write(name)
            self.stats["files"] = digests(names, path.parent)
            with atomic_write(json_path(path)) as temporary:
                Path(temporary).write_text(json.dumps(self.stats, indent=1, allow_nan=False) + "\n")

    def writers(self, path: Path, outputs: Outputs, masks_folder: Path | None = None) -> dict[Path, Writer]:
        """{file: the function that writes it} of everything that is written besides the label map and the JSON."""
        files = outputs.files(path, self.classes, masks_folder)
        ct = cache(self.ct)                                                # read once for all of them
        writers: dict[Path, Writer] = {name: partial(self._write_mask, k)
                                       for k, name in enumerate(files.get("masks", []))}
        writers |= {name: lambda file: self._write_preview(ct(), file) for name in files.get("a preview", [])}
        writers |= {name: lambda file: self._write_view(ct(), file) for name in files.get("a view", [])}
        if outputs.viewer_files:
            own = own_numbers(self.stats["classes"])
            segments = [Segment(k, own[name], name, class_color(own[name])) for k, name in enumerate(self.classes)]
            bits = from_ras(self._bits, self._geometry.orientation)
            writers |= viewer_writers(path, self._rows(), bits, segments, affine_in_mm(self._geometry))
        return writers

    def _write_mask(self, k: int, path: Path) -> None:
        name = self.classes[k]
        row = LabelRow(1, name, class_color(own_numbers(self.stats["classes"])[name]), (name,))
        write_label_map(path, get_bit(self._bits, k).view(np.uint8), self._geometry, f"uniseg {name}",
                        label_table.to_xml([row], "mask"))

    def _header_texts(self) -> tuple[str, bytes]:
        """(description, extension with the names and colours) of the label map's header."""
        numbering = self.stats["settings"]["numbers"]
        return label_table.description(__version__, numbering), label_table.to_xml(self._rows(), numbering)

    def _rows(self) -> list[LabelRow]:
        """What each value of the label map is."""
        own = own_numbers(self.stats["classes"])
        return label_rows(self.numbers, lambda name: class_color(own[name]))

    def _write_view(self, ct: Volume, path: Path) -> None:
        ras = nibabel.orientations.apply_orientation(self.label_map, self._geometry.orientation)
        write_view(path, ct, self._bits, ras, self.classes, self.stats)

    def _write_preview(self, ct: Volume, path: Path) -> None:
        own, figures = own_numbers(self.stats["classes"]), self.stats["classes"]
        if own == {name: one["label"] for name, one in figures.items()}:
            ras = nibabel.orientations.apply_orientation(self.label_map, self._geometry.orientation)
        else:                                              # two classes may share a number of others, or have none
            ras = merge_masks(self.classes, list(own.values()), lambda k: get_bit(self._bits, k), self._bits.shape)
        figures = {name: {**one, "label": own[name]} for name, one in figures.items()}
        write_png(path, preview(ct.array, ras, ct.affine, figures, bare(self.stats["input"]), self.stats["warnings"]))


def unchanged(planes: Iterator[np.ndarray], source: str | Path | nibabel.spatialimages.SpatialImage,
              stamp_before: object) -> Iterator[np.ndarray]:
    """The planes, and behind them a VolumeError where the CT has changed since the stamp was made."""
    yield from planes
    if stamp(source) != stamp_before:
        refuse(str(source), "has changed since it was segmented", "Segment it again")


def read_again(source: str | Path | nibabel.spatialimages.SpatialImage, stamp_before: object,
               max_voxels: int) -> Volume:
    """The CT of a result. Raises VolumeError where it cannot be read, or has changed since the stamp was made."""
    ct = read_ct(source, max_voxels)
    if stamp(source) != stamp_before:
        refuse(str(source), "has changed since it was segmented", "Segment it again")
    return ct


def find_class(name: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a name or an alias stands for; those of Table 2 need not be among `classes`.

    classes: of a model or a result, which may have names beyond Table 2
    Raises ValueError for a name that neither knows.
    """
    known = [n for n in (name, taxonomy.normalise_name(name)) if n in classes]
    return tuple(known[:1]) or taxonomy.resolve(name)
