"""What fills the organs: gas, fluid and stool in the bowel; the inside of lungs, bones, kidneys and heart; vessels.

Beyond the paper: part of the synthetic CT (docs/synthetic.md); read geometry.py and vessels.py first. Each function
repaints one organ of `image` (HU, float32) inside its own box and draws from `rng`. A Patient holds what they share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from uniseg.imaging.bits import bounding_box

from .geometry import Box, Grid, below_quantile, deeper, field, soften
from .vessels import covered, grow_tree, line, somewhere


@dataclass
class Patient:
    """A patient being painted on the fine grid."""

    grid: Grid
    labels: NDArray                           # (D, H, W) ids of the structures
    ids: dict[str, int]                       # structure -> id
    hu: dict[str, float]                      # tissue -> HU
    phase: str                                # of tissues.PHASES
    image: NDArray                            # (D, H, W) HU float32

    def where(self, *structures: str) -> NDArray[np.bool_]:
        """Mask of the structures, given by their whole names or by prefixes that end in _."""
        ids = [n for s, n in self.ids.items() if any(s == p or p.endswith("_") and s.startswith(p) for p in structures)]
        return np.isin(self.labels, ids)

    def part(self, *structures: str, margin_mm: float = 8.0) -> tuple[Box, NDArray[np.bool_], Grid] | None:
        """(box around the structures, their mask in it, the grid of the box), or None where none is in view."""
        mask = self.where(*structures)
        box = bounding_box(mask, int(np.ceil(margin_mm / self.grid.spacing_mm)))
        if box is None:
            return None
        return box, mask[box], sub_grid(self.grid, box)

    def paint(self, box: Box, share: NDArray, value: float | NDArray) -> None:
        """Mix `value` into a box of the image by shares of 0 to 1."""
        view = self.image[box]
        view += share * (value - view)


def sub_grid(grid: Grid, box: Box) -> Grid:
    """The grid of a box of another grid."""
    origin = tuple(o + grid.spacing_mm * part.start for o, part in zip(grid.origin_mm, box))
    return Grid(origin, grid.spacing_mm, tuple(part.stop - part.start for part in box))


def centre_mm(mask: NDArray, grid: Grid) -> NDArray:
    """Centre of gravity of a mask in mm, (3,)."""
    return np.array(ndimage.center_of_mass(mask)) * grid.spacing_mm + grid.origin_mm


def paint_contents(patient: Patient, rng: np.random.Generator) -> None:
    """Paint the inside of all organs."""
    oral = rng.random() < ORAL
    for paint in (bones, kidneys, pancreas, heart, lungs):
        paint(patient, rng)
    gut(patient, rng, oral)
    blood_vessels(patient, rng)
    texture(patient, rng)


# ---------------------------------------------------------------------------------------------------------------- bowel

# Organ -> wall (mm), length of a stretch (mm), mean shares of the lumen that are collapsed, fluid, mottled (stool or
# food).
# Chance alone decides which organ holds what: the contents never tell stomach from colon, a model has to learn their
# place.
GUT = {"stomach": ((2.5, 5.0), 90.0, (0.25, 0.4, 0.35)), "duodenum": ((1.8, 2.6), 60.0, (0.4, 0.5, 0.1)),
       "small_bowel": ((1.6, 2.4), 60.0, (0.4, 0.45, 0.15)), "colon": ((1.5, 3.0), 110.0, (0.15, 0.25, 0.6)),
       "esophagus": ((2.8, 3.2), 60.0, (0.7, 0.25, 0.05))}
SPARSE = 2.0              # of the Dirichlet distribution of the shares; the lower, the more often one filling prevails
ORAL = 0.35               # probability that a patient drank contrast
REACHED = 0.6             # probability that it is in an organ
GASLESS = 0.25            # probability that an organ of the gut holds no gas


def stool(grid: Grid, rng: np.random.Generator) -> NDArray:
    """HU of stool: mottled, with gas bubbles of a few mm."""
    axes = grid.axes()
    hu = rng.uniform(15, 60) + 22 * field(axes, 11.0, rng) + 15 * field(axes, 30.0, rng)
    bubbles = np.clip(field(axes, 6.0, rng) + 0.5 * field(axes, 25.0, rng) - rng.uniform(0.4, 1.6), 0, 1)
    return hu - bubbles * (850 + hu)


def lumen(mask: NDArray, grid: Grid, wall_mm: float) -> NDArray:
    """Share of each voxel that belongs to the lumen of a hollow organ with a wall of `wall_mm`."""
    return deeper(mask, grid, wall_mm) * mask


def front(mask: NDArray, grid: Grid, wide_mm: float) -> NDArray:
    """How far (mm) each voxel lies in front of the middle of its stretch of bowel.

    Gas collects in front in a patient who lies on the back.
    """
    y = np.broadcast_to(grid.mesh()[1] - grid.origin_mm[1], mask.shape)
    sigma = wide_mm / grid.spacing_mm
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return y - ndimage.gaussian_filter(mask * y, sigma) / np.maximum(weight, 1e-4)


def gut(patient: Patient, rng: np.random.Generator, oral: bool) -> None:
    """Fill stomach and bowel: stretches that are collapsed or hold fluid, stool or food, and gas in front of these.

    oral: the patient drank contrast
    """
    for name in GUT:
        if (part := patient.part(name)) is not None:
            box, mask, grid = part
            content, wall_mm = _filling(patient, name, mask, grid, rng, oral)
            patient.paint(box, lumen(mask, grid, wall_mm), content)


def _filling(patient: Patient, name: str, mask: NDArray, grid: Grid, rng: np.random.Generator,
             oral: bool) -> tuple[NDArray, float]:
    """(HU of what fills a hollow organ, thickness of its wall in mm)."""
    (thin, thick), length, odds = GUT[name]
    axes = grid.axes()
    fluid = rng.uniform(0, 35) + 6 * field(axes, 12.0, rng)
    fillings = [0.75 * patient.hu["gut_wall"] + 0.25 * fluid, fluid, stool(grid, rng)]
    stretch = _stretches(axes, length, rng)
    ends, order = np.cumsum(rng.dirichlet(SPARSE * np.array(odds))), rng.permutation(3)
    first, second, third = (fillings[number] for number in order)
    content = np.where(below_quantile(stretch, ends[1]), second, third)
    content = np.where(below_quantile(stretch, ends[0]), first, content)
    if oral and rng.random() < REACHED:                          # mixes with fluid and stool alike, diluted on its way
        reached = below_quantile(_stretches(axes, 1.5 * length, rng), rng.uniform(0.3, 1.1))
        contrast = rng.uniform(60, 400) + rng.uniform(0, 40) * field(axes, 30.0, rng)
        content = content + reached * contrast * (content > -100)
    if rng.random() > GASLESS:
        content = np.where(_gas(name, mask, grid, length, rng), patient.hu["gas"], content)
    return content, rng.uniform(thin, thick)


def _gas(name: str, mask: NDArray, grid: Grid, length_mm: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where a hollow organ holds gas: above a fluid level, or in front in each stretch."""
    axes = grid.axes()
    filled = rng.beta(0.7, 2.5) if name in ("stomach", "colon") else rng.beta(0.5, 5.0)
    if name == "stomach" or rng.random() < 0.3:                          # one fluid level in the whole organ
        y = np.broadcast_to(grid.mesh()[1], mask.shape)
        return y - np.quantile(y[mask], 1 - min(filled, 0.95)) > 0
    in_front, gas_share = front(mask, grid, 14.0), _stretches(axes, length_mm, rng)
    if name == "colon":  # gas over most of it, some stretches are full of it
        full = special.ndtri(np.clip(filled, 1e-3, 1 - 1e-3)) - gas_share
        return in_front - (rng.uniform(-2, 14) + 6 * field(axes, 70.0, rng) - 90 * np.clip(full + 0.1, 0, 1)) > 0
    return np.where(below_quantile(gas_share, filled), in_front - rng.uniform(-2, 5), -1) > 0


def _stretches(axes: list[NDArray], length_mm: float, rng: np.random.Generator) -> NDArray:
    """A field of unit variance along the bowel, smooth over `length_mm` with finer unevenness."""
    return (field(axes, length_mm, rng) + 0.35 * field(axes, length_mm / 3, rng)) / np.sqrt(1 + 0.35 ** 2)


# ---------------------------------------------------------------------------------------------------------------- lungs

def lungs(patient: Patient, rng: np.random.Generator) -> None:
    """Lung tissue, denser towards the back, with vessels and main bronchi; emphysema, consolidation in some."""
    heart_part = patient.part("heart")
    heart_mm = centre_mm(*heart_part[1:]) if heart_part else np.array([0, 0, np.inf])
    emphysema, dense = rng.random() < 0.2, rng.random() < 0.2
    for side in ("right", "left"):
        lobes = [f"lung_{lobe}_lobe_{side}" for lobe in ("upper", "middle", "lower")]
        if (part := patient.part(*lobes)) is None:
            continue
        box, mask, grid = part
        axes, y = grid.axes(), np.broadcast_to(grid.mesh()[1], mask.shape)
        back = (np.quantile(y[mask], 0.9) - y) / 150.0
        value = patient.hu["lung"] - 60 + 45 * back + 14 * field(axes, 30.0, rng) + 22 * field(axes, 5.0, rng)
        if emphysema:
            value = value - (value + 965) * np.clip(field(axes, 16.0, rng) + 0.6 * field(axes, 60.0, rng) - 0.7, 0, 1)
        if dense:                                            # atelectasis and consolidation begin at the back
            filled = field(axes, 45.0, rng) + 0.6 * field(axes, 9.0, rng) + 3 * back - rng.uniform(3.6, 4.6)
            value = value + (35 - value) * np.clip(filled, 0, 1)
        patient.paint(box, mask, value)
        root_mm = _hilum(mask, grid, heart_mm)
        _lung_vessels(patient, box, mask, grid, root_mm, rng)
        _bronchus(patient, root_mm, rng)


def _hilum(mask: NDArray, grid: Grid, heart_mm: NDArray) -> NDArray:
    """The point of the lung nearest to a point above the middle of the heart.

    That point is lowered to the top of a lung that does not reach so high.
    """
    voxels = np.argwhere(mask)[::7] * grid.spacing_mm + grid.origin_mm
    goal = np.minimum(heart_mm + [0, -25, 35], voxels.max(axis=0))
    return voxels[((voxels - goal) ** 2).sum(axis=1).argmin()]


def _lung_vessels(patient: Patient, box: Box, mask: NDArray, grid: Grid, root_mm: NDArray,
                  rng: np.random.Generator) -> None:
    """A tree of vessels from the hilum into the lung."""
    depth = ndimage.gaussian_filter(mask.astype(np.float32), 4.0 / grid.spacing_mm)
    litres = mask.sum() * grid.spacing_mm ** 3 / 1e6
    tips = somewhere(mask & (depth > 0.6), grid, int(60 + 600 * litres), rng)
    if len(tips):
        tree = grow_tree(root_mm, tips, 0.62, 6.0, rng)
        patient.paint(box, covered(tree, grid, rng) * mask, patient.hu["right_blood"])


def _bronchus(patient: Patient, root_mm: NDArray, rng: np.random.Generator) -> None:
    """A main bronchus from the lower end of the trachea to the hilum: a wall with gas in it."""
    if (part := patient.part("trachea")) is None:
        return
    _, mask, grid = part
    lowest = np.argwhere(mask)[:, 2].min()
    start = centre_mm(mask[:, :, lowest:lowest + 2], grid) + [0, 0, grid.spacing_mm * lowest]
    bend = (start + root_mm) / 2 + [0, -3, 4]
    whole = (slice(None), slice(None), slice(None))
    free = patient.image > -700  # leaves the lung alone, whose vessels are painted already
    for radius, value in ((rng.uniform(7, 8), patient.hu["muscle"]), (rng.uniform(5, 6), patient.hu["gas"])):
        patient.paint(whole, covered(line([start, bend, root_mm], radius), patient.grid, rng) * free, value)


# -------------------------------------------------------------------------------------------------------- solid organs

BONES = (("vertebrae_", 0.9), ("rib_", 1.2), ("sacrum", 0.9), ("sternum", 0.9), ("hip_", 1.6), ("femur_", 2.6),
         ("clavicula_", 1.8), ("scapula_", 1.4), ("humerus_", 3.0), ("skull", 3.0))  # thickness of the compact bone, mm


def bones(patient: Patient, rng: np.random.Generator) -> None:
    """A compact shell, spongy bone with trabeculae inside, and cartilage with some calcification."""
    age = rng.uniform(0.75, 1.25)
    for name, shell_mm in BONES:
        if (part := patient.part(name)) is None:
            continue
        box, mask, grid = part
        axes = grid.axes()
        spongy = patient.hu["marrow"] + 38 * field(axes, 5.0, rng) + 16 * field(axes, 18.0, rng)
        inner = deeper(mask, grid, shell_mm / age)
        compact = patient.hu["cortical_bone"] * (1 + 0.18 * field(axes, 10.0, rng))
        share = min(1.0, shell_mm / age / (0.6 * grid.spacing_mm))  # a shell thinner than a voxel fills a part of it
        patient.paint(box, mask, spongy + (1 - inner) * share * (compact - spongy))
    if (part := patient.part("costal_cartilages")) is not None:
        box, mask, grid = part
        calcification = np.clip(field(grid.axes(), 8.0, rng) - rng.uniform(1.0, 2.5), 0, 1)
        calcification = calcification * (1 - lumen(mask, grid, 3.0))
        patient.paint(box, mask, patient.hu["cartilage"] + 250 * calcification)


def kidneys(patient: Patient, rng: np.random.Generator) -> None:
    """Medulla between columns of cortex; pelvis and vessels in the fat of the sinus."""
    for side in ("right", "left"):
        if (part := patient.part(f"kidney_{side}", margin_mm=14.0)) is None:
            continue
        box, mask, grid = part
        steps = max(1, round(14 / grid.spacing_mm))
        padded = np.pad(mask, steps, mode="edge")
        whole = ndimage.binary_closing(padded, iterations=steps)[(slice(steps, -steps),) * 3]
        sinus = whole & ~mask & (patient.labels[box] == 0)
        pyramids = field(grid.axes(), 13.0, rng) > -0.35
        medulla = deeper(mask | sinus, grid, rng.uniform(4.5, 6.5)) * mask * pyramids
        patient.paint(box, medulla, patient.hu["medulla"])
        patient.paint(box, sinus, patient.hu["fat"] + 10)
        core = sinus & (field(grid.axes(), 10.0, rng) > 0.1)
        calyx = field(grid.axes(), 22.0, rng) > 0
        patient.paint(box, core, np.where(calyx, patient.hu["urine"], patient.hu["caval_blood"]))


def pancreas(patient: Patient, rng: np.random.Generator) -> None:
    """Fat between the lobules, much of it in some patients."""
    if (part := patient.part("pancreas")) is None:
        return
    box, mask, grid = part
    fatty = np.clip(2 * (field(grid.axes(), 7.0, rng) - rng.uniform(0.4, 2.5)), 0, 1)
    patient.paint(box, mask * fatty, patient.hu["fat"] + 25)


def heart(patient: Patient, rng: np.random.Generator) -> None:
    """Blood of the left and the right heart within walls of muscle, separated by a septum; fat on the outside."""
    if (part := patient.part("heart")) is None:
        return
    box, mask, grid = part
    x, y, z = grid.mesh()
    at = centre_mm(mask, grid)
    # mm to the left of the septum
    left = rng.uniform(-6, 2) - 0.75 * (x - at[0]) + 0.35 * (y - at[1]) + 0.2 * (z - at[2])
    left = left + 5 * field(grid.axes(), 45.0, rng)
    low = (at[2] + 12 - z) + 0.4 * (y - at[1]) > 0                                  # ventricles below, atria above
    wall = np.where((left > 0) & low, rng.uniform(9, 12), rng.uniform(2.5, 4))
    blood = deeper(mask, grid, wall) * mask * ~((np.abs(left) < 4.5) & low)
    patient.paint(box, blood, np.where(left > -3, patient.hu["blood"], patient.hu["right_blood"]) + 0 * mask)
    fat = mask & (soften(mask, grid, 4.0) < 0.72) & (field(grid.axes(), 22.0, rng) > rng.uniform(0.0, 0.8))
    patient.paint(box, fat, patient.hu["fat"] + 15)


def texture(patient: Patient, rng: np.random.Generator) -> None:
    """Slow and fine unevenness of soft tissue, a few HU."""
    axes = patient.grid.axes()
    uneven = 3.5 * field(axes, 45.0, rng) + rng.uniform(1.5, 4.0) * field(axes, 9.0, rng)
    soft = (patient.image > -20) & (patient.image < 350)
    patient.image[soft] += uneven[soft]


# ------------------------------------------------------------------------------------------------------- blood vessels

def blood_vessels(patient: Patient, rng: np.random.Generator) -> None:
    """Details of arteries, cava and spleen, and the vessels of liver and mesentery.

    Arteries are calcified in some patients. In the cava, bright blood of the kidneys mixes with darker blood, and the
    spleen is mottled in the arterial phase.
    """
    arteries = patient.part("aorta", "iliac_artery_left", "iliac_artery_right")
    if arteries is not None and rng.random() < 0.4:
        box, mask, grid = arteries
        rim = mask * (1 - lumen(mask, grid, 2.0))
        patient.paint(box, rim * np.clip(field(grid.axes(), 9.0, rng) - rng.uniform(1.0, 2.0), 0, 1), 600)
    mixing = {"arterial": 0.9, "portal": 0.25}.get(patient.phase, 0.0)
    if (part := patient.part("inferior_vena_cava")) is not None and mixing:
        box, mask, grid = part  # blood of the kidneys brightens before the rest
        renal = grid.axes()[2][int(np.quantile(np.nonzero(mask)[2], 0.45))]
        above = np.clip((grid.mesh()[2] - renal) / 30, 0, 1)
        patient.image[box] += mask * mixing * (above * 45 - 15 + 14 * field(grid.axes(), 14.0, rng))
    if (part := patient.part("spleen")) is not None and patient.phase == "arterial":
        box, mask, grid = part
        patient.image[box] += mask * rng.uniform(0, 28) * field(grid.axes(), 16.0, rng)
    _liver_vessels(patient, rng)
    _mesentery(patient, rng)


def _nearest(mask: NDArray, other: NDArray, grid: Grid) -> NDArray:
    """The point (mm) of a mask that lies nearest to the centre of another mask."""
    voxels = np.argwhere(mask) * grid.spacing_mm + grid.origin_mm
    return voxels[((voxels - centre_mm(other, grid)) ** 2).sum(axis=1).argmin()]


def _liver_vessels(patient: Patient, rng: np.random.Generator) -> None:
    """Portal branches from the hilum, hepatic veins from the cava at the top of the liver."""
    if (part := patient.part("liver", margin_mm=12.0)) is None:
        return
    box, mask, grid = part
    deep = mask & (soften(mask, grid, 5.0) > 0.85)
    litres = mask.sum() * grid.spacing_mm ** 3 / 1e6
    for structure, tissue, at_top, tips, most_mm in (
            ("portal_vein_and_splenic_vein", "portal_blood", False, 55, 5.5),
            ("inferior_vena_cava", "hepatic_blood", True, 32, 4.5)):
        vein = patient.where(structure)[box]
        if not vein.any() or not deep.any():
            continue
        if at_top:  # hepatic veins join the cava in the upper 4 cm of the liver
            lowest = np.flatnonzero(mask.any(axis=(0, 1)))[-1] - round(40 / grid.spacing_mm)
            vein = vein & (np.arange(mask.shape[2]) > lowest)
            if not vein.any():
                continue
        targets = somewhere(deep, grid, int(12 + tips * litres), rng)
        tree = grow_tree(_nearest(vein, mask, grid), targets, 1.25, most_mm, rng)
        patient.paint(box, covered(tree, grid, rng) * mask, patient.hu[tissue])


def _mesentery(patient: Patient, rng: np.random.Generator) -> None:
    """Arteries and veins in the fat between bowel and mesenteric root, which lies in front of the aorta."""
    if (part := patient.part("small_bowel", "colon", "duodenum", margin_mm=10.0)) is None:
        return
    box, mask, grid = part
    aorta = patient.part("aorta")
    free = (patient.labels[box] == 0) & (patient.image[box] < -40) & (patient.image[box] > -250)
    near = free & (soften(mask, grid, 9.0) > 0.12)
    if aorta is None or not near.any():
        return
    root_mm = centre_mm(*aorta[1:])
    root_mm = np.array([root_mm[0], root_mm[1] + 28, min(root_mm[2] + 30, grid.axes()[2][-1])])
    litres = near.sum() * grid.spacing_mm ** 3 / 1e6
    for tissue, most_mm in (("blood", 3.0), ("portal_blood", 4.5)):
        tree = grow_tree(root_mm, somewhere(near, grid, int(20 + 500 * litres), rng), 0.9, most_mm, rng)
        patient.paint(box, covered(tree, grid, rng) * free, patient.hu[tissue])
