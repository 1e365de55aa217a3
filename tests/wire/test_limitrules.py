"""Limit rules: what is one, and how people write rates."""

import pytest

from qprotocol.limitrules import WINDOW_MS_MAX, LimitRule, check_limit_name, parse_rate, show_rate


@pytest.mark.parametrize(
    ("text", "tokens", "window_ms", "shown"),
    [
        ("10/s", 10, 1_000, "10/s"),
        (" 10 ", 10, 1_000, "10/s"),
        ("100/m", 100, 60_000, "100/m"),
        ("1000/h", 1_000, 3_600_000, "1000/h"),
        ("5/2d", 5, 172_800_000, "5/2d"),
        ("100/5m", 100, 300_000, "100/5m"),
        ("0.5/s", 1, 2_000, "1/2s"),
        ("2.5/m", 5, 120_000, "5/2m"),
        ("3/250ms", 3, 250, "3/250ms"),
    ],
)
def test_a_rate_is_read_and_shown(text, tokens, window_ms, shown):
    """Celery's strings, a time of any length, fractions; what is shown is read as the same."""
    assert parse_rate(text) == (tokens, window_ms)
    assert show_rate(tokens, window_ms) == shown
    assert parse_rate(shown) == (tokens, window_ms)


@pytest.mark.parametrize(
    "text", ["", "ten/s", "10/", "10/y", "10 / s", "-1/s", "1e3/s", "\u0661/s"]
)
def test_what_is_no_rate_is_refused(text):
    """With an example."""
    with pytest.raises(ValueError, match="such as 10/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0/s", "4294967296/s", "1/0s", "1/367d"])
def test_a_rate_out_of_bounds_is_refused(text):
    """No rate is not a rate of nothing."""
    with pytest.raises(ValueError, match="pauses the queue"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurency": 3}, "did you mean 'concurrency'"),
        ({"zzz": 3}, "known: queue, task, per_key"),
        ({"concurrency": -1}, "concurrency is -1: a whole number from 0 to 4294967295"),
        ({"concurrency": True}, "concurrency is True"),
        ({"rate": "10/s"}, "rate is '10/s': a whole number"),
        ({"rate": 1, "burst": 0}, "burst is 0: a whole number from 1"),
        ({"rate": 1, "window_ms": WINDOW_MS_MAX + 1}, "window_ms is"),
        ({"per_key": 1, "rate": 1}, "per_key is 1"),
        ({"queue": 1, "rate": 1}, "queue is 1"),
        ({"queue": "a b", "rate": 1}, "holds ' ' at character 2"),
        ({"task": "t" * 256, "rate": 1}, "has over 255 bytes"),
        ({}, "the rule would limit nothing"),
        ({"burst": 5}, "the rule would limit nothing"),
    ],
)
def test_what_is_no_rule_is_refused(given, said):
    """With what it says, and what may be said."""
    with pytest.raises(ValueError, match=said):
        LimitRule.parse(given)


def test_a_rule_comes_back_from_its_fields():
    """As a record and a frame carry it."""
    rule = LimitRule("q", "t", per_key=True, concurrency=3, rate=10, window_ms=60_000, burst=2)
    assert LimitRule.parse(rule.as_dict()) == rule
    assert rule.shown_rate == "10/m"
    assert LimitRule(concurrency=1).shown_rate == ""


def test_a_weight_that_never_fits_is_told():
    """By the field that has no room for it."""
    assert LimitRule(concurrency=2, rate=1, burst=3).refuses(2) == ""
    assert LimitRule(concurrency=2).refuses(3) == "weight 3 is over concurrency 2"
    assert LimitRule(rate=9).refuses(2) == "weight 2 is over burst 1"


@pytest.mark.parametrize("name", ["", "n" * 256, "a\nb"])
def test_a_name_must_be_printable(name):
    """It stands in tables."""
    with pytest.raises(ValueError, match="such as a task's name"):
        check_limit_name(name)
    check_limit_name("größe: 1")
