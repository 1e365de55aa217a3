"""Limits and ordering keys in a snapshot: what the leases do not say."""

from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.limiting import enter
from qbroker.core.state import BrokerState
from qprotocol.limitrules import CODE, OPERATOR, LimitRule

Block = bytes | memoryview


def save_limits(state: BrokerState) -> bytes:
    """A row a rule, with the keys that have spent tokens; two columns: how many, and when."""
    rows, columns = [], []
    for name, limit in state.limits.by_name.items():
        said = [rule.as_dict() if rule else None for rule in (limit.operator, limit.code)]
        spent = {key: g.bucket for key, g in limit.gates.items() if g.bucket.missing}
        rows.append([name, *said, list(spent)])
        columns.append(column(bucket.missing for bucket in spent.values()))
        columns.append(column(bucket.at_ms for bucket in spent.values()))
    return pack_columns(rows, columns)


def restore_limits(state: BrokerState, block: Block) -> None:
    """After the leases, which are counted: they say what slots are taken."""
    rows, columns = unpack_columns(block)
    for row, (name, operator, code, keys) in enumerate(rows):
        for origin, said in ((CODE, code), (OPERATOR, operator)):
            if said:
                limit = state.limits.say(name, origin, LimitRule.parse(said))
        enter(state, limit, limit.rule)
        spent = columns[2 * row : 2 * row + 2]
        for key, missing, at_ms in zip(keys, *spent, strict=True):
            gate = limit.gate(key)
            gate.bucket.missing, gate.bucket.at_ms = missing, at_ms
            state.limits.fades(gate)


def save_orderings(state: BrokerState) -> bytes:
    """A row a key whose holder waits; those that are out are leases."""
    rows = [
        [*key, each.position, each.run.number, each.is_ready]
        for key, each in state.orderings.items()
        if each.run and not each.is_free
    ]
    return pack_columns(rows)


def restore_orderings(state: BrokerState, block: Block) -> None:
    """After the leases, which hold their keys, too."""
    for number, key, position, run, is_ready in unpack_columns(block)[0]:
        where = state.run_numbered(run)
        state.orderings[number, key].waits(where, position, is_ready=is_ready)
