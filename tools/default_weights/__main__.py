"""Make the default weights from data, stage by stage; the same command goes on where an earlier one stopped.

    python -m tools.default_weights DATA --out WORK                       from draw to score, on two CPU cores
    python -m tools.default_weights DATA --out WORK --stages ship         puts the result into uniseg/weights
    python -m tools.default_weights DATA --out WORK --stages ablate       what each ingredient brings
    python -m tools.default_weights DATA --pack PACK                      what a lent GPU machine needs, at 3 mm
    python -m tools.default_weights PACK --out WORK --gpu --export OUT    there: weights and curves within the minutes

DATA holds labelmaps, train, unlabelled and validation. Run it in a checkout of the repository.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniseg import NOT_A_MEDICAL_DEVICE
from uniseg.machine.console import fail, say
from uniseg.segmenter import DEFAULT_WEIGHTS

from . import stages
from .ablation import ablate
from .packing import pack
from .plan import LABELLED, MINUTES, SIZES, START
from .running import Clock, CommandFailed, Ended, ended_by_signals
from .stages import Work, default_start, export, refuse_seen

STAGES = {**stages.STAGES, "ablate": ablate}

GPU_STAGES = ("draw", "prepare", "train", "pseudo", "finetune")
ON_REQUEST = ("ship", "ablate")    # stages that --stages has to name
USE_START = {"train", "pseudo", "finetune", "extend", "score", "ship", "ablate"}
GPU_JOBS = 15
GPU_MINUTES = 9.0                  # of a call that may take ten; the export needs seconds


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    expected = ", ".join(f"{stage} {minutes['cpu']:g} and {minutes['gpu']:g}" for stage, minutes in MINUTES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.default_weights", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Minutes on a CPU and on one H200 with 16 cores (docs/weights_history.md): {expected}. "
        f"{NOT_A_MEDICAL_DEVICE}")
    parser.add_argument("data", type=Path, metavar="DATA", help="labelmaps, train, unlabelled, validation")
    parser.add_argument("--out", type=Path, metavar="WORK", help="folder of everything that is made")
    parser.add_argument("--stages", nargs="+", choices=STAGES, metavar="STAGE",
                        help=f"of {', '.join(STAGES)} (default: all but {' and '.join(ON_REQUEST)})")
    parser.add_argument("--size", choices=SIZES,
                        help="how much of everything (default cpu; gpu with --gpu and --pack)")
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT",
                        help=f"what the training goes on from (default: DATA/{START} of a pack, else the shipped "
                        "weights, or the last ones in git's history that have not seen what scores the new ones)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help=f"processes that draw, prepare, and draw patches (default 1; {GPU_JOBS} with --gpu)")
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="end after M minutes: each stage has its share, and trainings are as long as that allows")
    parser.add_argument("--gpu", action="store_true",
                        help=f"--size gpu --device cuda --jobs {GPU_JOBS} --minutes {GPU_MINUTES:g}, unless others are "
                        "named, without extend, score and ship")
    parser.add_argument("--export", type=Path, metavar="FOLDER",
                        help="at the end, whatever happened, put weights in float16 and curves here")
    parser.add_argument("--pack", type=Path, metavar="PACK", help="write what a GPU machine needs, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a stage failed, 2 for input that cannot be used, 143 ended by a signal."""
    args = build_parser().parse_args(argv)
    try:
        packed = args.data / START
        args.start = args.start or (packed if packed.is_file() else None)
        args.size = args.size or ("gpu" if args.gpu or args.pack else "cpu")
        if args.pack is not None:
            args.start = args.start or default_start(args.pack)
            refuse_seen(args.start, LABELLED)
            pack(args.data, args.pack, SIZES[args.size], args.start)
            return 0
        if args.out is None:
            raise ValueError("--out WORK: say where everything goes.")
        if not (args.data / "labelmaps").is_dir():
            raise ValueError(f"{args.data}: holds no folder labelmaps. Give the folder that CATALOG.md describes.")
        args.jobs = args.jobs or (GPU_JOBS if args.gpu else 1)
        if args.gpu:
            args.device = "cuda" if args.device == "auto" else args.device
            args.minutes, args.stages = args.minutes or GPU_MINUTES, args.stages or GPU_STAGES
        args.stages = [name for name in STAGES if name in (args.stages or set(STAGES) - set(ON_REQUEST))]
        if USE_START & set(args.stages):
            args.start = args.start or default_start(args.out)
            refuse_seen(args.start, LABELLED)
        args.start = args.start or DEFAULT_WEIGHTS
    except (ValueError, OSError) as error:
        return fail(error, 2, verbose=False)
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the stages, then export. Returns the exit code."""
    whole, code, work = Clock(args.minutes), 0, None
    column = "gpu" if args.gpu or args.size == "gpu" else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with ended_by_signals():
            for number, name in enumerate(args.stages):
                parts = [MINUTES[stage][column] for stage in args.stages[number:]]
                work = Work(args.data, args.out, SIZES[args.size], args.device, args.jobs, args.start,
                            whole.share(parts[0], sum(parts) or 1))
                say(f"== {name}, {whole.left_s() / 60:.1f} minutes are left" if args.minutes else f"== {name}")
                STAGES[name](work)
    except Ended:
        code = 143
    except (ValueError, OSError, CommandFailed) as error:
        code = fail(error, 1, verbose=False)
    finally:
        if args.export is not None and work is not None:
            export(work, args.export)
    return code


if __name__ == "__main__":
    sys.exit(main())
