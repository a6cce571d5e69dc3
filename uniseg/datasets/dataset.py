"""What a dataset is: label values with their classes, and the files of its cases (Sections 3.1 and 4.1.1).

A class that a dataset, or one of its cases, does not annotate is *unlabelled*, never background. That is why a
Dataset names its annotated classes, and a CaseFiles may name fewer. Read taxonomy.py first, dataset_json.py and
published.py next: they make a Dataset of a folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import taxonomy


class DataError(ValueError):
    """A dataset that cannot be used. The message names the file and says what to do."""


@dataclass(frozen=True)
class Label:
    """One label of a label map: its raw values and the class (or the right and left class) that it stands for."""

    name: str
    values: tuple[int, ...]
    classes: tuple[str, ...]      # one name, or (right, left) where one label holds both sides


class CaseFiles(NamedTuple):
    """The files of one case as published."""

    id: str
    image: Path
    label: Path                   # a label map, or a folder of binary masks (layouts.mask_files)
    annotated: tuple[str, ...] | None = None   # classes annotated in this case; None: all classes of its dataset


@dataclass(frozen=True)
class Dataset:
    """A folder of cases whose label values are mapped to classes."""

    name: str
    folder: Path
    labels: tuple[Label, ...]     # empty where the labels are folders of masks
    values: tuple[int, ...]       # every raw value that may occur, background and dropped labels included
    cases: tuple[CaseFiles, ...]
    published: bool = False       # True: layouts.py says what the values mean; False: a dataset.json does
    ignored: tuple[int, ...] = ()  # values of voxels of which nobody says what they hold (nnU-Net's "ignore")

    @property
    def annotated(self) -> tuple[str, ...]:
        """Names of the classes that this dataset annotates, in the order of Table 2, other classes last."""
        by_label = {name for label in self.labels for name in label.classes}
        by_case = {name for case in self.cases for name in case.annotated or ()}
        return in_order(by_label | by_case)

    def annotated_in(self, case: CaseFiles) -> tuple[str, ...]:
        """Names of the classes that are annotated in one of its cases, in the same order."""
        return self.annotated if case.annotated is None else in_order(case.annotated)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of Table 2; names that it does not list come last, in alphabetical order."""
    rank = {name: i for i, name in enumerate(taxonomy.NAMES)}
    return tuple(sorted(names, key=lambda name: (rank.get(name, len(rank)), name)))


def few(names: Sequence[str], what: str = "") -> str:
    """How many names there are and the first of them, for a message.

    >>> few(["a", "b", "c", "d", "e", "f"], "images"), few(["a"])
    ('6 images (a, b, c, d, e, ...)', '1 (a)')
    """
    listed = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {what} ({listed})" if what else f"{len(names)} ({listed})"


def short(value: Any) -> str:
    """A value of a dataset.json for a message, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:                                   # lists within lists
        return type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def inside(folder: Path, relative: str | Path, named_by: Path, allow: Collection[str] = ()) -> Path:
    """`folder / relative`. Raises DataError where that leads out of the folder, unless `allow` holds "outside".

    named_by: the file or folder that names the path; the message begins with it
    Raises DataError for a path that no disk can hold, too.
    """
    try:
        full = (folder / relative).resolve()
        full.is_file()
    except (OSError, ValueError, RuntimeError) as error:     # a name too long, with NUL, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{named_by}: {short(str(relative))} cannot be the path of a file ({reason}). "
                        "Mend it.") from None
    if not full.is_relative_to(folder.resolve()) and "outside" not in allow:
        raise DataError(f"{named_by}: {short(str(relative))} leads out of the dataset's folder. "
                        "Use paths inside it, or --allow-outside.")
    return folder / relative
