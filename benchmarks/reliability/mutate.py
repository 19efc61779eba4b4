"""Malformed input made of good input: bytes changed anywhere, JSON trees with one place replaced, seeded."""

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from storage.names import canonical_json

INSERTS = (b"{", b"[", b'"', b",", b"NaN", b"1e999", b"\xff", b"\\ud800", b"\0", b"null", b"9" * 400)
STRANGE = [
    None, True, False, 0, -1, 1.5, 10**30, "", "x", "../../etc/passwd", "/abs", "a\0b", "\u202e", "A" * 5000, [], {}, [[]],
    {"sha256": "0" * 64, "size": -1}, {"sha256": "0" * 63, "size": 1}, {"sha256": None, "size": 1}, {"": {}}, ["_beside/x", 3],
    "sft/v0-0123456789abcdeg", {"../x": {"sha256": "0" * 64, "size": 0}}, {"a.pt": {"sha256": "0" * 64, "size": 0}},
]  # fmt: skip
INSERTS = (b"{", b"[", b'"', b",", b"NaN", b"1e999", b"\xff", b"\\ud800", b"\0", b"null", b"9" * 400)


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return `data` with one to twenty places flipped, cut, filled, doubled or torn off."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[at : at + draw.randrange(1, 30)]
        elif kind == 2:
            out[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            out[at:at] = draw.choice(INSERTS)
        elif kind == 4:
            other = draw.randrange(len(out) + 1)
            out[at:at] = out[other : other + draw.randrange(1, 60)]
        else:
            out = out[:at] or bytearray(b"x")
    return bytes(out)


def mutated_tree(value: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON value with one place replaced, removed or renamed."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        copy = dict(value)
        kind = draw.randrange(8)
        if kind == 0:
            del copy[key]
        elif kind == 1:
            copy[draw.choice(("../x", "", "x" * 200, "\0", "v", "a.pkl", "ä"))] = copy.pop(key)
        else:
            copy[key] = mutated_tree(value[key], draw)
        return copy
    if isinstance(value, list) and value and draw.random() < 0.7:
        copy = list(value)
        at = draw.randrange(len(copy))
        copy[at] = mutated_tree(copy[at], draw)
        return copy
    return draw.choice(STRANGE)


def signed(body: Any) -> bytes:
    """Give a mutated manifest a right hash of itself, so that what lies behind the hash is tested."""
    if isinstance(body, dict) and draw_ok(body):
        body = {key: value for key, value in body.items() if key != "self"}
        body["self"] = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")


def draw_ok(body: Any) -> bool:
    try:
        canonical_json(body)
    except ValueError:
        return False
    return True


def cases(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` mutants of a JSON text: half by bytes, half by tree, most of these signed again."""
    draw = random.Random(seed)
    tree = json.loads(good)
    for number in range(count):
        if number % 2:
            yield mutated_bytes(good, draw)
        else:
            mutant = mutated_tree(tree, draw)
            yield signed(mutant) if draw.random() < 0.8 else json.dumps(mutant).encode(errors="replace")
