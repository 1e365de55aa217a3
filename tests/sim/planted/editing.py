"""A planted bug: some text of one function is another one, in this process.

The function's code is swapped in place, so that tables and bound names that hold the
function see the bug, too. A text that is not there any more fails loudly: the bug must
then be planted where the code has gone.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Planted:
    """One bug: ``where`` is module:function or module:Class.method."""

    name: str
    breaks: str
    where: str
    old: str
    new: str
    focus: frozenset[str] = frozenset()
    """Features and faults to hunt with, where it takes a rare moment; else each seed's own."""

    def changed(self) -> tuple[Any, str]:
        """The function, and its source with the bug. Raises LookupError if the text is gone."""
        module, _, path = self.where.partition(":")
        function: Any = importlib.import_module(module)
        for part in path.split("."):
            function = inspect.getattr_static(function, part)
        if isinstance(function, property):
            function = function.fget
        elif isinstance(function, classmethod):
            function = function.__func__
        source = textwrap.dedent(inspect.getsource(function))
        count = source.count(self.old)
        if count != 1:
            raise LookupError(f"{self.name}: {self.old!r} is {count} times in {self.where}")
        return function, source.replace(self.old, self.new)

    def compiled(self) -> tuple[Any, Any]:
        """The function, and what makes one with the bug. Raises SyntaxError if that is no text."""
        function, source = self.changed()
        lines = source.splitlines()
        while lines[0].startswith("@"):
            del lines[0]
        text = "\n".join(("from __future__ import annotations", *lines))
        return function, compile(text, "planted", "exec")

    def plant(self) -> None:
        """From now on, in this process, the bug is there."""
        function, code = self.compiled()
        scope = dict(function.__globals__)
        exec(code, scope)
        function.__code__ = scope[function.__name__].__code__
