"""Pseudo labels: what a model says of real CTs without labels, where it is sure and anatomy agrees.

Beyond the paper. A trained model (the teacher) segments a CT in several views: as it is, brighter, darker, smoother,
and its middle by itself. The mean probability of these views decides, voxel by voxel:

    one class above SURE                    the voxel is that class
    no class above UNSURE                   the voxel is none of the classes
    else                                    nobody says what the voxel holds (the label "ignore", see datasets.md)

Then anatomy is asked, class by class. What post-processing removes from a class (the wrong side, a second piece)
becomes "ignore". A class that is nowhere sure, that is too large for any adult, that lies below an organ it has to be
above, or of which too little is sure, is not annotated in that CT at all: neither present nor absent.

Each CT becomes a dataset of its own, since a dataset.json says which classes are annotated for all of its cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from uniseg import taxonomy
from uniseg.imaging.anatomy import Plane, midsagittal_plane
from uniseg.imaging.bits import Box, get_bit, pack
from uniseg.imaging.field_of_view import continued
from uniseg.imaging.grid import voxel_volume_mm3
from uniseg.imaging.resampling import resample
from uniseg.imaging.spine import SpineSearch
from uniseg.imaging.volume import read_ct, scale_hu, write_volume
from uniseg.inference.plausibility import ADULT_ML, FROM_THE_HEAD
from uniseg.inference.region import find_body
from uniseg.inference.second_view import central_part
from uniseg.machine.device import autocast, choose_precision
from uniseg.machine.files import atomic_write
from uniseg.pictures.canvas import write_png
from uniseg.pictures.preview import preview
from uniseg.postprocess import ALL_STEPS, postprocess
from uniseg.sliding_window import sliding_window

SURE, UNSURE = 0.75, 0.25        # mean probabilities above which a voxel is a class, and below which it is not
LEAST_SURE = 0.5                 # share of the voxels above 1/2 that are sure, for a class to be annotated
LEAST_ML = 1.0                   # of a class, to be annotated
CENTRE = 0.7                     # share of the body's width and depth that is the middle
IGNORED_COLOR = 32               # the class whose colour ignored voxels have in a picture
Views = dict[str, Callable[[NDArray], NDArray]]
VIEWS: Views = {                 # what the network is shown instead of the HU, (D, H, W) float32 each
    "as it is": lambda hu: hu,
    "brighter": lambda hu: hu + 12.0 * (hu > -200),
    "darker": lambda hu: hu - 12.0 * (hu > -200),
    "smoother": lambda hu: ndimage.gaussian_filter(hu, 0.6),
}


class Opinion(NamedTuple):
    """What the teacher says of one CT, on the model's grid."""

    hu: NDArray                       # (D, H, W) int16
    affine: NDArray                   # (4, 4)
    box: Box                          # the part that the windows were laid over
    body: NDArray[np.bool_]           # (D, H, W)
    probabilities: NDArray            # (K, d, h, w) float32 mean over the views, in the box; 0 outside the body
    seen: NDArray[np.bool_]           # (D, H, W) inside the field of view


def ask(segmenter: Any, path: Path, names: Sequence[str], views: Views | None = None) -> Opinion | None:
    """The teacher's opinion on a CT; None where it shows no body.

    segmenter: a segmenter.Segmenter; names: the classes to ask for
    """
    views, pre = views or VIEWS, segmenter.preprocessing
    ct = read_ct(path)
    hu, affine = resample(ct.array, ct.affine, pre.spacing_mm, antialias=pre.antialias)
    outside = ct.outside_on(hu, affine)
    body, box = find_body(hu, affine, pre.window, outside)
    if box is None:
        return None
    shown = hu if outside is None else continued(hu, outside, body, pre.spacing_mm)
    shown, inside = np.asarray(shown[box], np.float32), body[box]
    centre = central_part(inside, CENTRE)
    total = np.zeros((len(names), *inside.shape), np.float32)
    looks = np.zeros(inside.shape, np.float32)
    whole = (slice(None), slice(None))
    for changed in views.values():
        for part in (whole, centre):
            image = scale_hu(changed(shown), pre.hu_window)[part]
            for z, logits in _logits(segmenter, image, inside[part], names):
                slab = (*part, slice(z, z + logits.shape[3]))
                for_all = (slice(None), *slab)
                total[for_all] += torch.sigmoid(logits).numpy()
                looks[slab] += 1
    total /= np.maximum(looks, 1)
    total *= inside
    seen = np.ones(hu.shape, bool) if outside is None else ~outside
    return Opinion(np.rint(hu).astype(np.int16), affine, box, body, total, seen)


def _logits(segmenter: Any, image: NDArray, body: NDArray, names: Sequence[str]) -> Iterator[tuple[int, torch.Tensor]]:
    """The slabs of one run of the network, as sliding_window yields them."""
    channels, pre = [segmenter.classes.index(name) for name in names], segmenter.preprocessing
    precision = "bf16" if segmenter.device.type == "cuda" else choose_precision("auto", segmenter.device)

    def predict(patches: torch.Tensor) -> torch.Tensor:
        with autocast(segmenter.device, precision):
            return segmenter.network(patches, channels)

    return sliding_window(image, predict, len(names), pre.window, 0.5, body=body, device=segmenter.device, pad=pre.pad)


class Belief(NamedTuple):
    """The pseudo labels of one CT."""

    classes: tuple[str, ...]          # those that are annotated
    labels: NDArray[np.uint8]         # (D, H, W) n + 1: classes[n]; len(classes) + 1: ignore; 0: none of the classes
    left_out: dict[str, str]          # {class: why it is not annotated}
    ml: dict[str, float]              # {class: volume of what is sure}


def believe(opinion: Opinion, names: Sequence[str], in_pieces: Sequence[str] = ()) -> Belief:
    """What of the teacher's opinion is to be learned.

    names: the classes of the opinion, organs and vessels that do not overlap; in_pieces: as in postprocess
    """
    box, affine = opinion.box, np.asarray(opinion.affine)
    likely = np.zeros((len(names), *opinion.hu.shape), bool)
    for_all = (slice(None), *box)
    likely[for_all] = opinion.probabilities > 0.5
    bits = pack(list(likely))
    plane = midsagittal_plane(opinion.hu, affine, SpineSearch(opinion.hu, affine))
    bits, _ = postprocess(bits, list(names), affine, plane, ALL_STEPS, in_pieces)
    sure, doubtful = np.zeros_like(likely), np.zeros(opinion.hu.shape, bool)
    for k in range(len(names)):
        kept, probability = get_bit(bits, k)[box], opinion.probabilities[k]
        within = (k, *box)
        sure[within] = kept & (probability > SURE)
        # Sides are exchanged by post-processing: a voxel that now belongs to the partner is not asked again.
        doubtful[box] |= (probability > UNSURE) & ~sure[within]
    left_out = _left_out(names, sure, bits, affine, plane)
    classes = tuple(name for name in names if name not in left_out)
    labels = np.zeros(opinion.hu.shape, np.uint8)
    for n, name in enumerate(classes, start=1):
        labels[sure[names.index(name)]] = n
    annotated = np.array([name in classes for name in names])
    # A voxel of a class that is not annotated is none of the others for sure, unless the teacher doubts that.
    claims = sure[annotated].sum(axis=0) if annotated.any() else np.zeros(labels.shape, int)
    ignored = (doubtful & (claims == 0)) | (claims > 1) | ~opinion.seen
    labels[ignored] = len(classes) + 1
    voxel_ml = voxel_volume_mm3(affine) / 1000
    return Belief(classes, labels, left_out, {name: float((labels == n).sum() * voxel_ml)
                                              for n, name in enumerate(classes, start=1)})


def _left_out(names: Sequence[str], sure: NDArray, bits: NDArray, affine: NDArray, plane: Plane) -> dict[str, str]:
    """{class: why it is not annotated}; the arguments are those of `believe`."""
    voxel_ml, reasons, heights = voxel_volume_mm3(affine) / 1000, dict[str, str](), dict[str, float]()
    for k, name in enumerate(names):
        found, likely = float(sure[k].sum()) * voxel_ml, float(get_bit(bits, k).sum()) * voxel_ml
        most = ADULT_ML.get(name, (0, np.inf))[1]
        if found < LEAST_ML:
            reasons[name] = "not found surely"
        elif found < LEAST_SURE * likely:
            reasons[name] = f"only {found:.0f} of {likely:.0f} ml are sure"
        elif likely > most:
            reasons[name] = f"{likely:.0f} ml are more than an adult has"
        elif taxonomy.BY_NAME[name].partner and not plane.sure:
            reasons[name] = "the CT does not show surely where the patient's middle is"
        else:
            heights[name] = float((affine[:3, :3] @ np.argwhere(sure[k]).mean(axis=0))[2])
    for upper, lower in FROM_THE_HEAD:
        if upper in heights and lower in heights and heights[upper] < heights[lower]:
            reasons[upper] = reasons[lower] = f"{upper} lies below {lower}"
    return reasons


def write_pseudo_case(folder: Path, case: str, opinion: Opinion, belief: Belief, about: Mapping[str, Any]) -> None:
    """Write a dataset of one CT with its pseudo labels: imagesTr, labelsTr, a picture, and, last, dataset.json."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_volume(folder / "imagesTr" / f"{case}.nii.gz", opinion.hu, opinion.affine)
    write_volume(folder / "labelsTr" / f"{case}.nii.gz", belief.labels, opinion.affine)
    write_png(folder / f"{case}.png", picture(opinion, belief))
    names = {"0": "background", **{str(n): name for n, name in enumerate(belief.classes, start=1)},
             str(len(belief.classes) + 1): "ignore"}
    content = {"name": folder.name, "description": "pseudo labels, made by tools.default_weights", "labels": names,
               "modality": {"0": "CT"}, "training": [{"image": f"./imagesTr/{case}.nii.gz",
                                                      "label": f"./labelsTr/{case}.nii.gz"}],
               "pseudo": {**about, "ml": belief.ml, "left_out": belief.left_out}}
    with atomic_write(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def picture(opinion: Opinion, belief: Belief, size: int = 320) -> NDArray[np.uint8]:
    """A CT with its pseudo labels, at a quarter, the half and three quarters of it; what is ignored is called so."""
    numbers = {**taxonomy.label_values(belief.classes), "ignored": IGNORED_COLOR}
    shown = np.zeros_like(belief.labels)
    for n, name in enumerate(belief.classes, start=1):
        shown[belief.labels == n] = numbers[name]
    shown[(belief.labels == len(belief.classes) + 1) & opinion.body] = IGNORED_COLOR
    figures, rows = {name: {"label": number} for name, number in numbers.items()}, []
    for share in (0.25, 0.5, 0.75):
        at = [part.start + int(share * (part.stop - part.start)) for part in opinion.box]
        rows.append(preview(opinion.hu, shown, opinion.affine, figures, at=at, least=size))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
                           for row in rows])
