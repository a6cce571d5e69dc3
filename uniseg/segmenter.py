"""From a CT to masks on its own grid: Section 4.1.2, Inference. The Python behind `python -m uniseg infer`.

    read (RAS+, HU) -> resample to the model's grid -> find the body -> sliding window, slab by slab
      -> thresholds -> post-processing -> back to the grid of the CT, class by class -> one bit per class, one label map

Memory is bounded by design. A finished slab of logits becomes one byte per voxel and class at once, kept only where the
class is likely (inference/native_grid.py), and the grid of the CT holds one bit per class. Nothing of the size
classes x volume exists in float. Read model.py, sliding_window.py and postprocess.py first.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import checkpoint, taxonomy
from .formats.numbers import TABLE_2
from .imaging.anatomy import Plane, midsagittal_plane
from .imaging.arrays import Source, as_source
from .imaging.bits import Box
from .imaging.field_of_view import continued
from .imaging.limits import MAX_VOXELS
from .imaging.preprocessing import Preprocessing
from .imaging.resampling import resample
from .imaging.spine import SpineSearch
from .imaging.volume import Volume, affine_in_mm, from_ras, hu_planes, read_ct, scale_hu
from .inference.finished import Asked, stamp
from .inference.focus import Organ, around, found_whole, is_worth_it, located, organs_of, saves_windows
from .inference.making import Case, make_all
from .inference.measures import measure
from .inference.native_grid import Crop, crops_of_slab, join_slabs, masks_of, to_native
from .inference.outputs import outputs_named
from .inference.plausibility import doubts
from .inference.region import OnGrid, box_of_windows, find_body
from .inference.request import Request, make_request
from .inference.result import Segmentation, find_class, read_again, unchanged
from .inference.second_view import central_part, view_weight
from .inference.statistics import Clock, record
from .machine.console import quietly
from .machine.device import autocast, choose_device
from .machine.files import file_sha256
from .machine.memory import keep_freed_memory, returning_freed_memory
from .machine.threads import in_threads
from .postprocess import ALL_STEPS
from .postprocess import postprocess as refine
from .sliding_window import sliding_window

DEFAULT_WEIGHTS = Path(__file__).with_name("weights") / "default.pt"


def load(weights: str | Path | None = None, device: str = "auto") -> "Segmenter":
    """A Segmenter with the built-in weights, or with those of a checkpoint written by uniseg.train.

    weights: path, or None for the built-in ones
    device:  "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"
    Raises checkpoint.CheckpointError for a file that cannot be used, ValueError for a device that does not exist.
    """
    keep_freed_memory()
    path = Path(weights) if weights is not None else DEFAULT_WEIGHTS
    content = checkpoint.read(path)
    about = {name: value for name, value in content.get("about", {}).items()
             if name in ("experimental", "in_pieces", "second_view")}
    locator = cache(partial(load, None, device)) if weights is not None and DEFAULT_WEIGHTS.is_file() else None
    return Segmenter(checkpoint.load_network(content, path), Preprocessing.from_dict(content["preprocessing"]),
                     choose_device(device), {"file": path.name, "sha256": file_sha256(path)}, locator=locator, **about)


class Segmenter:
    """A network with its preprocessing, which segments CTs. `load` makes one."""

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing, device: torch.device,
                 weights: Mapping[str, str], experimental: Mapping[str, str] | None = None,
                 in_pieces: Sequence[str] = (), second_view: float | None = None,
                 locator: "Callable[[], Segmenter] | None" = None) -> None:
        """network:       image (B, 1, D, H, W) in [0, 1] -> logits (B, K, D, H, W), as model.UniversalModel
        preprocessing: that of the network's training
        weights:       "file" and "sha256", for the statistics
        experimental:  {class: reason in a few words} of classes that are computed on request only
        in_pieces:     classes of which post-processing keeps all components instead of the largest one
        second_view:   share (0.3 to 1) of the body's width and depth that is run a second time by itself, or None
        locator:       makes the Segmenter on a coarse grid that finds the organs first (inference/focus.py), or None
        """
        self.network: Any = network.to(device).eval()
        self.device = device
        self.preprocessing = preprocessing
        self.weights, self.experimental = weights, experimental or {}
        self.in_pieces, self.second_view = tuple(in_pieces), second_view
        self.locator = locator

    def __repr__(self) -> str:
        spacing = " x ".join(f"{mm:g}" for mm in self.preprocessing.spacing_mm)
        return (f"<Segmenter {self.weights['file']}: {len(self.offered)} of {len(self.classes)} classes offered, "
                f"{self.network.config.backbone} at {spacing} mm, {self.device}>")

    def __str__(self) -> str:
        """What it is, the classes that it offers, and those that it knows but does not offer, with the reason."""
        lines = [repr(self)[1:-1], f"  offered (computed by default): {', '.join(map(taxonomy.spoken, self.offered))}"]
        if self.experimental:
            lines.append("  experimental (scored too low to be offered; experimental=True computes them too):")
            lines += [f"    {name}: {reason}" for name, reason in self.experimental.items()]
        return "\n".join(lines)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes that the network knows, in the order of its channels."""
        return tuple(self.network.classes)

    @property
    def offered(self) -> tuple[str, ...]:
        """The classes that are computed unless others are asked for: all but the experimental ones."""
        return tuple(n for n in self.classes if n not in self.experimental)

    def select(self, wanted: str | Sequence[str] | None = None, experimental: bool = False) -> tuple[str, ...]:
        """The names of the model's classes, in its order, for names or aliases ("kidneys" is both kidneys).

        wanted:       None for all that are offered; a text may hold several names, "liver, spleen"
        experimental: whether experimental classes may be named, and belong to all
        Raises ValueError for a class that these weights do not have or do not offer.
        """
        if wanted is None:
            return self.classes if experimental else self.offered
        if isinstance(wanted, str):
            wanted = [name.strip() for name in wanted.split(",")]
        chosen: list[str] = []
        for name in wanted:
            for resolved in find_class(name, self.classes):
                if resolved not in self.classes:
                    raise ValueError(f"class {resolved} is not in these weights ({self.weights['file']}). "
                                     f"They offer {', '.join(self.classes if experimental else self.offered)}.")
                if resolved in self.experimental and not experimental:
                    raise ValueError(f"class {resolved} is experimental in these weights ({self.weights['file']}): "
                                     f"{self.experimental[resolved]}. Add --experimental to compute it all the same.")
                chosen.append(resolved)
        return tuple(n for n in self.classes if n in chosen)

    @returning_freed_memory
    def segment(self, source: Source | np.ndarray, classes: str | Sequence[str] | None = None,
                overlap: float = 0.5, threshold: float | Mapping[str, float] = 0.5,
                postprocess: bool | Collection[str] = True,
                precision: str = "auto", progress: bool | str = False, experimental: bool = False,
                max_voxels: int = MAX_VOXELS, numbers: str = TABLE_2, affine: np.ndarray | None = None,
                fast: bool = False, focus: bool = True) -> Segmentation:
        """Segment one CT.

        source:       path of a NIfTI file, a nibabel image, or an array (X, Y, Z), in Hounsfield units
        classes:      names to compute, as a list or in one text, "liver, spleen" (default: all that are offered); the
                      heads of other classes do not run
        overlap:      share that neighbouring windows have in common (paper: 0.5)
        threshold:    probability above which a voxel belongs to a class (paper: 0.5), or {class: probability};
                      classes that are not named have 0.5
        postprocess:  whether to run the three steps of Section 4.1.2 and postprocess.drop_stubs, or the names of those
                      to run; postprocess.STEPS are the paper's three
        precision:    float32, autocast to bf16 or fp16, or auto: bf16 on a CPU that multiplies in it, else float32
        progress:     show how far the work is: a bar on a terminal, else a line on stderr now and then; a text, such
                      as the name of the case, stands in front of it
        experimental: also compute experimental classes, or allow them to be named
        max_voxels:   a file with more voxels is refused
        numbers:      of the label map: "table2", "totalsegmentator", "msd:Task03", ... (formats/numbers.py)
        affine:       (4, 4), of an array only: from its indices to mm in RAS+, as nibabel has it
        fast:         for a look: windows overlap by FAST_OVERLAP at most, and there is no second view
        focus:        where few classes are named, and windows are small, run those near these organs alone; the
                      built-in weights find them first (inference/focus.py)
        Raises ValueError for arguments, imaging.byte_stream.VolumeError for input that cannot be used, and
        FloatingPointError where the network gives NaN.
        """
        source = as_source(source, affine)
        request = make_request(self, classes, overlap, threshold, postprocess, precision, experimental, max_voxels,
                               numbers, fast, focus)
        return self._segmented(source, request, max_voxels, progress)

    def _segmented(self, source: Source, request: Request, max_voxels: int, progress: bool | str) -> Segmentation:
        """`segment` with checked arguments: the steps that this file begins with."""
        names, clock = request.names, Clock()
        with clock("read"):
            stamp_before, ct = stamp(source), read_ct(source, max_voxels)
        warnings, geometry, native_shape, native_affine = list(ct.warnings), ct.geometry, ct.array.shape, ct.affine
        with clock("resample"):
            grid = self._on_model_grid(ct)
            del ct                                           # frees the voxels of the CT
        crops: list[Crop | None] = [None] * len(names)
        focused = None
        if grid.box is None:
            warnings.append("no body found in this volume; the result is empty")
        else:
            with clock("network"):
                crops, focused = self._find(grid, request, progress)
        grid = grid._replace(shown=grid.hu)                  # frees what the network alone sees
        with clock("post-processing"):
            bits, notes, spine, plane = self._refined(grid, crops, request)
        with clock("native grid"):
            native_bits, label_map = to_native(bits, crops, request.numbers, grid.affine, native_shape, native_affine)
        with clock("measures"):
            planes = unchanged(hu_planes(source, max_voxels), source, stamp_before)
            counted = measure(from_ras(native_bits, geometry.orientation), request.numbers, affine_in_mm(geometry),
                              planes, self.experimental, warnings)
        if spine is not None:
            warnings += doubts(grid.hu, grid.affine, grid.body, bits, names, spine, plane, counted, self.offered)
        stats = record(source, stamp_before, geometry, native_affine, self._model(),
                       self._settings(request, grid.box, focused), counted, notes, warnings, clock)
        again = partial(read_again, source, stamp_before, max_voxels)
        return Segmentation(from_ras(label_map, geometry.orientation), names, stats, native_bits, geometry, again)

    def segment_all(self, inputs: str | Path | Sequence[str | Path], out: str | Path | None = None,
                    outputs: Collection[str] = (), existing: str = "refuse", recursive: bool = False,
                    progress: bool = False, **options: Any) -> list[Case]:
        """Segment many CTs and write their results, and statistics.csv over them, as the command `infer` does.

        inputs:    NIfTI files, or folders of them, or one of these
        out:       folder of the results (default: beside each CT)
        outputs:   what is written besides label map and JSON, any of inference.outputs.Outputs: ["masks"]
        existing:  what happens to former results: "refuse" them before any work, "replace" them, or "keep" those that
                   are complete and the ones asked for
        recursive: also take the CTs in folders below, whose results lie in the same folders below `out`
        progress:  show how far the work is, and notes
        options:   further arguments of `segment`, such as classes="liver"
        returns: the cases in their order; one that failed has an `error` and no `stats`, and does not stop the others
        Raises ValueError for arguments that cannot be used, before any work.
        """
        paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
        with quietly(not progress):
            return make_all(self, paths, Path(out) if out is not None else None, outputs_named(outputs), options,
                            existing, recursive, progress)

    def asked(self, **options: Any) -> Asked:
        """What decides how a result of `segment` with the same options comes out, to compare it with former results.

        The device and the limit of voxels are none of it, and the second view and what is focused on follow from the
        weights and the CT. Raises ValueError.
        """
        request = make_request(self, **options)
        settings = {name: value for name, value in self._settings(request, None, None).items()
                    if name not in ("device", "second_view", "focused_on")}
        return Asked(self.weights["sha256"], request.names, settings)

    def _on_model_grid(self, ct: Volume) -> OnGrid:
        """The CT on the model's grid. With the padding "edge", the network is shown how a patient who is cut goes on
        beyond the field of view."""
        hu, affine = resample(ct.array, ct.affine, self.preprocessing.spacing_mm,
                              antialias=self.preprocessing.antialias)
        outside = ct.outside_on(hu, affine)
        body, box = find_body(hu, affine, self.preprocessing.window, outside)
        shown = hu
        if outside is not None and self.preprocessing.pad == "edge":
            shown = continued(hu, outside, body, self.preprocessing.spacing_mm)
        return OnGrid(hu, affine, body, box, shown)

    def _find(self, grid: OnGrid, request: Request,
              progress: bool | str) -> tuple[list[Crop | None], list[str] | None]:
        """The bytes of each class on the model's grid, and the organs that alone were looked at, or None."""
        organs, near = self._near(grid, request)
        if near is not None:
            crops = self._crops(grid, request, progress, near)
            if found_whole(dict(zip(request.names, crops)), organs, near, grid.body, grid.affine, self.in_pieces):
                return crops, list(organs)
        return self._crops(grid, request, progress), None

    def _near(self, grid: OnGrid, request: Request) -> tuple[dict[str, Organ], np.ndarray | None]:
        """The organs that the classes asked for lie in, and the boxes around them, (D, H, W) bool.

        The boxes are None where all classes are asked for, where they would save few windows, and where an organ is not
        found or the locator does not know it.
        """
        wanted, mine = organs_of(request.names), self.preprocessing
        if not request.focus or self.locator is None or not set(request.names) < set(self.offered):
            return {}, None
        locator = self.locator()
        if not wanted <= set(locator.offered) or not is_worth_it(
                [part.stop - part.start for part in grid.box or ()], mine.window, mine.spacing_mm, request.overlap,
                locator.preprocessing.window, locator.preprocessing.spacing_mm):
            return {}, None
        organs, coarse_affine = locator.locate(grid, sorted(wanted), request.precision)
        if not wanted <= set(organs):
            return {}, None
        near = around(organs.values(), coarse_affine, grid.affine, grid.hu.shape)
        worth_it = saves_windows(near[grid.box], grid.body[grid.box], mine.window, request.overlap)
        return organs, near if worth_it else None

    def locate(self, grid: OnGrid, classes: Sequence[str], precision: str) -> tuple[dict[str, Organ], np.ndarray]:
        """Where the organs of a CT on another grid are, from one pass without overlap.

        returns: the organs that are found, and the affine (4, 4) of the grid of their boxes
        """
        shown, affine = resample(grid.shown, grid.affine, self.preprocessing.spacing_mm, antialias=True)
        body = resample(grid.body.view(np.uint8), grid.affine, self.preprocessing.spacing_mm, antialias=True)[0] > 0.5
        box = box_of_windows(body, affine, self.preprocessing.window)
        if box is None:
            return {}, affine
        request = make_request(self, classes, overlap=0.0, postprocess=False, precision=precision, fast=True)
        bits = masks_of(self._crops(OnGrid(shown, affine, body, box, shown), request, False), shown.shape)
        return located(bits, request.names, affine, self.in_pieces), affine

    def _crops(self, grid: OnGrid, request: Request, progress: bool | str,
               near: np.ndarray | None = None) -> list[Crop | None]:
        """The bytes of each class on the model's grid (D, H, W). near: (D, H, W) bool, where to look; None: all over"""
        box = grid.box
        part = None if near is None else near[box]
        slabs = self._run_network(grid.shown[box], grid.body[box], request, progress, part)
        return list(in_threads(lambda of_class: join_slabs(of_class, box, grid.hu.shape), slabs))

    def _refined(self, grid: OnGrid, crops: Sequence[Crop | None],
                 request: Request) -> tuple[np.ndarray, list[str], SpineSearch | None, Plane | None]:
        """The masks after post-processing, one bit per class, the notes on what it changed, and the patient's spine and
        mid-sagittal plane; None where there is no body or no need for them."""
        bits = masks_of(crops, grid.hu.shape)
        spine = SpineSearch(grid.hu, grid.affine, grid.body) if grid.box is not None else None
        if spine is None or not request.steps:
            return bits, [], spine, None
        plane = midsagittal_plane(grid.hu, grid.affine, spine, grid.body)
        return *refine(bits, list(request.names), grid.affine, plane, request.steps, self.in_pieces), spine, plane

    def _run_network(self, hu: np.ndarray, body: np.ndarray, request: Request, progress: bool | str,
                     near: np.ndarray | None) -> list[list[Crop]]:
        """Per class, its bytes in each slab: cropped to where its logit is less than 4 below its threshold.

        With a second view, and where the CT is no smaller than a window, the logits in the body's centre are the
        weighted mean of two runs (inference/second_view.py). Each run has its own buffer of sums.

        hu:   (D, H, W) the part of the CT that the windows are laid over
        body: (D, H, W) bool; no organ is found outside it
        near: (D, H, W) bool, the part of the body to search; None: all of it
        """
        names = request.names
        searched = body if near is None else body & near
        channels = None if names == self.classes else [self.classes.index(n) for n in names]
        image = scale_hu(hu, self.preprocessing.hu_window)

        def predict(patches: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, request.precision):
                return self.network(patches, channels)

        def run(part: Box, pad: str, progress: bool | str) -> Iterator[tuple[int, torch.Tensor]]:
            return sliding_window(image[part], predict, len(names), self.preprocessing.window, request.overlap,
                                  body=searched[part], device=self.device, pad=pad, progress=progress)

        runs = [run(np.s_[:, :], self.preprocessing.pad, progress)]
        if self.second_view is not None and self._has_second_view(image.shape, request):
            centre = central_part(body, self.second_view)
            weight = view_weight([part.stop - part.start for part in centre])
            runs.append(run(centre, "edge", False))

        slabs: list[list[Crop]] = [[] for _ in names]
        for (z, logits), *second in zip(*runs):              # neither run is padded or cut along z: the same slabs
            inside, values = searched[:, :, z:z + logits.shape[3]], logits.numpy()                  # (K, D, H, dz)
            for _, again in second:
                for of_class, once_more in zip(values, again.numpy()):
                    of_class[centre] += weight * (once_more - of_class[centre])
            for of_class, crop in zip(slabs, crops_of_slab(values, request.limits, names, inside, z)):
                if crop is not None:
                    of_class.append(crop)
        return slabs

    def _has_second_view(self, shape: Sequence[int], request: Request) -> bool:
        """Whether a CT of this shape gets a second view; one smaller than a window does not, nor does a fast run."""
        return (self.second_view is not None and not request.fast
                and all(n >= w for n, w in zip(shape, self.preprocessing.window)))

    def _model(self) -> dict[str, Any]:
        """What the statistics state about the model."""
        preprocessing = {"pad": self.preprocessing.pad, **self.preprocessing.to_dict()}     # "pad" is first in the file
        return {"weights": self.weights, "backbone": self.network.config.backbone, "preprocessing": preprocessing}

    def _settings(self, request: Request, box: Box | None, focused: list[str] | None) -> dict[str, Any]:
        """What the statistics state about this run.

        box:     the part that the windows were laid over
        focused: the organs that alone were looked at, or None
        """
        in_box = [part.stop - part.start for part in box] if box is not None else [0, 0, 0]
        all_or_none = request.steps in ((), ALL_STEPS)
        return {"overlap": request.overlap, "threshold": request.threshold,
                "postprocess": bool(request.steps) if all_or_none else list(request.steps),
                "in_pieces": [n for n in request.names if n in self.in_pieces and "components" in request.steps],
                "second_view": self.second_view if self._has_second_view(in_box, request) else None,
                "fast": request.fast, "focus": request.focus, "focused_on": focused,
                "precision": request.precision, "numbers": request.numbering, "device": str(self.device)}
