"""Segment CT volumes: Section 4.1.2, Inference.

    python -m uniseg.infer ct.nii.gz            writes ct_seg.nii.gz and ct_seg.json beside it
    python -m uniseg.infer folder -o results    every NIfTI file of the folder; a bad case does not stop the others
    python -m uniseg.infer --demo               makes a small synthetic CT and segments it

The label map has the input's own grid and the class numbers of `--list-classes`. How it is made: segmenter.py.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from . import taxonomy
from .imaging.file_names import RESULT, SUFFIXES, complete, masks_folder, stem
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.console import fail, printable, say
from .machine.signals import threading_is_main

SIDECAR = Path(__file__).with_name("weights") / "default.json"


def build_parser():
    parser = argparse.ArgumentParser(prog="python -m uniseg.infer", epilog=NOT_A_MEDICAL_DEVICE, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="CT", help="NIfTI files in HU, or folders of them")
    parser.add_argument("-o", "--output", type=Path, help="label map (one input) or folder (default: beside each input)")
    parser.add_argument("--weights", type=Path, help="checkpoint of uniseg.train (default: the built-in weights)")
    parser.add_argument("--classes", help="compute only these, comma-separated, e.g. liver,spleen")
    parser.add_argument("--experimental", action="store_true",
                        help="also the classes that scored too low to be offered (--list-classes), or allow --classes to name them")
    parser.add_argument("--masks", action="store_true", help="also one file per class, overlaps kept, in ct_seg/")
    parser.add_argument("--overlap", type=float, default=0.5, help="share neighbouring windows have in common (default 0.5, the paper's)")
    parser.add_argument("--threshold", default="0.5", help="probability, for all (0.5, the paper's) or by class: liver=0.4,spleen=0.6")
    parser.add_argument("--no-postprocess", action="store_true", help="skip sides, components and regions (Section 4.1.2)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32", help="of the network")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    there.add_argument("--resume", action="store_true", help="after an interruption: keep results that are complete, make the others")
    parser.add_argument("--demo", action="store_true", help="make demo_ct.nii.gz, a synthetic CT, here or in -o, and segment it")
    parser.add_argument("--list-classes", action="store_true", help="print the classes and leave")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where an error came from")
    parser.add_argument("--version", action="version", version=f"uniseg {__version__}")
    return parser


def main(argv=None):
    """Returns the exit code: 0 done, 1 a case failed, 2 bad arguments (nothing was done), 130 interrupted."""
    args = build_parser().parse_args(argv)
    if threading_is_main():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return list_classes() if args.list_classes else run(args)
    except KeyboardInterrupt:
        say("uniseg: interrupted; finished cases are kept", sys.stderr)
        return 130


def run(args):
    """Segment the planned cases one after the other; returns the exit code."""
    try:
        options = check_options(args)
        jobs = [make_demo(args)] if args.demo else plan(args)
        if not jobs:                                # --resume, and nothing is left to do
            return 0
        from .segmenter import load  # imports torch; all that can be refused without it has been

        segmenter = load(args.weights, args.device)
        segmenter.select(named_classes(options), args.experimental)
    except (ValueError, OSError) as error:
        return fail(error, 2, args.verbose)
    failed = 0
    for ct, result in jobs:
        try:
            segmentation = segmenter.segment(ct, progress=True, **options)
            result.parent.mkdir(parents=True, exist_ok=True)
            segmentation.save(result, masks_folder(result) if args.masks else None)
        except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            failed += 1
            fail(error, 1, args.verbose, ct)
        else:
            report(ct, result, segmentation.stats)
    if failed and len(jobs) > 1:
        say(f"uniseg: {failed} of {len(jobs)} cases failed", sys.stderr)
    return 1 if failed else 0


def check_options(args):
    """The keyword arguments of Segmenter.segment. Raises ValueError."""
    if not 0 <= args.overlap < 1:
        raise ValueError(f"--overlap {args.overlap}: choose a value from 0 up to, not including, 1.")
    classes = [c.strip() for c in args.classes.split(",")] if args.classes is not None else None
    options = {"classes": classes, "overlap": args.overlap, "threshold": parse_threshold(args.threshold),
               "postprocess": not args.no_postprocess, "precision": args.precision, "experimental": args.experimental}
    if args.weights is None:                        # at once, before torch; other weights may have classes of their own
        for name in named_classes(options):
            taxonomy.resolve(name)
    return options


def named_classes(options):
    """All names the user gave, in --classes and --threshold."""
    return [*(options["classes"] or []), *(options["threshold"] if isinstance(options["threshold"], dict) else [])]


def parse_threshold(text):
    """'0.4' -> 0.4; 'liver=0.4,spleen=0.6' -> {'liver': 0.4, 'spleen': 0.6}. Raises ValueError."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    try:
        values = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        values = {}
    if len(values) < len(pairs) or (len(pairs) > 1 and "" in values) or not all(0 < v < 1 for v in values.values()):
        raise ValueError(f"--threshold {text}: give one probability between 0 and 1, as 0.4, or one for each class named, "
                         "as liver=0.4,spleen=0.6.")
    return values.get("", values)


# ------------------------------------------------------------------------------------------------------ which files


def identity(path):
    """The same for two names of one file: links, upper and lower case where the disk does not tell them apart."""
    return path.stat().st_dev, path.stat().st_ino


def plan(args):
    """[(CT, result)] of all inputs that are to be segmented, checked before any work. Raises ValueError."""
    if not args.inputs:
        raise ValueError("no CT given. Name a NIfTI file or a folder, or try --demo.")
    files = []
    for path in args.inputs:
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES) and f.is_file()
                           and not f.name.startswith(".") and not stem(f).endswith(RESULT))
            if not found:
                raise ValueError(f"{path}: no .nii or .nii.gz file in this folder. Name another one.")
            files += found
        elif path.exists() or len(args.inputs) > 1:
            files.append(path)                      # a missing one among several is that case's error
        else:
            raise ValueError(f"{path}: no such file. Check the name.{nearest(path)}")
    one_file = args.output is not None and args.output.name.endswith(SUFFIXES)
    if one_file and len(files) > 1:
        raise ValueError(f"-o {args.output}: one file for {len(files)} inputs. Give a folder.")
    if args.output is not None and not one_file and args.output.exists() and not args.output.is_dir():
        raise ValueError(f"-o {args.output}: not a folder, and not a .nii.gz name. Give one of these.")
    jobs = [(f, args.output if one_file else (args.output or f.parent) / f"{stem(f)}{RESULT}.nii.gz") for f in files]
    seen, sources = {}, {identity(p) for ct, _ in jobs for p in (ct, ct.parent) if p.exists()}
    for ct, result in jobs:
        place = result.parent.resolve() / result.name
        if place in seen:
            raise ValueError(f"{ct} and {seen[place]}: both would be written to {result}. Run them apart.")
        seen[place] = ct
        for path in (result, result.with_name(f"{stem(result)}.json"), *([masks_folder(result)] if args.masks else [])):
            if path.exists() and identity(path) in sources:
                raise ValueError(f"{path}: the result would replace the input. Give another -o.")
            if path.exists() and not (args.overwrite or args.resume):
                raise ValueError(f"{path}: exists already. Give --overwrite to replace it, --resume to keep what is "
                                 "complete, or -o for another place.")
        folder = next(p for p in (result.parent, *result.parent.parents) if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{result}: nothing can be written in {folder}. Give another -o.")
    if args.resume:
        left = [(ct, result) for ct, result in jobs if not complete(result, args.masks)]
        say(f"uniseg: {len(jobs) - len(left)} of {len(jobs)} results are complete and stay as they are", sys.stderr)
        return left
    return jobs


def nearest(path):
    """' Did you mean x?' where the folder holds a file of a similar name."""
    import difflib

    names = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.with_name(close[0])}?" if close else ""


def make_demo(args):
    """Write the phantom as demo_ct.nii.gz; returns its job."""
    from .imaging.volume import write_volume
    from .phantom import make_phantom

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
    return ct, folder / f"demo_ct{RESULT}.nii.gz"


# -------------------------------------------------------------------------------------------------------- what is said


def report(ct, result, stats):
    """A short table on stdout, warnings on stderr."""
    for warning in stats["warnings"]:
        say(printable(f"uniseg: warning: {ct}: {warning}"), sys.stderr)
    say(f"{printable(str(result))}  ({stats['seconds']['total']:.1f} s, peak {stats['peak_memory_mib']} MiB, "
        f"{stats['settings']['device']})")
    for name, found in stats["classes"].items():
        if found["voxels"]:
            notes = [f"experimental: {found['experimental']}"] if "experimental" in found else []
            notes += ["touches the border"] if found["touches_border"] else []
            say(printable("  ".join([f"  {found['label']:3d}  {name:26s} {found['ml']:10.1f} ml", *notes])))
    if stats["empty"]:
        say("  nothing found")


def list_classes():
    """Table 2 with a mark at the classes of the built-in weights; their sidecar is JSON, so torch is not needed."""
    content = json.loads(SIDECAR.read_text()) if SIDECAR.is_file() else {"classes": [], "about": {}}
    marks = {**dict.fromkeys(content["classes"], "yes"), **dict.fromkeys(content["about"].get("experimental", {}), "experimental")}
    say(f"{'':3s} {'name':26s} {'kind':8s} built-in weights")
    for c in taxonomy.CLASSES:
        say(f"{c.index:3d} {c.name:26s} {c.kind:8s} {marks.get(c.name, '-')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
