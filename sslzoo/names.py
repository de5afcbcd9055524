"""The names of millions of files in little memory."""

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import Self, overload


class Names(Sequence[str]):
    """Names of files in one block of bytes: each costs its letters and 8 bytes, where a string costs 57 more.

    Of a block, unlike of a million strings, forked workers of a data loader also make no copies by counting references.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._block = bytearray()
        self._ends = array("q", [0])  # of name i: ends[i + 1]
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._block += os.fsencode(name)  # any name that a file can have
        self._ends.append(len(self._block))

    def take(self, indices: Iterable[int]) -> Self:
        """Return the names at these indices, in this order."""
        return type(self)(self[i] for i in indices)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Self: ...
    def __getitem__(self, i: int | slice) -> str | Self:
        if isinstance(i, slice):
            return self.take(range(len(self))[i])
        i = range(len(self))[i]  # counts from the end, and raises, as a list does
        return os.fsdecode(bytes(self._block[self._ends[i] : self._ends[i + 1]]))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._block == other._block and self._ends == other._ends
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]  # it grows, like a list

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{', ...' if len(self) > 3 else ''}, {len(self):,} in all)"
