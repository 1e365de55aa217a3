"""The links of a graph: which of the messages published together run behind which.

Messages published in one frame, parts included, may be nodes of one graph; then all of them are.
Each is MARKED and has a meta field with the links that begin with it::

    4 NODE | delay_ms u64 | for each link: kind u8 | sources u32 | first u32 | targets u32 |

A link is between neighbours: from this message and those behind it, ``sources`` in all, to each of
``targets`` messages from ``first`` on, which is an index in what was published and behind all of
the sources. So there is no way round, and a group of a hundred thousand is one link. A node that
links lead to is held until each is met by each of its sources, and then waits in its queue,
``delay_ms`` later.

    kind      met by what became of a source     brings
    SUCCESS   SUCCESS                            its result
    AFTER     SUCCESS                            nothing
    ERROR     FAILURE, REVOKED                   the failure
    DONE      any of them                        result or failure

A link that cannot be met any more ends its targets: as the source has ended, or, where that did
well, as SKIPPED: nobody needs them.
"""

from struct import Struct
from typing import NamedTuple, Self

_DELAY = Struct("<Q")
LINK = Struct("<BIII")
LINKS_MAX = (0xFFFF - _DELAY.size) // LINK.size
"""That begin with one node."""

SUCCESS, AFTER, ERROR, DONE = 1, 2, 3, 4
KINDS = {"success": SUCCESS, "after": AFTER, "error": ERROR, "done": DONE}
BRINGS = frozenset((SUCCESS, ERROR, DONE))
"""Kinds whose targets are given what became of the sources."""


class Link(NamedTuple):
    """From a node and those behind it to ``targets`` neighbours from ``first`` on."""

    kind: int
    first: int
    sources: int = 1
    targets: int = 1


class Node(NamedTuple):
    """What a message says of its place in a graph."""

    links: tuple[Link, ...] = ()
    delay_ms: int = 0
    """How long it waits once it is held no more."""

    def pack(self) -> bytes:
        """The value of the field NODE. Raises ValueError naming what is out of bounds."""
        if len(self.links) > LINKS_MAX:
            raise ValueError(
                f"{len(self.links)} links begin with one node: at most {LINKS_MAX}; "
                "those to neighbours can be one"
            )
        for link in self.links:
            check_link(link)
        return _DELAY.pack(self.delay_ms) + b"".join(
            LINK.pack(kind, sources, first, targets) for kind, first, sources, targets in self.links
        )

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """The node in ``value``. Raises ValueError for any bytes that ``pack`` would not give."""
        if len(value) < _DELAY.size or (len(value) - _DELAY.size) % LINK.size:
            raise ValueError(f"the meta field NODE has {len(value)} bytes: no whole links")
        (delay_ms,) = _DELAY.unpack_from(value)
        rows = LINK.iter_unpack(value[_DELAY.size :])
        links = tuple(Link(kind, first, s, targets) for kind, s, first, targets in rows)
        for link in links:
            check_link(link)
        return cls(links, delay_ms)


def check_link(link: Link) -> None:
    """Raise ValueError for a kind that is none, or a link from or to nobody."""
    if link.kind not in KINDS.values():
        raise ValueError(f"a link of kind {link.kind}: there are {', '.join(KINDS)}")
    if not (link.sources and link.targets) or link.first + link.targets > 1 << 32:
        raise ValueError(
            f"a link from {link.sources} messages to {link.targets} from {link.first} on"
        )
