"""Messages, outcomes, policies, failures, ids and names: there and back, and what is refused."""

import math
import random
from dataclasses import replace
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol import wire
from qprotocol.failure import TEXT_BYTES_MAX, Failure
from qprotocol.header import decode_map, encode_map
from qprotocol.ids import mint, minted_ms, pack_id, unpack_id
from qprotocol.limits import BODY_BYTES_HARD_MAX, NAME_BYTES_MAX
from qprotocol.message import (
    Delivery,
    Message,
    Outcome,
    meta_fields,
    pack_fields,
    pack_message,
    pack_origin,
    pack_route,
    renewed,
    unpack_message,
    unpack_meta,
    unpack_origin,
    unpack_route,
    walk,
)
from qprotocol.names import (
    check_exchange_name,
    check_queue_name,
    pack_task_names,
    unpack_task_names,
)
from qprotocol.options import OPTIONS, RETRIES_FOREVER, QueueOptions, RetryPolicy, dead_queue
from qprotocol.states import State
from wire.cases import MESSAGES, MINTED, OUTCOMES, PLAIN, TASK

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
SHORT = st.text(max_size=60)
UUID7 = st.builds(lambda ms, bits: unpack_id(mint(ms, bits), minted=True), U64, U64)
BY_CONTENT = wire.ID_MINTED | wire.MARKED
IDS = st.just("") | st.text(min_size=1, max_size=60) | UUID7


def fault(call, *arguments) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        call(*arguments)
    return str(caught.value)


# Messages.


@given(
    st.builds(
        Message,
        queue=SHORT,
        body=st.binary(max_size=100),
        id=IDS,
        task=SHORT,
        exchange=SHORT,
        priority=st.integers(-100, 100),
        due_ms=U64,
        expires_ms=U64,
        keys=st.binary(max_size=20),
        flags=U8.map(lambda flags: flags & ~BY_CONTENT),
        content=U8,
        root=SHORT,
        parent=SHORT,
        principal=SHORT,
        trace=SHORT,
        headers=st.binary(max_size=30),
        fields=st.dictionaries(U8, st.binary(max_size=20), max_size=3).map(pack_fields),
    )
)
def test_messages_come_back_as_they_were(message):
    """Every field of any message, but for the flags that the id's form and the fields decide."""
    found = unpack_message(message.pack())
    assert replace(found, flags=found.flags & ~BY_CONTENT) == message
    assert bool(found.flags & wire.MARKED) == bool(message.fields)
    assert found.pack() == message.pack()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(raw):
    """Whatever a publisher sent, a worker gets one kind of exception for it."""
    calls = (unpack_message, unpack_route, unpack_meta, meta_fields, unpack_origin)
    for call in (*calls, lambda raw: list(walk(raw))):
        try:
            call(raw)
        except ValueError:
            continue


@given(st.sampled_from(sorted(MESSAGES)), st.integers(0, 1000), st.integers(1, 255))
def test_a_flipped_byte_is_a_message_or_a_value_error(name, at, mask):
    """One wrong byte anywhere in a good message."""
    raw = bytearray(MESSAGES[name].pack())
    raw[at % len(raw)] ^= mask
    try:
        assert isinstance(unpack_message(bytes(raw)), Message)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"priority": 101}, "priority is 101: from -100 to 100"),
        ({"priority": 1.5}, "priority is 1.5: from -100 to 100"),
        ({"due_ms": -1}, f"due_ms is -1: an integer from 0 to {2**64 - 1}"),
        ({"due_ms": 1.5}, "due_ms is 1.5: an integer from 0 to"),
        ({"expires_ms": 2**64}, f"expires_ms is {2**64}: an integer from 0 to {2**64 - 1}"),
        ({"flags": 256}, "flags is 256: an integer from 0 to 255"),
        ({"content": None}, "content is None: an integer from 0 to 255"),
        ({"queue": "q" * 256}, "routing key has 256 bytes: at most 255"),
        ({"task": "t" * 256}, "task has 256 bytes: at most 255"),
        ({"task": "\udc80"}, r"task '\udc80' cannot be written as UTF-8"),
        ({"root": "r" * 256}, "root has 256 bytes: at most 255"),
        ({"id": "i" * 256}, "a task id has 1 to 255 bytes, this one has 256"),
        ({"id": "\udc80"}, r"the task id '\udc80' cannot be written as UTF-8"),
        ({"keys": bytes(65_600)}, "bytes: at most 65535"),
        ({"headers": bytes(65_536)}, "headers has 65536 bytes: at most 65535"),
        ({"body": bytes(BODY_BYTES_HARD_MAX)}, "no broker takes over 67108864"),
    ],
)
def test_a_message_out_of_bounds_names_its_field(wrong, words):
    """The caller who got it wrong is told which value, and what it may be."""
    assert words in fault(replace(MESSAGES["plain"], **wrong).pack)


def bent(name: str, at: int, value: int) -> bytes:
    raw = bytearray(MESSAGES[name].pack())
    raw[at] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"short", "a packed message has 32 bytes or more, 5 are left"),
        (bent("plain", 4, 2), "envelope version 2: this side reads 1"),
        (bent("plain", 5, 1), "a message of kind 1 with the task name ''"),
        (bent("task", 5, 0), "a message of kind 0 with the task name 'shop.send_email'"),
        (bent("plain", 6, 101), "priority is 101: from -100 to 100"),
        (bent("plain", 7, wire.ID_MINTED), "a minted id has 16 bytes, this one has 0"),
        (bent("task_with_chosen_id", 7, wire.ID_MINTED), "a minted id has 16 bytes"),
        (bent("plain", 0, 1), "a packed message's lengths disagree"),
        (bent("plain", 0, 255), "a packed message's lengths disagree"),
        (bent("plain", 32, 255), "the route section ends inside a name"),
    ],
)
def test_a_malformed_message_is_refused_with_its_reason(raw, words):
    """Sentences for the log of whoever has to find the publisher."""
    assert words in fault(unpack_message, raw)


def test_many_messages_share_a_packed_route():
    """The route packed once gives the same bytes as packing each message whole."""
    message = MESSAGES["everything"]
    route = pack_route(message.exchange, message.queue, message.task, message.keys)
    assert pack_message(route, message) == message.pack()


def test_a_meta_section_may_end_in_bytes_of_a_later_version():
    """Four names, and a tail that is skipped."""
    assert unpack_meta(b"\x01a\x00\x01c\x00tail") == ("a", "", "c", "", b"tail")
    assert "meta section ends inside" in fault(unpack_meta, b"\x01a\x00\x05c")


def test_meta_fields_come_back_by_their_tags():
    """Those of later versions, too; and what a message's origin was."""
    fields = {wire.ORIGIN: pack_origin("events", "order.paid"), 200: b"", 7: bytes(65_535)}
    packed = pack_fields(fields)
    assert meta_fields(packed) == fields
    assert MESSAGES["routed"].origin == ("events", "order.paid")
    assert MESSAGES["plain"].origin == ("", "")
    assert pack_fields({}) == b""


@pytest.mark.parametrize(
    ("call", "given", "words"),
    [
        (pack_fields, {9: bytes(65_536)}, "the meta field 9 has 65536 bytes: at most 65535"),
        (meta_fields, b"\x09\x01", "the meta section ends inside the field 9"),
        (meta_fields, b"\x09\x02\x00a", "the meta section ends inside the field 9"),
        (meta_fields, b"\x09\x00\x00\x09\x00\x00", "the meta field 9 comes twice"),
        (unpack_origin, b"", "ORIGIN is not an exchange and a routing key"),
        (unpack_origin, b"\x01a\x02b", "ORIGIN is not an exchange and a routing key"),
        (unpack_origin, b"\x01a\x01bc", "ORIGIN is not an exchange and a routing key"),
    ],
)
def test_meta_fields_that_do_not_fit_are_refused(call, given, words):
    """Lengths that lie are found before anything is sliced by them."""
    assert words in fault(call, given)


def test_bytes_behind_the_names_are_no_fields_unless_the_message_is_marked():
    """A message of a version that had no fields may have a tail there."""
    raw = bytearray(MESSAGES["routed"].pack())
    raw[7] &= ~wire.MARKED
    assert unpack_message(bytes(raw)).fields == b""


def test_walking_gives_each_message_and_stops_at_its_end():
    """Starts and ends, by sizes alone."""
    raw = b"xx" + PLAIN + TASK
    pieces = [raw[start:end] for start, end in walk(raw, 2)]
    assert pieces == [PLAIN, TASK]
    assert list(walk(b"")) == []


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (PLAIN + b"tail", "4 bytes are left over after the last message"),
        (PLAIN[:-1], f"a message of {len(PLAIN)} bytes where {len(PLAIN) - 1} are left"),
        (bytes(40), "a message of 4 bytes where 40 are left"),
    ],
)
def test_walking_off_the_end_is_refused(raw, words):
    """Sizes that lie are found before anything is sliced by them."""
    assert words in fault(lambda: list(walk(raw)))


def test_a_delivery_counts_from_one():
    """The first hand-out is number one, with nothing failed."""
    delivery = Delivery(MESSAGES["plain"], 1, 2)
    assert (delivery.deliveries, delivery.failures, delivery.crashes) == (1, 0, 0)


# Outcomes.

FOLLOWING = st.lists(st.sampled_from([PLAIN, TASK]), max_size=3).map(tuple)


@given(
    st.builds(
        Outcome,
        outcome=st.sampled_from(sorted(wire.OUTCOMES)),
        position=U64,
        grant=U64,
        run_ms=U32,
        delay_ms=U32,
        result=st.binary(max_size=50),
        flags=st.sampled_from([0, wire.HAS_RESULT, wire.NO_RETRY, wire.IN_PARTS]),
        content=U8,
        policy=st.sampled_from([b"", RetryPolicy().pack()]),
        follow_on=FOLLOWING,
    ),
    st.binary(max_size=5),
)
def test_outcomes_come_back_as_they_were(outcome, before):
    """Every field of any outcome, wherever it lies; HAS_POLICY follows the policy."""
    if outcome.policy:
        outcome.flags |= wire.HAS_POLICY
    if outcome.follow_on:
        outcome.flags |= wire.HAS_REPLACEMENT
    raw = before + outcome.pack() * 2
    first, at = Outcome.unpack(raw, len(before))
    second, end = Outcome.unpack(raw, at)
    assert first == second == outcome
    assert end == len(raw)


@given(st.binary(max_size=120), st.sampled_from(sorted(OUTCOMES)), st.integers(0, 999), U8)
def test_any_bytes_are_an_outcome_or_a_value_error(junk, name, at, value):
    """Noise, and a good outcome with one byte replaced."""
    bad = bytearray(OUTCOMES[name].pack())
    bad[at % len(bad)] = value
    for raw in (junk, bytes(bad), bytes(bad[: at % len(bad)])):
        try:
            Outcome.unpack(raw)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"position": -1}, f"position is -1: an integer from 0 to {2**64 - 1}"),
        ({"grant": 2**64}, f"grant is {2**64}: an integer from 0 to {2**64 - 1}"),
        ({"delay_ms": 2**32}, f"delay_ms is {2**32}: an integer from 0 to {2**32 - 1}"),
        ({"run_ms": -5}, f"run_ms is -5: an integer from 0 to {2**32 - 1}"),
        ({"content": 256}, "content is 256: an integer from 0 to 255"),
        ({"outcome": "ack"}, "outcome is 'ack': an integer from 0 to 255"),
        ({"flags": 256}, "flags is 256: an integer from 0 to 255"),
        ({"policy": b"short"}, "policy has 5 bytes: none or 13"),
        ({"flags": wire.HAS_REPLACEMENT}, "HAS_REPLACEMENT is set without a message"),
        ({"follow_on": (b"",) * 65_536}, "65536 follow-on messages and 0 bytes with one outcome"),
        ({"result": bytes(BODY_BYTES_HARD_MAX + 1)}, "67108865 bytes with one outcome"),
    ],
)
def test_an_outcome_out_of_bounds_names_its_field(wrong, words):
    """The same for those who settle."""
    assert words in fault(replace(OUTCOMES["extend"], **wrong).pack)


def test_a_run_of_months_is_still_settled():
    """Too long to be counted is no reason to lose a result."""
    outcome, _ = Outcome.unpack(Outcome(wire.ACK, 1, 2, run_ms=2**40).pack())
    assert outcome.run_ms == 2**32 - 1


def test_a_policy_flag_without_a_policy_is_dropped():
    """The flag says what is there, not what was meant."""
    outcome, _ = Outcome.unpack(Outcome(wire.FAIL, 1, 2, flags=wire.HAS_POLICY).pack())
    assert outcome.flags == 0


def altered(name: str, at: int, value: int) -> bytes:
    raw = bytearray(OUTCOMES[name].pack())
    raw[at] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (bytes(37), "the outcomes end inside one, 37 bytes are left"),
        (altered("extend", 4, 9), "an outcome of kind 9, flags 0x0 and 34 bytes"),
        (altered("extend", 5, 0x80), "an outcome of kind 5, flags 0x80 and 34 bytes"),
        (altered("extend", 7, 1), "an outcome of kind 5"),
        (altered("extend", 0, 200), "an outcome of kind 5, flags 0x0 and 200 bytes"),
        (altered("extend", 0, 0), "an outcome's lengths disagree"),
        (altered("extend", 5, wire.HAS_POLICY), "an outcome's lengths disagree"),
        (altered("ack", 34, 2), "an outcome's lengths disagree"),
        (altered("ack", 34, 0), "1 bytes are left over after the last message"),
        (altered("ack_and_follow_on", 8, 3), "2 follow-on messages where 3 were announced"),
        (altered("extend", 8, 1), "0 follow-on messages where 1 were announced"),
        (altered("extend", 5, wire.HAS_REPLACEMENT), "HAS_REPLACEMENT and no message"),
    ],
)
def test_a_malformed_outcome_is_refused_with_its_reason(raw, words):
    """A policy flag on too few bytes, lengths that lie, unknown kinds and flags."""
    assert words in fault(Outcome.unpack, raw)


def test_a_policy_is_not_taken_from_the_next_outcome():
    """Lengths are held against the outcome's own end, not the frame's."""
    raw = altered("extend", 5, wire.HAS_POLICY) + OUTCOMES["ack"].pack()
    assert fault(Outcome.unpack, raw) == "an outcome's lengths disagree"


# Positions and grants.


def test_positions_and_grants_say_where_they_come_from():
    """The batch of a position, the boot epoch of a grant."""
    assert wire.batch_of(3 << 20 | 7) == 3
    assert wire.grant_epoch(5 << 40 | 9) == 5


# Retry policies and queue options.


@given(U16, U32, U32, st.integers(0, 65_535), st.booleans())
def test_policies_come_back_as_they_were(retries, backoff, cap, hundredths, jitter):
    """Every policy whose factor has at most two decimals."""
    policy = RetryPolicy(retries, backoff, cap, hundredths / 100, jitter)
    assert RetryPolicy.unpack(policy.pack()) == policy


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"retries_max": 65_536}, "retries_max is 65536: an integer from 0 to 65535"),
        ({"backoff_ms": -1}, "backoff_ms is -1: an integer from 0 to 4294967295"),
        ({"backoff_max_ms": 1.5}, "backoff_max_ms is 1.5: an integer from 0 to"),
        ({"factor": -0.1}, "factor is -0.1: from 0 to 655.35"),
        ({"factor": 655.36}, "factor is 655.36: from 0 to 655.35"),
        ({"factor": math.nan}, "factor is nan: from 0 to 655.35"),
        ({"factor": math.inf}, "factor is inf: from 0 to 655.35"),
        ({"jitter": "yes"}, "jitter is 'yes': an integer from 0 to 255"),
    ],
)
def test_a_policy_out_of_bounds_names_its_option(wrong, words):
    """The same for those who declare retries."""
    assert words in fault(replace(RetryPolicy(), **wrong).pack)


def test_too_few_bytes_are_no_policy():
    """Cut off, or read too far on."""
    raw = RetryPolicy().pack()
    assert fault(RetryPolicy.unpack, raw, 1) == "a retry policy has 13 bytes, not 12"


@given(st.builds(RetryPolicy.unpack, st.binary(min_size=13, max_size=13)), U32, U64)
def test_delays_stay_within_their_cap(policy, failures, entropy):
    """For any policy a stranger may send, without overflow, and the same each time."""
    delay = policy.delay_ms(failures, entropy)
    assert 0 <= delay <= policy.backoff_max_ms
    assert delay == policy.delay_ms(failures, entropy)


def test_delays_double_and_spread():
    """Backoff without jitter is exact; with it, between half and all."""
    plain = RetryPolicy(jitter=False)
    assert [plain.delay_ms(n, 0) for n in (1, 2, 3, 100)] == [1000, 2000, 4000, 600_000]
    jittered = {RetryPolicy().delay_ms(1, entropy) for entropy in range(100)}
    assert 500 <= min(jittered) < 600
    assert 900 < max(jittered) <= 1000


def test_retries_end_unless_they_are_for_ever():
    """Three retries are four runs."""
    assert [RetryPolicy(3).allows(n) for n in (1, 3, 4)] == [True, True, False]
    assert RetryPolicy(RETRIES_FOREVER).allows(10**9)


def test_queue_options_come_back_as_they_were():
    """From a map, to a map, and the policy they imply."""
    options = QueueOptions.parse({"fsync": "never", "retries_max": 2, "backoff_ms": 5})
    assert QueueOptions.parse(options.as_dict()) == options
    assert options.retry == RetryPolicy(2, 5)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"fsnyc": "never"}, "unknown queue option 'fsnyc': did you mean 'fsync'?"),
        ({"zzz": 1}, "unknown queue option 'zzz': known: fsync, durability, retries_max"),
        ({"fsync": "maybe"}, "fsync is 'maybe': one of always, interval, never"),
        ({"fsync": ["never"]}, "fsync is ['never']: one of"),
        ({"backoff_ms": -1}, "backoff_ms is -1: an integer from 0 to 4294967295"),
        ({"backoff_ms": True}, "backoff_ms is True: an integer"),
        ({"exclusive": 1}, "exclusive is 1: true or false"),
        ({"min_priority": -101}, "min_priority is -101: an integer from -100 to 100"),
        ({"min_priority": 2, "max_priority": 1}, "min_priority is 2 and max_priority 1: nothing"),
        ({"dead_letter_queue": "dead"}, "'dead': a queue's name that ends in .dead"),
        ({"dead_letter_queue": "/.dead"}, "the queue name '/.dead' holds '/'"),
        ({"backoff_ms": math.nan}, "backoff_ms is nan: an integer"),
        ({"retries_max": 65_536}, "retries_max is 65536: an integer from 0 to 65535"),
    ],
)
def test_wrong_queue_options_are_named(given_, words):
    """With what was meant, where that can be guessed."""
    assert words in fault(QueueOptions.parse, given_)


def test_every_option_says_why_and_takes_its_default():
    """What the table shows, and what is checked, is one thing."""
    for name, row in OPTIONS.items():
        assert row.why.endswith("."), name
        row.check(row.default)
        assert row.wants, name
    assert QueueOptions.parse({name: row.default for name, row in OPTIONS.items()}) == (
        QueueOptions()
    )
    assert QueueOptions(max_bytes=1).is_bounded
    assert not QueueOptions().is_bounded


def test_dead_letters_have_a_queue_and_theirs_have_none():
    """By name, by option, and never any further."""
    named = QueueOptions(dead_letter_queue="all.dead")
    assert dead_queue("mail", QueueOptions()) == "mail.dead"
    assert dead_queue("mail", named) == "all.dead"
    assert dead_queue("mail.dead", named) == "mail.dead"
    assert len(dead_queue("m" * NAME_BYTES_MAX, QueueOptions())) == NAME_BYTES_MAX


# Failures.


@given(st.builds(Failure, SHORT, SHORT, SHORT))
def test_failures_come_back_as_they_were(failure):
    """Any three texts."""
    assert Failure.unpack(failure.pack()) == failure


@given(st.binary(max_size=60))
def test_any_bytes_are_a_failure_or_a_value_error(raw):
    """A result may hold anything, and is read by those who did not write it."""
    try:
        Failure.unpack(raw)
    except ValueError:
        return


@pytest.mark.parametrize(
    "value", [["a", "b"], ["a", "b", 1], "abc", {}, [1, 2, 3], ["a", "b", "c", {"k": 1}]]
)
def test_something_else_is_no_failure(value):
    """Too short, of other kinds, or with more than anybody needs."""
    assert "not a packed failure" in fault(Failure.unpack, msgpack.packb(value))


def test_a_failure_may_grow():
    """What a later version adds is skipped."""
    assert Failure.unpack(msgpack.packb(["K", "m", "t", 5, [1]])) == Failure("K", "m", "t")


@pytest.mark.parametrize("letter", ["x", "é", "€"])
def test_a_long_text_is_cut_in_the_middle(letter):
    """Both ends say most; the size is bounded in bytes, whatever the letters."""
    failure = Failure.unpack(Failure("K", "head" + letter * 200_000 + "tail").pack())
    assert failure.message.startswith("head")
    assert failure.message.endswith("tail")
    assert "bytes left out ..." in failure.message
    assert TEXT_BYTES_MAX - 10 < len(failure.message.encode()) < TEXT_BYTES_MAX + 50


def test_a_text_that_is_not_unicode_is_escaped():
    """Errors about broken text quote broken text."""
    assert Failure.unpack(Failure("K", "bad \udcff").pack()).message == "bad \\udcff"


# Ids.


@given(IDS.filter(bool))
def test_ids_come_back_as_they_were(text):
    """Chosen or minted, and a minted one takes sixteen bytes."""
    raw, minted = pack_id(text)
    assert unpack_id(raw, minted=minted) == text
    assert minted == (len(raw) == 16 and text == str(UUID(bytes=raw)) and text[14] == "7")


@pytest.mark.parametrize(
    "text",
    [
        MINTED.upper(),
        MINTED.replace("-", "_"),
        MINTED[:13] + "0-7" + MINTED[16:],
        " " + MINTED[1:],
        "z" + MINTED[1:],
        "x" * 14 + "7" + "x" * 21,
        "ab" * 7 + "7" + "ab" * 10 + "a",
        str(UUID(int=random.Random(1).getrandbits(128), version=4)),
    ],
)
def test_what_only_looks_like_a_uuid7_stays_text(text):
    """Only the one spelling that bytes give back is packed as bytes."""
    assert pack_id(text) == (text.encode(), False)


def test_a_minted_id_is_a_uuid7_of_its_time():
    """As RFC 9562 has it: version, variant, and the milliseconds in front."""
    found = UUID(bytes=mint(1_700_000_000_123, 2**80 - 1))
    assert (found.version, found.variant) == (7, "specified in RFC 4122")
    assert minted_ms(found.bytes) == 1_700_000_000_123


def test_an_empty_id_is_none():
    """A message without an id has no id section; nobody packs an empty one."""
    assert "this one has 0" in fault(pack_id, "")


# Names.


@pytest.mark.parametrize("name", ["a", "emails", "shop.mail:eu-1_x", "x" * 200])
def test_good_names_pass(name):
    """For queues and exchanges alike."""
    check_queue_name(name)
    check_exchange_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/b", "the queue name 'a/b' holds '/' at character 2: nothing can be kept under it; use"),
        ("größe", "holds 'ö' at character 3"),
        ("a\n", r"holds '\n' at character 2"),
        ("", "the queue name '' is empty"),
        ("x" * 201, "has 201 characters"),
    ],
)
def test_bad_names_are_told_why(name, words):
    """What happened, what it means, what to do."""
    said = fault(check_queue_name, name)
    assert words in said
    assert said.endswith("use 1 to 200 of the letters A-Z a-z, digits and . _ : -")


def test_only_an_exchange_may_have_no_name():
    """The empty exchange routes by queue name."""
    check_exchange_name("")
    assert "the exchange name 'a b' holds ' '" in fault(check_exchange_name, "a b")


# States.


def test_finished_states_are_the_last_three():
    """Nothing more happens to these by itself."""
    assert [state.name for state in State if state.finished] == ["SUCCESS", "FAILURE", "REVOKED"]


# Maps.


def test_a_map_comes_back_as_it_was():
    """Of plain values, under the limits of a header."""
    values = {"a": 1, "b": [True, None, {"c": 1.5}], "d": b"raw", "e": "é"}
    assert decode_map(encode_map(values)) == values


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xc1", "no msgpack of at most 64 items"),
        (b"\x05", "no map of strings to plain values"),
        (b"\x81\x01\x02", "no msgpack of at most 64 items"),
        (msgpack.packb({"a": float("nan")}), "no map of strings to plain values"),
        (msgpack.packb({str(n): n for n in range(65)}), "no msgpack of at most 64 items"),
    ],
)
def test_what_is_no_map_is_refused(raw, words):
    """Whoever routes by headers gets one kind of exception for it."""
    assert words in fault(decode_map, raw)


# Names of tasks.


@given(st.lists(SHORT, max_size=9))
def test_names_of_tasks_come_back_as_they_were(names):
    assert unpack_task_names(pack_task_names(names)) == names


@pytest.mark.parametrize(
    ("call", "given_", "words"),
    [
        (pack_task_names, ["x" * 256], "has 256 bytes: at most 255"),
        (pack_task_names, ["x"] * 5_001, "5001 names of tasks with 10002 bytes: at most 5000"),
        (pack_task_names, ["x" * 200] * 500, "500 names of tasks with 100500 bytes"),
        (unpack_task_names, b"\x01x" * 5_001, "5001 names of tasks"),
        (unpack_task_names, b"\x00" * 98_305, "names of tasks with 98305 bytes: at most 5000"),
        (unpack_task_names, b"\x01x\x02x", "end inside one, behind 1"),
        (unpack_task_names, b"\x01\xff", "the name of task 0 is no UTF-8"),
    ],
)
def test_names_of_tasks_out_of_bounds_are_refused(call, given_, words):
    assert words in fault(call, given_)


def test_a_message_that_is_sent_anew_keeps_what_its_sender_said_and_no_more() -> None:
    """Where it came by, who sent it and its times are not the next sender's to say."""
    origin, unique = {wire.ORIGIN: b"\x01e\x01k"}, {wire.UNIQUE: b"key"}
    before = Message("q", b"body", id="a", task="t", priority=3, keys=b"", headers=b"h")
    came = replace(
        before,
        exchange="e",
        due_ms=5,
        expires_ms=9,
        principal="ana",
        fields=pack_fields(origin | unique),
    )
    after = renewed(came, queue="slow", priority=7)
    assert after == replace(before, queue="slow", priority=7, fields=pack_fields(unique))
    assert renewed(replace(came, fields=pack_fields(origin)), queue="q", priority=3) == before
