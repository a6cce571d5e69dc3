"""The colour of each class in every picture: in slices, in legends and in charts. docs/pictures.md has the reasons."""

import functools
import itertools

import numpy as np

from .. import taxonomy

Color = tuple[int, int, int]                       # sRGB, 0 to 255

# From linear sRGB to CIE XYZ with the white point D65 (IEC 61966-2-1).
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])
LIGHTEST_ON_WHITE = 0.30                           # luminance of a line that has a contrast of 3:1 on white
STEPS = (0, 64, 128, 192, 255)                     # of red, green and blue in the colours beyond Table 2
LEAST_CHROMA, LIGHTNESS = 35.0, (45.0, 92.0)       # of these: seen over any grey


def class_color(value: int) -> Color:
    """The colour of a value of the label map, 1 or more.

    Classes beyond Table 2 get colours that are as far as possible from all earlier ones.
    """
    if value <= len(taxonomy.CLASSES):
        return taxonomy.CLASSES[value - 1].color
    more = _colors_beyond_table_2()
    return more[(value - len(taxonomy.CLASSES) - 1) % len(more)]


@functools.cache
def _colors_beyond_table_2() -> list[Color]:
    """Each next one is the strong colour whose nearest earlier colour is farthest away (CIE76)."""
    grid = np.array(list(itertools.product(STEPS, repeat=3)))
    colors = lab(grid)
    strong = (np.hypot(colors[:, 1], colors[:, 2]) >= LEAST_CHROMA) & (colors[:, 0] >= LIGHTNESS[0])
    strong &= colors[:, 0] <= LIGHTNESS[1]
    grid, colors = grid[strong], colors[strong]
    table = lab(np.array([c.color for c in taxonomy.CLASSES]))
    nearest = np.linalg.norm(colors[:, None] - table, axis=2).min(axis=1)
    chosen: list[Color] = []
    while nearest.max() > 0:
        best = int(nearest.argmax())
        red, green, blue = (int(part) for part in grid[best])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(colors - colors[best], axis=1))
    return chosen


def linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) from 0 to 255 -> linear light from 0 to 1."""
    share = np.asarray(rgb, float) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) from 0 to 255 -> CIE L*a*b* (..., 3). The distance of two colours there is CIE76.

    >>> lab(np.array([255, 255, 255])).round(1).tolist()
    [100.0, 0.0, 0.0]
    """
    xyz = linear(rgb) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def on_white(color: Color) -> Color:
    """The colour of a class, darkened where it is too light for a line on white.

    Its contrast with white is then 3:1, which https://www.w3.org/TR/WCAG21/#non-text-contrast asks of graphics.
    """
    light = linear(np.array(color))
    luminance = float(light @ TO_XYZ[1])
    if luminance <= LIGHTEST_ON_WHITE:
        return color
    light = light * (LIGHTEST_ON_WHITE / luminance)
    red, green, blue = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    return int(red), int(green), int(blue)
