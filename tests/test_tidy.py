"""Style that a machine can hold us to: sizes, names, banned words and calls.

A rule is a function from a file to sentences about it; RULES says which files it looks at. Each
rule has a planted fault below that it must see. A line may plead its case with ``# tidy: why``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["protocol", "client", "worker", "server"]
SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".service", ".html", ".js", ".css", ""}

LINES_MAX = 400
EXCUSE = "Over 400 lines because"
FUNCTION_LINES_MAX = 50
NAMELESS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
MAY_PRINT = {"cli", "demo", "tables", "__main__"}


@dataclass(frozen=True)
class File:
    """A text file of the project; ``path`` is relative to its root."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """Nodes of these kinds, less those whose line pleads its case."""
        for node in ast.walk(self.tree):
            if isinstance(node, kinds) and not re.search("# tidy: .", self.lines[node.lineno - 1]):
                yield node


Found = Iterator[str]


def is_called(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


# --- Rules for what is shipped


def says_what_it_is_for(file: File) -> Found:
    if len(file.lines) > 3 and ast.get_docstring(file.tree) is None:
        yield "has no module docstring: say what it is for"


def fits_a_reader(file: File) -> Found:
    excused = EXCUSE in " ".join((ast.get_docstring(file.tree) or "").split())
    if len(file.lines) > LINES_MAX and not excused:
        yield (
            f"has {len(file.lines)} lines, {LINES_MAX} are allowed: split it along a noun, "
            f'or write "{EXCUSE} ..." into its docstring'
        )


def has_short_functions(file: File) -> Found:
    for node in file.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        first = node.body[0]
        docstring = ast.get_docstring(node) is not None
        size = node.end_lineno - node.lineno + 1
        size -= (first.end_lineno - first.lineno + 1) if docstring else 0
        if size > FUNCTION_LINES_MAX:
            yield (
                f"line {node.lineno}: {node.name} has {size} lines without its docstring, "
                f"{FUNCTION_LINES_MAX} are allowed: give its steps names"
            )


def prints_only_where_people_read(file: File) -> Found:
    if MAY_PRINT & set(file.path.with_suffix("").parts):
        return
    for node in file.nodes(ast.Call):
        if is_called(node, "print"):
            yield f"line {node.lineno}: print: log it, return it or write it to a given stream"


def swallows_nothing(file: File) -> Found:
    for node in file.nodes(ast.ExceptHandler):
        broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
        silent = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
        if node.type is None:
            yield f"line {node.lineno}: a bare except: name what you expect"
        elif broad and silent:
            yield f"line {node.lineno}: swallows every failure: name what you expect"


def is_all_reached(file: File) -> Found:
    for node in file.nodes(ast.stmt):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            steps = block if isinstance(block, list) else []
            for step, behind in pairwise(steps):
                if isinstance(step, ast.Return | ast.Raise | ast.Continue | ast.Break):
                    yield f"line {behind.lineno}: is never reached"


def has_a_name_of_its_own(file: File) -> Found:
    if file.path.stem in NAMELESS:
        yield f"is called {file.path.stem}: if a thing has no home, it has no name yet"


def lies_in_a_package(file: File) -> Found:
    if len(file.path.parts) == 2:
        yield "lies beside its package: an editable install would make it a module of everybody's"


# --- Rules for tests


def never_sleeps(file: File) -> Found:
    for node in file.nodes(ast.Call, ast.ImportFrom):
        imported = isinstance(node, ast.ImportFrom) and node.module == "time"
        if is_called(node, "time.sleep") or (imported and "sleep" in {a.name for a in node.names}):
            yield f"line {node.lineno}: sleeps: wait for a named signal, with a deadline"


# --- Rules for every text


def promises_nothing_for_later(file: File) -> Found:
    for number, line in enumerate(file.lines, 1):
        for word in re.findall(r"\bT[O]DO\b|\bF[I]XME\b", line):
            yield f"line {number}: {word}: do it, or open an issue"


def lives_on_no_machine(file: File) -> Found:
    for number, line in enumerate(file.lines, 1):
        for path in re.findall(r"(?<![\w.}])/(?:h[o]me|r[o]ot|U[s]ers|w[o]rk)/\w*", line):
            yield f"line {number}: {path}: a path of one machine"


# --- The table

Rule = Callable[[File], Found]
RULES: dict[str, list[Rule]] = {
    "product": [
        says_what_it_is_for,
        fits_a_reader,
        has_short_functions,
        prints_only_where_people_read,
        swallows_nothing,
        is_all_reached,
        has_a_name_of_its_own,
        lies_in_a_package,
    ],
    "tests": [never_sleeps, swallows_nothing, is_all_reached, has_a_name_of_its_own],
    "bench": [swallows_nothing, is_all_reached, has_a_name_of_its_own],
    "text": [promises_nothing_for_later, lives_on_no_machine],
}


def kinds(path: Path) -> list[str]:
    """Which lists of rules a file must obey."""
    python = path.suffix == ".py"
    room = {"tests": "tests", "bench": "bench"} | dict.fromkeys(ROOMS, "product")
    return ["text", *([room[path.parts[0]]] if python and path.parts[0] in room else [])]


def faults(file: File) -> list[str]:
    rules = [rule for kind in kinds(file.path) for rule in RULES[kind]]
    return [f"{file.path} {sentence}" for rule in rules for sentence in rule(file)]


def files() -> Iterator[Path]:
    """Our own text files, relative to the root; nothing that was generated or installed."""
    own = [*ROOMS, "tests", "bench", "deploy", ".ci"]
    found = [path for top in own for path in (ROOT / top).rglob("*")]
    for path in sorted([*ROOT.glob("*"), ROOT / ".gitignore", *found]):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts if part not in {".ci", ".gitignore"})
        if path.is_file() and path.suffix in SUFFIXES and not hidden and "__pycache__" not in parts:
            yield path.relative_to(ROOT)


@pytest.mark.parametrize("path", list(files()), ids=str)
def test_tidy(path: Path) -> None:
    assert faults(File(path, (ROOT / path).read_text(encoding="utf-8"))) == []


# --- Each rule sees its fault

LONG_FUNCTION = '"""D."""\ndef f():\n    """Said at\n\n    length."""\n' + "    x = 1\n" * 50
HOME = "/ho" + "me/me"

PLANTED = [
    ("server/qbroker/a.py", "x = 1\n" * 4, "has no module docstring"),
    ("server/qbroker/a.py", '"""D."""\n' + "x = 1\n" * 400, "has 401 lines"),
    ("server/qbroker/a.py", LONG_FUNCTION, "line 2: f has 51 lines"),
    ("server/qbroker/a.py", "print(1)", "line 1: print"),
    ("bench/a.py", "try:\n    f()\nexcept:\n    raise", "line 3: a bare except"),
    (
        "tests/core/test_a.py",
        "try:\n    f()\nexcept Exception:\n    pass",
        "line 3: swallows every failure",
    ),
    ("bench/a.py", "def f():\n    return 1\n    g()", "line 3: is never reached"),
    ("worker/qworker/helpers.py", "x = 1", "is called helpers"),
    ("server/stray.py", "x = 1", "lies beside its package"),
    ("tests/core/test_a.py", "import time\ntime.sleep(1)", "line 2: sleeps"),
    ("tests/core/test_a.py", "from time import sleep", "line 1: sleeps"),
    ("README.md", "later (TO" + "DO)", "line 1: TO" + "DO"),
    ("bench/a.py", "# FIX" + "ME", "line 1: FIX" + "ME"),
    ("deploy/x.service", f"Path={HOME}", f"line 1: {HOME}: a path of one machine"),
]


@pytest.mark.parametrize(("path", "text", "sentence"), PLANTED)
def test_a_planted_fault_is_seen(path: str, text: str, sentence: str) -> None:
    (found,) = faults(File(Path(path), text))
    assert found.startswith(f"{path} {sentence}")


FINE = [
    ("server/qbroker/a.py", f'"""D.\n\n{EXCUSE} a table\nis one."""\n' + "x = 1\n" * 400),
    ("server/qbroker/cli.py", "print(1)"),
    ("server/qbroker/cli/show.py", "print(1)"),
    ("server/qbroker/a.py", "print(1)  # tidy: the last words before a hard exit"),
    ("bench/a.py", "try:\n    f()\nexcept Exception:\n    log()"),
    ("bench/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    ("tests/e2e/app.py", "import time\ntime.sleep(60)  # tidy: a task that takes a minute"),
    ("README.md", "see docs/ho" + "me/ or {prefix}/wo" + "rk/"),
]


@pytest.mark.parametrize(("path", "text"), FINE)
def test_what_is_allowed_is_let_pass(path: str, text: str) -> None:
    assert faults(File(Path(path), text)) == []


def test_the_check_looks_at_our_files() -> None:
    found = {str(path) for path in files()}
    assert {"README.md", "Makefile", ".ci/run", "tests/test_tidy.py"} <= found
    assert "server/qbroker/config.py" in found
