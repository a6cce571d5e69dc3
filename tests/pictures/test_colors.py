"""Colours that can be told apart: by everyone, over a CT, on white, and by those who see fewer colours.

Distances are CIE76: the straight line between two colours in CIE L*a*b*. Two or three are just noticed side by side; an
outline of two pixels on a picture of grey needs much more.
"""

import itertools

import numpy as np
import pytest

from tools.color_chart import BLINDNESS
from uniseg.pictures.colors import class_color, lab, on_white
from uniseg.taxonomy import BY_NAME, CLASSES, NAMES, TUMOUR

APART, NEIGHBOURS_APART, SEEN = 12, 25, 20

# What may touch in a slice. Each pair is named once, at the first of the two.
NEIGHBOURS = {
    "liver": "right_kidney gall_bladder esophagus stomach aorta postcava portal_and_splenic_vein pancreas "
             "right_adrenal_gland duodenum hepatic_vessel right_lung left_lung colon intestine",
    "spleen": "left_kidney stomach portal_and_splenic_vein pancreas left_adrenal_gland left_lung colon intestine liver",
    "right_kidney": "gall_bladder postcava pancreas right_adrenal_gland duodenum colon intestine",
    "left_kidney": "stomach aorta pancreas left_adrenal_gland colon intestine",
    "gall_bladder": "stomach pancreas duodenum colon intestine",
    "esophagus": "stomach aorta right_lung left_lung",
    "stomach": "portal_and_splenic_vein pancreas left_adrenal_gland duodenum celiac_trunk left_lung colon intestine",
    "aorta": "postcava portal_and_splenic_vein pancreas left_adrenal_gland duodenum celiac_trunk right_lung left_lung "
             "intestine",
    "postcava": "portal_and_splenic_vein pancreas right_adrenal_gland duodenum hepatic_vessel right_lung intestine",
    "portal_and_splenic_vein": "pancreas left_adrenal_gland duodenum celiac_trunk hepatic_vessel intestine",
    "pancreas": "left_adrenal_gland duodenum celiac_trunk colon intestine",
    "celiac_trunk": "left_adrenal_gland",
    "duodenum": "colon intestine",
    "right_lung": "left_lung",
    "colon": "intestine rectum bladder prostate_or_uterus",
    "intestine": "rectum bladder prostate_or_uterus",
    "rectum": "bladder prostate_or_uterus",
    "bladder": "prostate_or_uterus",
    "kidney_tumor": "right_kidney left_kidney kidney_cyst liver spleen pancreas colon",
    "kidney_cyst": "right_kidney left_kidney liver spleen colon",
    "liver_tumor": "liver gall_bladder postcava portal_and_splenic_vein hepatic_vessel hepatic_vessel_tumor",
    "hepatic_vessel_tumor": "liver gall_bladder postcava portal_and_splenic_vein hepatic_vessel",
    "pancreatic_tumor": "pancreas stomach aorta postcava portal_and_splenic_vein duodenum celiac_trunk",
    "lung_tumor": "right_lung left_lung esophagus aorta",
    "colon_tumor": "liver colon intestine rectum bladder",
}
PAIRS = [(a, b) for a, others in NEIGHBOURS.items() for b in others.split()]


def seen_linear(color, blindness=None):
    """sRGB 0 to 255 -> linear light as it appears."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255])
    return linear if blindness is None else np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)


def as_lab(color, blindness=None):
    """CIE L*a*b* for the white point D65, as IEC 61966-2-1 and CIE 15 define it, a channel after the other."""
    red, green, blue = seen_linear(color, blindness)
    x = (0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047
    y = 0.2126729 * red + 0.7151522 * green + 0.0721750 * blue
    z = (0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def distance(a, b, blindness=None):
    """CIE76 between two classes."""
    return float(np.linalg.norm(as_lab(BY_NAME[a].color, blindness) - as_lab(BY_NAME[b].color, blindness)))


def closer_than(least, pairs, blindness=None):
    return [(a, b, round(distance(a, b, blindness), 1)) for a, b in pairs if distance(a, b, blindness) < least]


def test_lab_has_the_known_values_of_white_red_and_grey():
    for color, known in (((255, 255, 255), (100, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20)),
                         ((119, 119, 119), (50.03, 0, 0)), ((0, 0, 255), (32.30, 79.19, -107.86))):
        assert as_lab(color) == pytest.approx(known, abs=0.02)
        assert lab(np.array(color)) == pytest.approx(known, abs=0.02)


def test_any_two_classes_can_be_told_apart():
    assert closer_than(APART, itertools.combinations(NAMES, 2)) == []


def test_neighbours_in_the_body_are_far_apart():
    assert {name for pair in PAIRS for name in pair} >= set(NAMES) - {"left_head_of_femur", "right_head_of_femur"}
    assert len(PAIRS) == len(set(map(frozenset, PAIRS)))
    assert closer_than(NEIGHBOURS_APART, PAIRS) == []


def test_tumours_stand_out_from_their_organ_and_from_all_organs_and_vessels():
    tumours = [c for c in CLASSES if c.kind == TUMOUR]
    assert closer_than(50, [(c.name, parent) for c in tumours for parent in c.parents]) == []
    assert closer_than(NEIGHBOURS_APART, [(c.name, o.name) for c in tumours for o in CLASSES if o.kind != TUMOUR]) == []


def test_the_colours_are_those_that_anatomists_expect():
    """Liver brown: red over green over blue, and dark. Arteries red, veins blue, lungs light."""
    colors = {c.name: np.array(c.color, int) for c in CLASSES}
    red, green, blue = colors["liver"]
    assert red > 1.4 * green > 1.4 * blue and as_lab(colors["liver"])[0] < 50
    for name in ("aorta", "celiac_trunk"):
        assert colors[name][0] > 2 * max(colors[name][1:])
    for name in ("postcava", "portal_and_splenic_vein", "hepatic_vessel"):
        assert colors[name].argmax() == 2
    assert min(as_lab(colors[f"{side}_lung"])[0] for side in ("left", "right")) > 75


def test_no_colour_is_lost_in_the_grey_of_a_ct_in_black_or_on_white():
    for value in range(1, 65):
        lightness, a, b = as_lab(class_color(value))
        assert np.hypot(a, b) >= SEEN, value                        # the distance to the grey of the same lightness
        assert lightness >= 40, value                               # to black
        assert np.linalg.norm([100 - lightness, a, b]) >= SEEN, value


def test_lines_on_white_have_a_contrast_of_three_to_one():
    """WCAG 2.1, success criterion 1.4.11: (1 + 0.05) / (luminance + 0.05)."""
    for value in range(1, 65):
        luminance = seen_linear(on_white(class_color(value))) @ (0.2126, 0.7152, 0.0722)
        assert 1.05 / (luminance + 0.05) >= 2.97, value
    assert on_white((31, 92, 153)) == (31, 92, 153)                 # dark enough


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_neighbours_stay_apart_for_the_colour_blind(blindness):
    """docs/pictures.md names the pairs below 12; no two neighbours come closer than 10."""
    assert closer_than(10, PAIRS, blindness) == []
    assert closer_than(3, itertools.combinations(NAMES, 2), blindness) == []


def test_classes_beyond_table_2_have_colours_of_their_own_the_first_ones_far_from_all_others():
    colors = [class_color(value) for value in range(1, 97)]          # 64: as many as a model can have
    assert len(set(colors)) == 96 and colors[:32] == [c.color for c in CLASSES]
    places = lab(np.array(colors))
    for i in range(32, 40):
        assert np.linalg.norm(places[:i] - places[i], axis=1).min() >= 20
    assert class_color(65535) == class_color(65535)                  # any value of a label map has a colour
