"""A synthetic abdominal CT with its masks, for `python -m uniseg infer --demo` and for the tests. Beyond the paper.

It contains no patient data. All shapes are given in mm, in a frame whose origin is the middle of the field of view (x
to the patient's right, y to the front, z to the head), so another voxel size shows the same anatomy. HU values are
those of a contrast-enhanced CT in the portal venous phase. Sizes and positions vary with the seed.

`make_phantom` is the entry. `_Scene` draws shapes on a grid; `_Patient` draws the body and its organs with them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .imaging.bits import bounding_box
from .imaging.components import largest_components

FIELD_OF_VIEW_MM = (330.0, 240.0, 330.0)
AIR, FAT, MUSCLE, FLUID, BONE, LUNG = -1000, -100, 55, 15, 300, -850     # HU
SIDES = ((-1, "left"), (1, "right"))         # the sign of x, and the name
LINE_STEPS = 8                               # points of a rounded line per given point
HU = {                                       # mean HU of each class
    "spleen": 120, "right_kidney": 165, "left_kidney": 165, "gall_bladder": 10, "esophagus": 45, "liver": 110,
    "stomach": 60, "aorta": 150, "postcava": 145, "portal_and_splenic_vein": 165, "pancreas": 95,
    "right_adrenal_gland": 70, "left_adrenal_gland": 70, "duodenum": 60, "hepatic_vessel": 160, "right_lung": LUNG,
    "left_lung": LUNG, "colon": 50, "intestine": 75, "rectum": 45, "bladder": 5, "left_head_of_femur": 380,
    "right_head_of_femur": 380, "celiac_trunk": 150, "liver_tumor": 62, "kidney_tumor": 95, "kidney_cyst": 6,
    "superior_mesenteric_artery": 150,
}


Mask = NDArray[np.bool_]                     # (D, H, W), Fortran order


class _Scene:
    """A grid in mm on which shapes are drawn as masks. Each shape is computed inside its own box."""

    def __init__(self, shape: tuple[int, ...], affine: np.ndarray):
        self.shape = shape
        self.axes = [affine[a, a] * np.arange(n) + affine[a, 3] for a, n in enumerate(shape)]      # mm

    def empty(self) -> Mask:
        """A mask without any voxel."""
        return np.zeros(self.shape, bool, order="F")

    def _box(self, low: np.ndarray, high: np.ndarray) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...]]:
        """The part of the grid between two corners in mm: its slices, and its coordinates x, y, z in mm."""
        box = tuple(slice(*np.searchsorted(axis, (lo, hi))) for axis, lo, hi in zip(self.axes, low, high))
        return box, np.meshgrid(*(axis[s] for axis, s in zip(self.axes, box)), indexing="ij", sparse=True)

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike, turn: float = 0.0, power: float = 2.0) -> Mask:
        """The superquadric |x/a|^p + |y/b|^p + |z/c|^p <= 1, turned about z by `turn` degrees; p > 2 is boxier."""
        centre, radii, mask = np.array(centre, float), np.array(radii, float), self.empty()
        reach = radii if turn == 0 else np.array([max(radii[:2])] * 2 + [radii[2]])
        box, (x, y, z) = self._box(centre - reach - 1, centre + reach + 1)
        x, y, z = x - centre[0], y - centre[1], z - centre[2]
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        x, y = cos * x + sin * y, cos * y - sin * x
        mask[box] = abs(x / radii[0]) ** power + abs(y / radii[1]) ** power + abs(z / radii[2]) ** power <= 1
        return mask

    def tube(self, points: ArrayLike, radius: ArrayLike) -> Mask:
        """Everything within `radius` mm of the line through the points. One radius per point makes it taper."""
        points = np.array(points, float)
        radii = np.broadcast_to(np.asarray(radius, float), len(points))
        mask = self.empty()
        for p, q, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:]):
            box, (x, y, z) = self._box(np.minimum(p, q) - max(r0, r1), np.maximum(p, q) + max(r0, r1))
            d = q - p
            t = np.clip(((x - p[0]) * d[0] + (y - p[1]) * d[1] + (z - p[2]) * d[2]) / (d @ d), 0.0, 1.0)
            far = (x - p[0] - t * d[0]) ** 2 + (y - p[1] - t * d[1]) ** 2 + (z - p[2] - t * d[2]) ** 2
            mask[box] |= far <= (r0 + t * (r1 - r0)) ** 2
        return mask

    def field(self, rng: np.random.Generator, wavelength_mm: float) -> NDArray[np.float32]:
        """A smooth random field of variance about 1: plane waves in random directions, the same in mm on every grid."""
        total = np.zeros(self.shape, np.float32, order="F")
        for _ in range(6):
            k = rng.normal(size=3)
            k *= 2 * np.pi / wavelength_mm / np.linalg.norm(k)
            phase = rng.uniform(0, 2 * np.pi)
            x, y, z = (np.exp(1j * ki * axis).astype(np.complex64) for ki, axis in zip(k, self.axes))
            xy = (x * np.exp(1j * phase))[:, None] * y                      # cos(a + b), a product of exponentials
            total += np.einsum("ij,k->ijk", xy.real, z.real) - np.einsum("ij,k->ijk", xy.imag, z.imag)
        return total / np.sqrt(3.0)


def smooth_line(points: Sequence[ArrayLike] | np.ndarray) -> np.ndarray:
    """A denser, rounded line through (N, 3) points (Catmull-Rom): (LINE_STEPS * (N - 1) + 1, 3)."""
    p = np.array([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, LINE_STEPS, endpoint=False)[:, None]
    pieces = [0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t ** 2 + (3 * b - a - 3 * c + d) * t ** 3)
              for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:])]
    return np.vstack([*pieces, p[-1:]])


class _Patient:
    """A patient that is being drawn: HU and masks on a scene.

    The draw_... methods follow each other in the order of this class, because each draws random numbers from `rng`.
    """

    # draw_body and draw_bones set these; later methods read them.
    girth: float                                 # share of the mean
    body: Mask
    wall: Mask                                   # everything inside the fat below the skin
    cavity: Mask
    ribcage: Mask
    taken: Mask                                  # where a bone or an organ is already
    iliac: Mask                                  # the iliac arteries
    heart: Mask
    heads: dict[str, Mask]                       # femoral head per side
    fine: NDArray[np.float32]                    # random fields of short and of long wavelength
    wide: NDArray[np.float32]

    def __init__(self, scene: _Scene, spacing_mm: tuple[float, ...], rng: np.random.Generator, tumours: bool,
                 beyond: bool):
        self.scene, self.spacing_mm, self.rng, self.tumours, self.beyond = scene, spacing_mm, rng, tumours, beyond
        self.x, self.y, self.z = np.meshgrid(*scene.axes, indexing="ij", sparse=True)
        self.hu = np.full(scene.shape, AIR, np.float32, order="F")
        self.masks: dict[str, Mask] = {}         # class name -> mask

    def some(self, centre: ArrayLike, radii: ArrayLike, place: float = 3.0, size: float = 0.06,
             **shape_of: Any) -> Mask:
        """An ellipsoid whose position (up to `place` mm) and size (up to the share `size`) vary between patients."""
        centre = np.array(centre, float) + self.rng.uniform(-place, place, 3)
        return self.scene.ellipsoid(centre, np.array(radii, float) * (1 + self.rng.uniform(-size, size)), **shape_of)

    def shrink(self, mask: Mask, by_mm: float) -> Mask:
        """The mask without a rim of `by_mm`, rounded to voxels; the rim is measured along the axes."""
        inner, box = self.scene.empty(), bounding_box(mask, 1)
        if box is not None:
            size = [2 * round(by_mm / s) + 1 for s in self.spacing_mm]
            inner[box] = ndimage.minimum_filter(mask[box].view(np.uint8), size).view(bool)
        return inner

    def wander(self, points: Sequence[ArrayLike], place: float = 2.0) -> np.ndarray:
        """A rounded line through the points after each is moved by up to `place` mm along each axis."""
        return smooth_line(np.array(points, float) + self.rng.uniform(-place, place, (len(points), 3)))

    def claim(self, name: str, mask: Mask, within: Mask | None = None) -> None:
        """Give the organ the largest free component of the mask inside `within` (None: the cavity)."""
        mask = largest_components(mask & (self.cavity if within is None else within) & ~self.taken)
        self.taken[mask] = True
        self.masks[name] = mask

    def draw_body(self) -> None:
        """Skin, fat, muscle wall and cavity. Cross-sections are superellipses, narrower at the waist."""
        scene, hu, x, y, z = self.scene, self.hu, self.x, self.y, self.z
        waist = 1.0 - 0.06 * np.exp(-((z + 25.0) / 60.0) ** 2)
        girth = self.girth = self.rng.uniform(0.97, 1.03)

        def shell(inset: float) -> Mask:
            a, b = girth * 150.0 * waist - inset, girth * 98.0 * waist - inset
            inside = scene.empty()                       # in Fortran order: mixed orders are ten times slower
            return np.less_equal(abs(x / a) ** 2.4 + abs((y - 2.0) / b) ** 2.4, 1, out=inside)
        fat_mm = self.rng.uniform(13.0, 20.0)
        body, under_skin, wall, cavity = shell(0), shell(2.5), shell(fat_mm), shell(fat_mm + 15.0)
        self.body, self.wall, self.cavity = body, wall, cavity
        self.ribcage = shell(fat_mm + 4.0) & ~shell(fat_mm + 11.0)
        hu[body] = 20                                                    # skin
        hu[under_skin] = FAT
        hu[wall] = MUSCLE
        hu[cavity] = FAT + 5
        muscles = scene.empty()
        for side in (-1, 1):
            muscles |= scene.tube([(side * 32, -68, -200), (side * 30, -66, 200)], 22)               # erector spinae
            muscles |= scene.tube(smooth_line([(side * 62, 5, -150), (side * 48, -35, -90), (side * 36, -45, 40)]),
                                  np.linspace(14, 9, 17))                                            # psoas
            muscles |= scene.ellipsoid((side * 95, -45, -150), (45, 32, 60))                         # gluteal
        muscles &= wall
        hu[muscles] = MUSCLE

    def draw_bones(self) -> None:
        """Vertebrae with discs, spinal canal and processes; ribs; pelvis."""
        scene, hu, x, y, z = self.scene, self.hu, self.x, self.y, self.z
        spine = scene.tube([(0, -46, -110), (0, -46, 200)], 19) & (y > -64)
        height = np.broadcast_to((z + 8.0) % 34.0, hu.shape)                # in mm, inside a vertebra and its disc
        bones = spine & (height < 27)
        bones |= scene.tube([(0, -68, -110), (0, -68, 200)], 13) & (height < 22)
        bones |= scene.ellipsoid((0, -86, 0), (3.5, 14, 300), power=4) & (height < 18)
        bones |= scene.ellipsoid((0, -70, 0), (38, 4, 300), power=4) & (height < 9)
        bones |= self.ribcage & ((z + 0.45 * y) % 27.0 < 9) & (z + 0.5 * y > -12) & (abs(x) > 45)
        bones |= scene.ellipsoid((0, -55, -125), (38, 16, 38), power=2.5)                            # sacrum
        for side in (-1, 1):
            bones |= scene.ellipsoid((side * 92, -28, -108), (9, 48, 46), turn=side * 28)            # iliac wing
            bones |= scene.ellipsoid((side * 86, 0, -148), (29, 31, 29))                            # acetabulum
        heads = self.heads = {name: self.some((side * 92, 2, -152), (22, 22, 22), 2.0) for side, name in SIDES}
        bones &= self.wall & ~heads["left"] & ~heads["right"]
        canal = scene.tube([(0, -68, -150), (0, -68, 200)], 8)
        disc = spine & (height >= 27)
        fine, self.wide = scene.field(self.rng, 7.0), scene.field(self.rng, 45.0)
        self.fine = fine
        hu[disc] = 95
        hu[bones] = (BONE - 60 + 60 * fine)[bones]
        hu[bones & ~self.shrink(bones, 2.5)] = 620
        hu[canal & self.body] = 25
        self.taken = bones | canal | disc

    def draw_organs(self) -> None:
        """All organs and large vessels. An organ takes only space that no earlier one has claimed."""
        for side, name in SIDES:
            self.claim(f"{name}_head_of_femur", self.heads[name], self.wall)
        self.draw_vessels()
        self.draw_kidneys()
        self.draw_upper_abdomen()
        self.draw_bowel()
        if self.beyond:
            artery = [(-8, -10, 49), (-7, 4, 37), (-6, 14, 20), (-5, 23, -5), (-4, 26, -30), (-3, 24, -44)]
            self.claim("superior_mesenteric_artery", self.scene.tube(smooth_line(artery), 4.0))
        for side, name in SIDES:
            lung = self.scene.ellipsoid((side * 70, -8, 185), (66, 84, 105), power=2.6) & (abs(self.x) > 8)
            self.claim(f"{name}_lung", lung)

    def draw_vessels(self) -> None:
        """Aorta, postcava, iliac arteries, celiac trunk, portal and splenic vein."""
        scene = self.scene
        aorta = self.wander([(-16, -24, 200), (-10, -17, 100), (-7, -14, 0), (-4, -13, -62)], 1.0)
        self.claim("aorta", scene.tube(aorta, 9.5))
        postcava = self.wander([(22, 0, 122), (22, -8, 70), (19, -16, 0), (15, -18, -64)], 1.0)
        self.claim("postcava", scene.tube(postcava, 10.5))
        iliac = self.iliac = scene.empty()
        for side in (-1, 1):
            iliac |= scene.tube(smooth_line([(side * 5, -14, -66), (side * 28, -5, -110), (side * 58, 35, -165)]), 7.5)
        iliac &= self.cavity & ~self.taken
        self.taken |= iliac
        self.claim("celiac_trunk", scene.tube(self.wander([(-10, -16, 58), (-8, -4, 59), (-9, 6, 62)], 0.5), 3.6))
        vein = [(-72, -24, 62), (-38, 4, 50), (-6, 14, 40), (16, 16, 38), (34, 12, 58), (46, 12, 70)]
        self.claim("portal_and_splenic_vein", scene.tube(self.wander(vein, 1.5), 6.0))

    def draw_kidneys(self) -> None:
        """The kidneys without their sinus, and the adrenal glands."""
        scene = self.scene
        for side, name in SIDES:
            kidney = self.some((side * 60, -38, 8 - 5 * side), (27, 24, 52), 4.0, turn=side * 35)
            self.claim(f"{name}_kidney", kidney & ~scene.ellipsoid((side * 40, -26, 8 - 5 * side), (15, 13, 20)))
            top = 62 - 2 * side
            adrenal = scene.tube(
                self.wander([(side * 38, -20, top + 12), (side * 36, -28, top), (side * 42, -40, top - 12)], 1.0), 4.0)
            limb = scene.tube([(side * 36, -28, top), (side * 32, -40, top - 8)], 3.5)
            self.claim(f"{name}_adrenal_gland", adrenal | limb)

    def draw_upper_abdomen(self) -> None:
        """Esophagus, pancreas, duodenum, gall bladder, stomach, spleen, heart and liver."""
        scene = self.scene
        self.claim("esophagus", scene.tube(self.wander([(-3, -18, 200), (-8, -2, 132), (-26, 8, 108)], 1.0), 8.5))
        pancreas = self.wander([(34, 20, 10), (26, 24, 26), (4, 26, 36), (-26, 14, 44), (-58, -8, 54), (-72, -20, 58)])
        radii = np.interp(np.arange(len(pancreas)), [0, 10, 20, 40], [15, 13, 11, 8])
        self.claim("pancreas", scene.tube(pancreas, radii))
        self.claim("duodenum", scene.tube(
            self.wander([(22, 44, 34), (50, 34, 30), (58, 18, 4), (48, 6, -24), (10, 2, -34), (-24, 12, -22)]), 11.0))
        self.claim("gall_bladder", self.some((58, 52, 12), (15, 17, 27), 3.0))
        stomach = self.some((-52, 26, 76), (38, 42, 46), 3.0) | scene.tube(
            self.wander([(-50, 38, 56), (-28, 55, 36), (4, 54, 32), (24, 46, 36)]), np.linspace(26, 14, 25))
        self.claim("stomach", stomach)
        self.claim("spleen", self.some((-94, -32, 66), (30, 46, 50), 3.0, turn=20))
        heart = self.heart = scene.ellipsoid((-20, 40, 165), (52, 42, 42), turn=-20) & self.cavity & ~self.taken
        self.taken |= heart
        right_lobe = self.some((62, 4, 56), (72, 80, 70), 3.0, power=2.3)
        right_lobe = right_lobe & ~scene.ellipsoid((35, -5, -10), (85, 70, 38))
        self.claim("liver", right_lobe | self.some((8, 48, 80), (66, 32, 34), 3.0, turn=12))

    def draw_bowel(self) -> None:
        """Colon, rectum, bladder and small intestine."""
        scene = self.scene
        colon = self.wander([(72, 22, -110), (84, 8, -80), (90, -2, -40), (88, 10, -14), (66, 48, -22), (30, 66, -40),
                             (-20, 68, -42), (-62, 56, -8), (-92, 16, 22), (-100, -4, -5), (-98, -6, -50),
                             (-90, 10, -95), (-52, 22, -112), (-14, 18, -100), (4, -12, -104), (0, -30, -125)], 3.0)
        haustra = 18.0 + 2.5 * np.sin(np.arange(len(colon)) * 1.3)
        self.claim("colon", scene.tube(colon, haustra))
        self.claim("rectum", scene.tube(self.wander([(0, -30, -134), (0, -36, -150), (0, -34, -200)], 1.0), 17.0))
        self.claim("bladder", self.some((0, 16, -148), (40, 32, 30), 2.0))
        loops: list[tuple[float, float, float]] = []     # one tube, to and fro at three depths and three levels
        for row in range(3):
            for level in (range(3) if row % 2 == 0 else (2, 1, 0)):
                points = [(u, 8 + 25 * row + 5 * np.cos(u / 9.0), -54 - 24.0 * level + 5 * np.sin(u / 9.0))
                          for u in np.linspace(-54, 54, 6)]
                loops += points if (row * 3 + level) % 2 == 0 else points[::-1]
        self.claim("intestine", scene.tube(self.wander(loops, 2.0), 10.5))

    def draw_inside_organs(self) -> None:
        """The vessels of the liver, tumours and a cyst."""
        scene, masks = self.scene, self.masks
        inside_liver = masks["liver"]
        branches = scene.empty()
        for end in ((112, 10, 60), (95, -38, 70), (100, 20, 92), (80, 40, 40), (0, 52, 84), (30, 60, 74)):
            tip = np.array(end) + self.rng.uniform(-6, 6, 3)
            bend = 0.5 * (np.array((52, 14, 72)) + tip) + self.rng.uniform(-8, 8, 3)
            branches |= scene.tube(smooth_line([(48, 12, 70), bend, tip]), np.linspace(5.0, 2.2, 17))
        for end in ((95, 0, 95), (52, 48, 88), (10, 45, 90)):                                        # hepatic veins
            branches |= scene.tube(smooth_line([(24, 0, 112), 0.5 * np.add((24, 0, 112), end) + (0, 4, 4), end]), 4.0)
        masks["hepatic_vessel"] = branches & inside_liver
        if self.tumours:
            masks["liver_tumor"] = inside_liver & (self.some((92, 22, 52), (17, 15, 18), 3.0)
                                                   | self.some((66, -36, 82), (10, 11, 9), 3.0))
            masks["hepatic_vessel"] &= ~masks["liver_tumor"]
            for name, organ, shape_of in (
                    ("kidney_tumor", "left_kidney", self.some((-72, -42, -18), (15, 14, 16), 2.0)),
                    ("kidney_cyst", "right_kidney", self.some((76, -38, 24), (13, 13, 13), 2.0))):
                masks[name] = largest_components(shape_of & self.cavity & ~(self.taken & ~masks[organ]))
                masks[organ] = masks[organ] | masks[name]            # part of its organ, Section 4.1.1

    def paint(self) -> None:
        """Set HU: first solid organs, then the contents of hollow organs, vessels and lesions."""
        scene, hu, masks = self.scene, self.hu, self.masks
        hu[self.iliac], hu[self.heart] = 150, 130
        for name in masks:
            if not name.endswith(("tumor", "cyst", "vessel")):
                hu[masks[name]] = HU[name]
        for side, name in SIDES:
            sinus = scene.ellipsoid((side * 52, -34, 8 - 5 * side), (13, 8, 26), turn=side * 35)
            hu[sinus & masks[f"{name}_kidney"]] = -40
        # The patient lies on the back: gas rises to the front, fluid or stool stays below.
        for name, content, gas_front in (("stomach", FLUID, 46.0), ("colon", 35, None), ("duodenum", 25, None),
                                         ("intestine", 30, None), ("rectum", 30, None), ("esophagus", 0, None)):
            lumen = self.shrink(masks[name], 3.0)
            hu[lumen] = content
            if gas_front is not None:
                hu[lumen & np.broadcast_to(self.y > gas_front, hu.shape)] = AIR + 30
            elif name in ("colon", "rectum"):
                hu[lumen] += (40 * self.fine)[lumen]
                hu[lumen & (self.wide > 0.1) & self.shrink(lumen, 3.0)] = AIR + 40
        for name in ("hepatic_vessel", "liver_tumor", "kidney_tumor", "kidney_cyst"):
            if name in masks:
                hu[masks[name]] = HU[name]
        if self.tumours:
            hu[self.shrink(masks["liver_tumor"], 6.0)] = 35                                          # necrotic core
        soft = self.body & (hu > -150)
        hu[soft] += (4.0 * self.wide + 3.0 * self.fine)[soft]
        lungs = masks["left_lung"] | masks["right_lung"]
        hu[lungs] += (35 * self.wide + 25 * self.fine)[lungs]

    def draw_table(self) -> None:
        """The table of the scanner: a thin curved shell below the back, with foam inside."""
        hu = self.hu
        depth = self.y + 99.5 * self.girth - 0.0006 * self.x ** 2
        table = np.broadcast_to((depth < 0) & (depth > -14) & (abs(self.x) < 170), hu.shape) & ~self.body
        hu[table] = -860
        hu[table & np.broadcast_to((depth > -3) | (depth < -11), hu.shape)] = -80


def make_phantom(spacing_mm: Sequence[float] = (3.0, 3.0, 3.0), seed: int = 0, tumours: bool = True,
                 shape: Sequence[int] | None = None,
                 beyond: bool = False) -> tuple[NDArray[np.int16], dict[str, Mask], np.ndarray]:
    """A torso from the lung bases to the femoral heads.

    spacing_mm: voxel size along (D, H, W)
    tumours: draw tumours of liver and kidney and a kidney cyst; the other masks do not depend on it
    shape:   voxels (D, H, W), around the middle of the field of view (None: FIELD_OF_VIEW_MM is covered)
    beyond:  also draw a class that Table 2 does not have, the superior mesenteric artery (Section 5.1.1)
    returns: hu (D, H, W) int16, masks {class name: (D, H, W) bool}, affine (4, 4); RAS+, Fortran order

    Tumours and the cyst lie inside their organs' masks, the hepatic vessels inside the liver's. Other organs do not
    overlap.
    """
    spacing_mm = tuple(float(s) for s in spacing_mm)
    shape = tuple(shape or (max(1, round(f / s)) for f, s in zip(FIELD_OF_VIEW_MM, spacing_mm)))
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2.0 * s for n, s in zip(shape, spacing_mm)]
    rng = np.random.default_rng(seed)            # the anatomy's random numbers do not depend on the grid
    patient = _Patient(_Scene(shape, affine), spacing_mm, rng, tumours, beyond)
    patient.draw_body()
    patient.draw_bones()
    patient.draw_organs()
    patient.draw_inside_organs()
    patient.paint()
    patient.draw_table()
    hu = scan(patient.hu, spacing_mm, np.random.default_rng([seed, 1]))
    return hu, {name: np.asfortranarray(mask) for name, mask in patient.masks.items()}, affine


def scan(hu: NDArray[np.float32], spacing_mm: Sequence[float], rng: np.random.Generator) -> NDArray[np.int16]:
    """The scan of ideal HU: a blur of about 2.5 mm, and noise with the same standard deviation for all voxel sizes."""
    hu = ndimage.gaussian_filter(hu, [1.1 / s for s in spacing_mm], mode="nearest")
    noise = rng.standard_normal(hu.shape[::-1], dtype=np.float32).T
    hu += 9.0 * (0.6 * noise + 0.8 * ndimage.gaussian_filter(noise, 0.6) / 0.34)
    return np.clip(np.round(hu), -1024, 3071).astype(np.int16, order="F")
