"""The options of `python -m uniseg.checkpoint`. Nothing here imports torch, so that --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..machine.command_line import Parser

DESCRIPTION = """Say what a weights file is, or convert it. docs/released_weights.md lists what is read.

    python -m uniseg.checkpoint FILE               backbone, heads, classes, sha256, and how to use it
    python -m uniseg.checkpoint FILE -o OUT.pt     writes it as a checkpoint of uniseg"""


def build_parser() -> Parser:
    """The options of `python -m uniseg.checkpoint`."""
    parser = Parser(prog="python -m uniseg.checkpoint", usage="%(prog)s FILE [-o OUT.pt] [options]",
                    description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog="Exit codes: 0 done; 1 the output cannot be written; 2 the file is of no use.")
    parser.add_argument("file", type=Path, help="weights of uniseg, of the authors, of SuPreM, MONAI or Models Genesis")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.pt",
                        help="convert the file to a checkpoint of uniseg")
    parser.add_argument("--partial", action="store_true",
                        help="convert what fits, even if entries are missing or left over")
    parser.add_argument("--half", action="store_true", help="with -o: store the weights in float16, half the size")
    parser.add_argument("--all", action="store_true", help="list all entries that do not fit, not only the first few")
    return parser
