"""A CT series in DICOM -> one NIfTI file in HU; 3D-IRCADb as published -> images and one mask per class.

    python tools/dicom_to_nifti.py series FOLDER OUT.nii.gz
    python tools/dicom_to_nifti.py ircad 3DIRCADB OUT     OUT/images/CASE.nii.gz, OUT/masks/CASE/liver.nii.gz, ...

Pancreas-CT, CHAOS and 3D-IRCADb (Table 1) are published as DICOM; docs/datasets.md says where the files go. The second
form is what `python -m uniseg.evaluate --ref OUT/masks` reads: a class without a mask is not annotated in that case.

A slice's place comes from ImagePositionPatient and ImageOrientationPatient alone, not from file names. Slices that are
missing, doubled, of two series or unevenly spaced are refused. Needs `pydicom`, and one of its plugins for compressed
pixels; the package itself never imports this file. Tested on series that the test writes, not on the published data:
look at what you convert (`python -m uniseg.data ROOT --preview pictures`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
from uniseg import taxonomy  # noqa: E402
from uniseg.imaging.volume import write_volume  # noqa: E402

NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
UNEVEN_MM = 0.01                                 # a slice may lie so far from its place
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])     # DICOM's axes grow to the left, back and head; NIfTI's to the right
SPELLED = {"venacava": "postcava", "leftkidney": "left_kidney", "rightkidney": "right_kidney", "leftlung": "left_lung",
           "rightlung": "right_lung", "livertumors": "liver_tumor"}     # folder names of 3D-IRCADb


def read_slices(folder: Path) -> list[Any]:
    """The image slices of a folder as pydicom datasets, of one series. Raises SystemExit."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    slices = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            continue                                                    # a README, a DICOMDIR without header
        if all(name in dataset for name in NEEDED) and "PixelData" in dataset:
            slices.append(dataset)
    if not slices:
        raise SystemExit(f"{folder}: no DICOM image with a place in space. Give the folder of one CT series.")
    series = Counter(str(getattr(s, "SeriesInstanceUID", "")) for s in slices)
    if len(series) > 1:
        counts = ", ".join(f"{n} of {uid or 'no series'}" for uid, n in series.most_common(3))
        raise SystemExit(f"{folder}: {len(series)} series ({counts}). Put each into a folder of its own.")
    return slices


def read_series(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(HU (X, Y, Z) float32, affine (4, 4) to RAS+ mm) of a series. Raises SystemExit for what does not fit together.

    The axes are those of the slices: columns, rows, and the stack in the direction of rows x columns.
    """
    slices = read_slices(folder)
    first = slices[0]
    for name in NEEDED[1:]:
        if any(np.abs(np.subtract(getattr(s, name), getattr(first, name))).max() > 1e-4 for s in slices):
            raise SystemExit(f"{folder}: slices differ in {name}. Keep those of one stack, a localizer is none.")
    along_columns, along_rows = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    normal = np.cross(along_columns, along_rows)
    slices.sort(key=lambda s: float(np.dot(normal, np.array(s.ImagePositionPatient, float))))
    places = np.array([s.ImagePositionPatient for s in slices], float)                            # (Z, 3) mm, LPS
    steps = np.diff(places, axis=0)
    step = (places[-1] - places[0]) / max(1, len(slices) - 1) if len(slices) > 1 else normal
    if len(steps) and np.abs(steps - step).max() > UNEVEN_MM:
        worst, apart = int(np.abs(steps - step).max(axis=1).argmax()), np.linalg.norm(steps, axis=1)
        raise SystemExit(f"{folder}: slices {worst} and {worst + 1} of {len(slices)} are {apart[worst]:.3f} mm apart, "
                         f"others {np.median(apart):.3f} mm. A slice is missing or doubled, or the spacing varies; "
                         "such a stack has no NIfTI grid.")
    if len(slices) > 1 and np.linalg.norm(step) < UNEVEN_MM:
        raise SystemExit(f"{folder}: all slices lie at one place. Give a series of different slices.")
    between_rows, between_columns = (float(mm) for mm in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack([along_columns * between_columns, along_rows * between_rows, step, places[0]])
    hu = np.stack([s.pixel_array.T * np.float32(getattr(s, "RescaleSlope", 1))
                   + np.float32(getattr(s, "RescaleIntercept", 0)) for s in slices], axis=2)
    return hu.astype(np.float32), LPS_TO_RAS @ affine


def write_hu(out: Path, hu: NDArray[np.float32], affine: NDArray[np.float64]) -> str:
    """Write a CT, as int16 where its HU are whole numbers; returns what to say about it."""
    whole = np.rint(hu)
    stored = whole.astype(np.int16) if np.array_equal(whole, hu) and np.abs(hu).max() < 2 ** 15 else hu
    out.parent.mkdir(parents=True, exist_ok=True)
    write_volume(out, stored, affine)
    return f"{out}: {'x'.join(map(str, hu.shape))} voxels, {hu.min():g} to {hu.max():g} HU"


def class_of(folder: str) -> str | None:
    """The class of a folder in MASKS_DICOM; numbered parts (livertumor01) are parts of one class. None: not ours.

    >>> class_of("livertumor02"), class_of("leftkidney"), class_of("skin")
    ('liver_tumor', 'left_kidney', None)
    """
    name = re.sub(r"[\d_]+$", "", folder.lower())
    try:
        classes = taxonomy.resolve(SPELLED.get(name, name))
    except ValueError:
        return None
    return classes[0] if len(classes) == 1 else None


def convert_ircad(root: Path, out: Path) -> list[str]:
    """Write every case below `root` that has PATIENT_DICOM and MASKS_DICOM; returns what to say about each."""
    cases = sorted(p.parent for p in root.rglob("PATIENT_DICOM") if (p.parent / "MASKS_DICOM").is_dir())
    if not cases:
        raise SystemExit(f"{root}: no folder with PATIENT_DICOM and MASKS_DICOM. Unpack the archives first.")
    said = []
    for case in cases:
        hu, affine = read_series(case / "PATIENT_DICOM")
        said.append(write_hu(out / "images" / f"{case.name}.nii.gz", hu, affine))
        masks: dict[str, NDArray[np.bool_]] = {}
        left_out = []
        for folder in sorted(p for p in (case / "MASKS_DICOM").iterdir() if p.is_dir()):
            if (name := class_of(folder.name)) is None:
                left_out.append(folder.name)
                continue
            mask, own = read_series(folder)
            if mask.shape != hu.shape or not np.allclose(own, affine, atol=UNEVEN_MM):
                raise SystemExit(f"{folder}: not on the grid of the CT in {case / 'PATIENT_DICOM'}. Leave it out.")
            masks[name] = masks.get(name, np.zeros(hu.shape, bool)) | (mask > mask.min())
        for name, joined in masks.items():
            path = out / "masks" / case.name / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, joined.astype(np.uint8), affine)
        said.append(f"  {', '.join(masks)}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    return said


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and say what was written. Raises SystemExit with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python tools/dicom_to_nifti.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("series", "ircad"))
    parser.add_argument("folder", type=Path, help="of the series, or of the unpacked dataset")
    parser.add_argument("out", type=Path, help="a file .nii.gz, or for ircad a folder")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise SystemExit(f"{args.out}: exists already. Choose another name.")
    try:
        if args.what == "series":
            said = [write_hu(args.out, *read_series(args.folder))]
        else:
            said = convert_ircad(args.folder, args.out)
    except ImportError as error:
        raise SystemExit(f"tools/dicom_to_nifti.py needs the module {error.name}. Install pydicom.")
    except (ValueError, RuntimeError, AttributeError) as error:       # pixels that pydicom cannot read
        raise SystemExit(f"{args.folder}: {' '.join(str(error).split())}")
    print("\n".join(said))


if __name__ == "__main__":
    main()
