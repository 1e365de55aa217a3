"""The classes of errors against the protocol's table, and failures as data."""

from __future__ import annotations

import pickle

import pytest

from qclient import exceptions as e
from qclient.failures import (
    KINDS,
    ResultTimeout,
    TaskFailure,
    describe,
    failure_of,
    raised,
    task_failure,
)
from qclient.verdicts import Reject, Retry
from qprotocol.errors import ERRORS


def test_every_code_has_the_exception_named_for_it() -> None:
    named = {code: "".join(word.capitalize() for word in code.split("_")) for code in ERRORS}
    assert {code: kind.__name__ for code, kind in e.REFUSALS.items()} == named


@pytest.mark.parametrize("code", ERRORS)
def test_a_refusal_says_whether_it_was_done(code: str) -> None:
    error = e.refusal(code, "no")
    assert isinstance(error, e.NotDone) is ERRORS[code].definite
    assert isinstance(error, e.OutcomeUnknown) is not ERRORS[code].definite


def test_an_unknown_code_keeps_what_the_broker_said_of_it() -> None:
    assert isinstance(e.refusal("NEW", "no", definite=True), e.NotDone)
    assert isinstance(e.refusal("NEW", "no", definite=False), e.OutcomeUnknown)
    assert e.refusal("NEW", "no").code == "NEW"


def test_errors_survive_pickling() -> None:
    for error in (
        e.refusal("DUPLICATE_ID", "no", True, 5, {"x": 1}),
        task_failure("KeyError", "'x'", "trace"),
        task_failure("shop.Broken", "bad"),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert vars(back) == vars(error)


@pytest.mark.parametrize("name", KINDS)
def test_a_failure_of_pythons_own_kind_is_caught_as_such(name: str) -> None:
    error = task_failure(f"builtins.{name}", "told", "Traceback ...")
    assert isinstance(error, TaskFailure)
    assert isinstance(error, __builtins__[name])
    assert str(error) == f"builtins.{name}: told"
    assert error.traceback == "Traceback ..."


def test_a_foreign_failure_is_data_and_no_class_of_that_name() -> None:
    error = task_failure("os.system", "boo")
    assert type(error) is TaskFailure


def test_bytes_that_are_no_failure_are_one_all_the_same() -> None:
    assert raised(b"junk").kind == "UnknownError"


def test_a_failure_describes_its_exception() -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    try:
        raise KeyError("x")
    except KeyError as error:
        failure = failure_of(error)
    assert (failure.kind, failure.message) == ("KeyError", "'x'")
    assert "test_exceptions.py" in failure.traceback
    assert describe(Shy()) == "<its message cannot be shown: RuntimeError>"
    assert failure_of(Shy()).kind.endswith("Shy")
    assert raised(failure.pack()).kind == "KeyError"


def test_verdicts_keep_what_the_worker_needs() -> None:
    assert Reject("bad input", requeue=True).requeue
    assert Reject(3).reason == "3"
    assert Retry(delay_ms=5).delay_ms == 5
    assert issubclass(ResultTimeout, TimeoutError)
