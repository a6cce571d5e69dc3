"""encoding.py: HU as bytes, and arrays as text that is read back voxel by voxel."""

import base64
import gzip

import numpy as np
import pytest

from uniseg.viewer.encoding import HU_OF_BYTE, ct_bytes, packed
from view_file import summed_up


def test_a_byte_stands_for_the_nearest_of_256_values_of_hu():
    assert len(HU_OF_BYTE) == 256 and (np.diff(HU_OF_BYTE) > 0).all()
    hu = np.arange(-1024, 3041, dtype=np.int16).reshape(-1, 1, 1)
    encoded = ct_bytes(hu)
    away = np.abs(hu - HU_OF_BYTE[encoded])
    assert np.array_equal(away, np.abs(hu - HU_OF_BYTE).min(axis=-1, keepdims=True))
    assert away[(hu >= -192) & (hu <= 312)].max() == 2                 # soft tissue: steps of 4 HU
    assert away[hu <= 1312].max() == 10 and away.max() == 32


def test_values_beyond_the_ends_and_between_two_integers_get_the_nearest_byte():
    hu = np.array([-3000, -1024, 39.4, 40.0, 41.6, 5000], np.float32).reshape(-1, 1, 1)
    assert HU_OF_BYTE[ct_bytes(hu)].ravel().tolist() == [-1024, -1024, 40, 40, 40, 3040]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_packed_voxels_are_read_back_one_by_one(dtype):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (7, 5, 3), dtype=dtype)
    parts = np.frombuffer(gzip.decompress(base64.b64decode(packed(array))), np.uint8).reshape(-1, array.size)
    low, *high = (summed_up(part, array.shape).astype(int) for part in parts)
    assert len(high) == dtype().itemsize - 1
    assert np.array_equal(low + 256 * high[0] if high else low, array)


def test_the_text_depends_on_the_voxels_alone():
    array = np.random.default_rng(1).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    assert packed(array) == packed(np.asfortranarray(array)) == packed(array[::-1].copy()[::-1])
