"""The folder of a training run: config.json, metrics.jsonl, validation.json, best.pt, and last.pt for --resume.

A run holds `run.lock` while it works, so that no two runs write into one folder. Read machine/files.py and
machine/locks.py first.
"""

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.cases import Case
from ..machine.console import say, warn
from ..machine.files import FileError, atomic_write, sweep
from ..machine.json_files import read_json
from ..machine.locks import held
from ..machine.processes import barrier
from .recipe import TrainConfig
from .validation import case_scores

# ------------------------------------------------------------------------------------------------- one run per folder

@contextlib.contextmanager
def own_run_folder(args: argparse.Namespace, rank: int) -> Iterator[None]:
    """Hold the run folder while the block runs. Raises ValueError if it belongs to another run, or to one at work."""
    _check(args)
    if rank > 0:
        barrier()
        yield
        return
    args.out.mkdir(parents=True, exist_ok=True)
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))               # so that the lock is given back
    try:
        with held(args.out / "run.lock", "trains in this folder", "--out"):
            for folder in (args.out, args.out / "overlays"):                       # what a run that was killed left
                sweep(folder, ours=True)
            barrier()
            yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _check(args: argparse.Namespace) -> None:
    """Refuse to mix two runs in one folder, and to resume where there is nothing. Raises ValueError."""
    begun = has_checkpoint(args.out) or any((args.out / name).exists() for name in ("metrics.jsonl", "config.json"))
    if args.resume and not begun:
        raise ValueError(f"{args.out / 'last.pt'}: no checkpoint to resume from, nor a run begun here. Start without "
                         "--resume.")
    if not args.resume and begun:
        raise ValueError(f"{args.out}: holds a run already. Give --resume to go on with it or another --out.")


def has_checkpoint(out: Path) -> bool:
    """Whether there is a checkpoint to resume. A run that was killed before its first one starts from the beginning."""
    return (out / "last.pt").exists() or (out / "last.prev.pt").exists()


# -------------------------------------------------------------------------------------------------------------- files

def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; an interrupted write leaves the former file. Raises ValueError for NaN and infinity."""
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1, allow_nan=False))


def write_validation(out: Path, config: TrainConfig, epoch: int, counts: np.ndarray, cases: Sequence[Case],
                     classes: Sequence[str], better: bool) -> None:
    """validation.json: the scores of every case after this epoch ("last") and after that of best.pt ("best").

    counts: (N, K, 3) of validation.validate; better: whether this epoch's weights become best.pt
    """
    path = out / "validation.json"
    scores = {"epoch": epoch, "cases": case_scores(counts, cases, classes)}
    former = read_json(path) if path.is_file() and not better else {}
    best = scores if better else former.get("best") if isinstance(former, dict) else None
    write_json(path, {"fold": config.fold, "folds": config.folds, "spacing_mm": config.spacing, "best": best,
                      "last": scores})


def log(path: Path, record: dict[str, Any], epochs: int, pace: str = "") -> None:
    """Append one line to metrics.jsonl and print a summary of it.

    epochs: of the whole run; pace: how long an epoch takes and how long the rest will take, run.Pace.line

    On a full disk the file stays as it was. Raises OSError.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, "disk full")
        except OSError as error:
            os.truncate(path, size)
            raise OSError(f"{path}: cannot be written: {error.strerror}. Make room, or write to another "
                          "disk.") from None
    loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
    dice = f"  Dice {record['mean_dice']:.4f}" if record.get("mean_dice") is not None else ""
    skipped = f"  {record['skipped']} steps skipped" if "skipped" in record else ""
    say(f"epoch {record['epoch']} of {epochs}  loss {loss}{dice}  {record['seconds']:.0f} s"
        f"{', ' if pace else ''}{pace}{skipped}", sys.stderr)


def trim_metrics(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and one that is incomplete.

    A killed run may have logged an epoch that its last checkpoint does not hold.
    """
    if not path.is_file():
        return
    lines = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
    with atomic_write(path) as temporary:
        Path(temporary).write_text("".join(lines))


def written(on_error: str, write: Callable[..., None], *arguments: Any) -> bool:
    """Call write(*arguments); returns whether it succeeded.

    on_error: what happens if a file cannot be written, on a full disk for example: "stop" raises OSError, "continue"
              prints a warning
    """
    try:
        write(*arguments)
    except (FileError, OSError) as error:
        if on_error == "stop":
            raise OSError(f"{error} What was there is left as it was; --resume goes on from it.") from None
        warn(f"{error} The run goes on (--on-save-error continue).")
        return False
    return True
