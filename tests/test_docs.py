"""The documents: what they point to is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "*.md"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines()]


def dead_links(text: str, folder: Path) -> list[str]:
    """Targets inside the project that do not exist."""
    targets = [found for found in LINK.findall(text) if "://" not in found]
    return [target for target in targets if not (folder / target).exists()]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    """A relative link in a document names a file of the project."""
    assert dead_links(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_dead_link_is_seen() -> None:
    """The check itself: a link to nowhere is found, one to the web is let be."""
    text = "[a](README.md) [b](nowhere.md#part) [c](https://example.org/x)"
    assert dead_links(text, ROOT) == ["nowhere.md"]
