"""Voxels as text in an HTML page: bytes, compressed with gzip, written in base64. web/volume.js reads them back.

A voxel of the CT takes one byte, which stands for one of 256 values of HU (`HU_OF_BYTE`). They are close together where
organs differ by little, and far apart in lung and bone.
"""

from __future__ import annotations

import base64
import gzip

import numpy as np

# From, to, step in HU: lung and fat, soft tissue, bone, metal.
RANGES = ((-1024, -192, 16), (-192, 312, 4), (312, 1312, 20), (1312, 3040, 64))
HU_OF_BYTE = np.concatenate([np.arange(low, high, step) for low, high, step in RANGES] + [[RANGES[-1][1]]])
LEVEL = 6                     # of gzip; 9 takes three times as long and saves one part in a hundred


def ct_bytes(hu: np.ndarray) -> np.ndarray:
    """For each voxel the number of the nearest value in HU_OF_BYTE, uint8, shape of `hu`.

    So HU are kept to half a step: 2 HU in soft tissue. Values beyond the ends get those of the ends.
    """
    between = (HU_OF_BYTE[1:] + HU_OF_BYTE[:-1]) / 2
    whole = np.arange(HU_OF_BYTE[0], HU_OF_BYTE[-1] + 1)
    table = np.searchsorted(between, whole).astype(np.uint8)
    encoded = np.empty(hu.shape, np.uint8, order="F")
    for k in range(hu.shape[2]):                                        # plane by plane: little memory
        plane = np.rint(np.clip(hu[:, :, k], whole[0], whole[-1])).astype(np.int32)
        encoded[:, :, k] = table[plane - whole[0]]
    return encoded


def packed(array: np.ndarray) -> str:
    """The text of an array (D, H, W) uint8 or uint16: axis 0 is the fastest; equal arrays give equal text.

    Each voxel is written as its difference from its neighbour before it on axis 0, which compresses better. Of uint16,
    the low bytes of all voxels come before the high ones.
    """
    parts = [array] if array.dtype == np.uint8 else [(array & 255).astype(np.uint8), (array >> 8).astype(np.uint8)]
    raw = b"".join(_differences(part).tobytes(order="F") for part in parts)
    return base64.b64encode(gzip.compress(raw, LEVEL, mtime=0)).decode("ascii")


def _differences(array: np.ndarray) -> np.ndarray:
    """Each voxel less the one before it on axis 0, modulo 256."""
    differences = np.array(array, order="F")
    differences[1:] -= array[:-1]
    return differences
