"""What the commands print: one line for each error, on any terminal, whoever reads it.

Ids like O11 and O13 are those of docs/faults.md.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest
from tqdm import tqdm

from uniseg import __main__ as uniseg_main
from uniseg import checkpoint, embeddings, evaluate, infer, segmenter, train
from uniseg.datasets import check, layouts
from uniseg.machine.console import error_line, fail, note, printable, say, short_reason, warn
from uniseg.paper import complexity

# Each command, answering something that costs little: (main, arguments).
ANSWERS = {
    "uniseg": (uniseg_main.main, []),
    "uniseg --version": (uniseg_main.main, ["--version"]),
    "infer --list-classes": (infer.main, ["--list-classes"]),
    "checkpoint": (checkpoint.main, [str(segmenter.DEFAULT_WEIGHTS)]),
    "embeddings": (embeddings.main, []),
    "embeddings liver": (embeddings.main, ["liver"]),
    "layouts": (layouts.main, []),
    "layouts --markdown": (layouts.main, ["--markdown"]),
    "complexity": (complexity.main, ["--backbone", "unet", "--width", "4", "--patch", "16", "16", "16"]),
    **{f"{name} --help": (main, ["--help"]) for name, main in (
        ("infer", infer.main), ("train", train.main), ("evaluate", evaluate.main), ("data", check.main),
        ("layouts", layouts.main), ("checkpoint", checkpoint.main), ("embeddings", embeddings.main),
        ("complexity", complexity.main))},
}


def exit_code(main, arguments):
    try:
        return main(arguments) or 0
    except SystemExit as end:
        return end.code or 0


@contextlib.contextmanager
def closed_pipe():
    """A text stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        yield stream


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS)
def test_o11_every_command_goes_on_when_its_reader_leaves(answer, monkeypatch, capsys):
    """As in `python -m uniseg layouts | head -1`."""
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert exit_code(*ANSWERS[answer]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS)
def test_o13_every_command_answers_on_an_ascii_terminal(answer, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert exit_code(*ANSWERS[answer]) == 0
    assert len(printed.getvalue().decode("ascii")) > 10


def test_o11_a_process_ends_without_a_word_when_its_reader_has_left():
    command = [sys.executable, "-m", "uniseg", "layouts"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 0


def test_errors_and_warnings_survive_a_closed_stderr(monkeypatch):
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        warn("something")
        error_line("something")
        assert fail(ValueError("something"), 2, verbose=True) == 2


def test_notes_warnings_and_errors_are_one_line_each_on_stderr(capsys):
    note("4 of 10 results are complete")
    warn("ct.nii.gz:\n  no body found")
    error_line(ValueError("a\x1b[2Jb.nii.gz: empty file.\nCopy it again."))
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "uniseg: 4 of 10 results are complete", "uniseg: warning: ct.nii.gz: no body found",
        r"uniseg: error: a\x1b[2Jb.nii.gz: empty file. Copy it again."]


@pytest.mark.parametrize("error, path, line", [
    (ValueError("ct.nii: empty file"), "ct.nii", "ct.nii: empty file"),
    (ValueError("empty file"), "ct.nii", "ct.nii: empty file"),
    (ValueError(), None, "ValueError"),
    (MemoryError(), "ct.nii", "ct.nii: out of memory. Name fewer --classes, or use a machine with more memory."),
    (RuntimeError("CUDA out of memory. Tried to"), None,
     "the GPU is out of memory. Name fewer --classes, or give --precision bf16 or --device cpu."),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None,
     "the GPU is out of memory. Name fewer --classes, or give --precision bf16 or --device cpu."),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), None,
     "out of memory. Name fewer --classes, or use a machine with more memory."),
    (RuntimeError("std::bad_alloc"), None,
     "out of memory. Name fewer --classes, or use a machine with more memory.")])
def test_an_exception_becomes_one_line_that_names_its_file(error, path, line, capsys):
    assert fail(error, 1, path=path) == 1
    assert capsys.readouterr().err == f"uniseg: error: {line}\n"


def test_whatever_is_printed_cannot_steer_the_terminal(capsys):
    """One function prints for every command, so one place escapes."""
    say("a\x1b[2J\x07\rb\nc\td")
    assert capsys.readouterr().out == "a\\x1b[2J\\x07\\rb\nc\\td\n"


def test_a_library_s_colours_and_later_sentences_are_left_out(capsys):
    fail(RuntimeError("\x1b[31mtensor\x1b[0m of wrong size"), 1)
    assert capsys.readouterr().err == "uniseg: error: tensor of wrong size\n"
    assert short_reason(RuntimeError("\x1b[1mNo kernel. " + "word " * 500)) == "No kernel"
    assert short_reason(RuntimeError("word " * 500)).endswith("word ...") and short_reason(OSError()) == "OSError"


def run_until(stop, *arguments):
    """A command in a process of its own that `stop` interrupts: (exit code, lines on stderr).

    A shell has processes in its background ignore Ctrl-C, and they pass that on; this one does not.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    stop(process)
    return process.wait(timeout=60), process.stderr.read().splitlines()


def test_ctrl_c_while_a_command_imports_its_libraries_is_one_line(tmp_path):
    """A numpy that waits for the signal, so that it comes at the right moment."""
    (tmp_path / "numpy.py").write_text("import time, sys\nprint('ready', flush=True)\ntime.sleep(60)\n")
    code = (f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['-m']; "
            "sys.orig_argv = ['python', '-m', 'uniseg.embeddings']; import uniseg.embeddings")
    exit_code, lines = run_until(lambda p: (p.stdout.readline(), p.send_signal(signal.SIGINT)), "-c", code)
    assert exit_code in (-signal.SIGINT, 130) and lines == ["uniseg: interrupted"]


def test_a_program_that_imports_the_package_keeps_its_own_traceback():
    code, lines = run_until(lambda p: None, "-c", "import sys, uniseg; print(sys.excepthook is sys.__excepthook__)\n"
                            "raise KeyboardInterrupt")
    assert "Traceback" in lines[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_standard_output_on_a_full_disk_is_one_line_and_exit_1():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "uniseg", "layouts"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == (
        "uniseg: error: standard output: cannot be written: No space left on device. Send it elsewhere.\n")


def test_the_traceback_is_printed_only_when_asked_for(capsys):
    fail(ValueError("wrong"), 1, verbose=True)
    assert "ValueError: wrong\nuniseg: error: wrong" in capsys.readouterr().err


@pytest.mark.parametrize("text, shown", [
    ("plain", "plain"), ("Łódź 肝臓", "Łódź 肝臓"), ("a\nb\x1b[2J", r"a\nb\x1b[2J"), ("\udcff", r"\udcff")])
def test_a_file_name_cannot_steer_the_terminal(text, shown):
    assert printable(text) == shown


def test_a_line_stands_above_a_progress_bar_not_within_it(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=2, file=terminal, miniters=1, mininterval=0) as bar:
        bar.update()
        say("epoch 1", sys.stderr)
    assert "\nepoch 1\n" in terminal.getvalue().replace("\r", "\n")
