"""The names and colours of labels inside a NIfTI file: a header extension, as TotalSegmentator writes and reads it.

It is XML in the form of Caret, the first program that put a table of labels there. nibabel gives it by
`image.header.extensions[0].get_content()`. Two lines of metadata say which label numbers these are and which values
hold both sides of an organ, so that a map whose JSON is lost can still be read for what it is.

Reading trusts nothing: no XML parser, so no entities; a table is at most a megabyte. Read imaging/nifti.py first.
"""

import json
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import NamedTuple

from ..imaging.byte_stream import VolumeError, refuse
from ..imaging.nifti import read_extensions
from ..machine.json_files import parse_json
from .labels import LabelRow
from .numbers import TABLE_2

MOST_BYTES = 1 << 20
NUMBERS, PAIRS = "uniseg numbers", "uniseg pairs"       # names of the metadata
DATE = "2013-07-14T05:45:09"                             # a constant: equal results are equal byte for byte
DESCRIPTION = re.compile(rb"uniseg \S+, numbers (\S{1,40})\Z")
REMEDY = "Segment the CT again, or write the map without its header extension and say what its numbers mean"


class LabelTable(NamedTuple):
    """What a label map says about its own values."""

    names: dict[int, str]                # as written
    pairs: dict[int, tuple[str, ...]]    # the classes of values that hold two; of uniseg's maps only
    numbers: str                         # the numbering (numbers.py); "" where uniseg did not write the map

    @property
    def is_ours(self) -> bool:
        """Whether the names are exactly those of classes, as uniseg writes them."""
        return bool(self.numbers)


# -------------------------------------------------------------------------------------------------------------- writing

def to_xml(rows: Sequence[LabelRow], numbering: str = TABLE_2) -> bytes:
    """The content of the header extension for these rows."""
    labels = "\n".join('<Label Key="{}" Red="{}" Green="{}" Blue="{}" Alpha="1">{}</Label>'.format(
        row.value, *(f"{part / 255:.6g}" for part in row.color), _text(row.name)) for row in rows)
    pairs = {str(row.value): row.classes for row in rows if len(row.classes) > 1}
    facts = {NUMBERS: numbering, **({PAIRS: json.dumps(pairs)} if pairs else {})}
    metadata = "".join(f"<MD><Name>{_text(name)}</Name><Value>{_text(value)}</Value></MD>"
                       for name, value in facts.items())
    return ('<?xml version="1.0" encoding="UTF-8"?> <CaretExtension> '
            f'<Date>{_text(DATE)}</Date> <VolumeInformation Index="0"> <LabelTable>\n{labels}\n</LabelTable> '
            f"<MetaData>{metadata}</MetaData> <StudyMetaDataLinkSet></StudyMetaDataLinkSet> "
            f"<VolumeType>{_text('Label')}</VolumeType> </VolumeInformation></CaretExtension>\n").encode()


def _text(text: str) -> str:
    """Text as XML that nothing in it can end: "]]>" is split over two sections."""
    return "<![CDATA[" + "".join(c for c in text if c.isprintable()).replace("]]>", "]]]]><![CDATA[>") + "]]>"


def description(version: str, numbering: str) -> str:
    """The "descrip" of a label map's header, which most programs keep where they drop the extension."""
    return f"uniseg {version}" + ("" if numbering == TABLE_2 else f", numbers {numbering}")


# -------------------------------------------------------------------------------------------------------------- reading

def read_label_table(path: str | Path) -> LabelTable | None:
    """What a label map says about its values; None where it says nothing, or is no file that could be read.

    A map that lost its table but says in its description that it has the numbers of others gives these with no names.
    Raises VolumeError for a table that contradicts itself.
    """
    try:
        header, extensions = read_extensions(path)
    except VolumeError:
        return None                        # whoever reads the voxels says what is wrong with the file
    for content in extensions:
        if len(content) <= MOST_BYTES and b"<LabelTable" in content:
            return parse(content, path)
    stated = DESCRIPTION.match(bytes(header["descrip"].item()).rstrip(b"\0"))
    return LabelTable({}, {}, stated[1].decode("ascii", "replace")) if stated else None


def parse(content: bytes, path: str | Path) -> LabelTable:
    """The table in the content of an extension. Raises VolumeError for one that contradicts itself."""
    text = content.decode("utf-8", "replace").rstrip("\0 \n")
    names: dict[int, str] = {}
    for attributes, inner in re.findall(r"<Label\s([^<>]*)>(.*?)</Label>", text, re.DOTALL):
        key = re.search(r'\bKey\s*=\s*"\s*(\d{1,9})\s*"', attributes)
        if key is None:
            refuse(path, "the label table in its header has an entry without a number", REMEDY)
        value, name = int(key[1]), _plain(inner)
        if names.setdefault(value, name) != name:
            refuse(path, f"the label table in its header gives {value} two names", REMEDY)
    facts = {_plain(name): _plain(value) for name, value in re.findall(
        r"<MD>\s*<Name>(.*?)</Name>\s*<Value>(.*?)</Value>\s*</MD>", text, re.DOTALL)}
    return LabelTable(names, _pairs(facts.get(PAIRS, "{}"), path), facts.get(NUMBERS, ""))


def _pairs(text: str, path: str | Path) -> dict[int, tuple[str, ...]]:
    try:
        return {int(value): tuple(map(str, classes)) for value, classes in parse_json(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        refuse(path, "the label table in its header says nothing sensible about pairs", REMEDY)


def _plain(inner: str) -> str:
    """The text of an element: CDATA sections as they are, the five entities of XML elsewhere."""
    parts = re.split(r"<!\[CDATA\[(.*?)\]\]>", inner, flags=re.DOTALL)
    return "".join(part if k % 2 else unescape(part) for k, part in enumerate(parts)).strip()
