"""`--resume --out RUN` alone: the other options are those of the command that began the run."""

import json
from pathlib import Path

import pytest

from runs import TINY, assert_same_run, metrics
from uniseg import checkpoint, train
from uniseg.training.first_command import FirstCommand, typed
from uniseg.training.options import build_parser

SHORT = ("--epochs", 4, "--val-every", 2)


def folder_of(tmp_path, words, typed_in):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"command": words, "typed_in": typed_in}))
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------- which words count

def test_only_what_is_typed_counts_as_typed():
    assert typed(["--lr", "2e-3", "--resume", "--dataset", "LiTS=/data/lits"]) == {
        "lr": 0.002, "resume": True, "dataset": [("LiTS", Path("/data/lits"))]}
    assert typed([]) == {}


def test_the_first_command_counts_and_what_is_typed_counts_more(tmp_path, monkeypatch):
    run = folder_of(tmp_path, ["--data-root", "/data", "--lr", "2e-3", "--dataset", "LiTS=/lits", "--antialias"], "..")
    monkeypatch.chdir(tmp_path)
    args = train.parse(["--resume", "--out", "run", "--workers", "0", "--dataset", "LiTS=/lits"])
    assert (args.data_root, args.lr, args.workers, args.antialias) == (Path("/data"), 0.002, 0, True)
    assert args.dataset == [("LiTS", Path("/lits"))] and args.resume and args.out == Path("run")
    assert args.first_command == FirstCommand.of_run(run)       # which is what checkpoints state


@pytest.mark.parametrize("here", ["", "work", "elsewhere/deep"])
def test_relative_paths_lead_to_the_same_files_from_any_folder(tmp_path, monkeypatch, here):
    """`--data-root data --map names/map.json` was typed in work; its run folder is work/runs/a."""
    for name in ("work/runs/a", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    work, words = tmp_path / "work", ["--data-root", "data", "--dataset", "LiTS=../lits", "--map", "m.json"]
    monkeypatch.chdir(tmp_path / "work")
    first = FirstCommand.typed_here(words, Path("runs/a"))
    assert first.folder == "../.."
    monkeypatch.chdir(tmp_path / here)
    args = first.parsed(build_parser(), work / "runs" / "a")
    assert args.data_root.absolute() == work / "data" and args.map.absolute() == work / "m.json"
    [(name, lits)] = args.dataset
    assert name == "LiTS" and Path(str(lits.absolute()).replace("work/../", "")) == tmp_path / "lits"
    assert args.embeddings is None and args.include is None


@pytest.mark.parametrize("content, words", [
    ({"command": "--lr 1", "typed_in": "."}, "its command is not a list of words. Start a new run"),
    ({"command": ["--lr", 1], "typed_in": "."}, "its command is not a list of words."),
    ({"command": ["--lr", "1"]}, "its command is not a list of words."),
    ({}, "does not say how the run was begun, as of an earlier version. Repeat the options of its first command.")])
def test_a_config_that_does_not_say_it_is_one_line(tmp_path, capsys, content, words):
    run = folder_of(tmp_path, [], ".")
    (run / "config.json").write_text(json.dumps(content))
    assert train.main(["--resume", "--out", str(run)]) == 2
    err = capsys.readouterr().err
    assert words in err and str(run / "config.json") in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------------- whole runs

def test_a_run_keeps_its_command_as_it_was_typed(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["command"][:1] == ["--data-root"] and config["command"][-len(TINY):] == TINY
    assert (finished / config["typed_in"]).resolve() == Path.cwd()


def test_an_option_that_contradicts_the_run_is_one_line_that_says_so(finished, capsys):
    assert train.main(["--resume", "--out", str(finished), "--lr", "2e-3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (f"uniseg: error: --resume: the run in {finished} was started otherwise (lr: 0.001 -> 0.002). Leave "
                    f"these options out or start a new run; --init {finished / 'last.pt'} takes its weights along.")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_its_options_and_from_another_folder(flags, tmp_path, monkeypatch):
    """It ends like one that nothing interrupted, and its checkpoints still state the first command."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train.main(flags(whole, *SHORT)) == 0
    with monkeypatch.context() as patch:
        end_epoch = train.end_epoch
        patch.setattr(train, "end_epoch", lambda *a: end_epoch(*a) and (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main(flags(out, *SHORT)) == 130
    assert len(metrics(out)) == 1
    monkeypatch.chdir(tmp_path)
    assert train.main(["--resume", "--out", "run"]) == 0
    assert_same_run(out, whole)
    commands = [checkpoint.read(run / "last.pt")["about"]["command"].replace(str(run), "RUN") for run in (out, whole)]
    assert commands[0] == commands[1] and commands[0].startswith("python -m uniseg.train --data-root ")
