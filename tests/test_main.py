"""`python -m uniseg COMMAND`: every command by one name."""

import importlib

import pytest

from uniseg import NOT_A_MEDICAL_DEVICE, __version__, infer
from uniseg.__main__ import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_command_the_commands_are_listed(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert NOT_A_MEDICAL_DEVICE in lines[-1]


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"uniseg {__version__}\n"


def test_an_unknown_command_is_one_line_and_exit_code_2(capsys):
    assert main(["segment"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("uniseg: error: ") and "'segment'" in err and "infer" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function(name):
    module, function, _ = COMMANDS[name]
    assert callable(getattr(importlib.import_module(f"uniseg.{module}"), function))


def test_a_command_gets_the_other_arguments_and_gives_its_exit_code(capsys):
    assert infer.main(["--list-classes"]) == 0
    expected = capsys.readouterr().out
    assert main(["infer", "--list-classes"]) == 0 and capsys.readouterr().out == expected
    assert main(["infer", "nowhere.nii.gz"]) == 2
    assert "nowhere.nii.gz: no such file" in capsys.readouterr().err
