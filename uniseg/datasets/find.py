"""Which datasets a folder holds (Sections 3.1 and 4.1.1). The way in for everything that reads data.

    ROOT/<dataset>/dataset.json        a dataset that somebody described: dataset_json.py
    ROOT/<published name>/             a dataset as its publisher ships it: layouts.py, published.py
      -> Dataset (dataset.py): label values and their classes, cases as CaseFiles

Label values mean what dataset.json says, unless the publisher ships that file. Then the published meaning holds,
dataset.json must agree with it, and its list only selects cases. The same is true with --dataset NAME=FOLDER where
NAME is a published dataset. Read taxonomy.py first, masks.py next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from .. import taxonomy
from . import layouts
from .dataset import DataError, Dataset
from .dataset_json import NameMap, read_dataset
from .published import choose_layout, read_published


def find_datasets(root: Path | None, name_map: NameMap | None = None, named: Iterable[tuple[str, Path]] = (),
                  notes: list[str] | None = None, allow: Collection[str] = ()) -> list[Dataset]:
    """Every dataset in the sub-folders of `root` (or `root` itself), sorted by folder, then the datasets of `named`.

    name_map: {label name: class name, or None to drop the label}; {name: name} asks for a class beyond Table 2, which a
        folder of masks may then hold too
    named: (name, folder) pairs of --dataset: a published dataset's name, or any name for a folder with a dataset.json
    notes: a list that gets one line for everything that is left out on purpose
    allow: what is not refused: "missing" (a listed file that does not exist fails when its case is read; a published
        image or label without its partner is left out), "outside" (files that lie outside the dataset's folder),
        "unknown" (labels that are no class are left out)

    Raises DataError, also for a folder with NIfTI files that is no dataset. Hidden folders are not searched.
    """
    notes = [] if notes is None else notes
    datasets: dict[str, Dataset] = {}
    for folder, name in dataset_folders(root, named, notes):
        dataset = read_folder(folder, name, name_map, notes, allow)
        if other := datasets.get(dataset.name.casefold()):            # some disks do not tell "msd" from "MSD"
            raise DataError(f'{other.folder} and {dataset.folder} both have the "name" {dataset.name}. '
                            "Change one dataset.json, or leave one of them out.")
        datasets[dataset.name.casefold()] = dataset
    return list(datasets.values())


def dataset_folders(root: Path | None, named: Iterable[tuple[str, Path]] = (),
                    notes: list[str] | None = None) -> list[tuple[Path, str | None]]:
    """(folder, its name in `named` or None) of each dataset that find_datasets then reads. Raises DataError."""
    below: list[tuple[Path, str | None]] = []
    if root is not None:
        below = [(folder, None) for folder in _folders_in(Path(root), [] if notes is None else notes)]
    return below + [(Path(folder), name) for name, folder in named]


def _folders_in(root: Path, notes: list[str]) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. --data-root holds one folder per dataset, see docs/datasets.md.")
    if (root / "dataset.json").is_file() or choose_layout(layouts.known_as(root.absolute().name), root):
        return [root]
    folders = list(_inner_folders(root, notes))
    if not folders:
        raise DataError(f"{root}: no dataset.json in it or in its sub-folders, and no published dataset's folder. "
                        "See docs/datasets.md for the layout.")
    return folders


def _inner_folders(root: Path, notes: list[str]) -> Iterator[Path]:
    """Yield the datasets' folders below `root`.

    A folder that only holds datasets (10_Decathlon/Task03_Liver) is searched.
    """
    for folder in _sub_folders(root):
        if layouts.is_mr(folder.name):
            notes.append(f"{folder}: left out, its images are MR")
        elif _is_dataset(folder):
            yield folder
        elif any(_is_dataset(f) or layouts.is_mr(f.name) for f in _sub_folders(folder)):
            yield from _inner_folders(folder, notes)
        elif any(layouts.files_below(folder)):
            raise DataError(f"{folder}: holds NIfTI files, but no dataset.json, and no published dataset has this "
                            "name. Give --dataset NAME=FOLDER (names: docs/datasets.md), add a dataset.json, or move "
                            "it away.")


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _is_dataset(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() or bool(layouts.known_as(folder.name))


def read_folder(folder: Path, name: str | None = None, name_map: NameMap | None = None, notes: list[str] | None = None,
                allow: Collection[str] = ()) -> Dataset:
    """The Dataset of one folder. name: as given with --dataset; None: the folder's own name tells. Raises DataError."""
    notes = [] if notes is None else notes
    if not folder.is_dir():
        raise DataError(f"--dataset {name}={folder}: no such folder. Give the folder that holds the dataset.")
    rows = layouts.known_as(folder.absolute().name if name is None else name)
    if (folder / "dataset.json").is_file():
        if not rows:
            return read_dataset(folder, name_map, name, allow, notes)
        if name is None and not rows[0].ships_json:          # the publisher ships none, so the user wrote it
            return read_dataset(folder, name_map, None, allow, notes)
    if not rows:
        raise DataError(f"--dataset {name}={folder}: no published dataset of this name and no dataset.json in the "
                        "folder. `python -m uniseg layouts` prints the names.")
    beyond_table_2 = tuple(label for label, given in (name_map or {}).items()
                           if label == given and given not in taxonomy.BY_NAME)
    return read_published(folder, rows, notes, allow, beyond_table_2)
