"""Train the Universal Model on any assembly of partially labelled datasets: Section 4.1.2.

    python -m uniseg.train --data-root ROOT                     one process
    torchrun --nproc-per-node 4 -m uniseg.train --data-root ROOT

ROOT holds one folder per dataset, as its publisher ships it or with a dataset.json (docs/datasets.md). Run with no flags
but the data, the recipe is the paper's; every option says where its default comes from (recipe.py). The run folder gets
config.json, metrics.jsonl, last.pt (with all that --resume needs), best.pt (by validation Dice), and what report.py makes to
be read.
"""

import contextlib
import functools
import math
import shlex
import signal
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint, report
from .data import PatchDataset
from .embeddings import class_embeddings, provenance
from .losses import masked_loss
from .metrics import dice_from_counts
from .model import ModelConfig, UniversalModel
from .recipe import build_parser, lr_at, make_config
from .run_folder import check_run_folder, log, resume, trim_metrics, write_json
from .runtime import barrier, end_processes, keep_freed_memory, leave, start_processes, sum_over_ranks
from .sliding_window import sliding_window
from .split import choose_classes, gather_cases, preprocessing_of
from .volume import scale_hu


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


def unpack_bits(bits, classes):
    """(B, D, H, W) int64 -> (B, K, D, H, W) float32 of zeros and ones."""
    target = torch.empty(bits.shape[0], classes, *bits.shape[1:], dtype=torch.float32, device=bits.device)
    for k in range(classes):
        target[:, k] = (bits >> k) & 1
    return target


def positive_weights(cases, classes):
    """BCE weight of each class's positive voxels, (K,): (10000 / mean voxels a case)^0.6, at least 1, at most 12."""
    means = [np.mean([c.voxels[name] for c in cases if c.voxels.get(name)] or [10000]) for name in classes]
    return torch.tensor([min(max((10000 / m) ** 0.6, 1.0), 12.0) for m in means], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------------------ a step

def training_step(model, batches, config, world=1, weights=None, scaler=None):
    """Forward and backward of one optimiser step over its micro-batches; returns the loss of the joint batch.

    The loss is the mean over all labelled (sample, class) pairs of all ranks and micro-batches: DDP averages gradients
    over ranks, so each rank divides its own sum by (global pairs / world).
    """
    device = next(model.parameters()).device
    pairs = sum_over_ranks(torch.tensor(sum(float(b["labelled"].sum()) for b in batches), device=device)) / world
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)
    joint = torch.zeros((), device=device)
    for i, batch in enumerate(batches):
        wait = contextlib.nullcontext() if i == len(batches) - 1 or world == 1 else model.no_sync()
        with wait:
            labelled = batch["labelled"].to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(batch["image"].to(device))                          # (B, K, D, H, W)
            target = unpack_bits(batch["bits"].to(device), logits.shape[1])        # (B, K, D, H, W)
            weight = None if weights is None else weights.to(device).expand_as(labelled)
            loss = masked_loss(logits, target, labelled, pairs, positive_weight=weight)   # Eq. (3)-(4)
            (loss if scaler is None else scaler.scale(loss)).backward()
        joint += loss.detach()
    return sum_over_ranks(joint / world)


@torch.no_grad()
def validate(network, cases, config, device, rank=0, world=1, shown=(), draw=None):
    """{class: mean Dice over the cases that have it}, sliding window on the model grid, cases shared among ranks.

    shown: cases whose predicted label map, (D, H, W) uint8, is handed to draw(case, label map)
    """
    network.eval()
    names = network.classes
    counts = torch.zeros(len(cases), len(names), 3, dtype=torch.float64)               # |P and T|, |P|, |T|
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)

    def predict(patches):
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return network(patches)

    for i in range(rank, len(cases), world):
        case = cases[i]
        image, bits = scale_hu(case.image, config.hu_window), case.bits
        predicted = np.zeros(image.shape, np.uint8) if case in shown else None
        for z, logits in sliding_window(image, predict, len(names), config.patch_size, config.overlap, device=device):
            truth = torch.from_numpy(bits[:, :, z:z + logits.shape[3]].astype(np.int64))
            for k, name in enumerate(names):
                if name in case.names:
                    t, p = ((truth >> case.names.index(name)) & 1).bool(), logits[k] > 0
                    counts[i, k] += torch.stack([(p & t).sum(), p.sum(), t.sum()]).double()
            if predicted is not None:
                predicted[:, :, z:z + logits.shape[3]] = report.label_map(logits, names)
        if predicted is not None:
            draw(case, predicted)
    network.train()
    counts = sum_over_ranks(counts.to(device if device.type == "cuda" else "cpu")).cpu().numpy()
    scores = {}
    for k, name in enumerate(names):
        present = [dice_from_counts(*counts[i, k]) for i, c in enumerate(cases) if name in c.names and counts[i, k, 2] > 0]
        if present:
            scores[name] = float(np.mean(present))
    return scores


# -------------------------------------------------------------------------------------------------------------- the run

def main(argv=None):
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 143 ended by SIGTERM after saving."""
    args = build_parser().parse_args(argv)
    args.argv = argv
    keep_freed_memory()
    try:
        return run(args)
    except ValueError as error:                     # DataError, VolumeError, CheckpointError, EmbeddingError
        print(f"uniseg: error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"uniseg: error: {error}", file=sys.stderr)
        return 1
    finally:
        end_processes()


def run(args):
    rank, world, device = start_processes(args.device)
    check_run_folder(args, rank)
    barrier()
    train_cases, val_cases = gather_cases(args, rank, world)
    classes = choose_classes(args, train_cases)
    config = make_config(args, len(train_cases), world)
    preprocessing = {"spacing_mm": [config.spacing] * 3, "hu_window": list(config.hu_window),
                     "window": list(config.patch_size), "antialias": config.antialias}

    torch.manual_seed(config.seed)
    network = make_network(args, config, classes, rank)
    network.to(device)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.lr, betas=(config.beta1, 0.999), weight_decay=config.weight_decay)
    average = averaged(network, config.ema) if config.ema else None
    scaler = torch.amp.GradScaler("cuda") if config.amp == "fp16" else None
    state = {"step": 0, "best": -1.0, "loss_sum": 0.0}
    about = {"data": {c.id: list(c.names) for c in train_cases}, "embedding": provenance(args.embeddings),
             "command": "python -m uniseg.train " + shlex.join(sys.argv[1:] if args.argv is None else args.argv)}
    if args.init is not None:
        about["init"] = {"file": args.init.name, "sha256": checkpoint.file_sha256(args.init)}
    if args.resume:
        state = resume(args.out, network, optimizer, scaler, average, config, about["data"], world)
    elif rank == 0:
        write_json(args.out / "config.json", {**asdict(config), "classes": classes, "cases": [c.id for c in train_cases],
                                              "validation": [c.id for c in val_cases]})
    if rank == 0:
        trim_metrics(args.out / "metrics.jsonl", state["step"])
        tqdm.write(f"{len(train_cases)} training and {len(val_cases)} validation cases, {len(classes)} classes, "
                   f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {device}", file=sys.stderr)

    def save_last():
        training = {**state, "config": asdict(config), "world": world, "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else {}, "average": average.state_dict() if average else {}}
        checkpoint.save(args.out / "last.pt", network, preprocessing, about, training)

    def save_best():
        checkpoint.save(args.out / "best.pt", average.module if average else network, preprocessing, about)

    def tell(everything):
        report.write(args.out, {**about, "processes": world}, network, device, train_cases, val_cases, everything)

    former = signal.getsignal(signal.SIGTERM)
    try:
        return loop(args, config, network, average, optimizer, scaler, state, (save_last, save_best, tell), train_cases,
                    val_cases, (rank, world, device))
    finally:
        signal.signal(signal.SIGTERM, former)


def make_network(args, config, classes, rank):
    """The network at the start of the run: random, or from the weights of --init."""
    content = checkpoint.read(args.init, args.partial) if args.init is not None else {"network": {}}
    embedding = torch.from_numpy(class_embeddings(classes, config.encoding, args.embeddings, config.seed))
    merging = content["network"].get("merging", "standard")                        # weights of v090 keep its order of corners
    network = UniversalModel(ModelConfig(tuple(classes), config.backbone, config.width, config.lpg, config.lpg_hidden, merging,
                                         embedding.shape[1], config.encoding), embedding)
    if config.prior != 0.5:
        network.set_prior(config.prior)
    network.backbone.requires_grad_(config.freeze != "backbone")
    if config.activation_checkpointing:
        network.backbone.checkpoint_activations()
    if args.init is not None:
        fresh = checkpoint.initialise(network, content, args.init)
        known = [c for k, c in enumerate(classes) if not any(n.startswith(f"lpg.controllers.{k}.") for n in fresh)
                 and c in content["network"]["classes"]]
        if rank == 0:
            tqdm.write(f"{args.init}: {len(network.state_dict()) - len(fresh)} tensors taken, {len(fresh)} start anew; "
                       f"classes kept: {', '.join(known) or 'none'}", file=sys.stderr)
    return network


def averaged(network, decay):
    """The network with averaged weights: decay of the old average a step, less at first so that the start is forgotten.

    The ramp (1 + n) / (10 + n) after n steps is that of Exponential Moving Average in TensorFlow,
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
    """
    def update(averages, weights, steps):
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + steps.item()) / (10 + steps.item())))
    return torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=update)


def loop(args, config, network, average, optimizer, scaler, state, save, train_cases, val_cases, place):
    """The training loop: every step, every epoch's log, every validation."""
    (rank, world, device), (save_last, save_best, tell) = place, save
    overfit = args.overfit is not None
    dataset = PatchDataset(train_cases, network.classes, preprocessing_of(config), config.patch_size, config.seed,
                           config.foreground, 0.0 if overfit else config.rotate_probability,
                           0.0 if overfit else config.shift_probability, config.balance,
                           "paper" if overfit else config.augment, config.lesions, 0.0 if overfit else config.deform)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=SampleNumbers(config, state["step"], rank, world),
                                         num_workers=args.workers, pin_memory=device.type == "cuda",
                                         worker_init_fn=leave_sigterm_to_main)
    model = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
    model = torch.compile(model) if config.compile else model
    weights = positive_weights(train_cases, network.classes) if config.weight_positives else None
    shown = report.shown_cases(val_cases[::world], args.overlays) if rank == 0 else []        # of those that rank 0 validates
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    batches, total, began = iter(loader), config.epochs * config.steps_per_epoch, time.monotonic()
    progress = tqdm(total=total, initial=state["step"], disable=rank > 0 or not sys.stderr.isatty(), unit="step")
    network.train()
    for step in range(state["step"], total):
        lr = lr_at(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        parts = [next(batches) for _ in range(config.accumulate)]
        loss = training_step(model, parts, config, world, weights, scaler).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at step {step}, cases {parts[0]['case']}. Lower --lr or check the "
                                     f"labels; {args.out / 'last.pt'} is left as it was.")
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if average:
            average.update_parameters(network)
        state["step"], state["loss_sum"] = step + 1, state["loss_sum"] + loss
        progress.update()
        progress.set_postfix(loss=f"{loss:.3f}")
        if (step + 1) % config.steps_per_epoch == 0:
            epoch = (step + 1) // config.steps_per_epoch
            record = {"epoch": epoch, "step": step + 1, "loss": state["loss_sum"] / config.steps_per_epoch, "lr": lr,
                      "seconds": round(time.monotonic() - began, 3)}
            state["loss_sum"] = 0.0
            if val_cases and (epoch % config.val_every == 0 or epoch == config.epochs):
                draw = functools.partial(report.write_overlay, args.out, config, network.classes, epoch)
                record["dice"] = validate(average.module if average else network, val_cases, config, device, rank, world, shown,
                                          draw)
                record["mean_dice"] = float(np.mean(list(record["dice"].values()))) if record["dice"] else None
            if rank == 0:
                log(args.out / "metrics.jsonl", record)
            if record.get("mean_dice") is not None and record["mean_dice"] > state["best"]:
                state["best"] = record["mean_dice"]
                if rank == 0:
                    save_best()
            if rank == 0:
                save_last()
                tell(everything=epoch % config.val_every == 0)
        if sum_over_ranks(torch.tensor(float(bool(stop)), device=device)).item():
            if rank == 0:
                save_last()
                print(f"uniseg: stopped by SIGTERM after step {step + 1}; go on with --resume", file=sys.stderr)
            return 143
    progress.close()
    if rank == 0:
        tell(everything=True)
    return 0


def leave_sigterm_to_main(worker):
    """A scheduler signals every process of a job; the one that trains still needs its workers to end its step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def command():
    """`main` as a process of its own: `python -m uniseg.train`, `uniseg-train`."""
    leave(main())


if __name__ == "__main__":
    command()
