"""How long a user waits for the first window: a cold start of `python -m uniseg.infer --demo`, step by step.

    python benchmarks/start.py [--threads 2] [--repeats 3] [--empty-cache]

Every start is a new process, which says when it has come to each step; seconds count from before Python began. Medians
of the repeats. With --empty-cache Linux forgets the files that it has read before each start (needs root).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import machine, today

STEPS = ("Python", "imports", "weights", "first window begins", "first window ends", "end")
# Runs the command with a clock at each step. The names are those of the modules that the command uses.
WATCHED = """
import json, sys, time
times = [time.time()]
import uniseg.infer
import uniseg.inference.making, uniseg.segmenter
times.append(time.time())
load = uniseg.segmenter.load
def watched(*arguments):
    segmenter = load(*arguments)
    times.append(time.time())
    forward, network = segmenter.network.forward, segmenter.network
    def first(*inputs):
        network.forward = forward
        times.append(time.time())
        logits = forward(*inputs)
        times.append(time.time())
        return logits
    network.forward = first
    return segmenter
uniseg.segmenter.load = watched
code = uniseg.infer.main(["--demo", "-q", "-o", sys.argv[1]])
print(json.dumps([*times, time.time()]))
sys.exit(code)
"""


def start(folder: Path, threads: int) -> list[float]:
    """Seconds from before the start of Python to the end of each of STEPS."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", WATCHED, str(folder)], env=environment, check=True, text=True,
                          stdout=subprocess.PIPE)
    return [at - began for at in json.loads(done.stdout.splitlines()[-1])]


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="starts (default %(default)s)")
    parser.add_argument("--empty-cache", action="store_true", help="forget the files that were read; needs root")
    args = parser.parse_args(argv)
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            if args.empty_cache:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            starts.append(start(Path(folder), args.threads))
    print(f"{today()}, {machine()}; the starts have {args.threads} threads each\n")
    print(f"| | {' | '.join(STEPS)} |\n|{'--|' * (len(STEPS) + 1)}")
    print("| seconds | " + " | ".join(f"{statistics.median(of_step):.2f}" for of_step in zip(*starts)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
