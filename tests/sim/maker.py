"""Messages of all kinds, as a seed's features have them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from qprotocol import wire as w
from qprotocol.ids import mint, unpack_id
from qprotocol.message import Message, pack_fields, pack_origin
from sim.flows import links_by_chance, packed
from sim.limits import lane_keys
from sim.oracle import Known, Oracle
from sim.swarm import Swarm
from sim.world import World

TASKS = ("t.one", "t.two")
EXCHANGE = "events"
LARGE_BYTES = 40_000
KEYED = ("limits", "ordering keys", "fair keys", "passing keys")
"""Features for which messages have lane keys."""


class Maker:
    """Makes messages; each is known to the oracle before anybody sends it."""

    def __init__(self, world: World, swarm: Swarm, oracle: Oracle) -> None:
        self.world = world
        self.swarm = swarm
        self.oracle = oracle
        self.uids = 0
        self.names = 0
        self.routes: dict[str, list[str]] = {}
        """Routing keys of the exchange to the queues that are bound for them, once they are."""
        self.default_relaxed = swarm.config["fsync"] != "always"

    def queue(self, rng: Random) -> str:
        names = list(self.swarm.queues)
        if self.swarm.has("hot queue") and rng.random() < 0.8:
            return names[0]
        return rng.choice(names)

    def relaxed(self, queue: str) -> bool:
        fsync = self.swarm.queues.get(queue, {}).get("fsync", "")
        return fsync != "always" if fsync else self.default_relaxed

    def make(
        self,
        rng: Random,
        *,
        in_parts: bool = False,
        like: Known | None = None,
        keyed: bool = False,
        node: bytes | None = None,
    ) -> Known:
        """A new message; ``like``: one that replaces that one, under its id; perhaps ``keyed``.

        With ``node``, packed, it is one of a graph.
        """
        has = self.swarm.has
        self.uids += 1
        queue = like.message.queue if like else self.queue(rng)
        message = Message(queue, b"%09d" % self.uids + bytes(self.filler(rng)))
        if has("tasks") and rng.random() < 0.7:
            message.task = rng.choice(TASKS)
        if has("priorities") and rng.random() < 0.5:
            message.priority = rng.choice((-100, -1, 0, 5, 100))
        if has("delays") and rng.random() < 0.25:
            message.due_ms = self.world.wall_ms() + rng.choice((40, 100, 800, 3_000, 12_000))
        if has("expiry") and rng.random() < 0.2:
            message.expires_ms = self.world.wall_ms() + rng.choice((50, 1_000, 5_000, 60_000))
        if has("acks early") and message.task and rng.random() < 0.3:
            message.flags |= w.ACK_EARLY
        if like:
            message.keys = like.message.keys
        elif any(map(has, KEYED)):
            message.keys = lane_keys(rng, self.swarm).pack()
        if like:
            message.due_ms = 0  # what replaces waits as long as its outcome says
            message.id, message.task = like.id, like.message.task
            message.parent = str(like.uid)
        elif message.task or rng.random() < 0.3:
            message.id = self.name(rng)
        keyed = keyed and bool(message.id) and has("unique keys") and not self.relaxed(queue)
        keyed = keyed and rng.random() < 0.3
        if keyed:
            self.oracle.keys.choose(rng, message, self.uids, has)
        if node is not None:
            message.fields, message.flags = pack_fields({w.NODE: node}), message.flags | w.MARKED
        # Others with its key may move its time.
        in_order = not in_parts and not (keyed and has("key conflicts"))
        return self.oracle.add(message, self.uids, relaxed=self.relaxed(queue), in_order=in_order)

    def make_graph(self, rng: Random, count: int) -> list[Known]:
        """The messages of a graph."""
        links = links_by_chance(rng, count)
        nodes = [self.make(rng, in_parts=True, node=field) for field in packed(links)]
        self.oracle.flows.weave(nodes, links)
        return nodes

    def make_routed(self, rng: Random, *, in_parts: bool) -> list[Known]:
        """One message for an exchange: the copies that it becomes."""
        key = rng.choice(list(self.routes))
        first = self.make(rng, in_parts=in_parts)
        oracle, source = self.oracle, first.message
        if source.id:
            oracle.by_id[source.id].remove(first)
        del oracle.known[first.uid]
        source = replace(source, id="", exchange=EXCHANGE, queue=key)
        copies = []
        for index, queue in enumerate(self.routes[key]):
            self.uids += 1
            fields = pack_fields({w.ORIGIN: pack_origin(EXCHANGE, key)})
            flags = source.flags | w.MARKED
            copy = replace(source, exchange="", queue=queue, fields=fields, flags=flags)
            relaxed = self.relaxed(queue)
            known = oracle.add(copy, self.uids, relaxed=relaxed, in_order=not in_parts)
            oracle.add_copy(known, first.uid, b"" if index else source.pack())
            copies.append(known)
        self.world.sometimes["a message became several"] += len(copies) > 1
        return copies

    def filler(self, rng: Random) -> int:
        if self.swarm.has("large bodies") and rng.random() < 0.05:
            return rng.randint(5_000, LARGE_BYTES)
        return rng.choice((0, 10, 100))

    def name(self, rng: Random) -> str:
        if self.swarm.has("named ids") and rng.random() < 0.4:
            self.names += 1
            return f"order-{self.names}"
        if self.swarm.has("minted ids"):
            return unpack_id(mint(self.world.wall_ms(), rng.getrandbits(80)), minted=True)
        return ""
