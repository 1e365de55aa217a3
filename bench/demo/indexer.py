"""The demo's application: one task, which reads a Python file and says what is in it.

This is all that an application needs: an App, and functions with ``@app.task``. The same function
is called directly when the demo counts again without a broker: calling stays calling.

    qworker -A indexer:app                      runs the tasks
    index_file.delay("spam.py").get()           sends one, and waits for its result
"""

from __future__ import annotations

import ast
import hashlib
import io
import keyword
import os
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from qclient import App

app = App("indexer", broker=os.environ.get("QDEMO_BROKER", "qbroker://localhost"))


class Index(TypedDict):
    """What is known of one file. Results are plain values: numbers, text, lists, dicts, dates."""

    path: str
    digest: str
    lines: int
    tokens: int
    identifiers: dict[str, int]
    functions: list[tuple[int, str]]
    """The most complex ones: cyclomatic complexity and name."""


# A file on a network drive may be away for a moment: try again later, at most three times. A file
# that is no Python will not get better: SyntaxError and its like fail at once, and for good.
@app.task(autoretry_for=OSError, retry_backoff=True, max_retries=3)
def index_file(path: str) -> Index:
    source = Path(path).read_bytes()
    tokens, identifiers = count_tokens(source)
    return Index(
        path=path,
        digest=hashlib.sha256(source).hexdigest(),
        lines=len(source.splitlines()),
        tokens=tokens,
        identifiers=identifiers,
        functions=most_complex(functions_of(source), 5),
    )


# The rest is plain Python, and knows nothing of tasks.


def count_tokens(source: bytes) -> tuple[int, dict[str, int]]:
    """How many tokens there are, and how often each identifier is used."""
    total = 0
    names: Counter[str] = Counter()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        total += 1
        if token.type == tokenize.NAME:
            names[token.string] += 1
    for word in keyword.kwlist:
        names.pop(word, None)
    return total, dict(names)


BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions_of(source: bytes) -> list[tuple[int, str]]:
    """Every function's complexity (1, and 1 for each branch, as mccabe counts) and its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a test file's bad escapes are none of our business
        tree = ast.parse(source)
    found: list[tuple[int, str]] = []
    branches(tree.body, "", found)
    return found


def branches(block: Iterable[ast.AST], prefix: str, found: list[tuple[int, str]]) -> int:
    """The branches in a block; the functions in it are measured by themselves, into ``found``."""
    count = 0
    for node in block:
        if isinstance(node, FUNCTIONS):
            name = prefix + node.name
            found.append((1 + branches(node.body, f"{name}.", found), name))
        elif isinstance(node, ast.ClassDef):
            branches(node.body, f"{prefix}{node.name}.", found)
        else:
            count += isinstance(node, BRANCHES)
            for inner in BLOCKS:
                count += branches(getattr(node, inner, ()), prefix, found)
    return count


def most_complex(functions: Iterable[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """The ``count`` most complex ones; among equals, by name, so that every run says the same."""
    return sorted(functions, key=lambda each: (-each[0], each[1]))[:count]
