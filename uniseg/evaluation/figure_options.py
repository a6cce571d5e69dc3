"""The options of `python -m uniseg figures`. Nothing here imports numpy, so that --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..machine.command_line import Parser, at_least, named_path

DESCRIPTION = """Draw figures in the form of the paper's: contours of readers and models, lesions from small to large.

    python -m uniseg figures contours CT --of liver,spleen --reading "Doctor 1"=a.nii.gz --reading AI=ct_seg.nii.gz
    python -m uniseg figures lesions CT --of liver_tumor --truth label.nii.gz --reading AI=ct_seg.nii.gz

A reading is a label map, a result of uniseg.infer or a folder of masks of that CT, in any form that `evaluate --pred`
takes. Contours are those of Fig. 5(a), lesions those of Fig. 2 and Fig. 4(b)."""


def build_parser() -> Parser:
    """The options of `python -m uniseg figures`."""
    parser = Parser(prog="python -m uniseg figures", usage="%(prog)s {contours,lesions} CT --of CLASS,... [options]",
                    description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog="Exit codes: 0 done; 1 it cannot be drawn or written; 2 bad arguments.")
    add = parser.add_argument
    add("figure", choices=("contours", "lesions"), help="contours: Fig. 5(a); lesions: Fig. 2 and 4(b)")
    add("ct", type=Path, metavar="CT", help="NIfTI file in Hounsfield units")
    add("--of", required=True, metavar="CLASS,...", help="classes whose contours are drawn, one for lesions")
    add("--reading", type=named_path("NAME=PATH", "AI=ct_seg.nii.gz"), action="append", default=[], metavar="NAME=PATH",
        help="what a reader or a model says: a label map or a folder of masks; repeat for more, at most six")
    add("--truth", type=Path, help="for lesions: the reading whose lesions are shown")
    add("--slices", type=at_least(1), default=3, help="for contours: slices of each class (default: 3)")
    add("--most", type=at_least(1), default=6, help="for lesions: rows at most (default: 6)")
    add("-o", "--output", type=Path, help="PNG file (default: contours.png or lesions.png)")
    add("--overwrite", action="store_true", help="replace the file")
    add("-v", "--verbose", action="store_true", help="show the traceback of an error")
    return parser
