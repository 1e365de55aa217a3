"""The archivist as a process, and the broker's side of it: what is said, and when it is old."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

from archives import KEEPING, Archive
from qbroker.archive.process import Orders, Process
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import open_store
from qbroker.archiving import RETRY_S, Archiving, ended
from qbroker.config import Config
from qbroker.log.disk import FileDisk
from qbroker.log.log import Log
from simdisk import SimDisk


def test_an_archivist_whose_broker_is_gone_judges_nobody(tmp_path: Path) -> None:
    """It waited for the lock while another broker's archivist went on: its orders are old."""
    disk = FileDisk(str(tmp_path / "log"))
    log = Log.open(disk)
    for _ in range(9):
        log.commit(log.begin(), sync=True, wall_ms=1, epoch=1)
    folder = tmp_path / "archive"
    folder.mkdir()
    archive = Archive(disk, folder)
    archive.advance(9)
    archive.close()
    said, orders = io.StringIO(), os.pipe()
    os.write(orders[1], b"5\n")
    os.close(orders[1])
    process = Process(Orders(orders[0]), said)
    assert process.run(tmp_path, KEEPING, may_move_aside=True) == 0
    os.close(orders[0])
    assert said.getvalue() == ""
    store = open_store(folder / FILE_NAME, log.log_id)
    assert store.batch == 9
    store.close()


class Deaf:
    """An engine that is not told anything."""

    appended_bytes = 0

    def archived(self, upto: int) -> None: ...


def test_an_archivist_that_does_not_get_on_is_tried_less_and_less(tmp_path: Path) -> None:
    """That it says where it is, at its start, is no progress."""
    archiving = Archiving(Config(data=tmp_path), Log.open(SimDisk()), may_move_aside=False)
    archiving._engine = Deaf()
    words = {"rows": 0, "shed": 0, "bytes": 0, "seconds": 0.0}
    archiving._hear({"archived": 7, **words})
    archiving._retry_s = 8.0
    archiving._hear({"archived": 7, **words})
    assert archiving._retry_s == 8.0
    archiving._hear({"archived": 8, **words})
    assert archiving._retry_s == RETRY_S


def test_a_stop_that_meets_the_archivists_end_is_a_stop() -> None:
    """Whenever it comes: lost, the broker would wait for it for ever, with a new archivist."""

    async def stopped(passes: int) -> bool:
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        ending = asyncio.create_task(ended(process))
        await process.wait()
        for _ in range(passes):
            await asyncio.sleep(0)
        if not ending.cancel():
            return True  # it was over
        await asyncio.wait([ending])
        return ending.cancelled()

    assert [asyncio.run(stopped(passes)) for passes in range(8)] == 8 * [True]
