"""Damages small good files at random and reads them: each must be read, or refused in one line, within 5 s and 1 GB.

    python tests/fuzzing.py nifti 60       a minute of NIfTI files, for imaging/volume.py and imaging/resampling.py
    python tests/fuzzing.py weights 60 7   a minute of weights files, for checkpoint.py; 7 is the seed

Checksums are made right again after most damages, so that these reach deep. The first file that is neither read nor
refused is kept and named, with the traceback; the exit code is then 1. tests/test_fuzz.py runs this in a process of its
own.
"""

import gzip
import io
import math
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np
import torch

from uniseg import checkpoint
from uniseg.imaging.byte_stream import VolumeError
from uniseg.imaging.file_names import class_name_fault
from uniseg.imaging.grid import voxel_size_mm
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample, resampled_shape
from uniseg.imaging.volume import read_ct, read_label_map
from uniseg.machine.memory import peak_memory_bytes
from uniseg.model import ModelConfig, UniversalModel
from uniseg.weights.description import describe

SECONDS, BYTES = 5.0, 1 << 30               # what one file may take
ODD_BYTES = (0, 1, 2, 0x7f, 0x80, 0xff)


class TooSlow(BaseException):
    """A file took more than SECONDS of the processor."""


def stop(*_):
    raise TooSlow


# --------------------------------------------------------------------------------------------------- damages to bytes

def flipped(data, draw, low=0, high=None):
    """The data with a few other bytes between two places."""
    data, high = bytearray(data), min(high or len(data), len(data))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        data[draw.randrange(low, high)] = draw.choice((*ODD_BYTES, draw.randrange(256)))
    return bytes(data)


def cut(data, draw):
    """The data without a part, with a part twice, or only their beginning."""
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return draw.choice((data[:a] + data[b:], data[:b] + data[a:], data[:a], data + data[a:b]))


def damaged(data, draw):
    """The data with some damage."""
    return draw.choice((flipped, flipped, cut))(data, draw)


# ---------------------------------------------------------------------------------------------------------------- NIfTI

def niftis():
    """Bytes of small good files, and the size of their headers."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        for endian, dtype in (("<", "i2"), (">", "i2"), ("<", "f4"), (">", "f8")):
            header = header_class(endianness=endian)
            header.set_data_shape(hu.shape)
            header.set_data_dtype(np.dtype(dtype).newbyteorder(endian))
            header.set_sform(np.diag([2.0, -3.0, 4.0, 1.0]), code=1)
            header.set_qform(np.diag([2.0, -3.0, 4.0, 1.0]), code=1)
            extension = struct.pack(endian + "4sii", b"\1\0\0\0", 32, 6) + bytes(24)
            header["vox_offset"] = header.sizeof_hdr + len(extension)
            voxels = hu.astype(np.dtype(dtype).newbyteorder(endian)).tobytes(order="F")
            yield header.binaryblock + extension + voxels, header.sizeof_hdr + len(extension)


def damaged_nifti(files, draw):
    """(name, bytes) of a damaged NIfTI file."""
    data, header = draw.choice(files)
    kind = draw.randrange(6)
    if kind < 3:                            # the header
        data = flipped(data, draw, 4, header)
    elif kind == 3:
        data = damaged(data, draw)
    if draw.random() < 0.5:
        return "x.nii", data
    at = draw.choice((len(data), len(data), 7, 400))
    packed = gzip.compress(data[:at], 1) + (gzip.compress(data[at:], 1) if at < len(data) else b"")
    return "x.nii.gz", damaged(packed, draw) if kind > 4 else packed


def read_nifti(path, draw):
    """Read as CT and as labels, and go on to the grid of a model."""
    for read in (read_ct, read_label_map):
        volume = read(path)
        assert np.isfinite(volume.affine).all() and volume.array.ndim == 3
    spacing_mm = draw.choice((1.5, 3.0))
    shape = resampled_shape(volume.array.shape, voxel_size_mm(volume.affine), spacing_mm)
    if math.prod(shape) < 100_000 or draw.random() < 0.001:           # large ones are rightly made, but take their time
        resample(volume.array, volume.affine, spacing_mm, antialias=draw.random() < 0.5)


# -------------------------------------------------------------------------------------------------------- weights files

def contents():
    """Contents of small good weights files: one of our own with the state of a run, and one as others publish them."""
    torch.manual_seed(0)
    network = UniversalModel(ModelConfig(("liver", "spleen"), "unet", 2, text_width=3, lpg_hidden=4), torch.ones(2, 3))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(1, 1, 16, 8, 8)).sum().backward()
    optimizer.step()
    path = Path(tempfile.mkdtemp()) / "good.pt"
    checkpoint.save(path, network, Preprocessing((4.0,) * 3, window=(16, 16, 16)), {
        "command": "train", "data": {"a": ["liver"]}, "experimental": {"spleen": "small"}, "second_view": 0.7}, {
        "step": 1, "config": {"lr": 1e-4}, "optimizer": optimizer.state_dict(), "best": 0.5})
    released = {"module." + name.removeprefix("lpg."): tensor for name, tensor in network.state_dict().items()}
    return [torch.load(path, weights_only=True), {"net": released, "epoch": 3}]


VALUES = (None, True, 0, -1, 1, 3, 1 << 31, 1 << 40, 10**18, 1.5, -0.0, 1e300, float("nan"), float("inf"), "", "liver",
          "../ct", "x" * 5000, "\x1b[2J", [], [1], [[]], ["liver"] * 2000, {}, {"a": 1}, {1: {}}, (), (1, 2),
          torch.zeros(0), torch.zeros(3), torch.tensor(1.0), torch.zeros(2, 3), torch.full((4,), float("nan")),
          torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64), torch.eye(3).to_sparse(),
          torch.zeros(1).expand(1000, 1000, 1000), torch.zeros(10**6, 0), torch.empty(5, device="meta"),
          torch.Size([1]), torch.device("cpu"), torch.float16)


def altered(value, draw):
    """A copy in which some entry, at any depth, is another value, is missing, or has another name."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.9:
        new = value.copy()
        key = draw.choice(list(new)) if isinstance(new, dict) else draw.randrange(len(new))
        if draw.random() < 0.1:
            del new[key]
        elif isinstance(new, dict) and draw.random() < 0.1:
            new[draw.choice(("liver", 3, "a/b", "x"))] = new.pop(key)
        else:
            new[key] = altered(new[key], draw)
        return new
    return draw.choice(VALUES)


def saved(content, draw):
    """The bytes of torch.save, in one of its two formats; signed anew where it has a signature."""
    if isinstance(content, dict) and "digest" in content and draw.random() < 0.9:
        try:
            assert sum(tensor.numel() for tensor in content["weights"].values()) < 1e7
            content = {**content, "digest": checkpoint.digest(content["weights"])}
        except Exception:
            pass                            # what is there cannot be signed
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=draw.random() < 0.7)
    return buffer.getvalue()


def damaged_weights(files, draw):
    """(name, bytes) of a damaged weights file."""
    content = draw.choice(files)
    kind = draw.randrange(8)
    data = saved(altered(content, draw) if kind < 4 else content, draw)
    if kind in (4, 5) and data.startswith(b"PK"):                     # the pickle, with right checksums
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {info.filename: file.read(info) for info in file.infolist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name, member in members.items():
                file.writestr(name, damaged(member, draw) if name.endswith("data.pkl") else member)
        return "x.pt", buffer.getvalue()
    if kind == 6:                                                     # the zip file's own tables
        return "x.pt", flipped(data, draw, max(0, len(data) - 10_000))
    return "x.pt", damaged(data, draw) if kind > 3 else data


def read_weights(path, draw):
    """Read, describe, and build the network."""
    content = checkpoint.read(path, partial=draw.random() < 0.5)
    assert not any(map(class_name_fault, content["network"]["classes"]))
    assert all(line.isprintable() for line in "\n".join(describe(path, content)).splitlines())
    Preprocessing.from_dict(content["preprocessing"])
    if "part" not in content:
        checkpoint.load_network(content, path)


# ------------------------------------------------------------------------------------------------------------- the loop

READERS = {"nifti": (niftis, damaged_nifti, read_nifti, VolumeError),
           "weights": (contents, damaged_weights, read_weights, checkpoint.CheckpointError)}


def main(what, seconds, seed=0):
    """Damage and read files for some seconds; returns the exit code."""
    make, damage, read, refusal = READERS[what]
    files, folder = list(make()), Path(tempfile.mkdtemp())
    signal.signal(signal.SIGPROF, stop)
    warnings.simplefilter("error", RuntimeWarning)                    # numpy's lines about NaN are no message for users
    began, memory, counts, number = time.monotonic(), peak_memory_bytes(), [0, 0], 0
    while time.monotonic() - began < seconds:
        draw = random.Random(f"{seed} {number}")
        name, data = damage(files, draw)
        path = folder / name
        path.write_bytes(data)
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            read(path, draw)
            counts[0] += 1
        except refusal as error:
            counts[1] += 1
            message = str(error)
            if "\n" in message or len(message) > 1000 or not message.endswith((".", "?")):
                return told(path, number, seed, f"a message of another form: {message[:500]!r}")
        except BaseException:
            signal.setitimer(signal.ITIMER_PROF, 0)
            return told(path, number, seed, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if peak_memory_bytes() - memory > BYTES:
            return told(path, number, seed, f"{(peak_memory_bytes() - memory) / 1e6:.0f} MB")
        number += 1
    print(f"{number} files, {counts[0]} read and {counts[1]} refused")
    return 0


def told(path, number, seed, what):
    """Print what went wrong with a file, which is kept; returns the exit code."""
    print(f"file {number} of seed {seed}, kept as {path}:\n{what}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:]))
