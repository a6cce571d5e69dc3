"""The classes with their names and order (Table 2), and the datasets of the assembly (Table 1).

This is the only file where a class gets its name and its number. Read it first. It needs neither torch nor numpy, so
`--list-classes` answers at once.

Three numbers belong to a class. Its index (1 to 32) is its value in a label map. Its channel in a model is its position
in that model's own list of classes. Its bit in a bit volume is its position in the list that the volume was made with.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ORGAN, VESSEL, TUMOUR = "organ", "vessel", "tumour"
MERGING_ORDER = (ORGAN, VESSEL, TUMOUR)     # Later kinds cover earlier ones (Section 4.1.2, imaging/merging.py).


@dataclass(frozen=True)
class AnatomicalClass:
    """One row of Table 2, with everything that the rest of the package needs to know about the class."""

    index: int                   # value in a label map
    name: str                    # name in commands, files and JSON
    kind: str                    # organ, vessel or tumour; decides the order of merging (Section 4.1.2)
    color: tuple[int, int, int]  # RGB, 0 to 255, in pictures
    text: str                    # replaces [CLS] in the prompts of Section 4.4.1
    parents: tuple[str, ...] = ()   # the class lies inside one of these organs
    partner: str = ""            # the same organ on the other side of the body
    components: int = 0          # connected components to keep; 0: any number. Both lungs together keep two.
    adult_ml: float = 0.0        # volume in ml in the reference adult woman, see below; 0 where none is given
    tolerance_mm: float = 2.0    # of the normalised surface Dice outside the Decathlon, whose tasks are in DATASETS
    max_lesions: int = 0         # keep at most this many lesions, the largest ones; 0 means any number (authors' code)
    min_lesion_mm3: float = 0.0  # drop smaller lesions (authors' code)
    aliases: tuple[str, ...] = ()   # other names that datasets use, as `normalise_name` writes them

    # adult_ml is the mass in ICRP Publication 89, Table 2.8, https://doi.org/10.1016/S0146-6453(03)00002-2, divided by
    # 1.05 g/ml. Organs whose volume depends on their contents, such as stomach and bladder, have none.


VOXEL_MM3 = 1.5 ** 3  # The authors' code gives lesion limits as numbers of voxels of 1.5 mm.

Color = tuple[int, int, int]


def _organ(index: int, name: str, color: Color, text: str, **more: Any) -> AnatomicalClass:
    """An organ. One connected component is kept unless `more` says otherwise."""
    return AnatomicalClass(index, name, ORGAN, color, text, **{"components": 1, **more})


def _vessel(index: int, name: str, color: Color, text: str, **more: Any) -> AnatomicalClass:
    return AnatomicalClass(index, name, VESSEL, color, text, **more)


def _tumour(index: int, name: str, color: Color, text: str, parents: tuple[str, ...], max_lesions: int,
            min_voxels: int, **more: Any) -> AnatomicalClass:
    """A tumour or cyst inside one of its parents; `min_voxels` counts voxels of 1.5 mm."""
    return AnatomicalClass(index, name, TUMOUR, color, text, parents=parents, max_lesions=max_lesions,
                           min_lesion_mm3=min_voxels * VOXEL_MM3, **more)


_KIDNEYS, _LUNGS = ("right_kidney", "left_kidney"), ("right_lung", "left_lung")

# Kidneys, adrenal glands and lungs have right before left. The femoral heads have left (23) before right (24).
CLASSES = (
    _organ(1, "spleen", (140, 85, 170), "spleen", adult_ml=124, tolerance_mm=3.0, aliases=("spl",)),
    _organ(2, "right_kidney", (190, 90, 40), "right kidney", partner="left_kidney", adult_ml=131,
           aliases=("r_kidney", "rkid", "kidney_right", "right_kidney_parenchyma")),
    _organ(3, "left_kidney", (195, 120, 70), "left kidney", partner="right_kidney", adult_ml=131,
           aliases=("l_kidney", "lkid", "kidney_left", "left_kidney_parenchyma")),
    _organ(4, "gall_bladder", (80, 150, 70), "gall bladder", aliases=("gallbladder", "gall")),
    _organ(5, "esophagus", (190, 120, 135), "esophagus", aliases=("oesophagus", "eso")),
    _organ(6, "liver", (140, 85, 60), "liver", adult_ml=1333, tolerance_mm=7.0, aliases=("liv",)),
    _organ(7, "stomach", (255, 185, 170), "stomach", aliases=("sto",)),
    _vessel(8, "aorta", (215, 5, 25), "aorta", components=1, aliases=("aor", "arota")),
    _vessel(9, "postcava", (5, 85, 220), "postcava", components=1,
            aliases=("inferior_vena_cava", "ivc", "post_cava", "vena_cava")),
    _vessel(10, "portal_and_splenic_vein", (135, 145, 255), "portal vein and splenic vein",
            aliases=("portal_vein_and_splenic_vein", "portal_and_spenic_vein", "portal_splenic_vein", "rsveins",
                     "r_and_sveins", "portal_vein_splenic_vein")),
    _organ(11, "pancreas", (250, 175, 5), "pancreas", adult_ml=114, tolerance_mm=5.0, aliases=("pan",)),
    _organ(12, "right_adrenal_gland", (225, 230, 115), "right adrenal gland", partner="left_adrenal_gland",
           aliases=("rag", "r_adrenal_gland", "adrenal_gland_right", "right_adrenal")),
    _organ(13, "left_adrenal_gland", (205, 190, 80), "left adrenal gland", partner="right_adrenal_gland",
           aliases=("lag", "l_adrenal_gland", "adrenal_gland_left", "left_adrenal")),
    _organ(14, "duodenum", (185, 155, 45), "duodenum", aliases=("duo",)),
    _vessel(15, "hepatic_vessel", (0, 170, 205), "hepatic vessel", parents=("liver",), tolerance_mm=3.0,
            aliases=("hepatic_vessels", "liver_vessel", "liver_vessels")),
    _organ(16, "right_lung", (145, 215, 220), "right lung", partner="left_lung", components=2, tolerance_mm=2.0,
           aliases=("lung_right", "r_lung", "rlung")),
    _organ(17, "left_lung", (205, 205, 255), "left lung", partner="right_lung", components=2, tolerance_mm=2.0,
           aliases=("lung_left", "l_lung", "llung")),
    _organ(18, "colon", (165, 170, 115), "colon", tolerance_mm=4.0, aliases=("col", "large_bowel", "large_intestine")),
    _organ(19, "intestine", (245, 140, 180), "intestine",
           aliases=("small_bowel", "small_intestine", "int", "intestines")),
    _organ(20, "rectum", (155, 75, 100), "rectum", aliases=("rec",)),
    _organ(21, "bladder", (245, 220, 130), "bladder", aliases=("urinary_bladder", "bla")),
    _organ(22, "prostate_or_uterus", (200, 100, 190), "prostate or uterus",
           aliases=("prostate", "uterus", "prostate_uterus", "prostateuterus", "pro_ute", "prouterus")),
    _organ(23, "left_head_of_femur", (255, 180, 120), "left head of femur", partner="right_head_of_femur",
           aliases=("lfh", "head_of_femur_l", "head_of_femur_left", "left_femoral_head", "left_femur_head",
                    "l_head_of_femur")),
    _organ(24, "right_head_of_femur", (215, 180, 135), "right head of femur", partner="left_head_of_femur",
           aliases=("rfh", "head_of_femur_r", "head_of_femur_right", "right_femoral_head", "right_femur_head",
                    "r_head_of_femur")),
    _vessel(25, "celiac_trunk", (245, 110, 85), "celiac trunk", components=1,
            aliases=("celiac_artery", "celiac_truck", "coeliac_trunk", "celiac_aa", "celiac")),
    _tumour(26, "kidney_tumor", (20, 240, 45), "kidney tumor", _KIDNEYS, 5, 80,
            aliases=("renal_tumor", "kidney_mass", "kidney_cancer")),
    _tumour(27, "liver_tumor", (250, 255, 25), "liver tumor", ("liver",), 20, 20,
            aliases=("liver_cancer", "liver_lesion", "livertumor", "hepatic_tumor")),
    _tumour(28, "pancreatic_tumor", (45, 255, 145), "pancreatic tumor", ("pancreas",), 1, 100,
            aliases=("pancreas_tumor", "pancreas_cancer", "pancreatic_cancer", "pancreatic_lesion", "pdac")),
    _tumour(29, "hepatic_vessel_tumor", (175, 240, 45), "hepatic vessel tumor", ("liver",), 10, 80,
            aliases=("hepatic_tumor_vessel", "hepaticvessel_tumor")),
    _tumour(30, "lung_tumor", (210, 0, 180), "lung tumor", _LUNGS, 10, 30,
            aliases=("lung_cancer", "lung_nodule", "nsclc", "gtv_1")),
    _tumour(31, "colon_tumor", (0, 255, 225), "colon tumor", ("colon",), 3, 100,
            aliases=("colon_cancer", "colon_cancer_primaries", "colorectal_tumor")),
    _tumour(32, "kidney_cyst", (185, 255, 180), "kidney cyst", _KIDNEYS, 20, 20, aliases=("renal_cyst",)),
)

NAMES = tuple(c.name for c in CLASSES)
BY_NAME = {c.name: c for c in CLASSES}

# Labels that cover both sides of a paired organ: (right, left). The mid-sagittal plane splits them
# (imaging/anatomy.py, split_left_right).
PAIRS = {
    "kidney": _KIDNEYS, "kidneys": _KIDNEYS, "kid": _KIDNEYS,
    "lung": _LUNGS, "lungs": _LUNGS,
    "adrenal": ("right_adrenal_gland", "left_adrenal_gland"),
    "adrenals": ("right_adrenal_gland", "left_adrenal_gland"),
    "adrenal_gland": ("right_adrenal_gland", "left_adrenal_gland"),
    "adrenal_glands": ("right_adrenal_gland", "left_adrenal_gland"),
    "head_of_femur": ("right_head_of_femur", "left_head_of_femur"),
    "femoral_heads": ("right_head_of_femur", "left_head_of_femur"),
}


def normalise_name(name: str) -> str:
    """The name in lower case, its words joined by underscores, with "tumour" and its plural spelled as in Table 2.

    >>> normalise_name(" Portal Vein & Splenic-Vein ")
    'portal_vein_and_splenic_vein'
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("&", " and ").replace("tumour", "tumor")).strip("_")
    return re.sub(r"tumors\b|tumors$", "tumor", words)


# What clinicians call a class where Table 2 has another word.
SPOKEN = {"postcava": "inferior vena cava", "intestine": "small bowel"}


def spoken(name: str) -> str:
    """The name of a class for a reader: with the clinicians' word where it is another one.

    >>> spoken("postcava"), spoken("liver")
    ('postcava (inferior vena cava)', 'liver')
    """
    return f"{name} ({SPOKEN[name]})" if name in SPOKEN else name


_ALIASES = {alias: c.name for c in CLASSES for alias in (c.name, *c.aliases)}


def resolve(name: str) -> tuple[str, ...]:
    """The classes that the name of a label stands for: one class, or (right, left) for a label of both sides.

    Raises ValueError with the nearest known names if nothing matches.

    >>> resolve("Postcava"), resolve("IVC"), resolve("Kidneys")
    (('postcava',), ('postcava',), ('right_kidney', 'left_kidney'))
    """
    key = normalise_name(name)
    if key in _ALIASES:
        return (_ALIASES[key],)
    if key in PAIRS:
        return PAIRS[key]
    near = list(dict.fromkeys(_ALIASES.get(n, n) for n in difflib.get_close_matches(key, [*_ALIASES, *PAIRS], n=3)))
    hint = f" Did you mean {' or '.join(near)}?" if near else " `--list-classes` prints the known names."
    raise ValueError(f"unknown class name {name!r}.{hint}")


def class_number(name: str, position: int) -> int:
    """The label-map value of a class: its index in Table 2, or 33 and above for a class that Table 2 does not list.

    position: position of the class, from 0, among those classes of its model that Table 2 does not list
    """
    return BY_NAME[name].index if name in BY_NAME else len(CLASSES) + 1 + position


def label_values(names: Sequence[str]) -> dict[str, int]:
    """The label-map value of every class of a model, in the model's order: {name: value}."""
    added = [name for name in names if name not in BY_NAME]
    return {name: class_number(name, added.index(name) if name in added else 0) for name in names}


def remarks_on(names: Sequence[str]) -> list[str]:
    """What a user should know about the classes of a model that Table 2 does not list, a line each; [] for none.

    >>> remarks_on(["liver", "Spleen"])
    ["the class 'Spleen' is no name of Table 2, so it is not taken for spleen; it has the number 33"]
    """
    added = {name: value for name, value in label_values(names).items() if name not in BY_NAME}
    remarks = []
    for name in [name for name in added if normalise_name(name) in (*_ALIASES, *PAIRS)]:
        meant = " and ".join(resolve(name))
        remarks.append(f"the class {name!r} is no name of Table 2, so it is not taken for {meant}; it has the number "
                       f"{added.pop(name)}")
    if added:
        remarks.append("classes beyond Table 2, with their numbers: "
                       + ", ".join(f"{name} {value}" for name, value in added.items()))
    return remarks


def kind_of(name: str) -> str:
    """ORGAN, VESSEL or TUMOUR. A class that Table 2 does not list counts as an organ."""
    return BY_NAME[name].kind if name in BY_NAME else ORGAN


@dataclass(frozen=True)
class Dataset:
    """One dataset of the assembly, and the class that each value of its label maps stands for."""

    id: str                         # number in the authors' code, where it has one
    name: str
    volumes: int                    # number of CTs in Table 1; 0 for datasets that Table 1 does not list
    transfer: tuple[int, ...] = ()  # Raw label value v (1, 2, ...) becomes class transfer[v - 1]; 0 drops the label.
    split: tuple[int, ...] = ()     # Right-side classes whose raw label covers both sides and is split in two.
    partial: tuple[int, ...] = ()   # Some images lack a part of the classes; those images have only these.
    tolerance_mm: float = 0.0       # of NSD, for all labels of a Decathlon task; 0 elsewhere; see below


# The Decathlon scores each task with one tolerance for all its labels (Antonelli et al.,
# https://arxiv.org/abs/2106.05735). The values below are those in common use. Neither the organisers' evaluation code
# nor a list of theirs was found in public, so they are not confirmed.

# Table 1. The transfers follow the label definitions that each publisher documents. Sets that only evaluate have none.
DATASETS = (
    Dataset("01", "BTCV", 50, tuple(range(1, 15)), partial=(1, 3, 4, 5, 6, 7, 11, 14)),  # image ids >= 60
    Dataset("02", "Pancreas-CT", 82, (1, 0, 3, 4, 5, 6, 7, 0, 0, 0, 11, 0, 0, 14)),
    Dataset("03", "CHAOS", 40, (6,)),
    Dataset("04", "LiTS", 201, (6, 27)),
    Dataset("05", "KiTS", 300, (2, 26, 32), split=(2,)),
    Dataset("06", "3D-IRCADb", 20),
    Dataset("07", "WORD", 150, (6, 1, 3, 2, 7, 4, 5, 11, 14, 18, 19, 12, 20, 21, 23, 24), split=(12,)),
    Dataset("08", "AbdomenCT-1K", 1000, (6, 2, 1, 11), split=(2,)),
    Dataset("09", "AMOS22", 500, (*range(1, 10), 11, 12, 13, 14, 21, 22)),
    Dataset("10_03", "MSD Task03 Liver", 131, (6, 27), tolerance_mm=7.0),
    Dataset("10_06", "MSD Task06 Lung", 64, (30,), tolerance_mm=2.0),
    Dataset("10_07", "MSD Task07 Pancreas", 282, (11, 28), tolerance_mm=5.0),
    Dataset("10_08", "MSD Task08 HepaticVessel", 303, (15, 29), tolerance_mm=3.0),
    Dataset("10_09", "MSD Task09 Spleen", 41, (1,), tolerance_mm=3.0),
    Dataset("10_10", "MSD Task10 Colon", 126, (31,), tolerance_mm=4.0),
    Dataset("12", "CT-ORG", 140, (6, 21, 16, 2, 0, 0), split=(16, 2)),
    Dataset("13", "AbdomenCT-12organ", 0, (6, 2, 1, 11, 8, 9, 7, 4, 5, 12, 13, 25), split=(2,)),
    Dataset("15", "TotalSegmentator", 1024),
    # Other published editions of these sets, and sets outside Table 1. datasets/layouts.py recognises each edition.
    Dataset("01s", "BTCV-Synapse", 0, tuple(range(1, 14))),
    Dataset("02n", "Pancreas-CT-NIH", 0, (11,)),
    Dataset("05a", "KiTS19", 0, (2, 26), split=(2,)),
    Dataset("05b", "KiTS23", 0, (2, 26, 32), split=(2,)),
    Dataset("16", "FLARE22", 0, (6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 14, 3)),
    Dataset("17", "AbdomenAtlas", 0),
)
