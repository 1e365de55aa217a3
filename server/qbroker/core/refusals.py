"""How the rules say no: raised inside ``decide``, and turned into an answer by the broker."""

from qprotocol.errors import Refused


class RefusedError(Exception):
    """Raised inside the walk; ``decide`` turns it into an answer."""

    def __init__(
        self, code: str, message: str, *, retry_after_ms: int = 0, **details: object
    ) -> None:
        super().__init__(message)
        self.refused = Refused(code, message, retry_after_ms, details)
