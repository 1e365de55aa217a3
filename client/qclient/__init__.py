"""What applications import. Everything public is here; modules say how it works."""

from qclient.app import App
from qclient.batches import PartialPublish
from qclient.canvas.groupresult import GroupResult
from qclient.canvas.steps import chain, chord, group
from qclient.context import Context
from qclient.deadletters import DeadLetter
from qclient.events import Event
from qclient.exceptions import (
    ConnectError,
    ConnectionLost,
    DuplicateId,
    NoExchange,
    NoRoute,
    NotDone,
    NotUnique,
    OptionsDiffer,
    OutcomeUnknown,
    QBrokerError,
    QueuePaused,
    RefusedError,
    SyncSubtaskError,
    UnknownId,
)
from qclient.failures import ResultTimeout, TaskFailure, TaskRevoked
from qclient.result import AsyncResult
from qclient.serialization import DecodeError
from qclient.shared import current_app, shared_task
from qclient.signature import Signature
from qclient.task import Task
from qclient.topology import Binding, Broadcast, Exchange, Queue
from qclient.verdicts import (
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    SoftCancelled,
    SoftTimeLimitExceeded,
)

__all__ = [
    "App",
    "AsyncResult",
    "Binding",
    "Broadcast",
    "ConnectError",
    "ConnectionLost",
    "Context",
    "DeadLetter",
    "DecodeError",
    "DuplicateId",
    "Event",
    "Exchange",
    "GroupResult",
    "Ignore",
    "MaxRetriesExceededError",
    "NoExchange",
    "NoRoute",
    "NotDone",
    "NotUnique",
    "OptionsDiffer",
    "OutcomeUnknown",
    "PartialPublish",
    "QBrokerError",
    "Queue",
    "QueuePaused",
    "RefusedError",
    "Reject",
    "ResultTimeout",
    "Retry",
    "Signature",
    "SoftCancelled",
    "SoftTimeLimitExceeded",
    "SyncSubtaskError",
    "Task",
    "TaskFailure",
    "TaskRevoked",
    "UnknownId",
    "chain",
    "chord",
    "current_app",
    "group",
    "shared_task",
]
