"""Which files are written beside a label map and its JSON, and what they are called. No torch and no numpy here.

A kind of file is added in three places: here, in infer's options, and in `Segmentation.writers` (result.py), which says
how it is written. Planning, the check of the disk, `--resume` and `--overwrite` then know it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from ..imaging.file_names import mask_path, masks_folder, preview_path, view_path, viewer_paths


class Outputs(NamedTuple):
    """What a user asks for besides the label map and the JSON."""

    masks: bool = False            # ct_seg/liver.nii.gz: one file per class; these keep overlaps
    preview: bool = False          # ct_preview.png: three slices with the masks over them
    view: bool = False             # ct_view.html: a viewer of this one case
    viewer_files: bool = False     # ct_seg.seg.nrrd, ct_seg.ctbl, ...: for 3D Slicer, ITK-SNAP, niivue, MRIcron

    @property
    def most_bytes(self) -> int:
        """An upper bound of what the files of a case take on the disk; masks are counted apart."""
        return (2 << 20) * self.preview + (12 << 20) * self.view + (32 << 20) * self.viewer_files

    def files(self, result: Path, classes: Iterable[str], folder: Path | None = None) -> dict[str, list[Path]]:
        """{kind of file as a message calls it: its paths}, of the kinds that are asked for.

        result:  the label map
        classes: those that are computed
        folder:  of the masks (default: the one beside the label map)
        """
        found: dict[str, list[Path]] = {}
        if self.masks:
            found["masks"] = [mask_path(folder or masks_folder(result), name) for name in classes]
        if self.preview:
            found["a preview"] = [preview_path(result)]
        if self.view:
            found["a view"] = [view_path(result)]
        if self.viewer_files:
            found["viewer files"] = list(viewer_paths(result).values())
        return found


def outputs_named(names: Collection[str]) -> Outputs:
    """The Outputs of these names, such as ["masks"]. Raises ValueError for one that there is not."""
    wanted = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in wanted if name not in Outputs._fields]:
        raise ValueError(f"outputs: {unknown[0]!r} is none. Choose among {', '.join(Outputs._fields)}.")
    return Outputs(**dict.fromkeys(wanted, True))


EVERYTHING = Outputs(*[True] * len(Outputs._fields))


def belongs_to(path: Path, result: Path) -> bool:
    """Whether a file has the name of one that may be written beside this label map, so that a JSON may list it."""
    if path.parent == masks_folder(result):
        return path.name.endswith(".nii.gz")
    return path in {p for paths in EVERYTHING.files(result, ()).values() for p in paths}
