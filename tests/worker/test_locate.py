"""Where ``-A`` points."""

import sys

import pytest

from qworker.locate import AppNotFound, find_app

ONE = "from qclient import App\n{name} = App({name!r}, set_as_current=False)\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes modules that can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("files", "where", "found"),
    [
        ({"one.py": ONE.format(name="app")}, "one", "app"),
        ({"two.py": ONE.format(name="celery")}, "two", "celery"),
        ({"three.py": ONE.format(name="queue")}, "three", "queue"),
        ({"four.py": ONE.format(name="queue")}, "four:queue", "queue"),
        ({"five.py": ONE.format(name="queue")}, "five.queue", "queue"),
        ({"six/__init__.py": "", "six/app.py": ONE.format(name="app")}, "six", "app"),
        ({"seven/__init__.py": "", "seven/celery.py": ONE.format(name="app")}, "seven", "app"),
        ({"ten/__init__.py": "", "ten/jobs.py": ONE.format(name="app")}, "ten.jobs", "app"),
        (
            {"nine.py": ONE.format(name="first") + ONE.format(name="app")},
            "nine",
            "app",
        ),
    ],
)
def test_it_is_found(module, files, where, found):
    """By module, attribute, package or submodule, as Celery finds it."""
    for path, text in files.items():
        module(path, text)
    assert find_app(where).name == found


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", "empty", "has no App in it"),
        (ONE.format(name="a") + ONE.format(name="b"), "several", "has several apps"),
        (ONE.format(name="work"), "typo:wrok", "did you mean -A typo:work"),
        ("app = 1\n", "number:app", "is a int, not an App"),
    ],
)
def test_what_is_wrong_is_said(module, text, where, said):
    """The message says what was found instead."""
    module(f"{where.partition(':')[0]}.py", text)
    with pytest.raises(AppNotFound, match=said):
        find_app(where)


def test_an_import_error_inside_is_the_modules_own(module):
    """A module that is there and fails is not "not found"."""
    module("failing.py", "import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        find_app("failing")
