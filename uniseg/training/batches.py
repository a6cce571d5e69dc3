"""Which patches every step of every process draws, and the loader that draws them.

Read data.py first: a patch is a pure function of the seed and its number, so that only numbers are dealt out here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch

from ..data import PatchDataset
from ..datasets.cases import Case
from ..machine.memory import workers_that_fit
from ..machine.processes import Process
from ..machine.signals import leave_signals_to_main
from .recipe import TrainConfig

VOXEL_BYTES = 12                # of a patch: float32 image and int64 bits


class SampleNumbers:
    """The numbers of the samples in each batch from step `start` on, for one of `world` processes.

    Step s draws the samples s * G ... (s + 1) * G - 1, with G = batch_size * world * accumulate, whichever process
    draws which of them.
    """

    def __init__(self, config: TrainConfig, start: int, rank: int = 0, world: int = 1) -> None:
        self.config, self.start, self.rank, self.world = config, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        c = self.config
        for step in range(self.start, c.steps):
            for part in range(c.accumulate):
                first = ((step * c.accumulate + part) * self.world + self.rank) * c.batch_size
                yield list(range(first, first + c.batch_size))

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulate


def make_patches(cases: Sequence[Case], classes: Sequence[str], config: TrainConfig,
                 plain: bool = False) -> PatchDataset:
    """The patches of a run; plain: without augmentation, as in the sanity run of --overfit. Raises ValueError."""
    if plain:
        config = replace(config, rotate_probability=0.0, shift_probability=0.0, augment="paper")
    return PatchDataset(cases, classes, config)


def make_loader(patches: PatchDataset, config: TrainConfig, process: Process, start: int,
                workers: int) -> torch.utils.data.DataLoader:
    """The batches of one process from step `start` on, drawn by `workers` other processes."""
    batch_bytes = config.batch_size * math.prod(config.patch_size) * VOXEL_BYTES
    numbers = SampleNumbers(config, start, process.rank, process.world)
    return torch.utils.data.DataLoader(
        cast(torch.utils.data.Dataset, patches), batch_sampler=numbers,
        num_workers=workers_that_fit(workers, batch_bytes),
        pin_memory=process.device.type == "cuda", worker_init_fn=leave_signals_to_main)
