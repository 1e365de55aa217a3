"""The settings of the broker: each one once, with its default, unit, bounds and reason.

A setting's name is the same everywhere, so one word finds all of it:

    Config field   heartbeat_ms
    flag           --heartbeat-ms 10s
    environment    QBROKER_HEARTBEAT_MS=10s
    TOML key       heartbeat_ms = "10s"

1. A flag beats the environment, which beats the file, which beats the default.
2. What is not understood stops the start: a misspelt limit is a limit that is not there.
3. Quantities carry their unit in the name (``_ms``, ``_bytes``). A bare number is in that unit;
   people may write ``10s`` or ``64MiB`` instead. Units are exact: there is no ``MB``.
4. ``load`` checks bounds. ``Config(...)`` itself does not, so that tests may use tiny limits.

Over 400 lines because every setting stands here, and a reader looks for it in one place.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import Any, TypeVar, cast

from qbroker.kinds import (
    ADDRESS,
    ADDRESS_OR_NONE,
    BOOL,
    COUNT,
    DAY,
    DURATION,
    GIB,
    HOUR,
    KIB,
    MIB,
    MINUTE,
    PATH,
    ROOM,
    SECOND,
    SIZE,
    Amount,
    Kind,
    Value,
    one_of,
    split_address,
)

T = TypeVar("T", str, int, bool, Path)


class ConfigError(Exception):
    """The settings cannot be used: what is wrong, what that means, what to do."""

    def __init__(self, what: str, means: str, do: str) -> None:
        super().__init__(f"{what}: {means}; {do}")
        self.what, self.means, self.do = what, means, do


@dataclass(frozen=True)
class Setting:
    """One row of the table: what ``Config``'s fields say about themselves."""

    name: str
    default: Value
    kind: Kind
    why: str
    bounds: tuple[int, int] | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        return "QBROKER_" + self.name.upper()

    @property
    def allowed(self) -> str:
        """What may be written, in words: bounds if there are any, else an example."""
        return " to ".join(map(self.kind.show, self.bounds)) if self.bounds else self.kind.example


def setting(default: T, kind: Kind, bounds: tuple[int, int] | None, why: str) -> T:
    return field(default=default, metadata={"kind": kind, "bounds": bounds, "why": why})


# --- The table ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one broker, parsed and within bounds. Never changes while it runs."""

    # fmt: off
    # Where
    data: Path = setting(Path("qbroker-data"), PATH, None,
        "Folder of the log; made at the first start.")
    listen: str = setting("127.0.0.1:7717", ADDRESS, None,
        "Address for clients and workers; port 0 takes a free one.")
    http: str = setting("127.0.0.1:7718", ADDRESS_OR_NONE, None,
        "Address for metrics and health; empty for none.")
    http_connections_max: int = setting(64, COUNT, (1, 10_000),
        "HTTP connections at once; one more is answered 503 and closed.")
    insecure_listen: bool = setting(False, BOOL, None,
        "Listen beyond this machine without TLS: whoever connects can run your tasks.")

    # The log
    fsync: str = setting("always", one_of("always", "interval", "never"), None,
        "When a publish is confirmed, for queues that do not say: on disk, or only written.")
    fsync_interval_ms: int = setting(100, DURATION, (1, MINUTE),
        "Time between syncs under fsync=interval: what a power cut may cost there.")
    segment_bytes: int = setting(64 * MIB, SIZE, (256 * KIB, 2 * GIB),
        "Size of one log file: smaller frees space sooner, larger means fewer files.")
    batch_bytes_max: int = setting(8 * MIB, SIZE, (256 * KIB, GIB),
        "Most that is written and synced together: bounds how long one sync can take.")
    window_bytes_max: int = setting(16 * MIB, SIZE, (0, 64 * GIB),
        "Bodies kept in memory near the heads of queues; the rest is read from disk.")
    disk_low_bytes: str = setting("5%,2GiB", ROOM, None,
        "Room on the disk below which publishes are refused; all that makes room goes on.")
    disk_critical_bytes: str = setting("1%,256MiB", ROOM, None,
        "Room of which checkpoints and the archive leave a quarter.")

    checkpoint_log_bytes: int = setting(64 * MIB, SIZE, (64 * KIB, 1024 * GIB),
        "Log after which a checkpoint is due: smaller starts sooner, larger writes less.")

    clean_live_percent: int = setting(50, COUNT, (0, 90),
        "Segments with less alive are rewritten with that alone; 0 cleans nothing.")

    # Messages and results
    body_bytes_max: int = setting(MIB, SIZE, (KIB, 64 * MIB),
        "Largest body of a message: keep files elsewhere and send their address.")
    result_bytes_max: int = setting(MIB, SIZE, (0, 64 * MIB),
        "Largest result of a task: a larger one fails the task with a reason.")
    result_ttl_ms: int = setting(DAY, DURATION, (SECOND, 3650 * DAY),
        "How long a result can be asked for: then its bytes go, and get() knows it no more.")
    results_max: int = setting(1_000_000, COUNT, (0, 1_000_000_000),
        "Results in memory at once, until they are archived: beyond it the oldest go first.")
    named_ids_max: int = setting(1_000_000, COUNT, (0, 100_000_000),
        "Ids not minted by our clients, kept to find and deduplicate; they cost memory.")
    unique_keys_max: int = setting(1_000_000, COUNT, (0, 100_000_000),
        "Unique keys held at once, some 400 bytes of memory each: beyond it publishes are refused.")
    idempotency_keys_max: int = setting(1_000_000, COUNT, (0, 100_000_000),
        "The same for idempotency keys, which are held as long as their windows last.")
    idempotency_window_ms: int = setting(DAY, DURATION, (SECOND, 366 * DAY),
        "How long an idempotency key is held if a publish says no window of its own.")
    cancel_notices_max: int = setting(50_000, COUNT, (0, 10_000_000),
        "Cancels of ids not known yet, kept until their messages come: beyond it the oldest go.")
    cancel_notice_ttl_ms: int = setting(HOUR, DURATION, (SECOND, 366 * DAY),
        "How long such a cancel is kept: as long as a publish may be sent again, and arrive late.")
    graph_nodes_max: int = setting(1_000_000, COUNT, (0, 100_000_000),
        "Nodes of graphs at once, until all of a graph has ended: beyond it publishes are refused.")
    fan_out_max: int = setting(100_000, COUNT, (1, 1_000_000),
        "Messages that one link of a graph may lead to, or come from.")
    delay_max_ms: int = setting(365 * DAY, DURATION, (SECOND, 3650 * DAY),
        "Furthest a message may be scheduled: catches seconds mistaken for milliseconds.")
    retry_max_ms: int = setting(DAY, DURATION, (SECOND, 365 * DAY),
        "Longest wait between two tries: exponential backoff stops growing here.")
    poison_max: int = setting(3, COUNT, (1, 1000),
        "Workers a message may take down before it is set aside as a dead letter.")

    # The archive of settled tasks
    archive: bool = setting(True, BOOL, None,
        "Keep settled tasks on disk; else results stay in memory and nothing can be searched.")
    archive_ttl_ms: int = setting(7 * DAY, DURATION, (SECOND, 3650 * DAY),
        "How long a settled task can be searched for.")
    archive_bytes_max: int = setting(10 * GIB, SIZE, (MIB, 16 * 1024 * GIB),
        "Most the archive may hold: beyond it the oldest rows go before their time.")
    archive_preview_bytes_max: int = setting(KIB, SIZE, (0, 16 * KIB),
        "What is kept of previews of arguments, where clients send one; 0 keeps none.")
    archive_lag_bytes: int = setting(64 * MIB, SIZE, (MIB, 1024 * GIB),
        "Log not archived yet, beyond which successes without a result get no row.")
    archive_lag_bytes_max: int = setting(GIB, SIZE, (MIB, 1024 * GIB),
        "Log not archived yet, beyond which publishes are refused until it has caught up.")

    # Uploads: publishes larger than a frame, which arrive in parts
    upload_messages_max: int = setting(50_000, COUNT, (1, 10_000_000),
        "Messages in one atomic publish, such as the nodes of a workflow.")
    upload_bytes_max: int = setting(64 * MIB, SIZE, (KIB, 4 * GIB),
        "Bytes in one atomic publish: they wait in memory until its last part is here.")

    # Connections and their sessions
    connections_max: int = setting(10_000, COUNT, (1, 1_000_000),
        "Connections at once; each takes a file descriptor and some memory.")
    handshakes_max: int = setting(512, COUNT, (1, 100_000),
        "Connections that have not said who they are yet: strangers get no more room.")
    handshake_timeout_ms: int = setting(5 * SECOND, DURATION, (10, 10 * MINUTE),
        "How long a connection may take to say who it is.")
    heartbeat_ms: int = setting(10 * SECOND, DURATION, (10, HOUR),
        "How often a silent session must show that it lives.")
    session_timeout_ms: int = setting(30 * SECOND, DURATION, (20, DAY),
        "Silence after which a session is lost and what it held goes to others.")
    claims_ms: int = setting(2 * SECOND, DURATION, (0, MINUTE),
        "After a crash, how long nothing is handed out, so that workers keep what they run.")
    grace_ms: int = setting(30 * SECOND, DURATION, (0, DAY),
        "After a start, how long granted messages stay held for workers still running them.")
    subscriptions_max: int = setting(64, COUNT, (1, 10_000),
        "Subscriptions of one connection.")
    credit_max: int = setting(10_000, COUNT, (1, 1_000_000),
        "Unsettled deliveries of one subscription, however much credit it asks for.")

    # The broker as a whole
    queues_max: int = setting(10_000, COUNT, (1, 1_000_000),
        "Queues: stops a client that makes one for each user or each request.")
    lanes_max: int = setting(500_000, COUNT, (1, 10_000_000),
        "Lanes, one for each task and its keys, of which messages are there: 1 KiB of memory each.")
    exchanges_max: int = setting(1_000, COUNT, (1, 100_000),
        "Exchanges.")
    bindings_max: int = setting(100_000, COUNT, (1, 10_000_000),
        "Bindings of all exchanges: each takes about 500 bytes of memory.")
    copies_max: int = setting(1_000, COUNT, (1, 10_000),
        "Queues that one message may be copied into by an exchange.")
    events_buffer_bytes: int = setting(MIB, SIZE, (1 * KIB, GIB),
        "Events that wait for one slow listener: beyond it the oldest are dropped.")
    limits_max: int = setting(1_000, COUNT, (1, 100_000),
        "Limit rules: each costs a look when a lane is opened.")
    inbox_bytes_max: int = setting(64 * MIB, SIZE, (MIB, 64 * GIB),
        "Frames waiting for a turn: beyond it sockets are not read and senders wait.")
    output_bytes_max: int = setting(8 * MIB, SIZE, (256 * KIB, 4 * GIB),
        "Unsent bytes of one connection: beyond it a slow reader gets no deliveries.")
    turn_ms: int = setting(5, DURATION, (1, SECOND),
        "Longest turn of the engine: longer work goes on in the next one.")
    shutdown_timeout_ms: int = setting(10 * SECOND, DURATION, (0, HOUR),
        "How long a stop waits for connections to finish what they are saying.")

    # What it says
    log_level: str = setting("info", one_of("debug", "info", "warning", "error"), None,
        "Least important line that is still written.")
    log_format: str = setting("text", one_of("text", "json"), None,
        "Lines for people, or JSON for collectors.")
    # fmt: on

    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each setting that is not at its default came from: flag, env or file."""

    @property
    def listen_address(self) -> tuple[str, int]:
        return split_address(self.listen)

    @property
    def disk_low(self) -> Amount:
        return Amount.parse(self.disk_low_bytes)

    @property
    def disk_critical(self) -> Amount:
        return Amount.parse(self.disk_critical_bytes)

    @property
    def http_address(self) -> tuple[str, int] | None:
        return split_address(self.http) if self.http else None


SETTINGS: dict[str, Setting] = {
    row.name: Setting(row.name, cast("Value", row.default), **row.metadata)
    for row in dataclasses.fields(Config)
    if row.metadata
}
"""Every setting by name, in the order of the table. Flags, docs and checks are made from it."""

ENVIRONMENT = {row.environment: row for row in SETTINGS.values()}

NOT_SETTINGS = re.compile(
    r"QBROKER_(CONFIG|URL|(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP)\w*)?))"
)
"""Read elsewhere (the file's path, the address for clients), or set by Kubernetes in every pod
beside a service named qbroker, where nobody chose it."""


# --- Loading --------------------------------------------------------------------------------------


def load(flags: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None) -> Config:
    """The settings in force, each within its bounds and fitting the others.

    ``flags`` has field names as keys; a value of None is a flag that was not given. ``environ``
    may be all of os.environ. Raises ConfigError for the first thing that is wrong.
    """
    found = from_file(toml_path) + from_environment(environ) + from_flags(flags)
    values: Any = {
        name: value_of(SETTINGS[name], raw, written_as) for _, name, written_as, raw in found
    }
    config = Config(**values, sources={name: source for source, name, _, _ in found})
    check_together(config)
    return config


Found = tuple[str, str, str, object]  # source, name, how the person wrote it, the raw value


def from_file(path: Path | None) -> list[Found]:
    if path is None:
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        means = error.strerror or str(error)
        raise ConfigError(f"cannot read {path}", means, "give the path of a TOML file") from error
    except ValueError as error:  # both TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path} is not TOML", str(error), "mend that line") from error
    refuse_unknown(table, SETTINGS, f"in {path}")
    return [("file", key, f"{key} in {path}", raw) for key, raw in table.items()]


def from_environment(environ: Mapping[str, str]) -> list[Found]:
    ours = [name for name in environ if name.startswith("QBROKER_")]
    refuse_unknown(filterfalse(NOT_SETTINGS.fullmatch, ours), ENVIRONMENT, "in the environment")
    known = [name for name in ours if name in ENVIRONMENT]
    return [("env", ENVIRONMENT[name].name, name, environ[name]) for name in known]


def from_flags(flags: Mapping[str, object]) -> list[Found]:
    given = {name: raw for name, raw in flags.items() if raw is not None}
    refuse_unknown(given, SETTINGS, "among the flags")
    return [("flag", name, SETTINGS[name].flag, raw) for name, raw in given.items()]


def refuse_unknown(names: Iterable[str], known: Mapping[str, Setting], where: str) -> None:
    words = {each.removeprefix("QBROKER_"): each for each in known}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.removeprefix("QBROKER_"), words, n=1)
            do = f'did you mean "{words[near[0]]}"?' if near else 'see "qbroker config" for all'
            raise ConfigError(f'unknown setting "{name}" {where}', "no such setting", do)


def value_of(row: Setting, raw: object, written_as: str) -> Value:
    """``raw`` as the setting's own type and within its bounds. Raises ConfigError."""
    text = str(raw).lower() if isinstance(raw, bool) else str(raw)
    try:
        if not isinstance(raw, str | int | Path):
            raise TypeError(raw)
        value = row.kind.parse(text)
    except (ValueError, KeyError, TypeError) as error:
        what = f'{written_as} is "{text}"'
        raise ConfigError(what, f"not {row.kind.noun}", f"write {row.kind.example}") from error
    if row.bounds and isinstance(value, int) and not row.bounds[0] <= value <= row.bounds[1]:
        means = "less than allowed" if value < row.bounds[0] else "more than allowed"
        raise ConfigError(f"{written_as} is {row.kind.show(value)}", means, f"choose {row.allowed}")
    return value


def check_together(config: Config) -> None:
    """Raises ConfigError where two settings, each good alone, do not fit one another."""
    show = {name: row.kind.show(getattr(config, name)) for name, row in SETTINGS.items()}
    for times, smaller, larger, means in [
        (1, "batch_bytes_max", "segment_bytes", "a batch would not fit into a log file"),
        (1, "body_bytes_max", "upload_bytes_max", "the largest body could never arrive"),
        (1, "result_bytes_max", "upload_bytes_max", "the largest result could never arrive"),
        (
            1,
            "archive_lag_bytes",
            "archive_lag_bytes_max",
            "publishes would stop before rows are shed",
        ),
        (1, "retry_max_ms", "delay_max_ms", "the longest retry would be refused as a delay"),
        (2, "heartbeat_ms", "session_timeout_ms", "one late heartbeat would lose a session"),
    ]:
        if times * getattr(config, smaller) > getattr(config, larger):
            what = f"{smaller} is {show[smaller]} and {larger} is {show[larger]}"
            raise ConfigError(what, means, f"lower {smaller} or raise {larger}")
    for name in ("listen", "http"):
        if not config.insecure_listen and show[name] and not is_loopback(show[name]):
            means = "without TLS, whoever reaches it can run your tasks"
            do = "listen on 127.0.0.1, or set insecure_listen if the network is yours alone"
            raise ConfigError(f"{name} is {show[name]}", means, do)


def is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- Telling --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of ``qbroker config``: the value in force and where it came from."""

    name: str
    value: str
    source: str
    unit: str
    help: str


def describe(config: Config) -> list[Row]:
    """Every setting as it is in force, in the order of the table. There are no secrets in it."""
    shown = {name: row.kind.show(getattr(config, name)) for name, row in SETTINGS.items()}
    source, rows = config.sources.get, SETTINGS.items()
    return [Row(n, shown[n], source(n, "default"), r.kind.unit, r.why) for n, r in rows]


def markdown() -> str:
    """The table of all settings for the docs: generated, so that it cannot disagree."""
    lines = ["| setting | default | allowed | why |", "|---|---|---|---|"]
    for row in SETTINGS.values():
        default = row.kind.show(row.default) or '""'
        lines.append(f"| `{row.name}` | `{default}` | {row.allowed} | {row.why} |")
    return "\n".join(lines) + "\n"
