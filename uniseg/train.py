"""Train the Universal Model on any assembly of partially labelled datasets: Section 4.1.2.

    python -m uniseg.train --data-root ROOT                     one process
    torchrun --nproc-per-node 4 -m uniseg.train --data-root ROOT

ROOT holds one folder per dataset, each with a dataset.json (Medical Segmentation Decathlon or nnU-Net v2 form). Run with
no flags but the data, the recipe is the paper's; every option says where its default comes from (recipe.py). The run folder
gets config.json, metrics.jsonl, last.pt (with all that --resume needs) and best.pt (by validation Dice).
"""

import contextlib
import json
import math
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint
from .backbones import BACKBONES
from .data import DataError, PatchDataset, Preprocessing, find_datasets, fold_of, prepare
from .embeddings import class_embeddings, provenance
from .losses import masked_loss
from .metrics import dice_from_counts
from .model import ModelConfig, UniversalModel
from .recipe import TrainConfig, build_parser, lr_at
from .runtime import barrier, choose_device, end_processes, keep_freed_memory, leave, start_processes, sum_over_ranks
from .sliding_window import sliding_window
from .taxonomy import NAMES, resolve
from .volume import atomic_write, scale_hu


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
def validate(network, cases, config, device, rank=0, world=1):
    """{class: mean Dice over the cases that have it}, sliding window on the model grid, cases shared among ranks."""
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
        for z, logits in sliding_window(image, predict, len(names), config.patch_size, config.overlap, device=device):
            truth = torch.from_numpy(bits[:, :, z:z + logits.shape[3]].astype(np.int64))
            for k, name in enumerate(names):
                if name in case.names:
                    t, p = ((truth >> case.names.index(name)) & 1).bool(), logits[k] > 0
                    counts[i, k] += torch.stack([(p & t).sum(), p.sum(), t.sum()]).double()
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
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, betas=(config.beta1, 0.999),
                                  weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler("cuda") if config.amp == "fp16" else None
    state = {"step": 0, "best": -1.0, "loss_sum": 0.0}
    about = {"data": {c.id: list(c.names) for c in train_cases}, "embedding": provenance(args.embeddings),
             "command": "python -m uniseg.train " + " ".join(sys.argv[1:] if args.argv is None else args.argv)}
    if args.init is not None:
        about["init"] = {"file": args.init.name, "sha256": checkpoint.file_sha256(args.init)}
    if args.resume:
        state = resume(args.out, network, optimizer, scaler, config, about["data"], world)
    elif rank == 0:
        write_json(args.out / "config.json", {**asdict(config), "classes": classes, "cases": [c.id for c in train_cases],
                                              "validation": [c.id for c in val_cases]})
    if rank == 0:
        trim_metrics(args.out / "metrics.jsonl", state["step"])
        tqdm.write(f"{len(train_cases)} training and {len(val_cases)} validation cases, {len(classes)} classes, "
                   f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {device}", file=sys.stderr)

    def save(name, with_training=True):
        training = {**state, "config": asdict(config), "world": world, "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else {}} if with_training else None
        checkpoint.save(args.out / name, network, preprocessing, about, training)

    former = signal.getsignal(signal.SIGTERM)
    try:
        return loop(args, config, network, optimizer, scaler, state, save, train_cases, val_cases, (rank, world, device))
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
    if args.init is not None:
        fresh = checkpoint.initialise(network, content, args.init)
        known = [c for k, c in enumerate(classes) if not any(n.startswith(f"lpg.controllers.{k}.") for n in fresh)
                 and c in content["network"]["classes"]]
        if rank == 0:
            tqdm.write(f"{args.init}: {len(network.state_dict()) - len(fresh)} tensors taken, {len(fresh)} start anew; "
                       f"classes kept: {', '.join(known) or 'none'}", file=sys.stderr)
    return network


def loop(args, config, network, optimizer, scaler, state, save, train_cases, val_cases, place):
    """The training loop: every step, every epoch's log, every validation."""
    rank, world, device = place
    overfit = args.overfit is not None
    dataset = PatchDataset(train_cases, network.classes, _preprocessing(config), config.patch_size, config.seed,
                           config.foreground, 0.0 if overfit else config.rotate_probability,
                           0.0 if overfit else config.shift_probability, config.balance,
                           "paper" if overfit else config.augment)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=SampleNumbers(config, state["step"], rank, world),
                                         num_workers=args.workers, pin_memory=device.type == "cuda",
                                         worker_init_fn=leave_sigterm_to_main)
    model = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
    weights = positive_weights(train_cases, network.classes) if config.weight_positives else None
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
        state["step"], state["loss_sum"] = step + 1, state["loss_sum"] + loss
        progress.update()
        progress.set_postfix(loss=f"{loss:.3f}")
        if (step + 1) % config.steps_per_epoch == 0:
            epoch = (step + 1) // config.steps_per_epoch
            record = {"epoch": epoch, "step": step + 1, "loss": state["loss_sum"] / config.steps_per_epoch, "lr": lr,
                      "seconds": round(time.monotonic() - began, 3)}
            state["loss_sum"] = 0.0
            if val_cases and (epoch % config.val_every == 0 or epoch == config.epochs):
                record["dice"] = validate(network, val_cases, config, device, rank, world)
                record["mean_dice"] = float(np.mean(list(record["dice"].values()))) if record["dice"] else None
            if rank == 0:
                log(args.out / "metrics.jsonl", record)
            if record.get("mean_dice") is not None and record["mean_dice"] > state["best"]:
                state["best"] = record["mean_dice"]
                if rank == 0:
                    save("best.pt", with_training=False)
            if rank == 0:
                save("last.pt")
        if sum_over_ranks(torch.tensor(float(bool(stop)), device=device)).item():
            if rank == 0:
                save("last.pt")
                print(f"uniseg: stopped by SIGTERM after step {step + 1}; go on with --resume", file=sys.stderr)
            return 143
    progress.close()
    return 0


def leave_sigterm_to_main(worker):
    """A scheduler signals every process of a job; the one that trains still needs its workers to end its step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _preprocessing(config):
    return Preprocessing((config.spacing,) * 3, tuple(config.hu_window), config.antialias)


def check_run_folder(args, rank):
    """Refuse to mix two runs in one folder. Raises ValueError."""
    last = args.out / "last.pt"
    if args.resume and not last.is_file():
        raise ValueError(f"{last}: no checkpoint to resume from, no epoch was finished. Start without --resume in an empty --out.")
    if not args.resume and any((args.out / name).exists() for name in ("last.pt", "metrics.jsonl", "config.json")):
        raise ValueError(f"{args.out}: holds a run already. Give --resume to go on with it or another --out.")
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)


def gather_cases(args, rank, world):
    """(training cases, validation cases), preprocessed; the work is shared among the processes."""
    name_map = read_map(args.map) if args.map else None
    datasets = find_datasets(args.data_root, name_map)
    if args.fold >= args.folds:
        raise ValueError(f"--fold {args.fold}: folds are numbered 0 to {args.folds - 1}.")
    held_out = set()
    if args.val_root is None and args.folds > 1 and args.overfit is None:
        held_out = {case for case, fold in fold_of(datasets, args.folds).items() if fold == args.fold}
    jobs = [(d, c, (d.name, c[0]) in held_out) for d in datasets for c in d.cases]
    if args.overfit is not None:
        jobs = jobs[:args.overfit]
    if args.val_root is not None:
        jobs += [(d, c, True) for d in find_datasets(args.val_root, name_map) for c in d.cases]
    preprocessing, cache = _preprocessing(args), args.cache or args.out / "cache"
    for d, c, _ in tqdm(jobs[rank::world], desc="preprocessing", disable=rank > 0 or not sys.stderr.isatty()):
        prepare(d, c, preprocessing, cache)
    barrier()
    cases = [(prepare(d, c, preprocessing, cache), held) for d, c, held in jobs]
    train = [c for c, held in cases if not held]
    val = train if args.overfit is not None else [c for c, held in cases if held]
    if not train:
        raise DataError(f"{args.data_root}: no training case is left beside fold {args.fold} of {args.folds}. "
                        "Give --folds 1 to train on every case.")
    return train, val


def read_map(path):
    """The {label name: class name or null} of --map."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"--map {path}: cannot be read as JSON ({error}). Give a file like {{\"vena\": \"postcava\"}}.") from None
    if not isinstance(content, dict):
        raise DataError(f"--map {path}: not {{label name: class name or null}}. Give a file like {{\"vena\": \"postcava\"}}.")
    return content


def choose_classes(args, cases):
    """Class names in the order of Table 2: those annotated with at least one voxel in the training cases.

    A class that is never seen cannot be learned and would only be offered in vain.
    """
    seen = {name for case in cases for name, n in case.voxels.items() if n > 0}
    if args.classes is not None:
        wanted = [c for name in args.classes.split(",") for c in ((name,) if name in seen else resolve(name))]
        if unseen := [c for c in wanted if c not in seen]:
            raise DataError(f"--classes: no training case has voxels of {', '.join(unseen)}. Leave them out.")
        seen = set(wanted)
    if len(seen) > 64:
        raise DataError(f"{args.data_root}: {len(seen)} classes; one bit each, 64 fit. Choose some with --classes.")
    if not seen:
        raise DataError(f"{args.data_root}: the training cases have no labelled voxel. Check their labels.")
    return [n for n in NAMES if n in seen] + sorted(seen - set(NAMES))


def make_config(args, train_cases, world):
    values = {f.name: getattr(args, f.name) for f in fields(TrainConfig)}
    values["patch_size"], values["hu_window"] = tuple(values["patch_size"]), tuple(values["hu_window"])
    per_step = args.batch_size * args.accumulate * world
    values["steps_per_epoch"] = args.steps_per_epoch or math.ceil(train_cases / per_step)
    multiple = BACKBONES[args.backbone].size_multiple
    if any(n % multiple for n in args.patch_size):
        raise ValueError(f"--patch-size {' '.join(map(str, args.patch_size))}: {args.backbone} needs multiples of {multiple}.")
    if args.amp != "off" and choose_device(args.device).type != "cuda":
        if args.amp == "fp16":
            raise ValueError("--amp fp16 needs a GPU. Use --amp bf16 or off on a CPU.")
        # oneDNN's bfloat16 weight gradient of a 3x3x3 convolution is made of unset memory where D is 2 (PyTorch 2.13).
        if args.patch_size[0] <= 2 * multiple:
            raise ValueError(f"--amp bf16 on a CPU: gradients are wrong for patches of D {2 * multiple} or less. Use --amp off.")
    if args.hu_window[0] >= args.hu_window[1]:
        raise ValueError(f"--hu-window {args.hu_window[0]:g} {args.hu_window[1]:g}: give the lower end first.")
    if args.overlap == 1:
        raise ValueError("--overlap 1: windows would never move on. Use less than 1.")
    return TrainConfig(**values)


def resume(out, network, optimizer, scaler, config, data, world):
    """Load last.pt into network, optimiser and scaler; returns the loop's state. Raises ValueError if settings differ."""
    content = checkpoint.read(out / "last.pt")
    if "training" not in content:
        raise ValueError(f"{out / 'last.pt'}: holds weights only. Start a new run.")
    then, now = content["training"]["config"], asdict(config)
    differ = [f"{k}: {then.get(k)} -> {v}" for k, v in now.items() if _plain(then.get(k)) != _plain(v)]
    differ += [f"network's {k}" for k, v in network.describe().items() if content["network"].get(k) != v and k not in now]
    if content["about"]["data"] != data:
        differ.append("training cases")
    if content["training"].get("world", world) != world:
        differ.append(f"processes: {content['training']['world']} -> {world}")
    if differ:
        raise ValueError(f"--resume: the run in {out} was started otherwise ({'; '.join(differ)}). "
                         "Repeat its options or start a new run.")
    network.load_state_dict(content["weights"])
    optimizer.load_state_dict(content["training"]["optimizer"])
    if scaler:
        scaler.load_state_dict(content["training"]["scaler"])
    return {k: content["training"][k] for k in ("step", "best", "loss_sum")}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def write_json(path, content):
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1, allow_nan=False))


def log(path, record):
    """Append one line to metrics.jsonl and print its essence."""
    with open(path, "a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
    dice = f"  Dice {record['mean_dice']:.4f}" if record.get("mean_dice") is not None else ""
    tqdm.write(f"epoch {record['epoch']}  loss {record['loss']:.4f}{dice}  {record['seconds']:.0f} s", file=sys.stderr)


def trim_metrics(path, step):
    """Drop what a killed run logged after its last checkpoint, and a line it did not finish."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with atomic_write(path) as temporary:
        Path(temporary).write_text("".join(kept))


def command():
    """`main` as a process of its own: `python -m uniseg.train`, `uniseg-train`."""
    leave(main())


if __name__ == "__main__":
    command()
