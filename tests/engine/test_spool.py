"""engine.spool: items come back from the file as they were put in."""

import errno
from typing import Any

import numpy as np
import pytest

from engine.examples import Item
from engine.spool import Spool
from storage.errors import StorageError

ids = lambda *values: np.array(values, dtype=np.int32)
ITEMS = [
    Item(ids(1, 2), (ids(3), ids(4, 70_000)), (None, None), (1.0, 0.1 + 0.2), ((1.0,), (-1.0,)), grade=3.0,
         key='["\u00e9\ud800"]', tags={"kind": "safety", "grade": 3}),
    Item(ids(5), (ids(6, 7, 8),), (np.array([True, False, True]),), (0.0,), weight=1e-300),
    Item(ids(9), (ids(),), (None,), (0.0,), ((), ())),
]  # fmt: skip


def same(a: Item, b: Item) -> bool:
    plain = [(i.scores, i.labels, i.grade, i.weight, i.key, dict(i.tags), i.lengths) for i in (a, b)]
    arrays = [[i.prompt, *i.responses, *i.learned] for i in (a, b)]
    equal = lambda x, y: (x is y) or (x.dtype == y.dtype and np.array_equal(x, y) and y.flags.writeable)
    return plain[0] == plain[1] and len(arrays[0]) == len(arrays[1]) and all(map(equal, *arrays))


def test_items_come_back_as_they_were_put_in() -> None:
    spool = Spool(ITEMS)
    assert len(spool) == 3 and all(map(same, ITEMS, spool)) and same(ITEMS[2], spool[-1])
    spool.append(ITEMS[0])  # also after it was read
    assert len(spool) == 4 and same(ITEMS[0], spool[3])
    assert spool[0].scores == (1.0, 0.30000000000000004)


def test_a_selection_is_a_spool_that_outlives_its_source() -> None:
    spool = Spool(ITEMS)
    chosen, tail = spool.at([2, 0, 0]), spool[1:]
    spool.append(ITEMS[1])
    del spool
    assert len(chosen) == 3 and all(map(same, [ITEMS[2], ITEMS[0], ITEMS[0]], chosen))
    assert len(tail) == 2 and all(map(same, ITEMS[1:], tail))


def test_a_full_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(StorageError, match=r"TMPDIR.*No space left"):
        Spool(ITEMS)
