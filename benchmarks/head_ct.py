"""Convert a CT of a head that no training has seen, to test that a model finds nothing in it. Beyond the paper.

    python benchmarks/head_ct.py OUT.nii.gz Cranium.inv3

The CT is the example "Cranium" of InVesalius (Centro de Tecnologia da Informacao Renato Archer), which Debian ships in
the package invesalius-examples; its copyright file says GPL-2. It is neither part of this repository nor of any
training:

    apt-get download invesalius-examples && dpkg-deb -x invesalius-examples_*.deb unpacked
    python benchmarks/head_ct.py head.nii.gz unpacked/usr/share/doc/invesalius-examples/examples/Cranium.inv3

A head shows none of the classes, so each voxel that a model finds in it is wrong.
"""

from __future__ import annotations

import argparse
import plistlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniseg.imaging.volume import write_volume


def read_inv3(path: Path) -> tuple[NDArray[np.int16], NDArray]:
    """HU (D, H, W) in RAS+ and affine (4, 4) of an InVesalius project (.inv3): a tar of a main.plist and raw voxels.

    Slices go up and rows from back to front, as the nose shows. Columns are taken to go from the patient's right to the
    left, as in DICOM; nothing in a head tells the two sides apart.
    """
    with tarfile.open(path) as project:
        files = {Path(member.name).name: member for member in project}

        def content(name: str) -> bytes:
            file = project.extractfile(files[name])
            assert file is not None, f"{name} is no file"
            return file.read()

        header = plistlib.loads(content("main.plist"))
        raw = content(header["matrix"]["filename"])
    voxels = np.frombuffer(raw, header["matrix"]["dtype"]).reshape(header["matrix"]["shape"])
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)[::-1]), np.diag([*header["spacing"], 1.0])


def main(argv: Sequence[str] | None = None) -> None:
    """Read the project and write the CT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.nii.gz", help="the CT to write")
    parser.add_argument("project", type=Path, metavar="Cranium.inv3", help="the InVesalius project to read")
    args = parser.parse_args(argv)
    write_volume(args.out, *read_inv3(args.project))


if __name__ == "__main__":
    main()
