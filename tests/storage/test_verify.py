"""Verification: one root hash that says whether two campaigns have the same results, and names what is damaged."""

import hashlib
import json

import pytest

from storage import NotFound, Ref
from storage.verify import verify

DIGEST = "0123456789abcdef"
A, B = Ref("sft", "v0", "a" * 16), Ref("sft", "v1", "b" * 16)


def make(store, one, text="{}", **record):
    draft = store.draft(one)
    (draft.path / "x.json").write_text(text)
    return draft.commit({"seconds": id(draft), **record})


def test_the_root_by_hand_and_what_it_covers(store):
    make(store, A, "1")
    make(store, B, "2", inputs=[A.key])
    store.campaign("c", DIGEST).note("v1", B)
    seen = []
    found = verify(store, "c", DIGEST, seen.append)
    roots = {}
    for one, text in ((A, b"1"), (B, b"2")):
        inner = json.dumps({"x.json": hashlib.sha256(text).hexdigest()}, separators=(",", ":"))
        roots[one.key] = hashlib.sha256(inner.encode()).hexdigest()
    assert found.root == hashlib.sha256(json.dumps(roots, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert (found.artifacts, found.files, found.bytes, found.problems) == (2, 2, 2, ())
    assert seen == [A.key, B.key]


def test_damage_is_listed_file_by_file(store):
    made = make(store, A, "1")
    make(store, B, "2")
    for one in (A, B):
        store.campaign("c", DIGEST).note("m", one)
    store.put(f"artifacts/{A.key}/{made.attempt}/x.json", b"9")
    store.delete(f"artifacts/{B.key}/manifest.json")
    found = verify(store, "c", DIGEST)
    assert len(found.problems) == 2
    assert f"{made.attempt}/x.json has SHA-256" in found.problems[0] and B.key in found.problems[1]


def test_nothing_to_verify_is_an_error(store):
    with pytest.raises(NotFound, match="nothing to verify"):
        verify(store, "c", DIGEST)


def test_an_input_that_is_gone_is_a_problem_though_no_campaign_notes_it(store):
    make(store, A, "1")
    make(store, B, "2", identity={"inputs": {"model": A.key}}, comment=f"sft/v7-{'c' * 16} only looks like a name")
    store.campaign("c", DIGEST).note("v1", B)
    assert verify(store, "c", DIGEST).problems == ()
    store.delete(f"artifacts/{A.key}/manifest.json")
    (problem,) = verify(store, "c", DIGEST).problems
    assert A.key in problem and "no such object" in problem


def test_a_planted_file_is_a_problem(store):
    made = make(store, A, "1")
    store.campaign("c", DIGEST).note("v0", A)
    store.put(f"artifacts/{A.key}/{made.attempt}/evil.pkl", b"x")
    (problem,) = verify(store, "c", DIGEST).problems
    assert "evil.pkl is not part of this result" in problem
