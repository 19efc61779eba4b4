"""benchmarks.reliability.cost: a campaign whose storage costs more than 3 % of its work fails."""

import json
from pathlib import Path

import pytest

from benchmarks.reliability.cost import main
from storage import Ref, open_store


@pytest.mark.parametrize(("worked", "code"), [(1e6, 0), (1e-6, 1)])
def test_the_share_decides(tmp_path: Path, worked: float, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path / "store")
    first, second = Ref("rows", "first", "a" * 16), Ref("rows", "second", "b" * 16)
    store.campaign("tiny", "0" * 16).create({})
    for ref, inputs in ((first, {}), (second, {"one": first.key, "many": [first.key]})):
        draft = store.draft(ref)
        (draft.path / "x.json").write_text("1")
        draft.commit({"seconds": 70.0, "cpu_seconds": worked, "identity": {"inputs": inputs}})
        store.campaign("tiny", "0" * 16).note(ref.name, ref)
    assert main(store.url, tmp_path / "kept") == code
    (line,) = [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]
    assert (line["stages"], line["work"]) == (2, round(2 * worked, 2)) and 0 < line["storage"] < 5
    assert (line["percent"] > 3) == bool(code)
    assert json.loads(capsys.readouterr().out) == line


def test_a_store_without_a_campaign_fails(tmp_path: Path) -> None:
    assert main(str(tmp_path / "store")) == 1
