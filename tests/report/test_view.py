import json

import pytest

from report import View

NODES = [
    {"label": "base", "stage": "pretrain", "key": "model/pretrain-0123456789abcdef", "inputs": []},
    {"label": "v0", "stage": "train", "key": "model/train-00000000000000aa", "inputs": ["base"]},
]
DATA = {"name": "toy", "digest": "ab" * 8, "config": {"seed": 1}, "nodes": NODES, "compare": None,
        "versions": {"base": {"model": NODES[0]["key"], "evaluate": None}}}  # fmt: skip


def test_plain_data_becomes_a_view() -> None:
    view = View.from_json(json.loads(json.dumps(DATA)))
    v0 = view.node("v0")
    assert v0 is not None and v0.inputs == ("base",) and v0.ref.name == "train"
    assert view.versions[0].label == "base" and view.versions[0].evaluate is None and view.compare is None
    assert view.node_of(v0.ref) is v0 and view.node("v9") is None
    assert [node.label for node in view.doing("pretrain")] == ["base"]


@pytest.mark.parametrize("missing", ["name", "nodes", "versions", "compare"])
def test_a_view_without_a_part_is_refused_by_name(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        View.from_json({key: value for key, value in DATA.items() if key != missing})
