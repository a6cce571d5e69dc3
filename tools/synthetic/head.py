"""Synthetic CT of heads, drawn without a label map: cases that show none of the classes (docs/synthetic.md).

Beyond the paper. The label maps show torsos only, so a model that is trained on them has never seen a head. A head here is a table of
ellipsoids and tubes (PARTS) in mm of a reference adult, about the middle of the braincase (x right, y front, z up), around them
an outline of skin, in it a braincase with a brain; each head varies in place, size, posture and HU. Nothing is drawn of the classes
of Table 2: the view ends above the oesophagus, the lungs and the aorta.
"""

from typing import NamedTuple

import numpy as np

from uniseg.datasets.augment import rotation

from . import tissues
from .geometry import Grid, covering, field
from .scanner import scan

VIEWS = {"head": (0.4, -135.0), "head and neck": (0.35, -172.0), "brain": (0.25, -62.0)}     # probability, lower end (mm)
POSTURE, SHAPE, HU, SOFT, BRAIN, DETAILS, HOLDER, SCANNER = range(8)    # each stage draws from (seed, 1000 + its number)
ELASTIC_MM, JITTER_MM = 2.0, 0.8               # standard deviation of the smooth displacement, and of a part's place

# Mean HU, spread between heads (sd); what is not here is that of tissues.LITERATURE.
# [w] ranges of https://en.wikipedia.org/wiki/Hounsfield_scale: grey matter 37-45, white matter 20-30, cerebrospinal fluid 0-15,
#     clotted blood 50-75, cortical bone 500-1900
# [e] estimate: no number of a source at hand
LITERATURE = {
    "grey": (38, 2), "white": (28, 2), "csf": (7, 3), "clot": (65, 6), "table": (1150, 150), "diploe": (550, 130),     # w, e
    "petrous": (1350, 120), "enamel": (2300, 250), "dura": (55, 6), "eye": (12, 4), "lens": (110, 15), "gland": (20, 20),     # e
    "mucosa": (40, 8), "calcium": (250, 80),                                                                           # e
}
BRAINCASE = (((0, -2, 8), (67, 84, 64)), ((36, 12, -26), (26, 36, 20)), ((0, -42, -34), (54, 38, 32)))     # cerebrum, temporal, hindbrain
OUTLINE = (((0, 45, -72), (62, 50, 62)), ((0, 52, -106), (46, 42, 32)), ((32, 58, -35), (30, 27, 30)), ((0, 94, -62), (13, 17, 20)),
           ((0, 62, -18), (52, 30, 22)), ((80, -14, -42), (4, 14, 26)))                                                       # face, jaw, cheeks, nose, brow, ears
SPINE_MM = [-94.0 - 17 * n for n in range(8)]  # heights of C2 and below
TEETH = [(25 * np.sin(t), 54 + 27 * np.cos(t)) for t in np.linspace(0.1, 1.45, 8)]
SINUS_OF_FALX = [(0, -2 + 81 * np.cos(t), 8 + 61 * np.sin(t)) for t in np.linspace(0.3, 3.4, 12)]
# Tissue, points, radius. One point and three radii are an ellipsoid, several points a tube; beside the midline there are two of them.
# Later parts cover earlier ones. "bone" is a shell of compact bone about marrow, "cells" are air in bone, "air" has a thin bony wall.
PARTS = [
    ("bone", [(0, 14, -50)], (17, 22, 13)), ("bone", [(0, 5, -50), (0, -18, -66)], 7), ("petrous", [(50, -22, -46), (22, 0, -46)], 10),
    ("bone", [(52, -30, -58)], (13, 16, 20)), ("cells", [(52, -30, -58)], (10, 13, 16)),
    ("bone", [(46, 62, -46), (56, 50, -55)], 6), ("bone", [(56, 48, -52), (66, 28, -50), (66, 6, -48)], 3.5),
    ("bone", [(48, 62, -18), (49, 60, -46)], 4), ("bone", [(14, 28, -58), (16, 28, -85)], 2.5), ("bone", [(0, 60, -78)], (22, 24, 3.5)),
    ("bone", [(25, 55, -80), (20, 68, -80), (10, 77, -80), (0, 79, -80)], 5.5), ("bone", [(0, 86, -30), (0, 93, -44)], 3),
    ("bone", [(50, 8, -56), (46, 14, -105), (34, 45, -117), (12, 77, -121), (0, 79, -121)], 6),
    ("bone", [(48, 22, -72), (46, 24, -105)], 4.5), ("bone", [(40, 30, -108), (27, 55, -110), (10, 78, -111), (0, 80, -111)], 5),
    *[("enamel", [(x, y, z)], (3.4, 3.4, 8)) for x, y in TEETH for z in (-89, -103)],
    ("muscle", [(0, 48, -99)], (21, 26, 16)), ("mucosa", [(0, 20, -60), (0, 14, -85), (0, 14, -120), (0, 24, -150), (0, 24, -240)], 11),
    ("air", [(26, 56, -60)], (13, 17, 17)), ("air", [(0, 22, -44)], (11, 11, 9)), ("air", [(11, 78, -15)], (8, 5, 9)),
    ("air", [(0, 58, -58)], (12, 31, 20)), ("mucosa", [(7, 62, -66)], (3.5, 22, 5)), ("mucosa", [(6.5, 60, -53)], (3, 18, 4)),
    ("mucosa", [(0, 62, -58)], (1.3, 32, 19)), ("cells", [(0, 58, -33)], (12, 24, 13)),
    ("bone", [(44, 62, -18), (30, 76, -16), (0, 80, -18)], 6), ("orbit", [(31, 56, -32)], (18, 26, 16)), ("muscle", [(24, 72, -32), (10, 30, -34)], 2.2), ("muscle", [(42, 72, -32), (14, 30, -34)], 2.2),
    ("muscle", [(32, 72, -20), (12, 30, -32)], 2), ("muscle", [(32, 72, -43), (12, 30, -36)], 2), ("white", [(32, 58, -32), (9, 26, -33)], 2.2),
    ("mucosa", [(32, 68, -32)], (12.5, 12.5, 12.5)), ("eye", [(32, 68, -32)], (11.3, 11.3, 11.3)), ("lens", [(32, 76, -32)], (4.5, 2.2, 4.5)),
    ("gas", [(0, 40, -60), (0, 20, -62), (0, 15, -85)], 6), ("gas", [(0, 15, -85), (0, 14, -120), (0, 24, -150), (0, 24, -240)], 7),
    ("gas", [(0, 50, -83), (0, 30, -86)], 2), ("gas", [(84, -8, -44), (56, -8, -44)], 3), ("gland", [(53, 0, -82)], (11, 16, 22)),
    ("gland", [(28, 30, -118)], (9, 13, 9)), ("bone", [(18, 22, -132), (0, 41, -134)], 3), ("cartilage", [(15, 22, -146), (0, 39, -146)], 3),
    ("cartilage", [(14, 22, -158), (0, 37, -160)], 3), ("thyroid", [(15, 22, -185)], (8, 10, 20)),
    ("bone", [(20, -14, -77)], (9, 9, 7)), ("bone", [(20, -18, -77), (0, -42, -79)], 3.5), ("bone", [(0, -4, -83)], (5.5, 5.5, 12)),
    *[("bone", [(0, -6, z)], (12.5, 10, 8.5)) for z in SPINE_MM], *[("disc", [(0, -6, z - 8.5)], (11, 9, 2)) for z in SPINE_MM],
    *[("bone", [(18, -12, z)], (7, 6, 6)) for z in SPINE_MM], *[("bone", [(16, -20, z), (0, -41, z - 3)], 3.5) for z in SPINE_MM],
    *[("bone", [(0, -41, z - 3), (0, -57, z - 9)], 3) for z in SPINE_MM],
    ("csf", [(0, -24, -58), (0, -26, -240)], 8), ("cord", [(0, -18, -50), (0, -25, -66), (0, -26, -240)], 5),
    ("blood", [(24, 16, -240), (26, 6, -130), (24, -2, -75), (12, 8, -46), (10, 8, -30)], 2.8),                # carotid arteries
    ("blood", [(16, -10, -240), (16, -10, -90), (8, -20, -64), (0, -5, -44), (0, 2, -30)], 1.8), ("blood", [(10, 8, -30), (42, 14, -22)], 1.5),
    ("blood", [(2, 14, -28), (2, 42, 0), (2, 20, 34)], 1.2), ("vein", [(32, 10, -240), (33, -2, -120), (30, -14, -66)], 5),
    ("vein", SINUS_OF_FALX, 3.5), ("vein", [(0, -80, -14), (45, -62, -22), (50, -28, -40)], 3.5),
]
VENTRICLES = [("csf", [(10, 34, 8), (12, 2, 22), (20, -36, 10), (32, -8, -20)], 1.0), ("csf", [(20, -36, 10), (20, -58, 6)], 0.7),
              ("csf", [(0, -2, 2)], (2.5, 14, 11)), ("csf", [(0, -32, -36)], (6, 6, 9)), ("csf", [(0, 2, -32)], (14, 11, 6))]
NUCLEI = [("grey", [(24, 8, 4)], (7, 20, 13)), ("grey", [(10, -8, 4)], (8, 14, 10)), ("white", [(16, 2, 6)], (3, 18, 10))]


class Head(NamedTuple):
    """A head on its way: HU so far (D, H, W) float32, and for each voxel the place in the reference head, (3, D, H, W) float32 mm."""

    grid: Grid
    matrix: np.ndarray                         # (3, 3): mm in the CT -> mm in the reference head
    place: np.ndarray
    image: np.ndarray

    def paint(self, depth, value, box=...):
        """Fill what lies deeper than 0 mm with a value or an array; at its surface by the share of the voxel."""
        part = self.image[box]
        part += self.share(depth) * (value - part)

    def share(self, depth):
        return np.clip(depth / self.grid.spacing_mm + 0.5, 0, 1)

    def around(self, points, reach):
        """The box (three slices) that holds what lies within `reach` mm of the points, wherever the displacement has moved it."""
        middle = (np.asarray(points, float) @ np.linalg.inv(self.matrix).T - self.grid.origin_mm) / self.grid.spacing_mm
        more = (1.2 * np.max(reach) + 5 * ELASTIC_MM + 3 * JITTER_MM) / self.grid.spacing_mm + 1
        low, high = np.maximum(middle.min(axis=0) - more, 0), np.maximum(middle.max(axis=0) + more + 1, 0)
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high))


def ellipsoid(place, centre, radii):
    """Depth (mm) below an ellipsoid's surface, negative outside; nearly right close to the surface."""
    scaled = [(a - np.float32(c)) / np.float32(r) for a, c, r in zip(place, centre, radii)]
    level = np.sqrt(sum(s * s for s in scaled))
    slope = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii)))
    return np.maximum(level, 1e-3) * (1 - level) / np.maximum(slope, 1e-3 / max(radii))


def tube(place, points, radius):
    """Depth (mm) below the surface of a tube through the points, negative outside."""
    nearest = np.inf
    for start, end in zip(np.asarray(points, np.float32)[:-1], np.asarray(points, np.float32)[1:]):
        step = end - start
        offset = [a - s for a, s in zip(place, start)]
        along = np.clip(sum(o * s for o, s in zip(offset, step)) / (step @ step), 0, 1)
        nearest = np.minimum(nearest, sum((o - along * s) ** 2 for o, s in zip(offset, step)))
    return np.float32(radius) - np.sqrt(nearest)


def joined(depths, round_mm):
    """Depth below the union of shapes, the furrows between them filled as with a ball of about `round_mm`."""
    return round_mm * np.logaddexp.reduce([depth / np.float32(round_mm) for depth in depths])


def both_sides(points):
    """The points, and their mirror image where they don't lie in the midline."""
    points = np.asarray(points, float)
    return [points, points * [-1, 1, 1]] if points[:, 0].any() else [points]


def ellipsoids(head, balls):
    """The depths (D, H, W) below each of some (centre, radii), both of them where there are two."""
    return [ellipsoid(head.place, centre, radii) for middle, radii in balls for (centre,) in both_sides([middle])]


def draw_head(seed, spacing_mm=2.0):
    """One synthetic CT of a head: hu (D, H, W) int16, affine (4, 4); RAS+, isotropic spacing_mm. The same seed gives the same CT."""
    def stage(number):
        return np.random.default_rng((seed, 1000 + number))

    head = posture(spacing_mm, stage(POSTURE), stage(SHAPE))
    rng = stage(HU)
    hu = tissues.draw_hu(rng.choice(["native", "arterial", "portal"], p=[0.55, 0.3, 0.15]), rng)
    hu |= {tissue: mean + sd * rng.standard_normal() for tissue, (mean, sd) in LITERATURE.items()}
    hu["vein"] = hu["right_blood"]
    skin, cavity = soft_tissue(head, hu, stage(SOFT))
    brain(head, cavity, hu, stage(BRAIN))
    details(head, skin, hu, stage(DETAILS))
    skin = holder(head, skin, stage(HOLDER))
    return scan(head.image, skin, head.grid, stage(SCANNER)), head.grid.affine


def posture(spacing_mm, rng, shape_rng):
    """A Head of air: nodding by up to 20 degrees, turned, of another size, seen whole, with the neck, or the brain alone."""
    zoom = rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3)
    angles = np.deg2rad([rng.uniform(-20, 20), rng.normal(0, 4), rng.normal(0, 6)])
    matrix = np.diag(1 / zoom) @ rotation(angles)
    view = list(VIEWS)[rng.choice(len(VIEWS), p=[odds for odds, _ in VIEWS.values()])]
    low = VIEWS[view][1] * zoom[2] + rng.uniform(-8, 8)
    high = 84 * zoom[2] + rng.uniform(-20 if view == "brain" else 0, 25)
    side, back, front = rng.uniform(92, 125) * zoom[0], rng.uniform(112, 140) * zoom[1], rng.uniform(118, 140) * zoom[1]
    grid = covering((-side, -back, low), (side, front, high), spacing_mm)
    place = np.einsum("ij,jdhw->idhw", matrix.astype(np.float32), np.stack(np.meshgrid(*grid.axes(), indexing="ij")))
    for along in place:
        along += np.float32(ELASTIC_MM) * np.clip(field(grid.axes(), 90.0, shape_rng), -3, 3)
    return Head(grid, matrix, place, np.full(grid.shape, -1000.0, np.float32))


def soft_tissue(head, hu, rng):
    """Skin, fat, muscle and the skull around its cavity; returns the depths (mm) below the skin and below the inner side of the skull."""
    x, y, z = head.place
    axes = head.grid.axes()
    front_base = 0.8 * (z + 30 + 0.9 * np.maximum(25 - y, 0))                       # the floor of the braincase rises in front
    cerebrum, *others = ellipsoids(head, BRAINCASE)
    cavity = joined([np.minimum(cerebrum, front_base), *others], 3.0)
    skull_mm = rng.uniform(4.5, 8.0) + 1.2 * field(axes, 60.0, rng) + 3 * np.exp(-((y + 85) / 20) ** 2)
    skull_mm = np.clip(skull_mm, 3.0, 14.0)
    scalp_mm = rng.uniform(4, 9)
    neck_mm = rng.uniform(50, 66) + 25 / (1 + np.exp((z + 195) / 12))               # widens to the shoulders
    neck = np.minimum(neck_mm - np.hypot(x, 1.05 * (y + 10)), -(z + 50))
    skin = joined([cavity + skull_mm + scalp_mm, neck, *ellipsoids(head, OUTLINE)], 3.0)
    zero, streaks = field(axes, 24.0, rng), field(axes, 9.0, rng)
    head.paint(skin, hu["skin"])
    head.paint(skin - 2.2, hu["fat"] + 6 * streaks)
    fat_mm = rng.uniform(4, 13)
    planes = 18 * (np.abs(zero) - rng.uniform(0.15, 0.5))                           # fat between muscles where the field is 0
    muscle = np.minimum(np.minimum(skin - fat_mm, planes), 45 - z - 0.6 * np.abs(y))             # temporal muscle ends on the vault
    head.paint(muscle, hu["muscle"] + 5 * streaks)
    head.paint(np.minimum(cavity + skull_mm, skin - 2), hu["table"])
    table_mm = rng.uniform(1.2, 2.0)
    head.paint(np.minimum(cavity + skull_mm - table_mm, skin - 2), hu["diploe"] + 130 * streaks)
    head.paint(cavity + table_mm, hu["table"])
    return skin, cavity


def brain(head, cavity, hu, rng):
    """Fill the cavity with fluid, convolutions of grey about white matter, nuclei, ventricles, falx; a bleeding in some."""
    x, y, z = head.place
    axes = head.grid.axes()
    gap_mm, wide = rng.uniform(1.0, 4.0), rng.uniform(0.05, 0.25)                   # both wider in the old
    depth, fold = cavity - gap_mm, np.abs(field(axes, 22.0, rng))                   # sulci lie where the field is 0
    hind = (y < -12) & (z < -18 - 0.2 * (y + 12))
    fold = np.where(hind, np.abs(np.sin(np.pi * (z + 0.3 * y) / 7)) + 0.1, fold)    # leaves of the cerebellum
    head.paint(cavity, hu["csf"])
    head.paint(depth, hu["grey"])
    head.paint(np.minimum(depth - 3.5, 12 * (fold - 0.25)), hu["white"] + 1.5 * field(axes, 12.0, rng))
    head.paint(np.minimum(np.minimum(depth, 18 - depth), 10 * (wide * (1 - depth / 18) - fold)), hu["csf"])
    for part in NUCLEI:
        put(head, *part, hu, rng)
    ventricle_mm = rng.uniform(4.0, 11.0)
    for tissue, points, radius in VENTRICLES:
        put(head, tissue, points, radius if np.ndim(radius) else radius * ventricle_mm, hu, rng)
    middle = np.minimum(np.minimum(depth + 2, z - 12 + 0.2 * np.abs(y)), np.hypot(y / 45, (z - 8) / 28) * 20 - 20)
    head.paint(np.minimum(middle, wide * 18 - np.abs(x)), hu["csf"])
    head.paint(np.minimum(middle, rng.uniform(0.6, 1.4) - np.abs(x)), hu["dura"])
    if rng.random() < 0.12:
        place = rng.uniform((-45, -50, -10), (45, 50, 45))
        put(head, "clot", [place], rng.uniform(6, 20, 3), hu, rng, mirror=False)
    if rng.random() < 0.5:
        put(head, "calcium", [(0, -26, 6)], (3, 3, 3), hu, rng)                     # pineal gland


def details(head, skin, hu, rng):
    """All PARTS: bones of the face and spine, teeth, sinuses, eyes, airway, glands, vessels; what sticks out of the skin is cut off."""
    toothless, filled = rng.random() < 0.2, rng.random() < 0.4
    cells, septa = np.abs(field(head.grid.axes(), 9.0, rng)), hu["mucosa"] + 150
    fluid = rng.random() < 0.15                                                     # sinuses and mastoid cells full of mucus
    for tissue, points, radius in PARTS:
        if tissue == "enamel":
            if not toothless:
                put(head, tissue, points, radius, hu | ({"enamel": 6000.0} if filled and rng.random() < 0.2 else {}), rng)
        elif tissue in ("air", "cells", "orbit"):
            for side in both_sides(points):
                place, box, depth = shape(head, side, radius, rng)
                wall = 1.5 if tissue != "orbit" else np.minimum(1.8, 74 - place[1])             # orbits are open in front
                head.paint(np.minimum(depth + wall, 1.8 + wall), 0.5 * (hu["table"] + hu["diploe"]), box)
                inner = np.minimum(depth, 10 * (cells[box] - 0.25)) if tissue == "cells" else depth
                if tissue == "cells":
                    head.paint(depth, septa, box)
                filling = hu["fat"] if tissue == "orbit" else hu["mucosa"] - 20 if fluid and rng.random() < 0.5 else hu["gas"]
                head.paint(inner, filling, box)
        else:
            put(head, tissue, points, radius, hu, rng)
    head.paint(-skin, -1000.0)


def shape(head, points, radius, rng):
    """(place, box, depth) of an ellipsoid or a tube, moved and resized a little."""
    points = np.asarray(points, float) + rng.normal(0, JITTER_MM, 3) * (points[:, 0].any() or [0, 1, 1])
    radius = np.asarray(radius) * rng.uniform(0.92, 1.08)
    box = head.around(points, radius)
    place = head.place[(slice(None), *box)]
    return place, box, ellipsoid(place, points[0], radius) if radius.ndim else tube(place, points, radius)


def put(head, tissue, points, radius, hu, rng, mirror=True):
    """Paint a part, on both sides where it does not lie in the midline."""
    for side in both_sides(points) if mirror else [np.asarray(points)]:
        _, box, depth = shape(head, side, radius, rng)
        if tissue == "bone":
            head.paint(depth, hu["table"], box)
            head.paint(depth - 1.7, 0.6 * hu["diploe"], box)
        else:
            head.paint(depth, hu[tissue], box)


def holder(head, skin, rng):
    """Half of the heads lie in a shell with foam instead of on the table alone; returns the depth below skin or shell."""
    if rng.random() < 0.5:
        return skin
    x, y, z = head.grid.mesh()
    gap, thick, width = rng.uniform(4, 14), rng.uniform(2.5, 5), rng.uniform(88, 105)
    inside = np.argwhere((skin > 0).any(axis=2))
    back = y[0, inside[:, 1].min(), 0]
    bowl = np.hypot(x, (y - back - width + gap) * 0.95) - width                     # outside the shell's inner side: positive
    shell = np.minimum(np.minimum(bowl, thick - bowl), back + rng.uniform(50, 110) - y) + 0 * z
    head.image[(skin < 0) & (bowl < 0) & (bowl > -gap) & (y < back + 60)] = rng.uniform(-975, -900)
    shell = np.where(skin < 0, shell, -1.0).astype(np.float32)
    head.paint(shell, np.float32(rng.uniform(-600, 150)))
    return np.maximum(skin, np.where(shell > -0.5 * head.grid.spacing_mm, 0.1, -np.inf)).astype(np.float32)
