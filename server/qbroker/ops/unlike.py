"""A command and a broker that are of different versions.

Rule 1. What a broker does not know, or does not say, is told in a sentence with both versions; a
        command never guesses what is not in an answer.
"""

from typing import Any

from qbroker.ops.exits import Exit, Trouble
from qprotocol import __version__


def unlike(where: str, version: str, what: str) -> Trouble:
    """That they do not fit, and what is to be done."""
    return Trouble(
        f"the broker at {where} is of version {version}, this command of {__version__}, and they "
        f"do not fit: {what}; use the command that came with the broker, or update the broker",
        Exit.UNLIKE,
    )


class Told(dict[str, Any]):
    """An object of a broker's answer. To ask it for what is not in it raises Trouble."""

    __slots__ = ("_version", "_where")

    def __init__(self, values: dict[str, Any], where: str, version: str) -> None:
        super().__init__(values)
        self._where, self._version = where, version

    def __missing__(self, name: str) -> Any:
        raise unlike(self._where, self._version, f'there is no "{name}" in its answer')
