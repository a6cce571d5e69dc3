"""JSON files that somebody else may have written: one reader that refuses what Python's `json` takes in silence.

Python keeps the last of two entries with one key, accepts NaN, waits forever on a pipe, and names no file in its
errors. Here every fault is one line, `<path>: <what is wrong>. <What to do>.`
"""

import json
import math
import stat
from pathlib import Path
from typing import Any

from .files import FileError, one_line

LARGEST_BYTES = 32 << 20          # the scores of thousands of cases; Python needs up to 20 times as much memory for it


class _BadContent(ValueError):
    """JSON by its form, but ambiguous or without meaning: the text says what is wrong and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def read_json(path: str | Path, error: type[ValueError] = FileError, remedy: str = "Mend it") -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    error:  the exception that is raised, with one line for the user
    remedy: what to do about a file that is no JSON

    Refused are what is no regular file, more than LARGEST_BYTES, other encodings, a key that stands twice in one
    object, numbers that are not finite, and lists within lists beyond Python's limit of recursion.
    """
    text = _text(Path(path), error)
    try:
        return parse_json(text)
    except json.JSONDecodeError as fault:
        what = f"not JSON (line {fault.lineno}, column {fault.colno}: {fault.msg})"
    except _BadContent as fault:
        what, remedy = fault.what, fault.remedy
    except RecursionError:
        what = "lists or objects within each other too many times"
    except ValueError as fault:                               # an integer of thousands of digits
        what = f"not JSON ({fault})"
    except MemoryError:
        what = "too large for the memory"
    raise error(one_line(path, what, remedy)) from None


def parse_json(text: str) -> Any:
    """The content of JSON within another file, as strict as `read_json`. Raises ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)


def _text(path: Path, error: type[ValueError]) -> str:
    """The text of a file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise error(one_line(path, what, "Give a JSON file"))
        if status.st_size > LARGEST_BYTES:
            raise error(one_line(path, f"{status.st_size:,} bytes, more than the {LARGEST_BYTES:,} of a JSON file",
                                 "Give another file"))
        with open(path, "rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as fault:                                  # missing, unreadable, a loop of links
        what = "no such file" if isinstance(fault, FileNotFoundError) else f"cannot be read: {fault.strerror or fault}"
        raise error(one_line(path, what, "Check the path and its permissions")) from None
    return _decoded(path, data, error)


def _decoded(path: Path, data: bytes, error: type[ValueError]) -> str:
    """The bytes of a file as text."""
    if not data.strip():
        raise error(one_line(path, "empty file", "Copy it again from its source"))
    if data.startswith(b"version https://git-lfs"):
        raise error(one_line(path, "git-lfs pointer, not the file itself", "Run git lfs pull"))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise error(one_line(path, "text in UTF-16 or UTF-32, and JSON is UTF-8", "Save it as UTF-8"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        what = f"not UTF-8 (byte 0x{data[fault.start]:02x} in line {line}; Latin-1?)"
        raise error(one_line(path, what, "Save it as UTF-8")) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Refuses a key that stands twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _BadContent(f"the key {key[:60]!r} stands twice in one object", "Keep one of them")
        content[key] = value
    return content


def _refuse_constant(name: str) -> float:
    raise _BadContent(f"{name} is not a number of JSON", "Put null or a number there")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text[:30])
