"""What every file for viewers is made of: one LabelRow for each value of a label map."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import taxonomy
from .numbers import classes_of_values

Color = tuple[int, int, int]


class LabelRow(NamedTuple):
    """One value of a label map."""

    value: int
    name: str                      # of the class, or of the pair where both sides have this value
    color: Color                   # RGB, 0 to 255
    classes: tuple[str, ...]       # one, or (right, left)


def label_rows(numbers: Mapping[str, int | None], color_of: Callable[[str], Color]) -> list[LabelRow]:
    """The rows of a label map, by ascending value. A merged pair has the colour of its right side.

    numbers:  {class: its value, None where it has none}
    color_of: class -> RGB
    """
    return [LabelRow(value, merged_name(classes), color_of(classes[0]), classes)
            for value, classes in classes_of_values(dict(numbers)).items()]


def merged_name(classes: tuple[str, ...]) -> str:
    """The name of one class, or the name for both sides of a pair, which taxonomy.resolve knows.

    >>> merged_name(("liver",)), merged_name(("right_kidney", "left_kidney"))
    ('liver', 'kidneys')
    """
    if len(classes) == 1:
        return classes[0]
    names = [name for name, pair in taxonomy.PAIRS.items() if set(pair) == set(classes)]
    return max(names, key=len, default="_and_".join(classes))


def own_numbers(classes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """{class: its number in Table 2, or from 33 on}, which decides its colour, whatever numbers the label map has.

    classes: {name: figures} of the JSON file
    """
    numbers = taxonomy.label_values(list(classes))
    for name, figures in classes.items():
        label = figures["label"]
        if name not in taxonomy.BY_NAME and isinstance(label, int) and label > len(taxonomy.CLASSES):
            numbers[name] = label
    return numbers
