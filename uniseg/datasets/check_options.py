"""The options of `python -m uniseg.data`. Nothing here imports numpy, so that --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..imaging.preprocessing import Preprocessing
from ..machine.about import NOT_A_MEDICAL_DEVICE
from ..machine.command_line import Parser, named_folder

SPACING_MM = Preprocessing().spacing_mm[0]          # of the paper's grid
EPILOG = f"""Exit codes: 0 nothing but warnings; 1 errors in some case, or an output cannot be written;
2 a dataset or the folder cannot be used at all.
{NOT_A_MEDICAL_DEVICE}"""


def build_parser() -> Parser:
    """The options of `python -m uniseg.data`."""
    parser = Parser(prog="python -m uniseg.data", usage="%(prog)s ROOT [options]", epilog=EPILOG,
                    description="Check the datasets of a folder before training, and look at them.",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT",
                        help="folder with one sub-folder per dataset: the --data-root of training")
    parser.add_argument("--dataset", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
                        help="a dataset whose folder has another name (`python -m uniseg layouts` lists the names); "
                             "repeat for more")
    parser.add_argument("--allow-outside", action="store_true",
                        help="allow files that lie outside their dataset's folder")
    parser.add_argument("--map", type=Path, help="JSON file {label name: class name, or null to drop the label}")
    parser.add_argument("--spacing", type=float, default=SPACING_MM,
                        help="voxel size in mm for which cache and memory are estimated (default %(default)s)")
    parser.add_argument("--preview", type=Path, metavar="DIR",
                        help="write one PNG per case: three slices with contours and class numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    return parser
