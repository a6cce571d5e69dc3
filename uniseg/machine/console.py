"""What the commands print: one line for each error, on any terminal."""

import os
import re
import sys
import traceback


def fail(error, code, verbose, path=None):
    """One line on stderr: what, which file, what to do."""
    if verbose:
        traceback.print_exception(error)
    text = printable(re.sub(r"\s*\n\s*", " ", str(error).strip())) or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search("(out of|allocate) memory", text)):
        text = "out of memory. Name fewer --classes, or use a machine with more memory."
    if path is not None and printable(str(path)) not in text:
        text = f"{printable(str(path))}: {text}"
    say(f"uniseg: error: {text}", sys.stderr)
    return code


def printable(text):
    """The text on one line; control characters of a file name cannot steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text, stream=None):
    """Print a line on stdout, or on `stream`. Neither a reader that left (`| head`) nor one without Unicode stops the work."""
    stream = stream or sys.stdout
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def explain(error):
    """(one line for the user, exit code) of an exception; (None, 1) for a fault of this program, whose traceback says more.

    Exit codes: 2 bad input, 1 failure at work.
    """
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:          # from a process that draws patches
        text = text.splitlines()[-1].partition(": ")[2]
    elif isinstance(error, (ConnectionError, EOFError)) or isinstance(error, FileNotFoundError) and error.filename is None:
        error = RuntimeError(text := "DataLoader worker")        # the batch lies with the one that drew it, which is gone
    line = " ".join(text.split())
    if isinstance(error, ValueError):                  # DataError, VolumeError, CheckpointError, EmbeddingError
        return line, 2
    if isinstance(error, (FloatingPointError, OSError)):
        return line, 1
    if isinstance(error, MemoryError):
        line = "out of memory"
    if isinstance(error, (RuntimeError, MemoryError)):
        return next((said for pattern, said in KNOWN_FAILURES.items() if re.search(pattern, line, re.IGNORECASE)), None), 1
    return None, 1


# What torch, gloo and NCCL say, and what it means; the first that fits. torch.distributed raises plain RuntimeErrors for most.
KNOWN_FAILURES = {
    r"DataLoader worker.*(bus error|shared memory)":
        "shared memory (/dev/shm) is too small for the patches drawn. Give --workers 0, or more of it (docker: --shm-size).",
    r"DataLoader worker": "a process that draws patches was killed, mostly for lack of memory. Reduce --workers.",
    r"out of memory|allocate memory": "out of memory. Give a smaller --batch-size (and --accumulate) or --patch-size.",
    r"EADDRINUSE|address already in use":
        "the port for the processes to meet is taken. Let torchrun --standalone find one, or choose another --master-port.",
    r"timed? ?out|timeout":
        "another process did not answer within --timeout. Look for one that was killed or stalls, or give more minutes where a "
        "preprocessing or validation takes long; then go on with --resume.",
    r"closed by peer|connection (was )?(reset|closed|refused|aborted)|socket closed|broken pipe|remote process|NCCL|gloo":
        "another process of this run ended. Its own message says why; then go on with --resume.",
}
