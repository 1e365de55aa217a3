"""What steps give to the step behind them, as its first argument.

A node of a graph is given what became of those before it, one behind the other in the order in
which they were published. Its body says what to make of that, as a third item behind arguments
and keyword arguments::

    [args, kwargs]                  each of them is an argument, in front of the others
    [args, kwargs, []]              it takes nothing
    [args, kwargs, [nest]]          one argument: a list, which may hold lists
    [args, kwargs, [nest, order]]   the same, and the n-th value of it is number order[n]

A nest is 0, one value, or the lists in it as [count, nest, count, nest ...]: the results of a
group of a hundred thousand are [100000, 0].
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from qclient.serialization import DecodeError

Nest = int | list[Any]
VALUE: Nest = 0
"""One value, no list."""
NOTHING: list[Any] = []
"""The third item of a body that takes no inputs."""
MISFITS = TypeError, ValueError, IndexError, RuntimeError, StopIteration, AssertionError
"""What a shape that is none of ours may come to."""


def nest_of(members: Sequence[Nest]) -> Nest:
    """The list of these; neighbours that are alike take no more room than one."""
    found: list[Any] = []
    for member in members:
        if found and found[-1] == member:
            found[-2] += 1
        else:
            found += (1, member)
    return found


def nested(nest: Nest, values: Iterator[Any]) -> Any:
    """The next values, in lists as the nest says."""
    if nest == VALUE:
        return next(values)
    assert isinstance(nest, list)
    found: list[Any] = []
    for count, member in zip(nest[::2], nest[1::2], strict=True):
        if member == VALUE:
            taken = list(islice(values, count))
            if len(taken) != count:
                raise IndexError(f"{len(taken)} values where {count} are to be")
            found += taken
        else:
            found += [nested(member, values) for _ in range(count)]
    return found


def arguments(shape: Sequence[Any] | None, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments that a body's third item makes of the inputs; None if it has none.

    Raises DecodeError for a shape that does not fit them.
    """
    if shape is None:
        return tuple(inputs)
    if not shape:
        return ()
    nest, order = shape[0], shape[1] if len(shape) > 1 else None
    try:
        values = iter(inputs if order is None else [inputs[number] for number in order])
        made = nested(nest, values)
    except (
        TypeError,
        ValueError,
        IndexError,
        RuntimeError,
        StopIteration,
        AssertionError,
    ) as error:
        raise DecodeError(f"{len(inputs)} inputs do not fit the shape of the call") from error
    if next(values, values) is not values:
        raise DecodeError(f"{len(inputs)} inputs are more than the shape of the call takes")
    return (made,)
