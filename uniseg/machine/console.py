"""The only place where the commands print. Results go to stdout; notes, warnings and errors go to stderr, a line each.

Printing never stops the work: a terminal that knows only ASCII gets escapes, a reader that closed its end of the pipe
(`| head -1`) is ignored, and a progress bar is moved out of the way. Errors have the form
`uniseg: error: <path>: <what>. <what to do>.`
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_quiet = False                     # `quietly` alone sets it


class OutputError(OSError):
    """Standard output cannot be written, on a full disk for example."""


@contextlib.contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """While the block runs, print warnings and errors only: the --quiet of the commands. False: as outside of it."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether nothing but warnings and errors is printed."""
    return _quiet


def say(text: str, stream: TextIO | None = None) -> None:
    """Print text on stdout, or on `stream`, with control characters but line breaks escaped; nothing within `quietly`.

    Neither a closed pipe nor a terminal without Unicode raises an error. Raises OutputError where stdout is a file that
    cannot be written.
    """
    if not _quiet:
        _print(text, stream or sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    text = "\n".join(map(printable, text.split("\n")))
    try:
        with _bars_moved_away(stream):
            try:
                print(text, file=stream, flush=True)
            except UnicodeEncodeError:
                print(text.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except BrokenPipeError:
        _send_to_null_device(stream)
    except OSError as error:
        _send_to_null_device(stream)
        if stream is sys.stdout:
            raise OutputError(f"standard output: cannot be written: {error.strerror}. Send it elsewhere.") from None


def note(text: str) -> None:
    """Print `uniseg: <text>` on stderr, as one line; nothing within `quietly`."""
    say(f"uniseg: {on_one_line(text)}", sys.stderr)


def warn(text: str) -> None:
    """Print `uniseg: warning: <text>` on stderr, as one line."""
    _print(f"uniseg: warning: {on_one_line(text)}", sys.stderr)


def error_line(text: object) -> None:
    """Print `uniseg: error: <text>` on stderr, as one line; `text` may be the exception."""
    _print(f"uniseg: error: {on_one_line(str(text))}", sys.stderr)


def fail(error: BaseException, code: int, verbose: bool = False, path: Path | None = None) -> int:
    """Print an exception as one error line and return `code`, the exit code.

    verbose: print the traceback first
    path:    the file that was worked on; it is put in front where the message does not name it
    """
    if verbose:
        with contextlib.suppress(BrokenPipeError):
            traceback.print_exception(error)
    error_line(one_error_line(error, path))
    return code


def one_error_line(error: BaseException, path: Path | None = None) -> str:
    """An exception as one line for the user. path: as in `fail`"""
    text = on_one_line(without_colours(str(error))) or type(error).__name__
    if is_out_of_memory(error):
        text = ("the GPU is out of memory. Name fewer --classes, or give --precision bf16 or --device cpu."
                if re.search("CUDA|HIP|MPS", text) else
                "out of memory. Name fewer --classes, or use a machine with more memory.")
    if path is not None and printable(str(path)) not in text:
        text = f"{printable(str(path))}: {text}"
    return text


# What torch, CUDA and the C++ library say in a plain RuntimeError where a GPU or the machine has too little memory.
OUT_OF_MEMORY = r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the machine or of a GPU is exhausted."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError)
                                              and bool(re.search(OUT_OF_MEMORY, str(error), re.IGNORECASE)))


def on_one_line(text: str) -> str:
    """The text without line breaks and without control characters."""
    return printable(re.sub(r"\s*\n\s*", " ", text.strip()))


def printable(text: str) -> str:
    r"""The text with control characters escaped, so that the name of a file cannot steer a terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short_reason(error: BaseException, most: int = 120) -> str:
    """The first sentence of an error of a library, without colours, cut at a word.

    >>> short_reason(RuntimeError("\x1b[31mCould not run 'aten::empty'. This could be because\nDump: ..."))
    "Could not run 'aten::empty'"
    """
    first = next(iter(without_colours(str(error)).strip().splitlines()), "") or type(error).__name__
    sentence = re.split(r"[.:;] ", first, maxsplit=1)[0].rstrip(".")
    return sentence if len(sentence) <= most else sentence[:most].rpartition(" ")[0] + " ..."


def without_colours(text: str) -> str:
    """The text without the escape codes by which libraries colour their messages."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def end_quietly() -> None:
    """From now on end this process with one line where Ctrl-C or a full disk ends a command, with no traceback.

    Ctrl-C may come while a command still imports its libraries; the exit code is that of the signal, 130 in a shell.
    """
    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            note("interrupted")
        elif issubclass(kind, OutputError):
            error_line(error)
        else:
            sys.__excepthook__(kind, error, trace)
    sys.excepthook = hook


def _bars_moved_away(stream: TextIO) -> contextlib.AbstractContextManager[Any]:
    """Clear progress bars while the block prints, and draw them again below it. Without tqdm there are no bars."""
    tqdm = sys.modules.get("tqdm")
    return tqdm.tqdm.external_write_mode(stream) if tqdm else contextlib.nullcontext()


def _send_to_null_device(stream: TextIO) -> None:
    """Let all that is still written to a stream vanish, the text in its buffer included: nobody reads it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


# -------------------------------------------------------------------------------------------- failures of a training

def explain(error: BaseException) -> tuple[str | None, int]:
    """(one line for the user, exit code) for an exception of a training.

    The exit code is 2 for bad input and 1 for a failure during the work. The line is None for an exception that only a
    fault of this program can raise; its traceback then says more.
    """
    text = without_colours(str(error)).strip()
    no_file_name = isinstance(error, FileNotFoundError) and error.filename is None
    if text.startswith("Caught ") and "Original Traceback" in text:    # from a worker process of the DataLoader
        text = text.splitlines()[-1].partition(": ")[2]
    elif isinstance(error, (ConnectionError, EOFError)) or no_file_name:
        error = RuntimeError(text := "DataLoader worker")              # the batch lived in a worker that has died
    line = " ".join(text.split())
    if isinstance(error, ValueError):                  # DataError, VolumeError, CheckpointError, EmbeddingError
        return line, 2
    if isinstance(error, (FloatingPointError, OSError)):
        return line, 1
    if isinstance(error, MemoryError):
        line = "out of memory"
    if isinstance(error, (RuntimeError, MemoryError)):
        known = (words for pattern, words in KNOWN_FAILURES.items() if re.search(pattern, line, re.IGNORECASE))
        return next(known, None), 1
    return None, 1


# {pattern in the message of torch, gloo or NCCL: what it means and what to do}. The first pattern that fits is taken.
# torch.distributed raises plain RuntimeErrors, so that only their text tells them apart.
KNOWN_FAILURES = {
    r"DataLoader worker.*(bus error|shared memory)":
        "shared memory (/dev/shm) is too small for the patches drawn. Give --workers 0, or more of it "
        "(docker: --shm-size).",
    r"DataLoader worker": "a process that draws patches was killed, mostly for lack of memory. Reduce --workers.",
    OUT_OF_MEMORY: "out of memory. Give a smaller --batch-size (and --accumulate) or --patch-size, --amp bf16, or "
                   "--backbone segresnet.",
    r"EADDRINUSE|address already in use":
        "the port for the processes to meet is taken. Let torchrun --standalone find one, or choose another "
        "--master-port.",
    r"timed? ?out|timeout":
        "another process did not answer within --timeout. Look for one that was killed or stalls, or give more minutes "
        "where a preprocessing or validation takes long; then go on with --resume.",
    r"closed by peer|connection (was )?(reset|closed|refused|aborted)|socket closed|broken pipe|remote process"
    r"|NCCL|gloo":
        "another process of this run ended. Its own message says why; then go on with --resume.",
}
