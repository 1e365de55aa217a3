"""One of everything that has bytes. Both directions and all feeding ways use this list.

A name is never reused and a case never changed: the golden bytes under ``vectors/`` decode for
ever. When a frame grows a field, add a case with it under a new name (``publish_2``), and
put the old name into DECODED_ONLY, for encoding now writes more.
"""

from typing import Any

from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome, pack_fields, pack_origin
from qprotocol.options import RetryPolicy
from qprotocol.uniquekeys import pack_existing

TOP = 2**64 - 1
MINTED = "0193a5b0-1234-7abc-9def-0123456789ab"
TOKENS = wire.TOKEN.pack(3 << 20 | 7, 5 << 40 | 9) + wire.TOKEN.pack(3 << 20 | 8, 5 << 40 | 9)
DECODED_ONLY: set[str] = {"search", "search_one", "blocked", "cancel", "revoke", "inspect"} | {
    "consume",
    "consume_nothing",
    "consume_names",
    "published",
    "result",
}

MESSAGES: dict[str, Message] = {
    "plain": Message("emails", b"hello"),
    "empty_body": Message("a", b""),
    "task": Message("default", b"\x93\x01\x02\x03", MINTED, "shop.send_email", content=1),
    "task_with_chosen_id": Message("default", b"", "order:42", "shop.bill", priority=-100),
    "everything": Message(
        "orders.eu",
        bytes(range(256)),
        "größe-7",
        "shop.füllen",
        "topic",
        100,
        1_700_000_000_000,
        TOP,
        b"\x01tenant-9",
        wire.IGNORE_RESULT | wire.ACK_EARLY,
        255,
        MINTED,
        "parent-1",
        "alice",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"\x81\xa1k\xa1v",
    ),
    "routed": Message(
        "audit",
        b"hello",
        fields=pack_fields({wire.ORIGIN: pack_origin("events", "order.paid"), 200: b"later"}),
        flags=wire.MARKED,
    ),
}
PLAIN, TASK = MESSAGES["plain"].pack(), MESSAGES["task"].pack()

OUTCOMES: dict[str, Outcome] = {
    "ack": Outcome(wire.ACK, 1, 2, 3, result=b"\x05", flags=wire.HAS_RESULT, content=1),
    "ack_and_follow_on": Outcome(wire.ACK, TOP, TOP, follow_on=(PLAIN, TASK)),
    "release": Outcome(wire.RELEASE, 1, 2, delay_ms=5_000),
    "fail_by_policy": Outcome(
        wire.FAIL, 1, 2, 10, result=b"f", flags=wire.HAS_POLICY, policy=RetryPolicy().pack()
    ),
    "fail_for_good": Outcome(wire.FAIL, 1, 2, 10, 0, b"f", wire.NO_RETRY),
    "fail_replaced": Outcome(
        wire.FAIL,
        1,
        2,
        10,
        60_000,
        b"f",
        wire.HAS_REPLACEMENT | wire.HAS_POLICY,
        0,
        RetryPolicy(jitter=False).pack(),
        (TASK, PLAIN),
    ),
    "reject": Outcome(wire.REJECT, 1, 2, result="nicht für mich".encode()),
    "extend": Outcome(wire.EXTEND, 1, 2),
    "progress": Outcome(wire.PROGRESS, 1, 2, result=b"50 %"),
    "start": Outcome(wire.START, 1, 2),
    "crash": Outcome(wire.CRASH, 1, 2, result=b"f"),
}

POLICIES: dict[str, RetryPolicy] = {
    "default": RetryPolicy(),
    "none": RetryPolicy(0, 0, 0, 0.0, jitter=False),
    "most": RetryPolicy(65_535, 2**32 - 1, 2**32 - 1, 655.35),
    "hundredths": RetryPolicy(factor=1.15),
}

FAILURES: dict[str, Failure] = {
    "short": Failure("ValueError", "ungültig"),
    "traced": Failure("shop.OutOfStock", "none left", "Traceback ...\n  line 1\n"),
    "empty": Failure("", ""),
}

ROWS = wire.RUN.pack(3 << 20, 1) + wire.RUN.pack(4 << 20, 1) + wire.TOUCHED.pack(1, 2, 1, 0)
FRAMES: dict[str, f.Frame] = {
    "greeting": f.Greeting(
        product="qbroker",
        version="0.1.0",
        protocol_min=1,
        protocol_max=1,
        limits={"frame_bytes_max": 131072, "nested": {"list": [1, -1, 2.5, None, True, b"b"]}},
        features=["a", "ä"],
        mechanisms=["none"],
        nonce=bytes(16),
        cluster="c",
        node="n",
        epoch=7,
        server_ms=1_700_000_000_000,
    ),
    "auth": f.Auth(mechanism="none", data=b"\xff", correlation=1),
    "challenge": f.Challenge(data=b"next", correlation=1),
    "hello": f.Hello(
        protocol=1,
        role="worker",
        client_id="c1",
        name="w",
        host="h",
        pid=42,
        language="python",
        library="qworker",
        app="shop",
        session=bytes(16),
        member=3,
        heartbeat_ms=10_000,
        correlation=2,
        raw=TOKENS,
    ),
    "welcome": f.Welcome(
        protocol=1,
        heartbeat_ms=10_000,
        session_timeout_ms=30_000,
        server_ms=1,
        correlation=2,
        raw=TOKENS[:16],
    ),
    "heartbeat": f.Heartbeat(sent_ms=1_700_000_000_000, raw=TOKENS),
    "part": f.Part(index=1, of=0x10, correlation=9, raw=b"middle"),
    "ok": f.Ok(count=5, correlation=3),
    "error": f.Error(
        code="BLOCKED",
        message="the disk hangs",
        retryable=True,
        definite=False,
        retry_after_ms=100,
        details={"limit": "x"},
        correlation=3,
    ),
    "publish": f.Publish(producer=TOP, sequence=1, count=2, correlation=TOP, raw=PLAIN + TASK),
    "published": f.Published(
        first=3 << 20, count=2, durability="synced", duplicate=True, correlation=4
    ),
    "consume": f.Consume(
        subscription=1, queues=["emails", "b"], credit=10, weights={}, correlation=5
    ),
    "credit": f.Credit(subscription=1, credit=0),
    "unsubscribe": f.Unsubscribe(subscription=1, correlation=6),
    "deliver": f.Deliver(
        subscription=1, grant=5 << 40 | 9, count=2, runs=2, touched=1, raw=ROWS + PLAIN + TASK
    ),
    "ack": f.Ack(session=bytes(16), correlation=7, raw=wire.ACK_RUN.pack(5 << 40 | 9, 3 << 20, 2)),
    "settle": f.Settle(
        count=2, correlation=8, raw=OUTCOMES["ack"].pack() + OUTCOMES["fail_replaced"].pack()
    ),
    "settled": f.Settled(
        durability="written", lost=1, correlation=8, raw=wire.POSITION.pack(3 << 20)
    ),
    "running": f.Running(raw=TOKENS),
    "watch": f.Watch(id=MINTED, position=3 << 20, wait_ms=60_000, correlation=9),
    "result": f.Result(
        id=MINTED,
        state=6,
        position=3 << 20,
        content=1,
        failures=2,
        finished_ms=3,
        run_ms=4,
        stored=True,
        correlation=9,
        raw=b"\x05",
    ),
    "forget": f.Forget(id="order:42", position=1, correlation=10),
    "cancel": f.Cancel(id="order:42", position=1, terminate=True, correlation=11),
    "declare": f.Declare(queue="emails", options={"fsync": "never"}, correlation=12),
    "purge": f.Purge(queue="emails", correlation=13),
    "peek": f.Peek(queue="emails", count=1, correlation=14),
    "peeked": f.Peeked(
        count=1,
        correlation=14,
        raw=wire.PEEKED.pack(3 << 20, 0, 1, 2, 0, 7, 3, 1) + b"why" + b"e" + PLAIN,
    ),
    "inspect": f.Inspect(what="queues", correlation=15),
    "report": f.Report(correlation=15, raw=b"{}"),
    "goaway": f.Goaway(reason="restart", deadline_ms=5_000),
    "blocked": f.Blocked(reason="disk"),
    "unblocked": f.Unblocked(),
    "revoke": f.Revoke(terminate=True, raw=TOKENS),
    "recall": f.Recall(raw=TOKENS),
    "control": f.Control(verb="drain", arguments={"deadline_ms": 1}),
    "bye": f.Bye(correlation=16),
    "error_shortest": f.Error(code="BAD_FRAME", message="", details={}),
    "consume_nothing": f.Consume(subscription=0, queues=[], credit=0, weights={}, correlation=1),
    "blocked_with_code": f.Blocked(reason="disk", code="RESOURCE_EXHAUSTED"),
    "search_preview": f.Search(correlation=19, preview="'order-17'"),
    "search": f.Search(
        correlation=17,
        task="shop.bill",
        queue="emails",
        worker="00ff",
        state=7,
        error="OSError",
        since_ms=1_700_000_000_000,
        until_ms=1_700_000_001_000,
        limit=5,
        after="1700000000500:3145728",
    ),
    "search_one": f.Search(correlation=18, id=MINTED),
    "pause_queue": f.PauseQueue(
        queue="emails",
        intake=True,
        dispatch=True,
        reason="the provider is down",
        author="ana",
        for_ms=600_000,
        correlation=19,
    ),
    "resume_queue": f.ResumeQueue(queue="emails", dispatch=True, correlation=20),
    "declare_exchange": f.DeclareExchange(
        exchange="events", kind="topic", options={"unroutable": "drop"}, correlation=19
    ),
    "delete_exchange": f.DeleteExchange(exchange="events", if_unused=True, correlation=20),
    "bind": f.Bind(
        exchange="events", key="order.#", destination="audit", arguments={}, correlation=21
    ),
    "unbind": f.Unbind(
        exchange="h",
        key="",
        destination="other",
        to_exchange=True,
        arguments={"x-match": "any", "kind": "paid"},
        correlation=22,
    ),
    "listen": f.Listen(listener=1, patterns=["task.#", "order.*.paid"], correlation=23),
    "notify": f.Notify(topic="order.eu.paid", correlation=24, raw=b"\x11"),
    "event": f.Event(listener=1, topic="order.eu.paid", dropped=3, raw=b"\x11"),
    "cancel_2": f.Cancel(id="order:42", position=1, terminate=True, grace_ms=5_000, correlation=11),
    "revoke_2": f.Revoke(terminate=True, grace_ms=5_000, raw=TOKENS),
    "cancel_many": f.CancelMany(
        queue="emails",
        task="shop.bill",
        key="tenant-9",
        states="ready,started",
        older_ms=60_000,
        purge=False,
        terminate=True,
        grace_ms=5_000,
        dry_run=True,
        correlation=21,
    ),
    "move": f.Move(
        queue="emails",
        to="slow",
        id="order:42",
        position=1,
        task="shop.bill",
        key="tenant-9",
        states="ready",
        older_ms=60_000,
        dry_run=True,
        correlation=22,
    ),
    "why": f.Why(id="order:42", position=1, correlation=23),
    "inspect_2": f.Inspect(what="queue", name="emails", correlation=15),
    "change_queue": f.ChangeQueue(
        queue="emails", options={"max_length": 5, "overflow": None}, correlation=41
    ),
    "delete_queue": f.DeleteQueue(queue="emails", if_empty=True, if_unused=True, correlation=42),
    "set_policy": f.SetPolicy(
        name="short",
        pattern="mail*",
        priority=5,
        operator=True,
        options={"max_length": 5},
        correlation=43,
    ),
    "drop_policy": f.SetPolicy(name="short", options={}, drop=True, correlation=44),
    "queue_gone": f.QueueGone(subscription=1, queue="emails", why="deleted by an operator"),
    "consume_names": f.Consume(
        subscription=1, queues=["q"], credit=1, weights={}, correlation=5, raw=b"\x09shop.mail\x00"
    ),
    "set_limit": f.SetLimit(
        name="shop.mail",
        rule={"queue": "emails", "per_key": True, "rate": 10, "window_ms": 60_000},
        origin="code",
        correlation=19,
    ),
    "drop_limit": f.DropLimit(name="shop.mail", origin="operator", correlation=20),
    "consume_2": f.Consume(subscription=1, queues=["emails"], credit=10, weights={}, correlation=5),
    "consume_strictly": f.Consume(
        subscription=1, queues=["a", "b"], credit=1, order="strict", weights={}, correlation=6
    ),
    "consume_weighted": f.Consume(
        subscription=1, queues=["a", "b"], credit=1, weights={"a": 5}, correlation=7
    ),
    "dead_letters": f.DeadLetters(
        queue="emails",
        task="shop.bill",
        cause="failed",
        error="Timeout",
        worker="0193",
        older_ms=60_000,
        after=7,
        limit=10,
        detail=2,
        id="order:42",
        position=1,
        correlation=51,
    ),
    "replay_dead": f.ReplayDead(
        queue="slow",
        due_ms=1_700_000_000_000,
        author="ana",
        raw=wire.LETTER.pack(3 << 20 | 7, 2),
        correlation=52,
    ),
    "edit_dead": f.EditDead(position=3 << 20, number=2, author="ana", raw=PLAIN, correlation=53),
    "drop_dead": f.DropDead(author="ana", raw=wire.LETTER.pack(3 << 20 | 7, 2), correlation=54),
    "published_existing": f.Published(
        first=3 << 20,
        count=2,
        durability="synced",
        existing=1,
        correlation=4,
        raw=pack_existing([(1, 2 << 20, False, b"invoice-1")]),
    ),
    "forget_key": f.ForgetKey(key="user-7", name="shop.mail", correlation=21),
    "result_noticed": f.Result(id="order:42", state=0, noticed_until_ms=3_600_000, correlation=9),
    "inputs": f.Inputs(
        position=4 << 20,
        grant=5 << 40 | 9,
        total=3,
        first=1,
        count=2,
        raw=wire.INPUT.pack(6, 1, 1) + b"\x05" + wire.INPUT.pack(wire.LOST, 0, 0),
    ),
    "fetch_inputs": f.FetchInputs(
        position=4 << 20, grant=5 << 40 | 9, first=1_000, correlation=TOP
    ),
    "cancel_graph": f.CancelGraph(
        id=MINTED, position=3 << 20, terminate=True, grace_ms=10_000, dry_run=True, correlation=11
    ),
}

CASES: dict[str, dict[str, Any]] = {
    "frames": FRAMES,
    "messages": MESSAGES,
    "outcomes": OUTCOMES,
    "policies": POLICIES,
    "failures": FAILURES,
}
