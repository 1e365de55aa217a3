"""``python -m qbroker.archive``: the archivist. The broker starts it; nobody else needs to."""

import argparse
import sys
from pathlib import Path

from qbroker.archive.archivist import Keeping
from qbroker.archive.process import Orders, Process, be_humble


def main() -> int:
    """Until the broker is gone; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qbroker.archive", description=__doc__)
    parser.add_argument("data", type=Path, help="the broker's data folder")
    parser.add_argument("--ttl-ms", type=int, required=True)
    parser.add_argument("--bytes-max", type=int, required=True)
    parser.add_argument("--preview-bytes-max", type=int, default=0)
    parser.add_argument("--move-aside", action="store_true")
    parser.add_argument("--impatient", action="store_true")
    given = parser.parse_args()
    be_humble()
    keeping = Keeping(given.ttl_ms, given.bytes_max, given.preview_bytes_max)
    process = Process(Orders(sys.stdin.fileno()), sys.stdout)
    patient = not given.impatient
    return process.run(given.data, keeping, may_move_aside=given.move_aside, is_patient=patient)


if __name__ == "__main__":
    sys.exit(main())
