"""CT volumes: reading and writing them, their orientation and their Hounsfield units (Section 4.1.2). No torch here.

Axes, for the whole package: an array is (D, H, W) in RAS+. The index of axis 0 grows from the patient's left to the
right, of axis 1 from posterior to anterior, of axis 2 from inferior to superior. Arrays keep the Fortran order of
NIfTI files (axis 0 is the fastest), so that `array.T` is C-contiguous. An array never travels without its affine
(4, 4), which maps indices to millimetres; the voxel size is always that of the affine. Every step that changes the
grid has its inverse beside it. nifti.py reads and writes the bytes safely, resampling.py changes the voxel size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from .byte_stream import refuse
from .field_of_view import Outside, find_outside
from .grid import voxel_size_mm
from .limits import MAX_VOXELS
from .nifti import (
    MM_PER_UNIT,
    format_mm,
    grid_shape,
    header_affine,
    read_nifti,
    read_planes,
    usable_affine,
    write_nifti,
)

AIR_HU = -1024                 # the lowest value of a CT; scanners pad with -2000, -3024 or -32768
MAX_NONFINITE = 0.01           # of the voxels; more NaN than that is a broken file, not a defect at the edge
CHUNK = 1 << 20                # voxels converted at a time


@dataclass
class Geometry:
    """The grid of the source file; results are written on it."""

    shape: tuple[int, int, int]    # (X, Y, Z) as stored
    affine: np.ndarray             # (4, 4) as stored, float64
    header: nib.Nifti1Header       # or Nifti2Header
    orientation: np.ndarray        # (3, 2) nibabel's ornt, stored axes -> RAS+


@dataclass
class Volume:
    """A CT or a label map in RAS+, with the grid of its source and what is doubtful about it."""

    array: np.ndarray              # (D, H, W) RAS+
    affine: np.ndarray             # (4, 4) of `array`, in mm
    geometry: Geometry
    warnings: list[str]            # one line each
    outside: Outside | None = None  # of a CT: what its field of view does not show; air in `array`

    def outside_on(self, hu: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
        """What lies outside the field of view on another grid of this CT, bool as `hu`; None where all is inside.

        hu, affine: the CT resampled, (D, H, W), and its affine (4, 4)
        """
        return self.outside.on_grid(hu, affine, AIR_HU) if self.outside else None


# --------------------------------------------------------------------------------------------------- reading

def read_ct(source: str | Path | nib.spatialimages.SpatialImage, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a CT as RAS+ in HU, int16 whenever that loses nothing, else float32.

    The array is a view of the voxels as stored: its strides are negative where an axis had to be flipped.

    source:     a path (.nii, .nii.gz, .hdr/.img; NIfTI-1 or -2) or a nibabel image
    max_voxels: a file with more is refused before memory is allocated; images in memory are not limited
    Raises VolumeError for a source that cannot be used.
    """
    stored = _load(source, max_voxels)
    ct = _oriented(_to_hu(stored).reshape(stored.shape, order="F"), stored)
    ct.outside = find_outside(ct.array, ct.affine, AIR_HU, ct.warnings)
    return ct


def hu_planes(source: str | Path | nib.spatialimages.SpatialImage,
              max_voxels: int = MAX_VOXELS) -> Iterator[np.ndarray]:
    """Yield the HU of a CT once more, a few planes (X, Y, n) as stored at a time, from the first plane to the last.

    Unlike read_ct it holds no more of a file than these planes. What lies outside the field of view keeps its values;
    otherwise they are those of read_ct. Parameters and errors are those of read_ct.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        array, scaling = _image_array(source, max_voxels)
        yield from (_plain_hu(array[..., z:z + 1], scaling) for z in range(array.shape[2]))
    else:
        for planes, header in read_planes(source, max_voxels):
            yield _plain_hu(planes, _scaling(header, source))


def _image_array(image: nib.spatialimages.SpatialImage, max_voxels: int) -> tuple[np.ndarray, tuple[float, float]]:
    """(voxels (X, Y, Z), scaling) of a nibabel image; not copied where nibabel holds them already."""
    if isinstance(image.dataobj, np.ndarray):
        shape = grid_shape((image.ndim, *image.shape), image.get_filename() or "image in memory")
        return image.dataobj.reshape(shape), (1.0, 0.0)
    stored = _load(image, max_voxels)
    return stored.voxels.reshape(stored.shape, order="F"), stored.scaling


def _plain_hu(voxels: np.ndarray, scaling: tuple[float, float]) -> np.ndarray:
    """HU of the shape of `voxels`: no value below AIR_HU; NaN and infinity are air."""
    if voxels.dtype.kind in "bi" and scaling == (1.0, 0.0):
        return np.maximum(voxels, AIR_HU, dtype=np.int16 if voxels.dtype.itemsize <= 2 else np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        hu = voxels.astype(np.float64) * scaling[0] + scaling[1]
    return np.where(np.isfinite(hu), np.maximum(hu, AIR_HU), AIR_HU)


def read_label_map(source: str | Path | nib.spatialimages.SpatialImage, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a label map as RAS+ integers (uint8, uint16 or int32). A float like 0.9999 is rounded, 1.5 is refused.

    Parameters and errors are those of read_ct.
    """
    stored = _load(source, max_voxels, labels=True)
    return _oriented(_to_labels(stored).reshape(stored.shape, order="F"), stored)


class _Stored(NamedTuple):
    """Voxels as they are stored, and what the header says about them."""

    name: str | Path
    voxels: np.ndarray             # (X * Y * Z,) Fortran order
    shape: tuple[int, int, int]
    header: nib.Nifti1Header
    affine: np.ndarray             # as stored, in the header's unit of length
    scaling: tuple[float, float]   # slope and intercept of HU or labels
    warnings: list[str]


def _load(source: str | Path | nib.spatialimages.SpatialImage, max_voxels: int, labels: bool = False) -> _Stored:
    """The stored voxels of a path or a nibabel image. labels: whether a label map is expected"""
    if isinstance(source, nib.spatialimages.SpatialImage):
        return _load_image(source)
    stored, shape, header, notes = read_nifti(source, max_voxels, labels)
    affine = header_affine(header, source, notes)
    return _Stored(Path(source), stored, shape, header, affine, _scaling(header, source), notes)


def _scaling(header: nib.Nifti1Header, path: str | Path) -> tuple[float, float]:
    """(slope, intercept) of a header. Raises VolumeError where one is not finite."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):                         # the standard: no scaling
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        refuse(path, f"bad scaling in the header: slope {slope}, intercept {intercept}", "Save the CT again as int16")
    return slope, intercept


def _load_image(image: nib.spatialimages.SpatialImage) -> _Stored:
    """The stored voxels of a nibabel image, which nibabel has read already or reads here."""
    name = image.get_filename() or "image in memory"
    shape = grid_shape((image.ndim, *image.shape), name)
    if not isinstance(image.header, nib.Nifti1Header):
        image = nib.Nifti1Image.from_image(image)
    header, data = image.header.copy(), image.dataobj
    assert isinstance(header, nib.Nifti1Header)
    scaling = (1.0, 0.0)
    if isinstance(data, nib.arrayproxy.ArrayProxy):
        stored, scaling = data.get_unscaled(), (float(data.slope), float(data.inter))
    else:
        stored = np.array(data, order="F")                    # a copy: the caller's array stays as it is
    if stored.dtype.kind not in "biuf":
        refuse(name, f"voxels of type {stored.dtype}; need a CT in Hounsfield units", "Save the CT as int16")
    stored = np.require(stored.astype(stored.dtype.newbyteorder("="), copy=False), requirements=["F", "W"])
    if image.affine is None:
        refuse(name, "image without affine", "Give it one")
    return _Stored(name, stored.reshape(-1, order="F"), shape, header, np.array(image.affine, float), scaling, [])


def _oriented(array: np.ndarray, stored: _Stored) -> Volume:
    """The Volume of an array (X, Y, Z) of HU or labels: a view with its axes permuted and flipped to RAS+."""
    affine_mm = _in_mm(stored.affine, stored.header, stored.warnings)
    _check_axes(affine_mm, stored.name, stored.warnings)
    ras, ras_affine, orientation = to_ras(array, affine_mm)
    return Volume(ras, ras_affine, Geometry(stored.shape, stored.affine, stored.header, orientation), stored.warnings)


def _in_mm(affine: np.ndarray, header: nib.Nifti1Header, notes: list[str]) -> np.ndarray:
    """The affine in mm. Metres and micrometres count only if voxels get a plausible size: many headers are wrong."""
    factor = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    if factor == 1.0:
        return affine
    if (np.abs(np.log10(voxel_size_mm(affine) * factor)) > 1.5).any():     # outside 0.03 to 30 mm
        notes.append("the header's unit of length gives impossible voxels; millimetres are assumed")
        return affine
    notes.append("the header's affine is not in millimetres; it is converted")
    return np.diag([factor, factor, factor, 1.0]) @ affine


def affine_in_mm(geometry: Geometry) -> np.ndarray:
    """The affine (4, 4) of the grid of the source as stored, in mm also where its header is not."""
    return _in_mm(geometry.affine, geometry.header, [])


def _check_axes(affine: np.ndarray, name: str | Path, notes: list[str]) -> None:
    """Refuse sheared axes, as of a tilted gantry, and warn about tiny, huge or flat voxels, and a lost affine."""
    sizes = voxel_size_mm(affine)
    axes = affine[:3, :3] / sizes
    shear = np.degrees(np.arcsin(min(1.0, np.abs(axes.T @ axes - np.eye(3)).max())))
    if shear > 5.0:
        refuse(name, f"sheared affine, {shear:.1f} degrees off right angles (a tilted gantry?)",
               "Resample the CT to a rectangular grid first")
    if sizes.min() < 0.1 or sizes.max() > 20 or sizes.max() / sizes.min() > 20:
        notes.append(f"unusual voxel size {format_mm(sizes)} mm")
    if np.array_equal(abs(affine), np.eye(4)):
        notes.append("the affine is the identity, as of a file that has lost it. Check voxel size and orientation")


# --------------------------------------------------------------------------------------------------- values

def _chunks(flat: np.ndarray) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, flat.size, CHUNK))


def _to_hu(stored: _Stored) -> np.ndarray:
    """HU (X * Y * Z,): int16 when that is exact, else float32. The memory of the stored voxels is reused if it fits."""
    voxels, (slope, intercept) = stored.voxels, stored.scaling
    if voxels.dtype.kind in "biu":
        ends = sorted(int(end) * slope + intercept for end in (voxels.min(), voxels.max()))
        if slope.is_integer() and intercept.is_integer() and -2**31 <= ends[0] and ends[1] <= 32767:
            hu = voxels if voxels.dtype == np.int16 else np.empty(voxels.size, np.int16)
            if hu is not voxels or ends[0] < AIR_HU or (slope, intercept) != (1.0, 0.0):
                for part in _chunks(voxels):
                    hu[part] = np.maximum(voxels[part].astype(np.int64) * int(slope) + int(intercept), AIR_HU)
            return hu
    return _exact_int16(_to_float_hu(stored))


def _to_float_hu(stored: _Stored) -> np.ndarray:
    """HU (X * Y * Z,) as float32. A few NaN or infinite voxels become air, many are refused."""
    voxels, (slope, intercept), notes = stored.voxels, stored.scaling, stored.warnings
    hu = voxels if voxels.dtype == np.float32 else np.empty(voxels.size, np.float32)
    nonfinite, largest = 0, 0.0
    for part in _chunks(voxels):
        with np.errstate(over="ignore", invalid="ignore"):
            values = (voxels[part].astype(np.float64) * slope + intercept).astype(np.float32)
        finite = np.isfinite(values)
        nonfinite += finite.size - np.count_nonzero(finite)
        values[~finite] = AIR_HU
        largest = max(largest, float(np.abs(values).max()))
        np.maximum(values, AIR_HU, out=hu[part])
    if nonfinite >= MAX_NONFINITE * hu.size:
        refuse(stored.name, f"{nonfinite:,} of {hu.size:,} voxels are NaN or infinite",
               "Convert the CT again from its source")
    if nonfinite:
        notes.append(f"{nonfinite:,} voxels are NaN or infinite; they are read as air ({AIR_HU} HU)")
    if largest > 2**24:
        notes.append(f"values up to {largest:.3g}; beyond 2^24 they are not exact, and no HU")
    return hu


def _exact_int16(hu: np.ndarray) -> np.ndarray:
    """The same values as int16 when all of them are integers that fit, which halves the memory."""
    for part in _chunks(hu):
        if hu[part].max() > 32767 or (np.rint(hu[part]) != hu[part]).any():
            return hu
    return hu.astype(np.int16)


def _to_labels(stored: _Stored) -> np.ndarray:
    """Labels (X * Y * Z,) in the smallest of uint8, uint16, int32. A value 1e-3 off an integer is refused."""
    voxels, (slope, intercept) = stored.voxels, stored.scaling
    labels = np.empty(voxels.size, np.int32)
    wrong = 0
    examples: list[str] = []
    for part in _chunks(voxels):
        with np.errstate(invalid="ignore", over="ignore"):
            values = voxels[part].astype(np.float64) * slope + intercept
            good = (np.abs(values - np.rint(values)) <= 1e-3) & (np.abs(values) < 2**24)
        if not good.all():
            wrong += good.size - np.count_nonzero(good)
            examples += [f"{value:.6g}" for value in values[~good][:3]]
            values[~good] = 0
        labels[part] = np.rint(values)
    if wrong:
        refuse(stored.name, f"not a label map: {wrong:,} voxels are not integers (such as {', '.join(examples[:3])})",
               "Give integer labels; interpolate label maps with nearest neighbours")
    if labels.min() < 0 or labels.max() > 65535:
        return labels
    return labels.astype(np.uint8 if labels.max() <= 255 else np.uint16)


def scale_hu(hu: np.ndarray, hu_window: Sequence[float] = (-175.0, 250.0)) -> np.ndarray:
    """Map Hounsfield units linearly to [0, 1], float32. Values outside `hu_window` saturate.

    >>> scale_hu(np.array([-1000, -175, 37.5, 250, 3000])).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    low, high = hu_window
    scaled = np.array(hu, dtype=np.float32)                   # keeps the memory order
    scaled -= low
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled)


# --------------------------------------------------------------------------------------------------- orientation

def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Permute and flip the axes, without resampling, so that they point right, anterior, superior where possible.

    returns: view of `array`, its affine, and the orientation (3, 2) that `from_ras` takes back
    """
    orientation = io_orientation(affine)
    return apply_orientation(array, orientation), affine @ inv_ornt_aff(orientation, array.shape), orientation


def from_ras(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """The inverse of `to_ras`: a RAS+ array as a view in the axes of the source."""
    ras = [[0, 1], [1, 1], [2, 1]]
    return apply_orientation(array, ornt_transform(ras, orientation))


# --------------------------------------------------------------------------------------------------- writing

def write_volume(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (D, H, W) with its affine as NIfTI-1, in the array's type. sform and qform say scanner space."""
    header = nib.Nifti1Image(np.asarray(array), affine).header
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1, 0
    write_nifti(path, np.asarray(array), header)


def write_label_map(path: str | Path, array_ras: np.ndarray, geometry: Geometry, description: str = "",
                    extension: bytes = b"") -> None:
    """Write integer labels (or a mask) given in RAS+ on the grid of the source: its shape, affine, codes and units.

    The labels become uint8, or uint16 when one is above 255. The file appears complete or not at all.

    description: up to 79 ASCII characters for the header
    extension:   content of a header extension: formats.label_table writes the names and colours of the labels

    Raises VolumeError for labels that do not fit, FileError where the file cannot be written.
    """
    stored = from_ras(np.asarray(array_ras), geometry.orientation)
    if stored.shape != tuple(geometry.shape):
        refuse(path, f"labels of shape {stored.shape} do not fit the CT's grid {tuple(geometry.shape)}",
               "Bring them back to the CT's grid first")
    if not str(path).endswith((".nii", ".nii.gz")):
        refuse(path, "not a name for a label map", "Use .nii.gz or .nii")
    low, high = (int(stored.min()), int(stored.max())) if stored.dtype.kind in "biu" else (-1, -1)
    if low < 0 or high > 65535:
        refuse(path, f"labels must be integers from 0 to 65535, got {stored.dtype} from {stored.min()} to "
               f"{stored.max()}", "Renumber the labels")
    header = _label_header(geometry, np.uint8 if high <= 255 else np.uint16, high, description)
    write_nifti(path, stored, header, extension)


def label_image(stored: np.ndarray, geometry: Geometry, description: str = "",
                extension: bytes = b"") -> nib.Nifti1Image:
    """Labels (X, Y, Z) in the axes of the source, uint8 or uint16, as an image with the header of write_label_map."""
    largest = int(stored.max(initial=0))
    header = _label_header(geometry, np.uint8 if largest <= 255 else np.uint16, largest, description)
    header.extensions.append(nib.nifti1.Nifti1Extension(0, extension))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(stored, header.get_best_affine(), header)


def _label_header(geometry: Geometry, dtype: type, largest: int, description: str) -> nib.Nifti1Header:
    """The header of a label map (NIfTI intent 1002) on the grid of the source."""
    kind = nib.Nifti2Header if isinstance(geometry.header, nib.Nifti2Header) else nib.Nifti1Header
    header = kind()
    for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                  "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        header[field] = geometry.header[field]
    pixdim = geometry.header["pixdim"][:4].astype(float)
    sizes = voxel_size_mm(geometry.affine)
    header["pixdim"][0] = pixdim[0] if pixdim[0] in (-1, 1) else 1
    header["pixdim"][1:4] = np.where(np.isfinite(pixdim[1:]) & (pixdim[1:] != 0), np.abs(pixdim[1:]), sizes)
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    header.set_intent("label")
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, largest
    written = usable_affine(header.get_best_affine)
    if written is None or not np.array_equal(written, geometry.affine):   # a broken sform, or an affine set in memory
        header.set_sform(geometry.affine, code=int(header["sform_code"]) or 1)
    return header
