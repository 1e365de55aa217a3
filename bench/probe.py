"""What the disk alone takes: a bare write + fdatasync, p50 and p99.

`python bench/probe.py [DIR]` appends 256 bytes at a time to one new file for a second, on the file
system that holds DIR. A durable figure cannot be read without it: one caller who waits for the
disk at each call gets at most 1 / p50 calls a second, whatever the broker does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 1.0
WRITE_BYTES = 256


def probe(directory: Path, seconds: float = SECONDS) -> dict[str, float]:
    """Median and 99th percentile of one write and its sync, in microseconds."""
    payload = b"x" * WRITE_BYTES
    took_ns: list[int] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        descriptor = file.fileno()
        end_ns = time.monotonic_ns() + int(seconds * 1e9)
        began_ns = 0
        while began_ns < end_ns:
            began_ns = time.monotonic_ns()
            os.write(descriptor, payload)
            os.fdatasync(descriptor)
            took_ns.append(time.monotonic_ns() - began_ns)
    took_ns.sort()
    count = len(took_ns)
    return {"p50_us": took_ns[count // 2] / 1e3, "p99_us": took_ns[count * 99 // 100] / 1e3}


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1] if len(sys.argv) > 1 else "."))))
