"""A result: the label map, one bit for each class, and the statistics; and how it is written."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from .. import taxonomy
from ..imaging.bits import get_bit
from ..imaging.file_names import json_path
from ..imaging.volume import from_ras, write_label_map
from ..machine.about import __version__
from ..machine.files import atomic_write


@dataclass
class Segmentation:
    """A result on the grid of the input, in the input's own orientation."""

    label_map: np.ndarray      # shape of the input, uint8 (uint16 beyond 255): the class numbers of Table 2
    classes: tuple             # names of the classes computed
    stats: dict                # the content of the JSON file: voxels, ml, touches_border of each class, why one is
                               # experimental, warnings, seconds
    _bits: np.ndarray          # RAS+, bit k: classes[k]; overlaps kept
    _geometry: object

    @property
    def affine(self):
        """(4, 4) of the input."""
        return self._geometry.affine

    def mask(self, name):
        """The class's own mask, bool, shape of the input; unlike the label map it keeps overlaps (tumour and organ).

        An alias will do; the name of a pair ("kidneys") gives both sides in one mask.
        """
        names = resolve_in(name, self.classes)
        if missing := [n for n in names if n not in self.classes]:
            raise ValueError(f"no class {missing[0]} in this result. It has {', '.join(self.classes)}.")
        mask = np.logical_or.reduce([get_bit(self._bits, self.classes.index(n)) for n in names])
        return from_ras(mask, self._geometry.orientation)

    def save(self, path, masks_folder=None):
        """Write the label map, beside it the JSON (last: where it stands, the result is complete), and single masks."""
        path = Path(path)
        if masks_folder is not None:
            Path(masks_folder).mkdir(parents=True, exist_ok=True)
            for k, name in enumerate(self.classes):
                mask = get_bit(self._bits, k).view(np.uint8)
                write_label_map(Path(masks_folder) / f"{name}.nii.gz", mask, self._geometry, f"uniseg {name}")
        ras = nibabel.orientations.apply_orientation(self.label_map, self._geometry.orientation)
        write_label_map(path, ras, self._geometry, f"uniseg {__version__}")
        with atomic_write(json_path(path)) as temporary:
            Path(temporary).write_text(json.dumps(self.stats, indent=1, allow_nan=False) + "\n")


def resolve_in(name, classes):
    """The classes that a name or an alias stands for; one beyond Table 2 only as one of `classes`. Raises ValueError."""
    own = [n for n in (name, taxonomy.normalise_name(name)) if n in classes]
    return tuple(own[:1]) or taxonomy.resolve(name)
