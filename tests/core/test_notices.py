"""Cancels that come before their messages: any order of cancels, publishes, crashes and time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from digest import exact
from harness import Harness
from qbroker.core.broker import Broker
from qbroker.core.settings import Settings
from qbroker.core.snapshot import decode, encode
from qprotocol.states import State

NAMES = ("n1", "n2", "01900000-0000-7000-8000-000000000001")
HOUR_MS, MOST = 3_600_000, 2
SETTINGS = Settings(cancel_notices_max=MOST, cancel_notice_ttl_ms=HOUR_MS, result_ttl_ms=1_000)
ASK = st.tuples(st.sampled_from(("cancel", "publish", "parts", "follow")), st.sampled_from(NAMES))
STEP = st.one_of(ASK, ASK, st.sampled_from((("wait 2s", ""), ("wait 50m", ""), ("crash", ""))))


class Story:
    """What was done, and what must have come of it."""

    def __init__(self) -> None:
        self.harness = Harness(SETTINGS)
        self.notices: dict[str, int] = {}
        """The oldest first, to when they end."""
        self.alive: set[str] = set()
        self.ended: dict[str, int] = {}
        """To when nobody remembers them."""
        self.run("publish q=work " + " ".join(f"work{i}" for i in range(30)))
        self.work = iter(range(30))

    @property
    def now_ms(self) -> int:
        return self.harness.machine.wall_ms

    def run(self, line: str) -> str:
        return "\n".join(self.harness.run(line))

    def state(self, name: str) -> str:
        told = self.run(f"watch id={name}").split()
        return told[told.index("Result") + 1]

    def expected(self, name: str) -> str:
        if name in self.alive:
            return State.QUEUED.name
        return "REVOKED" if self.ended.get(name, 0) > self.now_ms else "UNKNOWN"

    def cancel(self, name: str) -> None:
        was = self.expected(name)
        told = self.run(f"cancel id={name}")
        assert ("noticed_until_ms" in told) == (was == "UNKNOWN")
        if was == "UNKNOWN":
            self.notices.pop(name, None)
            self.notices[name] = self.now_ms + HOUR_MS
            while len(self.notices) > MOST:
                del self.notices[next(iter(self.notices))]
        elif was == "QUEUED":
            self.over(name)

    def over(self, name: str) -> None:
        self.alive.discard(name)
        self.ended[name] = self.now_ms + 1_000

    def came(self, name: str) -> None:
        """A message with that name was confirmed."""
        if self.notices.pop(name, 0) > self.now_ms:
            self.over(name)
        else:
            self.alive.add(name)

    def send(self, how: str, name: str) -> None:
        if name in self.alive:
            return  # one that is minted is never sent twice
        if how == "publish":
            self.run(f"publish id={name} x")
        elif how == "parts":
            self.run(f"part as=9 index=0 id={name} x")
            self.run("end as=9 count=2 q=work y")
        else:
            body = f"work{next(self.work)}"
            self.run("consume q=work credit=100")
            self.run(f"done {body} then=x id={name}")
            self.run("unsubscribe")
        self.came(name)


@settings(deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_a_notice_is_for_one_message_and_lasts_as_long_as_it_says(
    steps: list[tuple[str, str]],
) -> None:
    story = Story()
    for verb, name in steps:
        if verb == "cancel":
            story.cancel(name)
        elif name:
            story.send(verb, name)
        else:
            story.run(verb)
        for each in NAMES:
            assert story.state(each) == story.expected(each), (verb, name)
        machine = story.harness.machine
        state = machine.core.state
        live = {n for n, until in story.notices.items() if until > story.now_ms}
        assert len(state.notices.ids) <= MOST
        assert len(live) == sum(until > story.now_ms for until in state.notices.ids.values())
        assert state.keys.doomed == {}
        again = Broker(SETTINGS, decode(SETTINGS, dict(encode(state)))).state
        assert exact(again) == exact(state)
