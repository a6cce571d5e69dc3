"""`uniseg COMMAND`: every command by one name, the map of them, and help pages that wait for no library."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uniseg import NOT_A_MEDICAL_DEVICE, __version__, infer
from uniseg.__main__ import MAP, main
from uniseg.backbones import BACKBONES
from uniseg.backbones.build import PAPER_WIDTH
from uniseg.baselines import Softmax
from uniseg.heads import LPGS
from uniseg.machine import choices
from uniseg.machine.commands import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--help-all"]])
def test_without_a_command_the_map_shows_every_command_once_with_an_example(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("  ")]
    assert [row[0] for row in rows] == list(COMMANDS) == [name for names in MAP.values() for name in names]
    assert all(f"uniseg {row[0]}" in " ".join(row[1:]) for row in rows)
    assert lines[-1] == NOT_A_MEDICAL_DEVICE and lines[-2].startswith("Exit codes: 0 done; 1 ")
    assert max(map(len, lines)) <= 110


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"uniseg {__version__}\n"


@pytest.mark.parametrize("name, remedy", [("segment", "Use one of infer, evaluate, "), ("infr", "Did you mean infer?"),
                                          ("ct.nii.gz", "To segment this file: uniseg infer ct.nii.gz")])
def test_what_is_no_command_is_one_line_and_exit_code_2(name, remedy, capsys):
    assert main([name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"uniseg: error: no command {name!r}. {remedy}") and err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function_and_its_parser(name):
    command = COMMANDS[name]
    assert callable(getattr(importlib.import_module(f"uniseg.{command.module}"), command.function))
    module = importlib.import_module(f"uniseg.{command.module}")
    assert module.build_parser is importlib.import_module(f"uniseg.{command.parser}").build_parser


def test_a_command_gets_the_other_arguments_and_gives_its_exit_code(capsys):
    assert infer.main(["--list-classes"]) == 0
    expected = capsys.readouterr().out
    assert main(["infer", "--list-classes"]) == 0 and capsys.readouterr().out == expected
    assert main(["infer", "nowhere.nii.gz"]) == 2
    assert "nowhere.nii.gz: no such file" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- help pages

def fake_libraries(folder):
    """A folder that, first on the path, makes the import of torch, scipy and nibabel fail."""
    for name in ("torch", "scipy", "nibabel"):
        (folder / f"{name}.py").write_text("raise AssertionError('imported')")
    return folder


EVERY_PAGE = """
import contextlib
from uniseg.__main__ import main
from uniseg.machine.commands import COMMANDS
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
"""


@pytest.mark.parametrize("words, pages", [(["-c", EVERY_PAGE], len(COMMANDS)), (["-m", "uniseg.train", "--help"], 1)],
                         ids=["uniseg COMMAND", "python -m uniseg.train"])
def test_a_help_page_imports_no_library_but_numpy_and_says_the_exit_codes(words, pages, tmp_path):
    """So it answers in 0.05 to 0.2 s, where torch alone takes a second or two."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(fake_libraries(tmp_path))})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("usage: python -m uniseg") == done.stdout.count("Exit code") == pages


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_help_page_fits_on_a_screen_and_the_other_has_every_option(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = importlib.import_module(f"uniseg.{COMMANDS[name].parser}").build_parser()
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    first = capsys.readouterr().out
    assert end.value.code == 0 and len(first.splitlines()) <= 50
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert all(flag in parser.format_help() for flag in flags)
    if parser.first:
        assert f"--help-all shows all {len(parser._actions)}" in first
        with pytest.raises(SystemExit):
            main([name, "--help-all"])
        assert capsys.readouterr().out == parser.format_help()
        hidden = [a for a in parser._actions if a.dest not in (*parser.first, "help", "help_all")]
        assert hidden and not [a for a in hidden if re.search(rf"^ +{a.option_strings[-1]}\b", first, re.MULTILINE)]
    else:
        assert first == parser.format_help() and all(flag in first for flag in flags)


def test_a_file_called_help_is_a_file(capsys):
    assert main(["infer", "--", "--help"]) == 2
    assert "--help: no such file" in capsys.readouterr().err


def test_the_names_that_options_offer_are_those_of_the_networks():
    assert choices.BACKBONES == tuple(BACKBONES) == tuple(PAPER_WIDTH) and choices.LPGS == tuple(LPGS)
    assert all(f'"{method}"' in Path(sys.modules[Softmax.__module__].__file__).read_text()
               for method in choices.BASELINES)
