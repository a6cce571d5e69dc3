"""From a CT to masks on its own grid: Section 4.1.2, Inference. The Python behind `python -m uniseg.infer`.

    read (RAS+, HU) -> resample to the model's grid -> find the body -> sliding window, slab by slab
      -> thresholds -> post-processing -> back to the native grid, class by class -> one bit a class and one label map

Memory is bounded by design: a finished slab of logits becomes one byte a voxel and class at once, kept only where the
class is likely; the native grid holds one bit a class. Nothing of the size classes x volume exists in float.
"""

import json
import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import scipy
import torch

from . import NOT_A_MEDICAL_DEVICE, __version__, checkpoint, layouts, taxonomy
from .anatomy import body_mask, bounding_box, midsagittal_plane, trunk_box
from .bits import bit_dtype, get_bit, set_bit
from .postprocess import ALL_STEPS
from .postprocess import postprocess as refine
from .runtime import choose_device, keep_freed_memory, peak_memory_bytes
from .sliding_window import sliding_window
from .volume import atomic_write, from_ras, read_ct, resample, resample_back, scale_hu, voxel_size_mm, write_label_map

DEFAULT_WEIGHTS = Path(__file__).with_name("weights") / "default.pt"
BODY_MARGIN = 4          # voxels of air kept around the body
STEPS_PER_LOGIT = 32     # a logit is stored as a byte: 128 is the threshold, one step is 1/32, 0 is 4 or more below
AT_THRESHOLD = 128
FADE = 8                 # voxels in which the second view gains its weight, from its sides inwards
# Weights that know these know chest and abdomen. Where they find hardly anything in a body, it is another part of the body,
# or no CT they can read. Weights for a few organs or tumours find little in every patient.
LANDMARKS = {"liver", "right_lung", "left_lung"}
LEAST_BODY_ML = 1000.0   # less is a slice or two, or no patient
# Of 40 mm thick slabs of three CTs of chest and abdomen, organs are 5 (pelvic floor) to 45 % of the body, by their labels; where
# there is neither liver nor lung it takes more to be believed, as bowel is what weights see in the air of a head.
LEAST_SHARE, LEAST_SHARE_WITHOUT_LANDMARKS = 0.02, 0.04
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
    return Segmenter(checkpoint.load_network(content, path), content["preprocessing"], choose_device(device),
                     {"file": path.name, "sha256": checkpoint.file_sha256(path)}, **about)


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
        names = _names(name, self.classes)
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


def json_path(path):
    """ct_seg.nii.gz -> ct_seg.json"""
    path = Path(path)
    return path.with_name(layouts.bare(path.name) + ".json")


class Segmenter:
    """A network with its preprocessing. `network`: image (B, 1, D, H, W) in [0, 1] -> logits (B, K, D, H, W).

    experimental: {class: reason in a few words} of classes that are computed on request only
    in_pieces: classes of which post-processing keeps all components, not the largest alone
    second_view: share (0.3 to 1) of the body's width and depth that is seen a second time, on its own; None: nothing is
    """

    def __init__(self, network, preprocessing, device, weights, experimental=None, in_pieces=(), second_view=None):
        self.network, self.device = network.to(device).eval(), device
        self.preprocessing = {"pad": "air", **preprocessing}                            # older checkpoints do not say
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
            for resolved in _names(name, self.classes):
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
            hu, affine = resample(ct.array, ct.affine, self.preprocessing["spacing_mm"],
                                  antialias=self.preprocessing["antialias"])
            del ct                                               # the native voxels are not needed again
            body = body_mask(hu, voxel_size_mm(affine))
            box = _widened(trunk_box(body, voxel_size_mm(affine), BODY_MARGIN), self.preprocessing["window"], hu.shape)
        if box is None:
            warnings.append("no body found in this volume; the result is empty")
            pieces = [[] for _ in names]
        else:
            with clock("network"):
                pieces = self._windows(hu[box], body[box], names, limits, overlap, precision, progress)
        notes, bits = [], np.zeros(hu.shape, bit_dtype(len(names)), order="F")
        with clock("post-processing"):
            maps = [_assemble(p, [s.start for s in box] if box else None, hu.shape) for p in pieces]
            for k, found in enumerate(maps):
                if found is not None:
                    start, values = found
                    set_bit(bits, k, values > AT_THRESHOLD, _box(start, values.shape))
            if postprocess and box is not None:
                bits, notes = refine(bits, list(names), affine, midsagittal_plane(hu, affine), ALL_STEPS, self.in_pieces)
        with clock("native grid"):
            numbers = {n: v for n, v in taxonomy.label_values(self.classes).items() if n in names}
            native_bits, label_map = _to_native(bits, maps, numbers, affine, native_shape, native_affine)
            counted = _count(native_bits, numbers, abs(np.linalg.det(native_affine[:3, :3])))
        for name in (n for n in names if n in self.experimental):
            counted[name]["experimental"] = self.experimental[name]
        if box is not None and set(self.offered) <= set(names):
            body_ml = np.count_nonzero(body) * abs(np.linalg.det(affine[:3, :3])) / 1000
            warnings += _hardly_anything({n: counted[n]["ml"] for n in self.offered}, body_ml)
        spacing_mm = voxel_size_mm(native_affine)[geometry.orientation[:, 0].astype(int)]    # in the file's order of axes
        stats = {
            "disclaimer": NOT_A_MEDICAL_DEVICE,
            "versions": {"uniseg": __version__, "torch": torch.__version__, "numpy": np.__version__,
                         "scipy": scipy.__version__, "nibabel": nibabel.__version__, "python": platform.python_version()},
            "input": Path(source).name if isinstance(source, (str, Path)) else "image in memory",
            "shape": list(geometry.shape), "spacing_mm": [round(float(s), 6) for s in spacing_mm],
            "weights": self.weights, "backbone": self.network.config.backbone, "preprocessing": self.preprocessing,
            "settings": {"overlap": overlap, "threshold": threshold, "postprocess": bool(postprocess),
                         "in_pieces": [n for n in names if n in self.in_pieces and postprocess],
                         "second_view": self.second_view if box is not None and self._looks_twice(hu[box].shape) else None,
                         "precision": precision, "device": str(self.device)},
            "classes": counted, "empty": not any(c["voxels"] for c in counted.values()),
            "postprocessing": notes, "warnings": warnings, "seconds": clock.seconds(),
            "peak_memory_mib": round(peak_memory_bytes() / 2 ** 20)}
        return Segmentation(from_ras(label_map, geometry.orientation), names, stats, native_bits, geometry)

    def _looks_twice(self, shape):
        return self.second_view is not None and all(n >= w for n, w in zip(shape, self.preprocessing["window"]))

    def _windows(self, hu, body, names, limits, overlap, precision, progress):
        """Per class a list of (start, bytes): where its logit is less than 4 below its threshold, slab by slab.

        With a second view, where the CT is no smaller than a window, logits in the middle of the body are the mean of two:
        of windows over all of it, and over the middle alone, which goes on as its outermost voxels where it is smaller than a
        window. What lies around an organ leads the network astray as well as it helps, and where it sees less it makes other
        mistakes. Towards the middle's sides the second fades out (_fading). Both have their buffer of sums.
        """
        channels = None if names == self.classes else [self.classes.index(n) for n in names]
        image = scale_hu(hu, self.preprocessing["hu_window"])
        dtype = PRECISIONS[precision]

        def predict(patches):
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                return self.network(patches, channels)

        def look(view, pad, progress):
            return sliding_window(image[view], predict, len(names), self.preprocessing["window"], overlap, body=body[view],
                                  device=self.device, pad=pad, progress=progress)

        looks, view = [look(np.s_[:, :], self.preprocessing["pad"], progress)], None
        if self._looks_twice(image.shape):
            view = _middle(body, self.second_view)
            looks.append(look(view, "edge", False))
            weight = _fading([part.stop - part.start for part in view])

        pieces = [[] for _ in names]
        for (z, logits), *second in zip(*looks):                                 # no view is padded or cut in z: the same slabs
            inside = body[:, :, z:z + logits.shape[3]]
            for k, limit in enumerate(limits):
                values = logits[k].numpy()                                       # (D, H, dz)
                for _, again in second:
                    values[view] += weight * (again[k].numpy() - values[view])
                values = _to_bytes(values, limit)
                values *= inside                                                 # ours: no organ outside the body
                box = bounding_box(values > 0)
                if box is not None:
                    start = (box[0].start, box[1].start, box[2].start + z)
                    pieces[k].append((start, np.asfortranarray(values[box])))
        return pieces


def _widened(box, window, shape):
    """The box grown, where it is smaller than the window, to the window's size or the volume's, whichever is less: the CT's own
    voxels, arms among them, are better than padding. None stays None.

    >>> _widened((slice(4, 8), slice(6, 9)), (8, 8), (20, 9))
    (slice(2, 10, None), slice(1, 9, None))
    """
    if box is None:
        return None
    wide = []
    for part, w, n in zip(box, window, shape):
        more = max(0, min(w, n) - (part.stop - part.start))
        start = min(max(0, part.start - more // 2), n - (part.stop - part.start) - more)
        wide.append(slice(start, part.stop - part.start + more + start))
    return tuple(wide)


def _middle(body, share):
    """The middle of the body's width and depth: slices of axes 0 and 1 that hold `share` of each.

    >>> _middle(np.ones((10, 20, 3), bool), 0.7)
    (slice(2, 8, None), slice(3, 17, None))
    """
    parts = []
    for part in bounding_box(body)[:2]:
        n = part.stop - part.start
        cut = min(round((1 - share) / 2 * n), (n - 1) // 2)
        parts.append(slice(part.start + cut, part.stop - cut))
    return tuple(parts)


def _fading(shape):
    """Weight of the second view in each column of its (D, H), (D, H, 1) float32: 1/2, but towards its sides linearly less in FADE voxels.

    >>> _fading([2, 2 * FADE + 1])[0, :3, 0] * 2 * (FADE + 1)
    array([1., 1., 1.], dtype=float32)
    >>> float(_fading([2 * FADE + 1, 2 * FADE + 1])[:, FADE, 0].max())
    0.5
    """
    rise = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in shape]
    nearest = np.minimum.outer(*rise)                                            # voxels to the nearest side, the first is 1
    return (np.minimum(nearest / (FADE + 1), 1) / 2).astype(np.float32)[..., None]


def _hardly_anything(offered_ml, body_ml):
    """[] or [the warning that the organs found are a suspiciously small share of the body].

    offered_ml: {class that is offered: ml found, as the result has it}
    """
    if body_ml < LEAST_BODY_ML or not LANDMARKS <= set(offered_ml):
        return []
    found_ml, placed = sum(offered_ml.values()), any(offered_ml[name] for name in LANDMARKS)
    if found_ml >= (LEAST_SHARE if placed else LEAST_SHARE_WITHOUT_LANDMARKS) * body_ml:
        return []
    return [f"hardly anything found: {found_ml:.0f} ml of organs in {body_ml / 1000:.1f} litres of body. These weights know chest "
            "and abdomen. Check that the CT shows these, in Hounsfield units"]


def _names(name, classes):
    """The classes that a name or an alias stands for; one beyond Table 2 only as one of `classes`. Raises ValueError."""
    own = [n for n in (name, taxonomy.normalise_name(name)) if n in classes]
    return tuple(own[:1]) or taxonomy.resolve(name)


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


def _to_bytes(logits, limit):
    """Logits -> bytes: above AT_THRESHOLD just where logit > limit, below it elsewhere, 1/32 a step."""
    steps = np.rint((logits - np.float32(limit)) * STEPS_PER_LOGIT) + AT_THRESHOLD
    inside = logits > limit
    steps[inside] = np.clip(steps[inside], AT_THRESHOLD + 1, 255)
    np.clip(steps, 0, np.where(inside, 255, AT_THRESHOLD - 1), out=steps)
    return steps.astype(np.uint8)


def _box(start, shape):
    return tuple(slice(s, s + n) for s, n in zip(start, shape))


def _assemble(pieces, offset, shape):
    """The slabs of one class joined: (start on the model grid, bytes), cropped to its mask and one voxel around it.

    offset: of the body box that the pieces count from, on the model grid of the given shape.

    None where no voxel is above the threshold. Outside all pieces a byte is 0.
    """
    if not any((values > AT_THRESHOLD).any() for _, values in pieces):
        return None
    starts = [np.add(start, offset) for start, _ in pieces]
    low = np.maximum(np.min(starts, axis=0) - 1, 0)
    high = np.minimum(np.max([start + values.shape for start, (_, values) in zip(starts, pieces)], axis=0) + 1, shape)
    joined = np.zeros(high - low, np.uint8, order="F")
    for start, (_, values) in zip(starts, pieces):
        joined[_box(start - low, values.shape)] = values
    tight = bounding_box(joined > AT_THRESHOLD, margin=1)
    return [int(l) + s.start for l, s in zip(low, tight)], joined[tight]


def _to_native(bits, maps, numbers, affine, native_shape, native_affine):
    """Bits (uint32) and label map on the native grid, RAS+, from refined model-grid bits and the bytes of each class.

    numbers: {class: its value in the label map}, in the order of the bits
    Every class is interpolated linearly inside its bounding box. Organs come first, then vessels, then tumours; within
    one kind the class with the higher confidence (distance of the logit from its threshold) wins (Section 4.1.2).
    """
    native_bits = np.zeros(native_shape, bit_dtype(len(numbers)), order="F")
    label_map = np.zeros(native_shape, np.uint8 if max(numbers.values()) <= 255 else np.uint16, order="F")
    confidence = np.zeros(native_shape, np.uint8, order="F")
    for kind in taxonomy.MERGING_ORDER:
        confidence.fill(0)
        for k, name in enumerate(numbers):
            if taxonomy.kind_of(name) != kind:
                continue
            found = _refined(get_bit(bits, k), maps[k])
            if found is None:
                continue
            start, field = found
            for box, block in resample_back(field, start, bits.shape, native_shape, affine, native_affine):
                inside = block > AT_THRESHOLD
                native_bits[box] |= inside.astype(native_bits.dtype) << native_bits.dtype.type(k)
                block = np.rint(block).astype(np.uint8)
                wins = inside & (block > confidence[box])
                label_map[box][wins] = numbers[name]
                confidence[box][wins] = block[wins]
    return native_bits, label_map


def _refined(mask, found):
    """(start, bytes) of a class whose mask post-processing may have changed: bytes agree with the mask everywhere."""
    box = bounding_box(mask, margin=1)
    if box is None:
        return None
    field = np.zeros([s.stop - s.start for s in box], np.uint8, order="F")
    if found is not None:                                        # None: all voxels came from the partner's side
        start, values = found
        both = [(max(b.start, s), min(b.stop, s + n)) for b, s, n in zip(box, start, values.shape)]
        if all(low < high for low, high in both):
            field[tuple(slice(low - b.start, high - b.start) for (low, high), b in zip(both, box))] = \
                values[tuple(slice(low - s, high - s) for (low, high), s in zip(both, start))]
    inside = mask[box]
    field = np.where(inside, np.maximum(field, AT_THRESHOLD + 1), np.minimum(field, AT_THRESHOLD - 1))
    return [s.start for s in box], np.asfortranarray(field)


def _count(bits, numbers, voxel_mm3):
    """Per class of `numbers`, see _to_native: its number in the label map, voxels, ml, and whether it touches the border of the volume."""
    counted = {}
    faces = [bits[0], bits[-1], bits[:, 0], bits[:, -1], bits[:, :, 0], bits[:, :, -1]]
    for k, (name, number) in enumerate(numbers.items()):
        one = bits.dtype.type(1 << k)
        voxels = sum(int(np.count_nonzero(bits[:, :, z] & one)) for z in range(bits.shape[2]))
        counted[name] = {"label": number, "voxels": voxels, "ml": round(voxels * voxel_mm3 / 1000, 3),
                         "touches_border": bool(voxels and any((face & one).any() for face in faces))}
    return counted
