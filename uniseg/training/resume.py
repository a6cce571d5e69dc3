"""--resume: a run goes on from its last checkpoint as if it had never stopped, or is refused where its settings differ.

Read run.py first.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import is_tensor
from torch.optim import Optimizer

from .. import checkpoint
from ..machine.console import printable, warn
from ..machine.processes import barrier
from .learner import Learner
from .recipe import TrainConfig
from .run import Run, RunState

# Settings that only checkpoints of other versions have, with the value at which they change nothing.
UNKNOWN_SETTINGS = {"deform": 0.0, "compile": False}


def resume(run: Run, learner: Learner, state: RunState) -> RunState:
    """Load the last checkpoint into the learner; returns the state of the run, `state` where the checkpoint lacks some.

    Raises ValueError where settings differ, CheckpointError where no checkpoint can be read.
    """
    content, damaged = read_last(run.out, run.process.rank)
    if "training" not in content:
        raise ValueError(f"{run.out / 'last.pt'}: holds weights only. Start a new run.")
    if missing := [key for key in ("config", "optimizer", "step") if key not in content["training"]]:
        raise ValueError(f"{run.out / 'last.pt'}: the state of the run lacks {missing[0]}. Start a new run.")
    if different := differences(run, learner, content):
        raise ValueError(f"--resume: the run in {run.out} was started otherwise ({'; '.join(different)}). Leave these "
                         f"options out or start a new run; --init {run.out / 'last.pt'} takes its weights along.")
    training = content["training"]
    load_states(learner, content, run.out / "last.pt")
    barrier()                                                    # every process has read it
    if damaged and run.process.rank == 0:                        # else the next save would replace the good one by it
        os.replace(run.out / "last.pt", run.out / "last.damaged.pt")
    defaults = {**state.to_dict(), "epoch": training["step"] // run.config.steps_per_epoch}
    return RunState(**{name: training.get(name, value) for name, value in defaults.items()})


def load_states(learner: Learner, content: dict[str, Any], path: Path) -> None:
    """Put weights, optimiser, scaler and average of a checkpoint into the learner; path: for the message.

    Raises CheckpointError where they are not those of this network.
    """
    training, groups = content["training"], [dict(group) for group in learner.optimizer.param_groups]
    try:
        learner.network.load_state_dict(content["weights"])
        learner.optimizer.load_state_dict(training["optimizer"])     # moved to the device of the parameters
        if learner.scaler:
            learner.scaler.load_state_dict(training["scaler"])
        if learner.average:
            learner.average.load_state_dict(training["average"])
        reason = _strange_optimizer(learner.optimizer, groups)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = printable(" ".join(str(error).split())[:200])
    if reason:
        raise checkpoint.CheckpointError(f"{path}: the state of the run does not fit its network ({reason}). "
                                         "Start a new run; --init takes its weights along.")


def _strange_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]]) -> str:
    """What is not as AdamW leaves it, in a few words; "" for nothing. torch does not look.

    groups: its groups of parameters as they were before the state was loaded; only learning rates may differ
    """
    for parameter, state in optimizer.state.items():
        moments = [state.get(name) for name in ("exp_avg", "exp_avg_sq")]
        if not is_tensor(state.get("step")) or any(not is_tensor(m) or m.shape != parameter.shape for m in moments):
            return "the optimiser's state is that of another network"
    for before, after in zip(groups, optimizer.param_groups):
        for name in before.keys() - {"params", "lr", "initial_lr"}:
            if _plain(after.get(name)) != _plain(before[name]):
                return f"the optimiser has another {name}"
    return ""


def differences(run: Run, learner: Learner, content: dict[str, Any]) -> list[str]:
    """What a checkpoint's run had otherwise: settings, network, training cases, starting checkpoint, processes.

    A setting that the checkpoint lacks had its default.
    """
    training, about = content["training"], content["about"]
    then = {**UNKNOWN_SETTINGS, **asdict(TrainConfig()), **training["config"]}
    now = {**asdict(run.config), **UNKNOWN_SETTINGS}
    different = [f"{name}: {then[name]} -> {value}" for name, value in now.items()
                 if _plain(then[name]) != _plain(value)]
    different += [f"network's {name}" for name, value in learner.network.describe().items()
                  if content["network"].get(name) != value and name not in now]
    if about.get("data") != run.about["data"]:
        different.append("training cases")
    if about.get("extend") != run.about.get("extend"):
        different.append("the checkpoint of --extend")
    if training.get("world", run.process.world) != run.process.world:
        different.append(f"processes: {training['world']} -> {run.process.world}")
    return different


def read_last(out: Path, rank: int) -> tuple[dict[str, Any], bool]:
    """The content of last.pt, or of last.prev.pt where last.pt cannot be read; and whether last.pt is damaged.

    Raises CheckpointError where neither can be read.
    """
    last, before = out / "last.pt", out / "last.prev.pt"
    try:
        return checkpoint.read(last), False
    except checkpoint.CheckpointError as error:
        if not before.is_file():
            raise
        try:
            content = checkpoint.read(before)
        except checkpoint.CheckpointError as second:
            raise checkpoint.CheckpointError(f"{error} Nor can the one before it be used: {second}") from None
        if rank == 0:
            warn(f"{error} Going on from {before.name}.")
        return content, last.is_file()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
