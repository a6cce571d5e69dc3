"""Which channel of a dataset's images is the CT: "channel_names" of nnU-Net v2, "modality" of the Decathlon.

    {"0": "PET", "1": "CT"}      -> channel 1, with a note
    {"0": "MRI"}                 -> refused
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dataset import DataError

KEYS = ("channel_names", "modality")
CT_WORDS = {"ct", "cta", "ctpa", "cect", "ncct", "ldct", "hrct", "tomography"}
OTHER_WORDS = {"mr", "mri", "mra", "fmri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2star", "flair", "dwi",
               "adc", "swi", "dixon", "magnetic", "pet", "suv", "spect", "us", "ultrasound", "xray", "rgb", "fdg"}


def ct_channel(content: Mapping[str, Any], path: Path, notes: list[str] | None = None) -> int:
    """The number of the channel that is the CT; 0 where the dataset.json names no channels.

    content: of the dataset.json `path`
    notes:   gets a line where something had to be chosen or assumed

    Raises DataError where no channel, or more than one, may be a CT.
    """
    key = next((key for key in KEYS if content.get(key) is not None), None)
    if key is None:
        return 0
    names = _names(content[key], key, path)
    listed = ", ".join(f"{number}: {name}" for number, name in sorted(names.items())[:5])
    cts = [number for number, name in names.items() if _is_ct(name)]
    if len(cts) > 1:
        raise DataError(f'{path}: several channels of "{key}" are CTs ({listed}). Keep one of them in the images and '
                        f'in "{key}".')
    unknown = [number for number, name in names.items() if not _words(name) & OTHER_WORDS]
    if not cts and (len(names) > 1 or not unknown):
        raise DataError(f'{path}: no channel of "{key}" is a CT ({listed}). Give CTs; if a channel is one, call it '
                        '"CT".')
    (chosen,) = cts or unknown
    if notes is not None and len(names) > 1:
        notes.append(f"{path}: channel {chosen}, {names[chosen]!r}, is used of {len(names)} ({listed})")
    elif notes is not None and not cts:
        notes.append(f"{path}: the channel {names[chosen]!r} is taken for a CT in HU")
    return chosen


def _names(given: Any, key: str, path: Path) -> dict[int, str]:
    """{number: name} of the channels: an object, a list or a single text in the file."""
    if isinstance(given, str):
        given = [given]
    pairs = list(given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ())
    good = [(int(number), name) for number, name in pairs
            if re.fullmatch(r"\d{1,4}", str(number), re.ASCII) and isinstance(name, str)]
    if not pairs or len(dict(good)) < len(pairs):
        raise DataError(f'{path}: "{key}" is not {{"0": "CT"}}: the number of each channel and its name. Mend it.')
    return dict(good)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower().replace("x-ray", "xray")))


def _is_ct(name: str) -> bool:
    """Whether the name of a channel says that it is a CT and nothing else ("PET/CT" does not say which)."""
    return bool(_words(name) & CT_WORDS) and not _words(name) & OTHER_WORDS
