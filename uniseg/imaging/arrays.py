"""A CT that somebody holds as a numpy array: with its affine it is an image like any other.

Where the array comes from elsewhere, its affine has to come along: voxel size and orientation are nothing that an
array says by itself, and a guess would exchange left and right without a word.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from .nifti import usable_affine

Source = str | Path | nib.spatialimages.SpatialImage       # what volume.read_ct takes


def as_source(source: object, affine: object = None) -> Source:
    """What `volume.read_ct` takes of what a user may give: a path, an image, or an array (X, Y, Z) with its affine.

    affine: (4, 4), of an array only: from its indices to mm in RAS+, x to the patient's right, as nibabel has it
    Raises ValueError where one of the two is missing or of no use. The voxels are not copied.
    """
    if isinstance(source, np.ndarray):
        return _image(source, affine)
    if affine is not None:
        raise ValueError("affine: is for arrays; a file and an image have their own. Leave it out.")
    if isinstance(source, (str, Path, nib.spatialimages.SpatialImage)):
        return source
    raise ValueError(f"a CT given as {type(source).__name__}: not one of the forms that are read. Give the path of a "
                     "NIfTI file, a nibabel image, or a numpy array with its affine.")


def _image(array: np.ndarray, affine: object) -> nib.Nifti1Image:
    if affine is None:
        raise ValueError("an array says nothing about its voxel size and orientation. Give affine=, (4, 4), from its "
                         "indices to mm in RAS+.")
    matrix = np.asarray(affine)
    usable = matrix.shape == (4, 4) and matrix.dtype.kind in "iuf" and np.array_equal(matrix[3], [0, 0, 0, 1])
    if not usable or usable_affine(lambda: matrix.astype(float)) is None:
        raise ValueError("affine: not an invertible (4, 4) matrix of finite numbers with the last row 0 0 0 1. Give "
                         "that of the array.")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of type {array.dtype}: no CT in Hounsfield units. Give integers or floats.")
    try:
        image = nib.Nifti1Image(_storable(array), matrix.astype(float))
    except HeaderDataError:
        raise ValueError(f"an array of shape {array.shape}: no axis of a CT is that long. Cut it.") from None
    image.header.set_xyzt_units("mm")
    return image


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that NIfTI knows and that holds its values."""
    if array.dtype.kind == "f":
        return array.astype({2: np.float32, 16: np.float64}.get(array.dtype.itemsize, array.dtype), copy=False)
    if array.dtype.itemsize < 8:
        return array
    fits = array.size == 0 or (-2 ** 31 <= array.min() and array.max() < 2 ** 31)
    return array.astype(np.int32 if fits else np.float64)
