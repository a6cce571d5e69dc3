"""A slice of a CT as pixels, as a radiologist sees it, with its classes as outlines and a light fill. No layout here.

A plane lies on the CT's own axes. In an oblique CT these are the axes nearest to right, anterior and superior, and the
letters are those of the nearest direction. The CT is interpolated to the picture's pixels with cubic splines; outlines
come from signed distances, so that thick slices leave no stairs. blocks.py puts frames and legends around the result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ..imaging.bits import Box, bounding_box
from ..imaging.body import coarse_steps, tissue_hu
from ..imaging.components import keep_components
from ..imaging.grid import every_nth_voxel, voxel_size_mm
from ..imaging.volume import scale_hu
from .colors import Color, class_color

HU_WINDOW = (-160.0, 240.0)       # of soft tissue
SHADES = 64                       # steps of grey: nobody sees more, and the file is smaller
NO_CT = 40.0                      # grey where there are labels but no CT
FILL, FILL_NO_CT = 0.3, 0.6       # share of its colour that a class has inside, over a CT and without one
LINE = 2.0                        # pixels of an outline
AS_GOOD = 0.97                    # of the best score: as good
AIR_AROUND_MM = 8.0               # margin around the body
BODY_STEP_MM = 2.5                # the body is looked for on every n-th voxel
TABLE_MM = 10.0                   # the table's shell is thinner
PART_OF_BODY = 0.2                # of the largest piece; a smaller one is an arm or something on the table
SMOOTH, KEPT = 0.7, 0.3           # voxels: width by which edges are smoothed, and depth that a voxel's centre keeps


class Plane(NamedTuple):
    """One of the three directions of slices. Arrays are (D, H, W) in RAS+ (imaging/volume.py)."""

    name: str
    axis: int                     # that the slice is perpendicular to
    across: int                   # axis of the picture's columns
    down: int                     # axis of its rows
    letters: str                  # sides of the patient on the left, right, top and bottom of the picture


AXIAL, CORONAL, SAGITTAL = PLANES = (Plane("axial", 2, 0, 1, "RLAP"), Plane("coronal", 1, 0, 2, "RLSI"),
                                     Plane("sagittal", 0, 1, 2, "APSI"))


class Case(NamedTuple):
    """What is drawn: a CT, its label map, or both, with the slices and the part that are shown."""

    hu: np.ndarray | None         # (D, H, W) RAS+
    label_map: np.ndarray         # (D, H, W) RAS+
    spacing_mm: np.ndarray        # (3,)
    at: tuple[int, ...]           # the voxel that the slices go through
    box: Box                      # the part that is shown
    hu_window: tuple[float, float]

    def extent_mm(self, plane: Plane) -> tuple[float, float]:
        """Width and height of what is shown of a plane."""
        size = [(part.stop - part.start) * float(mm) for part, mm in zip(self.box, self.spacing_mm)]
        return size[plane.across], size[plane.down]


def make_case(hu: np.ndarray | None, label_map: np.ndarray, affine: np.ndarray, at: Sequence[int] | None = None,
              hu_window: Sequence[float] = HU_WINDOW) -> Case:
    """A Case that shows the body with all labels, cut where most classes are seen.

    hu, label_map: (D, H, W) RAS+; hu may be None
    affine:        (4, 4)
    at:            voxel that the slices go through (default: on each axis the slice that shows most)
    """
    spacing, low_high = voxel_size_mm(affine), (float(hu_window[0]), float(hu_window[1]))
    where = tuple(int(i) for i in (_most_telling(label_map, spacing) if at is None else at))
    whole = tuple(slice(0, n) for n in label_map.shape)
    case = Case(hu, label_map, spacing, where, whole, low_high)
    return case._replace(box=shown_part(case))


def _most_telling(label_map: np.ndarray, spacing_mm: np.ndarray) -> list[int]:
    """On each axis the slice in which most is seen: the largest sum, over classes, of the square root of the area.

    The root favours many classes over one large one. Of slices that are about as good, the middle one is taken.
    """
    steps = coarse_steps(spacing_mm)                          # of at most 5 mm
    sparse = every_nth_voxel(label_map, steps)
    if not sparse.any():
        steps, sparse = [1, 1, 1], label_map                  # empty, or something very small
    score = [np.zeros(n) for n in sparse.shape]
    for value in np.unique(sparse):
        if value:
            mask = sparse == value
            for axis in range(3):
                score[axis] += np.sqrt(np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})))
    where = []
    for s, n, step in zip(score, label_map.shape, steps):
        best = np.flatnonzero(s >= AS_GOOD * s.max()) if s.any() else np.empty(0, int)
        where.append(min(n - 1, step * int(best[len(best) // 2]) + step // 2) if len(best) else n // 2)
    return where


def shown_part(case: Case) -> Box:
    """The box around the body and all labels in the slices of the case, with some air. Table and air are left out."""
    ends: list[list[int]] = [[], [], []]
    for plane in PLANES:
        index = (slice(None),) * plane.axis + (case.at[plane.axis],)
        sizes = [float(case.spacing_mm[axis]) for axis in (plane.across, plane.down)]
        parts = [bounding_box(np.asarray(case.label_map[index]) > 0)]
        parts += [_body_box(np.asarray(case.hu[index]), sizes)] if case.hu is not None else []
        for part in parts:
            for axis, along in zip((plane.across, plane.down), part or ()):
                ends[axis] += [along.start, along.stop]
    margins = [int(np.ceil(AIR_AROUND_MM / mm)) for mm in case.spacing_mm]
    return tuple(slice(max(0, min(known) - margin), min(n, max(known) + margin)) if known else slice(0, n)
                 for n, margin, known in zip(case.label_map.shape, margins, ends))


def _body_box(hu: np.ndarray, sizes_mm: Sequence[float]) -> Box | None:
    """The box of the body in a slice, both axes in voxels: what is left of tissue when thin things are taken away."""
    steps = [max(1, int(BODY_STEP_MM / mm)) for mm in sizes_mm]
    sparse = hu[::steps[0], ::steps[1]]
    tissue = sparse > tissue_hu(sparse)
    times = max(1, round(TABLE_MM / 2 / max(step * mm for step, mm in zip(steps, sizes_mm))))
    thick = ndimage.binary_erosion(tissue, iterations=times, border_value=1) & tissue
    if thick.any():
        tissue = keep_components(thick[..., None], lambda sizes: sizes >= PART_OF_BODY * sizes.max())[..., 0]
    box = bounding_box(tissue, margin=times)
    return box and tuple(slice(part.start * step, min(n, part.stop * step))
                         for part, step, n in zip(box, steps, hu.shape))


def slice_picture(case: Case, plane: Plane, mm_per_pixel: float, labels: bool = True) -> np.ndarray:
    """One slice, float32 (rows, columns, 3) from 0 to 255; a pixel is `mm_per_pixel` wide and high.

    labels: whether the classes are drawn over the CT
    """
    values = _cut(case.label_map, case, plane)
    sizes_mm = float(case.spacing_mm[plane.down]), float(case.spacing_mm[plane.across])
    shape = tuple(max(1, round(n * mm / mm_per_pixel)) for n, mm in zip(values.shape, sizes_mm))
    zoom = _Zoom(sizes_mm, mm_per_pixel, shape)
    if case.hu is None:
        grey = np.full(shape, NO_CT, np.float32)
    else:
        grey = zoom.smooth(scale_hu(_cut(case.hu, case, plane), case.hu_window))
        grey = np.round(np.clip(grey, 0, 1) * (SHADES - 1)) * (255 / (SHADES - 1))
    picture = np.repeat(grey[..., None], 3, axis=2)
    fill = FILL if case.hu is not None else FILL_NO_CT
    found, counts = np.unique(values[values > 0], return_counts=True)
    for value in found[np.argsort(-counts)] if labels else ():               # small structures last
        _paint_class(picture, values == value, zoom, class_color(int(value)), fill)
    return picture


def _cut(array: np.ndarray, case: Case, plane: Plane) -> np.ndarray:
    """The slice of a volume in (rows, columns) of the picture: the right of the patient left, anterior, superior up."""
    index: list[slice | int] = list(case.box)
    index[plane.axis] = case.at[plane.axis]
    return np.asarray(array[tuple(index)])[::-1, ::-1].T


class _Zoom(NamedTuple):
    """From the voxels of a slice to the pixels of the picture."""

    sizes_mm: tuple[float, float]       # of a voxel: its height and its width
    mm_per_pixel: float
    shape: tuple[int, ...]              # rows and columns of the picture

    def smooth(self, plane: np.ndarray) -> np.ndarray:
        """The CT in pixels, by cubic splines; averaged first where a pixel is larger than a voxel."""
        larger = [self.mm_per_pixel / mm for mm in self.sizes_mm]
        plane = ndimage.gaussian_filter(plane, [0.5 * np.sqrt(max(f * f - 1, 0)) for f in larger], mode="nearest")
        return self._sample(plane, (0, 0), (0, 0), self.shape, order=3)

    def distances(self, mask: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
        """The pixels around a mask, and how many pixels each lies inside its edge (outside: below 0)."""
        box = bounding_box(mask, margin=2)
        assert box is not None
        around = np.pad(mask[box], 2, mode="edge")           # at the end of the volume a mask goes on
        depth_mm = signed_distance_mm(around, self.sizes_mm).astype(np.float32)
        low = [max(0, int(part.start * mm / self.mm_per_pixel)) for part, mm in zip(box, self.sizes_mm)]
        high = [min(n, int(np.ceil(part.stop * mm / self.mm_per_pixel)))
                for part, mm, n in zip(box, self.sizes_mm, self.shape)]
        size = [stop - start for start, stop in zip(low, high)]
        depth = self._sample(depth_mm, [part.start - 2 for part in box], low, size, order=1) / self.mm_per_pixel
        steep = np.hypot(*np.gradient(np.pad(depth, 1, mode="edge")))[1:-1, 1:-1]     # 1, but for smoothing
        return (slice(low[0], high[0]), slice(low[1], high[1])), depth / np.clip(steep, 0.7, 4.0)

    def _sample(self, plane: np.ndarray, corner: Sequence[int], start: Sequence[int], size: Sequence[int],
                order: int) -> np.ndarray:
        """The pixels from `start` on of a plane whose first voxel is number `corner` of the slice."""
        step = [self.mm_per_pixel / mm for mm in self.sizes_mm]
        offset = [(begin + 0.5) * s - 0.5 - first for begin, s, first in zip(start, step, corner)]
        return ndimage.affine_transform(plane, step, offset, tuple(size), order=order, mode="nearest")


def signed_distance_mm(mask: np.ndarray, sizes_mm: Sequence[float]) -> np.ndarray:
    """How far each voxel's centre lies inside the edge of a mask (outside: below 0), in mm; the edge is smoothed.

    Interpolating it, also between slices, gives edges without stairs: shape-based interpolation of binary images, as
    https://doi.org/10.1109/42.544506 describes it. Smoothing takes the corners of voxels away; the centre of every
    voxel stays on the side of the edge where its label puts it.

    mask:     (rows, columns) bool; where all is inside, the distance is 1 m
    sizes_mm: height and width of a voxel
    """
    if mask.all():
        return np.full(mask.shape, 1e3)
    half = 0.5 * min(sizes_mm)                               # the edge is half-way between two voxels
    inside, outside = (ndimage.distance_transform_edt(part, sizes_mm) for part in (mask, ~mask))
    depth = np.where(mask, inside - half, half - outside)
    smooth, least = ndimage.gaussian_filter(depth, SMOOTH, mode="nearest"), 2 * KEPT * half
    kept = np.where(mask, np.maximum(smooth, least), np.minimum(smooth, -least))
    thin = np.where(mask, 2 * half, depth)                   # smoothing would remove it: it is drawn a little larger
    return np.where((smooth > 0) == mask, kept, thin)


def _paint_class(picture: np.ndarray, mask: np.ndarray, zoom: _Zoom, color: Color, fill: float) -> None:
    """Give the inside of a class a share `fill` of its colour and draw its outline inside its edge, in place."""
    where, depth = zoom.distances(mask)
    inside, core = (np.clip(depth - away + 0.5, 0, 1) for away in (0.0, LINE))
    share = (inside - core + fill * core)[..., None]
    part = picture[where]
    part += np.round(share * 16) / 16 * (np.array(color, np.float32) - part)
