"""The blocking shell in adversity: lost answers, refusals, silence, threads, forks."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qclient import App, ConnectError, DuplicateId, NotDone, OutcomeUnknown, TaskFailure
from qclient import exceptions as e
from qclient.address import Address
from qclient.link import Link
from qprotocol import frames as f
from qprotocol.failure import Failure
from qprotocol.states import State
from scriptedpeer import SERVER_MS, WAIT_S, Line, Peer, confirm, greeting

NOBODY = "qbroker://127.0.0.1:9"  # the discard port: nothing listens there


def publishes(peer: Peer) -> list[f.Publish]:
    return [frame for frame in peer.heard if type(frame) is f.Publish]


def test_an_address_is_understood_or_refused_with_what_is_wrong() -> None:
    assert Address.parse("qbroker://localhost") == ("localhost", 7717)
    assert Address.parse("qbroker://[::1]:5/") == ("::1", 5)
    assert str(Address("::1", 5)) == "qbroker://[::1]:5"
    for url, told in [
        ("redis://localhost", "it is written qbroker://host"),
        ("qbroker://", "has no host"),
        ("qbroker://h:0", "a number from 1 to 65535"),
        ("qbroker://h:x", "a number from 1 to 65535"),
        ("qbroker://me@h", "users are not part of it"),
        ("qbroker://h/queue", "paths, options and users"),
        ("qbroker://::1:5", "has no host"),
        ("qbroker://[::1", "has no host"),
    ]:
        with pytest.raises(ValueError, match=told):
            App("shop", broker=url, set_as_current=False)


def test_an_app_does_nothing_until_it_is_used(peer: Peer) -> None:
    App("shop", broker=peer.url)
    assert not peer.lines


def test_the_answer_to_a_call_is_its_own(app: App, peer: Peer) -> None:
    app.send_task("t", (1,), task_id="one")
    (publish,) = publishes(peer)
    assert (publish.count, publish.sequence) == (1, 1)
    assert publish.producer > 0


def test_countdowns_are_counted_on_the_brokers_clock(app: App, peer: Peer) -> None:
    assert SERVER_MS <= app.connection.server_ms(1.0) < SERVER_MS + 60_000


def test_a_lost_answer_is_asked_for_again_unchanged(app: App, peer: Peer) -> None:
    """The broker recognises the chunk by producer and sequence: nothing is done twice."""

    def lose_the_first(line: Line, frame: f.Frame) -> None:
        if line.number == 0:
            line.hang_up()
        else:
            line.confirm(frame, first=0, duplicate=True)

    peer.act = lose_the_first
    result = app.send_task("t", (1,))
    first, again = publishes(peer)
    assert first == again
    assert result.id
    # And the next chunk is another one
    app.send_task("t", (2,))
    assert publishes(peer)[-1].sequence == 2


def test_unconfirmed_chunks_come_again_in_order(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    requests = [app.connection.submit(publish(), 5.0) for _ in range(3)]
    app.connection.submit(None, 5.0)

    def hang_up_then_confirm(line: Line, frame: f.Frame) -> None:
        if line.number == 0 and frame.sequence == 3:
            line.hang_up()
        elif line.number == 1:
            line.confirm(frame)

    peer.act = hang_up_then_confirm
    for request in requests:
        assert type(app.connection.wait(request)) is f.Published
    assert [p.sequence for p in publishes(peer)] == [1, 2, 3, 1, 2, 3]


def publish() -> f.Publish:
    return f.Publish(producer=0, sequence=0, count=1, raw=b"")


def test_a_connection_lost_while_idle_is_replaced_without_a_word(app: App, peer: Peer) -> None:
    app.send_task("t")
    peer.lines[0].hang_up()
    app.send_task("t")
    assert [p.sequence for p in publishes(peer)][-1] == 2
    assert len(peer.lines) == 2


def test_a_broker_that_hangs_up_on_everybody_is_not_hammered(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: line.hang_up()
    app.conf.broker_timeout_s = 0.6
    with pytest.raises(OutcomeUnknown):
        app.send_task("t")
    assert 2 <= len(peer.lines) <= 8
    # A later call does not wait for what earlier ones went through
    peer.act = confirm
    app.send_task("t")


def test_nobody_listening_is_not_done_and_says_where() -> None:
    app = App("shop", broker=NOBODY, set_as_current=False)
    app.conf.broker_timeout_s = 0.3
    with pytest.raises(NotDone, match=r"no broker at qbroker://127.0.0.1:9: .*nothing was sent"):
        app.send_task("t")


def test_an_unanswered_publish_is_unknown_at_its_deadline(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    app.conf.broker_timeout_s = 0.2
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="it was sent and may be done"):
        app.send_task("t")
    assert time.monotonic() - began < 2
    # What is late is dropped, and the connection is still good
    peer.act = confirm
    app.send_task("t")
    assert len(peer.lines) == 1


def test_an_unanswered_question_is_not_done(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    app.conf.broker_timeout_s = 0.2
    with pytest.raises(NotDone):
        _ = app.AsyncResult("x").state


def test_a_broker_that_never_says_welcome_is_not_done(app: App, peer: Peer) -> None:
    peer.welcome = False
    app.conf.broker_timeout_s = 0.2
    with pytest.raises(NotDone, match="handshake in time"):
        app.send_task("t")


def test_a_refusal_has_the_name_of_its_code(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: line.refuse(frame, "DUPLICATE_ID")
    with pytest.raises(DuplicateId, match="DUPLICATE_ID: said the peer") as caught:
        app.send_task("t")
    assert isinstance(caught.value, NotDone)


def test_a_chunk_out_of_the_window_is_unknown(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: line.refuse(frame, "SEQUENCE_TOO_OLD", definite=False)
    with pytest.raises(e.SequenceTooOld) as caught:
        app.send_task("t")
    assert isinstance(caught.value, OutcomeUnknown)


def test_a_refusal_for_the_moment_is_tried_again(app: App, peer: Peer) -> None:
    def refuse_once(line: Line, frame: f.Frame) -> None:
        if len(publishes(peer)) == 1:
            line.refuse(frame, "RESOURCE_EXHAUSTED", retryable=True, retry_after_ms=20)
        else:
            line.confirm(frame)

    peer.act = refuse_once
    app.send_task("t")
    assert [p.sequence for p in publishes(peer)] == [1, 1]


def test_a_refusal_for_the_moment_that_lasts_is_not_done(app: App, peer: Peer) -> None:
    def not_now(line: Line, frame: f.Frame) -> None:
        line.refuse(frame, "BLOCKED", retryable=True, retry_after_ms=60_000)

    peer.act = not_now
    app.conf.broker_timeout_s = 0.2
    with pytest.raises(e.Blocked, match="BLOCKED: said the peer") as caught:
        app.send_task("t")
    assert isinstance(caught.value, NotDone)


def test_publishes_wait_while_the_broker_is_blocked(app: App, peer: Peer) -> None:
    app.send_task("t")
    (line,) = peer.lines
    line.say(f.Blocked(reason="the disk hangs"))
    answer(peer, State.QUEUED)
    assert app.AsyncResult("x").state == "QUEUED"  # the push was read with the answer
    app.conf.broker_timeout_s = 0.2
    with pytest.raises(e.Blocked, match="takes no publishes: the disk hangs; nothing was sent"):
        app.send_task("t")
    line.say(f.Blocked(reason="the disk is full", code="RESOURCE_EXHAUSTED"))
    assert app.AsyncResult("x").state == "QUEUED"
    with pytest.raises(e.ResourceExhausted, match="no publishes: the disk is full") as caught:
        app.send_task("t")
    assert isinstance(caught.value, NotDone)
    assert caught.value.retryable
    app.conf.broker_timeout_s = WAIT_S
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.send_task, "t")
        peer.act = confirm
        line.say(f.Unblocked())
        waiting.result(WAIT_S)
    assert len(publishes(peer)) == 2


def answer(peer: Peer, state: State, raw: bytes = b"", content: int = 0) -> None:
    """From now on the peer answers every question about a task so, and confirms the rest."""

    def act(line: Line, frame: f.Frame) -> None:
        if type(frame) in (f.Watch, f.Cancel):
            line.say(
                f.Result(
                    id=frame.id,
                    state=state,
                    raw=raw,
                    content=content,
                    correlation=frame.correlation,
                )
            )
        elif type(frame) is f.Forget:
            line.say(f.Ok(count=1, correlation=frame.correlation))
        else:
            line.confirm(frame)

    peer.act = act


def test_goaway_means_another_connection(app: App, peer: Peer) -> None:
    def leave_first(line: Line, frame: f.Frame) -> None:
        if line.number == 0:
            line.say(f.Goaway(reason="stopping"))
        line.confirm(frame)

    peer.act = leave_first
    app.send_task("t")
    app.send_task("t")
    assert len(peer.lines) == 2
    assert [p.sequence for p in publishes(peer)] == [1, 2]


def test_a_violation_is_not_repeated_on_a_new_connection(app: App, peer: Peer) -> None:
    """A frame the broker hung up on would only be hung up on again."""

    def hang_up_for_good(line: Line, frame: f.Frame) -> None:
        line.say(f.Error(code="BAD_FRAME", message="what?"))
        line.hang_up()

    peer.act = hang_up_for_good
    with pytest.raises(OutcomeUnknown, match="the broker hung up: BAD_FRAME: what"):
        app.send_task("t")
    assert len(publishes(peer)) == 1


def test_a_broker_of_another_version_is_refused_at_once(app: App, peer: Peer, monkeypatch) -> None:
    monkeypatch.setattr("scriptedpeer.greeting", lambda: greeting(protocol_min=2, protocol_max=3))
    with pytest.raises(e.UnsupportedVersion, match="speaks protocol 2 to 3, this client 1"):
        app.send_task("t")


def test_a_peer_that_speaks_something_else_is_a_connect_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])

        def speak_http() -> None:
            sock, _ = server.accept()
            with sock:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=speak_http)
        thread.start()
        with pytest.raises(ConnectError, match="no conversation with"):
            Link.open(address, hello=App("x", set_as_current=False).hello(), timeout_s=WAIT_S)
        thread.join()


def test_a_large_message_goes_in_parts_and_a_large_result_comes_so(app: App, peer: Peer) -> None:
    app.send_task("t", ("x" * 500_000,))
    (publish,) = publishes(peer)
    assert len(publish.raw) > 500_000
    answer(peer, State.SUCCESS, b"\xc6" + (300_000).to_bytes(4) + b"y" * 300_000, content=1)
    assert app.AsyncResult("x").get(timeout=WAIT_S) == b"y" * 300_000


def test_many_threads_share_one_connection_and_its_reads(app: App, peer: Peer) -> None:
    """Answers in any order reach whoever asked, without a thread of our own."""
    together = 8
    held: list[tuple[Line, f.Frame]] = []

    def answer_all_backwards(line: Line, frame: f.Frame) -> None:
        held.append((line, frame))
        if len(held) == together:
            for line_, frame_ in reversed(held):
                line_.confirm(frame_, first=frame_.sequence)
            held.clear()

    peer.act = answer_all_backwards
    before = threading.active_count()
    positions = []

    def work() -> None:
        for _ in range(20):
            positions.append(app.send_task("t")._position)

    with ThreadPoolExecutor(together) as pool:
        for done in [pool.submit(work) for _ in range(together)]:
            done.result(WAIT_S)
    assert sorted(positions) == list(range(1, 161))
    assert len(peer.lines) == 1
    assert threading.active_count() <= before + 1  # the peer's, for our connection


def test_a_follower_keeps_its_own_deadline(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    app.connection.server_ms(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(app.connection.wait, app.connection.submit(publish(), WAIT_S))
        peer.next()
        short = app.connection.submit(publish(), 0.1)
        with pytest.raises(OutcomeUnknown):
            app.connection.wait(short)
        long = peer.heard[0]
        peer.lines[0].confirm(long)
        assert leader.result(WAIT_S).first == 1


def test_the_lead_is_passed_on_to_who_still_waits(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    app.connection.server_ms(WAIT_S)
    with ThreadPoolExecutor(2) as pool:
        futures = []
        for _ in range(2):
            request = app.connection.submit(publish(), WAIT_S)
            peer.next()
            futures.append(pool.submit(app.connection.wait, request))
        for future, frame in zip(futures, list(peer.heard), strict=True):
            peer.lines[0].confirm(frame, first=frame.sequence)
            assert future.result(WAIT_S).first == frame.sequence


def test_an_interrupted_wait_leaves_the_connection_usable(app: App, peer: Peer) -> None:
    """A signal's exception in the middle of a wait: a soft time limit, or Ctrl-C."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    peer.act = lambda line, frame: os.kill(os.getpid(), signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            app.send_task("t")
    finally:
        signal.signal(signal.SIGUSR1, before)
    peer.act = confirm
    app.send_task("t")


class SlowWriter:
    """A link's socket whose sends wait until ``go_on``, and fail then if there is a ``fault``."""

    def __init__(self, link: Link, fault: OSError | None = None) -> None:
        self._sock = link._writer
        self._fault = fault
        self.sending, self.go_on = threading.Event(), threading.Event()
        self.sends = 0
        link._writer = self

    def sendall(self, data: bytes) -> None:
        self.sends += 1
        self.sending.set()
        assert self.go_on.wait(WAIT_S)
        if self._fault is not None:
            raise self._fault
        self._sock.sendall(data)

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()


def test_threads_that_send_at_the_same_moment_share_a_system_call(app: App, peer: Peer) -> None:
    """Who finds another one sending leaves its frame to it, and does not wait."""
    peer.act = lambda line, frame: None
    app.connection.server_ms(WAIT_S)
    link = app.connection._link
    writer = SlowWriter(link)
    beats = [f.Heartbeat(sent_ms=n) for n in range(1, 5)]
    first = threading.Thread(target=link.send, args=beats[:1])
    first.start()
    assert writer.sending.wait(WAIT_S)
    for beat in beats[1:]:
        link.send(beat)
    writer.go_on.set()
    first.join()
    assert [peer.next().sent_ms for _ in beats] == [1, 2, 3, 4]
    assert writer.sends == 2


def test_who_left_its_frame_to_a_thread_that_fails_goes_on_by_the_next_connection(
    app: App, peer: Peer
) -> None:
    app.connection.server_ms(WAIT_S)
    link = app.connection._link
    writer = SlowWriter(link, BrokenPipeError())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(app.send_task, "t", task_id="first")
        assert writer.sending.wait(WAIT_S)
        second = pool.submit(app.send_task, "t", task_id="second")
        while not link._unsent:
            assert not second.done()
        writer.go_on.set()
        assert [first.result(WAIT_S).id, second.result(WAIT_S).id] == ["first", "second"]
    assert [publish.sequence for publish in publishes(peer)] == [1, 2]
    with pytest.raises(e.ConnectionLost):
        link.send(f.Heartbeat(sent_ms=1))


def test_a_forked_child_has_a_connection_and_a_producer_of_its_own(app: App, peer: Peer) -> None:
    app.send_task("t", task_id="parent")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            app.send_task("t", task_id="child")
            os.write(writing, b"done")
        finally:
            os._exit(0)
    os.close(writing)
    told = os.read(reading, 4)
    os.close(reading)
    os.waitpid(child, 0)
    assert told == b"done"
    app.send_task("t", task_id="parent again")
    ours, theirs, again = publishes(peer)
    assert ours.producer == again.producer != theirs.producer
    assert (ours.sequence, again.sequence, theirs.sequence) == (1, 2, 1)
    assert len(peer.lines) == 2


def test_a_fork_while_another_thread_waits_harms_neither(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    app.connection.server_ms(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.send_task, "t")
        slow = peer.next()
        peer.act = confirm
        child = os.fork()
        if child == 0:
            code = 1
            try:
                app.send_task("t")
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peer.lines[0].confirm(slow)
        waiting.result(WAIT_S)


def test_close_ends_calls_under_way_and_the_next_call_connects_again(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.send_task, "t")
        peer.next()
        app.close()
        with pytest.raises(OutcomeUnknown):
            waiting.result(WAIT_S)
    peer.act = confirm
    app.send_task("t")
    assert len(peer.lines) == 2


def test_results_as_their_states_say(app: App, peer: Peer) -> None:
    result = app.AsyncResult("x")
    answer(peer, State.STARTED)
    assert (result.state, result.ready(), result.result, result.traceback) == (
        "STARTED",
        False,
        None,
        None,
    )
    answer(peer, State.FAILURE, Failure("ValueError", "bad", "Traceback").pack())
    assert result.failed()
    assert result.traceback == "Traceback"
    assert isinstance(result.result, TaskFailure)
    with pytest.raises(ValueError, match="ValueError: bad"):
        result.get()
    assert isinstance(result.get(propagate=False), TaskFailure)
    # The end is remembered: nobody is asked again
    heard = len(peer.heard)
    assert result.state == "FAILURE"
    assert len(peer.heard) == heard
    other = app.AsyncResult("y")
    answer(peer, State.SUCCESS, b"\x93\xd4\x01\x00\x01\x02", content=1)
    assert (other.get(), other.successful(), other.status) == ((1, 2), True, "SUCCESS")
    answer(peer, State.REVOKED)
    gone = app.AsyncResult("z")
    assert gone.revoke(terminate=True) == "REVOKED"
    with pytest.raises(e.QBrokerError, match="task z: it was cancelled or expired"):
        gone.get()
    gone.forget()
    assert {gone, app.AsyncResult("z")} == {gone}
    answer(peer, State.SUCCESS)
    assert app.AsyncResult("none").get() is None


def test_a_wait_asks_once_and_ends_when_it_said(app: App, peer: Peer) -> None:
    answer(peer, State.QUEUED)
    with pytest.raises(TimeoutError, match="task x is QUEUED after 0 s"):
        app.AsyncResult("x").get(timeout=0)
    assert [w.wait_ms for w in peer.heard] == [0]
    answer(peer, State.UNKNOWN)
    with pytest.raises(e.UnknownId, match="no task x is known: it was never sent"):
        app.AsyncResult("x").get()


def test_a_wait_ends_in_time_though_the_broker_hangs(app: App, peer: Peer, monkeypatch) -> None:
    monkeypatch.setattr("qclient.result.GRACE_S", 0.05)
    peer.act = lambda line, frame: None
    with pytest.raises(TimeoutError, match=r"was not heard of when 0\.1 s were over"):
        app.AsyncResult("x").get(timeout=0.1)


def test_a_wait_survives_a_lost_connection(app: App, peer: Peer) -> None:
    def hang_up_first(line: Line, frame: f.Frame) -> None:
        if line.number == 0:
            line.hang_up()
        else:
            answer(peer, State.SUCCESS, b"\x07", content=1)
            peer.act(line, frame)

    peer.act = hang_up_first
    assert app.AsyncResult("x").get(timeout=WAIT_S) == 7
