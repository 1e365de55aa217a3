"""Topics: words with dots between them, and the patterns that fit them.

    orders.*.paid     "*" is exactly one word
    orders.#          "#" is any number of words, none too

An empty topic has no words: of all patterns only "#" fits it, and the empty one.
"""

from qprotocol.limits import PATTERN_WORDS_MAX, TOPIC_BYTES_MAX

ANY_WORD, ANY_WORDS = "*", "#"


def words_of(topic: str) -> list[str]:
    """The words of a topic or pattern. Two dots in a row have an empty word between them."""
    return topic.split(".") if topic else []


def check_topic(topic: str) -> None:
    """The topic may be published to. Raises ValueError saying why not."""
    size = len(topic.encode(errors="replace"))
    if size > TOPIC_BYTES_MAX:
        raise ValueError(f"the topic {topic:.80}... has {size} bytes: at most {TOPIC_BYTES_MAX}")


def check_pattern(pattern: str) -> None:
    """The pattern is one. Raises ValueError saying why not."""
    check_topic(pattern)
    words = words_of(pattern)
    if len(words) > PATTERN_WORDS_MAX:
        raise ValueError(f"the pattern {pattern!r} has {len(words)} words: {PATTERN_WORDS_MAX}")
    for word in words:
        for sign in (ANY_WORD, ANY_WORDS):
            if sign in word and word != sign:
                raise ValueError(
                    f"the pattern {pattern!r} has {sign} within the word {word!r}: it stands for "
                    "whole words, as in orders.*.paid or orders.#"
                )
