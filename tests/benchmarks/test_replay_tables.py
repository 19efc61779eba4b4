"""benchmarks.replay: pieces of long documents, intervals over seeds, and that the arms have equal compute."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.replay import (
    CONTINUED,
    GROUPS,
    HEADS,
    PIECE,
    SCRATCH,
    SMALL,
    Arm,
    begin,
    cell,
    cut,
    pieces,
    recipe,
    table,
    world,
)
from configs import Base
from configs.recipes import Pretrain
from storage import open_store


def test_a_long_text_is_cut_between_paragraphs_and_nothing_is_lost() -> None:
    whole = "\n\n".join(f"paragraph {n} " + "x" * (37 * n % 900) for n in range(40))
    found = cut(whole)
    assert len(found) > 3 and "\n\n".join(found) == whole
    assert all(PIECE <= len(piece) < PIECE + 1000 for piece in found[:-1])
    assert cut("short") == ["short"] and cut("x" * 2 * PIECE) == ["x" * 2 * PIECE]


def test_pieces_name_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/law").mkdir(parents=True)
    with gzip.open(tmp_path / "data/law/docs.jsonl.gz", "wt") as out:
        out.write(json.dumps({"name": "a", "text": "\n\n".join("y" * 900 for _ in range(8))}) + "\n")
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(tmp_path))
    source = pieces("law", tmp_path / "scratch")
    rows = [json.loads(line) for line in Path(str(source.path)).read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0-0", "0-1", "0-2"] and source.sha256
    assert pieces("law", tmp_path / "scratch") == source


def test_intervals_are_students() -> None:
    """Two seeds 1 and 3: mean 2, s = sqrt(2), 12.706 * sqrt(2) / sqrt(2) = 12.706."""
    assert cell([1.0, 3.0]) == "2.000 +- 12.706" and cell([1.5]) == "1.500"
    row = dict.fromkeys(HEADS, 1.0)
    arm = "continued, 5 % replay"
    lines = table([{"continued, 25 % replay": row, arm: row, "base": row}, {"base": row}]).splitlines()
    assert lines[2] == f"| base | 2 |{' 1.000 +- 0.000 |' * 6}" and lines[3].startswith(f"| {arm} | 1 | 1.000 |")
    assert lines[4].startswith("| continued, 25 %") and len(lines) == 5


def test_all_arms_are_laid_out_and_cost_the_same_but_for_the_union(tmp_path: Path) -> None:
    given = SimpleNamespace(threads=1, show=True, store=open_store(tmp_path / "store"))
    run = begin("world", 1, Base(pretrain=Pretrain(architecture={})), given)
    found = world(run, GROUPS)
    assert tuple(found) == GROUPS and all(m.summary() is None for m in found.values())
    made = [a for a in run.artifacts.values() if a.stage.work == "continuing"]
    assert len(made) == 1 + len(CONTINUED) + len(SCRATCH) + len(SMALL) and len({a.ref for a in made}) == len(made)
    for artifact in made:
        assert "old" in artifact.stage.inputs or artifact.stage.recipe.replay == 0
    assert {(r.steps, r.epochs, r.batch_size) for r in (recipe(arm, 64, 16, 1e-3) for arm in CONTINUED)} == {
        (0, 1.0, 16)
    }
    assert recipe(Arm("x", rewarm=False), 64, 16, 1e-3).schedule.peak == pytest.approx(1e-4)
