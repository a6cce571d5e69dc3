"""One optimiser step: forward and backward over its micro-batches, and what happens where it is not finite.

Read objective.py first.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ..machine.console import warn
from ..machine.device import autocast
from ..machine.processes import from_all_ranks, sum_over_ranks
from .batches import SampleNumbers
from .objective import Objective, PartialLabels
from .recipe import TrainConfig
from .run import Run, RunState
from .run_folder import write_json


def training_step(model: torch.nn.Module, batches: Sequence[dict[str, Any]], config: TrainConfig, world: int = 1,
                  weights: torch.Tensor | None = None, scaler: torch.amp.GradScaler | None = None,
                  objective: Objective = PartialLabels()) -> torch.Tensor:
    """Forward and backward of one optimiser step over its micro-batches; returns the loss of the joint batch, 0-d.

    batches: this rank's micro-batches of data.PatchDataset; weights: (K,), of objective.class_weights
    objective.sums, where there is one, then holds the sums of this step on this rank.

    The loss is the mean over all labelled (sample, class) pairs of all ranks and micro-batches. DDP averages gradients
    over ranks, so each rank divides its own sum by (all pairs / world).
    """
    device = next(model.parameters()).device
    if (sums := getattr(objective, "sums", None)) is not None:
        sums.zero_()
    pairs = sum_over_ranks(torch.tensor(sum(objective.pairs(b["labelled"]) for b in batches), device=device)) / world
    cast = functools.partial(autocast, device, config.amp)
    joint = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        without_exchange: contextlib.AbstractContextManager = contextlib.nullcontext()
        if isinstance(model, DistributedDataParallel) and i < len(batches) - 1:
            without_exchange = model.no_sync()             # ranks exchange gradients once, after the last micro-batch
        with without_exchange:
            image, bits, labelled = (batch[key].to(device) for key in ("image", "bits", "labelled"))
            weight = None if weights is None else weights.to(device).expand_as(labelled)
            loss = objective(model, image, bits, labelled, pairs, weight, cast)
            (loss if scaler is None else scaler.scale(loss)).backward()
        joint += loss.detach()
    return sum_over_ranks(joint / world)


def learning(sums: torch.Tensor, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """What is learned of each class that the epoch's patches show: {class: {"probability", "dice"}}, rounded.

    sums:        (3, K), those of losses.masked_loss over the epoch
    probability: mean predicted probability in the class's voxels
    dice:        2 sum(p t) / (sum(p) + sum(t)) over all voxels of the patches whose dataset annotates the class
    """
    return {name: {"probability": round(both / true, 5), "dice": round(2 * both / (predicted + true), 5)}
            for name, both, predicted, true in zip(classes, *sums.tolist()) if true}


def all_finite(loss: float, network: torch.nn.Module, scaler: torch.amp.GradScaler | None = None) -> bool:
    """Whether the optimiser may take the step. Loss and gradients are the same on all ranks, so all ranks agree.

    With fp16 the scaler decides about the gradients: it finds its scale by meeting infinities.
    """
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None] if scaler is None else []
    return math.isfinite(loss) and (not norms or bool(torch.stack(norms).isfinite().all()))


def skip_step(run: Run, state: RunState, loss: float, batches: Sequence[dict[str, Any]]) -> None:
    """Count a step that is not taken, and warn.

    More than run.max_skipped in a row end the run: failed_batch.json then lists the samples that the last step drew.
    Raises FloatingPointError.
    """
    state.skipped, state.in_a_row = state.skipped + 1, state.in_a_row + 1
    samples = _samples_drawn(run, state.step, batches)
    gradient = " but a gradient is not finite" if math.isfinite(loss) else ""
    what = f"loss is {loss}{gradient} at step {state.step}, cases {', '.join(sorted({s['case'] for s in samples}))}"
    if state.in_a_row > run.max_skipped:
        file = run.out / "failed_batch.json"
        if run.process.rank == 0:
            write_json(file, {"step": state.step, "loss": str(loss), "drawn": samples})
        raise FloatingPointError(f"{what}. Lower --lr or check the labels of the samples in {file}; "
                                 f"{run.out / 'last.pt'} is left as it was.")
    if run.process.rank == 0:
        warn(f"{what}; skipped, {state.in_a_row} in a row")


def _samples_drawn(run: Run, step: int, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{"rank", "sample", "case"}] of all ranks: who drew which sample of this step, from which case."""
    rank, world, _ = run.process
    parts = itertools.islice(SampleNumbers(run.config, step, rank, world), run.config.accumulate)
    cases = (case for batch in batches for case in batch["case"])
    mine = [{"rank": rank, "sample": number, "case": case} for number, case in zip(itertools.chain(*parts), cases)]
    return [sample for samples in from_all_ranks(mine) for sample in samples]
