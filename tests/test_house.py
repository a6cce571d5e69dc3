"""The structure of the package: which file imports which, and how long files and functions may be (docs/design.md)."""

import pytest

from tools import house


@pytest.fixture(scope="module")
def arrows():
    return house.arrows()


@pytest.fixture(scope="module")
def counts():
    return house.counts()


def write_package(folder, **files):
    """A package for the drawing to read; {name: source}, where `a__b` is the file a/b.py."""
    for name, text in files.items():
        path = folder / "p" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "p"


def test_every_import_is_seen_wherever_it_stands(tmp_path):
    package = write_package(tmp_path, a="from . import b\nfrom .wing import c\n\ndef f():\n    from .wing.d import x\n",
                            b="from p.a import f\n", wing__c="from .d import x\nfrom .. import b\nimport os\n",
                            wing__d="x = 1\n")
    assert house.arrows(package) == {("a", "b"), ("a", "wing.c"), ("a", "wing.d"), ("b", "a"), ("wing.c", "wing.d"),
                                     ("wing.c", "b")}
    assert house.circles(house.arrows(package)) == [["a", "b", "wing.c"]]


def test_lines_of_code_leave_out_docstrings_comments_and_blank_lines(tmp_path):
    package = write_package(tmp_path, a='def f():\n    """One\n    two."""\n    # three\n\n    x = 1\n    return x\n')
    assert house.counts(package)["longest function"] == ["a.f", 3]


@pytest.mark.slow
def test_the_drawing_sees_the_package(arrows):
    assert ("heads", "kernels.class_heads") in arrows and ("segmenter", "checkpoint") in arrows
    assert ("infer", "segmenter") in arrows                                  # inside a function


def test_imports_never_go_in_a_circle(arrows):
    assert house.circles(arrows) == []


def test_imports_only_point_to_lower_floors(arrows):
    assert house.upward(arrows) == []


def test_every_room_stands_on_a_floor(arrows):
    floors = [name for names in house.FLOORS for name in names]
    assert sorted(floors) == sorted(set(floors)) == sorted({house.room(name) for name in house.sources()})


def test_nothing_but_main_imports_a_command(arrows):
    assert {a.source for a in arrows if a.target in ("train", "infer", "evaluate")} <= {"__main__"}


def test_the_top_of_the_package_can_be_taken_in_at_a_glance(counts):
    assert counts["files at the top"] <= house.MOST_AT_TOP


def test_no_file_is_too_long_to_hold_in_mind(counts):
    assert counts["files over 400 lines"] == []


def test_no_function_is_longer_than_a_screen(counts):
    assert counts["functions over 50 lines"] == []


def test_no_line_of_code_is_longer_than_120_characters(counts):
    assert counts["lines over 120"] == 0
