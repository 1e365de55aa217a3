"""The tables of PROTOCOL.md, made from the code: ``python -m qprotocol.tables [--check]``.

Rule 1. A table says nothing of its own: every word comes from the definition it shows.
Rule 2. Only ``main`` writes, and only between the marks of PROTOCOL.md.

This is the one module of the package that touches files: it reads the package's sources,
because Python forgets the docstrings of constants, and the document beside it.
"""

import ast
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from json import dumps
from pathlib import Path
from types import ModuleType
from typing import Any

from qprotocol import graphs, lanekeys, limits, states, wire
from qprotocol.conversation import ANSWERS, TRANSITIONS
from qprotocol.errors import ERRORS
from qprotocol.exchanges import ExchangeOptions
from qprotocol.frames import BOTH, FRAMES, Frame
from qprotocol.limitrules import LimitRule
from qprotocol.options import OPTIONS, RetryPolicy

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "PROTOCOL.md"
COMMAND = "python -m qprotocol.tables"

OUTCOME_NAMES = tuple(name.upper() for name in wire.OUTCOMES.values())
MESSAGE_FLAG_NAMES = ("ID_MINTED", "IGNORE_RESULT", "ACK_EARLY", "MARKED", "MAY_DROP")
META_FIELD_NAMES = ("ORIGIN", "UNIQUE", "IDEMPOTENCY", "NODE")
OUTCOME_FLAG_NAMES = ("HAS_RESULT", "HAS_POLICY", "NO_RETRY", "HAS_REPLACEMENT", "IN_PARTS")
STRUCT_NAMES = ("TOKEN", "RUN", "TOUCHED", "INPUT", "ACK_RUN", "POLICY", "PEEKED", "META_FIELD")


def table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def documented(source: str, name: str = "") -> dict[str, str]:
    """What stands under each constant of a module, or of its class ``name``; all on one line."""
    body: list[ast.stmt] = ast.parse((HERE / source).read_text(encoding="utf-8")).body
    if name:
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == name)
    found = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if isinstance(target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            found[target.id] = one_line(str(text.value)) if isinstance(text, ast.Constant) else ""
    return found


# The tables, in the order of the document.


def transitions() -> str:
    return table(
        ("while", "who", "says", "then"),
        (
            (before.name, frame.SENDER, frame.__name__, after.name)
            for (before, frame), after in TRANSITIONS.items()
        ),
    )


def field_list(frame: type[Frame]) -> str:
    """Fields in wire order; a default stands behind those that may be missing."""
    kinds = {int: "int", str: "str", bytes: "bin", bool: "bool", list: "[str]", dict: "map"}
    texts = []
    for index, (name, kind) in enumerate(zip(frame.FIELDS, frame.KINDS, strict=True)):
        if index < frame.REQUIRED:
            texts.append(f"{name}: {kinds[kind]}")
            continue
        default = frame.DEFAULTS[index]
        shown = dumps(default.decode() if isinstance(default, bytes) else default)
        texts.append(f"{name}: {kinds[kind]} = {shown}")
    return f"`{', '.join(texts)}`" if texts else ""


def frame_table() -> str:
    senders = {BOTH: "both"}
    return table(
        ("type", "frame", "sender", "fields", "answer", "meaning"),
        (
            (
                f"0x{number:02x}",
                f"**{frame.__name__}**",
                senders.get(frame.SENDER, frame.SENDER),
                field_list(frame),
                " or ".join(answer.__name__ for answer in ANSWERS.get(frame, ())),
                one_line(frame.__doc__ or ""),
            )
            for number, frame in sorted(FRAMES.items())
        ),
    )


def layouts() -> str:
    text = (wire.__doc__ or "").split("\n\n", 1)[1].rstrip()
    return f"```text\n{text}\n```"


def prose(module: ModuleType) -> str:
    """What a module's docstring says behind its first paragraph."""
    text = (module.__doc__ or "").split("\n\n", 1)[1].rstrip()
    return f"```text\n{text}\n```"


def struct_table() -> str:
    texts = documented("wire.py")
    return table(
        ("name", "layout", "bytes", "what it is"),
        (
            (name, f"`{getattr(wire, name).format}`", getattr(wire, name).size, texts[name])
            for name in STRUCT_NAMES
        ),
    )


def constants(names: tuple[str, ...]) -> str:
    texts = documented("wire.py")
    return table(
        ("name", "number", "meaning"),
        ((name, f"{getattr(wire, name):#x}", texts[name]) for name in names),
    )


def state_table() -> str:
    texts = documented("states.py", "State")
    return table(
        ("number", "state", "finished", "meaning"),
        (
            (int(state), state.name, "yes" if state.finished else "", texts[state.name])
            for state in states.State
        ),
    )


def error_table() -> str:
    return table(
        ("code", "try again", "closes", "not done", "meaning"),
        (
            (
                row.code,
                "yes" if row.retryable else "",
                "yes" if row.closes else "",
                "certain" if row.definite else "**unknown**",
                row.meaning,
            )
            for row in ERRORS.values()
        ),
    )


def limit_table() -> str:
    texts = documented("limits.py")
    return table(
        ("limit", "value", "why"),
        ((name, f"{getattr(limits, name):,}", text) for name, text in texts.items()),
    )


OWNERS: dict[type[Any], str] = {
    RetryPolicy: "options.py",
    ExchangeOptions: "exchanges.py",
    LimitRule: "limitrules.py",
}
"""Options that are no queue's: of retries, exchanges and limits; the module that says each."""


def policy_table() -> str:
    """What is set by name, and is no option of a queue."""
    rows = []
    for owner, source in OWNERS.items():
        texts = documented(source, owner.__name__)
        defaults: list[tuple[str, Any]] = [(f.name, f.default) for f in fields(owner)]
        rows += [(owner.__name__, name, repr(value), texts[name]) for name, value in defaults]
    return table(("of", "option", "default", "meaning"), rows)


def option_table() -> str:
    """The options of queues, one a line: also in the broker's README."""
    notes = {"bounds": "a policy of operators bounds it", "declared_only": "by declaration alone"}
    return table(
        ("option", "takes", "default", "meaning"),
        (
            (
                f"`{row.name}`",
                row.wants,
                str(row.default).lower() if row.default != "" else '""',
                " ".join([row.why, *(f"({n})" for of, n in notes.items() if getattr(row, of))]),
            )
            for row in OPTIONS.values()
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "transitions": transitions,
    "frames": frame_table,
    "layouts": layouts,
    "lane keys": lambda: prose(lanekeys),
    "graph": lambda: prose(graphs),
    "message flags": lambda: constants(MESSAGE_FLAG_NAMES),
    "meta fields": lambda: constants(META_FIELD_NAMES),
    "outcomes": lambda: constants(OUTCOME_NAMES),
    "outcome flags": lambda: constants(OUTCOME_FLAG_NAMES),
    "rows": struct_table,
    "options": option_table,
    "other options": policy_table,
    "states": state_table,
    "errors": error_table,
    "limits": limit_table,
}


def filled(text: str) -> tuple[str, list[str]]:
    """The document with fresh tables, and the names of those that were stale.

    Raises ValueError naming a table whose marks are missing.
    """
    stale = []
    for name, make in TABLES.items():
        start, end = f"<!-- {name}: made by {COMMAND} -->\n", f"\n<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        old, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the marks of the table {name!r} are missing: {start}...{end}")
        new = make()
        if new != old:
            stale.append(name)
        text = before + start + new + end + after
    return text, stale


def main(arguments: list[str], document: Path = DOCUMENT) -> int:
    """Writes the tables, or with --check only looks: 1 if one is stale, 2 for a wrong option."""
    if arguments not in ([], ["--check"]):
        print(f"unknown arguments {' '.join(arguments)!r}: {COMMAND} takes --check or nothing")
        return 2
    text, stale = filled(document.read_text(encoding="utf-8"))
    if not stale:
        return 0
    if arguments:
        print(f"{document.name} is stale ({', '.join(stale)}): run {COMMAND}")
        return 1
    document.write_text(text, encoding="utf-8")
    print(f"{document.name}: wrote {', '.join(stale)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
