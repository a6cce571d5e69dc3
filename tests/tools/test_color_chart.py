"""tools/color_chart.py: the colours of the table, and how they look without one kind of cone."""

import numpy as np
import pytest

from tools.color_chart import BLINDNESS, PATCH, ROW, as_seen, chart
from uniseg.taxonomy import CLASSES


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_greys_look_the_same_to_everyone_and_a_missing_cone_costs_a_difference(blindness):
    for grey in (0, 90, 255):
        assert as_seen((grey,) * 3, blindness) == pytest.approx((grey,) * 3, abs=1)
    alike = {"protanopia": ((170, 80, 60), (100, 90, 60)), "deuteranopia": ((190, 90, 60), (125, 115, 60)),
             "tritanopia": ((0, 120, 190), (0, 125, 140))}[blindness]
    one, other = (as_seen(color, blindness) for color in alike)
    seen, real = (sum((a - b) ** 2 for a, b in zip(*pair)) ** 0.5 for pair in ((one, other), alike))
    assert seen < 0.7 * real


def test_the_chart_shows_every_class_on_white_and_over_grey():
    numbers, counts = np.unique(chart().astype(int) @ (1 << 16, 1 << 8, 1), return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist()))
    for c in CLASSES:
        red, green, blue = c.color
        assert found[(red << 16) + (green << 8) + blue] > PATCH * (ROW - 6) + 4 * 100     # the patch, and four outlines
