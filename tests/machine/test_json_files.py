"""json_files.py: every JSON file that is read is read by one function, and what is doubtful is refused in one line."""

import json
import os
import re
from pathlib import Path

import pytest

from uniseg.machine.files import FileError
from uniseg.machine.json_files import LARGEST_BYTES, read_json

PACKAGE = Path(__file__).resolve().parents[2] / "uniseg"

BAD = {                                                  # D01
    "empty": (b"", "empty file. Copy it again"),
    "blank": (b" \n", "empty file"),
    "comma": (b'{"a": 1,}', "not JSON (line 1, column 9: "),
    "line": (b'{"a":\n 1\n "b": 2}', "not JSON (line 3, column 2: "),
    "twice": (b'{"labels": {"1": "liver", "2": "spleen", "1": "stomach"}}', "the key '1' stands twice in one object"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "text in UTF-16 or UTF-32, and JSON is UTF-8. Save it as UTF-8."),
    "utf-16-le": ('{"a": 1}'.encode("utf-16-le"), "text in UTF-16 or UTF-32"),
    "utf-32": ('{"a": 1}'.encode("utf-32-be"), "text in UTF-16 or UTF-32"),
    "latin-1": ('{"a":\n "é"}'.encode("latin-1"), "not UTF-8 (byte 0xe9 in line 2; Latin-1?). Save it as UTF-8."),
    "deep": (b"[" * 100_000, "lists or objects within each other too many times"),
    "nan": (b'{"a": NaN}', "NaN is not a number of JSON"),
    "infinite": (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
    "1e999": (b'{"a": 1e999}', "1e999 is not a number of JSON"),
    "digits": (b"1" * 5000, "not JSON (Exceeds the limit"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "html": (b"<!DOCTYPE html>", "not JSON (line 1, column 1"),
}


def refusal(path, error=FileError):
    with pytest.raises(error) as caught:
        read_json(path, error)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("fault", BAD)
def test_d01_a_bad_json_file_is_refused_with_its_path_and_what_to_do(tmp_path, fault):
    content, words = BAD[fault]
    (tmp_path / "x.json").write_bytes(content)
    assert words in refusal(tmp_path / "x.json")


def test_d01_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none")
    assert "cannot be read" in refusal(tmp_path / "loop")


def test_d01_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    assert f"more than the {LARGEST_BYTES:,} of a JSON file" in refusal(tmp_path / "x.json")


def test_d01_the_caller_names_the_exception(tmp_path):
    class OwnError(ValueError):
        pass
    refusal(tmp_path / "none", OwnError)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_d01_utf_8_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    content = {"Łódź": [1, -2.5, None, True, {"a": {"a": 1}}]}        # one key in two objects is no fault
    (tmp_path / "x.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert read_json(tmp_path / "x.json") == content


def test_d01_no_other_function_of_the_package_reads_a_json_file():
    """Left are lines of metrics.jsonl, a result that infer wrote itself, and data of the package."""
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")
             if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8"))}
    assert found <= {"machine/json_files.py", "training/report.py", "training/run_folder.py", "evaluation/segment.py",
                     "inference/finished.py", "infer.py"}
