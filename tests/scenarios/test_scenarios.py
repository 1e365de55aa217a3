"""Conversations with the broker and their golden answers, a topic a file.

Above a line of dashes what was done, below it what came of it; paragraphs that begin
with # are the story. `pytest --rewrite` writes what happens now: read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Harness

FILES = sorted(Path(__file__).parent.glob("*.txt"))


def told(text: str) -> str:
    """The transcript of the same lines, as it is now."""
    harness, out = Harness(), []
    for block in text.strip("\n").split("\n\n"):
        if block.startswith("#"):
            out.append(block)
            continue
        lines = block.split("\n----", 1)[0].split("\n")
        answers = [answer for line in lines for answer in harness.run(line)]
        out.append("\n".join([*lines, "----", *answers]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    before = path.read_text(encoding="utf-8")
    now = told(before)
    if request.config.getoption("--rewrite"):
        path.write_text(now, encoding="utf-8")
        return
    assert now == before
