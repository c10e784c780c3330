"""Variables outside of a function that it assigns to, `global` and `nonlocal` ones, as a loss that counts does."""

from __future__ import annotations

import contextlib
import dis
from collections.abc import Callable, Iterable, Iterator
from types import CellType, FunctionType
from typing import Any

from .reach import functions_within

__all__ = ["Variables"]

_UNSET = object()


class Variables:
    """What functions, and those of the user's that they reach, assign to outside of themselves.

    Args:
        functions: of the user's.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._cells: list[CellType] = []
        self._globals: list[tuple[dict[str, Any], str]] = []
        for function in functions_within(functions):
            self._look(function)

    def _look(self, function: FunctionType) -> None:
        code = function.__code__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for instruction in dis.get_instructions(code):
            if instruction.opname == "STORE_DEREF" and instruction.argval in cells:
                self._cells.append(cells[instruction.argval])
            elif instruction.opname == "STORE_GLOBAL":
                self._globals.append((function.__globals__, instruction.argval))

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Put back their values on exit, by reference."""
        cells = [(cell, _content(cell)) for cell in self._cells]
        names = [(table, name, table.get(name, _UNSET)) for table, name in self._globals]
        try:
            yield
        finally:
            for cell, content in cells:
                if content is not _UNSET:
                    cell.cell_contents = content
            for table, name, value in names:
                if value is not _UNSET:
                    table[name] = value
                else:
                    table.pop(name, None)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _UNSET
