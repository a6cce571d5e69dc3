"""Segment CT volumes: Section 4.1.2, Inference.

    python -m uniseg.infer ct.nii.gz            writes ct_seg.nii.gz and ct_seg.json beside it
    python -m uniseg.infer folder -o results    every NIfTI file of the folder; a bad case does not stop the others
    python -m uniseg.infer --demo               makes a small synthetic CT and segments it

The label map has the grid of the CT and the class numbers of --list-classes. segmenter.py shows how it is made.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import taxonomy
from .formats.numbers import TABLE_2, TOTALSEGMENTATOR, find_numbering, numbers_in
from .imaging.file_names import RESULT, SUFFIXES
from .imaging.limits import MAX_VOXELS
from .inference.disk import check_disk
from .inference.finished import remaining
from .inference.outputs import Outputs
from .inference.parts import part_named, part_of_this_process
from .inference.plan import Job, plan
from .inference.summary import class_lines
from .inference.table import Table, folder_of_all, table_of
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.choices import PRECISIONS
from .machine.command_line import Parser
from .machine.console import fail, note, printable, quietly, say, warn
from .machine.ranks import launched
from .machine.seldom import Seldom
from .machine.signals import ends_at_signals

# The options of --help; the others are shown by --help-all.
FIRST = ("inputs", "recursive", "classes", "experimental", "demo", "output", "masks", "preview", "view", "overwrite",
         "resume", "weights", "device", "fast", "list_classes", "quiet")
EPILOG = f"""Exit codes: 0 done; 1 a case failed, the others are done; 2 bad arguments, nothing was done;
130 interrupted, finished cases are kept.
{NOT_A_MEDICAL_DEVICE}"""
SIDECAR = Path(__file__).with_name("weights") / "default.json"        # what the built-in weights are, as JSON


def build_parser() -> Parser:
    """The command's options, in the order in which --help-all shows them."""
    parser = Parser(prog="python -m uniseg.infer", usage="%(prog)s CT [CT ...] [options]", description=__doc__,
                    epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, first=FIRST)
    _add_inputs(parser.add_argument_group("what is segmented"))
    _add_results(parser.add_argument_group("what is written"))
    _add_network(parser.add_argument_group("how it is computed"))
    _add_about(parser.add_argument_group("what is said"))
    return parser


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("inputs", nargs="*", type=Path, metavar="CT",
                       help="NIfTI files in Hounsfield units, or folders of them")
    group.add_argument("--recursive", action="store_true",
                       help="also take the CTs in folders below; their results lie in the same folders below -o")
    group.add_argument("--part", type=part_named, metavar="I/N",
                       help="only every N-th CT, beginning with the I-th: for N machines or jobs of a scheduler, whose "
                       "other arguments are the same (docs/scale.md)")
    group.add_argument("--classes", help="compute only these, comma-separated, e.g. liver,spleen")
    group.add_argument("--experimental", action="store_true",
                       help="also compute the classes that the weights know but do not offer, because they scored too "
                       "low (--list-classes), or let --classes name them")
    group.add_argument("--demo", action="store_true",
                       help="make demo_ct.nii.gz, a synthetic CT, here or in -o, and segment it")
    group.add_argument("--max-voxels", type=int, default=MAX_VOXELS, metavar="N",
                       help=f"refuse a file with more voxels than this (default: {MAX_VOXELS:,})")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-o", "--output", type=Path,
                       help="label map (one input) or folder (default: beside each input)")
    group.add_argument("--masks", action="store_true",
                       help="also write one file per class in ct_seg/; these keep overlaps")
    group.add_argument("--preview", action=argparse.BooleanOptionalAction,
                       help="also write ct_preview.png: three slices with the classes over them, their names and "
                       "volumes (default: with --demo only)")
    group.add_argument("--view", action="store_true",
                       help="also write ct_view.html, a viewer for any browser, and for several CTs index.html with "
                       "all of them")
    group.add_argument("--viewer-files", action="store_true",
                       help="also write what other viewers need to show names and colours: ct_seg.seg.nrrd (3D Slicer, "
                       "with overlaps and SNOMED CT codes), ct_seg.ctbl, and files for ITK-SNAP, niivue and MRIcron")
    group.add_argument("--numbers", default=TABLE_2, metavar="WHOSE",
                       help=f"label numbers of the label map: {TABLE_2} (default), {TOTALSEGMENTATOR}, or those of a "
                       "dataset, as msd:Task03, btcv, amos22 (docs/label_numbers.md); classes without a number there "
                       "are left out")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist already")
    existing.add_argument("--resume", action="store_true",
                          help="after an interruption: keep the results that are complete and make the others")


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", type=Path, help="a checkpoint of uniseg.train (default: the built-in weights)")
    group.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1")
    group.add_argument("--overlap", type=float, default=0.5,
                       help="share that neighbouring windows have in common (default: 0.5, Section 4.1.2)")
    group.add_argument("--fast", action="store_true",
                       help="for a look: one view, and windows that overlap by 0.25 at most; docs/results.md says what "
                       "it costs")
    group.add_argument("--focus", action=argparse.BooleanOptionalAction, default=True,
                       help="with --classes, and weights whose windows are small: let the built-in weights find these "
                       "organs, and run the windows near them alone (default: yes, where it saves time)")
    group.add_argument("--threshold", default="0.5",
                       help="probability above which a voxel belongs to a class: for all (default: 0.5, Section 4.1.2) "
                       "or per class, liver=0.4,spleen=0.6")
    group.add_argument("--no-postprocess", action="store_true",
                       help="leave out the post-processing of Section 4.1.2: sides, components, tumours inside their "
                       "organ")
    group.add_argument("--steps", metavar="STEP,...",
                       help="only these steps of post-processing: sides, components, stubs, regions (default: all; the "
                       "paper's are sides,components,regions)")
    group.add_argument("--precision", choices=PRECISIONS, default="auto",
                       help="number type of the backbone's products (default: auto, which is bf16 on a CPU with "
                       "AVX512_BF16 or AMX, else float32; the JSON says what it was)")


def _add_about(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--list-classes", action="store_true",
                       help="print the classes with their numbers and other names, and exit")
    group.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")
    group.add_argument("--version", action="version", version=f"uniseg {__version__}",
                       help="print the version and exit")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a case failed, 2 bad arguments (nothing was done), 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        with ends_at_signals(), quietly(args.quiet and not args.list_classes):
            return list_classes() if args.list_classes else run(args)
    except KeyboardInterrupt:
        note("interrupted; finished cases are kept")
        return 130


def run(args: argparse.Namespace) -> int:
    """Segment the planned cases one after the other; returns the exit code."""
    try:
        options, part = check_options(args), part_of_this_process(args.part)
        preview = args.demo if args.preview is None else args.preview
        outputs = Outputs(args.masks, preview, args.view, args.viewer_files)
        jobs = ([make_demo(args)] if args.demo
                else plan(args.inputs, args.output, outputs, args.overwrite or args.resume, args.recursive, part.share))
        table = None if args.demo else table_of(args.inputs, args.output, jobs)
        from .inference.making import make_each
        from .machine.device import slow_precision
        from .machine.processes import device_here, wait_for_all
        from .segmenter import load  # imports torch; everything that can be refused without it has been

        segmenter = load(args.weights, device_here(args.device, shared=True))
        segmenter.select(named_classes(options), args.experimental)
        for remark in taxonomy.remarks_on(segmenter.classes):
            warn(f"{args.weights}: {remark}")
        if doubt := slow_precision("--precision", args.precision, segmenter.device):
            warn(doubt)
        planned, asked, jobs = jobs, segmenter.asked(**options), part.share(jobs)
        if part.of > 1:
            note(f"part {part}: {len(jobs)} of {len(planned)} CTs, on {segmenter.device}")
        numbers = numbers_in(options["numbers"], asked.classes)
        if left_out := [name for name, number in numbers.items() if number is None]:
            note(f"no number in {options['numbers']}, so not in the label map: {', '.join(left_out)}")
        if args.resume:
            jobs = remaining(jobs, outputs, asked)
        check_disk(jobs, len(asked.classes) if args.masks else 0, outputs.most_bytes)
    except (ValueError, OSError) as error:
        return fail(error, 2, args.verbose)
    failed, tables = 0, [written(table, args.verbose)]
    write_table = Seldom(lambda: tables.append(written(table, args.verbose)))
    existing = "keep" if args.resume else "replace" if args.overwrite or args.demo else "refuse"
    folder = None if args.demo else folder_of_all(args.inputs, args.output, planned)
    try:
        for job, (stats, fault) in make_each(segmenter, jobs, planned, outputs, options, existing,
                                             launched()[0] == 0, folder):
            if fault is not None:
                failed += 1
                fail(fault, 1, args.verbose, job.ct)
            elif stats is None:
                note(f"{printable(str(job.result))}: another run has made it meanwhile; it stays as it is")
            else:
                report(job.ct, job.result, stats, outputs)
            write_table()
    finally:
        write_table(surely=True)
    if failed and len(jobs) > 1:
        note(f"{failed} of {len(jobs)} cases failed")
    wait_for_all()
    return 0 if not failed and all(tables) else 1


def written(table: Table | None, verbose: bool) -> bool:
    """Write statistics.csv with the results that are there; whether that succeeded. An error is printed."""
    try:
        if table is not None:
            table.write()
        return True
    except (ValueError, OSError) as error:
        fail(error, 1, verbose, table.path if table else None)
        return False


def check_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of Segmenter.segment. Raises ValueError."""
    if not 0 <= args.overlap < 1:
        raise ValueError(f"--overlap {args.overlap}: choose a value from 0 up to, not including, 1.")
    if args.max_voxels < 1:
        raise ValueError(f"--max-voxels {args.max_voxels}: choose a number of 1 or more.")
    steps: bool | tuple[str, ...] = not args.no_postprocess
    if args.steps is not None:
        from .postprocess import asked_steps  # imports scipy, which most refusals do not need

        steps = asked_steps(args.steps, args.no_postprocess)
    classes = [c.strip() for c in args.classes.split(",")] if args.classes is not None else None
    options = {"classes": classes, "overlap": args.overlap, "threshold": parse_threshold(args.threshold),
               "postprocess": steps, "precision": args.precision, "experimental": args.experimental,
               "max_voxels": args.max_voxels, "numbers": find_numbering(args.numbers), "fast": args.fast,
               "focus": args.focus}
    if args.weights is None:                        # other weights may have classes beyond Table 2
        for name in named_classes(options):
            taxonomy.resolve(name)
    return options


def named_classes(options: dict[str, Any]) -> list[str]:
    """All class names that the user gave in --classes and --threshold."""
    return [*(options["classes"] or []), *(options["threshold"] if isinstance(options["threshold"], dict) else [])]


def parse_threshold(text: str) -> float | dict[str, float]:
    """'0.4' -> 0.4; 'liver=0.4,spleen=0.6' -> {'liver': 0.4, 'spleen': 0.6}. Raises ValueError."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    try:
        values = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        values = {}
    if len(values) < len(pairs) or (len(pairs) > 1 and "" in values) or not all(0 < v < 1 for v in values.values()):
        raise ValueError(f"--threshold {text}: give one probability between 0 and 1, as 0.4, or one for each class "
                         "named, as liver=0.4,spleen=0.6.")
    return values.get("", values)


def make_demo(args: argparse.Namespace) -> Job:
    """Write the phantom as demo_ct.nii.gz; returns its job."""
    from .imaging.volume import write_volume
    from .phantom import make_phantom

    if args.part:
        raise ValueError("--demo makes one CT, which has no parts. Leave --part out.")
    if args.inputs:
        raise ValueError("--demo takes no CT; it makes its own. Leave one of the two out.")
    folder = args.output or Path(".")
    if folder.name.endswith(SUFFIXES):
        raise ValueError(f"-o {folder}: with --demo give a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    hu, _, affine = make_phantom()
    ct = folder / "demo_ct.nii.gz"
    write_volume(ct, hu, affine)
    say(f"{ct}: a synthetic CT of {'x'.join(map(str, hu.shape))} voxels", sys.stderr)
    return Job(ct, folder / f"demo_ct{RESULT}.nii.gz")


# ------------------------------------------------------------------------------------------------- what is printed

def report(ct: Path, result: Path, stats: dict[str, Any], outputs: Outputs) -> None:
    """Print a short table and what was written besides on stdout, the warnings on stderr.

    stats: those of the Segmentation
    """
    for warning in stats["warnings"]:
        warn(f"{ct}: {warning}")
    say(f"{printable(str(result))}  ({stats['seconds']['total']:.1f} s, peak {stats['peak_memory_mib']} MiB, "
        f"{stats['settings']['device']})")
    for line in class_lines(stats):
        say(printable(line))
    for kind, paths in outputs.files(result, ()).items():
        for path in paths:
            say(f"  {kind}: {printable(str(path))}")


def list_classes() -> int:
    """Print Table 2 and which of its classes the built-in weights have; returns the exit code.

    What the weights have is read from their JSON file, so that torch is not needed.
    """
    content = json.loads(SIDECAR.read_text()) if SIDECAR.is_file() else {"classes": [], "about": {}}
    experimental = content["about"].get("experimental", {})
    marks = {**dict.fromkeys(content["classes"], "offered"), **dict.fromkeys(experimental, "experimental")}
    say(f"{'':3s} {'name':25s} {'kind':7s} {'built-in':13s} other names, as datasets spell them too")
    for c in taxonomy.CLASSES:
        others = ", ".join(alias.replace("_", " ") for alias in c.aliases)
        say(f"{c.index:3d} {c.name:25s} {c.kind:7s} {marks.get(c.name, '-'):13s} {others}".rstrip())
    say(f"""
Both sides at once: {", ".join(name.replace("_", " ") for name in taxonomy.PAIRS)}.
offered:       the built-in weights compute it, unless --classes names others.
experimental:  they know it, but it scored too low to be offered, or was never scored on real CT. --experimental
               computes it as well; MODEL_CARD.md has the scores.
-:             they do not know it; weights of your own may (uniseg train).""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
