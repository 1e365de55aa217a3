"""What the scenarios do not show of dead letters: limits, texts, and what came before."""

from __future__ import annotations

import json

import pytest

from digest import check_places, digest
from harness import Harness, Words
from qbroker.core import deadletters, purging
from qbroker.core.columns import pack_columns, unpack_columns
from qbroker.core.letters import SPARE, Letter, Letters
from qbroker.core.settings import Settings
from qbroker.core.snapshot import decode, encode
from qbroker.core.state import BrokerState
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.causes import CAUSES, LETTER_CAUSES, cause_of
from qprotocol.limits import LETTERS_MAX


def told(*lines: str) -> list[str]:
    """What the last line came to."""
    harness = Harness()
    return [harness.run(line) for line in lines][-1]


def dead(harness: Harness, *bodies: str, queue: str = "q") -> None:
    """These died."""
    harness.run(f"publish q={queue} {' '.join(bodies)}")
    harness.run(f"consume q={queue} credit=100 c={queue}")
    for body in bodies:
        harness.run(f"reject c={queue} {body}")


def letters_of(harness: Harness) -> list[str]:
    state = harness.machine.core.state
    return [f"{p >> 20}:{p & 0xFFFFF}#{x.number}" for p, x in state.letters.ordered()]


# --- Causes


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("failed", "failed"),
        ("failed 3 times", "retries_exhausted"),
        ("rejected: ugly", "rejected"),
        ("crashed its worker 3 times", "max_crashes"),
        ("its worker was lost; acks early, so it is not run again", "worker_lost"),
        ("handed out 5 times", "max_deliveries"),
        ("overflow: max_length is 5", "length_limit"),
        ("expired", "expired"),
        ("quarantined: 1.qlog is damaged", "quarantined"),
        ("who knows", "other"),
    ],
)
def test_a_reason_has_a_cause(reason: str, word: str) -> None:
    assert cause_of(reason) == word


def test_no_cause_hides_another() -> None:
    assert all(cause_of(row.begins) == word for word, row in CAUSES.items())
    assert "expired" not in LETTER_CAUSES


# --- The order of death


def test_letters_are_in_the_order_of_their_deaths_whatever_has_gone() -> None:
    letters = Letters()
    for position in range(1, 3 * SPARE):
        letters.add(position, Letter(0, 5, "q", b""))
    for position in range(1, 3 * SPARE - 2):
        letters.gone(position)
    letters.gone(1)
    assert len(letters) == 2
    letters.rename(3 * SPARE - 1, 7)
    letters.rename(1, 9)
    letters.add(3 * SPARE - 2, Letter(0, 6, "elsewhere", b""))
    assert letters.ordered() == [
        (7, Letter(3 * SPARE - 1, 5, "q", b"")),
        (3 * SPARE - 2, Letter(3 * SPARE, 6, "q", b"")),
    ]
    assert len(letters._numbers) < 2 * SPARE


def test_a_page_ends_where_it_has_looked_at_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "LETTERS_LOOKED_MAX", 2)
    harness = Harness()
    dead(harness, "a", "b", "c", "d", "e")
    first, second, *_ = letters_of(harness)
    harness.run(f"drop_dead {first} {second}")
    found, after = [], 0
    while True:
        (line,) = harness.run(f"dead detail=0 after={after}")
        found.append(line.removeprefix("A     Report ").split(" next=")[0])
        if "next=" not in line:
            break
        after = int(line.split("next=")[1])
    assert after == 4
    assert "; ".join(each for each in found if each != "(nothing)") == "; ".join(
        letters_of(harness)
    )


def test_a_clock_that_is_set_back_hides_nobody() -> None:
    harness = Harness()
    dead(harness, "a")
    harness.run("clock -1h")
    assert letters_of(harness)[0] in harness.run("dead detail=0")[-1]
    assert "nothing" in harness.run("dead detail=0 older=1s")[-1]


def test_a_delayed_message_that_is_thrown_out_leaves_no_time_behind() -> None:
    """What it waited for then is not taken for what it waits for now."""
    harness = Harness()
    harness.run("declare q=q max_length=1 overflow=dead_letter_oldest")
    harness.run("publish a")
    harness.run("consume credit=9")
    harness.run("publish in=1h late")
    (letter,) = letters_of(harness)
    harness.run("set q=q max_length=0")
    harness.run(f"replay {letter} in=2s")
    assert "late@" in harness.run("wait 3s")[-1]
    check_places(harness.machine.core.state)
    assert not harness.machine.core.state.timers.size


# --- Orders


def test_what_is_too_much_or_no_letter_is_refused() -> None:
    harness = Harness()
    many = " ".join(f"2:{n}#1" for n in range(LETTERS_MAX + 1))
    assert "1001 dead letters in a frame" in harness.run(f"replay {many}")[-1]
    assert "are no whole dead letters" in harness.run("drop_dead")[-1]
    assert "'x.dead' is for dead letters" in harness.run("replay 2:0#1 q=x.dead")[-1]
    assert "holds ' '" not in harness.run("replay 2:0#1 q=ok")[-1]
    assert "BAD_REQUEST" in harness.run("replay 2:0#1 q=a/b!")[-1]
    assert "over delay_max_ms" in harness.run("replay 2:0#1 in=999999h")[-1]
    assert "an author of 256 bytes" in harness.run(f"replay 2:0#1 by={'x' * 256}")[-1]


def test_a_letter_whose_result_is_gone_has_nothing_to_forget() -> None:
    harness = Harness(Settings(archive=False, result_ttl_ms=5_000))
    harness.run("publish id=a task=t one")
    harness.run("consume")
    harness.run("reject one")
    assert harness.run("forget id=a")[-1] == "A     Ok count=1"
    assert harness.run("forget id=a")[-1] == "A     Ok"
    assert len(letters_of(harness)) == 1


def test_nobody_can_say_what_an_archive_forgets_that_cannot_be_read() -> None:
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("consume")
    harness.run("reject one")
    harness.run("archive")
    harness.run("archive damaged")
    assert "nobody can tell what became of 'a'" in harness.run("forget id=a")[-1]


def test_an_edit_is_one_message_with_the_same_id_to_a_queue_that_runs_it() -> None:
    harness = Harness()
    harness.run("exchange e fanout")
    harness.run("publish id=a one")
    harness.run("consume")
    harness.run("reject one")
    (letter,) = letters_of(harness)
    for words, said in (
        ("body=x id=b", "keeps the id"),
        ("body=x", "keeps the id"),
        ("body=x,y", "one message"),
        ("body=x id=a q=q.dead", "is for dead letters"),
        ("body=x id=a exchange=e", "to a queue by its name"),
        ("body=x id=a exchange=none", "does not exist"),
    ):
        assert said in harness.run(f"edit {letter} {words}")[-1], words
    assert harness.run(f"edit {letter} body=x id=a")[-1] == "A     Ok count=1"
    check_places(harness.machine.core.state)


def test_where_bytes_are_limited_a_letter_weighs_what_it_is() -> None:
    harness = Harness()
    harness.run("declare q=q.dead max_bytes=10000")
    harness.run("declare q=to max_bytes=10000 max_length=5")
    dead(harness, "a", "b", "c")
    a, b, _ = letters_of(harness)
    harness.run(f"edit {a} body=longer")
    check_places(harness.machine.core.state)
    harness.run(f"replay {b} q=to")
    check_places(harness.machine.core.state)
    weights = harness.machine.core.state.catalogue.weights
    assert [len(list(each.known())) for each in weights.values()] == [1, 0]


def test_a_letter_over_its_target_s_length_dies_again_with_a_new_number() -> None:
    harness = Harness()
    harness.run("declare q=to max_length=1")
    harness.run("publish q=to full")
    dead(harness, "a")
    (a,) = letters_of(harness)
    said = harness.run(f"replay {a} q=to")
    assert said[-1] == "A     Ok count=1"
    assert any("Overflowed" in line for line in said)
    (again,) = letters_of(harness)
    assert again.endswith("#2")


def test_a_letter_whose_queue_was_purged_is_not_seen() -> None:
    harness = Harness()
    dead(harness, "a", "b")
    a, b = letters_of(harness)
    harness.run("purge q=q.dead")
    assert harness.run("dead") == ["A     Report (nothing)"]
    assert harness.run(f"replay {a} {b}") == ["A     Ok"]
    check_places(harness.machine.core.state)


def test_a_letter_that_was_purged_and_is_not_swept_yet_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purging, "SWEEP_MESSAGES_MAX", 0)
    harness = Harness()
    dead(harness, "a")
    (a,) = letters_of(harness)
    state = harness.machine.core.state
    purging.purge(state, state.queues["q.dead"])
    assert letters_of(harness) == [a]
    ((position, letter),) = state.letters.ordered()
    assert not deadletters.is_seen(state, position)
    assert deadletters.chosen(state, wire.LETTER.pack(position, letter.number)) == []


def test_a_letter_that_waits_for_its_time_is_replayed_from_there() -> None:
    harness = Harness()
    dead(harness, "a")
    (a,) = letters_of(harness)
    harness.run("consume c=D q=q.dead")
    harness.run("fail c=D a")
    harness.run("disconnect c=D")
    assert harness.run(f"replay {a} q=other")[-1] == "A     Ok count=1"
    check_places(harness.machine.core.state)
    assert "other: ready=1" in harness.run("wait 1h")[-1] + harness.run("stats")[-1]


def test_an_edited_letter_expires_when_the_one_before_would_have() -> None:
    harness = Harness()
    harness.run("declare q=q.dead message_ttl_ms=60000")
    dead(harness, "a")
    (a,) = letters_of(harness)
    harness.run("wait 30s")
    harness.run(f"edit {a} body=new")
    harness.run("wait 29s")
    assert len(letters_of(harness)) == 1
    harness.run("wait 2s")
    assert letters_of(harness) == []


def test_a_letter_in_order_leaves_its_key_to_the_next() -> None:
    harness = Harness()
    for body in ("a", "b"):
        harness.run(f"publish ordering_key=k {body}")
    harness.run("consume credit=5")
    harness.run("reject a")
    harness.run("reject b")
    harness.run("consume q=q.dead c=D credit=5")
    harness.run("release c=D a delay=1m")
    last, first = sorted(letters_of(harness), key=lambda each: each.startswith("2:"))
    said = harness.run(f"replay {first}")
    assert {"A     Ok count=1", "A     Deliver grant=1.5 a@2:2"} <= set(said)
    assert not [line for line in harness.run(f"replay {last}") if "Deliver" in line]
    check_places(harness.machine.core.state)


def test_an_expiry_counts_from_the_last_death() -> None:
    harness = Harness()
    harness.run("declare q=q.dead message_ttl_ms=60000")
    dead(harness, "a")
    harness.run("wait 50s")
    (a,) = letters_of(harness)
    harness.run(f"replay {a}")
    harness.run("wait 9s")
    harness.run("reject c=q a")
    harness.run("wait 55s")
    assert len(letters_of(harness)) == 1
    harness.run("wait 6s")
    assert letters_of(harness) == []


def test_a_replayed_message_does_not_expire_among_the_living() -> None:
    harness = Harness()
    harness.run("declare q=q.dead message_ttl_ms=60000")
    dead(harness, "a")
    (a,) = letters_of(harness)
    harness.run(f"replay {a} q=other")
    harness.run("wait 2m")
    assert "other: ready=1" in harness.run("stats")[-1]


# --- Snapshots


def test_a_letter_that_takes_its_consumers_down_waits_too() -> None:
    """Poison stays where it is, and is handed out no sooner than one that fails."""
    harness = Harness()
    dead(harness, "a")
    harness.run("consume c=D q=q.dead credit=1")
    for _ in range(3):
        assert harness.machine.core.state.queues["q.dead"].leased == 1
        harness.run("crashed c=D a")
    assert harness.machine.core.state.queues["q.dead"].scheduled == 1
    assert any("a@" in line for line in harness.run("wait 1h"))


def test_a_state_from_before_finds_its_letters() -> None:
    harness = Harness()
    dead(harness, "a", "b")
    harness.run("publish c")
    harness.run("release c=q c delay=1h")
    state = harness.machine.core.state
    sections = dict(encode(state))
    del sections["letters"]
    older: BrokerState = decode(state.settings, {**sections, "broker": old(sections["broker"])})
    assert [(p, x.home, x.died_ms) for p, x in older.letters.ordered()] == [
        (p, "q", 0) for p in state.letters.by_position
    ]


def old(block: bytes) -> bytes:
    """The section of a version that knew no letters."""
    _, *rest = unpack_columns(block)[0]
    return pack_columns([3, *rest])


def test_letters_are_the_same_behind_a_snapshot() -> None:
    harness = Harness()
    dead(harness, "a", "b", "c")
    a, b, _ = letters_of(harness)
    harness.run(f"replay {a}")
    harness.run(f"edit {b} body=new q=home")
    state, now = harness.machine.core.state, harness.machine.now
    again = decode(state.settings, dict(encode(state)))
    assert digest(again, now)["letters"] == digest(state, now)["letters"]


def test_detail_and_rows_are_json() -> None:
    harness = Harness()
    dead(harness, "a")
    peer = harness.peer(Words("", [], {}))
    harness.machine.submit(peer, f.DeadLetters(detail=0, correlation=77))
    harness.machine.settle()
    (report,) = peer.received
    found = json.loads(report.raw)
    ((position, letter),) = harness.machine.core.state.letters.ordered()
    assert found == {
        "letters": [{"position": position, "number": letter.number}],
        "next": 0,
        "last": 1,
        "looked": 1,
    }
    assert wire.LETTER.size == 16
