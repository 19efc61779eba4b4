"""Every stored file damaged in eight ways: never used, named, and made anew with the same bytes."""

import random

import pytest
from scenario import CAMPAIGN, REF, die_at, expected_root, in_child, run_stage

from storage import Corrupt, Refused, open_store
from storage.verify import verify

SLOW = pytest.mark.slow


def damages(data: bytes, other: bytes, draw: random.Random):
    at = draw.randrange(len(data)) if data else 0
    yield "flipped", data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :] if data else b"x"
    yield "truncated", data[: len(data) // 2]
    yield "empty", b""
    yield "deleted", None
    yield "swapped", other
    yield "appended", data + b"\n{}"
    yield "garbage", draw.randbytes(max(len(data), 16))
    yield "zeros", bytes(len(data))


def prepare(home, killed_at):
    """Make a store with a finished stage, or one killed in its work."""
    log = home / "log"

    def work():
        if killed_at:
            die_at(home / "store", killed_at)
        run_stage(home / "store", None, log, ttl=1)

    in_child(work)


def finish(home) -> bool:
    """Run the stage and read its result, as the next stage would; again if the result was found damaged."""
    store = open_store(home / "store")
    for _ in range(2):
        assert in_child(lambda: run_stage(home / "store", None, home / "log", ttl=1)) == 0
        try:
            store.fetch(REF)
            break
        except (Corrupt, Refused) as err:
            assert REF.key in str(err)
    assert store.manifest(REF).root == expected_root()
    assert {path.name for path in store.fetch(REF).rglob("*.json")} == {"model.json", "0.json"}
    assert store.campaign(*CAMPAIGN).notes() == {"v0": [REF]}
    return verify(store, *CAMPAIGN).problems == ()


@pytest.mark.parametrize("killed_at", [0, 150, pytest.param(70, marks=SLOW), pytest.param(195, marks=SLOW)])
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=SLOW)])
def test_every_file_in_eight_ways(tmp_path, tally, killed_at, stride):
    (tmp_path / "0").mkdir()
    prepare(tmp_path / "0", killed_at)
    names = sorted(path.relative_to(tmp_path / "0/store").as_posix() for path in (tmp_path / "0/store").rglob("*.*"))
    names = [name for name in names if (tmp_path / "0/store" / name).is_file() and "_beside" not in name]
    assert len(names) >= 5
    draw, number, tried, kinds = random.Random(1), 0, 0, set()
    for index, name in enumerate(names):
        for kind in range(8):
            number += 1
            if number % stride:
                continue
            home = tmp_path / f"{index}-{kind}"
            home.mkdir()
            prepare(home, killed_at)
            found = sorted(
                path for path in (home / "store").rglob("*.*") if path.is_file() and "_beside" not in str(path)
            )
            path, other = found[index], found[index - 1]
            what, data = list(damages(path.read_bytes(), other.read_bytes(), draw))[kind]
            if data is None:
                path.unlink()
            elif data == path.read_bytes():
                continue
            else:
                path.write_bytes(data)
            assert finish(home), f"{name} {what}"
            tried += 1
            kinds.add(what)
    tally("stored files damaged in eight ways, then recovered", tried, f"damages of {len(names)} files")
    assert tried > 8 * len(names) // stride - 5 and len(kinds) == 8
