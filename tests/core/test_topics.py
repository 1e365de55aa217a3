"""The tree of patterns against a matcher that tries everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qbroker.core.topics import Topics

WORDS = st.sampled_from(["a", "b", "", "*", "#"])
KEYS = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=6).map(".".join)
PATTERNS = st.lists(WORDS, max_size=6).map(".".join)


def fits(pattern: list[str], words: list[str]) -> bool:
    """By the definition, word for word."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return fits(rest, words) or (bool(words) and fits(pattern, words[1:]))
    return bool(words) and first in ("*", words[0]) and fits(rest, words[1:])


def split(text: str) -> list[str]:
    return text.split(".") if text else []


@given(st.lists(st.tuples(PATTERNS, st.integers(0, 5)), max_size=20), st.data())
def test_the_tree_finds_what_the_definition_says(pairs, data) -> None:
    """Whatever was added, and part of it taken away again."""
    topics: Topics[int] = Topics()
    there = dict.fromkeys(pairs)
    for pattern, value in there:
        topics.add(pattern, value)
    for pair in [pair for pair in there if data.draw(st.booleans())]:
        topics.discard(*pair)
        del there[pair]
    assert topics.size == len(there)
    for key in data.draw(st.lists(KEYS, min_size=1, max_size=10)):
        found = topics.match(key)
        wanted = {value for pattern, value in there if fits(split(pattern), split(key))}
        assert len(found) == len(set(found))
        assert set(found) == wanted, key


def test_what_was_added_and_taken_away_leaves_nothing() -> None:
    topics: Topics[str] = Topics()
    for pattern in ("a.b.#", "a.b", "a.*.c", ""):
        topics.add(pattern, "x")
    for pattern in ("a.b", "a.b.#", "", "a.*.c"):
        topics.discard(pattern, "x")
    assert not topics.root.children
    assert not topics.root.values
    assert topics.size == 0


def test_patterns_made_to_be_slow_are_not() -> None:
    """By trial and error this would take longer than the universe lasts."""
    topics: Topics[int] = Topics()
    topics.add(".".join(["#", "a"] * 16), 1)
    assert topics.match(".".join(["a"] * 127)) == [1]
    assert topics.match(".".join(["a"] * 126 + ["b"])) == []
