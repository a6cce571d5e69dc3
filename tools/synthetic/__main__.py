"""`python -m tools.synthetic LABELMAPS --out ROOT --cases N`: a dataset of synthetic CTs that uniseg.train reads as it is.

    LABELMAPS/names.json, *.nii.gz         -> ROOT/imagesTr/<map>_<seed>.nii.gz, ROOT/labelsTr/..., ROOT/dataset.json

Case n of a run is drawn from map n modulo the number of maps with seed --seed + n, so that more cases can be added later.
With --heads the CTs show heads, drawn without the maps; they have the same classes, all of them annotated and absent.
Existing cases are kept; files appear complete or not at all, the image before its label, dataset.json last.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from uniseg import NOT_A_MEDICAL_DEVICE, taxonomy
from uniseg.imaging.file_names import SUFFIXES, bare
from uniseg.imaging.merging import merge_masks
from uniseg.imaging.volume import read_label_map, write_volume
from uniseg.machine.files import atomic_write

from . import VIEWS, draw, tissues
from .head import draw_head
from .lesions import KINDS


def read_maps(folder):
    """({name of a map: path}, {id: structure}) of a folder of label maps with its names.json. Raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Give one that holds label maps and names.json.")
    try:
        names = {int(number): structure for number, structure in json.loads((folder / "names.json").read_text()).items()}
        for structure in names.values():
            tissues.tissue_of(structure)
    except FileNotFoundError:
        raise ValueError(f'{folder}: no names.json. Write one: {{"1": "adrenal_gland_left", ...}}.') from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'names.json'}: not read ({error}). It has to be {{\"number\": \"structure\"}}.") from None
    maps = {bare(path.name): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES) and not path.name.startswith(".")}
    if not maps:
        raise ValueError(f"{folder}: no label map (.nii.gz). Give a folder that holds some.")
    return maps, names


def read_map(path, names):
    """A label map in RAS+ that draw can use: (labels, affine). Raises ValueError."""
    volume = read_label_map(path)
    unknown = sorted(set(np.unique(volume.array).tolist()) - set(names) - {0})
    if unknown:
        raise ValueError(f"{path}: values {unknown[:5]} are not in names.json. Add them there.")
    return volume.array, volume.affine


def annotated(maps, names):
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


def draw_case(path, names, seed, spacing_mm, classes, phase=None, view=None):
    """(hu, label map, affine, its description) of a torso drawn from the label map in a file. Raises ValueError."""
    labels, affine = read_map(path, names)
    try:
        hu, masks, affine, about = draw(labels, affine, names, seed, spacing_mm, phase, view)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return hu, label_map(masks, classes), affine, f"{about['phase']}, {about['view']}"


def draw_empty(seed, spacing_mm):
    """(hu, label map of zeros, affine, its description) of a head: every class is annotated and absent."""
    hu, affine = draw_head(seed, spacing_mm)
    return hu, np.zeros(hu.shape, np.uint8), affine, "no class"


def write_dataset(maps, names, out, cases, spacing_mm, seed, heads=False, phase=None, view=None, say=print):
    """Write the cases that are not there yet, then dataset.json with all cases in the folder. Raises ValueError, OSError."""
    settings = {"spacing_mm": spacing_mm, "classes": annotated(maps, names)}
    made_with = out / "synthetic.json"
    if made_with.is_file() and json.loads(made_with.read_text()) != settings:
        raise ValueError(f"{made_with}: the cases there were drawn with another spacing or other classes. Give another --out.")
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with atomic_write(made_with) as temporary:
        temporary.write_text(json.dumps(settings) + "\n")
    for n in range(cases):
        name = "head" if heads else list(maps)[n % len(maps)]
        case = f"{name}_{seed + n:05d}"
        image, label = (out / folder / f"{case}.nii.gz" for folder in ("imagesTr", "labelsTr"))
        if image.is_file() and label.is_file():
            continue
        start = time.monotonic()
        hu, labels, affine, about = draw_empty(seed + n, spacing_mm) if heads \
            else draw_case(maps[name], names, seed + n, spacing_mm, settings["classes"], phase, view)
        write_volume(image, hu, affine)
        write_volume(label, labels, affine)
        say(f"{case}: {about}, {' x '.join(map(str, hu.shape))} voxels, {time.monotonic() - start:.1f} s")
    write_listing(out, settings["classes"])


def write_listing(out, classes):
    """dataset.json (the Decathlon's form) of all complete cases in the folder."""
    done = sorted(label.name for label in (out / "labelsTr").glob("*.nii.gz")
                  if not label.name.startswith(".") and (out / "imagesTr" / label.name).is_file())
    content = {"name": out.resolve().name, "description": "synthetic CT drawn by tools.synthetic; lesions are drawings",
               "labels": {"0": "background", **{str(value): name for value, name in enumerate(classes, start=1)}},
               "modality": {"0": "CT"}, "numTraining": len(done),
               "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in done]}
    with atomic_write(out / "dataset.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def build_parser():
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic", epilog=NOT_A_MEDICAL_DEVICE,
                                     description="Synthetic CTs with masks from label maps of real anatomy (docs/synthetic.md).")
    parser.add_argument("maps", type=Path, metavar="LABELMAPS",
                        help="folder with label maps of TotalSegmentator's structures and names.json")
    parser.add_argument("--out", type=Path, required=True, metavar="ROOT", help="the dataset's folder; its name is the dataset's")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="cases in all (default %(default)s)")
    parser.add_argument("--spacing", type=float, default=2.0, metavar="MM", help="voxel size (default %(default)s)")
    parser.add_argument("--heads", action="store_true",
                        help="draw heads, in which the classes of the maps are absent: cases that teach a model to find nothing")
    parser.add_argument("--phase", choices=tissues.PHASES, help="contrast phase of every torso (default: drawn)")
    parser.add_argument("--view", choices=VIEWS, help="what every torso shows (default: drawn)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case (default %(default)s)")
    return parser


def main(argv=None):
    """Returns the exit code: 0, 2 for input that cannot be used, 1 for a failure at work."""
    args = build_parser().parse_args(argv)
    try:
        if args.cases < 1 or args.seed < 0:
            raise ValueError(f"--cases {args.cases} --seed {args.seed}: cases start at 1 and seeds at 0. Correct them.")
        if args.heads and (args.phase or args.view):
            raise ValueError("--heads: --phase and --view are those of a torso. Leave them out.")
        if not 0.5 <= args.spacing <= 12:
            raise ValueError(f"--spacing {args.spacing:g}: not between 0.5 and 12 mm. Give that of training.")
        write_dataset(*read_maps(args.maps), args.out, args.cases, args.spacing, args.seed, args.heads,
                      args.phase, args.view)
    except ValueError as error:
        print(f"uniseg: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"uniseg: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
