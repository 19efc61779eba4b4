"""Training rows in a file without a name, read when they are needed: memory does not grow with their number."""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from engine.examples import Item
from storage.errors import unwritable


class _File:
    """An open file that has no name and ends with its last user."""

    def __init__(self) -> None:
        self.descriptor, path = tempfile.mkstemp()
        os.unlink(path)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = 0

    def append(self, data: bytes) -> int:
        """Write at the end; returns where that was."""
        begin, view = self.size, memoryview(data)
        try:
            while view:
                written = os.pwrite(self.descriptor, view, self.size)
                self.size, view = self.size + written, view[written:]
        except OSError as err:
            raise unwritable(err, f"{tempfile.gettempdir()} (TMPDIR, where training keeps its rows)") from err
        return begin

    def read(self, first: int, size: int) -> bytes:
        """The bytes from `first` on."""
        return os.pread(self.descriptor, size, first)


class Spool(Sequence[Item]):
    """Items in the order in which they were appended; each access makes a new one, equal to what was put in.

    What is selected from a spool shares its file.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._file = _File()
        self._starts, self._sizes = array("q"), array("q")
        self.extend(items)

    def append(self, item: Item) -> None:
        """Write one item at the end."""
        arrays = [item.prompt, *item.responses]
        marks = [None if one is None else len(one) for one in item.learned]
        head = [
            [len(ids) for ids in arrays],
            marks,
            item.scores,
            item.labels,
            item.grade,
            item.weight,
            item.key,
            item.tags,
        ]
        text = json.dumps(head).encode()
        pieces = [len(text).to_bytes(4, "little"), text, *(ids.astype(np.int32).tobytes() for ids in arrays)]
        pieces += [one.astype(np.bool_).tobytes() for one in item.learned if one is not None]
        data = b"".join(pieces)
        self._starts.append(self._file.append(data))
        self._sizes.append(len(data))

    def extend(self, items: Iterable[Item]) -> None:
        """Append all of them."""
        for item in items:
            self.append(item)

    def at(self, places: Iterable[int]) -> "Spool":
        """The items at these places, as a spool of their own."""
        found = Spool.__new__(Spool)
        found._file, found._starts, found._sizes = self._file, array("q"), array("q")
        for place in places:
            found._starts.append(self._starts[place])
            found._sizes.append(self._sizes[place])
        return found

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> "Spool": ...

    def __getitem__(self, place: int | slice) -> "Item | Spool":
        if isinstance(place, slice):
            return self.at(range(len(self))[place])
        data = self._file.read(self._starts[place], self._sizes[place])
        first = 4 + int.from_bytes(data[:4], "little")
        lengths, marks, scores, labels, grade, weight, key, tags = json.loads(data[4:first])

        def take(count: int, kind: type[Any]) -> np.ndarray:
            nonlocal first
            begin, first = first, first + count * np.dtype(kind).itemsize
            return np.frombuffer(data[begin:first], dtype=kind).copy()

        prompt, *responses = [take(count, np.int32) for count in lengths]
        learned = tuple(None if count is None else take(count, np.bool_) for count in marks)
        return Item(
            prompt, tuple(responses), learned, tuple(scores), tuple(map(tuple, labels)), grade, weight, key, tags
        )
