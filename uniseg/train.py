"""Train the Universal Model on any assembly of partially labelled datasets: Section 4.1.2.

    python -m uniseg.train --data-root ROOT                     one process
    torchrun --nproc-per-node 4 -m uniseg.train --data-root ROOT

ROOT holds one folder per dataset, as its publisher ships it or with a dataset.json (docs/datasets.md). Run with no flags
but the data, the recipe is the paper's; every option says where its default comes from (recipe.py). The run folder gets
config.json, metrics.jsonl, last.pt (with all that --resume needs), last.prev.pt (the one before it), best.pt (by validation
Dice), validation.json (Dice case by case), and what report.py makes to be read.
"""

import contextlib
import functools
import itertools
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

from . import checkpoint, continual, report
from .baselines import BASELINES, Softmax, refuse_unlabelled
from .data import PatchDataset
from .embeddings import class_embeddings, provenance
from .losses import masked_loss, unpack_bits
from .model import build
from .recipe import build_parser, lr_at, make_config
from .run_folder import has_checkpoint, log, own_run_folder, resume, trim_metrics, write_json, write_validation, written
from .runtime import (any_signal, end_processes, explain, from_all_ranks, keep_freed_memory, launched, leave,
                      leave_signals_to_main, signals_noted, start_processes, sum_over_ranks, workers_end_with,
                      workers_that_fit)
from .split import choose_classes, gather_cases, preprocessing_of
from .validation import mean_dice, validate


# -------------------------------------------------------------------------------------------------- what a step draws

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


def positive_weights(cases, classes, power=0.0, patch_voxels=0):
    """BCE weight of each class's positive voxels, (K,), from its mean voxels in the cases that show it (10000 where none does).

    (10000 / mean)^0.6, at least 1, at most 12; with a `power` (patch_voxels / mean)^power, at least 1: at power 1 a class's
    positives weigh as much as all the rest of a patch.
    """
    means = [np.mean([c.voxels[name] for c in cases if c.voxels.get(name)] or [10000]) for name in classes]
    rule = (lambda mean: (patch_voxels / mean) ** power) if power else (lambda mean: min((10000 / mean) ** 0.6, 12.0))
    return torch.tensor([max(rule(mean), 1.0) for mean in means], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------------------ a step

class PartialLabels:
    """The loss of a batch whose classes are labelled in part, Eq. (3)-(4). continual.py and baselines.py have others.

    sums: tensor (3, K) to which each batch adds those of losses.masked_loss, for `learning` (None: not wanted)
    dice_of_absent: see losses.masked_loss
    """

    def __init__(self, sums=None, dice_of_absent=True):
        self.sums, self.dice_of_absent = sums, dice_of_absent

    def pairs(self, labelled):
        """Number of (sample, class) pairs that count in the loss."""
        return float(labelled.sum())

    def __call__(self, model, image, bits, labelled, pairs, weight, cast):
        """image (B, 1, D, H, W), bits (B, D, H, W) int64, labelled (B, K) bool, weight (B, K) or None; cast: autocast or not."""
        with cast():
            logits = model(image)                                                  # (B, K, D, H, W)
        return masked_loss(logits, unpack_bits(bits, logits.shape[1]), labelled, pairs, positive_weight=weight, sums=self.sums,
                           dice_of_absent=self.dice_of_absent)


def training_step(model, batches, config, world=1, weights=None, scaler=None, objective=PartialLabels()):
    """Forward and backward of one optimiser step over its micro-batches; returns the loss of the joint batch.

    The loss is the mean over all labelled (sample, class) pairs of all ranks and micro-batches: DDP averages gradients
    over ranks, so each rank divides its own sum by (global pairs / world).
    """
    device = next(model.parameters()).device
    pairs = sum_over_ranks(torch.tensor(sum(objective.pairs(b["labelled"]) for b in batches), device=device)) / world
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)
    cast = functools.partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)
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
        tqdm.write(f"uniseg: warning: {what}; skipped, {state['in_a_row']} in a row", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- the run

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
        print("uniseg: interrupted; the last checkpoint is kept", file=sys.stderr)
        return 130
    except Exception as error:
        line, code = explain(error)
        if line is None:
            raise
        rank, world = launched()
        print(f"uniseg: error: {f'rank {rank}: ' if world > 1 else ''}{line}", file=sys.stderr)
        return code
    finally:
        end_processes()


def parse(argv=None):
    """The command's options. With --extend, defaults are those of Section 5.1.3 and of the checkpoint, read as `old`."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.extend is not None:
        old = checkpoint.read(args.extend)
        parser.set_defaults(**continual.options(old), old=old)
        args = parser.parse_args(argv)
        continual.refuse_another_network(args, old)
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
            tqdm.write(f"uniseg: warning: {case} is left out: {why}", file=sys.stderr)
        tqdm.write(f"{len(train_cases)} training and {len(val_cases)} validation cases, {len(classes)} classes, "
                   f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {device}", file=sys.stderr)

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


def make_objective(args, config, network, train_cases, device):
    """What a batch's loss is: that of partial labels, of an extension, or of a plain network. Raises ValueError."""
    teacher = continual.frozen_teacher(args.old, args.extend, device) if args.old else None
    if config.head == "softmax":
        if teacher is not None and config.baseline == "none":
            raise ValueError(f"{args.extend}: a network with a softmax. Say how to extend it: --baseline {', '.join(BASELINES)}.")
        refuse_unlabelled(train_cases, network.classes[len(teacher.classes) if teacher is not None else 0:])
        return Softmax(network, teacher, config.baseline)
    if config.baseline != "none":
        raise ValueError(f"--baseline {config.baseline}: for a checkpoint that was trained with --head softmax, given to --extend.")
    if teacher is None:
        return PartialLabels(torch.zeros(3, len(network.classes), device=device), not config.dice_present)
    return continual.Extension(teacher, config.hard_pseudo, config.old_labels, config.freeze == "old")


def end_of_extension(args, config, learner, objective, val_cases, place):
    """Old classes before and after, new ones after, and what a class costs: extension.json, and printed."""
    before = validate(objective.teacher, val_cases, config, place)
    if place[0] == 0:
        after = report.read_metrics(args.out / "metrics.jsonl")[-1].get("dice", {})
        found = continual.summary(args.old["network"]["classes"], learner.network,
                                  mean_dice(before, val_cases, objective.teacher.classes), after, config.patch_size)
        write_json(args.out / "extension.json", {"checkpoint": args.extend.name, "cases": [c.id for c in val_cases], **found})
        for line in continual.lines(found):
            tqdm.write(line, file=sys.stderr)


def make_network(args, config, classes, rank):
    """The network at the start of the run: random, from the weights of --init, or that of --extend with more classes."""
    network, said = (extended_network if args.old else new_network)(args, config, classes)
    network.backbone.requires_grad_(config.freeze != "backbone")
    if config.freeze == "old":
        continual.freeze_old(network, len(args.old["network"]["classes"]))
    if config.activation_checkpointing:
        network.backbone.checkpoint_activations()
    if said and rank == 0:
        tqdm.write(said, file=sys.stderr)
    return network


def extended_network(args, config, classes):
    """(network of --extend with more classes, what is said of it)"""
    rows = continual.new_embeddings(args.old, classes, args.embeddings, config.seed)
    old = len(args.old["network"]["classes"])
    return (continual.grow(args.old, classes, rows, config.prior),
            f"{args.extend}: {old} classes kept, {len(classes) - old} new: {', '.join(classes[old:])}")


def new_network(args, config, classes):
    """(random network, with --init as much as fits taken from there; what is said of that, "" without --init)"""
    content = checkpoint.read(args.init, args.partial) if args.init is not None else {"network": {}}
    embedding = torch.from_numpy(class_embeddings(classes, config.encoding, args.embeddings, config.seed))
    merging = content["network"].get("merging", "standard")                        # weights of v090 keep its order of corners
    network = build({"classes": classes, "backbone": config.backbone, "width": config.width, "lpg": config.lpg,
                     "lpg_hidden": config.lpg_hidden, "merging": merging, "text_width": embedding.shape[1],
                     "encoding": config.encoding, "head": config.head, "input_windows": relative(config)}, embedding)
    if config.prior != 0.5:
        network.set_prior(config.prior)
    if args.init is None:
        return network, ""
    anew = [c.strip() for c in (args.anew or "").split(",") if c.strip()]
    if unknown := [c for c in anew if c not in classes]:
        raise ValueError(f"--anew {unknown[0]}: no class of this training. It has {', '.join(classes)}.")
    fresh = checkpoint.initialise(network, content, args.init, anew)
    known = [c for k, c in enumerate(classes) if not any(n.startswith((f"lpg.controllers.{k}.", "out.")) for n in fresh)
             and c in content["network"]["classes"]]
    return network, (f"{args.init}: {len(network.state_dict()) - len(fresh)} tensors taken, {len(fresh)} start anew; "
                     f"classes kept: {', '.join(known) or 'none'}")


def relative(config):
    """The input windows of a TrainConfig as parts of the image's range [0, 1], which is its HU window."""
    low, high = config.hu_window
    return tuple(((a - low) / (high - low), (b - low) / (high - low)) for a, b in config.input_windows)


def averaged(network, decay):
    """The network with averaged weights: decay of the old average a step, less at first so that the start is forgotten.

    The ramp (1 + n) / (10 + n) after n steps is that of Exponential Moving Average in TensorFlow,
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    def update(averages, weights, steps):
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + steps.item()) / (10 + steps.item())))
    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=update)


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
                print(f"uniseg: stopped by {signal.Signals(number).name} after step {state['step']}; go on with --resume",
                      file=sys.stderr)
            return 128 + number if saved else 1
    progress.close()
    if rank == 0:
        tell(everything=True)                                                       # also for a run that was killed before it told
    return 0 if saved else 1


def command():
    """`main` as a process of its own: `python -m uniseg.train`, `uniseg-train`."""
    leave(main())


if __name__ == "__main__":
    command()
