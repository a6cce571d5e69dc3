"""The readers of CTs and of weights meet small files that are damaged at random (fuzzing.py); F67 and W23."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZING = Path(__file__).with_name("fuzzing.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="times are taken with POSIX's timers")
@pytest.mark.parametrize("what", ["nifti", "weights"], ids=["f67_nifti", "w23_weights"])
def test_whatever_is_damaged_is_read_or_refused_in_one_line_within_5_seconds_and_1_gb(what, request):
    """Half of --fuzz-seconds each. The output names the file that is neither read nor refused, and keeps it."""
    seconds, seed = request.config.getoption("--fuzz-seconds") / 2, request.config.getoption("--fuzz-seed")
    done = subprocess.run([sys.executable, FUZZING, what, str(seconds), str(seed)], capture_output=True, text=True,
                          timeout=seconds + 120)
    assert done.returncode == 0, done.stdout + done.stderr
    _, read, refused = (int(word) for word in done.stdout.split() if word.isdigit())
    assert read and refused, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("reader, said", [("1 / 0", "ZeroDivisionError"), ("len(bytearray(9 << 27))", " MB")])
def test_the_fuzz_fails_where_a_reader_does(reader, said):
    code = f"""import sys; sys.path.insert(0, {str(FUZZING.parent)!r}); import fuzzing
make, damage, _, refusal = fuzzing.READERS["nifti"]
fuzzing.READERS["nifti"] = make, damage, lambda path, draw: {reader}, refusal
sys.exit(fuzzing.main("nifti", 20))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "file 0 of seed 0, kept as " in done.stdout and said in done.stdout
