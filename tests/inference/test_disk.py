"""O06: whether the results will fit on the disk, asked before any work."""

import gzip
import shutil
import struct
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from uniseg.inference import disk
from uniseg.inference.disk import check_disk, voxels_of
from uniseg.inference.plan import Job
from uniseg.machine.files import FileError


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    """Two CTs of 100 x 200 x 50 voxels: a million."""
    folder = tmp_path_factory.mktemp("cts")
    for name in ("a.nii.gz", "b.nii.gz"):
        nib.Nifti1Image(np.zeros((100, 200, 50), np.uint8), np.eye(4)).to_filename(folder / name)
    return folder


def jobs(cts, ending=".nii.gz"):
    return [Job(cts / f"{name}.nii.gz", cts / "new" / "results" / f"{name}_seg{ending}") for name in "ab"]


# Two label maps of a million voxels: 2 x 968 bytes at the very least, 2 x (16 KiB + 100,000) by the estimate; 3 masks
# each add 3 x 968 and 3 x 10,000. Uncompressed, each label map has a million bytes.
@pytest.mark.parametrize("free, masks, ending, outcome", [
    (300_000, 0, ".nii.gz", ""), (200_000, 0, ".nii.gz", "warning"), (1_900, 0, ".nii.gz", "refused"),
    (300_000, 3, ".nii.gz", ""), (270_000, 3, ".nii.gz", "warning"), (7_700, 3, ".nii.gz", "refused"),
    (2_100_000, 0, ".nii", ""), (2_010_000, 0, ".nii", "warning"), (1_999_999, 0, ".nii", "refused")])
def test_o06_a_disk_that_is_nearly_full_is_a_warning_and_a_full_one_a_refusal(cts, monkeypatch, capsys, free, masks,
                                                                             ending, outcome):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    if outcome == "refused":
        with pytest.raises(FileError, match=r"MiB free, 2 results need at least .* MiB. Make room, or give -o on anot"):
            check_disk(jobs(cts, ending), masks)
        return
    check_disk(jobs(cts, ending), masks)
    err = capsys.readouterr().err
    assert err.startswith("uniseg: warning: ") == (outcome == "warning") and err.count("\n") == (outcome == "warning")


def test_o06_the_command_refuses_before_it_segments(cts, monkeypatch, capsys, tmp_path):
    from uniseg import infer, segmenter

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    loaded = SimpleNamespace(classes=("liver",), device=torch.device("cpu"), select=lambda *_: None,
                             asked=lambda **_: SimpleNamespace(classes=("liver",)))
    monkeypatch.setattr(segmenter, "load", lambda *_: loaded)
    assert infer.main([str(cts), "-o", str(tmp_path / "out")]) == 2
    assert "the disk has 0.0 MiB free, 2 results need at least" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head, voxels", [
    (struct.pack("<i36x8h", 348, 3, 512, 512, 600, 1, 1, 1, 1), 512 * 512 * 600),
    (struct.pack(">i36x8h", 348, 3, 512, 512, 600, 1, 1, 1, 1), 512 * 512 * 600),
    (struct.pack("<i12x8q", 540, 3, 512, 512, 600, 1, 1, 1, 1), 512 * 512 * 600),
    (struct.pack("<i36x8h", 348, 3, -1, 0, 7, 1, 1, 1, 1), 7), (b"<!DOCTYPE html>", 0), (b"", 0),
    (struct.pack("<i", 348), 0)])
@pytest.mark.parametrize("packed", [True, False])
def test_voxels_are_read_from_the_header_alone(tmp_path, head, voxels, packed):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(gzip.compress(head.ljust(348, b"\0") if voxels else head) if packed
                     else head.ljust(348, b"\0") if voxels else head)
    assert voxels_of(path) == voxels


def test_the_voxels_of_what_is_no_file_are_none(tmp_path):
    assert voxels_of(tmp_path / "missing.nii.gz") == voxels_of(tmp_path) == 0
