"""tools/readme_picture.py: names stand beside the slice without overlap, and the picture shows what it is given."""

import numpy as np

from tools import readme_picture
from uniseg import taxonomy

LIVER = taxonomy.BY_NAME["liver"].index


def test_names_keep_their_order_their_distance_and_the_picture():
    heights = [20.0, 40.0, 20.0, 20.0]
    placed = readme_picture.spread([50.0, 52.0, 55.0, 190.0], heights, 10.0, 200.0)
    edges = [(centre - height / 2, centre + height / 2) for centre, height in zip(placed, heights)]
    assert all(above[1] <= below[0] for above, below in zip(edges, edges[1:]))
    assert edges[0][0] >= 10 and edges[-1][1] <= 200 and placed[0] == 50 and placed[-1] == 190


def test_names_that_would_leave_the_picture_are_moved_up():
    assert readme_picture.spread([95.0, 98.0], [20.0, 20.0], 0.0, 100.0) == [70.0, 90.0]


def test_a_long_name_is_broken_where_its_halves_are_alike():
    assert readme_picture.in_lines("right adrenal gland") == ["right adrenal", "gland"]
    assert readme_picture.in_lines("liver") == ["liver"]


def test_the_picture_has_the_ct_on_the_left_and_the_coloured_result_on_the_right():
    hu = np.full((60, 50, 5), -1024, np.int16)
    hu[8:52, 8:42] = 60
    labels = np.zeros(hu.shape, np.uint8)
    labels[34:48, 15:35] = LIVER
    rgb = readme_picture.picture_of(hu, labels, (4.0, 4.0, 4.0), 2)
    left = rgb[readme_picture.TITLE:, :readme_picture.PANEL_WIDTH].astype(int)
    right = rgb[readme_picture.TITLE:, readme_picture.PANEL_WIDTH + readme_picture.NAMES_WIDTH:].astype(int)
    assert rgb.dtype == np.uint8 and (np.ptp(left, axis=2) == 0).all()                     # grey alone
    assert (right == taxonomy.CLASSES[LIVER - 1].color).all(axis=2).any()                  # the outline of the liver
