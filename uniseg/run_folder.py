"""The folder of a training run: config.json, metrics.jsonl, last.pt with all that --resume needs, best.pt."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from . import checkpoint
from .volume import atomic_write


def check_run_folder(args, rank):
    """Refuse to mix two runs in one folder. Raises ValueError."""
    last = args.out / "last.pt"
    if args.resume and not last.is_file():
        raise ValueError(f"{last}: no checkpoint to resume from, no epoch was finished. Start without --resume in an empty --out.")
    if not args.resume and any((args.out / name).exists() for name in ("last.pt", "metrics.jsonl", "config.json")):
        raise ValueError(f"{args.out}: holds a run already. Give --resume to go on with it or another --out.")
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)


def resume(out, network, optimizer, scaler, average, config, data, world):
    """Load last.pt into network, optimiser, scaler and averaged weights; returns the loop's state. Raises ValueError if settings differ."""
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
    if average:
        average.load_state_dict(content["training"]["average"])
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
