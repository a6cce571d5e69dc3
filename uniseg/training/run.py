"""A run: what it is made of, where it stands, and the files that it writes into its folder.

Read recipe.py and learner.py first. train.py makes a Run and a RunState and trains; resume.py loads them again.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..datasets.cases import Case
from ..machine.console import say, warn
from ..machine.processes import Process, sum_over_ranks
from ..machine.progress import duration
from . import report
from .first_command import FirstCommand
from .learner import Learner
from .recipe import TrainConfig
from .run_folder import trim_metrics, write_json, written


@dataclass
class RunState:
    """Where a run stands. last.pt holds all of it, so that --resume goes on from here."""

    sums: torch.Tensor          # (3, K) float64 on the CPU: those of losses.masked_loss over the epoch, for `learning`
    step: int = 0               # steps done, skipped ones included
    epoch: int = 0              # epochs that have ended, with their validation
    best: float = -1.0          # highest mean Dice of a validation
    loss_sum: float = 0.0       # over the steps of the epoch that were taken
    skipped: int = 0            # steps of the epoch that were skipped
    in_a_row: int = 0           # steps skipped since the last one that was taken

    def count_step(self, loss: float, sums: torch.Tensor | None) -> None:
        """Add a step that was taken; sums: (3, K), those of the step on this rank, or None where the loss has none."""
        self.loss_sum, self.in_a_row = self.loss_sum + loss, 0
        if sums is not None:
            self.sums = self.sums + sum_over_ranks(sums).cpu()

    def end_epoch(self, best: float) -> None:
        """Begin the sums of the next epoch; best: highest mean Dice so far."""
        self.epoch, self.best = self.epoch + 1, best
        self.loss_sum, self.skipped, self.sums = 0.0, 0, torch.zeros_like(self.sums)

    def to_dict(self) -> dict[str, Any]:
        """The state as a checkpoint stores it."""
        return {"step": self.step, "epoch": self.epoch, "best": self.best, "loss_sum": self.loss_sum,
                "skipped": self.skipped, "in_a_row": self.in_a_row, "sums": self.sums}


class Pace:
    """How fast this process trains, since its start or the last --resume."""

    def __init__(self, step: int) -> None:
        """step: the first one that this process takes"""
        self.began, self.first = time.monotonic(), step

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def line(self, step: int, config: TrainConfig) -> str:
        """"12 s an epoch, 8 min left" after so many steps of the run; "" where this process took none.

        Validations count as well: both are means over all steps so far.
        """
        if step == self.first:
            return ""
        of_a_step = self.seconds() / (step - self.first)
        left = f", {duration(of_a_step * (config.steps - step))} left" if step < config.steps else ""
        return f"{duration(of_a_step * config.steps_per_epoch)} an epoch{left}"


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last. Rank 0 alone calls the methods that write."""

    config: TrainConfig
    process: Process                  # this one; others of the run have their own Run
    out: Path                         # the run folder
    train_cases: Sequence[Case]
    val_cases: Sequence[Case]
    left_out: dict[str, str]          # {case: why} of --skip-bad
    about: dict[str, Any]             # provenance, in every checkpoint: data, embedding, command, starting weights
    on_save_error: str = "stop"       # or "continue"
    max_skipped: int = 3              # most steps skipped in a row
    overlays: int = 2                 # cases drawn at each validation

    def save_last(self, learner: Learner, state: RunState) -> bool:
        """last.pt: the weights and all that --resume needs. Returns whether it could be written."""
        training = {**state.to_dict(), "config": asdict(self.config), "world": self.process.world,
                    "optimizer": learner.optimizer.state_dict(),
                    "scaler": learner.scaler.state_dict() if learner.scaler else {},
                    "average": learner.average.state_dict() if learner.average else {}}
        return written(self.on_save_error, checkpoint.save, self.out / "last.pt", learner.network,
                       self.config.preprocessing, self.about, training)

    def save_best(self, learner: Learner) -> bool:
        """best.pt: the weights that are validated. Returns whether it could be written."""
        return written(self.on_save_error, checkpoint.save, self.out / "best.pt", learner.judged,
                       self.config.preprocessing, self.about)

    def write_report(self, learner: Learner, everything: bool) -> None:
        """metrics.csv, and with `everything` progress.png and MODEL_CARD.md."""
        report.write(self.out, {**self.about, "processes": self.process.world}, learner.network, self.process.device,
                     self.train_cases, self.val_cases, everything)

    def write_config(self, classes: Sequence[str], first_command: FirstCommand) -> None:
        """config.json: every setting, the classes in order, what becomes of which case, and the command."""
        write_json(self.out / "config.json",
                   {**asdict(self.config), "classes": classes, "cases": [case.id for case in self.train_cases],
                    "validation": [case.id for case in self.val_cases], "left_out": self.left_out,
                    "command": first_command.words, "typed_in": first_command.folder})

    def announce(self, learner: Learner, state: RunState) -> None:
        """Drop lines of metrics.jsonl that the state does not cover, and print what is about to be trained."""
        trim_metrics(self.out / "metrics.jsonl", state.epoch * self.config.steps_per_epoch)
        for case, why in self.left_out.items():
            warn(f"{case} is left out: {why}")
        millions = sum(p.numel() for p in learner.network.parameters()) / 1e6
        say(f"{len(self.train_cases)} training and {len(self.val_cases)} validation cases, "
            f"{len(learner.network.classes)} classes, {millions:.2f} M parameters, {self.process.device}", sys.stderr)
