"""The command line: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import click
import pytest

from qbroker import commandreference
from qbroker.config import SETTINGS
from qbroker.ops.admin import split_url
from qbroker.ops.exits import Exit
from qbroker.ops.peeking import one_line, peeked_messages
from qbroker.ops.show import ago, table
from qbroker.ops.tables import refresh
from qprotocol.codec import encode
from qprotocol.failure import Failure
from qprotocol.frames import Peeked, Publish, Published
from qprotocol.message import Message

pytestmark = pytest.mark.e2e

Command = Callable[..., CompletedProcess[str]]


def fails(done: CompletedProcess[str], code: int) -> str:
    """The one line with which a command failed."""
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("qbroker: ").rstrip("\n")


# --- Finding one's way


def test_help_names_every_command_and_hides_what_is_ours(command: Command) -> None:
    said = command("--help").stdout
    for name in ("serve", "config", "log", "queues", "peek", "purge", "stats"):
        assert re.search(rf"^  {name} ", said, re.MULTILINE), name
    assert "tables" not in said


def test_the_version_is_the_distributions(command: Command) -> None:
    assert re.fullmatch(r"qbroker, version \d+\.\d+\.\d+\n", command("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["queus"], 'no command "queus": did you mean "queues"?'),
        (
            ["xyzzy"],
            'no command "xyzzy": there are backup, bind, bindings, cancel, config, dead, event, '
            "exchange, export, import, limit, log, peek, policy, publish, purge, quarantine, "
            "queue, queues, restore, serve, stats",
        ),
        (["log", "dmup"], 'no command "dmup": did you mean "dump"?'),
        (["serve", "--lissten", "x"], "'--listen'"),
        (["peek"], "Missing argument 'QUEUE'."),
        (["peek", "q", "-n", "0"], "Invalid value for '-n' / '--count': 0 is not in the range"),
    ],
)
def test_a_slip_is_one_line_that_says_what_was_meant(
    command: Command, arguments: list[str], said: str
) -> None:
    assert said in fails(command(*arguments), Exit.USAGE)


# --- Settings


def test_config_shows_each_value_and_where_it_came_from(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_text('heartbeat_ms = "9s"\nturn_ms = 7\n')
    done = command("config", "--config", path, "--turn-ms", "8", QBROKER_CREDIT_MAX="55")
    rows = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines()}
    assert rows["heartbeat_ms"] == ["9s", "file"]
    assert rows["turn_ms"] == ["8ms", "flag"]
    assert rows["credit_max"] == ["55", "env"]
    assert rows["listen"] == ["127.0.0.1:7717", "default"]
    assert list(rows)[1:] == list(SETTINGS)


def test_config_for_programs(command: Command) -> None:
    found = json.loads(command("config", "--json", "--insecure-listen").stdout)
    assert found["insecure_listen"] == {"value": "true", "source": "flag"}
    assert list(found) == list(SETTINGS)


def test_config_for_the_docs(command: Command) -> None:
    lines = command("config", "--markdown").stdout.splitlines()
    assert len(lines) == 2 + len(SETTINGS)


def test_the_file_may_be_named_in_the_environment(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_text("turn_ms = 7\n")
    found = json.loads(command("config", "--json", QBROKER_CONFIG=str(path)).stdout)
    assert found["turn_ms"]["source"] == "file"


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (["--turn-ms", "fast"], {}, '--turn-ms is "fast": not a duration'),
        ([], {"QBROKER_LISTN": "x"}, 'did you mean "QBROKER_LISTEN"?'),
        (["--config", "/nowhere.toml"], {}, "cannot read /nowhere.toml"),
        (["--listen", "0.0.0.0:1"], {}, "set insecure_listen"),
    ],
)
def test_a_setting_that_cannot_be_used_is_said_before_anything_starts(
    command: Command, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    for name in ("config", "serve"):
        assert said in fails(command(name, *arguments, **environ), Exit.USAGE)


def test_every_setting_is_a_flag_of_serve(command: Command) -> None:
    said = command("serve", "--help").stdout
    assert [row.flag for row in SETTINGS.values() if row.flag not in said] == []


@pytest.mark.parametrize("name", ["README.md", "COMMANDS.md"])
def test_the_tables_in_the_documents_are_those_of_the_code(command: Command, name: str) -> None:
    done = command("tables", "--check", Path(__file__).parents[2] / "server" / name)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_of_commands_says_usage_options_and_defaults() -> None:
    """Settings once, hidden ones not at all."""

    @click.group()
    def tool() -> None: ...

    @tool.command("paint", help="Paint THINGS.\n\nAll of them.")
    @click.argument("things", nargs=-1)
    @click.option("--colour", type=click.Choice(["red", "blue"]), default="red", help="Of | all.")
    @click.option("--only", multiple=True, envvar="ONLY", required=True, help="Of these.")
    @click.option("--secret", hidden=True)
    @click.option("--data")
    @click.option("--listen")
    def paint(**_: object) -> None: ...

    assert commandreference.markdown(tool, "tool", {"data", "listen"}) == (
        "### tool paint\n\n`tool paint [OPTIONS] [THINGS]...`\n\nPaint THINGS.\n\nAll of them.\n\n"
        "| option | default | what it does |\n|---|---|---|\n"
        "| `--colour` red/blue | `red` | Of \\| all. |\n"
        "| `--only` text |  | Of these. Required. May be given more than once. "
        "Also `ONLY` in the environment. |\n"
        "| a flag for each setting |  | See [Settings](README.md#settings). |\n"
    )


def test_a_stale_table_is_noticed_and_written_again(command: Command, tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "server" / "README.md"
    text = readme.read_text().replace("`turn_ms`", "`turnip_ms`")
    copy = tmp_path / "README.md"
    copy.write_text(text)
    assert "is out of date" in fails(command("tables", "--check", copy), Exit.FAILED)
    assert copy.read_text() == text
    assert command("tables", copy).returncode == 0
    assert copy.read_text() == readme.read_text()


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table settings"):
        refresh("# nothing", {"settings": "x"})


# --- Asking a broker


@pytest.fixture(scope="module")
def mail(shared_daemon: Any) -> Iterator[Any]:
    """A broker with five messages in `mail`, one of them a task."""
    peer = shared_daemon.connect().shake_hands()
    messages = [Message("mail", b"hi", priority=n) for n in range(4)]
    messages.append(Message("mail", b"hey", id="abc", task="shop.send", priority=9))
    raw = b"".join(message.pack() for message in messages)
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=5, raw=raw))
    peer.expect(Published)
    return shared_daemon


def test_queues_for_people(mail: Any) -> None:
    header, row = mail.ask("queues").stdout.splitlines()
    columns = ["queue", "ready", "scheduled", "leased", "held", "consumers", "oldest"]
    assert header.split()[: len(columns)] == columns
    assert row.split()[:6] == ["mail", "5", "0", "0", "0", "0"]
    assert header.index("ready") + len("ready") == row.index("5") + 1, "numbers to the right"
    assert "\x1b" not in header, "no colour where it is not a terminal"


def test_queues_for_programs(mail: Any) -> None:
    (queue,) = json.loads(mail.ask("queues", "--json").stdout)
    assert (queue["name"], queue["ready"], queue["counts"]["published"]) == ("mail", 5, 5)


def test_peek_shows_what_waits_the_most_urgent_first(mail: Any) -> None:
    header, first, *rest = mail.ask("peek", "mail").stdout.splitlines()
    assert header.split()[:5] == ["position", "id", "task", "state", "priority"]
    assert first.split()[1:5] == ["abc", "shop.send", "queued", "9"]
    assert len(rest) == 4


def test_peek_for_programs_and_only_so_many(mail: Any) -> None:
    (message,) = json.loads(mail.ask("peek", "mail", "-n", 1, "--json").stdout)
    assert message["id"] == "abc"
    assert message["body_bytes"] == 3
    assert message["state"] == "QUEUED"


def test_peeking_at_nothing_says_that_there_is_no_such_queue(mail: Any) -> None:
    assert fails(mail.ask("peek", "mial"), Exit.FAILED).startswith("the broker refused: NO_QUEUE")


def test_stats_for_people_and_programs(mail: Any) -> None:
    rows = dict(line.split() for line in mail.ask("stats").stdout.splitlines())
    assert rows["queues"] == "1"
    assert int(rows["log.written"]) >= 1
    found = json.loads(mail.ask("stats", "--json").stdout)
    assert found["connections"]["admin"] == 1


def test_purge_asks_first_and_where_it_cannot_it_wants_a_word(mail: Any) -> None:
    assert fails(mail.ask("purge", "mail"), Exit.USAGE).endswith("give --yes")
    (queue,) = json.loads(mail.ask("queues", "--json").stdout)
    assert queue["ready"] == 5
    assert mail.ask("purge", "mail", "--yes").stdout == "5 messages dropped from mail\n"
    found = json.loads(mail.ask("purge", "mail", "--yes", "--json").stdout)
    assert found == {"queue": "mail", "purged": 0}


def test_no_broker_is_said_with_what_to_do(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = fails(command("stats", "--broker", f"qbroker://127.0.0.1:{port}"), Exit.UNAVAILABLE)
    assert said == (
        f"no broker at qbroker://127.0.0.1:{port}: Connection refused; start one with "
        '"qbroker serve", or say where it is with --broker'
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no broker we understand"), (b"", "hung up")],
)
def test_something_else_on_that_port_is_told_from_a_broker(
    command: Command, answer: bytes, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        url = f"qbroker://127.0.0.1:{listener.getsockname()[1]}"
        assert said in fails(command("stats", "--broker", url), Exit.UNAVAILABLE)
        server.join()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("qbroker://localhost", ("localhost", 7717)),
        ("qbroker://b.example:99/", ("b.example", 99)),
        ("qbroker://[::1]:99", ("::1", 99)),
        ("qbroker://[::1]", ("::1", 7717)),
        ("127.0.0.1:5", ("127.0.0.1", 5)),
    ],
)
def test_a_brokers_address(url: str, address: tuple[str, int]) -> None:
    assert split_url(url) == address


@pytest.mark.parametrize("url", ["", "qbroker://", "redis://x", "qbroker://x:0", "qbroker://u@x"])
def test_what_is_no_address_is_refused(command: Command, url: str) -> None:
    with pytest.raises(ValueError, match="write qbroker://localhost:7717"):
        split_url(url)


# --- The log


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, shared_daemon: Any) -> Path:
    """The data folder of a broker that took two messages and stopped."""
    daemon = type(shared_daemon)(tmp_path_factory.mktemp("stopped") / "data")
    peer = daemon.connect().shake_hands()
    raw = Message("mail", b"secret").pack() + Message("mail", b"secret").pack()
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=2, raw=raw))
    peer.expect(Published)
    peer.close()
    assert daemon.stop()[0] == Exit.OK
    return daemon.data


def test_dump_prints_a_line_a_record_and_no_body(command: Command, stopped: Path) -> None:
    lines = command("log", "dump", stopped).stdout.splitlines()
    kinds = [line.split()[2] for line in lines]
    assert kinds[0] == "Booted"
    assert "Published" in kinds
    positions = [int(line.split()[0]) for line in lines]
    assert positions == sorted(positions)
    assert "secret" not in "".join(lines)


def test_dump_from_a_position_and_only_so_many(command: Command, stopped: Path) -> None:
    lines = command("log", "dump", stopped).stdout.splitlines()
    second = lines[1].split()[0]
    assert command("log", "dump", stopped, "--from", second).stdout.splitlines() == lines[1:]
    shown = command("log", "dump", stopped, "--from", second, "--limit", 1).stdout
    assert shown.splitlines() == [lines[1]]


def test_verify_says_what_is_intact_and_touches_nothing(command: Command, stopped: Path) -> None:
    before = {path: path.read_bytes() for path in (stopped / "log").iterdir()}
    for folder in (stopped, stopped / "log"):
        done = command("log", "verify", folder)
        assert re.fullmatch(
            r"intact: \d+ records and \d+ positions in \d+ batches, 1 to \d+\n", done.stdout
        )
    lock = stopped / "log" / "LOCK"
    after = {path: path.read_bytes() for path in (stopped / "log").iterdir()}
    assert before | {lock: b""} == after | {lock: b""}


def test_verify_finds_a_flipped_bit(command: Command, stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for path in (stopped / "log").iterdir():
        content = bytearray(path.read_bytes())
        at = content.find(b"secret")
        if at >= 0:
            content[at] ^= 1
        (folder / path.name).write_bytes(content)
        (folder / path.name).chmod(path.stat().st_mode)
    assert "is damaged at byte" in fails(command("log", "verify", tmp_path), Exit.CORRUPT)
    assert "is damaged at byte" in fails(command("log", "dump", folder), Exit.CORRUPT)


def test_the_log_of_a_running_broker_is_left_alone(command: Command, start: Any) -> None:
    daemon = start()
    said = fails(command("log", "verify", daemon.data), Exit.LOCKED)
    assert f"pid {daemon.process.pid} " in said
    daemon.stop(signal.SIGKILL)
    assert command("log", "verify", daemon.data).returncode == Exit.OK


@pytest.mark.parametrize("name", ["dump", "verify"])
def test_a_folder_without_a_log_is_said(command: Command, tmp_path: Path, name: str) -> None:
    said = fails(command("log", name, tmp_path), Exit.FAILED)
    assert said == f"{tmp_path} holds no log: give the folder that --data names"
    fails(command("log", name, tmp_path / "none"), Exit.FAILED)
    assert list(tmp_path.iterdir()) == []


# --- Showing


def test_a_table_is_aligned_numbers_to_the_right() -> None:
    rows = [("a", 1, 0.5, ""), ("long", 12345, 10.0, 3)]
    assert table(("name", "count", "share", "n"), rows).splitlines() == [
        "name   count   share  n",
        "a          1   0.500",
        "long  12,345  10.000  3",
    ]
    assert table(("a", "b"), []) == "a  b"
    assert table(("a",), [("x",)], colour=True).startswith("\x1b[1ma\x1b[0m\n")


def test_names_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in table(("q",), [("\x1b[2Jboo\n",)])


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (12_340, "12.3s"),
        (90_000, "1.5m"),
        (5_400_000, "1.5h"),
        (200_000_000, "2.3d"),
    ],
)
def test_spans_of_time_in_their_largest_unit(ms: int, shown: str) -> None:
    assert ago(ms) == shown


def test_a_failure_in_one_line() -> None:
    assert one_line(Failure("ValueError", "no\nmore", "").pack()) == "ValueError: no"
    assert one_line(b"poison") == "poison"
    assert one_line(b"") == ""


def test_peeked_bytes_that_end_early_are_said() -> None:
    with pytest.raises(ValueError, match="end inside one"):
        peeked_messages(Peeked(correlation=1, count=1, raw=b"x"))
    assert encode(Peeked(correlation=1, count=0))
