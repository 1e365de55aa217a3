"""The broker's own lines on stderr: for people, or JSON for collectors.

    2026-11-22 13:04:05.123 info  net: TIMED_OUT from 127.0.0.1:4711: no Hello within 5000 ms

Rule 1. One line an event, whatever is in it: line breaks are escaped, tracebacks too in JSON.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

ROOT = "qbroker"


class TextLines(logging.Formatter):
    """Lines for people; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone()
        where = record.name.removeprefix(f"{ROOT}.").removeprefix(ROOT)
        stamp = f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}"
        said = f"{where}: {record.getMessage()}" if where else record.getMessage()
        line = f"{stamp} {record.levelname.lower():7} {said}".replace("\n", "\\n")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, where, message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "where": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


FORMATS = {"text": TextLines, "json": JsonLines}


def open_journal(level: str, form: str, stream: TextIO | None = None) -> None:
    """Everything logged below "qbroker" goes to ``stream`` (stderr), from ``level`` on.

    The root logger is left alone: libraries' warnings go there, as their users decide.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
