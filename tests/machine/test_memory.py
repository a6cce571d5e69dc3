"""Memory is bounded by design: nothing of the size classes x volume exists in float, however many classes and slices.

Each measurement runs in a process of its own (this file as a script), since a peak cannot be reset. The figure is VmHWM
of /proc/self/status; ru_maxrss would be inherited through fork and exec.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MIB = 2 ** 20
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's /proc")


# --- In the process that is measured

def bands(classes):
    """A network without weights: class k is a band of HU, so that each class is found in a part of the body."""
    import torch

    from uniseg import taxonomy
    from uniseg.model import ModelConfig

    class Bands(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.classes = taxonomy.NAMES[:classes]
            self.config = ModelConfig(classes=self.classes, backbone="unet")
            self.windows = 0

        def forward(self, image, only=None):
            self.windows += len(image)
            middles = torch.linspace(0.35, 0.95, classes).view(1, -1, 1, 1, 1)
            return (image - middles).abs_().mul_(-600).add_(6)              # half-width 0.01: 4 HU

    return Bands()


def random_network(classes):
    """A U-Net of random weights, the hardest case: each class is likely all over the body, and half are found there."""
    import torch

    from uniseg import taxonomy
    from uniseg.embeddings import class_embeddings
    from uniseg.model import ModelConfig, UniversalModel

    torch.manual_seed(0)
    names = taxonomy.NAMES[:classes]
    network = UniversalModel(ModelConfig(names, "unet", width=4, lpg_hidden=8, text_width=384), class_embeddings(names))
    with torch.no_grad():
        for bias, shift in zip(network.lpg.last_bias(), torch.linspace(-1, 1, classes)[torch.randperm(classes)]):
            bias[-1] += shift
    network.backbone.register_forward_hook(lambda *_: setattr(network, "windows", network.windows + 1))
    network.windows = 0
    return network


def measure(ct, kind, classes=32, spacing_mm=1.5, window=(96, 96, 96), overlap=0.5, repeat=1):
    """Segment and save `repeat` times; what it took, as a dict."""
    import torch

    import uniseg
    from uniseg.imaging.preprocessing import Preprocessing
    from uniseg.machine.memory import keep_freed_memory, peak_memory_bytes
    from uniseg.segmenter import Segmenter

    if kind == "default":
        segmenter = uniseg.load(device="cpu")
    else:
        keep_freed_memory()
        network = {"bands": bands, "random": random_network}[kind](classes)
        preprocessing = Preprocessing((spacing_mm,) * 3, window=window)
        segmenter = Segmenter(network, preprocessing, torch.device("cpu"), {"file": kind, "sha256": ""})
    before, began, resident = peak_memory_bytes(), time.monotonic(), []
    for _ in range(repeat):
        result = segmenter.segment(ct, overlap=overlap)
        result.save(Path(ct).with_name("result.nii.gz"))
        stats = result.stats
        del result
        status = Path("/proc/self/status").read_text()
        resident.append(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")))
    return {"before": before, "peak": peak_memory_bytes(), "seconds": time.monotonic() - began, "resident": resident,
            "stages": stats["seconds"], "windows": getattr(segmenter.network, "windows", None),
            "found": sum(c["voxels"] > 0 for c in stats["classes"].values()), "classes": len(stats["classes"])}


def measure_evaluation(**options):
    """Score with the options of uniseg.evaluate; what it took, as a dict."""
    from uniseg import evaluate
    from uniseg.machine.memory import peak_memory_bytes

    began = time.monotonic()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert evaluate.main([part for name, value in options.items() for part in (f"--{name}", value)]) == 0
    classes = json.loads((Path(options["out"]) / "summary.json").read_text())["classes"]
    return {"peak": peak_memory_bytes(), "seconds": time.monotonic() - began, "classes": len(classes),
            "dice": {name: found["dice_mean"] for name, found in classes.items()}}


# --- In the test

def write_classes(path, shape, shift):
    """32 classes that fill a torso, 8 sectors on each of 4 levels, as large as can be; moved by `shift` voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header.set_sform(np.diag([0.78, 0.78, 1.0, 1.0]), code=1)
    header["vox_offset"] = 352
    x, y = (np.arange(n, dtype=np.float32) - n / 2 for n in shape[:2])
    x, y = (x[:, None] - shift) / (0.43 * shape[0]), y / (0.3 * shape[1])
    sector = ((np.arctan2(y, x) / np.pi + 1) * 4).astype(int) % 8
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for z in range(shape[2]):
            plane = np.where(x ** 2 + y ** 2 <= 1, 1 + sector + 8 * (4 * z // shape[2]), 0)
            file.write(plane.astype(np.uint8).tobytes(order="F"))


def write_torso(path, shape, spacing_mm):
    """An elliptic torso in air, its HU rising from back to front and wavy along z, written plane by plane."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([*spacing_mm, 1.0]), code=1)
    header["vox_offset"] = 352
    x, y = np.ogrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]
    body = (x / 0.85) ** 2 + (y / 0.6) ** 2 <= 1
    with open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        for z in range(shape[2]):
            plane = np.where(body, 40 + 250 * y + 30 * np.sin(6 * x + z * spacing_mm[2] / 40), -1000)
            file.write(np.rint(plane).astype("<i2").tobytes(order="F"))


def measured(ct, **options):
    """`measure` in a new process."""
    options |= {"ct": str(ct)} if ct else {}
    done = subprocess.run([sys.executable, __file__, json.dumps(options)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    # shown by pytest -s
    print(json.dumps(figures), f"peak {figures['peak'] / MIB:.0f} MiB, {figures['seconds']:.0f} s")
    return figures


@pytest.fixture(scope="module")
def large_ct(tmp_path_factory):
    """The path of a CT of 512 x 512 x 600 voxels. Results of `measure` stand beside it, and are written over."""
    path = tmp_path_factory.mktemp("large") / "ct.nii"
    write_torso(path, (512, 512, 600), (0.78, 0.78, 1.0))
    return path


@pytest.mark.slow
def test_memory_grows_by_a_few_bytes_a_voxel_and_one_slab_of_logits_not_by_classes_times_the_volume(tmp_path):
    """256 x 256 x 150 voxels, 32 classes; all logits at once would be 1200 MiB, next to which the bound is small."""
    shape, classes, window = (256, 256, 150), 32, (32, 32, 16)
    write_torso(tmp_path / "ct.nii", shape, (1.5, 1.5, 1.5))
    figures = measured(tmp_path / "ct.nii", kind="bands", classes=classes, window=window, overlap=0)
    assert figures["found"] > 20 and figures["windows"] > 200
    voxels = np.prod(shape)                                   # of the CT and of the model's grid alike
    per_voxel = 2 + 4 + 4 + 1 + 4 + 4 + 1 + 1                 # CT, HU, image, body, bits twice, label map, confidence
    slab = classes * shape[0] * shape[1] * window[2] * 4      # the sums of one window's depth
    bound = per_voxel * voxels + 2 * slab                     # once in use, once for what the allocator leaves unused
    all_logits = classes * voxels * 4
    grown = figures["peak"] - figures["before"]
    assert grown < bound < 0.6 * all_logits, f"{grown / MIB:.0f} MiB, bound {bound / MIB:.0f}"


@pytest.mark.slow
def test_five_more_cases_in_a_row_leave_no_memory_behind(tmp_path):
    write_torso(tmp_path / "ct.nii", (40, 40, 20), (8.0, 8.0, 8.0))
    figures = measured(tmp_path / "ct.nii", kind="random", classes=4, spacing_mm=8.0, window=(32, 32, 24), repeat=7)
    resident = figures["resident"]
    assert resident[-1] - resident[1] < 50 * MIB


TOO_LITTLE = """
import resource, sys
from pathlib import Path
import uniseg.infer as infer
import uniseg.segmenter
from test_memory import bands
def load(*_):
    import torch
    from uniseg.imaging.preprocessing import Preprocessing
    from uniseg.segmenter import Segmenter
    settings = Preprocessing(window=(32,) * 3)
    segmenter = Segmenter(bands(32), settings, torch.device("cpu"), {"file": "", "sha256": ""})
    status = Path("/proc/self/status").read_text().splitlines()
    used = int(next(line for line in status if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + 120 * 2 ** 20,) * 2)
    return segmenter
uniseg.segmenter.load = load
sys.exit(infer.main(["big.nii", "small.nii"]))
"""


@pytest.mark.slow
def test_too_little_memory_is_an_error_of_that_case_in_one_line_and_the_next_one_is_done(tmp_path):
    write_torso(tmp_path / "big.nii", (256, 256, 150), (1.5, 1.5, 1.5))
    write_torso(tmp_path / "small.nii", (4, 4, 4), (1.5, 1.5, 1.5))
    done = subprocess.run([sys.executable, "-c", TOO_LITTLE], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert lines == ["uniseg: error: big.nii: out of memory. Name fewer --classes, or use a machine with more memory.",
                     "uniseg: 1 of 2 cases failed"]
    assert (tmp_path / "small_seg.json").exists()


@pytest.mark.slow
def test_512_by_512_by_600_voxels_and_32_classes_at_one_and_a_half_mm_need_less_than_8_gib(large_ct):
    """The native logits alone would be 18.8 GiB. Measured: 2.5 GiB, 286 s on one thread of a busy machine."""
    figures = measured(large_ct, kind="random")
    assert figures["classes"] == 32 and figures["peak"] <= 8 * 1024 * MIB


@pytest.mark.slow
def test_512_by_512_by_600_voxels_with_the_built_in_weights_need_less_than_2_gib(large_ct):
    assert (ROOT / "uniseg" / "weights" / "default.pt").is_file(), "the package ships uniseg/weights/default.pt"
    figures = measured(large_ct, kind="default")
    assert figures["peak"] <= 2 * 1024 * MIB


@pytest.mark.slow
def test_scoring_a_pair_of_512_by_512_by_600_voxels_and_32_classes_needs_less_than_4_gib(tmp_path):
    """32 masks of a byte per voxel would be 4.7 GiB for each of the two. Measured: 1.9 GiB, 116 s on one thread."""
    shape = (512, 512, 600)
    for who, shift in (("ref", 0), ("pred", 4)):
        write_classes(tmp_path / who / "a.nii", shape, shift)
    figures = measured(None, pred=str(tmp_path / "pred"), ref=str(tmp_path / "ref"), out=str(tmp_path / "out"))
    assert figures["classes"] == 32 and min(figures["dice"].values()) > 0.8
    assert figures["peak"] <= 4 * 1024 * MIB


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    print(json.dumps(measure_evaluation(**options) if "pred" in options else measure(**options)))


# --- What the C library keeps

KEEPS = """
import numpy as np
from uniseg.machine.memory import keep_freed_memory, returning_freed_memory
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) >> 10
def work():
    blocks = [np.ones(1 << 20) for _ in range(50)]              # 8 MiB each
    return blocks[-1]
keep_freed_memory()
seen = [resident()]
for function in (work, returning_freed_memory(work)):
    last = function()
    seen.append(resident())
print(*seen)
"""


@pytest.mark.skipif("glibc" not in "".join(platform.libc_ver()), reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step_and_returned_at_the_end_of_a_ct():
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    before, kept, returned = map(int, done.stdout.split())
    assert kept - before > 300 and returned - before < 60


THREADS = """
import threading
import numpy as np
from uniseg.machine.memory import keep_freed_memory
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) >> 10
def work():
    blocks = [np.ones(1 << 16) for _ in range(200)]             # 100 MiB, freed at the end
keep_freed_memory()
before = resident()
for turn in range(4):                                           # a thread after the other
    waits = threading.Thread(target=threading.Event().wait, args=(5,), daemon=True)
    waits.start()                                               # would take over the arena that the last one has left
    works = threading.Thread(target=work)
    works.start()
    works.join()
print(resident() - before)
"""


@pytest.mark.skipif("glibc" not in "".join(platform.libc_ver()), reason="the C library is not glibc")
def test_threads_use_what_other_threads_have_freed():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert int(done.stdout) < 150                               # 100 MiB, not four times that


def test_segment_returns_it(monkeypatch):
    import torch

    from uniseg.imaging.preprocessing import Preprocessing
    from uniseg.machine import memory
    from uniseg.segmenter import Segmenter

    calls = []
    monkeypatch.setattr(memory, "_of_glibc", lambda *call: calls.append(call))
    segmenter = Segmenter(bands(2), Preprocessing((5.0,) * 3, window=(16,) * 3), torch.device("cpu"),
                          {"file": "bands", "sha256": ""})
    segmenter.segment(np.full((30, 30, 30), 40, np.int16), affine=np.diag([5.0, 5.0, 5.0, 1.0]))
    assert calls == [("malloc_trim", 0)]
