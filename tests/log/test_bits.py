"""Real files: cut at every byte, every bit flipped. Each is a clean cut above what is durable,
or a refusal; never a wrong record, never a confirmed one silently gone.

The quick ones try a byte, or a bit, here and there; the slow ones all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qbroker.log.cleaning import rewrite
from qbroker.log.disk import FileDisk
from qbroker.log.errors import CorruptError, ForeignError, FormatError
from qbroker.log.format import SEGMENT_HEADER_BYTES
from qbroker.log.log import Log, LogSettings
from qbroker.log.reader import LogReader

SETTINGS = LogSettings(segment_bytes=8 << 10)
BODIES = {n: bytes([64 + n]) * (150 * n) for n in range(1, 5)}
REFUSED = (CorruptError, ForeignError, FormatError)
NAME = "00000000000000000001.qlog"
CLEANED = "00000000000000000001.1.qlog"

ALL = [pytest.mark.slow, pytest.mark.timeout(1800)]
some_or_all = pytest.mark.parametrize(
    "step", [pytest.param(331, id="some"), pytest.param(1, id="all", marks=ALL)]
)


@pytest.fixture(autouse=True)
def _no_syncs(monkeypatch) -> None:
    """What matters here is what the files hold, and tens of thousands of starts sync a lot."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


def commit(log: Log, body: bytes) -> None:
    batch = log.begin()
    batch.add(1, body)
    log.commit(batch, sync=True, wall_ms=0, epoch=1)


def plain(place: Path) -> str:
    """An unsealed segment, as a kill leaves it."""
    disk = FileDisk(str(place))
    log = Log.open(disk, SETTINGS)
    for body in BODIES.values():
        commit(log, body)
    disk.unlock()
    return NAME


def sealed(place: Path) -> str:
    """A sealed segment with one behind it."""
    plain(place)
    Log.open(FileDisk(str(place)), SETTINGS).close()
    log = Log.open(FileDisk(str(place)), SETTINGS)
    commit(log, b"and on")
    log.close()
    return NAME


def cleaned(place: Path) -> str:
    """A cleaned segment, all of whose records live, with one behind it."""
    sealed(place)
    disk = FileDisk(str(place))
    log = Log.open(disk, SETTINGS)
    made = rewrite(disk, LogReader.open(disk).sealed(4), lambda r: (r.type, [r.body]))
    assert made is not None
    assert log.adopt(made)
    log.close()
    return CLEANED


class Copies:
    """The folder as it was left, once more for each spoilt file."""

    def __init__(self, make, tmp_path: Path) -> None:
        self.model, self.place = tmp_path / "model", tmp_path / "log"
        self.name = make(self.model)
        self.content = (self.model / self.name).read_bytes()

    def with_content(self, content: bytes) -> FileDisk:
        """A log's folder in which this file has that content."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.model, self.place)
        file = self.place / self.name
        mode = file.stat().st_mode
        file.chmod(0o600)
        file.write_bytes(content)
        file.chmod(mode)
        return FileDisk(str(self.place))

    def flipped(self, step: int) -> Iterator[tuple[int, bytes]]:
        """Every step-th bit, and the content with it flipped."""
        content = bytearray(self.content)
        for bit in range(0, len(content) * 8, step):
            content[bit // 8] ^= 1 << bit % 8
            yield bit // 8, bytes(content)
            content[bit // 8] ^= 1 << bit % 8


def found(log: Log) -> dict[int, list[bytes]]:
    return {info.number: [r.body for r in records] for info, records in log.replay()}


def wanted(last: int) -> dict[int, list[bytes]]:
    return {number: [BODIES[number]] for number in range(1, last + 1)}


@some_or_all
def test_an_unsealed_segment_with_a_bit_flipped(tmp_path, step) -> None:
    """Batches that a later one calls durable are there or missed; the last alone may be cut."""
    copies = Copies(plain, tmp_path)
    copies.content = copies.content.rstrip(b"\0") + bytes(600)
    for at, content in copies.flipped(step):
        try:
            log = Log.open(copies.with_content(content), SETTINGS)
        except REFUSED:
            continue
        assert found(log) in (wanted(3), wanted(4)), f"byte {at}"
        if log.written == 3:
            assert list(copies.place.glob("*.torn")), f"byte {at}"
        log.close()


@some_or_all
def test_an_unsealed_segment_cut_short(tmp_path, step) -> None:
    """Whole batches remain, and all that are whole; a header cut short is refused."""
    copies = Copies(plain, tmp_path)
    end = len(copies.content.rstrip(b"\0")) + 20
    for size in range(0, end, step):
        try:
            log = Log.open(copies.with_content(copies.content[:size]), SETTINGS)
        except CorruptError:
            assert size < SEGMENT_HEADER_BYTES
            continue
        assert found(log) == wanted(log.written), f"size {size}"
        log.close()


@some_or_all
@pytest.mark.parametrize("make", [sealed, cleaned])
def test_a_sealed_segment_with_a_bit_flipped(tmp_path, make, step) -> None:
    """All of it was confirmed: the start or the replay refuses, and look-ups lie about nothing."""
    copies = Copies(make, tmp_path)
    for at, content in copies.flipped(step):
        try:
            log = Log.open(copies.with_content(content), SETTINGS)
        except REFUSED:
            continue
        for number, body in BODIES.items():
            try:
                assert log.read(number << 20).body == body, f"byte {at}"
            except CorruptError:
                continue
        with pytest.raises(CorruptError):
            found(log)
        log.close()


@some_or_all
@pytest.mark.parametrize("make", [sealed, cleaned])
def test_a_sealed_segment_cut_short(tmp_path, make, step) -> None:
    """It had a footer, and its successor says so too."""
    copies = Copies(make, tmp_path)
    for size in range(0, len(copies.content), step):
        with pytest.raises(REFUSED):
            Log.open(copies.with_content(copies.content[:size]), SETTINGS)
