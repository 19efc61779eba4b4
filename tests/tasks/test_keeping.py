"""A campaign does not fill the disk: its save points never pile up, and what it leaves goes by kind when it may."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.keeping import KINDS
from cli.main import app
from configs import load
from flows.rounds import align
from storage import open_store
from storage.gc import forget
from tasks import Run, Stopped
from tasks.launch import stop_all

ROOT = Path(__file__).resolve().parents[2]


def test_every_kind_can_be_named() -> None:
    found = {kind for file in (ROOT / "tasks").glob("*.py") for kind in re.findall(r'kind="(\w+)"', file.read_text())}
    assert found == set(KINDS)


@pytest.mark.slow
@pytest.mark.slow_short
def test_what_a_campaign_keeps(tmp_path: Path, tally) -> None:
    store = open_store(tmp_path / "store")
    config = load("micro")
    runtime = config.runtime.model_copy(update={"save_steps": 1})
    points, folders, size = [0], [0], [0]

    def hear(label: str, event: dict[str, object]) -> None:
        if event["event"] == "saved":
            found = [entry for entry in store.backend.list("savepoints") if not entry.key.endswith("newest.txt")]
            points.append(sum(entry.key.count("/") == 3 for entry in found))
            folders.append(len({entry.key.rsplit("/", 1)[0] for entry in found if entry.key.count("/") > 3}))
            size.append(sum(entry.size for entry in found))

    run = Run(config, store, runtime, mode="direct", until="v0", listen=hear)
    with pytest.raises(Stopped):
        align(run)
    stop_all()
    assert store.list("savepoints") == [], "save points stay after their stages"
    assert max(points) <= 3 and max(folders) <= 3, "the last two, and one that is being made"
    runner, url = CliRunner(), ["--store", store.url]
    assert "would free 0B in 0 items" in runner.invoke(app, ["gc", "--grace-days", "0", *url]).output
    forget(store, config.name, run.digest)
    dry = runner.invoke(app, ["gc", "--grace-days", "0", "--keep", "rows=30", *url]).output
    assert "nothing was removed" in dry and "model/" in dry and "rows/" not in dry
    done = runner.invoke(app, ["gc", "--yes", "--grace-days", "0", "--keep", "rows=30", *url]).output
    assert re.search(r"would free (\S+) in", dry)[1] == re.search(r"freed (\S+) in", done)[1]  # type: ignore[index]
    left = {key.split("/")[1] for key in store.list("artifacts")}
    assert left == {"rows"} and len(points) > 10
    note = f"at most {max(points)} at once, {max(size)} bytes; none after its stage"
    tally("save points of a campaign", len(points), note)
