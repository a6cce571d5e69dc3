"""Training patches per second: uniseg's data pipeline beside the released code's MONAI transforms, on the same volumes.

    pip install monai && python benchmarks/data_pipeline.py [--data-root ROOT] [--samples 1 2] [--threads 1] [--repeats
    5]

Without --data-root the volumes are two synthetic CTs of two datasets, 512 x 512 x 200 voxels of 0.78 x 0.78 x 1.6 mm,
as .nii.gz. Both sides work in one process without workers, with their files in the page cache, and with
memory.keep_freed_memory as in uniseg.train (MONAI's memory peaks are taken without it). They deliver batches of
--samples patches as torch tensors: image (B, 1, 96, 96, 96) float32, and labels. MONAI draws all patches of a batch
from one volume; 2 is the released code's --num_samples.

    MONAI          the released dataset/dataloader.py without a cache: each batch reads and resamples a volume
    MONAI, cached  CacheDataset: the results of all steps before the first random one are kept in memory
    MONAI, tuned   as before; besides, the voxels that a crop may centre on are kept and the cached volume is not copied
                   (not in the released code)

The two sides differ in these steps. uniseg scales the HU of the patch, MONAI those of the volume. uniseg's labels are
one bit per class in an int64, with each tumour put back into its organ; MONAI's are the file's label map as float32.
(The released code loads a second map of 32 channels, and for datasets with tumours it has a random zoom and another
crop. These are left out, in MONAI's favour.) uniseg crops to the body and the labels, MONAI to voxels above -175 HU. A
background patch is centred on any unlabelled voxel by uniseg, and on one above -175 HU by MONAI. For each patch, uniseg
draws a dataset and then a case. MONAI's AddChanneld is replaced by its present form, EnsureChannelFirstd.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads_and_loss import machine
from torch.utils.data import DataLoader

from uniseg.data import PatchDataset
from uniseg.datasets.cases import Case, prepare
from uniseg.datasets.dataset import Dataset as UnisegDataset
from uniseg.datasets.find import find_datasets
from uniseg.imaging.preprocessing import Preprocessing
from uniseg.imaging.resampling import resample
from uniseg.imaging.volume import write_volume
from uniseg.machine.memory import keep_freed_memory, peak_memory_bytes
from uniseg.phantom import make_phantom
from uniseg.taxonomy import NAMES, resolve
from uniseg.training.recipe import TrainConfig

try:
    import monai
    from monai import transforms as t
    from monai.data import CacheDataset, Dataset, list_data_collate
except ImportError:
    sys.exit("data_pipeline.py: MONAI is not installed. pip install monai")

PATCH = (96, 96, 96)
COARSE_MM, FINER = (3.12, 3.12, 3.2), (4, 4, 2)          # a phantom is drawn on coarse voxels, then resampled
SHOWN = {"Organs": ("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta",
                    "postcava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
         "LiverTumours": ("liver", "liver tumor")}


# ------------------------------------------------------------------------------------------------------------- the
# volumes

def write_synthetic(root: Path) -> None:
    """Write two datasets of one CT each: one with 13 organs, one with liver and liver tumours."""
    for seed, (name, shown) in enumerate(SHOWN.items()):
        hu, masks, affine = make_phantom(COARSE_MM, seed, shape=(128, 128, 100))
        labels = np.zeros(hu.shape, np.uint8)
        for value, label in enumerate(shown, 1):
            labels[masks[resolve(label)[0]]] = value
        for axis, times in enumerate(FINER):
            labels = np.repeat(labels, times, axis)
        hu, affine = resample(hu, affine, np.divide(COARSE_MM, FINER))
        hu += 12 * np.random.default_rng(seed).standard_normal(hu.shape, np.float32)     # files as large as real ones
        for part, array in (("imagesTr", np.rint(hu).astype(np.int16)), ("labelsTr", labels)):
            (root / name / part).mkdir(parents=True)
            write_volume(root / name / part / "case.nii.gz", array, affine)
        (root / name / "dataset.json").write_text(json.dumps({
            "labels": {"0": "background", **{str(value): label for value, label in enumerate(shown, 1)}},
            "training": [{"image": "./imagesTr/case.nii.gz", "label": "./labelsTr/case.nii.gz"}]}))


# ---------------------------------------------------------------------------------------------------------------- the
# ways

def uniseg_prepare(datasets: Sequence[UnisegDataset], folder: Path) -> list[Case]:
    """Preprocess all cases into a cache folder."""
    return [prepare(dataset, case, Preprocessing(), folder) for dataset in datasets for case in dataset.cases]


def uniseg_batches(cases: Sequence[Case], samples: int) -> Iterator[dict[str, Any]]:
    """Endless batches of `samples` patches."""
    numbers = (range(first, first + samples) for first in itertools.count(0, samples))
    return iter(DataLoader(PatchDataset(cases, NAMES, TrainConfig(patch_size=PATCH)), batch_sampler=numbers))


def monai_chain(samples: int, keep_indices: bool = False) -> t.Compose:
    """The released code's transforms (https://github.com/ljwztc/CLIP-Driven-Universal-Model, dataset/dataloader.py)."""
    both, seen = ["image", "label"], {"image_key": "image", "image_threshold": 0}
    crop = {"label_key": "label", "spatial_size": PATCH, "pos": 2, "neg": 1, "num_samples": samples, **seen}
    if keep_indices:
        crop |= {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
    return t.Compose([
        t.LoadImaged(both), t.EnsureChannelFirstd(both), t.Orientationd(both, axcodes="RAS"),
        t.Spacingd(both, pixdim=(1.5, 1.5, 1.5), mode=("bilinear", "nearest")),
        t.ScaleIntensityRanged("image", a_min=-175, a_max=250, b_min=0, b_max=1, clip=True),
        t.CropForegroundd(both, source_key="image"), t.SpatialPadd(both, spatial_size=PATCH),
        *([t.FgBgToIndicesd("label", **seen)] if keep_indices else []), t.RandCropByPosNegLabeld(both, **crop),
        t.RandRotate90d(both, prob=0.1, max_k=3), t.RandShiftIntensityd("image", offsets=0.1, prob=0.2),
        t.ToTensord(both, track_meta=False)])


def monai_data(datasets: Sequence[UnisegDataset], cached: bool = False, tuned: bool = False) -> Dataset:
    """A MONAI Dataset, or a filled CacheDataset."""
    files = [{"image": str(case.image), "label": str(case.label)} for dataset in datasets for case in dataset.cases]
    chain = monai_chain(1, tuned)
    return CacheDataset(files, chain, progress=False, copy_cache=not tuned) if cached else Dataset(files, chain)


def monai_batches(data: Dataset, samples: int, tuned: bool = False) -> Iterator[dict[str, Any]]:
    """Endless batches of `samples` patches."""
    data = copy.copy(data)                               # the same cache for every number of samples
    data.transform = monai_chain(samples, tuned)
    while True:
        yield from DataLoader(data, batch_size=1, shuffle=True, collate_fn=list_data_collate)


# name: (preparation, from the datasets and an empty folder; endless batches, from its result and the patches per batch)
WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Iterator[dict[str, Any]]]]] = {
    "MONAI": (lambda datasets, _: monai_data(datasets), monai_batches),
    "MONAI, cached": (lambda datasets, _: monai_data(datasets, cached=True), monai_batches),
    "MONAI, tuned": (lambda datasets, _: monai_data(datasets, cached=True, tuned=True),
                     lambda data, samples: monai_batches(data, samples, tuned=True)),
    "uniseg": (uniseg_prepare, uniseg_batches),
}


# -------------------------------------------------------------------------------------------------------------
# measurement

def timed(function: Callable[..., Any], *inputs: Any) -> tuple[Any, float, float]:
    """(the function's result, wall seconds, CPU seconds)"""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*inputs)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def draw(batches: Iterator[dict[str, Any]], least: int, seconds: float) -> int:
    """Draw at least `least` batches for at least `seconds`; returns the number of patches."""
    until, patches, drawn = time.perf_counter() + seconds, 0, 0
    while drawn < least or time.perf_counter() < until:
        patches, drawn = patches + len(next(batches)["image"]), drawn + 1
    return patches


def check_batch(batch: dict[str, Any], samples: int) -> None:
    """Assert the shapes, types and range of a batch."""
    image, labels = batch["image"], batch["bits" if "bits" in batch else "label"]
    assert image.shape == (samples, 1, *PATCH) and labels.shape[-3:] == PATCH, image.shape
    assert image.dtype == torch.float32, image.dtype
    assert -0.11 <= image.min() and image.max() <= 1.11 and type(image) is type(labels) is torch.Tensor, type(image)


def kept_bytes(result: Any) -> int:
    """Bytes that are kept for all cases together: uniseg's files, MONAI's cached arrays."""
    if isinstance(result, list):
        return sum(file.stat().st_size for case in result for file in case.folder.iterdir())
    return sum(v.nbytes for item in getattr(result, "_cache", ()) for v in item.values() if hasattr(v, "nbytes"))


def once(datasets: Sequence[UnisegDataset], folder: Path, repeats: int) -> dict[str, tuple[Any, float, float]]:
    """{way: (result of its preparation, median wall seconds, median CPU seconds for all cases)}.

    The ways take turns.
    """
    results: dict[str, Any] = {}
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for repeat in range(repeats):
        for way, (first, _) in WAYS.items():
            results.pop(way, None)                       # first, so that only one cache is in memory at a time
            results[way], *spent = timed(first, datasets, folder / str(repeat))
            seconds[way].append(spent)
    return {way: (results[way], *map(statistics.median, zip(*seconds[way]))) for way in WAYS}


def steady(endless: dict[str, Iterator[dict[str, Any]]], least: int,
           args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """{way: (wall seconds, CPU seconds) per patch}, medians of the repeats. The ways take turns.

    endless: {way: its batches}
    """
    seconds: dict[str, list[list[float]]] = {way: [] for way in endless}
    for _ in range(args.repeats):
        for way, batches in endless.items():
            patches, *spent = timed(draw, batches, least, args.seconds)
            seconds[way].append([s / patches for s in spent])
    return {way: (statistics.median(wall for wall, _ in pairs), statistics.median(cpu for _, cpu in pairs))
            for way, pairs in seconds.items()}


def peak_of(way: str, datasets: Sequence[UnisegDataset], folder: Path, samples: int) -> float:
    """Peak memory (MiB) of a way from the start to some batches, beyond that of the imports.

    It has to run in a process of its own.
    """
    if way == "uniseg":
        keep_freed_memory()                              # would add 250 MiB to MONAI's peak
    start, (first, batches_of) = peak_memory_bytes(), WAYS[way]
    draw(batches_of(first(datasets, folder), samples), 2 * sum(len(dataset.cases) for dataset in datasets), 0)
    return (peak_memory_bytes() - start) / 2 ** 20


def report(args: argparse.Namespace, argv: Sequence[str], folder: Path) -> None:
    """Measure all ways and print both tables. argv: the options of this run; folder: for volumes and caches."""
    root = args.data_root or folder / "data"
    if args.data_root is None:
        write_synthetic(root)
    datasets = find_datasets(root)
    cases = sum(len(dataset.cases) for dataset in datasets)
    print(f"{machine(args)}, monai {monai.__version__}")
    print(f"{cases} cases of {len(datasets)} datasets, median of {args.repeats}\n")
    done = once(datasets, folder, args.repeats)
    print("| | once per case: s | CPU s | kept per case: MiB | peak MiB, first start | next start |")
    print("|--" * 6 + "|")
    for way, (result, wall, cpu) in done.items():
        command = [sys.executable, __file__, *argv, "--data-root", str(root), "--peak-of", way, str(folder / "peak")]
        peaks = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)]
        print(f"| {way} | {wall / cases:.2f} | {cpu / cases:.2f} | {kept_bytes(result) / cases / 2 ** 20:.0f} "
              f"| {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)
    print("\n| patches per batch | | patches/s | ms per patch | CPU ms | uniseg is faster, times (CPU) |\n"
          + "|--" * 6 + "|")
    for samples in args.samples:
        endless = {way: WAYS[way][1](result, samples) for way, (result, _, _) in done.items()}
        for batches in endless.values():
            check_batch(next(batches), samples)
        seconds = steady(endless, cases, args)
        for way, (wall, cpu) in seconds.items():
            ours_wall, ours_cpu = seconds["uniseg"]
            print(f"| {samples} | {way} | {1 / wall:.2f} | {1e3 * wall:.2f} | {1e3 * cpu:.2f} "
                  f"| {wall / ours_wall:.1f} ({cpu / ours_cpu:.1f}) |", flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path,
                        help="folder of datasets, each with a dataset.json (default: two synthetic CTs)")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2], help="patches per batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a turn (default %(default)s)")
    parser.add_argument("--peak-of", nargs=2, metavar=("WAY", "CACHE"), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print, or print one peak for --peak-of."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)       # of MONAI, about a default that the released code uses
    torch.set_num_threads(args.threads)
    if args.peak_of:
        way, cache = args.peak_of
        print(peak_of(way, find_datasets(args.data_root), Path(cache), args.samples[-1]))
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        report(args, argv, Path(folder))


if __name__ == "__main__":
    main()
