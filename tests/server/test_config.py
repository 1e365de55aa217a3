"""The settings table: what may be written, who wins, and every sentence that refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker import config as settings
from qbroker.config import SETTINGS, Config, ConfigError, load


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "qbroker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(**where: object) -> str:
    """The sentence with which ``load`` refuses ``flags``, ``environ`` or ``toml_path``."""
    where = {"flags": {}, "environ": {}, "toml_path": None} | where
    with pytest.raises(ConfigError) as caught:
        load(**where)
    error = caught.value
    assert str(error) == f"{error.what}: {error.means}; {error.do}"
    return str(error)


# --- Who wins


def test_nothing_said_means_the_defaults() -> None:
    config = load({}, {}, None)
    assert config == Config()
    assert {row.source for row in settings.describe(config)} == {"default"}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    path = toml(tmp_path, "turn_ms = 7\ngrace_ms = 7\npoison_max = 7\n")
    environ = {"QBROKER_TURN_MS": "8", "QBROKER_GRACE_MS": "8"}
    config = load({"turn_ms": "9", "credit_max": None}, environ, path)
    assert (config.turn_ms, config.grace_ms, config.poison_max, config.credit_max) == (
        *(9, 8, 7),
        10_000,
    )
    assert config.sources == {"turn_ms": "flag", "grace_ms": "env", "poison_max": "file"}


def test_a_value_that_is_overruled_must_still_be_right(tmp_path: Path) -> None:
    path = toml(tmp_path, "turn_ms = 0\n")
    assert "turn_ms in " in refusal(flags={"turn_ms": "9"}, toml_path=path)


def test_other_peoples_variables_are_left_alone() -> None:
    environ = {"HOME": "/", "QBROKERAGE": "1", "QBROKER_CONFIG": "a.toml", "QBROKER_URL": "q://b"}
    assert load({}, environ, None) == Config()


@pytest.mark.parametrize(
    "variable",
    [
        "QBROKER_SERVICE_HOST",
        "QBROKER_SERVICE_PORT",
        "QBROKER_SERVICE_PORT_PROTOCOL",
        "QBROKER_PORT",
        "QBROKER_PORT_7717_TCP",
        "QBROKER_PORT_7717_TCP_ADDR",
        "QBROKER_HTTP_SERVICE_HOST",
        "QBROKER_HTTP_PORT_7718_TCP_PROTO",
    ],
)
def test_a_kubernetes_service_of_our_name_does_no_harm(variable: str) -> None:
    assert load({}, {variable: "tcp://10.0.0.1:7717"}, None) == Config()


# --- What may be written


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500ms", 500),
        ("10s", 10_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
        ("1234", 1234),
        ("1_000", 1000),
        (" 2 s ", 2000),
        ("0", 0),
    ],
)
def test_durations(text: str, value: int) -> None:
    assert load({}, {"QBROKER_GRACE_MS": text}, None).grace_ms == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64MiB", 2**26),
        ("512KiB", 2**19),
        ("1GiB", 2**30),
        ("300000B", 300_000),
        ("300000", 300_000),
    ],
)
def test_sizes(text: str, value: int) -> None:
    flags = {"window_bytes_max": text}
    assert load(flags, {}, None).window_bytes_max == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("YES", True),
        ("on", True),
        ("1", True),
        ("false", False),
        ("no", False),
        ("Off", False),
        ("0", False),
    ],
)
def test_yes_and_no(text: str, *, value: bool) -> None:
    assert load({}, {"QBROKER_INSECURE_LISTEN": text}, None).insecure_listen is value


def test_the_file_takes_toml_types_and_text(tmp_path: Path) -> None:
    text = 'data = "d"\nturn_ms = 6\ngrace_ms = "1m"\ninsecure_listen = true\nhttp = ""\n'
    config = load({}, {}, toml(tmp_path, text))
    assert config == Config(
        data=Path("d"), turn_ms=6, grace_ms=60_000, insecure_listen=True, http=""
    )


def test_flags_take_what_a_command_line_parser_gives() -> None:
    flags = {"data": Path("/d"), "insecure_listen": True, "turn_ms": 6, "fsync": "never"}
    config = load(flags, {}, None)
    assert config == Config(data=Path("/d"), insecure_listen=True, turn_ms=6, fsync="never")


def test_addresses_come_as_pairs() -> None:
    config = load({"listen": "[::1]:0", "http": "localhost:80"}, {}, None)
    assert config.listen_address == ("::1", 0)
    assert config.http_address == ("localhost", 80)
    assert load({"http": ""}, {}, None).http_address is None


@given(st.sampled_from([s for s in SETTINGS.values() if s.bounds]), st.data())
def test_every_value_in_bounds_can_be_written_as_it_is_shown(
    row: settings.Setting, data: st.DataObject
) -> None:
    value = data.draw(st.integers(*row.bounds))
    assert settings.value_of(row, row.kind.show(value), row.flag) == value
    assert settings.value_of(row, value, row.flag) == value


# --- What is refused, and how


UNKNOWN = [
    ({"environ": {"QBROKER_LISEN": "x"}},
     'unknown setting "QBROKER_LISEN" in the environment: no such setting; '
     'did you mean "QBROKER_LISTEN"?'),
    ({"flags": {"segment_byte": "x"}},
     'unknown setting "segment_byte" among the flags: no such setting; '
     'did you mean "segment_bytes"?'),
    ({"environ": {"QBROKER_XYZZY": "x"}},
     'unknown setting "QBROKER_XYZZY" in the environment: no such setting; '
     'see "qbroker config" for all'),
]  # fmt: skip


@pytest.mark.parametrize(("where", "sentence"), UNKNOWN)
def test_an_unknown_setting_is_named_with_the_nearest(where: dict, sentence: str) -> None:
    assert refusal(**where) == sentence


def test_an_unknown_key_names_its_file(tmp_path: Path) -> None:
    path = toml(tmp_path, 'lisen = "127.0.0.1:1"\n')
    assert refusal(toml_path=path) == (
        f'unknown setting "lisen" in {path}: no such setting; did you mean "listen"?'
    )


def test_a_table_in_the_file_is_an_unknown_setting(tmp_path: Path) -> None:
    path = toml(tmp_path, "[server]\nturn_ms = 5\n")
    assert refusal(toml_path=path).startswith(f'unknown setting "server" in {path}: ')


VALUES = [
    ("grace_ms", "soon", 'QBROKER_GRACE_MS is "soon": not a duration; '
     "write 500ms, 10s, 5m, 1h, 7d or a number of ms"),
    ("grace_ms", "1.5s", 'QBROKER_GRACE_MS is "1.5s": not a duration; '
     "write 500ms, 10s, 5m, 1h, 7d or a number of ms"),
    ("segment_bytes", "64MB", 'QBROKER_SEGMENT_BYTES is "64MB": not a size; '
     "write 64MiB, 512KiB or a number of bytes"),
    ("poison_max", "-1", 'QBROKER_POISON_MAX is "-1": not a whole number of 0 or more; '
     "write 10000 or 10_000"),
    ("poison_max", "1__0", 'QBROKER_POISON_MAX is "1__0": not a whole number of 0 or more; '
     "write 10000 or 10_000"),
    ("insecure_listen", "maybe", 'QBROKER_INSECURE_LISTEN is "maybe": not a yes or no; '
     "write true or false"),
    ("fsync", "sometimes", 'QBROKER_FSYNC is "sometimes": not a choice; '
     "write always or interval or never"),
    ("data", "", 'QBROKER_DATA is "": not a path; write /var/lib/qbroker'),
    ("listen", "7717", 'QBROKER_LISTEN is "7717": not an address; '
     "write 127.0.0.1:7717 or [::1]:7717"),
    ("listen", "", 'QBROKER_LISTEN is "": not an address; write 127.0.0.1:7717 or [::1]:7717'),
    ("listen", "127.0.0.1:65536", 'QBROKER_LISTEN is "127.0.0.1:65536": not an address; '
     "write 127.0.0.1:7717 or [::1]:7717"),
    ("listen", "[::z]:1", 'QBROKER_LISTEN is "[::z]:1": not an address; '
     "write 127.0.0.1:7717 or [::1]:7717"),
    ("listen", "[:::]:1", 'QBROKER_LISTEN is "[:::]:1": not an address; '
     "write 127.0.0.1:7717 or [::1]:7717"),
    ("http", "off", 'QBROKER_HTTP is "off": not an address; write 127.0.0.1:7718 or "" for none'),
    ("credit_max", "0", "QBROKER_CREDIT_MAX is 0: less than allowed; choose 1 to 1000000"),
    ("turn_ms", "1m", "QBROKER_TURN_MS is 1m: more than allowed; choose 1ms to 1s"),
    ("body_bytes_max", "65MiB",
     "QBROKER_BODY_BYTES_MAX is 65MiB: more than allowed; choose 1KiB to 64MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "sentence"), VALUES)
def test_a_bad_value_says_what_may_be_written(name: str, text: str, sentence: str) -> None:
    assert refusal(environ={SETTINGS[name].environment: text}) == sentence


def test_a_bad_value_is_named_as_the_person_wrote_it(tmp_path: Path) -> None:
    path = toml(tmp_path, "credit_max = [1]\n")
    assert refusal(toml_path=path).startswith(f'credit_max in {path} is "[1]": not a whole number')
    assert refusal(flags={"credit_max": 0}).startswith("--credit-max is 0: less than allowed; ")


TOGETHER = [
    ({"segment_bytes": "1MiB"},
     "batch_bytes_max is 8MiB and segment_bytes is 1MiB: a batch would not fit into a log file; "
     "lower batch_bytes_max or raise segment_bytes"),
    ({"upload_bytes_max": "512KiB", "result_bytes_max": "0"},
     "body_bytes_max is 1MiB and upload_bytes_max is 512KiB: the largest body could never arrive; "
     "lower body_bytes_max or raise upload_bytes_max"),
    ({"upload_bytes_max": "512KiB", "body_bytes_max": "1KiB"},
     "result_bytes_max is 1MiB and upload_bytes_max is 512KiB: "
     "the largest result could never arrive; lower result_bytes_max or raise upload_bytes_max"),
    ({"delay_max_ms": "1h"},
     "retry_max_ms is 1d and delay_max_ms is 1h: the longest retry would be refused as a delay; "
     "lower retry_max_ms or raise delay_max_ms"),
    ({"session_timeout_ms": "15s"},
     "heartbeat_ms is 10s and session_timeout_ms is 15s: one late heartbeat would lose a session; "
     "lower heartbeat_ms or raise session_timeout_ms"),
    ({"listen": "0.0.0.0:7717"},
     "listen is 0.0.0.0:7717: without TLS, whoever reaches it can run your tasks; "
     "listen on 127.0.0.1, or set insecure_listen if the network is yours alone"),
    ({"http": "broker.example:80"},
     "http is broker.example:80: without TLS, whoever reaches it can run your tasks; "
     "listen on 127.0.0.1, or set insecure_listen if the network is yours alone"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "sentence"), TOGETHER)
def test_settings_that_do_not_fit_one_another(flags: dict, sentence: str) -> None:
    assert refusal(flags=flags) == sentence


def test_insecure_listen_is_the_word_that_opens_the_door() -> None:
    flags = {"listen": "0.0.0.0:7717", "http": "[::]:7718", "insecure_listen": True}
    assert load(flags, {}, None).listen_address == ("0.0.0.0", 7717)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(toml_path=path) == (
        f"cannot read {path}: No such file or directory; give the path of a TOML file"
    )
    assert refusal(toml_path=tmp_path) == (
        f"cannot read {tmp_path}: Is a directory; give the path of a TOML file"
    )


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = toml(tmp_path, "turn_ms = \n")
    sentence = refusal(toml_path=path)
    assert sentence.startswith(f"{path} is not TOML: Invalid value (at line 1")
    assert sentence.endswith("; mend that line")
    path.write_bytes(b"\xff\xfe")
    assert refusal(toml_path=path).startswith(f"{path} is not TOML: 'utf-8' codec can't decode")


# --- The table itself


def test_every_field_is_a_setting_and_its_default_is_allowed() -> None:
    names = [row.name for row in dataclasses.fields(Config) if row.name != "sources"]
    assert list(SETTINGS) == names
    for row in SETTINGS.values():
        assert settings.value_of(row, row.kind.show(row.default), row.flag) == row.default


def test_a_name_is_the_same_everywhere() -> None:
    row = SETTINGS["heartbeat_ms"]
    assert (row.flag, row.environment) == ("--heartbeat-ms", "QBROKER_HEARTBEAT_MS")


@pytest.mark.parametrize("row", SETTINGS.values(), ids=lambda row: row.name)
def test_a_row_reads_well(row: settings.Setting) -> None:
    assert row.why[0].isupper()
    assert row.why.endswith(".")
    suffix = {"ms": "_ms", "bytes": ("_bytes", "_bytes_max")}
    if row.kind.unit:
        assert row.name.endswith(suffix[row.kind.unit]) or "_max_ms" in row.name
    else:
        assert "_ms" not in row.name
        assert "_bytes" not in row.name


def test_settings_in_force_are_told_with_their_source() -> None:
    rows = {row.name: row for row in settings.describe(load({"grace_ms": "90s"}, {}, None))}
    assert list(rows) == list(SETTINGS)
    assert rows["grace_ms"].value == "90s"
    assert rows["grace_ms"].source == "flag"
    assert rows["grace_ms"].unit == "ms"
    assert rows["segment_bytes"].value == "64MiB"
    assert rows["segment_bytes"].source == "default"
    assert rows["insecure_listen"].value == "false"


def test_the_documented_table_has_a_line_for_each_setting() -> None:
    lines = settings.markdown().splitlines()
    assert len(lines) == 2 + len(SETTINGS)
    assert lines[2].startswith("| `data` | `qbroker-data` | ")
    assert all(line.count("|") == 5 for line in lines)
