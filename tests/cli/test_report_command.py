"""`roundhouse report`: a page of what the store has, whatever the code and the local data are today."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.layout import planned
from configs.load import FOLDER
from storage import Ref, Store, digest, open_store


def roundhouse(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ROUNDHOUSE_DATA"}
    return subprocess.run(
        [sys.executable, "-m", "cli", *words], cwd=FOLDER.parent, env={**environment, **more}, capture_output=True, text=True
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def made_before(store: Store, run: Any) -> list[Ref]:
    """Every stage of the plan, finished under the names that other code gave them, in the campaign's record."""
    refs = []
    for label, artifact in run.artifacts.items():
        refs.append(Ref(artifact.ref.kind, artifact.ref.name, digest(["other code", label])))
        draft = store.draft(refs[-1])
        (draft.path / "notes.json").write_text("{}")
        draft.commit({"identity": {"work": artifact.stage.work, "inputs": {}}, "began": 1e9})
        run.record.note(label, refs[-1])
    return refs


def test_a_report_is_not_emptied_by_a_change_of_the_code(store: Store, tmp_path: Path) -> None:
    run = planned("micro", None, store.url, None)
    refs = made_before(store, run)
    done = roundhouse("report", "micro", "--store", store.url)
    place = f"{store.url}/reports/micro-{run.digest}.html"
    assert done.returncode == 0 and done.stdout == f"report: {place}\n"
    assert done.stderr.startswith("note: the code has changed since ") and done.stderr.count("\n") == 1
    assert f"of today's code 0 of {len(refs)} stages are done" in done.stderr
    page = store.get(f"reports/micro-{run.digest}.html")
    assert f"{len(refs)} stages done" in page.decode() and "the code has changed since" in page.decode()
    for ref in refs[3:]:  # swept away since
        store.delete(f"artifacts/{ref.key}/manifest.json")
    again = roundhouse("report", "micro", "--store", store.url)
    assert again.returncode == 0 and f"kept {place}: it shows {len(refs)} stages" in again.stderr
    assert store.get(f"reports/micro-{run.digest}.html") == page
    file = tmp_path / "page.html"
    third = roundhouse("report", "micro", "--store", store.url, "--out", str(file))
    assert third.returncode == 0 and third.stdout == f"report: {file}\n" and "3 stages done" in file.read_text()


def test_two_seeds_and_a_recorded_campaign_can_be_compared_and_one_with_itself_not(
    store: Store, tmp_path: Path
) -> None:
    run = planned("micro", 2, store.url, None)
    made_before(store, run)
    names = {seed: f"micro-{planned('micro', seed, store.url, None).digest}" for seed in (None, 2)}
    for second in ("micro@2", names[2]):
        done = roundhouse("report", "micro", second, "--store", store.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"report: {store.url}/reports/{names[None]}-and-{names[2]}.html\n"
    for second in ("micro", "micro@2"):
        done = roundhouse("report", second, second, "--store", store.url)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "are the same campaign" in done.stderr and "micro@" in done.stderr
    done = roundhouse("report", "none-0123456789abcdef", "--store", store.url)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and names[2] in done.stderr


def test_a_page_needs_no_local_data(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign was run where its data is; here is only the store."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.jsonl").write_text('{"prompt": "Tell me of a fox."}\n' * 40)
    text = (FOLDER / "micro.yaml").read_text()
    assert "prompts:" in text
    config = tmp_path / "mine.yaml"
    import yaml

    raw = yaml.safe_load(text)
    raw["name"] = "mine"
    raw["data"]["prompts"] = [{"path": "mine.jsonl", "format": "prompt-response", "count": 40}]
    config.write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("ROUNDHOUSE_DATA", str(tmp_path / "data"))
    run = planned(str(config), None, store.url, None)
    made_before(store, run)
    done = roundhouse("report", str(config), "--store", store.url, ROUNDHOUSE_DATA=str(tmp_path))
    assert done.returncode == 0 and done.stdout == f"report: {store.url}/reports/mine-{run.digest}.html\n", done.stderr
    assert "its local data is not here" in done.stderr
    assert json.dumps(len(run.artifacts)) + " stages done" in store.get(f"reports/mine-{run.digest}.html").decode()
