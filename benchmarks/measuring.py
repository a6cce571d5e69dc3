"""Measuring: every turn in a process of its own, the sides in turn, what is finished kept in a file. For speed.py.

A row of a table is one piece of work, its sides are the ways of doing it. A side prepares, warms up, and is then timed:
wall seconds and CPU seconds of one call, the median over its calls, and the peak memory (VmHWM) of the whole process.
Processes that it starts count: their CPU seconds, and the peak of the largest, if that is larger.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from uniseg.machine.json_files import read_json
from uniseg.machine.memory import keep_freed_memory, peak_memory_bytes
from uniseg.training.run_folder import write_json

Work = Callable[[], Any]


@dataclass(frozen=True)
class Side:
    """One way of doing a row's work."""

    prepare: Callable[[argparse.Namespace], Work]   # inputs and networks; returns what is timed
    calls: int = 1                                  # timed calls in a turn
    warm_ups: int = 0                               # calls before them
    keep_memory: bool = True                        # glibc keeps freed memory, as in uniseg's commands
    peer: bool = False                              # needs MONAI


class Row(NamedTuple):
    """One piece of work."""

    name: str
    sides: Mapping[str, Side]       # the first one is what the others are compared with
    turns: int = 2                  # processes of each side
    units: int = 1                  # by which the times are divided, such as patches or windows
    gflops: Callable[[argparse.Namespace], float] | None = None      # of one call, for the share of the peak
    compared: bool = True           # whether the sides do the same work, so that their times have a ratio


class Spent(NamedTuple):
    """What one turn took, or the medians over the turns of a side."""

    seconds: float
    cpu: float                      # seconds of all threads
    peak_mib: float                 # the largest of the process, imports included
    others: float                   # cores that other processes kept busy meanwhile


QUIET = 0.15                        # of a core, the most that others may use where a time is to count


def measure(side: Side, args: argparse.Namespace) -> Spent:
    """One turn of a side, in this process; with args.tiny one call without warm-up."""
    if side.keep_memory:
        keep_freed_memory()
    work = side.prepare(args)
    for _ in range(0 if args.tiny else side.warm_ups):
        work()
    spent, began, busy = [], time.perf_counter(), _busy_seconds()
    own = _cpu_seconds()
    for _ in range(1 if args.tiny else side.calls):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        work()
        spent.append((time.perf_counter() - wall, _cpu_seconds() - cpu))
    seconds, cpu = (statistics.median(values) for values in zip(*spent))
    others = (_busy_seconds() - busy - (_cpu_seconds() - own)) / (time.perf_counter() - began)
    peak = max(peak_memory_bytes(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return Spent(seconds, cpu, peak / 2 ** 20, max(0.0, others))


def _cpu_seconds() -> float:
    """CPU seconds of all threads of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _busy_seconds() -> float:
    """CPU seconds of all processes since the start of the machine, those of other virtual machines included; Linux."""
    try:
        user, nice, system, _, _, irq, soft_irq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


class Results:
    """The finished turns of all rows, in a JSON file: {"machine": line, "rows": {row: {side: [[seconds, ...], ...]}}}.

    Raises ValueError for a file that another machine or other versions have written.
    """

    def __init__(self, path: Path, machine: str) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine, "rows": {}}
        if path.is_file():
            self.content = read_json(path)
            if self.content.get("machine") != machine:
                raise ValueError(f"{path}: measured on another machine or with other versions "
                                 f"({self.content.get('machine')}). Give another --out.")

    def turns(self, row: str, side: str) -> list[Spent]:
        """The finished turns of a side."""
        return [Spent(*turn) for turn in self.content["rows"].get(row, {}).get(side, [])]

    def add(self, row: str, side: str, spent: Spent) -> None:
        """Keep one more turn."""
        self.content["rows"].setdefault(row, {}).setdefault(side, []).append(list(spent))
        write_json(self.path, self.content)

    def forget_disturbed(self, row: str, side: str) -> None:
        """Forget the turns during which others used more than QUIET, so that they are measured again."""
        quiet = [list(turn) for turn in self.turns(row, side) if turn.others <= QUIET]
        self.content["rows"].setdefault(row, {})[side] = quiet

    def median(self, row: str, side: str) -> Spent | None:
        """Medians over the turns; None where there is none."""
        turns = self.turns(row, side)
        return Spent(*(statistics.median(values) for values in zip(*turns))) if turns else None


def run_rows(rows: Sequence[Row], results: Results, command: Sequence[str], until: float, peers: bool) -> None:
    """Measure what is not finished: turn by turn, the sides one after the other, each in a process.

    command: how to run one turn; the names of row and side, and where the result goes, follow
    until:   on time.monotonic's clock; no turn begins later
    peers:   whether the sides that need MONAI are measured
    """
    for row in rows:
        for turn in range(row.turns):
            for name, side in row.sides.items():
                if len(results.turns(row.name, name)) > turn or (side.peer and not peers):
                    continue
                if time.monotonic() > until:
                    print("stopped: the rest is measured when the command is called again", file=sys.stderr)
                    return
                done = subprocess.run([*command, row.name, name], stdout=subprocess.PIPE, text=True,
                                      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
                if done.returncode:
                    print(f"{row.name}, {name}: failed with exit code {done.returncode} (-9: too little memory)",
                          file=sys.stderr)
                    continue
                spent = Spent(*json.loads(done.stdout.splitlines()[-1]))
                results.add(row.name, name, spent)
                print(f"{row.name}, {name}: {spent.seconds:.2f} s, {spent.cpu:.2f} CPU s, {spent.peak_mib:.0f} MiB, "
                      f"others used {spent.others:.2f} cores", file=sys.stderr, flush=True)


def table(rows: Sequence[Row], results: Results) -> Iterator[str]:
    """Markdown lines: a line per row, a column per side, in each cell seconds, memory, and the gain over the first."""
    for i, row in enumerate(rows):
        if i == 0 or list(rows[i - 1].sides) != list(row.sides):
            yield from ([""] if i else [])
            yield f"| | {' | '.join(row.sides)} |"
            yield "|--" * (len(row.sides) + 1) + "|"
        first = results.median(row.name, next(iter(row.sides))) if row.compared else None
        cells = [_cell(results.median(row.name, side), first, row.units) for side in row.sides]
        turns = max(len(results.turns(row.name, side)) for side in row.sides)
        yield f"| {row.name} (n = {turns}) | {' | '.join(cells)} |"


def _cell(spent: Spent | None, first: Spent | None, units: int) -> str:
    if spent is None:
        return "not measured"
    memory = f"{spent.peak_mib / 1024:.2f} GiB"
    disturbed = " (disturbed)" if spent.others > QUIET else ""
    cell = f"{_seconds(spent.seconds / units)} ({_seconds(spent.cpu / units)} CPU), {memory}{disturbed}"
    return cell if first is None or spent == first else f"{cell}: **{first.seconds / spent.seconds:.1f} x**"


def _seconds(value: float) -> str:
    """Three significant digits, in s or ms."""
    return f"{1e3 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def machine() -> str:
    """One line: processor, threads, system, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        processor = f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    except (OSError, KeyError):
        processor = platform.processor() or platform.machine()
    return (f"{processor}, {torch.get_num_threads()} threads, {platform.system()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")


def today() -> str:
    """The date, for the line above a table."""
    return str(datetime.date.today())
