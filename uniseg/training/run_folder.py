"""The folder of a training run: config.json, metrics.jsonl, validation.json, best.pt, last.pt with all that --resume needs.

A run holds `run.lock` while it works, so that two do not write into one folder.
"""

import contextlib
import errno
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from .. import checkpoint
from ..machine.console import say, warn
from ..machine.files import FileError, atomic_write
from ..machine.processes import barrier
from .recipe import TrainConfig
from .validation import case_scores

# --------------------------------------------------------------------------------------------------------- one run a folder

@contextlib.contextmanager
def own_run_folder(args, rank):
    """Hold the run folder while the block runs. Raises ValueError for a folder of another run, or of one that is at work."""
    _check(args)
    if rank > 0:
        barrier()
        yield
        return
    args.out.mkdir(parents=True, exist_ok=True)
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))               # so that `finally` is reached
    try:
        lock = _take_lock(args.out / "run.lock")
        try:
            for left in args.out.glob(".*.tmp"):                                   # by a run that was killed as it wrote
                left.unlink()
            barrier()
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        signal.signal(signal.SIGTERM, former)


def _check(args):
    """Refuse to mix two runs in one folder, or to go on with none. Raises ValueError."""
    begun = has_checkpoint(args.out) or any((args.out / name).exists() for name in ("metrics.jsonl", "config.json"))
    if args.resume and not begun:
        raise ValueError(f"{args.out / 'last.pt'}: no checkpoint to resume from, nor a run begun here. Start without --resume.")
    if not args.resume and begun:
        raise ValueError(f"{args.out}: holds a run already. Give --resume to go on with it or another --out.")


def has_checkpoint(out):
    """False also for a run that was killed before its first one: --resume then starts from the beginning."""
    return (out / "last.pt").exists() or (out / "last.prev.pt").exists()


def _take_lock(path):
    """Create the lock file with this process's number and host; one left behind by a process that is dead is replaced."""
    own = f"{os.getpid()} {platform.node()}"
    with contextlib.suppress(FileNotFoundError, ValueError):        # there is none; one that is just being written
        pid, host = path.read_text().split(" ", 1)
        if host == platform.node() and (int(pid) == os.getpid() or not _alive(int(pid))):
            path.unlink()
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        pid, _, host = path.read_text().partition(" ")
        if not host:
            raise ValueError(f"{path}: another run has just started in this folder. Give another --out.") from None
        raise ValueError(f"{path}: process {pid} on {host} trains in this folder. Wait for it or give another --out; if it "
                         "runs no more, remove this file.") from None
    os.write(handle, own.encode())
    os.close(handle)
    return path


def _alive(pid):
    if os.name == "nt":                                  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:                              # somebody else's
        return True
    return True


# ------------------------------------------------------------------------------------------------------------------ resume

def resume(out, learner, config, about, place, state):
    """Load the last checkpoint into a train.Learner; returns the loop's state, `state` where it says nothing.

    Raises ValueError where settings differ, CheckpointError where no checkpoint can be read.
    """
    rank, world, _ = place
    content, damaged = _read_last(out, rank)
    if "training" not in content:
        raise ValueError(f"{out / 'last.pt'}: holds weights only. Start a new run.")
    training = content["training"]
    then, now = {**asdict(TrainConfig()), **training["config"]}, asdict(config)     # a setting unknown then had its default
    differ = [f"{k}: {then.get(k)} -> {v}" for k, v in now.items() if _plain(then.get(k)) != _plain(v)]
    differ += [f"network's {k}" for k, v in learner.network.describe().items() if content["network"].get(k) != v and k not in now]
    if content["about"]["data"] != about["data"]:
        differ.append("training cases")
    if content["about"].get("extend") != about.get("extend"):
        differ.append("the checkpoint of --extend")
    if training.get("world", world) != world:
        differ.append(f"processes: {training['world']} -> {world}")
    if differ:
        raise ValueError(f"--resume: the run in {out} was started otherwise ({'; '.join(differ)}). "
                         f"Repeat its options or start a new run; --init {out / 'last.pt'} takes its weights along.")
    learner.network.load_state_dict(content["weights"])
    learner.optimizer.load_state_dict(training["optimizer"])     # moved to the device of the parameters
    if learner.scaler:
        learner.scaler.load_state_dict(training["scaler"])
    if learner.average:
        learner.average.load_state_dict(training["average"])
    barrier()                                                    # all have read it
    if damaged and rank == 0:                                    # else it would take the place of the good one at the next save
        os.replace(out / "last.pt", out / "last.damaged.pt")
    return {k: training.get(k, v) for k, v in {**state, "epoch": training["step"] // config.steps_per_epoch}.items()}


def _read_last(out, rank):
    """(content of last.pt, False); of last.prev.pt where last.pt is missing, and with True where it is damaged."""
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


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------------------------------- files

def write_json(path, content):
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1, allow_nan=False))


def write_validation(out, config, epoch, counts, cases, classes, better):
    """validation.json: the scores of every case at this epoch ("last") and at that of best.pt ("best")."""
    path = out / "validation.json"
    scores = {"epoch": epoch, "cases": case_scores(counts, cases, classes)}
    best = scores if better else json.loads(path.read_text())["best"] if path.is_file() else None
    write_json(path, {"fold": config.fold, "folds": config.folds, "spacing_mm": config.spacing, "best": best, "last": scores})


def log(path, record):
    """Append one line to metrics.jsonl and print its essence."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "disk full")
        except OSError as error:
            os.truncate(path, before)
            raise OSError(f"{path}: cannot be written: {error.strerror}. Make room, or write to another disk.") from None
    loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
    dice = f"  Dice {record['mean_dice']:.4f}" if record.get("mean_dice") is not None else ""
    skipped = f"  {record['skipped']} steps skipped" if "skipped" in record else ""
    say(f"epoch {record['epoch']}  loss {loss}{dice}  {record['seconds']:.0f} s{skipped}", sys.stderr)


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


def written(on_error, write, *arguments):
    """Call write(*arguments); returns whether it succeeded. A full disk ends the run (on_error "stop") or is a warning.

    Raises OSError.
    """
    try:
        write(*arguments)
    except (FileError, OSError) as error:
        if on_error == "stop":
            raise OSError(f"{error} What was there is left as it was; --resume goes on from it.") from None
        warn(f"{error} The run goes on (--on-save-error continue).")
        return False
    return True
