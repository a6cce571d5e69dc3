"""formats/color_tables.py: the files that give a label map its names and colours in other viewers, line by line."""

import json

from uniseg.formats import color_tables
from uniseg.formats.labels import LabelRow

ROWS = [LabelRow(1, "spleen", (10, 20, 30), ("spleen",)), LabelRow(6, "my class", (40, 50, 255), ("my class",))]


def test_slicers_color_table():
    assert color_tables.slicer_color_table(ROWS, "ct_seg.ctbl").decode() == (
        "# Color table file ct_seg.ctbl\n# 3 values\n0 Background 0 0 0 0\n1 spleen 10 20 30 255\n"
        "6 my_class 40 50 255 255\n")


def test_itk_snaps_label_descriptions():
    assert color_tables.itksnap_labels(ROWS).decode().splitlines()[1:] == [
        '0 0 0 0 0 0 0 "Clear Label"', '1 10 20 30 1 1 1 "spleen"', '6 40 50 255 1 1 1 "my class"']


def test_niivues_color_map():
    assert json.loads(color_tables.niivue_labels(ROWS)) == {
        "R": [0, 10, 40], "G": [0, 20, 50], "B": [0, 30, 255], "A": [0, 255, 255], "I": [0, 1, 6],
        "labels": ["background", "spleen", "my class"]}


def test_mricrons_colors_and_names():
    table = color_tables.mricron_colors([*ROWS, LabelRow(300, "beyond", (1, 1, 1), ("beyond",))])
    assert len(table) == 768
    assert [table[6], table[256 + 6], table[512 + 6]] == [40, 50, 255] and sum(table) == 60 + 345
    assert color_tables.mricron_names(ROWS) == b"1 spleen\n6 my class\n"
