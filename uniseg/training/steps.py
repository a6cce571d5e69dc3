"""One optimiser step: the joint loss of its micro-batches, and what happens where it is not finite."""

import contextlib
import functools
import itertools
import math

import torch

from ..machine.console import warn
from ..machine.device import autocast
from ..machine.processes import from_all_ranks, sum_over_ranks
from .batches import SampleNumbers
from .objective import PartialLabels
from .run_folder import write_json


def training_step(model, batches, config, world=1, weights=None, scaler=None, objective=PartialLabels()):
    """Forward and backward of one optimiser step over its micro-batches; returns the loss of the joint batch.

    The loss is the mean over all labelled (sample, class) pairs of all ranks and micro-batches: DDP averages gradients
    over ranks, so each rank divides its own sum by (global pairs / world).
    """
    device = next(model.parameters()).device
    pairs = sum_over_ranks(torch.tensor(sum(objective.pairs(b["labelled"]) for b in batches), device=device)) / world
    cast = functools.partial(autocast, device, config.amp)
    joint = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        wait = contextlib.nullcontext() if i == len(batches) - 1 or world == 1 else model.no_sync()
        with wait:
            image, bits, labelled = (batch[key].to(device) for key in ("image", "bits", "labelled"))
            weight = None if weights is None else weights.to(device).expand_as(labelled)
            loss = objective(model, image, bits, labelled, pairs, weight, cast)
            (loss if scaler is None else scaler.scale(loss)).backward()
        joint += loss.detach()
    return sum_over_ranks(joint / world)


def learning(sums, classes):
    """How far each class is of which the epoch's patches had voxels: {class: {"probability", "dice"}}, rounded.

    sums:        (3, K), those of losses.masked_loss over the epoch
    probability: mean predicted probability in the class's voxels
    dice:        2 sum(p t) / (sum(p) + sum(t)) over all voxels of the patches whose dataset annotates the class
    """
    return {name: {"probability": round(both / true, 5), "dice": round(2 * both / (predicted + true), 5)}
            for name, both, predicted, true in zip(classes, *sums.tolist()) if true}


def all_finite(loss, network, scaler=None):
    """Whether the optimiser may take the step; ranks agree, for loss and gradients are the same on all.

    Of fp16's scaled gradients the scaler decides: infinities among them are its way to find its scale.
    """
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None] if scaler is None else []
    return math.isfinite(loss) and (not norms or bool(torch.stack(norms).isfinite().all()))


def skip_step(args, config, state, loss, parts, rank, world):
    """Count a step that is not taken. More than --max-skipped in a row end the run, what they drew is saved for a look.

    Raises FloatingPointError.
    """
    step, state["skipped"], state["in_a_row"] = state["step"], state["skipped"] + 1, state["in_a_row"] + 1
    numbers = itertools.chain(*itertools.islice(SampleNumbers(config, step, rank, world), config.accumulate))
    drawn = from_all_ranks([(rank, n, case) for n, case in zip(numbers, (c for part in parts for c in part["case"]))])
    drawn = [dict(zip(("rank", "sample", "case"), sample)) for samples in drawn for sample in samples]
    what = f"loss is {loss}{' but a gradient is not finite' if math.isfinite(loss) else ''} at step {step}, " \
           f"cases {', '.join(sorted({d['case'] for d in drawn}))}"
    if state["in_a_row"] > args.max_skipped:
        if rank == 0:
            write_json(args.out / "failed_batch.json", {"step": step, "loss": str(loss), "drawn": drawn})
        raise FloatingPointError(f"{what}. Lower --lr or check the labels of the samples in {args.out / 'failed_batch.json'}; "
                                 f"{args.out / 'last.pt'} is left as it was.")
    if rank == 0:
        warn(f"{what}; skipped, {state['in_a_row']} in a row")
