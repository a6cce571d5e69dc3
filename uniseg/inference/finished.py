"""Whose result it is: what a result's JSON states about its files and its CT, and whether it is the one asked for.

`infer --resume` and `evaluate --data-root` keep a result of a former run only where `why_not` finds nothing against
it. The JSON of a result goes first and comes last (result.py): where it exists, the files that it names were complete.
It holds a sha256 of each of them, so that a label map of one run beside the JSON of another is seen, and one of the
CT. Reading the files again costs a few tenths of a second a case, which is little beside segmenting it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..imaging.file_names import json_path, masks_folder
from ..machine.about import __version__
from ..machine.console import note
from ..machine.files import file_sha256, file_stamp, sync_folder
from ..machine.json_files import read_json
from .outputs import Outputs, belongs_to
from .plan import Job

# Reasons of `why_not` for what a run left unfinished or what was damaged since. All others say that the result is
# sound, but another one than asked for.
UNFINISHED = "unfinished"
DAMAGED = ("not readable in their JSON", "with files that are missing or changed")


class Asked(NamedTuple):
    """What decides how a result comes out, besides the CT. Segmenter.asked makes it."""

    weights: str                   # sha256 of the checkpoint
    classes: tuple[str, ...]       # those that are computed, in the model's order
    settings: Mapping[str, Any]    # the "settings" of the JSON that the user chooses; the device is none of them


def remaining(jobs: Iterable[Job], outputs: Outputs, asked: Asked) -> list[Job]:
    """The jobs whose result is not there as asked for. Notes say how many are kept, and why others are made again.

    outputs: what is asked for besides label map and JSON
    """
    reasons = {job: why_not(job.ct, job.result, outputs, asked) for job in jobs}
    kept = sum(reason is None for reason in reasons.values())
    note(f"{kept} of {len(reasons)} results are complete and stay as they are")
    again = [reason for reason in reasons.values() if reason not in (None, UNFINISHED)]
    if again:
        counts = ", ".join(f"{again.count(reason)} {reason}" for reason in dict.fromkeys(again))
        note(f"{len(again)} of {len(reasons)} results are made again: {counts}")
    return [job for job, reason in reasons.items() if reason is not None]


def why_not(ct: Path, result: Path, outputs: Outputs, asked: Asked) -> str | None:
    """None where a former run's result is complete and the one asked for, else the reason in a few words.

    ct:      the CT as it is now
    result:  the label map
    outputs: what is asked for besides label map and JSON
    """
    if not json_path(result).is_file():
        return UNFINISHED
    try:
        stats = read_json(json_path(result))
        if not isinstance(stats, dict):
            return DAMAGED[0]
        if "files" not in stats:
            return "of an earlier version, whose JSON does not say enough"
        if (made := stats["versions"]["uniseg"]) != __version__:
            return f"made by uniseg {made}"
        if (reason := _other_settings(stats, asked)) is not None:
            return reason
        listed = _listed(result, stats)
        for kind, paths in outputs.files(result, asked.classes).items():
            if not set(paths) <= listed:
                return f"without {kind}"
        if stats["input_file"] is None or stats["input_file"] != identity(ct):
            return "of another CT"
        return None if stats["files"] == digests(_paths(result, stats), result.parent) else DAMAGED[1]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return DAMAGED[0]
    except OSError:                                        # of the CT: the segmentation will say what is wrong with it
        return DAMAGED[1]


def _other_settings(stats: Mapping[str, Any], asked: Asked) -> str | None:
    """The reason where weights, classes or settings differ, else None."""
    if stats["weights"]["sha256"] != asked.weights:
        return "made with other weights"
    if list(stats["classes"]) != list(asked.classes):
        return "made with other classes"
    for name, wanted in asked.settings.items():
        if name not in stats["settings"]:
            return "of an earlier version, whose JSON does not say enough"
        made = stats["settings"][name]
        if name == "threshold":
            made, wanted = _of_each_class(made, asked.classes), _of_each_class(wanted, asked.classes)
        if made != wanted:
            if name == "precision":
                return f"made in {made}, not {wanted} (--precision {made} keeps them)"
            words = name.replace("postprocess", "post-processing").replace("numbers", "label numbering")
            words = words.replace("_", " ")
            if isinstance(wanted, bool) and isinstance(made, bool):
                return f"made {'without' if wanted else 'with'} {words}"
            return f"made with another {words}"
    return None


def _of_each_class(threshold: Any, classes: Iterable[str]) -> list[Any]:
    """The threshold of each class; one that a dict does not name has 0.5."""
    return [threshold.get(name, 0.5) if isinstance(threshold, Mapping) else threshold for name in classes]


# -------------------------------------------------------------------------------------------------- what the JSON holds

def identity(ct: object) -> dict[str, Any] | None:
    """{"bytes", "sha256"} of the file of a CT, or of the two of a .hdr/.img pair; None for an image in memory.

    Raises OSError for a file that cannot be read.
    """
    if not isinstance(ct, (str, Path)) or not Path(ct).is_file():
        return None
    files = [Path(ct)]
    if _half_of_a_pair(files[0]):
        base = files[0].name.partition(".")[0]
        files = sorted(f for f in files[0].parent.iterdir() if f.name.partition(".")[0] == base and _half_of_a_pair(f))
    return {"bytes": sum(f.stat().st_size for f in files), "sha256": "+".join(map(file_sha256, files))}


def _half_of_a_pair(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".hdr", ".img"))


def stamp(ct: object) -> tuple[int, int] | None:
    """(bytes, time of the last change) of the file of a CT; None for an image in memory and for what is no file."""
    return file_stamp(ct) if isinstance(ct, (str, Path)) else None


def digests(files: Iterable[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """{name relative to the folder: its "bytes" and "sha256"}; a file that is not there has 0 bytes and no sha256."""
    found = {}
    for file in files:
        there = file.is_file()
        found[_relative(file, folder)] = {"bytes": file.stat().st_size if there else 0,
                                          "sha256": file_sha256(file) if there else None}
    return found


def _relative(file: Path, folder: Path) -> str:
    """The name of a file as seen from a folder, so that both can be moved together."""
    return Path(os.path.relpath(file, folder)).as_posix()


def _paths(result: Path, stats: Mapping[str, Any]) -> list[Path]:
    """All files that the JSON of a result names, and the label map, which it has to name."""
    named = [result.parent / name for name in stats["files"]]
    return named if result.name in stats["files"] else [result, *named]


def _listed(result: Path, stats: Mapping[str, Any]) -> set[Path]:
    """The files that the JSON of a result names beside its label map, but none that has another file's name."""
    return {path for name in stats.get("files", {}) if belongs_to(path := result.parent / name, result)}


def listed_masks(folder: Path) -> set[str] | None:
    """The file names of the masks in the folder of a result that its JSON lists; None where no JSON says that."""
    try:
        stats = read_json(json_path(folder))
        listed = {path.name for path in _listed(folder, stats) if path.parent == masks_folder(folder)}
        return listed if "files" in stats else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def withdraw(result: Path) -> None:
    """Begin to replace a result: its JSON goes first, so that nothing takes for complete what is half replaced.

    The other files that the JSON names go next, or masks of other classes would stay beside the new label map. A file
    that was changed since is the user's and stays.
    """
    path = json_path(result)
    try:
        stats = read_json(path)
        others = [(path, stats["files"][_relative(path, result.parent)]) for path in _listed(result, stats)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        others = []
    if path.exists():
        path.unlink()
        sync_folder(path.parent)
    for path, written in others:
        if path.is_file() and digests([path], result.parent)[_relative(path, result.parent)] == written:
            path.unlink()
