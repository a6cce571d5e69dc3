"""What the numbers of plain label maps mean: those of their header, of a dataset.json, or of Table 2.

A label map without a JSON of its own takes its numbers from the label table in its header, as uniseg and
TotalSegmentator write one (formats/label_table.py). Without that they are those of the dataset.json in its folder, as
nnU-Net's predictions have one, else of that one folder up, as labelsTr has one, else of Table 2. `--ref-numbers` and
`--pred-numbers` say it outright. The evaluation prints what was taken. Read readings.py next.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..datasets import layouts
from ..datasets.dataset import DataError, Label
from ..datasets.dataset_json import NameMap, classes_of, read_labels, refuse_double_classes
from ..datasets.published import published_labels
from ..formats.label_table import read_label_table
from ..formats.labels import merged_name
from ..formats.numbers import NUMBERINGS, TABLE_2, classes_of_values, find_numbering, numbers_in
from ..machine.files import one_line


class Numbers(NamedTuple):
    """The meaning of the values of a label map."""

    labels: tuple[Label, ...]     # the values that are classes
    values: tuple[int, ...]       # every value that may occur, background and dropped labels included
    ignored: tuple[int, ...]      # values of voxels of which nobody says what they hold
    source: str                   # the file that says so, or "Table 2"
    known: bool = True            # False: nothing says which classes were looked for; it may be any of Table 2

    @classmethod
    def of(cls, labels: tuple[Label, ...], source: str, known: bool = True) -> Numbers:
        """The numbers of these labels and of background."""
        return cls(labels, tuple(sorted({0}.union(*(label.values for label in labels)))), (), source, known)


def numbers_of(folder: Path, given: str | None = None, name_map: NameMap | None = None,
               notes: list[str] | None = None) -> Numbers:
    """What the numbers of the plain label maps in a folder mean.

    given: of --ref-numbers or --pred-numbers: a dataset.json, its folder, or one of NUMBERINGS; None: it is looked up
    name_map, notes: see datasets.find.find_datasets

    Raises DataError.
    """
    if given is not None and not Path(given).exists() and not given.endswith(".json"):
        return _numbering(given)
    if given is not None:
        path = Path(given) / "dataset.json" if Path(given).is_dir() else Path(given)
        return _described(path, name_map, ("unknown",), notes)
    beside, above = folder / "dataset.json", folder.absolute().parent / "dataset.json"
    if beside.is_file():
        return _described(beside, name_map, (), notes)
    if above.is_file():
        try:
            return _described(above, name_map, ("unknown",), notes)
        except DataError as error:
            raise DataError(f"{error} Or say what the numbers in {folder} mean: --ref-numbers, --pred-numbers.") \
                from None
    return Numbers.of(_labels(TABLE_2), "Table 2", known=False)


def _numbering(name: str) -> Numbers:
    """The Numbers of the name of a numbering. Raises DataError for an unknown one."""
    try:
        numbering = find_numbering(name)
    except ValueError as error:
        raise DataError(f"{name}: no such file, and {error} Or give a dataset.json.") from None
    return Numbers.of(_labels(numbering), "Table 2" if numbering == TABLE_2 else numbering)


def _labels(numbering: str) -> tuple[Label, ...]:
    """The labels of one of NUMBERINGS; a value of both sides of an organ has two classes."""
    values = classes_of_values(numbers_in(numbering, taxonomy.NAMES))
    return tuple(Label(merged_name(classes), (value,), classes) for value, classes in values.items())


def numbers_of_header(path: Path, name_map: NameMap | None = None) -> Numbers | None:
    """What the header of a label map says about its numbers; None where it says nothing.

    name_map: {label name: class name, or None to drop the label}; the names in files of uniseg are exactly those of
              classes, to which it does not apply

    Labels that are no known class are left out. Raises DataError for a table that cannot be right, and for a map that
    says that its numbers are those of others but not which class has which.
    """
    table = read_label_table(path)
    if table is None:
        return None
    if not table.names and table.numbers not in NUMBERINGS:
        raise DataError(one_line(path, f"its header says that its numbers are those of {table.numbers!r}, and its "
                                 "names are lost", "Say what they mean: --ref-numbers, --pred-numbers"))
    if not table.names:
        return Numbers.of(_labels(table.numbers), f"{table.numbers}, as the header of each says", known=False)
    labels = []
    for value, name in sorted(table.names.items()):
        exactly = table.pairs.get(value, (name,)) if table.is_ours else ()
        classes = exactly or classes_of(name, name_map or {}, path, allow=("unknown",))
        if classes and value:
            labels.append(Label(name, (value,), classes))
    refuse_double_classes(labels, path)
    return Numbers(tuple(labels), tuple(sorted({0, *table.names})), (), "the names in the header of each")


def _described(path: Path, name_map: NameMap | None, allow: tuple[str, ...], notes: list[str] | None) -> Numbers:
    """The numbers of a dataset.json; of one that a publisher ships, as published."""
    rows = layouts.known_as(path.absolute().parent.name)
    if rows and rows[0].ships_json:
        published = next(d for d in taxonomy.DATASETS if d.name == rows[0].name)
        values = tuple(range(len(published.transfer) + 1))
        return Numbers(published_labels(published), values, (), f"{path}, as {rows[0].name} is published")
    described = read_labels(path, name_map, allow, notes)
    return Numbers(described.labels, described.values, described.ignored, str(path))
