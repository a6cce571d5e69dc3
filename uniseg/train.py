"""Train the Universal Model on any assembly of partially labelled datasets: Section 4.1.2.

    python -m uniseg.train --data-root ROOT                     one process
    torchrun --nproc-per-node 4 -m uniseg.train --data-root ROOT

ROOT holds one folder per dataset, as its publisher ships it or with a dataset.json (docs/datasets.md). Run with no flags
but the data, the recipe is the paper's; every option says where its default comes from (recipe.py). The run folder gets
config.json, metrics.jsonl, last.pt (with all that --resume needs), last.prev.pt (the one before it), best.pt (by validation
Dice), validation.json (Dice case by case), and what report.py makes to be read.
"""

import functools
import math
import shlex
import signal
import sys
import time
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint
from .embeddings import provenance
from .machine.console import error_line, explain, note, say, warn
from .machine.memory import keep_freed_memory
from .machine.processes import (
    any_signal,
    end_processes,
    launched,
    leave,
    start_processes,
    sum_over_ranks,
    workers_end_with,
)
from .machine.signals import signals_noted
from .training import report
from .training.batches import make_loader, make_patches
from .training.extension import end_of_extension, options, refuse_another_network
from .training.network import averaged, make_network
from .training.objective import make_objective, positive_weights
from .training.options import build_parser, make_config
from .training.recipe import lr_at
from .training.run_folder import (
    has_checkpoint,
    log,
    own_run_folder,
    resume,
    trim_metrics,
    write_json,
    write_validation,
    written,
)
from .training.split import choose_classes, gather_cases
from .training.steps import all_finite, learning, skip_step, training_step
from .training.validation import mean_dice, validate


class Learner(NamedTuple):
    """All that learns."""

    network: torch.nn.Module
    average: object               # AveragedModel of --ema, or None
    optimizer: torch.optim.Optimizer
    scaler: object                # GradScaler of --amp fp16, or None

    @property
    def judged(self):
        """The network that is validated and kept as best.pt."""
        return self.average.module if self.average else self.network


def main(argv=None):
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 143 ended by SIGTERM, 130 by Ctrl-C, both after saving."""
    keep_freed_memory()
    try:
        args = parse(argv)
        place = start_processes(args.device, args.timeout)
        with own_run_folder(args, place[0]):
            return run(args, place)
    except KeyboardInterrupt:
        note("interrupted; the last checkpoint is kept")
        return 130
    except Exception as error:
        line, code = explain(error)
        if line is None:
            raise
        rank, world = launched()
        error_line(f"{f'rank {rank}: ' if world > 1 else ''}{line}")
        return code
    finally:
        end_processes()


def parse(argv=None):
    """The command's options. With --extend, defaults are those of Section 5.1.3 and of the checkpoint, read as `old`."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.extend is not None:
        old = checkpoint.read(args.extend)
        parser.set_defaults(**options(old), old=old)
        args = parser.parse_args(argv)
        refuse_another_network(args, old)
    args.argv = argv
    return args


def run(args, place):
    rank, world, device = place
    train_cases, val_cases, left_out = cases = gather_cases(args, rank, world)
    classes = choose_classes(args, train_cases, args.old["network"]["classes"] if args.old else ())
    config = make_config(args, len(train_cases), world)
    preprocessing = {"spacing_mm": [config.spacing] * 3, "hu_window": list(config.hu_window),
                     "window": list(config.patch_size), "antialias": config.antialias, "pad": config.pad}

    torch.manual_seed(config.seed)
    network = make_network(args, config, classes, rank).to(device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=config.lr,
                                  betas=(config.beta1, 0.999), weight_decay=config.weight_decay)
    learner = Learner(network, averaged(network, config.ema) if config.ema else None, optimizer,
                      torch.amp.GradScaler("cuda") if config.amp == "fp16" else None)
    state = {"step": 0, "epoch": 0, "best": -1.0, "loss_sum": 0.0, "skipped": 0, "in_a_row": 0,    # epochs ended, steps skipped
             "sums": torch.zeros(3, len(classes), dtype=torch.float64)}                           # of the epoch, for `learning`
    about = {"data": {c.id: list(c.names) for c in train_cases}, "embedding": provenance(args.embeddings),
             "command": "python -m uniseg.train " + shlex.join(sys.argv[1:] if args.argv is None else args.argv)}
    for start, file in (("init", args.init), ("extend", args.extend)):
        if file is not None:
            about[start] = {"file": file.name, "sha256": checkpoint.file_sha256(file)}
    objective = make_objective(args, config, network, train_cases, device)
    patches = make_patches(args, config, network.classes, train_cases)               # before config.json: it may refuse
    if args.resume and has_checkpoint(args.out):
        state = resume(args.out, learner, config, about, place, state)
    elif rank == 0:
        write_json(args.out / "config.json", {**asdict(config), "classes": classes, "cases": [c.id for c in train_cases],
                                              "validation": [c.id for c in val_cases], "left_out": left_out})
    if rank == 0:
        trim_metrics(args.out / "metrics.jsonl", state["epoch"] * config.steps_per_epoch)
        for case, why in left_out.items():
            warn(f"{case} is left out: {why}")
        say(f"{len(train_cases)} training and {len(val_cases)} validation cases, {len(classes)} classes, "
            f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {device}", sys.stderr)

    def save_last():
        training = {**state, "config": asdict(config), "world": world, "optimizer": optimizer.state_dict(),
                    "scaler": learner.scaler.state_dict() if learner.scaler else {},
                    "average": learner.average.state_dict() if learner.average else {}}
        return written(args.on_save_error, checkpoint.save, args.out / "last.pt", network, preprocessing, about, training)

    def save_best():
        return written(args.on_save_error, checkpoint.save, args.out / "best.pt", learner.judged, preprocessing, about)

    def tell(everything):
        report.write(args.out, {**about, "processes": world}, network, device, train_cases, val_cases, everything)

    loader = make_loader(args, config, patches, state["step"], place)
    with signals_noted() as noted, workers_end_with(iter(loader)) as batches:
        code = loop(args, config, learner, state, batches, (save_last, save_best, tell), cases, place, noted, objective)
    if args.extend is not None and code == 0 and not (args.out / "extension.json").is_file():       # else told by a former run
        end_of_extension(args, config, learner, objective, val_cases, place)
    return code


def loop(args, config, learner, state, batches, keep, cases, place, noted, objective):
    """The training loop: every step, every epoch's log, every validation. Returns the exit code."""
    (rank, world, device), (train_cases, val_cases, left_out) = place, cases
    (network, average, optimizer, scaler), (save_last, save_best, tell) = learner, keep
    model = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
    model = torch.compile(model) if config.compile else model
    weights = None
    if config.weight_positives or config.balance_loss:
        weights = positive_weights(train_cases, network.classes, config.balance_loss, math.prod(config.patch_size))
    sums = getattr(objective, "sums", None)                                          # of a step, on this rank
    shown = report.shown_cases(val_cases[::world], args.overlays) if rank == 0 else []        # of those that rank 0 validates
    progress = tqdm(total=config.epochs * config.steps_per_epoch, initial=state["step"], unit="step",
                    disable=rank > 0 or not sys.stderr.isatty())
    began, saved = time.monotonic(), True
    network.train()
    while state["epoch"] < config.epochs:
        epoch, end = state["epoch"] + 1, (state["epoch"] + 1) * config.steps_per_epoch
        if state["step"] < end:                                                     # else: stopped within its validation
            for group in optimizer.param_groups:
                group["lr"] = lr_at(state["step"], config)
            optimizer.zero_grad(set_to_none=True)
            if sums is not None:
                sums.zero_()
            parts = [next(batches) for _ in range(config.accumulate)]
            loss = training_step(model, parts, config, world, weights, scaler, objective).item()
            if not all_finite(loss, network, scaler):
                skip_step(args, config, state, loss, parts, rank, world)
            else:
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                if average:
                    average.update_parameters(network)
                state["loss_sum"], state["in_a_row"] = state["loss_sum"] + loss, 0
                if sums is not None:
                    state["sums"] = state["sums"] + sum_over_ranks(sums).cpu()
            state["step"] += 1
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}")
        if state["step"] == end:
            record = {"epoch": epoch, "step": end, "lr": lr_at(end - 1, config), "seconds": round(time.monotonic() - began, 3),
                      "loss": state["loss_sum"] / taken if (taken := config.steps_per_epoch - state["skipped"]) else None}
            more = ("skipped", state["skipped"]), ("left_out", len(left_out)), ("learning", learning(state["sums"], network.classes))
            record.update({name: value for name, value in more if value})
            due = bool(val_cases) and (epoch % config.val_every == 0 or epoch == config.epochs)
            draw = functools.partial(report.write_overlay, args.out, config, network.classes, epoch)
            counts = validate(learner.judged, val_cases, config, place, noted, shown, draw) if due else ()
            if counts is not None:                                                  # else a signal; --resume makes up for it
                if due:
                    record["dice"] = mean_dice(counts, val_cases, network.classes)
                    record["mean_dice"] = float(np.mean(list(record["dice"].values()))) if record["dice"] else None
                better = record.get("mean_dice") is not None and record["mean_dice"] > state["best"]
                state.update(epoch=epoch, loss_sum=0.0, skipped=0, sums=torch.zeros_like(state["sums"]),
                             best=record["mean_dice"] if better else state["best"])
                if rank == 0:
                    written(args.on_save_error, log, args.out / "metrics.jsonl", record)
                    if due:
                        written(args.on_save_error, write_validation, args.out, config, epoch, counts, val_cases, network.classes,
                                better)
                    if better:
                        save_best()
                    saved = save_last()
                    tell(everything=epoch % config.val_every == 0)
        if any_signal(noted, device):
            number = noted[0] if noted else signal.SIGTERM                          # noted by another rank alone
            if rank == 0:
                saved = save_last()
                note(f"stopped by {signal.Signals(number).name} after step {state['step']}; go on with --resume")
            return 128 + number if saved else 1
    progress.close()
    if rank == 0:
        tell(everything=True)                                                       # also for a run that was killed before it told
    return 0 if saved else 1


def command(argv=None):
    """`main` as a process of its own: `python -m uniseg.train`, `uniseg-train`."""
    leave(main(argv))


if __name__ == "__main__":
    command()
