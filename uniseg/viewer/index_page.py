"""index.html: a page of all cases of a folder, with thumbnails, volumes, warnings and links to their viewers.

The page is made anew from what lies in the folder, and in those below it: each result's JSON, and the thumbnail at the
head of its viewer. So it is complete after an interruption and where several runs write into one folder.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formats.labels import own_numbers
from ..imaging.file_names import RESULT, view_path
from ..machine.about import NOT_A_MEDICAL_DEVICE, __version__
from ..machine.console import printable, warn
from ..machine.files import atomic_write, file_stamp
from ..machine.json_files import read_json
from ..machine.locks import turn
from ..pictures.colors import class_color
from .page import as_json, assemble
from .view import title

INDEX = "index.html"
OURS = b'<meta name="generator" content="uniseg '
REMARKS = (f"{NOT_A_MEDICAL_DEVICE.rstrip('.')}.",
           "Cut: the class reaches the edge of the CT, so that its volume is a part.",
           "Experimental: the class scored too low to be offered; its viewer says why.")
HEAD_BYTES = 400_000          # of a viewer in which its thumbnail stands
PLAIN = frozenset((string.ascii_letters + string.digits + "-._~").encode())
THUMBNAIL = re.compile(rb'id="thumbnail">"(data:image/png;base64,[A-Za-z0-9+/=]+)"</script>')


def write_index(folder: Path) -> Path | None:
    """Write index.html for the results in a folder and below it. An index.html of somebody else stays, with a warning.

    returns: the file, or None where it was not written: without results there is nothing to show
    Raises FileError where it cannot be written.
    """
    path = folder / INDEX
    with turn(folder):                                     # the last of two runs sees what both have made
        if path.exists() and not (path.is_file() and OURS in _head(path)):
            warn(f"{path}: is no page of uniseg; it stays, and the cases of this folder get none. Rename it.")
            return None
        found = None
        while (now := _results(folder)) != found:      # where the disk knows no turns, another run may have been faster
            found = now
            if not found:
                return None
            text = index_page(folder.resolve().name, [_case(file, folder) for file in found])
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return path


def _results(folder: Path) -> dict[Path, Any]:
    """The JSON files of a folder's results in the order of their names, each with its size and time."""
    return {file: file_stamp(file) for file in sorted(folder.rglob(f"*{RESULT}.json"))}


def index_page(name: str, cases: Sequence[Mapping[str, Any]]) -> str:
    """The text of the page of a folder of that name. cases: as web/index.js reads them"""
    about = [*REMARKS, f"uniseg {__version__}."]
    return assemble("index.html", ("common.css", "index.css"), ("words.js", "index.js"),
                    {"data": as_json({"folder": printable(name), "cases": list(cases), "about": about})})


def _case(path: Path, folder: Path) -> dict[str, Any]:
    """What the page shows of one result: its JSON may be damaged, or come from somebody else.

    path: of the JSON; folder: of the page
    """
    below = path.parent.relative_to(folder)
    name = str(below / path.stem.removesuffix(RESULT))
    case: dict[str, Any] = {"case": printable(name), "view": None, "thumbnail": None, "classes": [], "absent": 0,
                            "warnings": []}
    try:
        stats = read_json(path)
        case["case"] = printable(str(below / str(stats["input"])))
        case["warnings"] = [printable(str(warning)) for warning in stats["warnings"]]
        classes, numbers = stats["classes"], own_numbers(stats["classes"])
        found = [name for name in sorted(numbers, key=lambda n: numbers[n]) if classes[name]["voxels"] > 0]
        case["classes"] = [_class(name, numbers[name], classes[name]) for name in found]
        case["absent"] = len(classes) - len(found)
        case.update(_view(path, stats, below))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        case["warnings"] = [*case["warnings"], f"{path.name}: cannot be read. Segment this CT again."]
    return case


def _class(name: str, number: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"title": title(name), "ml": float(figures["ml"]), "color": class_color(number),
            "experimental": printable(str(figures.get("experimental", ""))), "border": bool(figures["touches_border"])}


def _view(path: Path, stats: Mapping[str, Any], below: Path) -> dict[str, str]:
    """The link to the viewer of a result and its thumbnail; nothing where it has none, or not the one it was made with.

    path: of the JSON; below: its folder, as seen from that of the page
    """
    view = view_path(path.with_suffix(".nii.gz"))
    written = stats["files"].get(view.name)
    if written is None or not view.is_file() or view.stat().st_size != written["bytes"]:
        return {}
    found = THUMBNAIL.search(_head(view))
    shown = {"thumbnail": found[1].decode()} if found else {}
    return {"view": link(below / view.name), **shown}


def link(file: Path) -> str:
    """The relative address of a file (RFC 3986): in the names of file and folders all but plain characters as %XX.

    >>> link(Path("a b.html")), link(Path("s0001/javascript:x"))
    ('./a%20b.html', './s0001/javascript%3Ax')
    """
    names = ("".join(chr(byte) if byte in PLAIN else f"%{byte:02X}" for byte in os.fsencode(name))
             for name in file.parts)
    return "/".join([".", *names])


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)
