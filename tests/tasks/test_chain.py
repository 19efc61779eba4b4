"""tasks.chain: refreshes are recorded create-only and found without listing or a pointer."""

from pathlib import Path

import pytest
from servers import Server

from configs import ConfigError
from configs.gathering import Gather
from storage import StorageError, Store, open_store
from tasks.chain import Begun, Chain, Entry

KEY = "rows/gather-" + "0" * 16


def entry(number: int, base: str = "model/continuing-" + "0" * 16) -> Entry:
    return Entry(
        number=number, base=base, gather=KEY, corpus=KEY, measure=KEY, decision=KEY, action="nothing", chat=base, config={}
    )  # fmt: skip


@pytest.fixture(params=["folder", *(pytest.param(n, marks=pytest.mark.s3) for n in ("rclone", "moto"))])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "store")
    server: Server = request.getfixturevalue(request.param)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return open_store(server.url())


def test_entries_are_found_in_order_and_kept(store: Store) -> None:
    chain = Chain(store, "tiny-refresh", "0" * 16)
    assert chain.entries() == []
    for number in range(1, 13):
        chain.close(entry(number))
    assert [e.number for e in chain.entries()] == list(range(1, 13))
    chain.close(entry(5))  # the same again changes nothing
    assert Chain(store, "tiny-refresh", "1" * 16).entries() == []


def test_a_second_writer_with_another_result_is_told(store: Store) -> None:
    chain = Chain(store, "tiny-refresh", "0" * 16)
    chain.close(entry(1))
    with pytest.raises(ConfigError, match=r"r0001.json: another run has recorded this refresh meanwhile; run again"):
        chain.close(entry(1, base="model/continuing-" + "1" * 16))
    assert chain.entries() == [entry(1)]


def test_what_was_begun_stays_pinned(store: Store) -> None:
    chain = Chain(store, "tiny-refresh", "0" * 16)
    assert chain.begun(1) is None
    begun = Begun(number=1, gather=KEY, recipe=Gather(near=0.9))
    chain.begin(begun)
    chain.begin(begun)
    assert chain.begun(1) == begun and chain.begun(2) is None
    with pytest.raises(ConfigError, match="another run has recorded"):
        chain.begin(Begun(number=1, gather=KEY, recipe=Gather(near=0.7)))


def test_who_follows_up_first_is_right(store: Store) -> None:
    chain = Chain(store, "tiny-refresh", "0" * 16)
    assert chain.followed(1) is None
    chain.follow(1, "run a")
    chain.follow(1, "run b")
    assert chain.followed(1) == "run a"


def test_a_damaged_entry_is_an_error_not_the_end_of_the_chain(tmp_path: Path) -> None:
    chain = Chain(open_store(tmp_path / "store"), "tiny-refresh", "0" * 16)
    for number in (1, 2):
        chain.close(entry(number))
    path = tmp_path / f"store/refreshes/tiny-refresh-{'0' * 16}/r0001.json"
    path.write_bytes(path.read_bytes().replace(b"nothing", b"rounds!"))
    with pytest.raises(StorageError, match=r"r0001.json: damaged .*; restore it"):
        chain.entries()
