"""``make demo``: a broker, a worker and a real corpus, from nothing to a table in under a minute.

    QDEMO_DIR     index the .py files of this folder; empty: Python's own standard library
    QDEMO_CHAOS   kill the broker with -9 when half of the tasks are done (chaos.py)

Exit codes: 0 all is well; 1 something is not; 2 there is nothing to index; 130 interrupted.

This file prepares and cleans up, story.py is what happens in between, indexer.py is the app.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import tempfile
from pathlib import Path

from processes import Broker, DemoError, Worker, end_on_signals

OFF = {"", "0", "no", "false"}
INSTALLED = {"site-packages", "dist-packages"}
"""Folders within the standard library that are not of it."""


class NothingToIndexError(DemoError):
    """There are no files."""


def corpus() -> tuple[Path, list[str]]:
    """The folder, and every .py file below it, in order. Raises NothingToIndexError."""
    given = os.environ.get("QDEMO_DIR", "")
    folder = Path(given or sysconfig.get_path("stdlib")).resolve()
    if not folder.is_dir():
        raise NothingToIndexError(f"DIR={given} is not a folder: give one that holds .py files")
    paths = [
        str(path)
        for path in sorted(folder.rglob("*.py"))
        if path.is_file() and not INSTALLED & set(path.relative_to(folder).parts)
    ]
    if not paths:
        raise NothingToIndexError(f"no .py file is in {folder}: give a folder with some, DIR=")
    return folder, paths


def main() -> int:
    folder, paths = corpus()
    is_chaos = os.environ.get("QDEMO_CHAOS", "").lower() not in OFF
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbroker-demo-")))
        broker = Broker(home)
        worker = Worker(home, broker)
        print(f"{len(paths):,} Python files in {folder}", flush=True)
        stack.callback(broker.stop)
        broker.serve()
        stack.callback(worker.stop)
        worker.work()
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the end is not cut short
        print(f"  broker at {broker.url}, metrics at {broker.metrics_url}", flush=True)

        # An app reads its broker's address when it is imported: so not before now.
        os.environ["QDEMO_BROKER"] = broker.url
        from story import tell  # noqa: PLC0415

        return 0 if tell(broker, worker, folder, paths, is_chaos=is_chaos) else 1


if __name__ == "__main__":
    end_on_signals()
    try:
        sys.exit(main())
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, NothingToIndexError) else 1)
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing is left running", file=sys.stderr)
        sys.exit(130)
