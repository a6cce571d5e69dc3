"""What several test files share: few threads, synthetic patients, a small assembly of datasets, the real CTs."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")     # before torch is imported, and for the processes that tests start

import numpy as np
import pytest
import torch

import runs
from uniseg import train
from uniseg.imaging.merging import merge_masks
from uniseg.imaging.volume import write_volume
from uniseg.machine import device, progress
from uniseg.phantom import make_phantom

progress.EVERY_SECONDS = math.inf       # on a busy machine, lines about the progress would stand among those expected
device.has_bf16 = lambda: None          # tests compute in float32 on every processor, unless they ask for bf16
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_addoption(parser):
    parser.addoption("--share", metavar="FOLDER", type=Path,
                     help="processes of pytest that are given the same new folder, as --share=FOLDER in one word, "
                     "divide the test files among them, the longest first")
    parser.addoption("--fuzz-seconds", type=float, default=30, metavar="N",
                     help="how long tests/test_fuzz.py (slow) damages files and reads them (default: 30)")
    parser.addoption("--fuzz-seed", type=int, default=0, metavar="N", help="of these damages (default: 0)")


# The slow tier's files that take longest, so that processes that share them end together.
LONGEST = ("test_memory.py", "test_distributed.py", "test_resume.py", "test_check.py", "test_ablations.py",
           "test_continual_benchmark.py", "test_model.py", "test_released.py", "test_synthetic.py", "test_package.py",
           "test_fuzz.py")


def pytest_runtestloop(session):
    """With --share: run the files that no other process has claimed, each claimed just before it is needed."""
    folder = session.config.getoption("--share")
    if folder is None or session.config.option.collectonly:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for item in session.items:
        files.setdefault(item.path, []).append(item)
    order = {name: n for n, name in enumerate(LONGEST)}
    waiting = sorted(files.values(), key=lambda items: order.get(items[0].path.name, len(order)))

    def claim():
        while waiting:
            items = waiting.pop(0)
            with contextlib.suppress(FileExistsError):
                (folder / items[0].path.name).touch(exist_ok=False)
                return items
        return []

    items = claim()
    while items:
        item = items.pop(0)
        items = items or claim()                          # fixtures that the next file needs as well are kept
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[0] if items else None)
        if session.shouldstop or session.shouldfail:
            raise session.Interrupted(session.shouldstop or session.shouldfail)
    return True


class Patient(NamedTuple):
    hu: np.ndarray             # (D, H, W) int16, RAS+
    masks: dict                # class name -> (D, H, W) bool
    affine: np.ndarray         # (4, 4)


class PhantomCT(NamedTuple):
    path: Path                 # .nii.gz
    masks: dict
    affine: np.ndarray


def label_map(masks, shown):
    """uint8 label map with value 1 for the first entry of `shown`, 2 for the second, and so on.

    Tumours cover their organs, as in published label maps.

    shown: {label name: names of the masks it is drawn from}
    """
    painted = [(name, value) for value, names in enumerate(shown.values(), start=1) for name in names]
    names, values = zip(*painted)
    return merge_masks(names, values, lambda k: masks[names[k]], next(iter(masks.values())).shape)


def write_dataset(folder, shown, patients, nnunet=False):
    """A dataset in the Medical Segmentation Decathlon's form, or in nnU-Net v2's.

    patients: {case id: Patient}
    """
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case, patient in patients.items():
        image = f"imagesTr/{case}_0000.nii.gz" if nnunet else f"imagesTr/{case}.nii.gz"
        write_volume(folder / image, patient.hu, patient.affine)
        write_volume(folder / "labelsTr" / f"{case}.nii.gz", label_map(patient.masks, shown), patient.affine)
    if nnunet:
        content = {"labels": {"background": 0, **{name: value for value, name in enumerate(shown, 1)}},
                   "channel_names": {"0": "CT"}, "numTraining": len(patients), "file_ending": ".nii.gz"}
    else:
        content = {"labels": {"0": "background", **{str(value): name for value, name in enumerate(shown, 1)}},
                   "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
                                for case in patients]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """Three datasets that annotate different classes, as in Table 1; five patients, 12 mm voxels. Not to be written to.

        Abdomen  Decathlon form, 2 cases: both kidneys as one label, their tumour, the spleen
        Chest    nnU-Net v2 form, 2 cases: lungs, liver, and a colon tumour that none of them has
        Vessels  Decathlon form, 1 case: hepatic vessels and the tumours beside them, but no liver (as MSD Task08)
    """
    root = tmp_path_factory.mktemp("phantoms")
    patients = [Patient(*make_phantom((12.0, 12.0, 12.0), seed=seed)) for seed in range(5)]
    nothing = np.zeros_like(patients[0].masks["liver"])
    for patient in patients:
        patient.masks["colon_tumor"] = nothing
    write_dataset(root / "Abdomen", {"kidneys": ("right_kidney", "left_kidney"), "kidney tumor": ("kidney_tumor",),
                                     "spleen": ("spleen",)}, {"a0": patients[0], "a1": patients[1]})
    write_dataset(root / "Chest", {"left_lung": ("left_lung",), "right_lung": ("right_lung",), "liver": ("liver",),
                                   "colon_tumor": ("colon_tumor",)},
                  {"c0": patients[2], "c1": patients[3]}, nnunet=True)
    write_dataset(root / "Vessels", {"hepatic vessel": ("hepatic_vessel",), "hepatic vessel tumour": ("liver_tumor",)},
                  {"v0": patients[4]})
    return root


@pytest.fixture(scope="session")
def phantom_ct(tmp_path_factory):
    """A phantom CT of 8 mm voxels as a file, with its masks. Not to be written to."""
    hu, masks, affine = make_phantom((8.0, 8.0, 8.0))
    path = tmp_path_factory.mktemp("phantom") / "phantom.nii.gz"
    write_volume(path, hu, affine)
    return PhantomCT(path, masks, affine)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real CTs beside the repository; they are not part of it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real CTs at {folder}; this test needs them")
    return folder


@pytest.fixture(scope="session")
def flags(phantom_root, tmp_path_factory):
    """Options of a small run; the preprocessed cases are shared by all tests."""
    cache = tmp_path_factory.mktemp("cache")

    def options(out, *more, root=phantom_root):
        return ["--data-root", str(root), "--cache", str(cache), "--out", str(out), *runs.TINY, *map(str, more)]
    return options


@pytest.fixture(scope="session")
def finished(flags, tmp_path_factory):
    """The folder of a run of 10 epochs that nothing interrupted. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(flags(out)) == 0
    return out


@pytest.fixture
def refused(flags, capsys, tmp_path):
    """Start a run that is refused: its one line on stderr."""
    def start(*more, out=tmp_path / "run", code=2, **options):
        assert train.main(flags(out, *more, **options)) == code
        lines = capsys.readouterr().err.strip().splitlines()
        error = [line for line in lines if line.startswith("uniseg: error: ")]
        assert len(error) == 1 and "Traceback" not in "".join(lines)
        return error[0].removeprefix("uniseg: error: ")
    return start
