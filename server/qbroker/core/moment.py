"""Time as the core sees it: two numbers that come in with every call."""

from typing import NamedTuple


class Now(NamedTuple):
    """One reading of both clocks."""

    wall_ms: int
    """Since 1970: due times, expiry, results' time to live."""
    mono_ms: int
    """Never goes back: leases, sessions, waiting."""
