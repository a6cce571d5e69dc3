"""`--resume --out RUN` needs no other option: config.json keeps the command that began the run, and where it was typed.

An option that is typed with --resume counts instead of the first command's. Where it would train something else, the
checkpoint does not agree and resume.py refuses it. Read options.py first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..machine.files import FileError, one_line
from ..machine.json_files import read_json
from .options import build_parser


class FirstCommand(NamedTuple):
    """The command that began a run."""

    words: list[str]               # its options as they were typed
    folder: str                    # where it was typed, as seen from the run folder: relative paths begin there

    @classmethod
    def typed_here(cls, words: Sequence[str], out: Path) -> FirstCommand:
        """A command that is typed in the working folder of this process; out: its run folder."""
        return cls(list(words), os.path.relpath(os.getcwd(), os.path.abspath(out)))

    @classmethod
    def of_run(cls, out: Path) -> FirstCommand | None:
        """The one that config.json of a run folder keeps; None where there is none, as of an earlier version.

        Raises ValueError for a config.json that cannot be read.
        """
        path = out / "config.json"
        content = read_json(path) if path.is_file() else {}
        if not isinstance(content, dict) or "command" not in content:
            return None
        words, folder = content["command"], content.get("typed_in")
        if not (isinstance(words, list) and isinstance(folder, str) and all(isinstance(w, str) for w in words)):
            raise FileError(one_line(path, "its command is not a list of words", "Start a new run with --init last.pt"))
        return cls(words, folder)

    def parsed(self, parser: argparse.ArgumentParser, out: Path) -> argparse.Namespace:
        """Its options; relative paths lead to the same files from the working folder of this process."""
        args = parser.parse_args(self.words)
        folder = Path(os.path.normpath(os.path.join(os.path.abspath(out), self.folder)))
        if folder != Path.cwd():
            for name, value in vars(args).items():
                setattr(args, name, _seen_from_here(value, folder))
        return args


def _seen_from_here(value: Any, folder: Path) -> Any:
    """A relative path that begins in `folder` as a path that this process can open; also within lists and tuples."""
    if isinstance(value, Path):
        return value if value.is_absolute() else Path(os.path.normpath(folder / value))
    if isinstance(value, (list, tuple)):
        return type(value)(_seen_from_here(one, folder) for one in value)
    return value


def typed(words: Sequence[str]) -> dict[str, Any]:
    """{option: value} of the options that stand in a command line, without any default."""
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(list(words)))
    del given["old"]                                   # what set_defaults adds
    return given


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; with --resume, those of the run's first command where none is typed.

    `first_command` becomes the FirstCommand of the run. Raises ValueError for a config.json that cannot be read, and
    where a run of an earlier version is resumed without its options.
    """
    args = parser.parse_args(list(words))
    first = FirstCommand.of_run(args.out) if args.resume else None
    if first is not None:
        out = args.out
        args = first.parsed(parser, out)
        for name, value in typed(words).items():
            setattr(args, name, value)
        args.out = out
    elif args.resume and not (args.demo or args.data_root or args.dataset) and (args.out / "config.json").is_file():
        raise ValueError(f"--resume: {args.out / 'config.json'} does not say how the run was begun, as of an earlier "
                         "version. Repeat the options of its first command.")
    args.first_command = first or FirstCommand.typed_here(words, args.out)
    return args
