"""Patterns of topics by their words: which of very many fit a topic, in a step or two a word.

orders.*.paid, orders.#      root -- orders -+- * -- paid: one
                                             '- #: another
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from qprotocol.topics import ANY_WORD, ANY_WORDS, words_of

T = TypeVar("T")


class Node(Generic[T]):
    """What follows on some words of a pattern."""

    __slots__ = ("children", "repeats", "values")

    def __init__(self, *, repeats: bool = False) -> None:
        self.children: dict[str, Node[T]] = {}
        self.values: dict[T, None] = {}
        """Whose pattern ends here, in the order they came."""
        self.repeats = repeats
        """Whether more words may be where this is: it stands for "#"."""


class Topics(Generic[T]):
    """Values under patterns. A value may have several; under one pattern it is once."""

    __slots__ = ("root", "size")

    def __init__(self) -> None:
        self.root: Node[T] = Node()
        self.size = 0
        """Values, each counted once a pattern."""

    def add(self, pattern: str, value: T) -> None:
        """Topics that fit the pattern lead to the value. It must not be under it yet."""
        node = self.root
        for word in words_of(pattern):
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = Node(repeats=word == ANY_WORDS)
            node = child
        assert value not in node.values, (pattern, value)
        node.values[value] = None
        self.size += 1

    def discard(self, pattern: str, value: T) -> None:
        """The value is not under that pattern any more; it must be. Empty branches go."""
        path, node = [], self.root
        for word in words_of(pattern):
            path.append((node, word))
            node = node.children[word]
        del node.values[value]
        self.size -= 1
        while path and not node.values and not node.children:
            node, word = path.pop()
            del node.children[word]

    def match(self, topic: str) -> list[T]:
        """Values under patterns that fit, each once.

        Costs a step for each word and each place in the tree that fits the words so far; no
        place is looked at twice for a word, however many "#" there are.
        """
        active = self._reached([self.root])
        for word in words_of(topic):
            following = []
            for node in active:
                following += [node.children[w] for w in (word, ANY_WORD) if w in node.children]
                if node.repeats:
                    following.append(node)
            active = self._reached(following)
        return list(dict.fromkeys(value for node in active for value in node.values))

    def _reached(self, nodes: "Iterable[Node[T]]") -> "list[Node[T]]":
        """The nodes, and those that no further word leads to; each once."""
        out = list(dict.fromkeys(nodes))
        seen = set(out)
        for node in out:  # grows while it is walked
            child = node.children.get(ANY_WORDS)
            if child is not None and child not in seen:
                seen.add(child)
                out.append(child)
        return out
