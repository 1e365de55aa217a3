"""What a member needs to know to do its work: plain values, the same for all of a worker's."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from qclient.link import Address
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.frames import Hello
from qprotocol.options import WEIGHTED

HEARTBEAT_MS = 10_000
"""Asked for; the broker says what it will be. Three missed ones are a lost worker."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Where the broker is, which session is ours, and what to consume."""

    broker: str
    session: str
    """The session's 16 bytes, in hexadecimal."""
    name: str
    host: str
    app: str
    queues: list[str]
    level: str
    log_format: str
    pool: str
    queue_order: str = WEIGHTED
    queue_weights: dict[str, int] = field(default_factory=dict)
    max_tasks_per_child: int = 0
    topology: list[str] = field(default_factory=list)
    """Frames that declare exchanges and queues, packed: for queues that somebody deletes."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``Terms(**…)`` takes them."""
        return asdict(self)

    @property
    def address(self) -> Address:
        return Address.parse(self.broker)

    def hello(self, role: str, member: int, pid: int, tokens: bytes) -> Hello:
        """The Hello of the parent (role "worker", member 0) or of a child ("member")."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            role=role,
            client_id=f"{self.name}/{member}" if member else self.name,
            name=self.name,
            host=self.host,
            pid=pid,
            language="python",
            library="qworker",
            app=self.app,
            session=bytes.fromhex(self.session),
            member=member,
            heartbeat_ms=HEARTBEAT_MS,
            raw=tokens,
        )

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """The terms in ``given``, as ``as_dict`` gave them."""
        return cls(**given)
