"""All commands under one name: `uniseg infer ct.nii.gz` is `python -m uniseg.infer ct.nii.gz`.

    uniseg                 the map of the commands
    uniseg train --help    explains one
"""

import difflib
import importlib
import sys

from .imaging.file_names import is_nifti
from .machine.about import NOT_A_MEDICAL_DEVICE, __version__
from .machine.command_line import HELP_OPTIONS
from .machine.commands import COMMANDS, answer_help
from .machine.console import error_line, say

# The map: what one wants, and the commands for it.
MAP = {"use a model": ("infer", "evaluate", "figures"), "make one": ("data", "layouts", "train"),
       "look inside": ("checkpoint", "embeddings", "complexity")}


def main(argv: list[str] | None = None) -> int:
    """Run the command named by the first argument with the remaining arguments. Returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in HELP_OPTIONS:
        for line in map_lines():
            say(line)
        return 0
    if arguments[0] == "--version":
        say(f"uniseg {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        error_line(unknown(arguments[0]))
        return 2
    answer_help(arguments[0], arguments[1:])
    module, function, *_ = COMMANDS[arguments[0]]
    return getattr(importlib.import_module(f"uniseg.{module}"), function)(arguments[1:]) or 0


def map_lines() -> list[str]:
    """What `uniseg --help` prints: the commands by what one wants, an example of each, exit codes."""
    lines = ["usage: uniseg COMMAND ...    (or python -m uniseg COMMAND ...)"]
    for wish, names in MAP.items():
        lines += ["", f"{wish}:"]
        lines += [f"  {name:11}{COMMANDS[name].purpose:52}uniseg {name} {COMMANDS[name].example}".rstrip()
                  for name in names]
    return [*lines, "", "First steps: `uniseg infer --demo` segments a synthetic CT, `uniseg train --demo` trains.",
            "`uniseg COMMAND --help` shows the options that matter first, --help-all every one.",
            "Exit codes: 0 done; 1 a case failed; 2 bad arguments or data, nothing was done; 130 interrupted.",
            NOT_A_MEDICAL_DEVICE]


def unknown(name: str) -> str:
    """The line for an argument that is no command."""
    if is_nifti(name):
        return f"no command {name!r}. To segment this file: uniseg infer {name}"
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"no command {name!r}. " + (f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(COMMANDS)}.")


if __name__ == "__main__":
    sys.exit(main())
