"""A real head CT to test on: `python benchmarks/head_ct.py OUT.nii.gz Cranium.inv3`. Beyond the paper.

The CT is the example "Cranium" of InVesalius (Centro de Tecnologia da Informacao Renato Archer), which Debian ships in the package
invesalius-examples; its copyright file puts it under GPL-2. It is neither part of this repository nor of any training:

    apt-get download invesalius-examples && dpkg-deb -x invesalius-examples_*.deb unpacked
    python benchmarks/head_ct.py head.nii.gz unpacked/usr/share/doc/invesalius-examples/examples/Cranium.inv3

A head shows none of the classes, so each voxel that a model finds in it is wrong.
"""

import plistlib
import sys
import tarfile
from pathlib import Path

import numpy as np

from uniseg.imaging.volume import write_volume


def read_inv3(path):
    """HU (D, H, W) int16 in RAS+ and affine (4, 4) of an InVesalius project (.inv3): a tar of a main.plist and raw voxels.

    Slices go up and rows from back to front, as the nose shows; columns are taken to go from the patient's right to the left, as in
    DICOM: nothing in a head tells them apart.
    """
    with tarfile.open(path) as project:
        files = {Path(member.name).name: member for member in project}
        about = plistlib.load(project.extractfile(files["main.plist"]))
        raw = project.extractfile(files[about["matrix"]["filename"]]).read()
    voxels = np.frombuffer(raw, about["matrix"]["dtype"]).reshape(about["matrix"]["shape"])
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)[::-1]), np.diag([*about["spacing"], 1.0])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/head_ct.py OUT.nii.gz Cranium.inv3")
    write_volume(Path(sys.argv[1]), *read_inv3(sys.argv[2]))
