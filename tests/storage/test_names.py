"""Names that are safe everywhere, and JSON with one form."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import Ref, Refused, canonical_json, digest, open_store, sha256_file
from storage.names import check_key, parse_json

SEGMENT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,40}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(SEGMENT, SEGMENT, st.from_regex(r"[0-9a-f]{16}", fullmatch=True))
def test_a_ref_survives_its_key(kind, name, hexes):
    assert Ref.parse(Ref(kind, name, hexes).key) == Ref(kind, name, hexes)


@pytest.mark.parametrize(
    "bad",
    [
        "../x",
        "/abs",
        "a b",
        "a\0b",
        "a?versionId=z",
        "*",
        "",
        ".hidden",
        "a/b",
        "a\nb",
        "x" * 129,
        "é",
        "a\u202eb",
        "-a",
    ],
)
def test_names_are_an_allowlist(bad, tmp_path):
    with pytest.raises(Refused):
        Ref("sft", bad, "0" * 16)
    with pytest.raises(Refused):
        Ref(bad, "v0", "0" * 16)
    store = open_store(tmp_path / "store")
    for key in (bad, f"a/{bad}", f"{bad}/a"):
        if bad != "a/b":
            for touch in (store.get, store.exists, store.delete, lambda key: store.put(key, b"")):
                with pytest.raises(Refused) as caught:
                    touch(key)
                assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", ["0" * 15, "0" * 17, "0" * 15 + "G", "0" * 15 + "A", "0" * 16 + "\n"])
def test_a_digest_is_16_hex_digits(bad):
    with pytest.raises(Refused, match="16 hex"):
        Ref("sft", "v0", bad)


@pytest.mark.parametrize("bad", ["", "sft", "sft/v0", "sft/v0-xyz", "a/b/c-0123456789abcdef", "sft/-0123456789abcdef"])
def test_parse_refuses_what_is_not_a_key(bad):
    with pytest.raises(Refused):
        Ref.parse(bad)


def test_canonical_json_by_hand():
    assert (
        canonical_json({"b": (1, 2.0), "a": [None, True, "é"], "c": 0.1})
        == '{"a":[null,true,"é"],"b":[1,2.0],"c":0.1}'.encode()
    )
    assert digest({"a": 1}) == "015abd7f5cc57a2d"  # printf '{"a":1}' | sha256sum


@given(JSON)
def test_canonical_json_is_exact_and_ignores_order(value):
    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == data


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1: 2}, {"a": object()}, b"x", {1, 2}, "\udc00"])
def test_what_json_cannot_hold_is_refused(bad):
    with pytest.raises(Refused):
        canonical_json(bad)


def test_nesting_is_bounded_both_ways():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Refused, match="nested"):
        canonical_json(deep)
    with pytest.raises(ValueError):
        parse_json(b"[" * 100_000)
    with pytest.raises(ValueError):
        parse_json(b"[" * 100 + b"]" * 100)
    while deep:  # taken apart by hand: freeing 100,000 levels at once is deep recursion too
        deep = deep.pop()


@pytest.mark.parametrize(
    "bad", [b"", b"NaN", b"-Infinity", b'{"a":1,"a":1}', b'"\xff"', '{"a":1}'.encode("utf-16"), b"1" * 5000, b"{'a':1}"]
)
def test_parse_json_is_strict(bad):
    with pytest.raises(ValueError):
        parse_json(bad)


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_key_may_name_the_folder_beside():
    assert check_key("artifacts/sft/v0-0/x/_beside/log.txt")
    with pytest.raises(Refused):
        check_key("artifacts/_other/x")
