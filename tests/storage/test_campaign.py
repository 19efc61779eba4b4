"""Campaign records: created once, notes are never lost, oldest first."""

import pytest
from scenario import over

from storage import AlreadyExists, Corrupt, NotFound, Ref, Refused

DIGEST = "0123456789abcdef"


def ref(number):
    return Ref("sft", f"v{number}", f"{number:016x}")


def test_a_body_is_created_once(store, another):
    record = store.campaign("tiny", DIGEST)
    with pytest.raises(NotFound):
        record.body()
    record.create({"seed": 1, "rounds": [{"method": "ppo"}]})
    another.campaign("tiny", DIGEST).create({"rounds": [{"method": "ppo"}], "seed": 1})
    with pytest.raises(AlreadyExists, match="another body"):
        another.campaign("tiny", DIGEST).create({"seed": 2})
    assert another.campaign("tiny", DIGEST).body() == {"seed": 1, "rounds": [{"method": "ppo"}]}
    store.campaign("with-dashes-0", "f" * 16).create({})
    assert store.campaigns() == [("tiny", DIGEST), ("with-dashes-0", "f" * 16)]


def test_notes_come_back_oldest_first_from_any_writer(store, another):
    one, two = store.campaign("tiny", DIGEST), another.campaign("tiny", DIGEST)
    one.note("v0", ref(0))
    two.note("reward", ref(5))
    one.note("v1", ref(1))
    two.note("reward", ref(6))
    one.note("reward", ref(5))  # said before
    expected = {"v0": [ref(0)], "reward": [ref(5), ref(6)], "v1": [ref(1)]}
    assert one.notes() == two.notes() == store.campaign("tiny", DIGEST).notes() == expected
    assert len(store.list(f"campaigns/tiny-{DIGEST}")) == 4
    assert store.campaigns() == []  # notes alone are not a campaign


def test_two_writers_at_once_lose_nothing(store, another):
    one, two = store.campaign("tiny", DIGEST), another.campaign("tiny", DIGEST)
    one.notes(), two.notes()
    one._read_notes = two._read_notes = dict  # neither sees the other: both take the same number
    one.note("a", ref(1))
    two.note("b", ref(2))
    assert store.campaign("tiny", DIGEST).notes() == {"a": [ref(1)], "b": [ref(2)]}


def test_a_listing_that_misses_notes_loses_none_but_the_last(store, monkeypatch):
    record = store.campaign("tiny", DIGEST)
    for number in range(5):
        record.note("x", ref(number))
    listed = store.backend.list
    monkeypatch.setattr(store.backend, "list", lambda *a, **k: iter(list(listed(*a, **k))[-1:]))
    assert store.campaign("tiny", DIGEST).notes() == {"x": [ref(number) for number in range(5)]}


@over("damage", [b"", b"[]", b"{}", b'{"label":"x","ref":"../x","seen":[]}', b"\xff", b'"x"', b"flip"])
def test_damage_is_named(store, damage):
    record = store.campaign("tiny", DIGEST)
    record.create({"a": 1})
    record.note("x", ref(1))
    note = store.list(f"campaigns/tiny-{DIGEST}")[0]
    store.put(note, store.get(note).replace(b'"x"', b'"y"') if damage == b"flip" else damage)
    with pytest.raises(Corrupt, match=note):
        store.campaign("tiny", DIGEST).notes()
    again = store.campaign("tiny", DIGEST)
    again.note("x", ref(1))  # a rerun says it again
    assert store.campaign("tiny", DIGEST).notes() == {"x": [ref(1)]}
    store.put(f"campaigns/tiny-{DIGEST}.json", store.get(f"campaigns/tiny-{DIGEST}.json").replace(b"1", b"3"))
    with pytest.raises(Corrupt, match=f"tiny-{DIGEST}"):
        store.campaign("tiny", DIGEST).body()
    again.create({"a": 1})
    assert again.body() == {"a": 1}


def test_a_damaged_note_that_a_later_one_repeats_is_no_loss(store):
    record = store.campaign("tiny", DIGEST)
    record.note("x", ref(1))
    record.note("x", ref(2))
    store.put(store.list(f"campaigns/tiny-{DIGEST}")[0], b"damaged")
    assert store.campaign("tiny", DIGEST).notes() == {"x": [ref(1), ref(2)]}


def test_labels_are_names_and_states_are_hints(store):
    record = store.campaign("tiny", DIGEST)
    with pytest.raises(Refused):
        record.note("../x", ref(1))
    assert record.get_state("last-run") is None
    record.put_state("last-run", b"abc")
    assert store.campaign("tiny", DIGEST).get_state("last-run") == b"abc"
    assert store.campaigns() == []


def test_the_value_of_a_secret_variable_is_not_recorded(store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    with pytest.raises(Refused, match="its config holds the value of HF_TOKEN") as found:
        store.campaign("tiny", DIGEST).create({"base": {"adopt": {"revision": "correct-horse-battery"}}})
    assert "horse" not in str(found.value)
    with pytest.raises(NotFound):
        store.campaign("tiny", DIGEST).body()
