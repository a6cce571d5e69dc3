"""What the numbers of plain label maps mean: those of a dataset.json, or those of Table 2.

A label map without a JSON of its own takes its numbers from the dataset.json in its folder, as nnU-Net's predictions
have one, else from that one folder up, as labelsTr has one, else from Table 2. `--ref-numbers` and `--pred-numbers`
say it outright. The evaluation prints what was taken. Read readings.py next.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..datasets import layouts
from ..datasets.dataset import DataError, Label
from ..datasets.dataset_json import NameMap, read_labels
from ..datasets.published import published_labels

TABLE_2 = tuple(Label(name, (number,), (name,)) for name, number in taxonomy.label_values(taxonomy.NAMES).items())
TABLE_2_NAME = "table-2"          # what the options call them


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

    given: of --ref-numbers or --pred-numbers: a dataset.json, its folder, or TABLE_2_NAME; None: it is looked up
    name_map, notes: see datasets.find.find_datasets

    Raises DataError.
    """
    if given == TABLE_2_NAME:
        return Numbers.of(TABLE_2, "Table 2")
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
    return Numbers.of(TABLE_2, "Table 2", known=False)


def _described(path: Path, name_map: NameMap | None, allow: tuple[str, ...], notes: list[str] | None) -> Numbers:
    """The numbers of a dataset.json; of one that a publisher ships, as published."""
    rows = layouts.known_as(path.absolute().parent.name)
    if rows and rows[0].ships_json:
        published = next(d for d in taxonomy.DATASETS if d.name == rows[0].name)
        values = tuple(range(len(published.transfer) + 1))
        return Numbers(published_labels(published), values, (), f"{path}, as {rows[0].name} is published")
    described = read_labels(path, name_map, allow, notes)
    return Numbers(described.labels, described.values, described.ignored, str(path))
