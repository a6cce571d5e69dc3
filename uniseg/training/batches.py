"""Which patches each step of each process draws."""

import math

import torch

from ..data import PatchDataset
from ..machine.memory import workers_that_fit
from ..machine.signals import leave_signals_to_main
from .split import preprocessing_of


class SampleNumbers:
    """The numbers of the samples of each batch from step `start` on, for one of `world` processes.

    Step s draws samples s * G ... (s + 1) * G - 1 with G = batch * world * accumulate, whoever computes them.
    """

    def __init__(self, config, start, rank=0, world=1):
        self.config, self.start, self.rank, self.world = config, start, rank, world

    def __iter__(self):
        c = self.config
        for step in range(self.start, c.epochs * c.steps_per_epoch):
            for part in range(c.accumulate):
                first = ((step * c.accumulate + part) * self.world + self.rank) * c.batch_size
                yield list(range(first, first + c.batch_size))

    def __len__(self):
        c = self.config
        return (c.epochs * c.steps_per_epoch - self.start) * c.accumulate


def make_patches(args, config, classes, cases):
    """What the run draws; without augmentation for --overfit. Raises ValueError."""
    plain = args.overfit is not None
    return PatchDataset(cases, classes, preprocessing_of(config), config.patch_size, config.seed, config.foreground,
                        0.0 if plain else config.rotate_probability, 0.0 if plain else config.shift_probability,
                        config.balance, "paper" if plain else config.augment, config.lesions, 0.0 if plain else config.deform,
                        dict(config.dataset_weights))


def make_loader(args, config, patches, start, place):
    """The batches of one process from step `start` on."""
    rank, world, device = place
    batch_bytes = config.batch_size * math.prod(config.patch_size) * 12             # image float32, bits int64
    return torch.utils.data.DataLoader(patches, batch_sampler=SampleNumbers(config, start, rank, world),
                                       num_workers=workers_that_fit(args.workers, batch_bytes),
                                       pin_memory=device.type == "cuda", worker_init_fn=leave_signals_to_main)
