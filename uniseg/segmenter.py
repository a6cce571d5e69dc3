"""From a CT to masks on its own grid: Section 4.1.2, Inference. The Python behind `python -m uniseg.infer`.

    read (RAS+, HU) -> resample to the model's grid -> find the body -> sliding window, slab by slab
      -> thresholds -> post-processing -> back to the native grid, class by class -> one bit a class and one label map

Memory is bounded by design: a finished slab of logits becomes one byte a voxel and class at once, kept only where the
class is likely; the native grid holds one bit a class. Nothing of the size classes x volume exists in float.
"""

import platform
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import scipy
import torch

from . import checkpoint, taxonomy
from .imaging.anatomy import midsagittal_plane
from .imaging.bits import bit_dtype, bounding_box, set_bit
from .imaging.body import body_mask, trunk_box
from .imaging.preprocessing import Preprocessing
from .imaging.resampling import resample
from .imaging.volume import from_ras, read_ct, scale_hu, voxel_size_mm
from .inference.native_grid import AT_THRESHOLD, assemble, box_at, count_voxels, to_bytes, to_native
from .inference.plausibility import hardly_anything
from .inference.result import Segmentation, resolve_in
from .inference.second_view import fading, middle, widened
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.device import choose_device
from .machine.memory import keep_freed_memory, peak_memory_bytes
from .postprocess import ALL_STEPS
from .postprocess import postprocess as refine
from .sliding_window import sliding_window

DEFAULT_WEIGHTS = Path(__file__).with_name("weights") / "default.pt"
BODY_MARGIN = 4          # voxels of air kept around the body
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(weights=None, device="auto"):
    """A Segmenter with the built-in weights, or those of a checkpoint written by uniseg.train.

    weights: path, or None for the built-in ones; device: "auto", "cpu", "cuda", ...
    Raises checkpoint.CheckpointError for a file that cannot be used, ValueError for a device that does not exist.
    """
    keep_freed_memory()
    path = Path(weights) if weights is not None else DEFAULT_WEIGHTS
    content = checkpoint.read(path)
    about = {name: value for name, value in content.get("about", {}).items() if name in ("experimental", "in_pieces", "second_view")}
    return Segmenter(checkpoint.load_network(content, path), Preprocessing.from_dict(content["preprocessing"]),
                     choose_device(device),
                     {"file": path.name, "sha256": checkpoint.file_sha256(path)}, **about)


class Segmenter:
    """A network with its preprocessing. `network`: image (B, 1, D, H, W) in [0, 1] -> logits (B, K, D, H, W).

    experimental: {class: reason in a few words} of classes that are computed on request only
    in_pieces: classes of which post-processing keeps all components, not the largest alone
    second_view: share (0.3 to 1) of the body's width and depth that is seen a second time, on its own; None: nothing is
    """

    def __init__(self, network, preprocessing, device, weights, experimental=None, in_pieces=(), second_view=None):
        self.network, self.device = network.to(device).eval(), device
        self.preprocessing = preprocessing
        self.weights, self.experimental = weights, experimental or {}
        self.in_pieces, self.second_view = tuple(in_pieces), second_view

    @property
    def classes(self):
        """All that the network knows, in the order of its channels."""
        return tuple(self.network.classes)

    @property
    def offered(self):
        """The classes that are computed unless others are asked for."""
        return tuple(n for n in self.classes if n not in self.experimental)

    def select(self, wanted=None, experimental=False):
        """Names of the model's classes for a list of names or aliases ("kidneys" is both), or for None all that are offered.

        experimental: whether experimental classes may be among them, and are among all. Raises ValueError.
        """
        if wanted is None:
            return self.classes if experimental else self.offered
        chosen = []
        for name in wanted:
            for resolved in resolve_in(name, self.classes):
                if resolved not in self.classes:
                    raise ValueError(f"class {resolved} is not in these weights ({self.weights['file']}). "
                                     f"They offer {', '.join(self.classes if experimental else self.offered)}.")
                if resolved in self.experimental and not experimental:
                    raise ValueError(f"class {resolved} is experimental in these weights ({self.weights['file']}): "
                                     f"{self.experimental[resolved]}. Add --experimental to compute it all the same.")
                chosen.append(resolved)
        return tuple(n for n in self.classes if n in chosen)

    def segment(self, source, classes=None, overlap=0.5, threshold=0.5, postprocess=True, precision="float32",
                progress=False, experimental=False):
        """Segment one CT.

        source:      path of a NIfTI file, or a nibabel image, in Hounsfield units
        classes:     names to compute (default: all that are offered); other heads cost nothing
        overlap:     share that neighbouring windows have in common (paper: 0.5)
        threshold:   probability above which a voxel belongs to a class; a number, or {class: number}, 0.5 for the others
        postprocess: the three steps of Section 4.1.2, and postprocess.drop_stubs
        precision:   float32, or autocast to bf16 or fp16
        experimental: compute experimental classes too, or allow them to be named
        returns:     Segmentation; raises volume.VolumeError for input that cannot be used
        """
        names = self.select(classes, experimental)
        if not names:
            raise ValueError("no class to segment. Name at least one.")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision}: choose one of {', '.join(PRECISIONS)}.")
        if isinstance(threshold, dict):
            threshold = {n: value for name, value in threshold.items() for n in self.select([name], experimental)}
        limits = [_logit(threshold.get(n, 0.5) if isinstance(threshold, dict) else threshold, n) for n in names]
        clock = _Clock()
        with clock("read"):
            ct = read_ct(source)
        warnings = list(ct.warnings)
        native_shape, native_affine, geometry = ct.array.shape, ct.affine, ct.geometry
        with clock("resample"):
            hu, affine = resample(ct.array, ct.affine, self.preprocessing.spacing_mm,
                                  antialias=self.preprocessing.antialias)
            del ct                                               # the native voxels are not needed again
            body = body_mask(hu, voxel_size_mm(affine))
            box = widened(trunk_box(body, voxel_size_mm(affine), BODY_MARGIN), self.preprocessing.window, hu.shape)
        if box is None:
            warnings.append("no body found in this volume; the result is empty")
            pieces = [[] for _ in names]
        else:
            with clock("network"):
                pieces = self._windows(hu[box], body[box], names, limits, overlap, precision, progress)
        notes, bits = [], np.zeros(hu.shape, bit_dtype(len(names)), order="F")
        with clock("post-processing"):
            maps = [assemble(p, [s.start for s in box] if box else None, hu.shape) for p in pieces]
            for k, found in enumerate(maps):
                if found is not None:
                    start, values = found
                    set_bit(bits, k, values > AT_THRESHOLD, box_at(start, values.shape))
            if postprocess and box is not None:
                bits, notes = refine(bits, list(names), affine, midsagittal_plane(hu, affine), ALL_STEPS, self.in_pieces)
        with clock("native grid"):
            numbers = {n: v for n, v in taxonomy.label_values(self.classes).items() if n in names}
            native_bits, label_map = to_native(bits, maps, numbers, affine, native_shape, native_affine)
            counted = count_voxels(native_bits, numbers, abs(np.linalg.det(native_affine[:3, :3])))
        for name in (n for n in names if n in self.experimental):
            counted[name]["experimental"] = self.experimental[name]
        if box is not None and set(self.offered) <= set(names):
            body_ml = np.count_nonzero(body) * abs(np.linalg.det(affine[:3, :3])) / 1000
            warnings += hardly_anything({n: counted[n]["ml"] for n in self.offered}, body_ml)
        spacing_mm = voxel_size_mm(native_affine)[geometry.orientation[:, 0].astype(int)]    # in the file's order of axes
        stats = {
            "disclaimer": NOT_A_MEDICAL_DEVICE,
            "versions": {"uniseg": __version__, "torch": torch.__version__, "numpy": np.__version__,
                         "scipy": scipy.__version__, "nibabel": nibabel.__version__, "python": platform.python_version()},
            "input": Path(source).name if isinstance(source, (str, Path)) else "image in memory",
            "shape": list(geometry.shape), "spacing_mm": [round(float(s), 6) for s in spacing_mm],
            "weights": self.weights, "backbone": self.network.config.backbone,
            "preprocessing": self.preprocessing.to_dict(),
            "settings": {"overlap": overlap, "threshold": threshold, "postprocess": bool(postprocess),
                         "in_pieces": [n for n in names if n in self.in_pieces and postprocess],
                         "second_view": self.second_view if box is not None and self._looks_twice(hu[box].shape) else None,
                         "precision": precision, "device": str(self.device)},
            "classes": counted, "empty": not any(c["voxels"] for c in counted.values()),
            "postprocessing": notes, "warnings": warnings, "seconds": clock.seconds(),
            "peak_memory_mib": round(peak_memory_bytes() / 2 ** 20)}
        return Segmentation(from_ras(label_map, geometry.orientation), names, stats, native_bits, geometry)

    def _looks_twice(self, shape):
        return self.second_view is not None and all(n >= w for n, w in zip(shape, self.preprocessing.window))

    def _windows(self, hu, body, names, limits, overlap, precision, progress):
        """Per class a list of (start, bytes): where its logit is less than 4 below its threshold, slab by slab.

        With a second view, where the CT is no smaller than a window, logits in the middle of the body are the mean of two:
        of windows over all of it, and over the middle alone, which goes on as its outermost voxels where it is smaller than a
        window. What lies around an organ leads the network astray as well as it helps, and where it sees less it makes other
        mistakes. Towards the middle's sides the second fades out (fading). Both have their buffer of sums.
        """
        channels = None if names == self.classes else [self.classes.index(n) for n in names]
        image = scale_hu(hu, self.preprocessing.hu_window)
        dtype = PRECISIONS[precision]

        def predict(patches):
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                return self.network(patches, channels)

        def look(view, pad, progress):
            return sliding_window(image[view], predict, len(names), self.preprocessing.window, overlap, body=body[view],
                                  device=self.device, pad=pad, progress=progress)

        looks, view = [look(np.s_[:, :], self.preprocessing.pad, progress)], None
        if self._looks_twice(image.shape):
            view = middle(body, self.second_view)
            looks.append(look(view, "edge", False))
            weight = fading([part.stop - part.start for part in view])

        pieces = [[] for _ in names]
        for (z, logits), *second in zip(*looks):                                 # no view is padded or cut in z: the same slabs
            inside = body[:, :, z:z + logits.shape[3]]
            for k, limit in enumerate(limits):
                values = logits[k].numpy()                                       # (D, H, dz)
                for _, again in second:
                    values[view] += weight * (again[k].numpy() - values[view])
                values = to_bytes(values, limit)
                values *= inside                                                 # ours: no organ outside the body
                box = bounding_box(values > 0)
                if box is not None:
                    start = (box[0].start, box[1].start, box[2].start + z)
                    pieces[k].append((start, np.asfortranarray(values[box])))
        return pieces


class _Clock:
    """Seconds of each named stage."""

    def __init__(self):
        self.began, self.stages = time.monotonic(), {}

    @contextmanager
    def __call__(self, stage):
        start = time.monotonic()
        yield
        self.stages[stage] = round(time.monotonic() - start, 3)

    def seconds(self):
        return {**self.stages, "total": round(time.monotonic() - self.began, 3)}


def _logit(probability, name):
    if not 0 < probability < 1:
        raise ValueError(f"threshold {probability} of {name}: choose a probability between 0 and 1.")
    return float(np.log(probability / (1 - probability)))
