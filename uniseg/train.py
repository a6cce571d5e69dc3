"""Train the Universal Model on any assembly of partially labelled datasets: Section 4.1.2.

    python -m uniseg.train --data-root ROOT                     one process
    torchrun --nproc-per-node 4 -m uniseg.train --data-root ROOT

ROOT holds one folder per dataset, as its publisher ships it or with a dataset.json (docs/datasets.md). With no other
option the recipe is the paper's; training/recipe.py says where every default comes from. docs/training.md lists the
files that a run leaves in its folder. Read `loop` first: it is the whole algorithm. training/ holds its steps.
"""

import argparse
import functools
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from . import checkpoint
from .embeddings import provenance
from .machine.console import error_line, explain, note, quietly, warn
from .machine.device import denormals_as_zero, slow_precision
from .machine.files import file_sha256
from .machine.memory import keep_freed_memory
from .machine.processes import (
    Process,
    any_signal,
    barrier,
    end_processes,
    leave,
    start_processes,
    workers_end_with,
)
from .machine.progress import Progress
from .machine.ranks import launched
from .machine.signals import signals_noted
from .training import demo, first_command, report
from .training.batches import make_loader, make_patches
from .training.enough_memory import check_memory
from .training.extension import end_of_extension, kept_of, options, refuse_another_network, smaller_patches
from .training.learner import Learner, make_learner, set_lr
from .training.objective import Objective, class_weights, make_objective
from .training.options import build_parser, config_before_cases, make_config
from .training.recipe import lr_at, never_leaves_warmup
from .training.resume import resume
from .training.run import Pace, Run, RunState
from .training.run_folder import has_checkpoint, log, own_run_folder, write_validation, written
from .training.split import choose_classes, gather_cases
from .training.steps import all_finite, learning, skip_step, training_step
from .training.validation import mean_dice, validate


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 143 ended by SIGTERM, 130 by Ctrl-C, both after saving."""
    keep_freed_memory()
    try:
        args = parse(argv)
        process = start_processes(args.device, args.timeout)
        with quietly(args.quiet), denormals_as_zero(), own_run_folder(args, process.rank):
            return train(args, process)
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


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's options. With --extend, the defaults are those of Section 5.1.3 and of the checkpoint.

    The content of that checkpoint becomes `old`. With --resume, the options of the run's first command count.
    Raises CheckpointError; ValueError where options ask for another network.
    """
    parser, words = build_parser(), sys.argv[1:] if argv is None else argv
    args = first_command.parse(parser, words)
    if args.demo:
        demo.refuse_other_data(args)
        parser.set_defaults(**demo.OPTIONS)
        args = first_command.parse(parser, words)
        args.data_root = demo.data_root(args.out)
    if args.extend is not None:
        old = checkpoint.read(args.extend)
        parser.set_defaults(**options(old), old=old)
        args = first_command.parse(parser, words)
        refuse_another_network(args, old)
    if args.split is not None:
        args.folds, args.fold = 1, 0                              # the file divides the cases
    return args


def train(args: argparse.Namespace, process: Process) -> int:
    """Gather the cases, make or resume what learns, train. Returns the exit code."""
    if args.demo:
        if process.rank == 0:
            demo.write_assembly(args.out)
        barrier()
    learned = args.old["network"]["classes"] if args.old else ()
    planned = config_before_cases(args)
    check_memory(planned, max(1, len(learned)), process.device)                      # before hours of preprocessing
    for doubt in (never_leaves_warmup(planned), smaller_patches(planned, args.old),
                  slow_precision("--amp", planned.amp, process.device)):
        if doubt and process.rank == 0:
            warn(doubt)
    train_cases, val_cases, left_out = gather_cases(args, process.rank, process.world)
    classes = choose_classes(args, train_cases, learned)
    config = make_config(args, len(train_cases), process.world)
    check_memory(config, len(classes), process.device)
    torch.manual_seed(config.seed)
    learner = make_learner(args, config, classes, process)
    objective = make_objective(args, config, learner.network, train_cases, process.device)
    # Before anything is written, as it may refuse the options.
    patches = make_patches(train_cases, learner.network.classes, config, plain=args.overfit is not None)

    run = Run(config, process, args.out, train_cases, val_cases, left_out, provenance_of(args, train_cases),
              args.on_save_error, args.max_skipped, args.overlays)
    state = RunState(torch.zeros(3, len(classes), dtype=torch.float64))
    if args.resume and has_checkpoint(args.out):
        state = resume(run, learner, state)
    elif process.rank == 0:
        run.write_config(classes, args.first_command)
    if process.rank == 0:
        run.announce(learner, state)

    loader = make_loader(patches, config, process, state.step, args.workers)
    with signals_noted() as signals, workers_end_with(iter(loader)) as batches:
        code = loop(run, learner, state, objective, batches, signals)
    if args.extend is not None and code == 0 and not (args.out / "extension.json").is_file():    # else it was written
        end_of_extension(args, run, learner, objective)
    if args.demo and code == 0 and process.rank == 0:
        demo.try_it(args.out, args.device)
    return code


def provenance_of(args: argparse.Namespace, train_cases: Sequence[Any]) -> dict[str, Any]:
    """What a checkpoint says about its origin: the data, the embeddings, the command, the weights it started from.

    Of these it names the cases that they have seen, so that no case scores weights that go on from it.
    """
    about = {"data": {case.id: list(case.names) for case in train_cases}, "embedding": provenance(args.embeddings),
             "command": "python -m uniseg.train " + shlex.join(args.first_command.words)}
    for start, file in (("init", args.init), ("extend", args.extend)):
        if file is not None:
            content = args.old or checkpoint.read(file, args.partial)
            about[start] = {"file": file.name, "sha256": file_sha256(file),
                            "cases": checkpoint.cases_seen(content["about"])}
    return {**about, **kept_of(args.old)}


def loop(run: Run, learner: Learner, state: RunState, objective: Objective, batches: Iterator[dict[str, Any]],
         signals: Sequence[int]) -> int:
    """The training loop: every step, and the end of every epoch. Returns the exit code.

    run:       the recipe, the cases, the folder; nothing in it changes
    learner:   network, average, optimiser, scaler; state: steps and epochs done, sums of the epoch
    objective: the loss of a batch, Eq. (4); batches: micro-batches from state.step on, for this process
    signals:   those received so far, see machine.signals.signals_noted
    """
    config, (rank, world, device) = run.config, run.process
    model = torch.nn.parallel.DistributedDataParallel(learner.network) if world > 1 else learner.network
    weights = class_weights(config, run.train_cases, learner.network.classes)
    bar, pace, saved = Progress("training: steps", config.steps, state.step, shown=rank == 0), Pace(state.step), True
    learner.network.train()
    while state.epoch < config.epochs:
        end_of_epoch = (state.epoch + 1) * config.steps_per_epoch
        if state.step < end_of_epoch:                                         # else stopped within its validation
            set_lr(learner.optimizer, lr_at(state.step, config))              # linear warm-up, then cosine
            learner.optimizer.zero_grad(set_to_none=True)
            parts = [next(batches) for _ in range(config.accumulate)]
            # Forward and backward; the gradient is that of the joint batch of all micro-batches and processes.
            loss = training_step(model, parts, config, world, weights, learner.scaler, objective).item()
            if all_finite(loss, learner.network, learner.scaler):
                learner.take_step()                                           # AdamW, then the average of --ema
                state.count_step(loss, getattr(objective, "sums", None))
            else:
                skip_step(run, state, loss, parts)
            state.step += 1
            bar.update(remark=f"loss {loss:.3f}")
        if state.step == end_of_epoch:
            saved = end_epoch(run, learner, state, signals, pace)
        if any_signal(signals, device):
            return stop(run, learner, state, signals)
    bar.close()
    if rank == 0:
        run.write_report(learner, everything=True)                            # also where a killed run could not
    return 0 if saved else 1


def end_epoch(run: Run, learner: Learner, state: RunState, signals: Sequence[int], pace: Pace) -> bool:
    """Validate where it is due, log the epoch, save. Returns whether last.pt could be written (by rank 0).

    A signal breaks the validation off: the epoch has then not ended, and --resume makes up for it.
    """
    config, classes, epoch = run.config, learner.network.classes, state.epoch + 1
    rank, world, _ = run.process
    record = epoch_record(run, state, classes, pace.seconds())
    validated = bool(run.val_cases) and (epoch % config.val_every == 0 or epoch == config.epochs)
    if validated:                                                             # rank 0 draws some of its own cases
        shown = report.shown_cases(run.val_cases[::world], run.overlays) if rank == 0 else []
        draw = functools.partial(report.write_overlay, run.out, config, classes, epoch)
        counts = validate(learner.judged, run.val_cases, config, run.process, signals, shown, draw)
        if counts is None:
            return True
        record["dice"] = mean_dice(counts, run.val_cases, classes)
        record["mean_dice"] = float(np.mean(list(record["dice"].values()))) if record["dice"] else None
    better = record.get("mean_dice") is not None and record["mean_dice"] > state.best
    state.end_epoch(record["mean_dice"] if better else state.best)
    if rank > 0:
        return True
    written(run.on_save_error, log, run.out / "metrics.jsonl", record, config.epochs, pace.line(state.step, config))
    if validated:
        written(run.on_save_error, write_validation, run.out, config, epoch, counts, run.val_cases, classes, better)
    if better:
        run.save_best(learner)
    saved = run.save_last(learner, state)
    run.write_report(learner, everything=epoch % config.val_every == 0)
    return saved


def epoch_record(run: Run, state: RunState, classes: Sequence[str], seconds: float) -> dict[str, Any]:
    """The record of metrics.jsonl of the epoch that the state has just run, without the scores of its validation."""
    taken = run.config.steps_per_epoch - state.skipped
    record: dict[str, Any] = {
        "epoch": state.epoch + 1, "step": state.step, "lr": lr_at(state.step - 1, run.config),
        "seconds": round(seconds, 3), "loss": state.loss_sum / taken if taken else None}
    if state.skipped:
        record["skipped"] = state.skipped
    if run.left_out:
        record["left_out"] = len(run.left_out)
    if learned := learning(state.sums, classes):
        record["learning"] = learned
    return record


def stop(run: Run, learner: Learner, state: RunState, signals: Sequence[int]) -> int:
    """Save after a signal. Returns the exit code: 128 + the signal's number, 1 where last.pt could not be written."""
    number = signals[0] if signals else signal.SIGTERM                        # another rank alone received it
    if run.process.rank > 0:
        return 128 + number
    saved = run.save_last(learner, state)
    note(f"stopped by {signal.Signals(number).name} after step {state.step}; go on with --resume")
    return 128 + number if saved else 1


def command(argv: list[str] | None = None) -> None:
    """`main` as a process of its own: `python -m uniseg.train`, `uniseg-train`."""
    leave(main(argv))


if __name__ == "__main__":
    command()
