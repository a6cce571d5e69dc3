"""How many lesions weights find in the real CTs without labels, per CT that shows the organ.

Beyond the paper. Nobody has labelled these CTs. Some of the patients have tumours, and most of what is found where no
tumour is known is invented. Beside the scores of the two labelled tumours, this decides which lesions are offered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy import ndimage

from uniseg import load
from uniseg.imaging.components import CONNECTED_26
from uniseg.imaging.file_names import bare
from uniseg.imaging.grid import voxel_volume_mm3
from uniseg.taxonomy import BY_NAME, TUMOUR

LEAST_ML = 10.0                   # of an organ, for a CT to show it


class Found(NamedTuple):
    """The lesions of one class in one CT that shows an organ of this class."""

    case: str
    pieces: int                   # 26-connected
    ml: float


def find_lesions(weights: Path, cts: Sequence[Path], device: str = "auto") -> dict[str, list[Found]]:
    """{class of lesions: what is found, for each CT that shows one of the class's organs}, with post-processing."""
    model = load(weights, device)
    found: dict[str, list[Found]] = {name: [] for name in model.classes if BY_NAME[name].kind == TUMOUR}
    for path in cts:
        result = model.segment(path, experimental=True)
        voxel_ml = voxel_volume_mm3(result.affine) / 1000
        for name, cases in found.items():
            organs = [organ for organ in BY_NAME[name].parents if organ in model.classes]
            if sum(float(result.mask(organ).sum()) * voxel_ml for organ in organs) >= LEAST_ML:
                lesions = result.mask(name)
                cases.append(Found(bare(path.name), ndimage.label(lesions, CONNECTED_26)[1],
                                   float(lesions.sum()) * voxel_ml))
    return found


def lesion_table(results: Mapping[str, Mapping[str, Sequence[Found]]]) -> Iterator[str]:
    """Markdown lines: how many lesions each of several weights finds, per CT that shows the organ.

    results: {title of the weights: result of find_lesions}
    """
    yield f"| lesions per CT with the organ (lesions, CTs, ml) | {' | '.join(results)} |"
    yield "|--" * (1 + len(results)) + "|"
    for name in dict.fromkeys(name for found in results.values() for name in found):
        cells = []
        for found in results.values():
            cases = found.get(name, ())
            pieces, ml = sum(case.pieces for case in cases), sum(case.ml for case in cases)
            cells.append(f"{pieces / len(cases):.1f} ({pieces}, {len(cases)}, {ml:.0f})" if cases else "-")
        yield f"| {name} | {' | '.join(cells)} |"
