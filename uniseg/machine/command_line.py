"""What the commands share: a parser whose help fits on a screen, and types of options that refuse nonsense.

A type raises argparse.ArgumentTypeError. argparse then prints one line with the name of the option, and the command
ends with exit code 2. Nothing here imports torch or numpy, so that every --help answers at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from .console import say

LARGEST = 1e9                       # no option has a use for a number above it
HELP_OPTIONS = ("-h", "--help", "--help-all")


class Parser(argparse.ArgumentParser):
    """argparse's parser with two help pages: --help shows the options that matter first, --help-all every one.

    Help, version and errors survive a closed pipe and an ASCII terminal (console.say).
    """

    def __init__(self, *arguments: Any, first: Collection[str] = (), **options: Any) -> None:
        """first: names (dest) of the options of --help; (): all of them, and there is no --help-all.

        Everything else is argparse's. An option that `first` does not name is shown by --help-all alone.
        """
        super().__init__(*arguments, **options)
        self._optionals.title = "help"
        self.first = frozenset(first)
        if first:
            self.add_argument("--help-all", action=_HelpAll, help="show every option")

    def format_help(self) -> str:
        """The page of --help-all; --help and its like come last."""
        self._action_groups.sort(key=lambda group: group is self._optionals and len(self._action_groups) > 2)
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        """Print the page of --help. `format_help` gives that of --help-all."""
        self._print_message(self.format_first_help(), file or sys.stdout)

    def format_first_help(self) -> str:
        """The page of --help."""
        if not self.first:
            return self.format_help()
        page = self._get_formatter()
        page.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        page.add_text(self.description)
        page.start_section(f"the options that matter first; --help-all shows all {len(self._actions)}")
        page.add_arguments(action for action in self._actions if action.dest in self.first)
        page.end_section()
        page.add_text(self.epilog)
        return page.format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            say(message.removesuffix("\n"), file or sys.stderr)


class _HelpAll(argparse.Action):
    """Prints the help page with every option and ends the command."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser._print_message(parser.format_help(), sys.stdout)
        parser.exit()


class HelpFormatter(argparse.HelpFormatter):
    """Ends the help of an option with "(default: ...)", as one would type it, where there is a default to show."""

    def _get_help_string(self, action: argparse.Action) -> str:      # argparse's own formatters override it as well
        text = action.help or ""
        shown = default_text(action.default)
        return f"{text} (default: {shown.replace('%', '%%')})" if shown else text


def default_text(value: Any) -> str:
    """The default of an option as one would type it, "" where there is none to show: no value, a switch, an empty list.

    >>> default_text(2 / 3), default_text((96, 96, 96)), default_text(1e-4), default_text(None), default_text(())
    ('0.667', '96 96 96', '0.0001', '', '')
    """
    if value is None or isinstance(value, bool) or value == argparse.SUPPRESS:
        return ""
    if isinstance(value, (tuple, list)):
        return " ".join(map(default_text, value))
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:g}"
    return str(value)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an integer option that must not be less than `least`."""
    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value
    return integer


def finite(text: str) -> float:
    """A number; neither NaN nor infinite."""
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> float:
    """A number above 0 and below LARGEST."""
    value = _number(text)
    if not 0 < value < LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number below 1e9")
    return value


def not_negative(text: str) -> float:
    """A number from 0 to below LARGEST."""
    value = _number(text)
    if not 0 <= value < LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1e9")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def named_path(form: str, example: str) -> Callable[[str], tuple[str, Path]]:
    """The type of an option NAME=PATH: (name, path). form, example: for the message, NAME=FOLDER and LiTS=/data/lits"""
    def pair(text: str) -> tuple[str, Path]:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise argparse.ArgumentTypeError(f"{text!r} is not {form}, as in {example}")
        return name, Path(path)
    return pair


named_folder = named_path("NAME=FOLDER", "LiTS=/data/lits")      # of --dataset


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
