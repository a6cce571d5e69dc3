"""Labels over a CT: white with a black rim, readable on any background, and always inside the picture."""

import numpy as np
import pytest

from uniseg.pictures.canvas import blank, label
from uniseg.pictures.colors import class_color
from uniseg.taxonomy import CLASSES


@pytest.mark.parametrize("background", [0, 128, 255])
def test_a_label_is_white_with_a_black_rim_on_any_background(background):
    picture = blank(40, 60, (background,) * 3)
    label(picture, 30, 20, "27")
    assert (picture == 255).all(axis=2).any() and (picture == 0).all(axis=2).any()
    assert (picture[0] == background).all() and (picture[:, 0] == background).all()


@pytest.mark.parametrize("x, y", [(-50, 20), (100, 20), (30, -50), (30, 100), (0, 0), (60, 40)])
def test_a_label_is_moved_inside_the_picture_as_a_whole(x, y):
    picture, middle = blank(40, 60, (0, 0, 0)), blank(40, 60, (0, 0, 0))
    label(picture, x, y, "19")
    label(middle, 30, 20, "19")
    assert abs(picture.sum() / middle.sum() - 1) < 0.1                       # nothing of it is cut off


def test_a_label_larger_than_the_picture_is_left_out():
    picture = blank(12, 14, (9, 9, 9))
    label(picture, 7, 6, "19")
    assert (picture == 9).all()


def test_classes_of_table_2_have_their_own_colours_and_later_ones_have_others():
    table = {class_color(c.index) for c in CLASSES}
    assert table == {c.color for c in CLASSES}
    more = [class_color(value) for value in range(33, 65)]
    assert len(set(more)) == 32 and not set(more) & table
    assert all(0 <= part <= 255 for color in more for part in np.array(color))
