"""The spine in a CT: a column of places that are soft inside and ringed by bone, in the back of the patient.

In an axial slice the spinal canal, and the inside of a vertebra, is soft tissue with bone all around it. Hardly
anything else is: a kidney full of contrast medium is less bright; the shaft of a long bone holds fat, is denser, and
lies in the middle of its limb. So a column of such places shows where the patient's middle is, also in a field of view
of one half of the patient. Arrays are (D, H, W) in RAS+ (volume.py). Read body.py first; anatomy.py uses this.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .body import coarse_body_mask
from .grid import every_nth_affine, every_nth_voxel, voxel_size_mm

GRID_MM = (4.0, 4.0, 5.0)        # sampling step; the canal is about 15 mm by 20 mm wide
RING_HU = 180.0                  # bone, also in a voxel that holds half of it
RING_MM = np.arange(5.0, 19.1, 1.5)    # distances from the place at which a ray may meet bone
RAYS = 8                         # directions in which bone is looked for
OPEN_RAYS = 3                    # one less may miss bone: the ring is open where ribs and arches begin
SOFT_HU = (0.0, 130.0)           # spinal cord, marrow of vertebrae; the marrow of long bones is fat
SOFT_MM = 8.0                    # width over which the HU of a place are averaged
BACK_SHARE = 0.4                 # of the body's depth; the spines of whole CTs lie at 0.19 to 0.31
SHALLOW_MM = 160.0               # a body less deep, as a neck, is searched over its whole depth
COLUMN_MM = 12.0                 # places farther than this from the column's line are not of it
STEEPEST = 0.3                   # slope of the line: mm to the side for each mm up
MOST_FLESH_MM = 60.0             # flesh beside the column is measured up to this
VERTEBRA_HU = (350.0, 1000.0)    # brighter bone of the ring: contrast medium is below, shafts of long bones are above


@dataclass(frozen=True)
class Column:
    """Places of the spine, one a slice, and the line x = a + c z (world mm) along which they lie."""

    a: float
    c: float
    centre: np.ndarray           # (3,) world mm: the mean of the places
    evidence: float              # 0 to 1: how much the places look like the spine, in the mean of all slices
    flesh_mm: float              # of body on the narrower side of the line, in three of four slices
    ring_hu: float               # of the brighter bone around the places

    @property
    def is_vertebrae(self) -> bool:
        """Whether the bone around the column is as bright as that of vertebrae."""
        return VERTEBRA_HU[0] <= self.ring_hu <= VERTEBRA_HU[1]


class SpineSearch:
    """A CT on a coarse grid, and the score of each of its voxels: 0 to 1, how much it looks like one of the spine."""

    def __init__(self, hu: np.ndarray, affine: np.ndarray, body: np.ndarray | None = None) -> None:
        """hu:   (D, H, W) RAS+
        body: (D, H, W) bool, the body mask of the CT where there is one already
        """
        affine = np.asarray(affine, np.float64)
        spacing_mm = voxel_size_mm(affine)
        steps = [max(1, int(mm / s + 1e-3)) for mm, s in zip(GRID_MM, spacing_mm)]
        self.spacing_mm: np.ndarray = spacing_mm * steps
        self.to_world = every_nth_affine(affine, steps)
        self.hu = every_nth_voxel(hu, steps)
        self.body = coarse_body_mask(self.hu, self.spacing_mm) if body is None else every_nth_voxel(body, steps)
        self._ringed = ringed_by_bone(self.hu, self.spacing_mm)
        self.score = self._score(BACK_SHARE)

    def anywhere(self) -> "SpineSearch":
        """The same search, but in all of the body's depth."""
        search = copy.copy(self)
        search.score = self._score(back_share=1.0)
        return search

    def _score(self, back_share: float) -> np.ndarray:
        score = self._ringed * in_the_back(self.body, self.spacing_mm, back_share)
        return ndimage.gaussian_filter(score, [*(3.0 / self.spacing_mm[:2]), 0.0])

    def column(self, where: np.ndarray | None = None) -> Column | None:
        """The best column; None where no voxel scores. where: (D, H, W) bool, voxels of the grid that it may pass"""
        score = self.score if where is None else self.score * where
        if not score.any():
            return None
        index = best_column(score, max(1, round(self.spacing_mm[2] / 5.0)))
        values = score[tuple(index.T)]
        points = index @ self.to_world[:3, :3].T + self.to_world[:3, 3]
        a, c = fit_line(points[:, 0], points[:, 2], values)
        of_line = (abs(points[:, 0] - a - c * points[:, 2]) < COLUMN_MM) & (values > 0.05)
        if not of_line.any():
            return None
        on_line = index[of_line]
        x = (a + c * points[of_line, 2] - self.to_world[0, 3]) / self.spacing_mm[0]
        on_line[:, 0] = np.clip(np.rint(x), 0, score.shape[0] - 1)
        return Column(a, c, points[of_line].mean(axis=0), float(values[of_line].sum() / len(values)),
                      self._flesh_mm(on_line), self._ring_hu(index[of_line]))

    def place_in_depth(self, column: Column) -> tuple[float, float] | None:
        """Where the column lies between the body's back (0) and front (1), and how many mm the body is deep there.

        None where the image shows no front there: in most slices there has to be air in front of the body, or the field
        of view may have cut it.
        """
        x, y = ((column.centre[axis] - self.to_world[axis, 3]) / self.spacing_mm[axis] for axis in (0, 1))
        reach = max(1, int(COLUMN_MM / self.spacing_mm[0]))
        section = self.body[max(0, round(x) - reach):round(x) + reach + 1]
        beside = np.logical_or.reduce(section, axis=0)                                          # (H, W)
        beside = beside[:, beside.any(axis=0)]
        height = beside.shape[0]
        back, front = beside.argmax(axis=0), height - 1 - beside[::-1].argmax(axis=0)
        if not front.size or np.mean(front < height - 1) < 0.5:
            return None
        depth = front - back + 1
        return float(np.median((y - back) / depth)), float(np.median(depth) * self.spacing_mm[1])

    def _flesh_mm(self, index: np.ndarray) -> float:
        """How much body is to the left and right of the places; index: (N, 3)"""
        most, widths = int(MOST_FLESH_MM / self.spacing_mm[0]), []
        for i, j, k in index:
            row = np.pad(self.body[:, j, k], most + 1)[i:i + 2 * most + 3]          # the place is in the middle
            sides = row[most + 1:], row[most + 1::-1]
            widths.append(min(int(side.argmin()) if not side.all() else most for side in sides))
        return float((np.percentile(widths, 25) - 0.5) * self.spacing_mm[0])

    def _ring_hu(self, index: np.ndarray) -> float:
        """The median over the places of the HU that a tenth of the bone around each exceeds; index: (N, 3)"""
        reach, found = [int(20.0 / s) for s in self.spacing_mm[:2]], []
        for i, j, k in index:
            around = self.hu[max(0, i - reach[0]):i + reach[0] + 1, max(0, j - reach[1]):j + reach[1] + 1, k]
            bone = around[around > RING_HU]
            found.append(np.percentile(bone, 90) if bone.size else 0.0)
        return float(np.median(found))


def ringed_by_bone(hu: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """(D, H, W) float32: 1 for soft tissue from which all RAYS meet bone in the slice, 0 where OPEN_RAYS miss it."""
    bone, met = hu > RING_HU, np.zeros(hu.shape, np.uint8)
    margin = int(np.ceil(RING_MM[-1] / min(spacing_mm[:2]))) + 1
    around = np.pad(bone, ((margin, margin), (margin, margin), (0, 0)))
    for angle in np.arange(RAYS) * (2 * np.pi / RAYS):
        ray = np.rint(np.outer(RING_MM, [np.cos(angle), np.sin(angle)]) / spacing_mm[:2]).astype(int) + margin
        hit = np.zeros_like(bone)
        for i, j in np.unique(ray, axis=0):
            hit |= around[i:i + hu.shape[0], j:j + hu.shape[1]]
        met += hit
    width = [max(1, round(SOFT_MM / s)) for s in spacing_mm[:2]]
    mean = ndimage.uniform_filter(hu.astype(np.float32), [*width, 1])
    share = np.clip((met.astype(np.float32) - (RAYS - OPEN_RAYS)) / OPEN_RAYS, 0.0, 1.0)
    return share * ((mean > SOFT_HU[0]) & (mean < SOFT_HU[1]))


def in_the_back(body: np.ndarray, spacing_mm: Sequence[float] | np.ndarray, share: float) -> np.ndarray:
    """(D, H, W) bool: body that lies in the back `share` of its depth, or anywhere where it is less than SHALLOW_MM."""
    height = body.shape[1]
    back, front = body.argmax(axis=1), height - 1 - body[:, ::-1].argmax(axis=1)
    behind = np.arange(height)[None, :, None] - back[:, None]                       # voxels of body behind the voxel
    depth = (front - back + 1)[:, None]
    return body & ((behind <= share * depth) | (depth * spacing_mm[1] < SHALLOW_MM))


def best_column(score: np.ndarray, reach: int) -> np.ndarray:
    """The column, one voxel a slice, with the largest sum of scores: (W, 3) voxel indices.

    From slice to slice it moves by at most `reach` voxels along each axis of the slice (dynamic programming).
    """
    best = [score[:, :, 0]]
    for k in range(1, score.shape[2]):
        best.append(score[:, :, k] + ndimage.maximum_filter(best[-1], 2 * reach + 1, mode="constant"))
    i, j = np.unravel_index(best[-1].argmax(), best[-1].shape)
    column = [(i, j, score.shape[2] - 1)]
    for k in range(score.shape[2] - 2, -1, -1):
        low_i, low_j = max(0, i - reach), max(0, j - reach)
        near = best[k][low_i:i + reach + 1, low_j:j + reach + 1]
        step_i, step_j = np.unravel_index(near.argmax(), near.shape)
        i, j = low_i + step_i, low_j + step_j
        column.append((i, j, k))
    return np.array(column[::-1])


def fit_line(x: np.ndarray, z: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(a, c) of the line x = a + c z that explains the most weight of the points to within COLUMN_MM."""
    best, line = -1.0, (0.0, 0.0)
    for c in np.linspace(-STEEPEST, STEEPEST, 13):
        at_zero = x - c * z
        for a in at_zero[::max(1, len(x) // 25)]:
            explained = float(weights[abs(at_zero - a) < COLUMN_MM].sum())
            if explained > best:
                best, line = explained, (float(a), float(c))
    for _ in range(3):                                       # least squares over the points that it explains
        a, c = line
        w = weights * (abs(x - a - c * z) < COLUMN_MM) + 1e-6
        middle_z, middle_x = np.average(z, weights=w), np.average(x, weights=w)
        # A short column cannot tell its slope: 15 mm more of spread pull it towards 0.
        slope = np.sum(w * (z - middle_z) * (x - middle_x)) / np.sum(w * ((z - middle_z) ** 2 + 15.0 ** 2))
        line = float(middle_x - slope * middle_z), float(slope)
    return line
