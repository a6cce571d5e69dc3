"""All commands under one name: `python -m uniseg infer ct.nii.gz` is the same as `python -m uniseg.infer ct.nii.gz`.

    python -m uniseg                 lists the commands
    python -m uniseg train --help    explains one
"""

import importlib
import sys

from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.console import error_line, say

# command: (module, function in it, what it does)
COMMANDS = {
    "infer": ("infer", "main", "segment CTs"),
    "train": ("train", "command", "train a model, or teach it new classes"),
    "evaluate": ("evaluate", "main", "score predictions against labels"),
    "figures": ("evaluation.figures", "main", "draw contours of readers and models, and lesions by size"),
    "data": ("datasets.check", "main", "check datasets before training"),
    "checkpoint": ("checkpoint", "main", "say what a weights file is, convert it"),
    "embeddings": ("embeddings", "main", "print the text embeddings of class names"),
    "layouts": ("datasets.layouts", "main", "print the published datasets that are recognised"),
    "complexity": ("paper.complexity", "main", "count parameters, operations and memory of the networks"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command named by the first argument with the remaining arguments. Returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: python -m uniseg COMMAND ...\n")
        for name, (_, _, purpose) in COMMANDS.items():
            say(f"  {name:12}{purpose}")
        say(f"\n`python -m uniseg COMMAND --help` explains one. {NOT_A_MEDICAL_DEVICE}")
        return 0
    if arguments[0] == "--version":
        say(f"uniseg {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        error_line(f"no command {arguments[0]!r}. Use one of {', '.join(COMMANDS)}.")
        return 2
    module, function, _ = COMMANDS[arguments[0]]
    return getattr(importlib.import_module(f"uniseg.{module}"), function)(arguments[1:]) or 0


if __name__ == "__main__":
    sys.exit(main())
