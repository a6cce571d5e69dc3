"""The public names of the package, and type annotations on every public function, method and class.

Annotations are read from the source, so that no module needs to be imported.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import uniseg
from uniseg.imaging.limits import MAX_VOXELS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "uniseg"
PUBLIC = ("CLASSES", "NOT_A_MEDICAL_DEVICE", "Segmentation", "Segmenter", "__version__", "load")


def test_the_public_names_exist_and_are_all_there_is_to_import():
    assert sorted(uniseg.__all__) == sorted(PUBLIC)
    assert all(getattr(uniseg, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        uniseg.unknown


def test_the_types_of_the_package_are_marked_as_such_for_type_checkers():
    assert (PACKAGE / "py.typed").is_file()


def test_importing_the_package_imports_no_torch_and_no_numpy():
    code = "import sys, uniseg; print(sorted({'torch', 'numpy', 'scipy', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_page_about_the_api_names_every_argument_of_load_and_segment():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for function in (uniseg.load, uniseg.Segmenter.segment, uniseg.Segmentation.mask, uniseg.Segmentation.save):
        for name, parameter in inspect.signature(function).parameters.items():
            assert name == "self" or f"`{name}`" in page, (function.__qualname__, name)
            if parameter.default not in (parameter.empty, None, MAX_VOXELS):
                assert f"`{parameter.default!r}`".replace("'", '"') in page, (function.__qualname__, name)
    assert f"{MAX_VOXELS:,}" in page


# ---------------------------------------------------------------------------------------------------- annotations

def functions(path):
    """(qualified name, node) of the public functions and methods of a file; `__init__` and other operators count."""
    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not child.name.startswith("_") or child.name.startswith("__"):
                    yield f"{prefix}{child.name}", child
    yield from visit(ast.parse(path.read_text(encoding="utf-8")), f"{path.relative_to(PACKAGE).with_suffix('')}: ")


def lacks_annotations(node):
    """Whether an argument or the result has no type. `self`, `cls` and the result of `__init__` need none."""
    given = node.args
    arguments = [a for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if a]
    if node.returns is None and node.name != "__init__":
        return True
    return any(a.annotation is None for a in arguments if a.arg not in ("self", "cls"))


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_public_function_says_the_types_of_its_arguments_and_of_its_result(path):
    assert [name for name, node in functions(path) if lacks_annotations(node)] == []


def test_a_missing_annotation_is_seen_wherever_it_is():
    source = ("class A:\n def f(self, a: int) -> int: ...\n def g(self, a) -> int: ...\n def h(self): ...\n"
              " def k(self, *b) -> int: ...\n def __init__(self): ...\n def __init__(self, a): ...")
    methods = ast.parse(source).body[0].body
    assert [method.name for method in methods if lacks_annotations(method)] == ["g", "h", "k", "__init__"]


# ------------------------------------------------------------------------------------------------------ the example

@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/api.md", "exec"), {})
    classes, ml, voxels = capsys.readouterr().out.splitlines()
    assert classes == "('right_kidney', 'left_kidney', 'liver')"
    assert float(ml) == pytest.approx(1300, rel=0.1) and int(voxels) > 1000
    assert {f.name for f in tmp_path.iterdir()} == {"phantom_seg.nii.gz", "phantom_seg.json"}
