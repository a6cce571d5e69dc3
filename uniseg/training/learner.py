"""All that learns in a run: network, its average, optimiser (AdamW, Section 4.1.2), the scaler of fp16.

network.py makes the network; train.py's loop uses the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from ..machine.processes import Process
from .network import Network, make_network
from .recipe import TrainConfig

BETA2 = 0.999                   # of AdamW; the paper gives the momentum beta1 alone, PyTorch this


class Learner(NamedTuple):
    """All that learns."""

    network: Network                                        # what is trained
    average: torch.optim.swa_utils.AveragedModel | None     # with --ema: the average of its weights
    optimizer: torch.optim.Optimizer                        # AdamW
    scaler: torch.amp.GradScaler | None                     # with --amp fp16: scales the loss against underflow

    @property
    def judged(self) -> Network:
        """The network that is validated and saved as best.pt: the average where there is one."""
        return self.network if self.average is None else cast(Network, self.average.module)

    def take_step(self) -> None:
        """Change the weights by the gradients of a step."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)


def make_learner(args: argparse.Namespace, config: TrainConfig, classes: Sequence[str], process: Process) -> Learner:
    """What learns at the start of a run, on the device of the process."""
    network = make_network(args, config, classes, process.rank).to(process.device)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, betas=(config.beta1, BETA2), weight_decay=config.weight_decay)
    return Learner(network, averaged(network, config.ema) if config.ema else None, optimizer,
                   torch.amp.GradScaler("cuda") if config.amp == "fp16" else None)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def averaged(network: Network, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """The network with averaged weights. Each update keeps `decay` of the average and takes the rest from the network.

    At first it keeps less, (1 + n) / (10 + n) after n updates, so that the random start is soon forgotten. This ramp is
    that of https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    def update(averages: Any, weights: Any, steps: torch.Tensor | int) -> None:
        n = int(steps)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))
    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=update)
