"""Label numbers of others: which value the voxels of a class have in the maps of TotalSegmentator or of a dataset.

    table2              the numbers of Table 2, and 33 on for classes beyond it: the default
    totalsegmentator    TotalSegmentator v2, task "total"
    msd:Task03, lits    a dataset of Table 1: the inverse of its transfer in taxonomy.DATASETS

A class that has no number there is left out of the map, never put under a number of something similar: a lung is no
lobe, a prostate or uterus no prostate. Where a dataset gives both sides of an organ one number, so does its map. No
numpy and no torch here. Read taxonomy.py first.
"""

import difflib
import re
from collections.abc import Sequence

from .. import taxonomy
from ..taxonomy import DATASETS, Dataset

TABLE_2 = "table2"
TOTALSEGMENTATOR = "totalsegmentator"

# https://github.com/wasserth/TotalSegmentator/blob/master/totalsegmentator/map_to_binary.py, class_map["total"]. Not
# here, because what TotalSegmentator draws under the number is something else: lungs (10 to 14 are their lobes), the
# heads of the femurs (75 and 76 are whole femurs), prostate or uterus (22 is the prostate), kidney cysts (23 and 24 are
# one side each), rectum (part of its colon).
_TOTALSEGMENTATOR = {
    "spleen": 1, "right_kidney": 2, "left_kidney": 3, "gall_bladder": 4, "liver": 5, "stomach": 6, "pancreas": 7,
    "right_adrenal_gland": 8, "left_adrenal_gland": 9, "esophagus": 15, "intestine": 18, "duodenum": 19, "colon": 20,
    "bladder": 21, "aorta": 52, "postcava": 63, "portal_and_splenic_vein": 64}

# The challenge's own labels have 13 classes; the edition with a duodenum is that of Zenodo (docs/datasets.md).
_OTHER_KEYS = {"BTCV": "btcv-zenodo", "BTCV-Synapse": "btcv"}


def _key(dataset: Dataset) -> str:
    """The name of a dataset's numbers in commands and files.

    >>> [_key(dataset) for dataset in DATASETS if dataset.name in ("LiTS", "MSD Task03 Liver")]
    ['lits', 'msd:Task03']
    """
    if task := re.match(r"MSD (Task\d+)", dataset.name):
        return f"msd:{task[1]}"
    return _OTHER_KEYS.get(dataset.name, dataset.name.lower())


_DATASETS = {_key(dataset): dataset for dataset in DATASETS if dataset.transfer}
NUMBERINGS = (TABLE_2, TOTALSEGMENTATOR, *_DATASETS)


def find_numbering(name: str) -> str:
    """The one of NUMBERINGS that `name` means. Raises ValueError for an unknown name.

    >>> find_numbering("MSD:task03_Liver"), find_numbering("AMOS22"), find_numbering("table-2")
    ('msd:Task03', 'amos22', 'table2')
    """
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "", text.lower())

    known = {plain(key): key for key in NUMBERINGS}
    task = re.match(r"(msd)?(task\d\d)", plain(name))
    if key := known.get(plain(name)) or (known.get(f"msd{task[2]}") if task else None):
        return key
    near = difflib.get_close_matches(plain(name), known, n=2)
    hint = f"Did you mean {' or '.join(known[n] for n in near)}?" if near else f"Known are {', '.join(NUMBERINGS)}."
    raise ValueError(f"no label numbers are called {name!r}. {hint}")


def numbers_in(numbering: str, classes: Sequence[str]) -> dict[str, int | None]:
    """{class: its value in a label map, None where it has none}, in the order of `classes`.

    numbering: one of NUMBERINGS
    classes:   all classes of a model, in its order; classes beyond Table 2 have a number in "table2" only

    >>> numbers_in("kits", ["right_kidney", "left_kidney", "kidney_tumor", "liver"])
    {'right_kidney': 1, 'left_kidney': 1, 'kidney_tumor': 2, 'liver': None}
    """
    if numbering == TABLE_2:
        return dict(taxonomy.label_values(classes))
    values = _TOTALSEGMENTATOR if numbering == TOTALSEGMENTATOR else _inverse(_DATASETS[numbering])
    return {name: values.get(name) for name in classes}


def _inverse(dataset: Dataset) -> dict[str, int]:
    """{class: value} of a dataset's label maps. A value that covers both sides belongs to both classes."""
    values: dict[str, int] = {}
    for value, index in enumerate(dataset.transfer, start=1):
        if index:
            row = taxonomy.CLASSES[index - 1]
            values[row.name] = value
            if index in dataset.split:
                values[row.partner] = value
    return values


def classes_of_values(numbers: dict[str, int | None]) -> dict[int, tuple[str, ...]]:
    """{value: the classes that have it}, ascending; classes without a number are left out.

    >>> classes_of_values({"liver": 2, "right_kidney": 1, "left_kidney": 1, "aorta": None})
    {1: ('right_kidney', 'left_kidney'), 2: ('liver',)}
    """
    values = sorted({value for value in numbers.values() if value is not None})
    return {value: tuple(name for name, own in numbers.items() if own == value) for value in values}
