"""`statistics.csv`: one row for each class of each result in a folder, made of the JSON files of the results.

It is written anew as the cases are made, and at the end: complete after an interruption, after `--resume` with the
cases that were kept, and with several runs in one folder, each of which finds the results of the others.
docs/results.md explains the columns. Read finished.py first.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..imaging.file_names import RESULT
from ..machine.console import printable, warn
from ..machine.files import FileError, atomic_write, file_stamp, one_line
from ..machine.json_files import read_json
from ..machine.locks import turn
from .plan import Job

NAME = "statistics.csv"
COLUMNS = ("case", "class", "label", "numbers", "found", "voxels", "ml", "touches_border", "mean_hu", "sd_hu",
           "centre_x_mm", "centre_y_mm", "centre_z_mm", "first_i", "first_j", "first_k", "last_i", "last_j", "last_k",
           "experimental", "warnings", "weights")
OURS = ",".join(COLUMNS[:3])            # how the first line of every version begins
FORMULA = ("=", "+", "-", "@", "\t", "\r")     # a spreadsheet computes a text that begins so
Row = dict[str, Any]
Stamp = tuple[int, int]                        # bytes, time of the last change


class Table:
    """The statistics.csv of one folder."""

    def __init__(self, folder: Path, results: Iterable[Path]) -> None:
        """folder: where the file lies; results: the label maps of this run, in it or below it

        Raises FileError where a file of that name is not one of ours.
        """
        self.path = folder / NAME
        self.folders = {folder, *(result.parent for result in results)}
        self.known: dict[Path, tuple[Stamp, list[Row]]] = {}               # of each JSON
        self.unreadable: set[Path] = set()
        list(self._cases_listed())

    def write(self) -> None:
        """Write the file anew. Raises FileError where it cannot be written, or another program has written it."""
        if not self.path.parent.is_dir():
            return                                                       # there is no result yet
        with turn(self.path.parent):
            found = self._found()
            self._write(found)
            while (now := self._found()) != found:     # where the disk knows no turns, another run may have been faster
                found = now
                self._write(found)

    def _found(self) -> dict[Path, Stamp]:
        """The JSON files of all results: what lies in the folders, and what the present table lists."""
        found = {path for folder in self.folders for path in folder.glob(f"*{RESULT}.json")} | {*self._cases_listed()}
        return {path: stamp for path in sorted(found) if (stamp := file_stamp(path)) is not None}

    def _write(self, found: Mapping[Path, Stamp]) -> None:
        rows = [row for path, stamp in found.items() for row in self._rows(path, stamp)]
        if not rows and not self.path.exists():
            return
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in rows)
        content = text.getvalue().encode()
        if not (self.path.exists() and self.path.read_bytes() == content):
            with atomic_write(self.path) as temporary:
                Path(temporary).write_bytes(content)

    def _cases_listed(self) -> Iterator[Path]:
        """The JSON files of the cases in the present file, some of which another run may have made elsewhere."""
        if not self.path.exists():
            return
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                if not file.readline().startswith(f"{OURS},"):
                    raise FileError(one_line(self.path, "another file has this name", "Rename it, or give another -o"))
                cases = {row[0] for row in csv.reader(file) if row}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise FileError(one_line(self.path, f"cannot be read: {error}", "Move it away")) from None
        yield from (self.path.parent / f"{without_guard(case)}{RESULT}.json" for case in sorted(cases))

    def _rows(self, path: Path, stamp: Stamp) -> list[Row]:
        """The rows of one result; a JSON that has not changed is read once. One that cannot be read gives a warning."""
        try:
            if path not in self.known or self.known[path][0] != stamp:
                case = path.relative_to(self.path.parent).as_posix().removesuffix(f"{RESULT}.json")
                self.known[path] = stamp, rows_of(case, read_json(path))
            return self.known[path][1]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if path not in self.unreadable:
                warn(f"{path}: is not in {self.path}, because it is no result of this version ({error})")
                self.unreadable.add(path)
            return []


def folder_of_all(inputs: Sequence[Path], output: Path | None, jobs: Sequence[Job]) -> Path | None:
    """The folder in which, or below which, all results of a run lie; None for inputs here and there without -o."""
    folders = {job.result.parent for job in jobs}
    if output is not None and output not in {job.result for job in jobs}:
        return output
    if len(folders) == 1:
        return folders.pop()
    return inputs[0] if len(inputs) == 1 else None


def table_of(inputs: Sequence[Path], output: Path | None, jobs: Sequence[Job]) -> Table | None:
    """The table of a run: of its folder of results, where it has several, takes a folder, or continues a table.

    Raises FileError where another file has the name.
    """
    folder = folder_of_all(inputs, output, jobs)
    if folder is None:
        return None
    if len(jobs) < 2 and not any(path.is_dir() for path in inputs) and not (folder / NAME).is_file():
        return None
    return Table(folder, [job.result for job in jobs])


def rows_of(case: str, stats: Mapping[str, Any]) -> list[Row]:
    """The rows of one result. Raises KeyError, TypeError or AttributeError for what is not the JSON of one."""
    common = {"case": case, "numbers": stats["settings"]["numbers"], "warnings": len(stats["warnings"]),
              "weights": stats["weights"]["sha256"][:12]}
    rows = []
    for name, figures in stats["classes"].items():
        row = {**common, "class": name, "found": figures["voxels"] > 0, "experimental": figures.get("experimental")}
        row |= {key: figures[key] for key in ("label", "voxels", "ml", "touches_border", "mean_hu", "sd_hu")}
        for key, columns in (("centre_mm", COLUMNS[10:13]), ("first_voxel", COLUMNS[13:16]),
                             ("last_voxel", COLUMNS[16:19])):
            row |= dict(zip(columns, figures[key] or (None, None, None), strict=True))
        rows.append(row)
    return rows


def cell(value: object) -> object:
    """A value as it is written: nothing for None, 1 and 0, numbers, and text that no spreadsheet takes for a formula.

    >>> cell(None), cell(True), cell(-3.5), cell("liver"), cell("=1+1"), cell("-x")
    ('', 1, -3.5, 'liver', "'=1+1", "'-x")
    """
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    text = "" if value is None else printable(str(value))
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def without_guard(text: str) -> str:
    """The text that `cell` was given."""
    return text[1:] if text.startswith("'") else text
