"""The head of a reference adult as a table of ellipsoids and tubes, in mm around the middle of the braincase.

Beyond the paper: part of the synthetic CT of heads (head.py). x points to the right, y to the front, z up. All
coordinates are estimates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float, float]
Radius = float | Point
# (tissue, points, radius). One point and three radii are an ellipsoid, several points and one radius a tube. A part
# beside the midline stands for two, one on each side.
Part = tuple[str, Sequence[Point], Radius]
Ball = tuple[Point, Point]                     # centre and radii of an ellipsoid

BRAINCASE: tuple[Ball, ...] = (
    ((0, -2, 8), (67, 84, 64)),                # cerebrum
    ((36, 12, -26), (26, 36, 20)),             # temporal lobes
    ((0, -42, -34), (54, 38, 32)),             # hindbrain
)
OUTLINE: tuple[Ball, ...] = (                  # of the skin
    ((0, 45, -72), (62, 50, 62)),              # face
    ((0, 52, -106), (46, 42, 32)),             # jaw
    ((32, 58, -35), (30, 27, 30)),             # cheeks
    ((0, 94, -62), (13, 17, 20)),              # nose
    ((0, 62, -18), (52, 30, 22)),              # brow
    ((80, -14, -42), (4, 14, 26)),             # ears
)
SPINE_MM = [-94.0 - 17 * n for n in range(8)]  # z of C2 and the vertebrae below
TEETH = [(25 * np.sin(t), 54 + 27 * np.cos(t)) for t in np.linspace(0.1, 1.45, 8)]
SINUS_OF_FALX = [(0, -2 + 81 * np.cos(t), 8 + 61 * np.sin(t)) for t in np.linspace(0.3, 3.4, 12)]

# Later parts cover earlier ones. "bone" is a shell of compact bone around marrow, "cells" are air in bone, "air" has a
# thin wall of bone, "orbit" is fat in a wall of bone that is open in front.
PARTS: list[Part] = [
    # Base of the skull and ear
    ("bone", [(0, 14, -50)], (17, 22, 13)),
    ("bone", [(0, 5, -50), (0, -18, -66)], 7),
    ("petrous", [(50, -22, -46), (22, 0, -46)], 10),
    ("bone", [(52, -30, -58)], (13, 16, 20)),
    ("cells", [(52, -30, -58)], (10, 13, 16)),
    # Cheekbones, upper jaw, nose
    ("bone", [(46, 62, -46), (56, 50, -55)], 6),
    ("bone", [(56, 48, -52), (66, 28, -50), (66, 6, -48)], 3.5),
    ("bone", [(48, 62, -18), (49, 60, -46)], 4),
    ("bone", [(14, 28, -58), (16, 28, -85)], 2.5),
    ("bone", [(0, 60, -78)], (22, 24, 3.5)),
    ("bone", [(25, 55, -80), (20, 68, -80), (10, 77, -80), (0, 79, -80)], 5.5),
    ("bone", [(0, 86, -30), (0, 93, -44)], 3),
    # Lower jaw and teeth
    ("bone", [(50, 8, -56), (46, 14, -105), (34, 45, -117), (12, 77, -121), (0, 79, -121)], 6),
    ("bone", [(48, 22, -72), (46, 24, -105)], 4.5),
    ("bone", [(40, 30, -108), (27, 55, -110), (10, 78, -111), (0, 80, -111)], 5),
    *[("enamel", [(x, y, z)], (3.4, 3.4, 8)) for x, y in TEETH for z in (-89, -103)],
    # Tongue, wall of the pharynx, sinuses and nasal cavity
    ("muscle", [(0, 48, -99)], (21, 26, 16)),
    ("mucosa", [(0, 20, -60), (0, 14, -85), (0, 14, -120), (0, 24, -150), (0, 24, -240)], 11),
    ("air", [(26, 56, -60)], (13, 17, 17)),
    ("air", [(0, 22, -44)], (11, 11, 9)),
    ("air", [(11, 78, -15)], (8, 5, 9)),
    ("air", [(0, 58, -58)], (12, 31, 20)),
    ("mucosa", [(7, 62, -66)], (3.5, 22, 5)),
    ("mucosa", [(6.5, 60, -53)], (3, 18, 4)),
    ("mucosa", [(0, 62, -58)], (1.3, 32, 19)),
    ("cells", [(0, 58, -33)], (12, 24, 13)),
    # Brow, orbits, muscles of the eye, optic nerves, eyes
    ("bone", [(44, 62, -18), (30, 76, -16), (0, 80, -18)], 6),
    ("orbit", [(31, 56, -32)], (18, 26, 16)),
    ("muscle", [(24, 72, -32), (10, 30, -34)], 2.2),
    ("muscle", [(42, 72, -32), (14, 30, -34)], 2.2),
    ("muscle", [(32, 72, -20), (12, 30, -32)], 2),
    ("muscle", [(32, 72, -43), (12, 30, -36)], 2),
    ("white", [(32, 58, -32), (9, 26, -33)], 2.2),
    ("mucosa", [(32, 68, -32)], (12.5, 12.5, 12.5)),
    ("eye", [(32, 68, -32)], (11.3, 11.3, 11.3)),
    ("lens", [(32, 76, -32)], (4.5, 2.2, 4.5)),
    # Airway, mouth, ear canals
    ("gas", [(0, 40, -60), (0, 20, -62), (0, 15, -85)], 6),
    ("gas", [(0, 15, -85), (0, 14, -120), (0, 24, -150), (0, 24, -240)], 7),
    ("gas", [(0, 50, -83), (0, 30, -86)], 2),
    ("gas", [(84, -8, -44), (56, -8, -44)], 3),
    # Salivary glands, hyoid bone, larynx, thyroid
    ("gland", [(53, 0, -82)], (11, 16, 22)),
    ("gland", [(28, 30, -118)], (9, 13, 9)),
    ("bone", [(18, 22, -132), (0, 41, -134)], 3),
    ("cartilage", [(15, 22, -146), (0, 39, -146)], 3),
    ("cartilage", [(14, 22, -158), (0, 37, -160)], 3),
    ("thyroid", [(15, 22, -185)], (8, 10, 20)),
    # Spine: C1, the tooth of C2, vertebral bodies and discs, joints, arches, processes
    ("bone", [(20, -14, -77)], (9, 9, 7)),
    ("bone", [(20, -18, -77), (0, -42, -79)], 3.5),
    ("bone", [(0, -4, -83)], (5.5, 5.5, 12)),
    *[("bone", [(0, -6, z)], (12.5, 10, 8.5)) for z in SPINE_MM],
    *[("disc", [(0, -6, z - 8.5)], (11, 9, 2)) for z in SPINE_MM],
    *[("bone", [(18, -12, z)], (7, 6, 6)) for z in SPINE_MM],
    *[("bone", [(16, -20, z), (0, -41, z - 3)], 3.5) for z in SPINE_MM],
    *[("bone", [(0, -41, z - 3), (0, -57, z - 9)], 3) for z in SPINE_MM],
    ("csf", [(0, -24, -58), (0, -26, -240)], 8),
    ("cord", [(0, -18, -50), (0, -25, -66), (0, -26, -240)], 5),
    # Arteries: carotid, vertebral and basilar, middle and anterior cerebral
    ("blood", [(24, 16, -240), (26, 6, -130), (24, -2, -75), (12, 8, -46), (10, 8, -30)], 2.8),
    ("blood", [(16, -10, -240), (16, -10, -90), (8, -20, -64), (0, -5, -44), (0, 2, -30)], 1.8),
    ("blood", [(10, 8, -30), (42, 14, -22)], 1.5),
    ("blood", [(2, 14, -28), (2, 42, 0), (2, 20, 34)], 1.2),
    # Veins: jugular, sagittal sinus, transverse sinuses
    ("vein", [(32, 10, -240), (33, -2, -120), (30, -14, -66)], 5),
    ("vein", SINUS_OF_FALX, 3.5),
    ("vein", [(0, -80, -14), (45, -62, -22), (50, -28, -40)], 3.5),
]
# The radius of a tube is a share of the ventricles' radius, which differs from head to head.
VENTRICLES: list[Part] = [
    ("csf", [(10, 34, 8), (12, 2, 22), (20, -36, 10), (32, -8, -20)], 1.0),
    ("csf", [(20, -36, 10), (20, -58, 6)], 0.7),
    ("csf", [(0, -2, 2)], (2.5, 14, 11)),
    ("csf", [(0, -32, -36)], (6, 6, 9)),
    ("csf", [(0, 2, -32)], (14, 11, 6)),
]
NUCLEI: list[Part] = [
    ("grey", [(24, 8, 4)], (7, 20, 13)),
    ("grey", [(10, -8, 4)], (8, 14, 10)),
    ("white", [(16, 2, 6)], (3, 18, 10)),
]
