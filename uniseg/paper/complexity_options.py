"""The options of `python -m uniseg complexity`. Nothing here imports torch, so that --help answers at once."""

from __future__ import annotations

from ..machine.choices import BACKBONES
from ..machine.command_line import Parser


def build_parser() -> Parser:
    """The options of `python -m uniseg complexity`."""
    parser = Parser(prog="python -m uniseg complexity", usage="%(prog)s [options]",
                    description="Count parameters, operations and memory of the networks, beside the paper's numbers "
                    "(Fig. 3, Fig. 7, Section 5.4).",
                    epilog="Exit codes: 0 done; 2 sizes that no network takes.")
    parser.add_argument("--backbone", choices=BACKBONES, action="append",
                        help="backbone to count; repeat for more (default: all)")
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96), metavar=("D", "H", "W"),
                        help="patch size in voxels (default: 96 96 96)")
    parser.add_argument("--classes", type=int, default=32, help="number of classes (default: %(default)s)")
    parser.add_argument("--text-width", type=int, default=512,
                        help="numbers in the text embedding of a class (default: %(default)s, those of CLIP)")
    parser.add_argument("--width", type=int, default=0,
                        help="channels of the backbone's first level (default: 0, the paper's 48, 64 or 16)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser
