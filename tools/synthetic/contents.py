"""What fills the organs: gas, fluid and stool of the bowel, lungs, bone, kidneys, heart, vessels.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). Each function repaints one organ of `image` (HU, float32) inside
its own box and draws from `rng`; a Patient holds what they share.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from uniseg.imaging.bits import bounding_box

from .geometry import Grid, deeper, field, share, soften
from .vessels import covered, grow_tree, line, somewhere


@dataclass
class Patient:
    """A patient being painted on the fine grid."""

    grid: Grid
    labels: np.ndarray                        # (D, H, W) structures' ids
    ids: dict                                 # structure -> id
    hu: dict                                  # tissue -> HU
    phase: str
    image: np.ndarray                         # (D, H, W) HU float32

    def where(self, *structures):
        """Mask of the structures (whole names or prefixes that end in _)."""
        ids = [n for s, n in self.ids.items() if any(s == p or p.endswith("_") and s.startswith(p) for p in structures)]
        return np.isin(self.labels, ids)

    def part(self, *structures, margin_mm=8.0):
        """(box, mask in it, grid of the box), or None where nothing is in view."""
        mask = self.where(*structures)
        box = bounding_box(mask, int(np.ceil(margin_mm / self.grid.spacing_mm)))
        if box is None:
            return None
        return box, mask[box], sub_grid(self.grid, box)

    def paint(self, box, share_of, value):
        """Mix `value` into a box of the image by shares of 0 to 1."""
        view = self.image[box]
        view += share_of * (value - view)


def sub_grid(grid, box):
    """The grid of a box of another."""
    origin = tuple(o + grid.spacing_mm * s.start for o, s in zip(grid.origin_mm, box))
    return Grid(origin, grid.spacing_mm, tuple(s.stop - s.start for s in box))


def centre_mm(mask, grid):
    """Centre of gravity of a mask in mm."""
    return np.array(ndimage.center_of_mass(mask)) * grid.spacing_mm + grid.origin_mm


# ---------------------------------------------------------------------------------------------------------------- bowel

def stool(grid, rng):
    """HU of stool: mottled, with bubbles of gas of a few mm."""
    axes = grid.axes()
    hu = rng.uniform(15, 60) + 22 * field(axes, 11.0, rng) + 15 * field(axes, 30.0, rng)
    bubbles = np.clip(field(axes, 6.0, rng) + 0.5 * field(axes, 25.0, rng) - rng.uniform(0.4, 1.6), 0, 1)
    return hu - bubbles * (850 + hu)


def lumen(mask, grid, wall_mm):
    """Share of each voxel that belongs to the lumen of a hollow organ with a wall of `wall_mm`."""
    return deeper(mask, grid, wall_mm) * mask


def front(mask, grid, wide_mm):
    """How far (mm) each voxel lies before the middle of its stretch of bowel: gas collects there in a patient on the back."""
    y = np.broadcast_to(grid.mesh()[1] - grid.origin_mm[1], mask.shape)
    sigma = wide_mm / grid.spacing_mm
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return y - ndimage.gaussian_filter(mask * y, sigma) / np.maximum(weight, 1e-4)


# Organ -> wall (mm), length of a stretch (mm), mean shares of the lumen that are collapsed, fluid, mottled (stool or food).
# Which organ holds what is a matter of odds: nothing in here is sure to tell stomach from colon. The place has to.
GUT = {"stomach": ((2.5, 5.0), 90.0, (0.25, 0.4, 0.35)), "duodenum": ((1.8, 2.6), 60.0, (0.4, 0.5, 0.1)),
       "small_bowel": ((1.6, 2.4), 60.0, (0.4, 0.45, 0.15)), "colon": ((1.5, 3.0), 110.0, (0.15, 0.25, 0.6)),
       "esophagus": ((2.8, 3.2), 60.0, (0.7, 0.25, 0.05))}
SPARSE = 2.0              # of the Dirichlet distribution of shares: the lower, the more often one filling is nearly all there is
REACHED = 0.6             # probability that oral contrast is in an organ
GASLESS = 0.25            # probability that an organ of the gut holds no gas


def gut(patient, rng, oral):
    """Stretches of nothing, fluid, stool or food, contrast; gas before them. oral: contrast was drunk."""
    for name in GUT:
        if (found := patient.part(name)) is not None:
            box, mask, grid = found
            content, wall_mm = _filling(patient, name, mask, grid, rng, oral)
            patient.paint(box, lumen(mask, grid, wall_mm), content)


def _filling(patient, name, mask, grid, rng, oral):
    """(HU of what fills a hollow organ, mm of its wall)."""
    (thin, thick), length, odds = GUT[name]
    axes = grid.axes()
    fluid = rng.uniform(0, 35) + 6 * field(axes, 12.0, rng)
    kinds = [0.75 * patient.hu["gut_wall"] + 0.25 * fluid, fluid, stool(grid, rng)]
    stretch = _stretches(axes, length, rng)
    ends, order = np.cumsum(rng.dirichlet(SPARSE * np.array(odds))), rng.permutation(3)
    content = np.where(share(stretch, ends[0]), kinds[order[0]], np.where(share(stretch, ends[1]), kinds[order[1]], kinds[order[2]]))
    if oral and rng.random() < REACHED:                                  # taken up by stool as by fluid, and diluted on the way
        reached = share(_stretches(axes, 1.5 * length, rng), rng.uniform(0.3, 1.1))
        content = content + reached * (rng.uniform(60, 400) + rng.uniform(0, 40) * field(axes, 30.0, rng)) * (content > -100)
    if rng.random() > GASLESS:
        filled = rng.beta(0.7, 2.5) if name in ("stomach", "colon") else rng.beta(0.5, 5.0)
        if name == "stomach" or rng.random() < 0.3:                      # one level surface in the whole organ
            y = np.broadcast_to(grid.mesh()[1], mask.shape)
            before = y - np.quantile(y[mask], 1 - min(filled, 0.95))
        else:                                                            # each stretch has its own
            middle, gas_share = front(mask, grid, 14.0), _stretches(axes, length, rng)
            if name == "colon":                                          # gas over most of it, some stretches are full
                full = special.ndtri(np.clip(filled, 1e-3, 1 - 1e-3)) - gas_share
                before = middle - (rng.uniform(-2, 14) + 6 * field(axes, 70.0, rng) - 90 * np.clip(full + 0.1, 0, 1))
            else:
                before = np.where(share(gas_share, filled), middle - rng.uniform(-2, 5), -1)
        content = np.where(before > 0, patient.hu["gas"], content)
    return content, rng.uniform(thin, thick)


def _stretches(axes, length_mm, rng):
    """A field of unit variance along the bowel, smooth over `length_mm` with finer unevenness."""
    return (field(axes, length_mm, rng) + 0.35 * field(axes, length_mm / 3, rng)) / np.sqrt(1 + 0.35 ** 2)


# ---------------------------------------------------------------------------------------------------------------- lungs

def lungs(patient, rng):
    """Texture, denser towards the back, vessels, now and then emphysema or consolidation; main bronchi from the trachea."""
    heart = patient.part("heart")
    middle = centre_mm(*heart[1:]) if heart else None
    emphysema, dense = rng.random() < 0.2, rng.random() < 0.2
    for side in ("right", "left"):
        lobes = [f"lung_{lobe}_lobe_{side}" for lobe in ("upper", "middle", "lower")]
        if (found := patient.part(*lobes)) is None:
            continue
        box, mask, grid = found
        axes, y = grid.axes(), np.broadcast_to(grid.mesh()[1], mask.shape)
        back = (np.quantile(y[mask], 0.9) - y) / 150.0
        value = patient.hu["lung"] - 60 + 45 * back + 14 * field(axes, 30.0, rng) + 22 * field(axes, 5.0, rng)
        if emphysema:
            value = value - (value + 965) * np.clip(field(axes, 16.0, rng) + 0.6 * field(axes, 60.0, rng) - 0.7, 0, 1)
        if dense:                                            # atelectasis and consolidation begin at the back
            filled = field(axes, 45.0, rng) + 0.6 * field(axes, 9.0, rng) + 3 * back - rng.uniform(3.6, 4.6)
            value = value + (35 - value) * np.clip(filled, 0, 1)
        patient.paint(box, mask, value)
        root = _hilum(mask, grid, middle if middle is not None else np.array([0, 0, np.inf]))
        _lung_vessels(patient, box, mask, grid, root, rng)
        _bronchus(patient, root, rng)


def _hilum(mask, grid, heart_mm):
    """The lung's place nearest to a point above the heart's middle; of a lung cut off below, the highest of these."""
    voxels = np.argwhere(mask)[::7] * grid.spacing_mm + grid.origin_mm
    goal = np.minimum(heart_mm + [0, -25, 35], voxels.max(axis=0))
    return voxels[((voxels - goal) ** 2).sum(axis=1).argmin()]


def _lung_vessels(patient, box, mask, grid, root, rng):
    depth = ndimage.gaussian_filter(mask.astype(np.float32), 4.0 / grid.spacing_mm)
    litres = mask.sum() * grid.spacing_mm ** 3 / 1e6
    tips = somewhere(mask & (depth > 0.6), grid, int(60 + 600 * litres), rng)
    if len(tips):
        tree = grow_tree(root, tips, 0.62, 6.0, rng)
        patient.paint(box, covered(tree, grid, rng) * mask, patient.hu["right_blood"])


def _bronchus(patient, root, rng):
    """A main bronchus from the lower end of the trachea to the hilum: a wall, and gas in it."""
    if (found := patient.part("trachea")) is None:
        return
    _, mask, grid = found
    lowest = np.argwhere(mask)[:, 2].min()
    start = centre_mm(mask[:, :, lowest:lowest + 2], grid) + [0, 0, grid.spacing_mm * lowest]
    bend = (start + root) / 2 + [0, -3, 4]
    box = tuple(slice(0, n) for n in patient.grid.shape)
    free = patient.image > -700                                # not over lung, whose vessels are there already
    for radius, value in ((rng.uniform(7, 8), patient.hu["muscle"]), (rng.uniform(5, 6), patient.hu["gas"])):
        patient.paint(box, covered(line([start, bend, root], radius), patient.grid, rng) * free, value)


# ---------------------------------------------------------------------------------------------------------------- solid organs

BONES = (("vertebrae_", 0.9), ("rib_", 1.2), ("sacrum", 0.9), ("sternum", 0.9), ("hip_", 1.6), ("femur_", 2.6),
         ("clavicula_", 1.8), ("scapula_", 1.4), ("humerus_", 3.0), ("skull", 3.0))  # thickness of the compact bone, mm


def bones(patient, rng):
    """Compact shell, spongy inside with trabeculae; cartilage that is calcified in parts."""
    age = rng.uniform(0.75, 1.25)
    for name, shell_mm in BONES:
        if (found := patient.part(name)) is None:
            continue
        box, mask, grid = found
        axes = grid.axes()
        spongy = patient.hu["marrow"] + 38 * field(axes, 5.0, rng) + 16 * field(axes, 18.0, rng)
        inner = deeper(mask, grid, shell_mm / age)
        compact = patient.hu["cortical_bone"] * (1 + 0.18 * field(axes, 10.0, rng))
        # A shell thinner than a voxel fills it in part.
        patient.paint(box, mask, spongy + (1 - inner) * min(1.0, shell_mm / age / (0.6 * grid.spacing_mm)) * (compact - spongy))
    if (found := patient.part("costal_cartilages")) is not None:
        box, mask, grid = found
        lime = np.clip(field(grid.axes(), 8.0, rng) - rng.uniform(1.0, 2.5), 0, 1) * (1 - lumen(mask, grid, 3.0))
        patient.paint(box, mask, patient.hu["cartilage"] + 250 * lime)


def kidneys(patient, rng):
    """Cortex with columns around the medulla, pelvis and vessels in the fat of the sinus."""
    for side in ("right", "left"):
        if (found := patient.part(f"kidney_{side}", margin_mm=14.0)) is None:
            continue
        box, mask, grid = found
        steps = max(1, round(14 / grid.spacing_mm))
        whole = ndimage.binary_closing(np.pad(mask, steps, mode="edge"), iterations=steps)[(slice(steps, -steps),) * 3]
        sinus = whole & ~mask & (patient.labels[box] == 0)
        pyramids = field(grid.axes(), 13.0, rng) > -0.35
        medulla = deeper(mask | sinus, grid, rng.uniform(4.5, 6.5)) * mask * pyramids
        patient.paint(box, medulla, patient.hu["medulla"])
        patient.paint(box, sinus, patient.hu["fat"] + 10)
        core = sinus & (field(grid.axes(), 10.0, rng) > 0.1)
        calyx = field(grid.axes(), 22.0, rng) > 0
        patient.paint(box, core, np.where(calyx, patient.hu["urine"], patient.hu["caval_blood"]))


def pancreas(patient, rng):
    """Fat between the lobules, more with age."""
    if (found := patient.part("pancreas")) is None:
        return
    box, mask, grid = found
    fatty = np.clip(2 * (field(grid.axes(), 7.0, rng) - rng.uniform(0.4, 2.5)), 0, 1)
    patient.paint(box, mask * fatty, patient.hu["fat"] + 25)


def heart(patient, rng):
    """Left and right blood within walls of muscle, parted by a septum; fat on the outside."""
    if (found := patient.part("heart")) is None:
        return
    box, mask, grid = found
    x, y, z = grid.mesh()
    at = centre_mm(mask, grid)
    left = rng.uniform(-6, 2) - 0.75 * (x - at[0]) + 0.35 * (y - at[1]) + 0.2 * (z - at[2])     # mm to the left of the septum
    left = left + 5 * field(grid.axes(), 45.0, rng)
    low = (at[2] + 12 - z) + 0.4 * (y - at[1]) > 0                                              # ventricles below, atria above
    wall = np.where((left > 0) & low, rng.uniform(9, 12), rng.uniform(2.5, 4))
    blood = deeper(mask, grid, wall) * mask * ~((np.abs(left) < 4.5) & low)
    patient.paint(box, blood, np.where(left > -3, patient.hu["blood"], patient.hu["right_blood"]) + 0 * mask)
    fat = mask & (soften(mask, grid, 4.0) < 0.72) & (field(grid.axes(), 22.0, rng) > rng.uniform(0.0, 0.8))
    patient.paint(box, fat, patient.hu["fat"] + 15)


def blood_vessels(patient, rng):
    """Lime in the wall of arteries, mixing in the cava, vessels of liver and mesentery; mottled spleen in the arterial phase."""
    if (found := patient.part("aorta", "iliac_artery_left", "iliac_artery_right")) is not None and rng.random() < 0.4:
        box, mask, grid = found
        rim = mask * (1 - lumen(mask, grid, 2.0))
        patient.paint(box, rim * np.clip(field(grid.axes(), 9.0, rng) - rng.uniform(1.0, 2.0), 0, 1), 600)
    mixing = {"arterial": 0.9, "portal": 0.25}.get(patient.phase, 0.0)
    if (found := patient.part("inferior_vena_cava")) is not None and mixing:
        box, mask, grid = found                                          # renal blood is bright before the rest is
        renal = grid.axes()[2][int(np.quantile(np.nonzero(mask)[2], 0.45))]
        above = np.clip((grid.mesh()[2] - renal) / 30, 0, 1)
        patient.image[box] += mask * mixing * (above * 45 - 15 + 14 * field(grid.axes(), 14.0, rng))
    if (found := patient.part("spleen")) is not None and patient.phase == "arterial":
        box, mask, grid = found
        patient.image[box] += mask * rng.uniform(0, 28) * field(grid.axes(), 16.0, rng)
    _liver_vessels(patient, rng)
    _mesentery(patient, rng)


def _nearest(mask, other, grid):
    """The place (mm) of a mask that lies nearest to another mask's centre."""
    voxels = np.argwhere(mask) * grid.spacing_mm + grid.origin_mm
    return voxels[((voxels - centre_mm(other, grid)) ** 2).sum(axis=1).argmin()]


def _liver_vessels(patient, rng):
    """Portal branches from the hilum, hepatic veins from the cava below the dome."""
    if (found := patient.part("liver", margin_mm=12.0)) is None:
        return
    box, mask, grid = found
    deep = mask & (soften(mask, grid, 5.0) > 0.85)
    litres = mask.sum() * grid.spacing_mm ** 3 / 1e6
    for structure, tissue, high, tips, most in (("portal_vein_and_splenic_vein", "portal_blood", False, 55, 5.5),
                                                ("inferior_vena_cava", "hepatic_blood", True, 32, 4.5)):
        vein = patient.where(structure)[box]
        if not vein.any() or not deep.any():
            continue
        if high:                                             # hepatic veins join within 4 cm of the liver's top
            cut = np.flatnonzero(mask.any(axis=(0, 1)))[-1] - round(40 / grid.spacing_mm)
            vein = vein & (np.arange(mask.shape[2]) > cut)
            if not vein.any():
                continue
        tree = grow_tree(_nearest(vein, mask, grid), somewhere(deep, grid, int(12 + tips * litres), rng), 1.25, most, rng)
        patient.paint(box, covered(tree, grid, rng) * mask, patient.hu[tissue])


def _mesentery(patient, rng):
    """Arteries and veins in the fat between the root of the mesentery, before the aorta, and the loops of bowel."""
    if (found := patient.part("small_bowel", "colon", "duodenum", margin_mm=10.0)) is None:
        return
    box, mask, grid = found
    aorta = patient.part("aorta")
    free = (patient.labels[box] == 0) & (patient.image[box] < -40) & (patient.image[box] > -250)
    near = free & (soften(mask, grid, 9.0) > 0.12)
    if aorta is None or not near.any():
        return
    root = centre_mm(*aorta[1:])
    root = np.array([root[0], root[1] + 28, min(root[2] + 30, grid.axes()[2][-1])])
    litres = near.sum() * grid.spacing_mm ** 3 / 1e6
    for tissue, most in (("blood", 3.0), ("portal_blood", 4.5)):
        tree = grow_tree(root, somewhere(near, grid, int(20 + 500 * litres), rng), 0.9, most, rng)
        patient.paint(box, covered(tree, grid, rng) * free, patient.hu[tissue])


def texture(patient, rng):
    """Slow and finer unevenness of soft tissue, a few HU."""
    axes = patient.grid.axes()
    uneven = 3.5 * field(axes, 45.0, rng) + rng.uniform(1.5, 4.0) * field(axes, 9.0, rng)
    soft = (patient.image > -20) & (patient.image < 350)
    patient.image[soft] += uneven[soft]
