"""Why messages ended without success: one table of words, for filters, tables and programs.

The broker writes a sentence, its reason, into the record that ends a message. How it begins says
which cause it is, also in logs and archives of earlier versions.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One way to end without success."""

    word: str
    begins: str
    """The beginning of every reason of this kind."""
    why: str
    is_kept: bool = True
    """Such a message is a dead letter; the others are over."""
    kind: str = "Failed"
    """The kind of the failure that is told of a task, where nobody sent one."""


OTHER = Cause("other", "", "Some other reason, of an earlier or later version.")
CAUSES: dict[str, Cause] = {
    each.word: each
    for each in (
        Cause("retries_exhausted", "failed ", "It failed, the last time its policy allows."),
        Cause("failed", "failed", "It failed once, and no policy gives it another run."),
        Cause("rejected", "rejected", "Its consumer rejected it."),
        Cause("max_crashes", "crashed", "Its workers died while they ran it: poison_max."),
        Cause("worker_lost", "its worker was lost", "Its worker died, and its acks are early."),
        Cause("max_deliveries", "handed out", "It was handed out deliveries_max times."),
        Cause(
            "length_limit",
            "overflow",
            "Its queue was over max_length or max_bytes.",
            kind="LengthLimit",
        ),
        Cause("expired", "expired", "It was too late to begin.", is_kept=False),
        Cause("cancelled", "cancelled", "Somebody cancelled it.", is_kept=False),
        Cause("dropped", "dropped", "It was a dead letter, and dropped.", is_kept=False),
        Cause(
            "quarantined",
            "quarantined",
            "Its bytes rotted on disk.",
            is_kept=False,
            kind="Quarantined",
        ),
        OTHER,
    )
}
"""By word. The first whose beginning fits is the cause."""
LETTER_CAUSES = tuple(word for word, row in CAUSES.items() if row.is_kept)
"""Words that dead letters have."""


def cause_of(reason: str) -> str:
    """The word for a reason."""
    return next(row.word for row in CAUSES.values() if reason.startswith(row.begins))


def check_cause(word: str) -> None:
    """Raise ValueError for a word that no dead letter has."""
    if word not in LETTER_CAUSES:
        raise ValueError(f"the cause {word!r}: one of {', '.join(LETTER_CAUSES)}")
