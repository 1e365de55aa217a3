"""What a worker writes to its log, as text or JSON, one line an event.

    [2026-05-04 12:00:00,123: INFO/child-1] task succeeded name=shop.add id=0196… queue=mail …
    {"at":"2026-05-04T12:00:00.123","level":"INFO","process":"child-1","event":"task succeeded",…}

The text form begins as Celery's lines do, so that what reads those reads these.

Rule 1. A task that succeeds costs one formatted line, gathered and written with its
        settlement's batch; above INFO it costs one comparison.
Rule 2. Everything else goes through ``logging``, so that an application's own handlers
        (Sentry's, say) see failures; the fields are in the record as ``fields``.
Rule 3. One event is one ``write``: lines of several processes do not mix.
"""

import json
import logging
import os
import sys
import time
from typing import Any

LOGGER = logging.getLogger("qworker")
DATE = "%Y-%m-%d %H:%M:%S"
GATHERED_MAX = 500
"""Lines gathered before they are written without waiting for company."""


def shown(value: object) -> str:
    """A field's value as it stands in a text line: quoted if it would not be one word."""
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)


class Clock:
    """The wall clock as the log writes it; the second's text is made once a second."""

    def __init__(self) -> None:
        self._second, self._text = -1, ""

    def now(self) -> str:
        """The time now, as ``2026-05-04 12:00:00,123``."""
        return self.at(time.time())

    def at(self, seconds: float) -> str:
        """A time in seconds since 1970, in the same form."""
        second = int(seconds)
        if second != self._second:
            self._text = time.strftime(DATE, time.localtime(second))
            self._second = second
        return f"{self._text},{int((seconds - second) * 1000):03}"


class TextFormatter(logging.Formatter):
    """A record as one text line, a traceback below it if there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process
        self.clock = Clock()

    def format(self, record: logging.LogRecord) -> str:
        place = f"{record.levelname}/{self.process}"
        words = [f"[{self.clock.at(record.created)}: {place}]", record.getMessage()]
        words += [f"{key}={shown(value)}" for key, value in fields_of(record).items()]
        line = " ".join(words)
        trace = trace_of(self, record)
        return f"{line}\n{trace.rstrip()}" if trace else line


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process
        self.clock = Clock()

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": self.clock.at(record.created).replace(" ", "T").replace(",", "."),
            "level": record.levelname,
            "logger": record.name,
            "process": self.process,
            "event": record.getMessage(),
            **fields_of(record),
        }
        trace = trace_of(self, record)
        if trace:
            entry["traceback"] = trace
        return json.dumps(entry, ensure_ascii=False, default=str)


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The named values that came with a record, in the order they were given."""
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


def trace_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The record's traceback: a task's own, or that of the exception being logged."""
    text: str = getattr(record, "trace", "")
    if not text and record.exc_info:
        text = formatter.formatException(record.exc_info)
    return text


class StderrHandler(logging.Handler):
    """Writes each record to standard error, whole, and never fails a task for it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - logging's own rule: a log line breaks nothing
            self.handleError(record)


def write(text: str) -> None:
    """``text`` is on standard error in one write; a closed one is nobody's problem."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        return


def set_up(level: str, log_format: str, process: str) -> None:
    """This process logs as it was told: the root logger's handlers are ours alone."""
    handler = StderrHandler()
    handler.setFormatter(FORMATTERS[log_format](process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def note(level: int, event: str, *, trace: str = "", **fields: object) -> None:
    """An event with its fields is in the log."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, "%s", event, extra={"fields": fields, "trace": trace})


class TaskLog:
    """Lines of tasks that succeeded, gathered until ``flush``."""

    def __init__(self, log_format: str, process: str) -> None:
        self.wanted = LOGGER.isEnabledFor(logging.INFO)
        self.debug = LOGGER.isEnabledFor(logging.DEBUG)
        self._process = process
        self._clock = Clock()
        self._lines: list[str] = []
        self._line = self._text_line if log_format == "text" else self._json_line

    def succeeded(self, name: str, id: str, queue: str, run_ns: int, attempt: int) -> None:  # noqa: A002
        """A task returned. Call only if ``wanted``. 1.5 µs."""
        self._lines.append(self._line(name, id, queue, run_ns / 1e6, attempt))
        if len(self._lines) >= GATHERED_MAX:
            self.flush()

    def _text_line(self, name: str, id: str, queue: str, run_ms: float, attempt: int) -> str:  # noqa: A002
        if " " in id or '"' in id or "=" in id:
            id = shown(id)  # noqa: A001
        return (
            f"[{self._clock.now()}: INFO/{self._process}] task succeeded name={name} id={id} "
            f"queue={queue} run_ms={run_ms:.1f} attempt={attempt}\n"
        )

    def _json_line(self, name: str, id: str, queue: str, run_ms: float, attempt: int) -> str:  # noqa: A002
        at = self._clock.now().replace(" ", "T").replace(",", ".")
        entry = {
            "at": at,
            "level": "INFO",
            "logger": "qworker",
            "process": self._process,
            "event": "task succeeded",
            "name": name,
            "id": id,
            "queue": queue,
            "run_ms": round(run_ms, 3),
            "attempt": attempt,
        }
        return json.dumps(entry, ensure_ascii=False) + "\n"

    def flush(self) -> None:
        """What was gathered is written."""
        if self._lines:
            lines, self._lines = self._lines, []
            sys.stderr.flush()
            write("".join(lines))
