"""The commands of the package: where each has its function and its options. No command is imported before it is used.

A command's parser is in a file that imports neither torch nor scipy. `answer_help` builds it alone, so that every help
page is there in a fraction of the seconds that the command itself needs to start.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from .command_line import HELP_OPTIONS


class Command(NamedTuple):
    """One command: where its function and its parser are, and how the map describes it."""

    module: str
    function: str
    parser: str                    # module with its build_parser
    purpose: str
    example: str                   # arguments after the command's name


COMMANDS = {
    "infer": Command("infer", "main", "infer", "segment CTs: label maps, volumes, warnings", "ct.nii.gz"),
    "evaluate": Command("evaluate", "main", "evaluation.options", "score predictions against labels",
                        "--pred results --ref LABELS"),
    "figures": Command("evaluation.figures", "main", "evaluation.figure_options",
                       "contours of readers and models, lesions by size", "contours CT --of liver"),
    "data": Command("datasets.check", "main", "datasets.check_options", "check datasets before training", "ROOT"),
    "layouts": Command("datasets.layouts", "main", "datasets.layouts", "the published datasets that are recognised",
                       ""),
    "train": Command("train", "command", "training.options", "train a model, or teach it new classes",
                     "--data-root ROOT"),
    "checkpoint": Command("checkpoint", "main", "weights.options", "say what a weights file is, convert it", "FILE"),
    "embeddings": Command("embeddings", "main", "embeddings", "the text embeddings of class names",
                          '"liver cyst"'),
    "complexity": Command("paper.complexity", "main", "paper.complexity_options",
                          "parameters, operations and memory of the networks", ""),
}


def answer_help(name: str, arguments: Sequence[str]) -> None:
    """Print the help page of a command and end the process, where the arguments ask for it.

    name: of a command, or of its module; arguments: those that follow it
    Raises SystemExit, as argparse does.
    """
    commands = [c for key, c in COMMANDS.items() if name in (key, c.module)]
    if commands and set(HELP_OPTIONS) & set(arguments):
        importlib.import_module(f"uniseg.{commands[0].parser}").build_parser().parse_args(arguments)
