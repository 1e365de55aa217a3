"""A table of many generations, against one dict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qbroker.core import generations
from qbroker.core.generations import GENERATION_MAX, Generations

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200)


@given(STEPS, st.integers(1, 5))
def test_it_is_an_ordered_map(steps: list[tuple[bool, int]], size: int) -> None:
    table, model = Generations[str](), dict[int, str]()
    generations.GENERATION_MAX, before = size, GENERATION_MAX
    try:
        for is_drop, position in steps:
            if is_drop or position in model:
                assert table.pop(position) == model.pop(position, None)
            else:
                table.add(position, str(position))
                model[position] = str(position)
            assert list(table.items()) == list(model.items())
            assert list(table.values()) == list(model.values())
            assert list(table) == list(model)
            assert len(table) == len(model)
            assert (position in table) == (position in model)
            assert table.get(position) == model.get(position)
    finally:
        generations.GENERATION_MAX = before


def test_what_is_over_takes_no_memory() -> None:
    table = Generations[int]()
    for position in range(2 * GENERATION_MAX + 1):
        table.add(position, position)
    sizes = [len(each) for each in table._generations]
    assert sizes == [GENERATION_MAX, GENERATION_MAX, 1]
    for position in range(2 * GENERATION_MAX):
        table.pop(position)
    assert [len(each) for each in table._generations] == [1]
    table.pop(2 * GENERATION_MAX)
    assert [each.__sizeof__() for each in table._generations] == [{}.__sizeof__()]
