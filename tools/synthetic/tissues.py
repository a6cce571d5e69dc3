"""The tissue of each structure of TotalSegmentator, its HU in each contrast phase, and the class that it belongs to.

Beyond the paper: part of the synthetic CT (docs/synthetic.md). The names are those of TotalSegmentator's 117 structures
(https://github.com/wasserth/TotalSegmentator, CC BY 4.0 as a dataset). HU measured on real CTs are in hu.json, written
by tools/measure_hu.py. HU of tissues that no label shows there are in LITERATURE, with their sources.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np

PHASES = ("native", "arterial", "portal", "late")
MEASURED = Path(__file__).with_name("hu.json")

# Per tissue: mean HU (native, arterial, portal, late) and the spread (sd) between patients. Rounded from:
# [a] native HU of organs: http://radclass.mudr.org/content/hounsfield-units-scale-hu-ct-numbers
# [b] native liver 58 (sd 9), fatty 32 (sd 14): https://pubmed.ncbi.nlm.nih.gov/30788563/
# [c] gain over native, arterial: aorta 300-336, spleen 97-108, portal vein 75-104, liver 15-25; portal: aorta 117-125,
#     spleen 73-82, liver 59-63: https://www.scilit.net/publications/1b69dc8767095a7e33aa1436ee32861d
# [d] compact and spongy bone: http://www.radgray.com/ct/general-ct/hounsfield-scale
# [e] estimate between measured neighbours, without a source
LITERATURE = {
    "liver": (58, 78, 115, 98, 10),                 # b, c
    "spleen": (46, 148, 124, 98, 10),               # a, c
    "cortex": (33, 210, 170, 145, 16),              # a, e: of the kidney; 95 % of its arterial voxels are < 298
    "medulla": (30, 80, 145, 145, 12),              # a, e
    "urine": (4, 4, 8, 400, 4),                     # e: late, the renal pelvis is full of contrast
    "pancreas": (40, 95, 88, 72, 9),                # e
    "adrenal": (28, 75, 70, 58, 9),                 # e
    "blood": (44, 355, 165, 118, 10),               # a, c: aorta and left heart
    "right_blood": (44, 270, 155, 116, 12),         # e: right heart and pulmonary arteries
    "caval_blood": (44, 85, 125, 112, 14),          # e: below the renal veins it enhances late
    "portal_blood": (44, 135, 165, 118, 10),        # a, c
    "hepatic_blood": (44, 50, 145, 116, 10),        # c: hepatic veins do not enhance in the arterial phase
    "heart_muscle": (46, 105, 100, 90, 8),          # e
    "muscle": (52, 58, 62, 62, 7),                  # a, e
    "gut_wall": (36, 75, 82, 68, 10),               # e
    "prostate": (38, 60, 75, 78, 9),                # e
    "thyroid": (95, 190, 170, 140, 15),             # e: bright by its own iodine
    "disc": (82, 84, 86, 86, 8),                    # e
    "marrow": (130, 135, 145, 142, 30),             # d: HU of spongy bone fall with age
    "cortical_bone": (700, 700, 705, 705, 120),     # d
    "cartilage": (95, 97, 100, 100, 15),            # e
    "cord": (36, 38, 40, 40, 4),                    # a
    "skin": (40, 45, 50, 50, 15),                   # e
    "fat": (-104, -104, -102, -102, 6),             # a
    "bile": (6, 6, 8, 8, 5),                        # a: near water
    "bladder_urine": (6, 6, 7, 60, 4),              # e
    "gas": (-985, -985, -985, -985, 8),             # a
    "lung": (-835, -832, -830, -830, 45),           # a
}
# Tissue -> class of hu.json that is homogeneous and outlined well enough to stand for it. The means of kidneys and
# hollow organs mix several contents; adrenal glands, and the cava in the arterial phase, are too small or too mixed.
MEASURED_AS = {"liver": "liver", "spleen": "spleen", "pancreas": "pancreas", "blood": "aorta",
               "caval_blood": "postcava", "portal_blood": "portal_and_splenic_vein", "bile": "gall_bladder",
               "bladder_urine": "bladder"}

_TISSUES = [                                        # the first pattern that matches the whole name of the structure
    (r"adrenal_gland_.*", "adrenal"), (r"aorta|.*_artery_.*|brachiocephalic_trunk", "blood"),
    (r"atrial_appendage_left|pulmonary_vein", "blood"), (r"heart", "heart_muscle"),
    (r"brachiocephalic_vein_.*|superior_vena_cava", "right_blood"),
    (r"inferior_vena_cava|iliac_vena_.*", "caval_blood"),
    (r"portal_vein_and_splenic_vein", "portal_blood"), (r"autochthon_.*|gluteus_.*|iliopsoas_.*", "muscle"),
    (r"brain|spinal_cord", "cord"), (r"costal_cartilages", "cartilage"),
    (r"colon|duodenum|esophagus|small_bowel|stomach", "gut_wall"),
    (r"gallbladder", "bile"), (r"kidney_cyst_.*", "bile"), (r"kidney_.*", "cortex"),
    (r"lung_.*", "lung"), (r"trachea", "gas"),
    (r"urinary_bladder", "bladder_urine"), (r"thyroid_gland", "thyroid"), (r"liver|spleen|pancreas|prostate", r"\g<0>"),
    (r"(vertebrae|rib|clavicula|scapula|humerus|femur|hip)_.*|sacrum|sternum|skull", "marrow"),
]
SIDES = ("right", "left")
CLASS_PARTS = {                                     # class of Table 2 -> the structures that make it up
    "spleen": ("spleen",), **{f"{s}_kidney": (f"kidney_{s}", f"kidney_cyst_{s}") for s in SIDES},
    "gall_bladder": ("gallbladder",), "esophagus": ("esophagus",), "liver": ("liver",), "stomach": ("stomach",),
    "aorta": ("aorta",), "postcava": ("inferior_vena_cava",),
    "portal_and_splenic_vein": ("portal_vein_and_splenic_vein",), "pancreas": ("pancreas",),
    **{f"{s}_adrenal_gland": (f"adrenal_gland_{s}",) for s in SIDES}, "duodenum": ("duodenum",),
    **{f"{s}_lung": tuple(f"lung_{lobe}_lobe_{s}" for lobe in ("upper", "middle", "lower")) for s in SIDES},
    "colon": ("colon",), "intestine": ("small_bowel",), "bladder": ("urinary_bladder",),
    "prostate_or_uterus": ("prostate",),
    **{f"{s}_head_of_femur": (f"femur_head_{s}",) for s in reversed(SIDES)},
}
# Classes whose structure may be missing from a map although the patient has the class: a map has no label for a uterus.
ABSENT_IS_UNKNOWN = ("prostate_or_uterus",)


def tissue_of(structure: str) -> str:
    """The tissue (a key of LITERATURE) that a structure is painted with before its contents.

    Raises ValueError for an unknown structure.

    >>> tissue_of("lung_upper_lobe_left"), tissue_of("vertebrae_L1"), tissue_of("spleen")
    ('lung', 'marrow', 'spleen')
    """
    for pattern, tissue in _TISSUES:
        if match := re.fullmatch(pattern, structure):
            return match.expand(tissue)
    raise ValueError(f"{structure!r} is no structure of TotalSegmentator that has a tissue. "
                     "Correct the name, or leave it out.")


@functools.lru_cache(maxsize=None)
def centre(tissue: str, phase: str) -> float:
    """Mean HU of a tissue in a phase: the mean of the literature and of the real CTs of that phase that show it."""
    values = [LITERATURE[tissue][PHASES.index(phase)]]
    for case in json.loads(MEASURED.read_text()).values():
        if case["phase"] == phase:
            rows = case["classes"] | case["tissue"]
            name = MEASURED_AS.get(tissue, tissue if tissue in case["tissue"] else None)
            values += [rows[name][0]] if name in rows else []
    return float(np.mean(values))


def draw_hu(phase: str, rng: np.random.Generator) -> dict[str, float]:
    """One patient's HU per tissue.

    phase: one of PHASES

    Each phase but the native one is mixed with up to 30 % of the next one, as the delay of a scan varies. The dose of
    contrast agent is one number for the whole patient; a spread per tissue is added.
    """
    dose, fatty = rng.lognormal(0, 0.2), rng.random() < 0.2
    later = PHASES[min(PHASES.index(phase) + 1, 3)] if phase != "native" else phase
    mix = rng.uniform(0, 0.3)
    hu: dict[str, float] = {}
    for tissue, (*_, spread) in LITERATURE.items():
        native = centre(tissue, "native")
        gain = (1 - mix) * centre(tissue, phase) + mix * centre(tissue, later) - native
        hu[tissue] = native + dose * gain + spread * rng.standard_normal()
    hu["medulla"] = min(hu["medulla"], hu["cortex"])
    if fatty:                                       # [b]: 26 HU less in a severe fatty liver
        hu["liver"] -= rng.uniform(10, 35)
    return hu
