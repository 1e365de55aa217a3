"""Stories in which every disk call fails once, in every way; and the table of all there are.

A story sets the scene, then something is done: its calls are counted, and from then on told
again and again, each time with the next call spoiled. Then the process, or the machine, has
ended, and what was confirmed must be there. `sites` are the places in the code at which a
disk is asked, `table` the kinds of calls: one that no story has spoiled breaks a test.
"""

from __future__ import annotations

import ast
import errno
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbroker.log import disk
from qbroker.log.disk import Disk, File
from simdisk import Call, SimDisk, lose_all, random_choice

LIVES_MAX = 2_000
SHORT = {"read_at": "read", "write_at": "write", "write_whole": "write", "sync_data": "sync"}
"""What a simulated disk calls them."""
UNCOUNTED = {"close", "unlock", "entropy"}
VERBS = {name for name in (*vars(Disk), *vars(File), "write_whole") if name[0] != "_"} - UNCOUNTED
Site = tuple[str, int, str]
"""A place in the code: file, line, and what is asked there."""
LOG_CALLS = {
    "": "free_bytes lock names sync_directory",
    "*-*.torn": "rename",
    "*-*.torn.tmp": "create remove sync write",
    "*.*-*.tmp": "create forget_cache open protect read remove size sync write",
    "*.*.qlog": "open protect read remove rename size",
    "*.qlog": "allocate forget_cache mode open protect read remove rename size sync truncate write",
    "*.qlog-*.cut": "rename",
    "META": "open read rename",
    "META.tmp": "create remove sync write",
    "cut.tmp": "create protect remove sync truncate write",
    "roll.tmp": "allocate create remove sync truncate write",
    "spare.tmp": "allocate create open remove sync truncate write",
}
"""By kind of file, what the log room asks of it."""
CHECKPOINT_CALLS = {
    "*.qckp": "open read remove rename size",
    "*.qckp.tmp": "create forget_cache read remove size sync write",
}
"""The same of that of checkpoints."""
NO_DISKS = {"self", "self._log", "LogReader"}
"""What has some of the same verbs."""


def unknown(calls: Counter[Call]) -> set[Call]:
    """Those that are in neither table."""
    rows = [*LOG_CALLS.items(), *CHECKPOINT_CALLS.items()]
    return calls.keys() - {(what, kind) for kind, whats in rows for what in whats.split()}


@dataclass(frozen=True)
class Way:
    """How a call fails, and what comes after it."""

    how: int
    sticky: bool
    end: Callable[[SimDisk], None]


def cut(disk: SimDisk) -> None:
    disk.crash(random_choice(disk.calls))


FAILS = Way(errno.EIO, sticky=False, end=SimDisk.kill)
GOES_ON_FAILING = Way(errno.EIO, sticky=True, end=SimDisk.kill)
WAYS = {
    "it finds no room": Way(errno.ENOSPC, sticky=False, end=SimDisk.kill),
    "the process ends there": GOES_ON_FAILING,
    "power is cut there, all unsynced lost": Way(
        errno.EIO, sticky=True, end=lambda disk: disk.crash(lose_all)
    ),
    "power is cut there, anything lost or torn": Way(errno.EIO, sticky=True, end=cut),
    "it fails, then power is cut": Way(errno.EIO, sticky=False, end=cut),
}


@dataclass(frozen=True)
class Story:
    """``scene`` makes a life, ``act`` is what is done in it, ``check`` is said after its end."""

    name: str
    scene: Callable[[], Any]
    """With ``disks``, of which one at a time fails, and all end."""
    act: Callable[[Any], None]
    check: Callable[[Any], None]
    has_second_try: bool = False
    """Something is asked only once the disk has failed before."""


@dataclass
class Told:
    """Kinds of calls that were made, and those of them that failed."""

    made: Counter[Call] = field(default_factory=Counter)
    failed: Counter[Call] = field(default_factory=Counter)
    sites: set[Site] = field(default_factory=set)
    """Where it failed."""
    lives: int = 0

    def add(self, other: Told) -> None:
        self.made += other.made
        self.failed += other.failed
        self.sites |= other.sites


def tell(story: Story, way: Way, trouble: tuple[type[Exception], ...]) -> Told:
    """Once for each call, of each disk, and once to the end. ``trouble`` is what may be raised."""
    told, turn, nth = Told(), 0, 1
    while turn < len(story.scene().disks):
        life = story.scene()
        hit: SimDisk = life.disks[turn]
        for each in life.disks:
            each.made.clear()
            each.spoiled.clear()
        hit.fail(nth, way.how, sticky=way.sticky)
        hit.on_failure = lambda what: told.sites.add(here(what))
        ended = True
        with suppress(*trouble):
            story.act(life)
            ended = False
        for each in life.disks:
            told.made += each.made
            told.failed += each.spoiled
        told.lives += 1
        assert nth < LIVES_MAX, "no life without a fault"
        assert hit.failed or not ended, "trouble without a fault"
        nth = nth + 1 if hit.failed else 1
        turn += not hit.failed
        for each in life.disks:
            way.end(each)
        story.check(life)
    return told


def told_all(stories: Sequence[Story], trouble: tuple[type[Exception], ...]) -> Told:
    """All stories, each call failing alone."""
    all_told = Told()
    for story in stories:
        all_told.add(tell(story, FAILS, trouble))
        if story.has_second_try:
            all_told.add(tell(story, GOES_ON_FAILING, trouble))
    return all_told


def table(calls: Counter[Call]) -> dict[str, str]:
    """By kind of file, what is asked of it."""
    rows: dict[str, list[str]] = {}
    for what, kind in sorted(calls):
        rows.setdefault(kind, []).append(what)
    return {kind: " ".join(whats) for kind, whats in sorted(rows.items())}


def here(what: str) -> Site:
    """The place that asks, which is not in a disk itself."""
    frame = sys._getframe(1)
    while "qbroker" not in frame.f_code.co_filename or frame.f_code.co_filename == disk.__file__:
        assert frame.f_back is not None
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name, frame.f_lineno, what


def sites(package: Path) -> set[Site]:
    """All places in the code of a package at which a disk is asked."""
    found = set()
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = asked(node)
            if name in VERBS and str(path) != disk.__file__:
                found.add((path.name, node.func.end_lineno, SHORT.get(name, name)))
    return found


def asked(node: ast.AST) -> str:
    """The name of what is called, of anything or alone."""
    if not isinstance(node, ast.Call):
        return ""
    called = node.func
    if isinstance(called, ast.Attribute):
        return "" if ast.unparse(called.value) in NO_DISKS else called.attr
    return called.id if isinstance(called, ast.Name) else ""
