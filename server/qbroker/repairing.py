"""Cut a damaged log where it is damaged: say what that loses, keep what is cut.

    cut at batch k:   ... k-2  k-1 | k  k+1 ...  later files, later checkpoints
                      kept ---'      '---------- moved to cut-<time>/ in the data folder

Rule 1. Nothing is changed before all that is lost is known and was accepted.
Rule 2. Nothing is destroyed: what is cut is copied, synced, and only then cut off.
"""

import contextlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from qbroker.backup.manifest import sync_folder
from qbroker.core import records as r
from qbroker.core.survey import id_of, place_of
from qbroker.log.disk import READ_WRITE, Disk, FileDisk
from qbroker.log.format import Malformed, StoredRecord
from qbroker.log.manifest import open_segment
from qbroker.log.meta import read_meta, write_meta
from qbroker.log.salvage import Damage
from qbroker.log.segment import REPLAY_BYTES, SUFFIX
from qbroker.log.walk import Walk
from qprotocol import wire
from qprotocol.ids import unpack_id
from qprotocol.message import walk

IDS_SHOWN = 10


class RepairError(Exception):
    """The log cannot be cut there: why, and what to do."""


@dataclass(slots=True)
class Loss:
    """What a cut takes away, as far as it can be read."""

    batch: int
    """The first batch that is lost."""
    batches: int = 0
    bytes: int = 0
    records: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    """Published, by queue."""
    ids: list[str] = field(default_factory=list)
    """Of the first messages."""
    unreadable_bytes: int = 0
    files: list[str] = field(default_factory=list)
    """Segments that go as a whole."""
    cut_file: str = ""
    cut_offset: int = 0
    """The segment that stays up to there."""
    checkpoints: list[str] = field(default_factory=list)
    """Newer than the cut."""

    def count(self, stored: StoredRecord) -> None:
        """One more record is lost."""
        record = r.unpack(stored.type, stored.body)
        self.records[type(record).__name__] += 1
        if isinstance(record, r.Published | r.PartStored):
            raw = record.batch.raw
            start = record.lead if isinstance(record, r.PartStored) else 0
        elif isinstance(record, r.Settled) and record.follow_on.count:
            raw, start = record.follow_on.raw, 0
        else:
            return
        with contextlib.suppress(ValueError):  # a message that goes on in a later part
            for at, _ in walk(raw, start):
                self.messages[place_of(raw[at:])[0]] += 1
                if len(self.ids) < IDS_SHOWN:
                    minted = bool(wire.MESSAGE.unpack_from(raw, at)[4] & wire.ID_MINTED)
                    self.ids.append(unpack_id(id_of(raw, at), minted=minted) or "(none)")


class Repair:
    """A cut of the log in a data folder, which is locked. Raises RepairError, LogError, OSError."""

    def __init__(self, data: Path, batch: int) -> None:
        self._data = data
        self._place = data / "log" if (data / "log").is_dir() else data
        self._disk: Disk = FileDisk(str(self._place))
        self._disk.lock()
        self._meta = read_meta(self._disk)
        self.loss = Loss(batch)
        self._survey()

    def _survey(self) -> None:
        loss = self.loss
        names = [name for name in self._disk.names() if name.endswith(SUFFIX)]
        if self._meta.whole_from > 1 and loss.batch <= self._meta.whole_from:
            raise RepairError(
                f"batch {loss.batch} is not above {self._meta.whole_from}: what was cleaned there "
                "cannot be cut; restore a backup"
            )
        if loss.batch <= int(names[0][:20]):
            raise RepairError(
                f"batch {loss.batch} is at or before the first one kept: nothing would be left; "
                "restore a backup, or begin with a new folder"
            )
        for name in names:
            if int(name[:20]) >= loss.batch:
                loss.files.append(name)
            else:
                loss.cut_file = name
        for name in (loss.cut_file, *loss.files):
            self._count(name)
        for path in sorted((self._data / "checkpoints").glob("*.qckp")):
            if int(path.name[:20]) >= loss.batch:
                loss.checkpoints.append(path.name)

    def _count(self, name: str) -> None:
        """Add what is lost of one file."""
        loss, file = self.loss, self._disk.open(name)
        segment = open_segment(file, name, self._meta.log)
        damaged: list[Damage] = []
        walk, size = Walk(segment, file, REPLAY_BYTES), file.size()
        try:
            while True:
                if walk.number == loss.batch:
                    walk.damaged = damaged  # from here on what is bad is lost anyway
                    loss.cut_offset = loss.cut_offset or walk.offset
                info = walk.step(size)
                if info.number >= loss.batch:
                    loss.batches += 1
                    loss.bytes += info.length
                    for stored in walk.records(info):
                        loss.count(stored)
                walk.on(info)
        except Malformed as error:
            self._ended(name, walk.number, walk.offset, size, str(error))
        loss.unreadable_bytes += sum(each.length for each in damaged)

    def _ended(self, name: str, number: int, offset: int, size: int, why: str) -> None:
        """The walk through a file came to the end of what can be read."""
        loss = self.loss
        if name != loss.cut_file:
            return
        if not loss.cut_offset:
            raise RepairError(
                f"{name} holds nothing of batch {loss.batch} to cut at: it can be read up to batch "
                f"{number - 1} (byte {offset}: {why}); cut at position {number << 20}"
            )
        rest = self._disk.open(name).read_at(offset, size - offset).rstrip(b"\0")
        loss.unreadable_bytes += len(rest)

    def carry_out(self, folder: Path) -> None:
        """The log ends before the cut; all that was behind it is in ``folder``, which is new."""
        loss = self.loss
        folder.mkdir(mode=0o700)
        moved = [self._place / name for name in loss.files]
        moved += [self._data / "checkpoints" / name for name in loss.checkpoints]
        cut = self._place / loss.cut_file
        with cut.open("rb") as source, (folder / cut.name).open("xb") as copy:
            shutil.copyfileobj(source, copy, REPLAY_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        sync_folder(folder)
        # META first: it must not name a file that has gone.
        write_meta(self._disk, replace(self._meta, newest=int(loss.cut_file[:20])))
        for path in moved:
            path.rename(folder / path.name)
        self._disk.protect(loss.cut_file, READ_WRITE)
        file = self._disk.open(loss.cut_file, write=True)
        file.truncate(loss.cut_offset)
        file.sync()
        self._disk.sync_directory()
        sync_folder(folder)

    def close(self) -> None:
        self._disk.unlock()
