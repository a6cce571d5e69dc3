"""The colour of each class in every picture: in slices, in legends and in charts."""

import colorsys

from .. import taxonomy


def class_color(value: int) -> tuple[int, int, int]:
    """RGB of a value of the label map, 1 or more.

    Classes beyond Table 2 get strong colours, with hues a golden section of the circle apart.
    """
    if value <= len(taxonomy.CLASSES):
        return taxonomy.CLASSES[value - 1].color
    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1, 1.0, (1.0, 0.7)[value // 16 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)
