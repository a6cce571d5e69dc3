"""SNOMED CT codes of the classes, by which 3D Slicer and DICOM name an organ in any language.

Codes and meanings are those of DICOM's context groups
(https://dicom.nema.org/medical/dicom/current/output/chtml/part16) and of TotalSegmentator's
resources/totalsegmentator_snomed_mapping.csv. "Prostate or uterus" is no concept of SNOMED CT, so it has no code.
"""

from typing import NamedTuple

from ..taxonomy import BY_NAME, TUMOUR


class Code(NamedTuple):
    """A concept of SNOMED CT."""

    value: str
    meaning: str


RIGHT, LEFT = Code("24028007", "Right"), Code("7771000", "Left")
STRUCTURE = Code("123037004", "Anatomical Structure")
ALTERED = Code("49755003", "Morphologically Altered Structure")
NEOPLASM, CYST = Code("108369006", "Neoplasm"), Code("367643001", "Cyst")
BLOOD_VESSEL = Code("59820001", "Blood vessel")

_KIDNEY, _LUNG, _LIVER = Code("64033007", "Kidney"), Code("39607008", "Lung"), Code("10200004", "Liver")
_PANCREAS, _COLON = Code("15776009", "Pancreas"), Code("71854001", "Colon")
_ADRENAL, _FEMUR = Code("23451007", "Adrenal gland"), Code("2812003", "Head of femur")

STRUCTURES = {
    "spleen": Code("78961009", "Spleen"), "right_kidney": _KIDNEY, "left_kidney": _KIDNEY,
    "gall_bladder": Code("28231008", "Gallbladder"), "esophagus": Code("32849002", "Esophagus"), "liver": _LIVER,
    "stomach": Code("69695003", "Stomach"), "aorta": Code("15825003", "Aorta"),
    "postcava": Code("64131007", "Inferior vena cava"),
    "portal_and_splenic_vein": Code("110765007", "Portal vein and splenic vein"), "pancreas": _PANCREAS,
    "right_adrenal_gland": _ADRENAL, "left_adrenal_gland": _ADRENAL, "duodenum": Code("38848004", "Duodenum"),
    "hepatic_vessel": BLOOD_VESSEL, "right_lung": _LUNG, "left_lung": _LUNG, "colon": _COLON,
    "intestine": Code("30315005", "Small Intestine"), "rectum": Code("34402009", "Rectum"),
    "bladder": Code("89837001", "Urinary bladder"), "left_head_of_femur": _FEMUR, "right_head_of_femur": _FEMUR,
    "celiac_trunk": Code("57850000", "Celiac artery"),
    "kidney_tumor": NEOPLASM, "liver_tumor": NEOPLASM, "pancreatic_tumor": NEOPLASM, "hepatic_vessel_tumor": NEOPLASM,
    "lung_tumor": NEOPLASM, "colon_tumor": NEOPLASM, "kidney_cyst": CYST}
# Where a lesion or a vessel lies.
REGIONS = {"hepatic_vessel": _LIVER, "kidney_tumor": _KIDNEY, "liver_tumor": _LIVER, "pancreatic_tumor": _PANCREAS,
           "hepatic_vessel_tumor": _LIVER, "lung_tumor": _LUNG, "colon_tumor": _COLON, "kidney_cyst": _KIDNEY}


class Terms(NamedTuple):
    """What a class is in SNOMED CT. `side` and `region` are None where they do not apply."""

    category: Code
    type: Code
    side: Code | None
    region: Code | None


def terms_of(name: str) -> Terms | None:
    """The Terms of a class; None where SNOMED CT has none, as for classes beyond Table 2."""
    if name not in STRUCTURES:
        return None
    lesion = BY_NAME[name].kind == TUMOUR
    side = RIGHT if name.startswith("right_") else LEFT if name.startswith("left_") else None
    return Terms(ALTERED if lesion else STRUCTURE, STRUCTURES[name], side, REGIONS.get(name))
