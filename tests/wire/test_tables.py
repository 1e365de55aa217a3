"""PROTOCOL.md says what the code says, and the code says something about everything."""

from collections.abc import Callable
from inspect import getdoc
from runpy import run_path

import pytest

from qprotocol import frames as f
from qprotocol import tables
from qprotocol.errors import ERRORS

TEXT = tables.DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path) -> Callable[[str], object]:
    """A PROTOCOL.md of one's own, with one text replaced."""

    def made(old: str = "", new: str = ""):
        assert old in TEXT
        path = tmp_path / "PROTOCOL.md"
        path.write_text(TEXT.replace(old, new, 1) if old else TEXT, encoding="utf-8")
        return path

    return made


# The command.


def test_the_document_is_up_to_date():
    """Run ``python -m qprotocol.tables`` after a change of the protocol."""
    assert tables.main(["--check"]) == 0


def test_a_fresh_document_is_left_alone(copy, capsys):
    """Nothing to do, nothing said, nothing written."""
    path = copy()
    before = path.stat().st_mtime_ns
    assert tables.main([], path) == 0
    assert path.stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


def test_check_says_which_file_and_table_is_stale(copy, capsys):
    """And changes nothing."""
    path = copy("| 0x10 | **Publish**", "| 0x10 | **Publsih**")
    assert tables.main(["--check"], path) == 1
    assert capsys.readouterr().out == (
        "PROTOCOL.md is stale (frames): run python -m qprotocol.tables\n"
    )
    assert "Publsih" in path.read_text(encoding="utf-8")


def test_stale_tables_are_written_anew_and_prose_is_kept(copy, capsys):
    """What stands between the marks, and nothing else."""
    path = copy("| 0x10 | **Publish**", "| 0x10 | **Publsih**")
    assert tables.main([], path) == 0
    assert path.read_text(encoding="utf-8") == TEXT
    assert capsys.readouterr().out == "PROTOCOL.md: wrote frames\n"


def test_lost_marks_are_an_error(copy):
    """A table that went missing is not taken for one that is fine."""
    with pytest.raises(ValueError, match="the marks of the table 'states' are missing"):
        tables.main(["--check"], copy("<!-- end of states -->"))


def test_the_command_checks_the_document_beside_it(monkeypatch):
    """As the Makefile calls it."""
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    with pytest.raises(SystemExit) as caught:
        run_path(tables.__file__, run_name="__main__")
    assert caught.value.code == 0


def test_unknown_arguments_are_refused(capsys):
    """With what there is."""
    assert tables.main(["--chekc"]) == 2
    assert "takes --check or nothing" in capsys.readouterr().out


# What the tables are made from.


def test_every_frame_says_what_it_is():
    """A docstring of its own, and whether it is answered if a client sends it."""
    for kind in f.FRAMES.values():
        assert kind.__doc__ != f.Frame.__doc__
        said = getdoc(kind) or ""
        assert said
        if kind.SENDER in (f.CLIENT, f.BOTH):
            assert "nswer" in said, f"{kind.__name__} does not say what answers it"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("limits.py", ""),
        ("states.py", "State"),
        ("conversation.py", "Phase"),
        ("options.py", "RetryPolicy"),
    ],
)
def test_every_constant_says_why(source, name):
    """Limits, states, phases and options: a sentence each."""
    missing = [constant for constant, text in tables.documented(source, name).items() if not text]
    assert missing == ["__hash__"] * (name == "Phase")


def test_every_error_has_a_meaning():
    """A sentence, under its own code; what closes is certain not to be done."""
    for code, row in ERRORS.items():
        assert code == row.code
        assert row.meaning.endswith(".")
        assert row.definite or not row.closes
        assert f"| {code} |" in TEXT


def test_every_frame_stands_in_the_document():
    """With its number."""
    for number, kind in f.FRAMES.items():
        assert f"| 0x{number:02x} | **{kind.__name__}** |" in TEXT


def test_optional_fields_show_their_defaults():
    """As a reader in another language would write them."""
    assert tables.field_list(f.Hello).endswith(
        'session: bin = "", member: int = 0, heartbeat_ms: int = 0`'
    )
    assert "retryable: bool = false" in tables.field_list(f.Error)
    assert tables.field_list(f.Bye) == ""
