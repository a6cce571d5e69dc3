"""The house in numbers and as a drawing: its rooms, which room imports which, and what is longer than the rules allow.

    python tools/house.py              the drawing and the counts, as in docs/design.md
    python tools/house.py --json       the counts alone
    python tools/house.py --write      puts both into docs/design.md

Imports are read from the sources, those inside functions included. A room is a folder of the package, or a file at its
top.
"""

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "uniseg"

# The rooms from the bottom to the top. A room may import rooms of earlier lines and files of its own folder, and no
# imports may form a circle.
FLOORS = (
    ("machine", "taxonomy"),
    ("imaging", "kernels"),
    ("backbones", "embeddings", "losses", "metrics", "sliding_window", "postprocess", "phantom", "pictures",
     "formats"),
    ("viewer", "heads"),
    ("model", "baselines", "datasets", "inference"),
    ("data", "weights", "paper", "evaluation"),
    ("checkpoint",),
    ("segmenter", "continual"),
    ("training",),
    ("infer", "train", "evaluate"),
    ("__init__", "__main__"),
)
LONGEST_LINE, LONGEST_FILE, LONGEST_FUNCTION, MOST_AT_TOP = 120, 400, 50, 20


class Arrow(NamedTuple):
    """One file imports another; both are module names without `uniseg.`."""

    source: str
    target: str


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """`imaging.volume` for uniseg/imaging/volume.py, `imaging` for its __init__.py, `__init__` for the top one."""
    parts = list(path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def sources(package: Path = PACKAGE) -> dict[str, Path]:
    """{module name: path} of every Python file of the package."""
    return {module_name(path, package): path for path in sorted(package.rglob("*.py"))}


def arrows(package: Path = PACKAGE) -> set[Arrow]:
    """Every import of one file of the package by another, those inside functions included."""
    files, found = sources(package), set()
    for name, path in files.items():
        folder = path.parent.relative_to(package).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = [*folder[:len(folder) - node.level + 1], *(node.module.split(".") if node.module else [])]
            elif (node.module or "").split(".")[0] == package.name:
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                target = ".".join([*base, alias.name])
                target = target if target in files else ".".join(base) or "__init__"
                if target != name:
                    found.add(Arrow(name, target))
    return found


def room(module: str) -> str:
    """The folder of a module, or the module itself where it lies at the top."""
    return module.split(".")[0]


def upward(found: set[Arrow]) -> list[Arrow]:
    """The arrows that point to a room on the same floor or above."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return sorted(a for a in found if room(a.source) != room(a.target)
                  and floor[room(a.target)] >= floor[room(a.source)])


def circles(found: set[Arrow]) -> list[list[str]]:
    """The groups of files that import each other in a circle (Tarjan's strongly connected components)."""
    targets: dict[str, set[str]] = {}
    for source, target in found:
        targets.setdefault(source, set()).add(target)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in targets.get(name, ()):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            group = stack[stack.index(name):]
            del stack[stack.index(name):]
            groups.append(sorted(group))

    for name in sorted(targets):
        if name not in order:
            visit(name)
    return [group for group in groups if len(group) > 1]


def code_lines(function: ast.FunctionDef, text: list[str]) -> int:
    """Lines of a function without its docstring, comments and blank lines."""
    first = function.body[0]
    doc = set()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        doc = set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    return sum(n not in doc and bool(text[n - 1].strip()) and not text[n - 1].lstrip().startswith("#") for n in lines)


def counts(package: Path = PACKAGE) -> dict[str, object]:
    """The numbers of the rules, and who is over them."""
    files, found = sources(package), arrows(package)
    texts = {name: path.read_text(encoding="utf-8").splitlines() for name, path in files.items()}
    functions = {f"{name}.{node.name}": code_lines(node, texts[name]) for name, path in files.items()
                 for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}
    longest_file, longest_function = max(texts, key=lambda n: len(texts[n])), max(functions, key=lambda n: functions[n])
    return {
        "lines": sum(map(len, texts.values())), "files": len(files),
        "files at the top": sum(path.is_file() for path in package.iterdir()),
        "longest file": [longest_file, len(texts[longest_file])],
        "files over 400 lines": sorted(n for n, lines in texts.items() if len(lines) > LONGEST_FILE),
        "longest function": [longest_function, functions[longest_function]],
        "functions over 50 lines": sorted(n for n, size in functions.items() if size > LONGEST_FUNCTION),
        "lines over 120": sum(len(line) > LONGEST_LINE for lines in texts.values() for line in lines),
        "arrows": len(found), "circles": circles(found),
        "upward arrows": [f"{a.source} -> {a.target}" for a in upward(found)] if package == PACKAGE else "no floors",
    }


def drawing(package: Path = PACKAGE) -> str:
    """The floors from the top to the bottom, each room with the rooms that it imports."""
    into: dict[str, set[str]] = {}
    for source, target in arrows(package):
        if room(source) != room(target):
            into.setdefault(room(source), set()).add(room(target))
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    lines = []
    for number, names in reversed(list(enumerate(FLOORS))):
        for name in names:
            below = sorted(into.get(name, ()), key=lambda n: (-floor[n], n))
            lines.append(f"{number}  {name + ('/' if (package / name).is_dir() else ''):16}{' '.join(below)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def page_block() -> str:
    """The drawing and the counts as text."""
    rows = [f"{name:26}{' '.join(map(str, value)) if isinstance(value, list) else value}".rstrip()
            for name, value in counts().items()]
    return "\n".join([drawing(), *rows])


def write_page(page: Path = ROOT / "docs" / "design.md") -> None:
    """Replace what stands between the marks `<!-- house -->` and `<!-- /house -->` of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- house -->")
    after = rest.partition("<!-- /house -->")[2]
    page.write_text(f"{before}<!-- house -->\n```\n{page_block()}\n```\n<!-- /house -->{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Print the drawing and the counts; returns the exit code 0. tests/test_house.py checks the rules."""
    parser = argparse.ArgumentParser(prog="python tools/house.py",
                                     description="Draw the rooms of the package and count.")
    parser.add_argument("--json", action="store_true", help="print the counts alone, as JSON")
    parser.add_argument("--write", action="store_true", help="put the drawing and the counts into docs/design.md")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="another package's folder, for its counts alone")
    args = parser.parse_args(argv)
    if args.json or args.package != PACKAGE:
        print(json.dumps(counts(args.package), indent=1))
    elif args.write:
        write_page()
    else:
        print(page_block())
    return 0


if __name__ == "__main__":
    sys.exit(main())
