"""The options of `python -m uniseg.evaluate`. Nothing here imports torch or numpy, so that --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..formats.numbers import NUMBERINGS
from ..machine.about import NOT_A_MEDICAL_DEVICE
from ..machine.choices import PRECISIONS
from ..machine.command_line import Parser, named_folder
from .rules import WHOLE, WITHOUT_TUMOURS

OUT = Path("evaluation")
DESCRIPTION = """Score predictions against references: Sections 4.2 to 4.5 and 4.7.

    python -m uniseg.evaluate --pred DIR --ref DIR      results of uniseg.infer, or of another tool, against labels
    python -m uniseg.evaluate --data-root ROOT          segments the cases of datasets (--weights W), then scores them
    python -m uniseg.evaluate --read RUN0 RUN1 ...      pools the held-out cases of cross-validation's folds

Prints a table of the classes and groups; writes cases.csv and summary.json. docs/evaluation.md explains the numbers."""
EPILOG = f"""Exit codes: 0 done; 1 a case failed or nothing can be written; 2 bad arguments or data;
130 interrupted, finished predictions are kept.
{NOT_A_MEDICAL_DEVICE}"""
# The options of --help; the others are shown by --help-all.
FIRST = ("pred", "ref", "data_root", "weights", "read", "classes", "fold", "folds", "out", "overwrite", "tables",
         "compare", "device", "quiet")


def build_parser() -> Parser:
    """The options of `python -m uniseg.evaluate`."""
    parser = Parser(prog="python -m uniseg.evaluate", usage="%(prog)s (--pred DIR --ref DIR | --data-root ROOT | "
                    "--read DIR ...) [options]", description=DESCRIPTION, epilog=EPILOG,
                    formatter_class=argparse.RawDescriptionHelpFormatter, first=FIRST)
    _add_what_is_scored(parser.add_argument_group("what is scored"))
    _add_choice(parser.add_argument_group("which cases and classes"))
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_what_is_scored(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--pred", type=Path, metavar="DIR",
                      help="predictions: results of uniseg.infer, label maps, or one folder of masks per case")
    what.add_argument("--ref", type=Path, metavar="DIR",
                      help="references: a dataset, a folder of datasets, or any form that --pred takes")
    what.add_argument("--data-root", type=Path, metavar="ROOT", help="datasets whose cases are segmented and scored")
    what.add_argument("--weights", type=Path, help="checkpoint for --data-root (default: the built-in weights)")
    what.add_argument("--read", type=Path, nargs="+", metavar="DIR",
                      help="score nothing: read evaluations or training runs (validation.json); several are folds")
    what.add_argument("--healthy", type=_healthy, action="append", default=[], metavar="[TUMOURS=]DIR",
                      help="patients without tumour, for the specificity: predictions for them, or their CTs with "
                      "--data-root. No label is read: they must be known to have none of the model's tumours, or none "
                      "of those named (paper: --healthy liver_tumor,kidney_tumor=CHAOS --healthy "
                      "pancreatic_tumor=PANCREAS)")
    what.add_argument("--against", type=Path, metavar="DIR",
                      help="labels of a second reader, in any form that --ref takes (Section 4.7)")


def _add_choice(choice: argparse._ArgumentGroup) -> None:
    choice.add_argument("--classes",
                        help="only these classes, comma-separated; plain label maps then annotate all of them")
    choice.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                        help="one more dataset beside --ref or --data-root, as in training; repeat for more")
    choice.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label}")
    for who in ("ref", "pred"):
        choice.add_argument(f"--{who}-numbers", metavar="JSON",
                            help=f"what the numbers of plain label maps in --{who} mean: a dataset.json, or one of "
                            f"{', '.join(NUMBERINGS[:2])}, {NUMBERINGS[10]}, ... (default: what their header says, "
                            "else the dataset.json beside them, else one folder up, else Table 2)")
    choice.add_argument("--fold", type=int, help="only the cases that training with --fold K --folds N held out")
    choice.add_argument("--folds", type=int, help="the number N of folds that --fold belongs to")
    choice.add_argument("--split", type=Path, metavar="JSON",
                        help='only the cases under "validation" in the file that training with --split was given')
    choice.add_argument("--allow-missing", action="store_true",
                        help="score the cases that have a prediction, and say how many have none")
    choice.add_argument("--epoch", choices=("last", "best"), default="last",
                        help="epoch of a training run's validation.json; the best epoch was chosen on these very cases "
                        "(default %(default)s)")


def _add_results(results: argparse._ArgumentGroup) -> None:
    results.add_argument("--out", type=Path,
                         help=f"folder of cases.csv and summary.json (default {OUT}; with --read: none)")
    results.add_argument("--overwrite", action="store_true",
                         help="replace the evaluation in --out; predictions of the same weights are kept")
    results.add_argument("--tables", action="store_true",
                         help="print the paper's Tables 3, 4, 5, 6 and 8 with a row for this evaluation")
    results.add_argument("--compare", type=Path, metavar="DIR",
                         help="another evaluation or training run: print paired differences with a test")
    results.add_argument("--tolerance", metavar="MM",
                         help="tolerance of NSD: mm for all classes, liver=7,colon=4 for those named, or decathlon "
                         "for that of the class's task (default: that of the task in its datasets, else of the class)")
    results.add_argument("--organs", choices=(WHOLE, WITHOUT_TUMOURS), default=WHOLE,
                         help="score organs with the tumours inside them (Section 4.1.1) or without, as a label map "
                         "with one value per voxel has them (default %(default)s)")
    results.add_argument("--min-lesion-ml", type=float, default=0.0,
                         help="a tumour counts as found in a patient when a predicted lesion has at least this volume "
                         "(default: one voxel)")
    results.add_argument("--bootstrap", type=int, default=1000,
                         help="resamples for the confidence intervals; 0: no intervals (default %(default)s)")
    results.add_argument("--seed", type=int, default=0, help="random seed of the resamples (default %(default)s)")
    results.add_argument("--no-postprocess", action="store_true",
                         help="with --data-root: leave out post-processing, as in uniseg.infer")
    results.add_argument("--steps", metavar="STEP,...",
                         help="with --data-root: only these steps of post-processing, as in uniseg.infer")
    results.add_argument("--device", default="auto",
                         help="with --data-root: auto, cpu, cuda, cuda:1 (default %(default)s)")
    results.add_argument("--precision", choices=PRECISIONS, default="auto",
                         help="with --data-root: number type of the backbone's products, as in uniseg.infer (default "
                         "%(default)s)")
    results.add_argument("-q", "--quiet", action="store_true",
                         help="print warnings and errors only; the tables are in --out")
    results.add_argument("-v", "--verbose", action="store_true", help="show where in the program an error came from")


def _healthy(text: str) -> Any:
    """The value of --healthy; its module needs numpy, which --help must not wait for."""
    from .pairs import healthy_option

    return healthy_option(text)
