"""How publishers ship the datasets of Table 1: folder names, file names, editions (Section 4.1.1).

    LiTS17/Training Batch 1/volume-12.nii, segmentation-12.nii      -> case volume-12 of LiTS

There is one row per published edition. What its label values mean is in taxonomy.DATASETS, under the same name.
`python -m uniseg layouts` prints the table, which docs/datasets.md shows too. Read taxonomy.py first, published.py
next: it makes a Dataset of such a folder.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import taxonomy
from ..imaging.file_names import bare, is_nifti
from ..machine.command_line import Parser
from ..machine.console import say

# Who says how a dataset is laid out.
PUBLISHER = "publisher"      # the publisher's own page, README or file listing
USERS = "users"              # code or documentation of people who read the files; the publisher's page was not readable
UNVERIFIED = "unverified"    # nobody: the file names as NIfTI are a guess; if it is wrong, the folder is refused


@dataclass(frozen=True)
class Layout:
    """One published edition of a dataset.

    Templates are paths below the dataset's folder, at any depth, without .nii or .nii.gz. {id} stands for the digits
    that an image and its label share, * for any name. Where a case has labels of several templates, the first
    template is taken.
    """

    name: str                # the same as in taxonomy.DATASETS
    folders: tuple[str, ...]  # folder names that stand for it; case, punctuation and a leading "04_" do not matter
    images: tuple[str, ...]  # templates
    labels: tuple[str, ...]  # templates; one that ends in /* is a folder of binary masks, one file per structure
    source: str              # where the layout and the label values come from
    checked: str             # who says so: PUBLISHER, USERS or UNVERIFIED
    ships_json: bool = False  # ships a dataset.json whose names or case list are not sufficient; meanings come from
                              # taxonomy.DATASETS
    spare: str = ""          # "images" or "labels": some are published without their partner and left out
    ct_below: int = 0        # images with this id or a larger one are MR (0: all are CT)
    partial_from: int = 0    # from this id on, only taxonomy's `partial` classes are annotated (0: no such cases)
    note: str = ""


class Paired(NamedTuple):
    """The files of one published folder, by the number in their names. A correct folder has one path per number."""

    images: dict[int, list[str]]
    labels: dict[int, list[str]]
    ids: dict[int, str]      # case ids


def _msd(task: int, prefix: str, name: str) -> Layout:
    folder = f"Task{task:02d}_{name}"
    images, labels = f"imagesTr/{prefix}_{{id}}", f"labelsTr/{prefix}_{{id}}"
    return Layout(f"MSD Task{task:02d} {name}", (folder,), (images,), (labels,), "http://medicaldecathlon.com", USERS,
                  ships_json=True)


TORCH_EM = "https://github.com/constantinpape/torch-em/tree/main/torch_em/data/datasets/medical"
_BTCV = ("BTCV", "Synapse", "BCV-Abdomen", "RawData", "Multi-Atlas_Labeling")
_PANCREAS = ("Pancreas-CT", "TCIA_Pancreas-CT", "NIH-Pancreas")
LAYOUTS = (
    Layout("BTCV", _BTCV, ("img/img{id}",), ("label_btcv_multiorgan/label{id}",),
           "https://zenodo.org/records/1169361", USERS, spare="images", partial_from=60,
           note="labels of Zenodo 1169361, images of Synapse; may be incomplete outside the boxes of its cropping.csv"),
    Layout("BTCV-Synapse", _BTCV, ("img/img{id}",), ("label/label{id}",),
           "https://www.synapse.org/#!Synapse:syn3193805/wiki/217789", USERS, spare="images",
           note="the challenge's own labels: no duodenum"),
    Layout("Pancreas-CT", _PANCREAS, ("PANCREAS_{id}",),
           ("label_tcia_multiorgan/label{id}", "multiorgan_label/label{id}"),
           "https://zenodo.org/records/1169361", USERS, spare="images",
           note="labels of Zenodo 1169361; images are published as DICOM; see BTCV on cropping.csv"),
    Layout("Pancreas-CT-NIH", _PANCREAS, ("PANCREAS_{id}",), ("TCIA_pancreas_labels-02-05-2017/label{id}",),
           "https://www.cancerimagingarchive.net/collection/pancreas-ct/", USERS, spare="images",
           note="the publisher's labels: the pancreas alone, as value 1; images are published as DICOM"),
    Layout("CHAOS", ("CHAOS",), ("ct/img/{id}_image",), ("ct/liver_label/{id}_segmentation",),
           "https://chaos.grand-challenge.org/Data/", UNVERIFIED,
           note="published as DICOM and PNG; names as in the paper's list of files"),
    Layout("LiTS", ("LiTS", "LiTS17", "LiTS2017"), ("volume-{id}",), ("segmentation-{id}",),
           "https://competitions.codalab.org/competitions/17094", USERS),
    Layout("KiTS", ("KiTS", "KiTS21", "KiTS2021"), ("case_{id}/imaging",),
           ("case_{id}/aggregated_OR_seg", "case_{id}/aggregated_MAJ_seg"),
           "https://github.com/neheller/kits21", PUBLISHER,
           note="the majority's only where the union is missing; the challenge scored against the majority's"),
    Layout("KiTS19", ("KiTS", "KiTS19", "KiTS2019"), ("case_{id}/imaging",), ("case_{id}/segmentation",),
           "https://github.com/neheller/kits19", PUBLISHER, spare="images",
           note="cysts are labelled kidney; files from before 2019-04-15 are mirrored (its changelog)"),
    Layout("KiTS23", ("KiTS23", "KiTS2023"), ("case_{id}/imaging",), ("case_{id}/segmentation",),
           "https://github.com/neheller/kits23", PUBLISHER),
    Layout("3D-IRCADb", ("3D-IRCADb", "3D-IRCADb-01", "3Dircadb1"), (), (),
           "https://www.ircad.fr/research/data-sets/liver-segmentation-3d-ircadb-01/", UNVERIFIED,
           note="published as DICOM: convert it and describe it in a dataset.json"),
    Layout("WORD", ("WORD", "WORD-V0.1.0", "WORD-V0.1.0-Admin"), ("imagesTr/word_{id}", "imagesVal/word_{id}"),
           ("labelsTr/word_{id}", "labelsVal/word_{id}"),
           "https://github.com/openmedlab/Awesome-Medical-Dataset/blob/main/resources/WORD.md", USERS, ships_json=True),
    Layout("AbdomenCT-1K", ("AbdomenCT-1K",), ("Case_{id}_0000",), ("Case_{id}",),
           f"{TORCH_EM}/abdomenct_1k.py", USERS, spare="images"),
    Layout("AMOS22", ("AMOS", "AMOS22", "AMOS2022"), ("imagesTr/amos_{id}", "imagesVa/amos_{id}"),
           ("labelsTr/amos_{id}", "labelsVa/amos_{id}"), "https://zenodo.org/records/7262581", PUBLISHER,
           ships_json=True, ct_below=500, note="ids from 500 on are MR"),
    _msd(3, "liver", "Liver"), _msd(6, "lung", "Lung"), _msd(7, "pancreas", "Pancreas"),
    _msd(8, "hepaticvessel", "HepaticVessel"), _msd(9, "spleen", "Spleen"), _msd(10, "colon", "Colon"),
    Layout("CT-ORG", ("CT-ORG", "CTORG"), ("volume-{id}",), ("labels-{id}",),
           "https://www.cancerimagingarchive.net/collection/ct-org/", PUBLISHER),
    Layout("AbdomenCT-12organ", ("AbdomenCT-12organ",), ("Organ12_{id}_0000",), ("Organ12_{id}",),
           "https://github.com/JunMa11/AbdomenCT-1K", UNVERIFIED),
    Layout("FLARE22", ("FLARE22", "FLARE2022", "FLARE22Train"), ("FLARE22_Tr_{id}_0000",), ("FLARE22_Tr_{id}",),
           "https://github.com/JunMa11/FLARE/tree/main/FLARE22", PUBLISHER, note="file names from users"),
    Layout("TotalSegmentator", ("TotalSegmentator", "Totalsegmentator_dataset", "Totalsegmentator_dataset_v2",
                                "Totalsegmentator_dataset_v201"), ("s{id}/ct",), ("s{id}/segmentations/*",),
           "https://github.com/wasserth/TotalSegmentator/blob/master/resources/convert_dataset_to_nnunet.py", PUBLISHER,
           note="its colon holds the rectum; its femur is no femoral head and is dropped"),
    Layout("AbdomenAtlas", ("AbdomenAtlas", "AbdomenAtlas1.0Mini", "AbdomenAtlas1.1Mini"), ("BDMAP_{id}/ct",),
           ("BDMAP_{id}/segmentations/*",), f"{TORCH_EM}/abdomen_atlas.py", USERS, spare="labels",
           note="from case 5196 on published without images; femur is dropped"),
)
NOT_CT = ("Task01_BrainTumour", "Task02_Heart", "Task04_Hippocampus", "Task05_Prostate")   # the Decathlon's MR tasks

# Classes that consist of several mask files. They are annotated in a case only where all these files exist.
MASK_PARTS = {
    "right_lung": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "left_lung": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "kidney_cyst": ("kidney_cyst_right", "kidney_cyst_left"),
}
# Cysts belong to the mask of their kidney too.
MASK_LESIONS = {"right_kidney": "kidney_cyst_right", "left_kidney": "kidney_cyst_left"}
# The mask files hold prostates only. An empty one does not rule out a uterus: the class then counts as not annotated.
ABSENT_IS_UNKNOWN = ("prostate_or_uterus",)


# ---------------------------------------------------------------------------------------------------- folders and files

def plain(name: str) -> str:
    """A folder's name without case, punctuation and a leading number.

    >>> plain("04_LiTS"), plain("WORD-V0.1.0"), plain("3D-IRCADb")
    ('lits', 'wordv010', '3dircadb')
    """
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^\d+_", "", name.lower()))


def known_as(name: str) -> tuple[Layout, ...]:
    """The Layouts that a folder of this name may have; () where no published dataset has this name."""
    return tuple(row for row in LAYOUTS if plain(name) in {plain(n) for n in (row.name, *row.folders)})


def is_mr(name: str) -> bool:
    """True for a folder that holds an MR task of the Medical Segmentation Decathlon."""
    return plain(name) in {plain(n) for n in NOT_CT}


def files_below(folder: Path) -> Iterator[str]:
    """Yield the NIfTI files below a folder as relative posix paths, sorted within each folder.

    Hidden files are left out.

    Links to folders are followed, so that files outside the folder are seen, and refused later. Each folder is
    visited once.
    """
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        base = os.path.relpath(current, folder)
        for name in sorted(names):
            if is_nifti(name) and not name.startswith("."):
                yield name if base == "." else f"{base}/{name}".replace(os.sep, "/")


def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template."""
    body = re.escape(template).replace(r"\{id\}", r"(?P<id>\d+)").replace(r"\*", r"[^/]+")
    return re.compile(rf"(?:.*/)?{body}(?i:\.nii(?:\.gz)?)")


def _matches(paths: Sequence[str], templates: Iterable[str]) -> Iterator[tuple[int, str, int, str]]:
    """Yield (number of the id, case id, rank of the template, path) for every path that fits a template.

    The case id is the part of the path that holds the digits. For mask files the path is the folder that holds them.
    """
    for rank, template in enumerate(templates):
        pattern = _pattern(template)
        for path in paths:
            if match := pattern.fullmatch(path):
                part = path[path.rfind("/", 0, match.start("id")) + 1:].split("/")[0]
                case = bare(part).removesuffix("_0000")
                yield int(match["id"]), case, rank, path.rpartition("/")[0] if template.endswith("/*") else path


def pair(layout: Layout, paths: Sequence[str]) -> Paired:
    """The images and labels among the paths of `files_below`. The caller refuses numbers with more than one path."""
    images: dict[int, list[str]] = {}
    labels: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    ranks: dict[int, int] = {}
    for number, case, _, path in _matches(paths, layout.images):
        images.setdefault(number, []).append(path)
        ids[number] = case
    for number, _, rank, path in _matches(paths, layout.labels):                  # the preferred template comes first
        if rank == ranks.setdefault(number, rank) and path not in labels.setdefault(number, []):
            labels[number].append(path)
    return Paired(images, labels, ids)


# --------------------------------------------------------------------------------------------------- folders of masks

@functools.lru_cache(maxsize=None)
def _class_of_mask(stem: str) -> str:
    """The class whose whole mask is this one file, or "". Lesions and merged pairs count only by MASK_PARTS."""
    try:
        names = taxonomy.resolve(stem)
    except ValueError:
        return ""
    return names[0] if len(names) == 1 and taxonomy.BY_NAME[names[0]].kind != taxonomy.TUMOUR else ""


def mask_files(folder: Path, more: Collection[str] = ()) -> dict[str, tuple[Path, ...]]:
    """{class name: paths of its mask files} of a folder of binary masks, in the order of Table 2, other classes last.

    more: names of classes beyond Table 2; the file of such a class has its name

    A class is left out where one of its files is missing: the folder then does not tell whether the class is absent.
    Files that belong to no class are left out too.
    """
    files = {bare(name): name for name in files_below(folder) if "/" not in name}
    stems: dict[str, tuple[str, ...]] = {}
    for stem in files:
        same_name = taxonomy.normalise_name(stem)
        if name := _class_of_mask(stem) or (same_name if same_name in more else ""):
            stems[name] = stems.get(name, ()) + (stem,)
    stems.update({name: parts for name, parts in MASK_PARTS.items() if set(parts) <= set(files)})
    for organ, lesion in MASK_LESIONS.items():
        if organ in stems and lesion in files:
            stems[organ] += (lesion,)
    order = [*taxonomy.NAMES, *sorted(set(stems) - set(taxonomy.NAMES))]
    return {name: tuple(folder / files[stem] for stem in stems[name]) for name in order if name in stems}


# ------------------------------------------------------------------------------------------------------------ the table

def row_of(layout: Layout) -> tuple[str, str, str, str, str, str, str, str]:
    """(dataset, volumes in Table 1, folder names, files, classes by label value, source, who checked it, note)."""
    dataset = next(d for d in taxonomy.DATASETS if d.name == layout.name)
    if layout.labels and layout.labels[0].endswith("*"):
        classes = "by file name"
    else:
        classes = ", ".join(f"{v} {taxonomy.NAMES[c - 1]}" + (" + left" if c in dataset.split else "")
                            for v, c in enumerate(dataset.transfer, start=1) if c)
    if layout.partial_from:
        partial = ", ".join(taxonomy.NAMES[c - 1] for c in dataset.partial)
        classes += f"; ids from {layout.partial_from} on only {partial}"
    files = f"{' or '.join(layout.images)}; {' or '.join(layout.labels)}" if layout.images else "dataset.json"
    volumes, folders = str(dataset.volumes or ""), ", ".join(layout.folders)
    return layout.name, volumes, folders, files, classes, layout.source, layout.checked, layout.note


def markdown() -> str:
    """The table of docs/datasets.md."""
    lines = ["| dataset | volumes in Table 1 | folder names | images; labels | label values | layout from | note |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, volumes, folders, files, classes, source, checked, note in map(row_of, LAYOUTS):
        lines.append(f"| {name} | {volumes} | {folders} | `{files}` | {classes} | [{checked}]({source}) | {note} |")
    return "\n".join(lines) + "\n"


def build_parser() -> Parser:
    """The options of `python -m uniseg layouts`."""
    parser = Parser(prog="python -m uniseg layouts", epilog="Exit code: 0.",
                    description="Print the published datasets that are recognised by their files (Table 1 and others).")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/datasets.md instead")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command `python -m uniseg layouts`; returns its exit code, 0."""
    if build_parser().parse_args(argv).markdown:
        say(markdown().removesuffix("\n"))
        return 0
    titles = ("", "volumes in Table 1", "folder names", "images; labels", "label values", "source", "checked by",
              "note")
    for row in map(row_of, LAYOUTS):
        say(row[0])
        say("".join(f"  {title:18s}  {text}\n" for title, text in zip(titles[1:], row[1:]) if text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
