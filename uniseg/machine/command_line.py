"""What the options of a command share: types of numbers that refuse nonsense, and a help page that shows each default.

A type raises argparse.ArgumentTypeError. argparse then prints one line with the name of the option, and the command
ends with exit code 2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

LARGEST = 1e9                       # no option has a use for a number above it


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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
