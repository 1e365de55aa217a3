"""A backup beside a log that is cleaned: whatever moves meanwhile, it is begun anew or whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qbroker.backup.manifest import BackupError, Objects
from qbroker.backup.restoring import restore
from qbroker.backup.taking import TRIES_MAX, Attempt, Moved, Taken, take
from qbroker.log.cleaning import Rewritten, rewrite
from qbroker.log.disk import FileDisk
from qbroker.log.log import Log, LogSettings
from qbroker.log.reader import LogReader

SETTINGS = LogSettings(segment_bytes=16_384, batch_bytes_max=16_384)
BATCHES = 100


class House:
    """A data folder whose log is open, and a place for its backups."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.disk = self.data / "log"
        self.backup = folder / "backup"
        self.data.mkdir()
        self.log = Log.open(FileDisk(str(self.disk)), SETTINGS)
        for number in range(1, BATCHES + 1):
            batch = self.log.begin()
            batch.add(1, [b"%d" % number, bytes(1_000)], 1)
            self.log.commit(batch, sync=True, wall_ms=1, epoch=1)
        self.reads = 0

    def rewritten(self, nth: int) -> Rewritten:
        """The nth segment without its odd batches, waiting to be adopted."""
        disk = FileDisk(str(self.disk))
        sealed = LogReader.open(disk).sealed(self.log.durable)
        done = rewrite(disk, [sealed[nth]], even)
        assert done is not None
        return done

    def take(self, changes: dict[int, list[Rewritten]]) -> Taken:
        """A backup, while these are adopted after its reads of those numbers."""
        return take(self.data, self.backup, self.reader(changes))

    def reader(self, changes: dict[int, list[Rewritten]]) -> Callable[[int], None]:
        """What is told of each read: counts them, and changes the log under the backup."""
        self.reads = 0

        def read(_: int) -> None:
            self.reads += 1
            for done in changes.pop(self.reads, ()):
                assert self.log.adopt(done)

        return read

    def check(self, into: Path, cleaned: bool) -> None:
        """What the backup holds is a log with all that is alive."""
        restore(self.backup, into, lambda size: None)
        again = Log.open(FileDisk(str(into / "log")), SETTINGS)
        found = {info.number: records for info, records in again.replay()}
        assert found.keys() >= set(range(2, BATCHES + 1, 2))
        assert (len(found) < BATCHES) == cleaned
        assert all(b[0].body == b"%d" % n + bytes(1_000) for n, b in found.items())
        again.close()


def even(record: object) -> tuple[int, list[bytes]] | None:
    position, kind, body = record.position, record.type, record.body  # type: ignore[attr-defined]
    return (kind, [body]) if (position >> 20) % 2 == 0 else None


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.log.close()


def test_nothing_moves(house: House, tmp_path: Path) -> None:
    assert house.take({}).tries == 1
    house.check(tmp_path / "again", cleaned=False)


def test_a_file_that_is_adopted_at_any_moment_is_a_new_try(house: House, tmp_path: Path) -> None:
    """After every read of the backup another segment is swapped for its cleaned self."""
    house.take({})
    reads, segments = house.reads, house.log.statistics().segments
    assert segments > 6
    for number in range(1, segments - 1):
        house.backup = tmp_path / f"backup-{number}"
        taken = house.take({number: [house.rewritten(number % 3)]})
        assert taken.tries == 2, number
        house.check(tmp_path / f"again-{number}", cleaned=True)
    assert reads >= segments


def test_a_file_that_is_gone_before_it_is_opened_is_moved(house: House) -> None:
    """It was listed; when its turn comes it is not there any more."""
    done = house.rewritten(4)
    objects = Objects(house.backup)
    with objects.locked():
        attempt = Attempt(house.data, objects, {}, house.reader({2: [done]}))
        with pytest.raises(Moved, match=f"{done.sources[0]} was there, and is gone"):
            attempt.run()


def test_a_new_try_reads_only_what_moved(house: House) -> None:
    last = house.log.statistics().segments - 2
    house.take({})
    once = house.reads
    house.backup = house.backup.with_name("other")
    taken = house.take({last: [house.rewritten(last)]})
    assert taken.tries == 2
    assert house.reads < once + 5, "META, the cleaned one, and the last one again"
    assert taken.copied_files == taken.files


def test_a_log_that_is_cleaned_all_the_time_is_given_up_with_a_sentence(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def moved(self: Attempt) -> None:
        tries.append(self)
        raise Moved("a.qlog is gone")

    monkeypatch.setattr(Attempt, "run", moved)
    with pytest.raises(BackupError, match=f"cleaned up {TRIES_MAX} times .* a.qlog is gone"):
        house.take({})
    assert len(tries) == TRIES_MAX
    assert not (house.backup / "manifest.json").exists()
