"""Rules for the whole package, checked on its sources: what it imports, what it must never call, what it says."""

import ast
import functools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uniseg import NOT_A_MEDICAL_DEVICE

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "uniseg").rglob("*.py"))
LIBRARIES = {"torch", "numpy", "nibabel", "scipy", "tqdm"}


@functools.cache
def every_node():
    """[(place, node)] of the whole package."""
    return [(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node)
            for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def nodes(*kinds):
    """(place, node) for every node of these kinds in the package."""
    return ((place, node) for place, node in every_node() if isinstance(node, kinds))


def dotted(node):
    """`torch.load` for the expression torch.load, `eval` for eval, `.eval` for build(config).eval."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls():
    for place, node in nodes(ast.Call):
        yield place, dotted(node.func), {k.arg: getattr(k.value, "value", k.value) for k in node.keywords}


def imports():
    """(place, top-level module); those relative to the package are left out."""
    for place, node in nodes(ast.Import, ast.ImportFrom):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [] if node.level else [node.module]
        for name in names:
            yield place, name.split(".")[0]


def test_the_rules_see_the_package():
    files = {p.name for p in SOURCES}
    assert files >= {"__init__.py", "heads.py", "losses.py", "checkpoint.py", "train.py", "infer.py", "unet.py"}
    assert {name for _, name in imports()} >= LIBRARIES
    assert "np.lib.format.read_array" in {name for _, name, _ in calls()}


def test_nothing_but_five_libraries_and_the_standard_library_is_imported():
    allowed = LIBRARIES | {"uniseg"} | sys.stdlib_module_names
    foreign = [(place, name) for place, name in imports() if name not in allowed]
    assert foreign == []


def test_the_install_asks_for_these_five_libraries_and_no_other():
    [required] = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {re.match(r"\w+", entry).group() for entry in ast.literal_eval(required)} == LIBRARIES


def test_no_weights_file_is_given_to_a_loader_that_calls_what_the_file_names():
    """weights/unpickling.py reads them: torch.load runs code in old versions, and believes sizes in all versions."""
    loaders = ("torch.load", "torch.jit.load", "torch.export.load", "np.load")
    found = [(place.split(":")[0], name) for place, name, _ in calls() if name in loaders]
    assert found == [("uniseg/datasets/cases.py", "np.load")]          # arrays of the cache, without allow_pickle


def test_no_file_can_run_code():
    """No pickle but torch's restricted one, no evaluated text, no shell."""
    banned = ("pickle", "shelve", "marshal", "dill", "joblib", "subprocess")
    modules = [(place, name) for place, name in imports() if name in banned]
    assert modules == []
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    assert [(place, name) for place, name, _ in calls() if name in forbidden
            or name.split(".")[-1] in ("extractall", "add_safe_globals")] == []
    assert [(place, name) for place, name, options in calls()
            if options.get("shell", False) is not False or options.get("allow_pickle", False) is not False] == []


def test_nothing_reaches_for_the_network():
    modules = ("socket", "urllib", "http", "ftplib", "requests", "ssl")
    assert [(place, name) for place, name in imports() if name in modules] == []
    assert [place for place, name, _ in calls() if name.startswith("torch.hub.")] == []


@pytest.mark.parametrize("option, answer", [
    ("--help", "python -m uniseg.infer folder -o results"), ("--list-classes", "liver"), ("--version", "uniseg ")])
def test_infer_answers_questions_at_once_without_importing_torch(option, answer):
    code = ("import sys, uniseg.infer\n"
            "try:\n    status = uniseg.infer.main(sys.argv[1:])\n"
            "except SystemExit as end:\n    status = end.code\n"
            "print('heavy:', sorted({'torch', 'scipy', 'nibabel'} & set(sys.modules)))\n"
            "sys.exit(status)")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - start
    assert done.returncode == 0 and answer in done.stdout, done.stderr
    assert "heavy: []" in done.stdout
    assert seconds < 2


def test_importing_the_package_does_not_import_torch():
    code = "import sys, uniseg; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_both_commands_and_the_readme_say_that_this_is_no_medical_device():
    from uniseg import infer, train

    assert NOT_A_MEDICAL_DEVICE == "Research software, not a medical device: not for diagnosis or treatment."
    for parser in (infer.build_parser(), train.build_parser()):
        assert NOT_A_MEDICAL_DEVICE in " ".join(parser.format_help().split())
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert readme.count("not a medical device") == readme.count(NOT_A_MEDICAL_DEVICE) == 1


# Append-only or created whole by other means; everything else goes through atomic_write.
OTHER_WRITERS = {
    "files.atomic_write": "opens the temporary file once more, to make it durable",
    "byte_stream._open_regular": "reads",
    "cases._preprocess": "into a folder of another name, which is renamed when complete",
    "run_folder.log": "one line at the end of metrics.jsonl; half a line is cut off on --resume",
    "locks._take": "O_EXCL, so that one of two creates the file",
    "locks.turn": "a folder, to lock it",
    "console._send_to_null_device": "the null device",
    "files.sync_folder": "a folder, to make a name in it durable",
}


WRITING_METHODS = ("write_text", "write_bytes", "savez", "savez_compressed", "tofile", "savetxt", "to_filename",
                   "copyfile")
WRITING_FUNCTIONS = ("np.save", "torch.save", "json.dump", "os.open", "nibabel.save", "shutil.copy")


def writers():
    """(module.function, line, inside `with atomic_write`) of each call that may write a file."""
    def visit(node, function, atomic):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            opened = [i.context_expr for i in node.items if isinstance(i.context_expr, ast.Call)]
            atomic = atomic or any(dotted(call.func).endswith("atomic_write") for call in opened)
        if isinstance(node, ast.Call):
            name, last = dotted(node.func), dotted(node.func).split(".")[-1]
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
            modes = [a.value for a in given if isinstance(a, ast.Constant)]
            if last in WRITING_METHODS or name in WRITING_FUNCTIONS \
                    or last == "open" and any(isinstance(m, str) and set(m) & set("wax+") for m in modes):
                yield f"{path.stem}.{function}", node.lineno, atomic
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, atomic)
    for path in SOURCES:
        yield from visit(ast.parse(path.read_text(encoding="utf-8")), "", False)


@pytest.mark.slow
def test_r13_every_file_is_written_through_the_one_helper_that_leaves_no_half_of_it():
    found = list(writers())
    assert {place for place, _, atomic in found if atomic} >= {
        "nifti.write_nifti", "checkpoint.write", "result.save_if", "run_folder.write_json", "run_folder.trim_metrics"}
    assert [(place, line) for place, line, atomic in found if not atomic and place not in OTHER_WRITERS] == []


def test_d25_no_duration_is_taken_from_a_clock_that_may_be_set():
    """Summer time, a time server's correction: time.monotonic knows neither."""
    names = {name for _, name, _ in calls()}
    assert "time.monotonic" in names
    assert not names & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
