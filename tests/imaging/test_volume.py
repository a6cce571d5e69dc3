"""What imaging/volume.py promises: exact geometry in and out, honest resampling, and bad files refused in one line.

Ids like F07 and O16 are those of docs/faults.md. Every file is built here.
"""

import contextlib
import errno
import gzip
import itertools
import os
import socket
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.resampling import resample, resample_mask, resampled_shape, way_back
from uniseg.imaging.volume import Volume, from_ras, read_ct, read_label_map, scale_hu, to_ras, write_label_map
from uniseg.machine.files import FileError, atomic_write

RNG = np.random.default_rng(7)
CT = RNG.integers(-1000, 1500, (5, 6, 7)).astype(np.int16)
AFFINE = np.array([[0.75, 0, 0, -90.5], [0, 0.5, 0, -60.25], [0, 0, 2.5, 30], [0, 0, 0, 1]])


def nifti(array=CT, affine=AFFINE, header_class=nib.Nifti1Header, endian="<", extension=b"\0\0\0\0", **fields):
    """The bytes of a .nii; `fields` overwrite header fields afterwards, so that any lie can be told."""
    header = header_class(endianness=endian)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header["vox_offset"] = header.sizeof_hdr + len(extension)
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + extension + array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")


def save(path, data):
    path.write_bytes(data)
    return path


def refusal(path, read=read_ct, **options):
    """The message of a refusal, after checking its form: one line, `<path>: <what>. <what to do>`."""
    with pytest.raises(VolumeError) as error:
        read(path, **options)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert ". " in message and message.endswith((".", "?"))
    return message


@pytest.fixture
def ct_path(tmp_path):
    return save(tmp_path / "ct.nii.gz", gzip.compress(nifti()))


# ------------------------------------------------------------------------------------------- orientation, in and out

ORIENTATIONS = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize("permutation, flips", ORIENTATIONS)
def test_all_48_orientations_come_back_exactly(permutation, flips, tmp_path):  # F45
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([0.75, 0.5, 2.5]) * flips)[:, permutation]
    affine[:3, 3] = -90.5, -60.25, 30
    stored = RNG.integers(0, 200, (5, 6, 7)).astype(np.int16) - 300
    volume = read_ct(save(tmp_path / "ct.nii", nifti(stored, affine)))

    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):           # a voxel keeps its place in the patient
        at = np.rint(np.linalg.solve(volume.affine, affine @ [*index, 1]))[:3].astype(int)
        assert volume.array[tuple(at)] == stored[index]

    write_label_map(tmp_path / "out.nii.gz", volume.array + 300, volume.geometry)
    out = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asanyarray(out.dataobj), stored + 300)
    assert np.array_equal(out.affine, affine)


def test_oblique_affine_is_kept_and_labels_return_to_its_grid(tmp_path):  # F46
    turn = np.radians(20)
    affine = AFFINE.copy()
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]] @ AFFINE[:3, :3]
    volume = read_ct(save(tmp_path / "ct.nii.gz", gzip.compress(nifti(affine=affine))))
    assert np.allclose(volume.affine, affine, atol=1e-6)
    write_label_map(tmp_path / "out.nii.gz", volume.array > 0, volume.geometry)
    assert np.array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(tmp_path / "ct.nii.gz").affine)


def test_to_ras_and_from_ras_are_inverse_views():
    affine = AFFINE[:, [2, 0, 1, 3]] * [-1, 1, -1, 1]
    ras, ras_affine, orientation = to_ras(CT, affine)
    assert np.shares_memory(ras, CT) and np.shares_memory(from_ras(ras, orientation), CT)
    assert np.array_equal(from_ras(ras, orientation), CT)
    assert np.allclose(voxel_size_mm(ras_affine), [0.75, 0.5, 2.5])


def test_arrays_keep_the_fortran_order_of_the_file(ct_path):
    volume = read_ct(ct_path)
    assert volume.array.dtype == np.int16 and volume.array.T.flags.c_contiguous
    assert np.array_equal(volume.array, CT) and volume.warnings == []


@pytest.mark.parametrize("codes", [(1, 2), (0, 2), (1, 0), (3, 4), (0, 0)])
def test_output_keeps_affine_codes_and_units_and_is_a_label_map(codes, tmp_path):  # O16
    fields = {"qform_code": codes[0], "sform_code": codes[1], "xyzt_units": 2, "scl_slope": 2, "scl_inter": -1024}
    path = save(tmp_path / "ct.nii.gz", gzip.compress(nifti(CT // 4 + 600, **fields)))
    volume, source = read_ct(path), nib.load(path)
    labels = (volume.array > 0) * np.uint8(32)
    write_label_map(tmp_path / "out.nii.gz", labels, volume.geometry, description="uniseg")
    out = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(out.affine, source.affine) and out.shape == source.shape
    assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == codes
    assert np.array_equal(out.header.get_qform(), source.header.get_qform())
    assert out.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert out.get_data_dtype() == np.uint8 and out.header.get_intent()[0] == "label"
    raw = nib.Nifti1Header(gzip.decompress((tmp_path / "out.nii.gz").read_bytes())[:348])    # nib.load hides these
    assert (raw["scl_slope"], raw["scl_inter"], raw["cal_max"], raw["vox_offset"]) == (1, 0, 32, 352)
    assert np.array_equal(read_label_map(tmp_path / "out.nii.gz").array, labels)


def test_output_bytes_depend_on_nothing_but_the_labels(ct_path, tmp_path, monkeypatch):
    geometry = read_ct(ct_path).geometry
    write_label_map(tmp_path / "a.nii.gz", CT > 0, geometry)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_label_map(tmp_path / "b.nii.gz", CT > 0, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_labels_above_255_are_written_as_uint16(ct_path, tmp_path):
    write_label_map(tmp_path / "out.nii", np.full(CT.shape, 300), read_ct(ct_path).geometry)
    assert nib.load(tmp_path / "out.nii").get_data_dtype() == np.uint16
    assert (read_label_map(tmp_path / "out.nii").array == 300).all()


def test_labels_of_another_grid_or_type_are_not_written(ct_path, tmp_path):
    geometry = read_ct(ct_path).geometry
    for labels in (np.zeros((5, 6, 8), np.uint8), np.full(CT.shape, 0.5), np.full(CT.shape, -1)):
        with pytest.raises(VolumeError):
            write_label_map(tmp_path / "out.nii.gz", labels, geometry)
    with pytest.raises(VolumeError, match="Use .nii.gz"):
        write_label_map(tmp_path / "out.png", CT > 0, geometry)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct.nii.gz"]


@pytest.mark.parametrize("name", ["-x.nii.gz", "a b;'\".nii.gz", "zwei\nZeilen.nii.gz", "Größe 図.nii.gz",
                                  "x" * 248 + ".nii.gz"])
def test_any_file_name_works(name, ct_path, tmp_path):  # F56
    write_label_map(tmp_path / name, CT > 0, read_ct(ct_path).geometry)
    assert np.array_equal(read_label_map(tmp_path / name).array, CT > 0)


# ------------------------------------------------------------------------------------------- kinds of file and values

@pytest.mark.parametrize("header_class", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_both_versions_and_byte_orders_read_and_write_the_same(header_class, endian, tmp_path):  # F34, F35
    volume = read_ct(save(tmp_path / "ct.nii.gz", gzip.compress(nifti(header_class=header_class, endian=endian))))
    assert np.array_equal(volume.array, CT) and volume.array.dtype == np.int16
    assert np.array_equal(volume.affine, AFFINE)
    write_label_map(tmp_path / "out.nii.gz", CT > 0, volume.geometry)
    out = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(out.affine, AFFINE) and isinstance(out.header, header_class)


@pytest.mark.parametrize("suffix", [".hdr", ".img"])
def test_pairs_are_read_by_either_name(suffix, tmp_path):  # F35
    nib.save(nib.Nifti1Pair(CT, AFFINE), tmp_path / "ct.img")
    assert np.array_equal(read_ct(tmp_path / f"ct{suffix}").array, CT)
    (tmp_path / "ct.img").unlink()
    with pytest.raises(VolumeError, match="ct.img is missing|no such file"):
        read_ct(tmp_path / "ct.hdr")


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_real_voxel_type_gives_int16_when_that_is_exact(dtype, tmp_path):  # F32
    hu = (CT % 100).astype(dtype)
    volume = read_ct(save(tmp_path / "ct.nii", nifti(hu)))
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, CT % 100)


def test_fractional_values_stay_float32(tmp_path):
    volume = read_ct(save(tmp_path / "ct.nii", nifti(CT + 0.25)))
    assert volume.array.dtype == np.float32 and np.array_equal(volume.array, CT + 0.25)


def test_slope_and_intercept_give_hounsfield_units(tmp_path):  # F33
    stored = (CT + 1024).astype(np.uint16)
    volume = read_ct(save(tmp_path / "a.nii", nifti(stored, scl_slope=1, scl_inter=-1024)))
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, CT)
    half = read_ct(save(tmp_path / "b.nii", nifti(stored, scl_slope=0.5, scl_inter=-512)))
    assert half.array.dtype == np.float32 and np.array_equal(half.array, CT / 2)
    big = read_ct(save(tmp_path / "c.nii", nifti(stored, scl_slope=40, scl_inter=-1024)))    # beyond int16
    assert big.array.dtype == np.float32 and big.array.max() == int(stored.max()) * 40 - 1024


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_slope_of_zero_or_nan_means_no_scaling(slope, tmp_path):  # F36
    volume = read_ct(save(tmp_path / "ct.nii", nifti(scl_slope=slope, scl_inter=5)))
    assert np.array_equal(volume.array, CT)


def test_padding_below_air_is_clipped(tmp_path):  # F49
    for padding in (-2048, -3024, -32768):
        hu = CT.copy()
        hu[0] = padding
        array = read_ct(save(tmp_path / "ct.nii", nifti(hu))).array
        assert (array[0] == -1024).all() and np.array_equal(array[1:], CT[1:])


def test_nibabel_images_are_accepted_and_left_alone(ct_path):
    image = nib.load(ct_path)
    assert np.array_equal(read_ct(image).array, CT)
    memory = np.full((4, 4, 4), -3000, np.int16)
    assert (read_ct(nib.Nifti1Image(memory, AFFINE)).array == -1024).all() and (memory == -3000).all()
    float_image = nib.Nifti1Image(CT.astype(np.float64), AFFINE)
    assert np.array_equal(read_ct(float_image).array, CT)
    float_image.header.set_slope_inter(2, 0)                  # dataobj in memory is already scaled
    assert np.array_equal(read_ct(float_image).array, CT)


def test_single_time_point_is_squeezed_and_one_slice_is_a_volume(tmp_path):  # F28, F53
    assert np.array_equal(read_ct(save(tmp_path / "a.nii", nifti(CT[..., None]))).array, CT)
    assert read_ct(save(tmp_path / "b.nii", nifti(CT[..., :1]))).array.shape == (5, 6, 1)


def test_voxel_size_comes_from_the_affine_not_the_zooms(tmp_path):
    volume = read_ct(save(tmp_path / "ct.nii", nifti(pixdim=[1, 9, 9, 9, 1, 1, 1, 1], qform_code=0)))
    assert np.allclose(voxel_size_mm(volume.affine), [0.75, 0.5, 2.5])
    assert any("disagrees" in w for w in volume.warnings)


def test_label_maps_are_integers_and_near_integers_are_rounded(tmp_path):  # D07
    labels = (CT % 7).astype(np.float32)
    near = labels + np.float32(0.0009) * RNG.choice([-1, 1], labels.shape).astype(np.float32)
    volume = read_label_map(save(tmp_path / "a.nii", nifti(near)))
    assert volume.array.dtype == np.uint8 and np.array_equal(volume.array, labels)
    assert read_label_map(save(tmp_path / "b.nii", nifti(CT.astype(np.int64)))).array.dtype == np.int32   # negative
    labels[0, 0, :3] = 1.5
    assert "3 voxels are not integers (such as 1.5" in refusal(save(tmp_path / "c.nii", nifti(labels)), read_label_map)
    labels[0, 0, :3] = np.nan
    assert "nan" in refusal(save(tmp_path / "d.nii", nifti(labels)), read_label_map)


def test_a_few_nan_voxels_become_air_and_many_are_refused(tmp_path):  # F50
    hu = RNG.normal(0, 300, (10, 10, 10)).astype(np.float32)
    hu[0, 0, :4], hu[0, 0, 4] = np.nan, np.inf
    volume = read_ct(save(tmp_path / "a.nii", nifti(hu)))
    assert (volume.array[0, 0, :5] == -1024).all() and np.isfinite(volume.array).all()
    assert volume.warnings == ["5 voxels are NaN or infinite; they are read as air (-1024 HU)"]
    hu[0] = np.nan
    assert "100 of 1,000 voxels are NaN" in refusal(save(tmp_path / "b.nii", nifti(hu)))


# ------------------------------------------------------------------------------------------- accepted with a warning

def broken_sform(code):
    return {"srow_x": 0, "srow_y": 0, "srow_z": 0, "sform_code": 1, "qform_code": code}


@pytest.mark.parametrize("name, data, words", [
    pytest.param("ct.nii.gz", nifti(), "not compressed", id="F05"),
    pytest.param("ct.nii", gzip.compress(nifti()), "compressed although", id="F06"),
    pytest.param("ct.nii.gz", gzip.compress(nifti()) + b"junk", "not gzip follow", id="F12"),
    pytest.param("ct.nii", nifti(pixdim=[1, 0, 0.5, 2.5, 1, 1, 1, 1], qform_code=0), "disagrees", id="F39"),
    pytest.param("ct.nii", nifti(pixdim=[1, np.nan, 0.5, 2.5, 1, 1, 1, 1], qform_code=0), "disagrees", id="F40"),
    pytest.param("ct.nii", nifti(**broken_sform(1)), "qform is used", id="F41-zeros"),
    pytest.param("ct.nii", nifti(**{**broken_sform(1), "srow_x": np.nan}), "qform is used", id="F41-nan"),
    pytest.param("ct.nii", nifti(sform_code=0, qform_code=0), "no orientation information", id="F42"),
    pytest.param("ct.nii", nifti(qform_code=99), "qform_code 99 in the header is unknown", id="F42-code"),
    pytest.param("ct.nii", nifti(quatern_b=0.1), "sform and qform of the header differ", id="F43"),
    pytest.param("ct.nii", nifti(affine=np.diag([0.05, 0.5, 5, 1])), "unusual voxel size", id="F47"),
    pytest.param("ct.nii", nifti(affine=np.diag([8e-4, 8e-4, 3e-3, 1]), xyzt_units=1), "not in millimetres", id="F48"),
    pytest.param("ct.nii", nifti(xyzt_units=1), "impossible voxels", id="F48-wrong"),
    pytest.param("ct.nii", nifti(CT.astype(np.int64) * 2**20), "beyond 2^24", id="F32"),
    pytest.param("ct.nii", nifti((CT % 256).astype(np.uint8)), "grey picture", id="F54-255"),
    pytest.param("ct.nii", nifti(RNG.random((5, 6, 7)).astype(np.float32)), "grey picture", id="F54-1"),
    pytest.param("ct.nii", nifti(np.clip(CT + 1024, 0, 1100)), "HU + 1024", id="F55"),
])
def test_odd_file_is_accepted_with_a_warning(name, data, words, tmp_path):
    volume = read_ct(save(tmp_path / name, data))
    assert isinstance(volume, Volume) and volume.array.shape == CT.shape
    assert any(words in warning for warning in volume.warnings), volume.warnings
    assert not any("\n" in warning for warning in volume.warnings)


def test_valid_qform_replaces_a_broken_sform_in_the_output_too(tmp_path):  # F41
    volume = read_ct(save(tmp_path / "ct.nii", nifti(**broken_sform(1))))
    assert np.allclose(volume.affine, AFFINE)
    write_label_map(tmp_path / "out.nii", CT > 0, volume.geometry)
    assert np.allclose(nib.load(tmp_path / "out.nii").affine, AFFINE)


def test_metres_are_honoured_and_the_output_keeps_the_source_affine(tmp_path):  # F48
    path = save(tmp_path / "ct.nii", nifti(affine=np.diag([8e-4, 8e-4, 3e-3, 1]), xyzt_units=1))
    volume = read_ct(path)
    assert np.allclose(voxel_size_mm(volume.affine), [0.8, 0.8, 3.0])
    write_label_map(tmp_path / "out.nii", CT > 0, volume.geometry)
    assert np.array_equal(nib.load(tmp_path / "out.nii").affine, nib.load(path).affine)


@pytest.mark.parametrize("padding", [b"", b"\0" * 512])
def test_several_gzip_members_are_one_file(padding, tmp_path):  # F13
    raw = nifti()
    parts = [gzip.compress(raw[start:start + 100]) + padding for start in range(0, len(raw), 100)]
    volume = read_ct(save(tmp_path / "ct.nii.gz", b"".join(parts) + gzip.compress(b"")))
    assert np.array_equal(volume.array, CT) and volume.warnings == []


# ------------------------------------------------------------------------------------------- refused

def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1:]


PACKED = gzip.compress(nifti(), mtime=0)
STORED = gzip.compress(nifti(), compresslevel=0, mtime=0)     # the deflate stream is the raw bytes
SHEARED = AFFINE + [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
LIE = {"dim": [3, 2000, 2000, 2000, 1, 1, 1, 1]}

REFUSED = [
    pytest.param(b"", "empty file", id="F02"),
    pytest.param(b"<!DOCTYPE html><html>404</html>", "starts with '<!DOCTYPE' (a failed download?)", id="F03"),
    pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Run git lfs pull", id="F04"),
    pytest.param(PACKED[:len(PACKED) // 2], "truncated", id="F07"),
    pytest.param(PACKED[:-8], "truncated (CRC missing)", id="F08"),
    pytest.param(PACKED[:-3], "truncated (CRC missing)", id="F08-part"),
    pytest.param(flipped(PACKED, -7), "CRC mismatch", id="F09"),
    pytest.param(flipped(PACKED, -3), "corrupt gzip stream", id="F09-length"),
    pytest.param(flipped(PACKED, len(PACKED) // 2), "the file is damaged", id="F10"),
    pytest.param(flipped(STORED, len(STORED) - 50), "CRC mismatch", id="F11"),
    pytest.param(gzip.compress(nifti(**LIE)), "compressed bytes can hold", id="F14"),
    pytest.param(nifti(**LIE), "truncated: expected 16,000,000,352 bytes", id="F15"),
    pytest.param(gzip.compress(nifti() + bytes(2**20)), "more data than declared", id="F17"),
    pytest.param(nifti() + b"x", "more data than declared", id="F17-plain"),
    pytest.param(nifti()[:200], "not NIfTI", id="F18"),
    pytest.param(gzip.compress(nifti()[:200]), "not NIfTI", id="F18-gz"),
    pytest.param(nifti()[:-9], f"expected {len(nifti()):,} bytes (5 x 6 x 7), got {len(nifti()) - 9:,}", id="F19"),
    pytest.param(gzip.compress(nifti()[:-9]), "truncated: expected", id="F19-gz"),
    pytest.param(nifti(magic=b"nope"), "not NIfTI", id="F20"),
    pytest.param(RNG.bytes(1000), "not NIfTI", id="F20-noise"),
    pytest.param(nifti(magic=b"\0\0\0\0"), "an Analyze 7.5 file, whose header does not", id="F20-analyze"),
    pytest.param(struct.pack(">7i", 1, 9, 9, 9, 1, 4, 0) + bytes(999), "an MGH file of FreeSurfer", id="F20-mgh"),
    pytest.param(b"NRRD0004\ntype: short\n" + bytes(999), "an NRRD file, not NIfTI. Convert it", id="F20-nrrd"),
    pytest.param(b"ObjectType = Image\nNDims = 3\n" + bytes(999), "a MetaImage file", id="F20-meta"),
    pytest.param(bytes(128) + b"DICM" + bytes(999), "a DICOM file", id="F20-dicom"),
    pytest.param(nifti(vox_offset=-1), "bad vox_offset -1", id="F21-negative"),
    pytest.param(nifti(vox_offset=np.nan), "bad vox_offset nan", id="F21-nan"),
    pytest.param(nifti(vox_offset=1e12), "bad vox_offset 1e+12", id="F21-huge"),
    pytest.param(nifti(vox_offset=1e4), "truncated", id="F21-beyond"),
    pytest.param(nifti(extension=b"\1\0\0\0" + struct.pack("<ii", 2**30, 4) + bytes(20)), "extension", id="F22"),
    pytest.param(nifti(dim=[3, 5, 0, 7, 1, 1, 1, 1]), "bad dimensions", id="F25-zero"),
    pytest.param(nifti(dim=[3, 5, -6, 7, 1, 1, 1, 1]), "bad dimensions", id="F25-negative"),
    pytest.param(nifti(dim=[0, 5, 6, 7, 1, 1, 1, 1]), "bad dimensions", id="F25-ndim-0"),
    pytest.param(nifti(dim=[9, 5, 6, 7, 1, 1, 1, 1]), "bad dimensions", id="F25-ndim-9"),
    pytest.param(nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "truncated: expected 70,362,", id="F26"),
    pytest.param(nifti(header_class=nib.Nifti2Header, dim=[3, 2**62, 2**62, 4, 1, 1, 1, 1]), "truncated", id="F26-2"),
    pytest.param(nifti(CT[0]), "2-D; need a 3-D CT", id="F27"),
    pytest.param(nifti(np.stack([CT, CT], -1)), "nib.save(img.slicer[..., 0]", id="F28"),
    pytest.param(nifti(np.stack([CT] * 3, -1)[:, :, :, None]), "5-D", id="F29"),
    pytest.param(nifti(datatype=128, bitpix=24), "RGB image (a screenshot export?)", id="F30"),
    pytest.param(nifti(datatype=2304, bitpix=32), "RGB image", id="F30-rgba"),
    pytest.param(nifti(CT.astype(np.complex64)), "complex", id="F31"),
    pytest.param(nifti(datatype=0), "unknown voxel type", id="F31-unknown"),
    pytest.param(nifti(datatype=1536), "unknown voxel type", id="F32-quad"),
    pytest.param(nifti(datatype=77), "unknown voxel type", id="F31-undefined"),
    pytest.param(nifti(scl_slope=np.inf), "bad scaling", id="F37"),
    pytest.param(nifti(scl_slope=1, scl_inter=-np.inf), "bad scaling", id="F38"),
    pytest.param(nifti(sform_code=0, qform_code=0, pixdim=[1, 0, 0, 0, 1, 1, 1, 1]), "no voxel size", id="F39"),
    pytest.param(nifti(**broken_sform(0)), "no valid affine", id="F41-zeros"),
    pytest.param(nifti(**{**broken_sform(1), "quatern_b": np.nan}), "no valid affine", id="F41-both"),
    pytest.param(nifti(affine=SHEARED), "sheared affine, 21.8 degrees", id="F44"),
]


@pytest.mark.parametrize("data, words", REFUSED)
def test_bad_file_is_refused_with_what_and_what_to_do(data, words, tmp_path):
    for name in ("ct.nii.gz", "ct.nii"):                      # the content decides, not the name
        assert words in refusal(save(tmp_path / name, data))


def test_f28_a_one_hot_label_map_is_not_told_to_take_a_single_channel(tmp_path):
    message = refusal(save(tmp_path / "label.nii", nifti(np.stack([CT, CT], -1))), read_label_map)
    assert "need a 3-D label map. If each channel is the mask of a class, write the number" in message
    assert "slicer" not in message


def test_f24_a_description_has_nowhere_to_do_harm(tmp_path):
    """Without names, the voxels begin right behind the header; the extension of the CT is not copied."""
    extension = b"\1\0\0\0" + struct.pack("<2i", 16, 6) + b"<x>]]>\0\0"
    volume = read_ct(save(tmp_path / "ct.nii", nifti(extension=extension)))
    write_label_map(tmp_path / "out.nii", volume.array > 0, volume.geometry, "liver]]>\x1b[2J")
    data = (tmp_path / "out.nii").read_bytes()
    assert data[348:352] == bytes(4) and len(data) == 352 + CT.size


def test_missing_file_suggests_the_nearest_name(ct_path):  # F01
    message = refusal(ct_path.with_name("ct.nii.qz"))
    assert "no such file" in message and message.endswith("Did you mean 'ct.nii.gz'?")
    assert "does not exist either" in refusal(ct_path.parent / "nowhere" / "ct.nii.gz")


def test_folder_pipe_socket_and_broken_links_are_refused(tmp_path):  # F58, F59
    (tmp_path / "x.nii.gz").mkdir()
    assert "is a folder" in refusal(tmp_path / "x.nii.gz")
    os.mkfifo(tmp_path / "fifo.nii")
    assert "not a regular file" in refusal(tmp_path / "fifo.nii")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert "not a regular file" in refusal(tmp_path / "s")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    assert "cannot be opened" in refusal(tmp_path / "loop.nii")
    (tmp_path / "dangling.nii").symlink_to("gone.nii")
    assert "symbolic link" in refusal(tmp_path / "dangling.nii")
    assert "cannot be opened" in refusal(tmp_path / ("x" * 300))
    assert "not a regular file" in refusal("/dev/null")


@contextlib.contextmanager
def without_roots_rights():
    """Root may read everything: there, the block runs as the user nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="this system has no user ids")
def test_unreadable_file_is_refused():  # F61
    with tempfile.TemporaryDirectory() as folder:                           # pytest's folders are root's alone
        os.chmod(folder, 0o755)
        path = save(Path(folder) / "ct.nii.gz", gzip.compress(nifti()))
        path.chmod(0o644)
        with without_roots_rights():
            assert read_ct(path).array.shape == CT.shape
        path.chmod(0)
        with without_roots_rights():
            assert refusal(path) == f"{path}: permission denied. Make the file readable for this user."


def test_name_with_a_line_break_keeps_the_message_on_one_line(tmp_path):
    with pytest.raises(VolumeError) as error:
        read_ct(tmp_path / "a\nb.nii")
    assert "a\\nb.nii: no such file" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [True, False])
def test_header_that_lies_about_its_size_costs_neither_time_nor_memory(packed, tmp_path):  # F14, F15
    path = save(tmp_path / "ct.nii.gz", gzip.compress(nifti(**LIE)) if packed else nifti(**LIE))
    tracemalloc.start()
    began = time.process_time()
    refusal(path)
    assert time.process_time() - began < 0.1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_memory_grows_with_the_bytes_that_arrive_not_with_the_promise(tmp_path):  # F14
    start = nifti(dim=[3, 1000, 1000, 400, 1, 1, 1, 1])       # 800 MB promised; 1 MB of noise could hold that
    path = save(tmp_path / "ct.nii.gz", gzip.compress(start + RNG.bytes(2**20)))
    tracemalloc.start()
    assert "truncated: expected 800,000,352 bytes" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.slow
def test_consistent_bomb_is_held_to_the_voxel_limit_and_to_its_header(tmp_path):  # F16, F17
    path = save(tmp_path / "a.nii.gz", gzip.compress(nifti(np.zeros((100, 100, 100), np.int16))))
    assert "1,000,000 voxels (100 x 100 x 100), more than the limit of 999,999" in refusal(path, max_voxels=999_999)
    assert read_ct(path, max_voxels=1e6).array.size == 10**6
    path = save(tmp_path / "b.nii.gz", gzip.compress(nifti() + bytes(200 * 2**20), compresslevel=1))
    tracemalloc.start()
    assert "more data than declared" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_file_that_changes_while_it_is_read_is_refused(ct_path, monkeypatch):  # F60
    from uniseg.imaging import nifti as module
    check = module._check_promise
    monkeypatch.setattr(module, "_check_promise", lambda *args: (check(*args), os.utime(ct_path, (0, 0))))
    assert "changed while it was read" in refusal(ct_path)


def test_a_few_zero_bytes_behind_the_voxels_are_tolerated(tmp_path):
    for data in (nifti() + bytes(64), gzip.compress(nifti() + bytes(64))):
        assert np.array_equal(read_ct(save(tmp_path / "ct.nii", data)).array, CT)


def test_extensions_are_skipped_and_never_parsed(tmp_path):  # F23
    bomb = b'<!DOCTYPE lolz [<!ENTITY a "' + b"lol" * 40 + b'">]>'
    extension = b"\1\0\0\0" + struct.pack("<ii", 8 + len(bomb), 6) + bomb
    assert np.array_equal(read_ct(save(tmp_path / "ct.nii", nifti(extension=extension))).array, CT)


def extensions(count, size=8):
    return b"\1\0\0\0" + struct.pack("<ii", size, 6).ljust(size, b"x") * count


def test_f64_header_extensions_are_counted(tmp_path):
    assert np.array_equal(read_ct(save(tmp_path / "ct.nii", nifti(extension=extensions(999)))).array, CT)
    many = nifti(extension=extensions(1_000_000))
    began = time.process_time()
    assert "more than 1,000 header extensions" in refusal(save(tmp_path / "ct.nii", many))
    assert "more than 1,000 header extensions" in refusal(save(tmp_path / "ct.nii.gz", gzip.compress(many, 1)))
    assert time.process_time() - began < 1


def test_f65_zeros_without_end_behind_a_gzip_member_are_not_read(tmp_path):
    path = save(tmp_path / "ct.nii.gz", gzip.compress(nifti()))
    os.truncate(path, 2**40)                                  # a sparse file
    volume = read_ct(path)
    assert np.array_equal(volume.array, CT) and "not gzip follow" in volume.warnings[0]
    path = save(tmp_path / "cut.nii.gz", gzip.compress(nifti()[:-9]))
    os.truncate(path, 2**40)
    assert "truncated" in refusal(path)


def test_f65_gzip_members_of_almost_nothing_are_refused(tmp_path):
    empty = gzip.compress(b"", mtime=0)
    assert np.array_equal(read_ct(save(tmp_path / "a.nii.gz", empty * 500 + PACKED + empty * 400)).array, CT)
    path = save(tmp_path / "b.nii.gz", empty * 5000 + PACKED)
    assert "cut into more than 1,000 gzip members of a few bytes each" in refusal(path)


def test_f65_members_of_a_sensible_size_are_read_however_many(tmp_path):
    raw = nifti(np.zeros((128, 128, 64), np.int16))
    parts = b"".join(gzip.compress(raw[at:at + 1500], 1) for at in range(0, len(raw), 1500))
    assert read_ct(save(tmp_path / "ct.nii.gz", parts)).array.size == 128 * 128 * 64


@pytest.mark.parametrize("shape", [(1, 1, 40_000), (40_000, 1, 2)])
def test_f66_an_axis_longer_than_that_of_any_ct_is_refused(shape, tmp_path):
    data = nifti(np.zeros(shape, np.int16), header_class=nib.Nifti2Header)
    assert "no axis of a CT has more than 32,767" in refusal(save(tmp_path / "ct.nii", data))
    assert "no axis of a CT has more than 32,767" in refusal(save(tmp_path / "ct.nii.gz", gzip.compress(data)))


def test_any_single_bit_flip_of_a_gzip_file_is_noticed_or_harmless(tmp_path):  # F10
    for at in range(10, len(PACKED), 5):                      # the first 10 bytes name the time and the system
        try:
            array = read_ct(save(tmp_path / "ct.nii.gz", flipped(PACKED, at))).array
        except VolumeError:
            continue
        assert np.array_equal(array, CT)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("raw", [nifti(), nifti(endian=">"), nifti(CT.astype("f4"), header_class=nib.Nifti2Header)])
def test_random_bytes_in_the_header_give_a_volume_or_a_refusal(raw, tmp_path):
    rng = np.random.default_rng(3)
    for _ in range(200):
        data = bytearray(raw)
        for at in rng.integers(4, 540 if len(raw) > 1000 else 348, 3):
            data[at] = rng.choice([0, 1, 127, 128, 255])
        try:
            volume = read_ct(save(tmp_path / "ct.nii", bytes(data)))
        except VolumeError as error:
            assert "\n" not in str(error)
        else:
            write_label_map(tmp_path / "out.nii", volume.array > 0, volume.geometry)
            assert np.allclose(nib.load(tmp_path / "out.nii").affine, volume.geometry.affine, rtol=1e-6)


# ------------------------------------------------------------------------------------------- atomic writing

def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    path = save(tmp_path / "result.json", b"old")
    for error in (RuntimeError, KeyboardInterrupt):           # O07
        with pytest.raises(error):
            with atomic_write(path) as temporary:
                assert temporary.parent == tmp_path and temporary.name.startswith(".result.json.")
                temporary.write_bytes(b"half")
                raise error
    with pytest.raises(FileError, match="disk full"):       # O05
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_is_named(ct_path, tmp_path):  # O04
    with pytest.raises(FileError, match="out.nii.gz: cannot be written: "):
        write_label_map(ct_path / "out.nii.gz", CT > 0, read_ct(ct_path).geometry)


def test_good_write_replaces_the_file_at_once(tmp_path):
    path = save(tmp_path / "result.json", b"old")
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------- resampling

def world(shape, affine):
    """Coordinates (3, D, H, W) in mm of every voxel."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


@pytest.mark.parametrize("spacing", [1.5, (0.3, 1.1, 4.0)])
def test_resample_equals_scipy_at_the_same_points(spacing):
    array = np.asfortranarray(RNG.normal(0, 300, (20, 23, 9)))
    out, affine = resample(array, AFFINE, spacing)
    assert out.shape == resampled_shape(array.shape, voxel_size_mm(AFFINE), spacing)
    assert out.dtype == np.float32 and out.flags.f_contiguous
    points = np.linalg.inv(AFFINE)[:3, :3] @ (world(out.shape, affine).reshape(3, -1) - AFFINE[:3, 3:])
    expected = map_coordinates(array, points, order=1, mode="nearest").reshape(out.shape)
    assert np.allclose(out, expected, atol=1e-3)


def test_resample_keeps_the_centre_of_the_field_of_view():
    out, affine = resample(CT, AFFINE, 1.5)
    centre, new_centre = (a @ [*((np.array(s) - 1) / 2), 1] for a, s in ((AFFINE, CT.shape), (affine, out.shape)))
    assert np.allclose(centre, new_centre) and np.allclose(voxel_size_mm(affine), 1.5)


def test_resample_to_the_same_spacing_changes_nothing():
    out, affine = resample(CT, AFFINE, voxel_size_mm(AFFINE))
    assert np.array_equal(out, CT) and np.allclose(affine, AFFINE)
    assert np.array_equal(resample(CT, AFFINE, (0.75, 0.5, 2.5), antialias=True)[0], CT)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resampling_commutes_with_flips(axis, antialias):
    array = RNG.normal(0, 300, (11, 14, 8))
    flip = resample(np.flip(array, axis), AFFINE, 1.3, antialias=antialias)[0]
    assert np.allclose(np.flip(flip, axis), resample(array, AFFINE, 1.3, antialias=antialias)[0], atol=1e-3)
    mask = array > 100
    flip = resample_mask(np.flip(mask, axis), AFFINE, 1.3)
    assert np.array_equal(np.flip(flip, axis), resample_mask(mask, AFFINE, 1.3))


def test_memory_order_does_not_change_the_result():
    array = RNG.normal(0, 300, (11, 14, 8))
    for order in itertools.permutations(range(3)):
        same = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
        assert np.array_equal(resample(same, AFFINE, 1.3)[0], resample(array, AFFINE, 1.3)[0])


def test_antialiasing_averages_and_linear_interpolation_picks():
    spike = np.zeros((9, 9, 9), np.float32)
    spike[::2] = 1                                            # alternating planes: mean 5/9
    affine = np.eye(4)
    assert resample(spike, affine, (4, 1, 1))[0].max() == 1
    assert np.allclose(resample(spike, affine, (4, 1, 1), antialias=True)[0], 5 / 9, atol=0.05)


def test_grid_too_large_to_hold_is_refused_before_it_is_allocated():  # F47
    with pytest.raises(VolumeError, match="make a grid of"):
        resample(np.broadcast_to(np.int16(0), (512, 512, 512)), np.diag([20.0, 20, 20, 1]), 1.5)


@pytest.mark.parametrize("shape, native_mm, model_mm, words", [
    ((10, 10, 10), 300.0, 3.0, "more than 67,108,864 voxels"),                  # 1,000 voxels became 4 GB
    ((10, 10, 10), 301.0, 3.0, "a field of view of 3010"),
    ((10, 10, 10), 120.0, 1.5, "more than 67,108,864 voxels"),                  # 800 x 800 x 800
    ((512, 512, 512), (7.0, 7.0, 1.0), 1.5, "a field of view of 3584"),         # cm for mm
    ((1, 1, 30_000), 1.0, 3.0, "a field of view of 1 x 1 x 3e+04 mm"),
    ((9, 9, 9), 1e-5, 3.0, "each as long as 300,000 of them"),                  # antialiasing would add up as many
])
def test_f63_the_grid_of_the_model_is_bounded_by_axis_by_memory_and_by_the_voxels_of_the_ct(shape, native_mm, model_mm,
                                                                                           words):
    with pytest.raises(VolumeError, match="make a grid of .* mm, .*Check its voxel size") as error:
        resampled_shape(shape, native_mm, model_mm)
    assert words in str(error.value)


@pytest.mark.parametrize("shape, native_mm, model_mm", [
    ((512, 512, 2000), (0.98, 0.98, 1.0), 1.5),               # 2 m of a patient
    ((512, 512, 40), (0.7, 0.7, 10.0), 1.5), ((1024, 1024, 300), 0.35, 3.0), ((40, 40, 40), 12.0, 1.5),
    ((128, 128, 90), 4.0, 1.5), ((20, 20, 20), 20.0, 1.5), ((5, 6, 7), (0.05, 0.5, 5.0), 1.5)])
def test_f63_grids_of_real_and_of_small_cts_are_made(shape, native_mm, model_mm):
    assert min(resampled_shape(shape, native_mm, model_mm)) >= 1


def test_a_given_shape_is_honoured():
    out, _ = resample(CT, AFFINE, 1.5, shape=(4, 4, 20))
    assert out.shape == (4, 4, 20)
    assert np.array_equal(out[..., 0], out[..., 1])           # beyond the edge, its voxel is repeated


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 2), (64, 1, 1)])
def test_axes_of_one_voxel_resample(shape):
    out, _ = resample(np.full(shape, 7, np.int16), AFFINE, 1.5)
    assert np.allclose(out, 7) and min(out.shape) == 1


def brought_back(model, model_affine, native_shape, native_affine, box=None, planes=7):
    """A volume of the model's grid on the native grid, a few planes at a time; outside `box` it counts as 0."""
    box = box or tuple(slice(0, n) for n in model.shape)
    way, native = way_back(box, model.shape, native_shape, model_affine, native_affine), np.zeros(native_shape)
    for first in range(0, native_shape[2], planes):
        here = slice(first, min(first + planes, native_shape[2]))
        part = way.within(here)
        if part is not None:
            native[:, :, here][part.native] = part.resample(model[box][:, :, part.needs])
    return native


def test_there_and_back_keeps_a_smooth_field():
    shape = (40, 44, 30)
    x, y, z = world(shape, AFFINE)
    field = np.sin(x / 9) + np.cos(y / 7) + np.sin(z / 20)
    back = brought_back(*resample(field, AFFINE, 1.5), shape, AFFINE)
    assert np.abs(back - field)[2:-2, 3:-3, 2:-2].max() < 0.05


def test_the_way_back_returns_every_world_coordinate_to_its_place():
    shape = (30, 28, 20)
    model, model_affine = resample(np.zeros(shape), AFFINE, 1.5)
    for axis in range(3):                                     # beyond the outermost model voxels they are repeated
        ramp = world(model.shape, model_affine)[axis].astype(np.float32)
        at = world(shape, AFFINE)[axis]
        inside = (at >= ramp.min()) & (at <= ramp.max())
        back = brought_back(ramp, model_affine, shape, AFFINE)
        assert inside.mean() > 0.8 and np.allclose(back[inside], at[inside], atol=1e-4)


def test_the_way_back_on_the_same_grid_is_the_identity():
    values = RNG.random((9, 10, 70), np.float32)
    assert np.array_equal(brought_back(values, AFFINE, values.shape, AFFINE), values)
    way = way_back((slice(0, 9), slice(0, 10), slice(0, 70)), values.shape, values.shape, AFFINE, AFFINE)
    part = way.within(slice(32, 64))
    assert part.needs.start in (31, 32) and part.needs.stop in (64, 65)       # it needs hardly more than these planes
    assert part.native == (slice(0, 9), slice(0, 10), slice(0, 32))           # counted from plane 32
    assert part.resample(values[:, :, part.needs]).dtype == np.float32


@pytest.mark.parametrize("native_spacing", [(0.7, 0.8, 1.0), (2.0, 1.5, 5.0)])
def test_the_way_back_of_a_box_equals_that_of_the_whole_in_blocks_of_any_size(native_spacing):
    native_affine = np.diag([*native_spacing, 1.0])
    native_shape = (50, 40, 45)
    model, model_affine = resample(np.zeros(native_shape), native_affine, 1.5)
    box = tuple(slice(n // 4, n // 2) for n in model.shape)
    model[box] = RNG.random(model[box].shape)
    whole = brought_back(model, model_affine, native_shape, native_affine, planes=45)
    assert whole.max() > 0
    for planes in (1, 8, 45):
        assert np.array_equal(whole, brought_back(model, model_affine, native_shape, native_affine, box, planes))


def test_a_box_between_coarse_native_voxels_reaches_none_of_them():
    coarse = np.diag([10.0, 10.0, 10.0, 1.0])
    one, all_of_it = slice(8, 9), slice(0, 40)
    for box in ((one, one, one), (all_of_it, all_of_it, one), (one, all_of_it, all_of_it)):
        assert way_back(box, (40, 40, 40), (4, 4, 4), np.eye(4), coarse).within(slice(0, 4)) is None


def test_resample_mask_keeps_the_volume():
    x, y, z = world((80, 90, 20), AFFINE)
    centre = AFFINE @ [40, 45, 10, 1]
    ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 15 ** 2
    before, after = ball.sum() * 0.75 * 0.5 * 2.5, resample_mask(ball, AFFINE, 1.5).sum() * 1.5 ** 3
    assert abs(after / before - 1) < 0.03


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resample_mask_keeps_a_line_one_voxel_thin(axis):
    affine, mask = np.diag([0.7, 0.7, 0.7, 1]), np.zeros((40, 40, 40), bool)
    line = [20, 21, 22]
    line[axis] = slice(5, 35)
    mask[tuple(line)] = True
    out = resample_mask(mask, affine, 1.5)
    filled = np.flatnonzero(out.any(axis=tuple({0, 1, 2} - {axis})))
    assert np.array_equal(filled, np.arange(filled[0], filled[-1] + 1))          # unbroken
    assert len(filled) * 1.5 >= 30 * 0.7 - 2 * 1.5


def test_resample_mask_keeps_one_voxel_and_makes_none_from_nothing():
    mask = np.zeros((20, 20, 20), bool)
    assert not resample_mask(mask, np.eye(4), 3.0).any()
    mask[13, 4, 7] = True
    out = resample_mask(mask, np.eye(4), 3.0)
    assert out.shape == resample(mask, np.eye(4), 3.0)[0].shape and 1 <= out.sum() <= 2
    assert resample_mask(np.ones((5, 5, 5), bool), np.eye(4), 1.5).all()


def test_resample_mask_upsamples_like_a_half_threshold():
    mask = RNG.random((10, 10, 10)) > 0.5
    assert resample_mask(mask, np.eye(4), 0.5).shape == (20, 20, 20)
    assert np.array_equal(resample_mask(mask, np.eye(4), 1.0), mask)


def test_scale_hu_is_linear_in_the_window_and_saturates():
    hu = np.asfortranarray([[-1000, -175], [250, 3000]], dtype=np.int16)
    assert scale_hu(hu).tolist() == [[0, 0], [1, 1]] and scale_hu(np.array([37.5])).tolist() == [0.5]
    assert scale_hu(hu).dtype == np.float32 and scale_hu(hu).flags.f_contiguous
    assert np.array_equal(hu, [[-1000, -175], [250, 3000]])   # the input is left alone


# ------------------------------------------------------------------------------------------- real data

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "train" / "TotalSegExample"


@pytest.mark.parametrize("diagonal, warned", [((1, 1, 1), True), ((-1, -1, 1), True), ((1, 1, 2), False)], ids=str)
def test_c08_an_identity_affine_is_warned_about(diagonal, warned):
    ct = read_ct(nib.Nifti1Image(CT, np.diag([*map(float, diagonal), 1.0])))
    assert ct.warnings == ["the affine is the identity, as of a file that has lost it. Check voxel size and "
                           "orientation"] * warned


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared data at {DATA}")
def test_real_ct_reads_as_nibabel_does_and_its_labels_make_the_round_trip(tmp_path):
    path, = (DATA / "imagesTr").glob("*.nii.gz")
    volume, image = read_ct(path), nib.as_closest_canonical(nib.load(path))
    assert volume.array.dtype == np.int16 and volume.warnings == []
    assert np.array_equal(volume.array, np.maximum(np.asanyarray(image.dataobj), -1024))
    assert np.array_equal(volume.affine, image.affine)
    labels = read_label_map(DATA / "labelsTr" / path.name)
    write_label_map(tmp_path / "out.nii.gz", labels.array, labels.geometry)
    out, source = nib.load(tmp_path / "out.nii.gz"), nib.load(DATA / "labelsTr" / path.name)
    assert np.array_equal(np.asanyarray(out.dataobj), np.asanyarray(source.dataobj))
    assert np.array_equal(out.affine, source.affine)
