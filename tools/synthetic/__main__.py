"""Write a dataset of synthetic CTs that `uniseg.train` reads as it is.

    python -m tools.synthetic LABELMAPS --out ROOT/Synthetic --cases N

reads LABELMAPS/names.json and LABELMAPS/*.nii.gz, and writes ROOT/Synthetic/imagesTr/<map>_<seed>.nii.gz, labelsTr/...
and dataset.json. Run it in a checkout of the repository (docs/synthetic.md).

Case n of a run is drawn from map n modulo the number of maps with the seed --seed + n, so more cases can be added
later. With --heads the CTs show heads, drawn without the maps. They annotate the same classes, and all of these are
absent. With --mix organs come from other maps of the folder, too. Existing cases are kept. A file appears complete or
not at all: the image before its label, dataset.json last.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniseg import NOT_A_MEDICAL_DEVICE, taxonomy
from uniseg.imaging.file_names import SUFFIXES, bare
from uniseg.imaging.merging import merge_masks
from uniseg.imaging.volume import read_label_map, write_volume
from uniseg.machine.console import fail, say
from uniseg.machine.files import atomic_write

from . import VIEWS, draw, tissues
from .head import draw_head
from .lesions import KINDS

Case = tuple[NDArray[np.int16], NDArray[np.uint8], NDArray, str]     # HU, label map, affine, description


def read_maps(folder: Path) -> tuple[dict[str, Path], dict[int, str]]:
    """({name of a map: its path}, {id: structure}) of a folder of label maps with its names.json. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Give one that holds label maps and names.json.")
    try:
        content = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        names = {int(number): structure for number, structure in content.items()}
        for structure in names.values():
            tissues.tissue_of(structure)
    except FileNotFoundError:
        raise ValueError(f'{folder}: no names.json. Write one: {{"1": "adrenal_gland_left", ...}}.') from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'names.json'}: cannot be read ({error}). "
                         'It has to be {"number": "structure"}.') from None
    maps = {bare(path.name): path for path in sorted(folder.iterdir())
            if path.name.endswith(SUFFIXES) and not path.name.startswith(".")}
    if not maps:
        raise ValueError(f"{folder}: no label map (.nii.gz). Give a folder that holds some.")
    return maps, names


def read_map(path: Path, names: dict[int, str]) -> tuple[NDArray, NDArray]:
    """A label map in RAS+ for `draw`: labels (D, H, W), affine (4, 4). Raises ValueError for values without a name."""
    volume = read_label_map(path)
    present = np.flatnonzero(np.bincount(volume.array.ravel(order="K"))) if volume.array.min() >= 0 \
        else np.unique(volume.array)
    unknown = sorted(set(present.tolist()) - set(names) - {0})
    if unknown:
        raise ValueError(f"{path}: values {unknown[:5]} are not in names.json. Add them there.")
    return volume.array, volume.affine


def annotated(maps: dict[str, Path], names: dict[int, str]) -> list[str]:
    """The classes that every case of the dataset annotates, in the order of Table 2. Reads all maps, one at a time."""
    classes = [*tissues.CLASS_PARTS, *KINDS]
    ids = {structure: number for number, structure in names.items()}
    for name in tissues.ABSENT_IS_UNKNOWN:
        parts = [ids[p] for p in tissues.CLASS_PARTS[name] if p in ids]
        if not all(np.isin(read_map(path, names)[0], parts).any() for path in maps.values()):
            classes.remove(name)
    return sorted(classes, key=taxonomy.NAMES.index)


def label_map(masks, classes):
    """uint8 label map with value n for the n-th class; tumours cover their organs, as in published label maps."""
    shape = next(iter(masks.values())).shape
    return merge_masks(classes, range(1, len(classes) + 1), lambda k: masks[classes[k]], shape)


def draw_case(path: Path, names: dict[int, str], seed: int, spacing_mm: float, classes: Sequence[str],
              phase: str | None = None, view: str | None = None, donors: Sequence[Path] = (),
              as_in_clinics: bool = False) -> Case:
    """A torso drawn from the label map in a file; donors: maps, one of which lends its organs. Raises ValueError."""
    labels, affine = read_map(path, names)
    others = [other for other in donors if other != path]
    donor = [read_map(others[seed % len(others)], names)] if others else []
    try:
        hu, masks, affine, drawn = draw(labels, affine, names, seed, spacing_mm, phase, view, donors=donor,
                                        as_in_clinics=as_in_clinics)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return hu, label_map(masks, classes), affine, f"{drawn['phase']}, {drawn['view']}"


def draw_empty(seed: int, spacing_mm: float) -> Case:
    """A head: every class is annotated and absent, so the label map is 0."""
    hu, affine = draw_head(seed, spacing_mm)
    return hu, np.zeros(hu.shape, np.uint8), affine, "no class"


def write_dataset(maps: dict[str, Path], names: dict[int, str], out: Path, cases: int, spacing_mm: float, seed: int,
                  heads: bool = False, phase: str | None = None, view: str | None = None, mix: bool = False,
                  as_in_clinics: bool = False, jobs: int = 1) -> None:
    """Write the missing cases, then dataset.json with all cases in the folder. Raises ValueError, OSError.

    mix: exchange organs between the maps; jobs: processes that draw; the other arguments are those of `draw`
    """
    classes = annotated(maps, names)
    settings = {"spacing_mm": spacing_mm, "classes": classes}
    made_with = out / "synthetic.json"
    if made_with.is_file() and json.loads(made_with.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{made_with}: the cases there were drawn with another spacing or other classes. "
                         "Give another --out.")
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with atomic_write(made_with) as temporary:
        temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    donors = list(maps.values()) if mix else []
    todo = []
    for n in range(cases):
        name = "head" if heads else list(maps)[n % len(maps)]
        case = f"{name}_{seed + n:05d}"
        if not all((out / folder / f"{case}.nii.gz").is_file() for folder in ("imagesTr", "labelsTr")):
            drawn = functools.partial(draw_empty, seed + n, spacing_mm) if heads else functools.partial(
                draw_case, maps[name], names, seed + n, spacing_mm, classes, phase, view, donors, as_in_clinics)
            todo.append((out, case, drawn))
    if jobs == 1:
        for job in todo:
            say(write_case(*job))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            for line in pool.map(write_case, *zip(*todo)):
                say(line)
    write_listing(out, classes)


def write_case(out: Path, case: str, drawn: Callable[[], Case]) -> str:
    """Draw one case and write its two files, the image first; returns a line about it. Raises ValueError, OSError."""
    start = time.monotonic()
    hu, labels, affine, description = drawn()
    write_volume(out / "imagesTr" / f"{case}.nii.gz", hu, affine)
    write_volume(out / "labelsTr" / f"{case}.nii.gz", labels, affine)
    return f"{case}: {description}, {' x '.join(map(str, hu.shape))} voxels, {time.monotonic() - start:.1f} s"


def write_listing(out: Path, classes: Sequence[str]) -> None:
    """Write dataset.json, in the form of the Medical Segmentation Decathlon, with all complete cases in the folder."""
    done = sorted(label.name for label in (out / "labelsTr").glob("*.nii.gz")
                  if not label.name.startswith(".") and (out / "imagesTr" / label.name).is_file())
    content = {"name": out.resolve().name, "description": "synthetic CT drawn by tools.synthetic; lesions are drawings",
               "labels": {"0": "background", **{str(value): name for value, name in enumerate(classes, start=1)}},
               "modality": {"0": "CT"}, "numTraining": len(done),
               "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in done]}
    with atomic_write(out / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.synthetic", epilog=NOT_A_MEDICAL_DEVICE,
        description="Draw synthetic CTs with masks from label maps of real anatomy (docs/synthetic.md).")
    parser.add_argument("maps", type=Path, metavar="LABELMAPS",
                        help="folder with label maps of TotalSegmentator's structures and names.json")
    parser.add_argument("--out", type=Path, required=True, metavar="ROOT",
                        help="folder of the dataset; its name becomes the name of the dataset")
    parser.add_argument("--cases", type=int, default=8, metavar="N",
                        help="cases in all; existing ones are kept (default %(default)s)")
    parser.add_argument("--spacing", type=float, default=2.0, metavar="MM", help="voxel size (default %(default)s)")
    parser.add_argument("--heads", action="store_true",
                        help="draw heads, in which the classes of the maps are absent: "
                             "they teach a model to find nothing where there is nothing")
    parser.add_argument("--phase", choices=tissues.PHASES, help="contrast phase of every torso (default: random)")
    parser.add_argument("--view", choices=VIEWS, help="field of view of every torso (default: random)")
    parser.add_argument("--mix", action="store_true",
                        help="exchange organs with those of the other maps, remove some, put some lower")
    parser.add_argument("--as-in-clinics", action="store_true",
                        help="low dose, sharp kernels, thick slices, and circular fields of view that cut the patient")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="processes that draw; the CTs do not depend on it (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for input that cannot be used, 1 for a failure at work."""
    args = build_parser().parse_args(argv)
    try:
        if args.cases < 1 or args.seed < 0:
            raise ValueError(f"--cases {args.cases} --seed {args.seed}: "
                             "cases start at 1 and seeds at 0. Correct them.")
        if args.heads and (args.phase or args.view or args.mix or args.as_in_clinics):
            raise ValueError("--heads: --phase, --view, --mix and --as-in-clinics are those of a torso. "
                             "Leave them out.")
        if args.jobs < 1:
            raise ValueError(f"--jobs {args.jobs}: at least one process draws. Correct it.")
        if not 0.5 <= args.spacing <= 12:
            raise ValueError(f"--spacing {args.spacing:g}: not between 0.5 and 12 mm. Give that of training.")
        write_dataset(*read_maps(args.maps), args.out, args.cases, args.spacing, args.seed, args.heads,
                      args.phase, args.view, args.mix, args.as_in_clinics, args.jobs)
    except ValueError as error:
        return fail(error, 2, verbose=False)
    except OSError as error:
        return fail(error, 1, verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
