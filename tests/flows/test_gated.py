"""The gate in a campaign: it names nothing but itself, chooses what later stages read, or ends the campaign in one line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.check import check
from configs.load import FOLDER, resolve
from flows.rounds import align
from storage import Store, open_store
from tasks import Run, Stopped

NEVER = {"kl": {"at": -1.0, "action": "reject"}}  # no version has a KL below -1: all are rejected


def campaign(**gate: Any) -> Any:
    raw: dict[str, Any] = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    return resolve(check({**raw, "gate": gate}, "test"))


def laid_out(store: Store, mode: Any = "plan", **gate: Any) -> Run:
    chosen = campaign(**gate)
    run = Run(chosen, store, chosen.runtime, mode=mode)
    align(run)
    return run


def test_the_rules_name_the_gate_and_no_other_stage(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    one, other = laid_out(store), laid_out(store, worse="off", judge="reject", **NEVER)
    names = [{label: artifact.ref.key for label, artifact in run.artifacts.items()} for run in (one, other)]
    assert {label for label in names[0] if names[0][label] != names[1][label]} == {"v1-gate", "v2-gate"}
    readers = {label: [up.label for up in artifact.upstream] for label, artifact in one.artifacts.items()}
    assert not [label for label, ups in readers.items() if any(up.endswith("-gate") for up in ups)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, Run]:
    """A campaign whose first version was rejected, with `stop`."""
    store = open_store(tmp_path_factory.mktemp("gated") / "store")
    chosen = campaign(on_reject="stop", **NEVER)
    run = Run(chosen, store, chosen.runtime, mode="direct")
    align(run)
    assert run.rejected
    return store, run.rejected, run


def test_a_rejection_ends_the_campaign_in_one_line(stopped: tuple[Store, str, Run]) -> None:
    _, line, run = stopped
    assert "\n" not in line
    assert line.startswith("micro: the gate rejected v1: KL to v0 is ") and "gate.on_reject is stop" in line
    assert list(run.versions) == ["base", "v0", "v1"]
    verdict = run.verdicts["v1"].summary()
    assert verdict is not None and verdict["verdict"] == "rejected" and verdict["best"] == "v0"
    assert "v2" not in run.artifacts  # what there is was compared all the same, for the report
    assert run.artifacts["compare"].made() is not None and run.artifacts["matrix"].made() is not None


def test_or_the_campaign_goes_on_from_the_best_accepted_version(stopped: tuple[Store, str, Run]) -> None:
    store, _, before = stopped
    run = laid_out(store, "direct", **NEVER)
    assert run.artifacts["v1"].ref == before.artifacts["v1"].ref  # nothing is done again
    assert [up.label for up in run.artifacts["v2"].upstream][:2] == ["v0", "v0"]  # v2 starts from v0 and refers to it
    free = laid_out(store, "plan")
    assert [up.label for up in free.artifacts["v2"].upstream][:2] == ["v1", "v1"]
    assert run.verdicts["v2"].stage.recipe.best == "v0"  # type: ignore[attr-defined]
    assert run.rejected is None and run.artifacts["compare"].made() is not None


def test_the_next_version_is_judged_against_the_best_and_built_upon_the_newest(stopped: tuple[Store, str, Run]) -> None:
    """v1 may be no worse than v0 and yet behind it: v2 then goes on from v1, and answers for v0."""
    store, _, before = stopped
    summary = before.evaluations["v1"].summary()
    assert summary is not None
    gold = summary["against"]["v0"]["gold"]["difference"]["mean"]
    chosen = campaign(worse="off", win_rate=None)
    run = Run(chosen, store, chosen.runtime, mode="direct", until="v1")
    with pytest.raises(Stopped):
        align(run)
    verdict = run.verdicts["v1"].summary()
    assert verdict is not None and verdict["accepted"] and verdict["leads"] == (gold >= 0)
    after = laid_out(store, "plan", worse="off", win_rate=None)
    assert [up.label for up in after.artifacts["v2"].upstream][:2] == ["v1", "v1"]
    assert after.verdicts["v2"].stage.recipe.best == ("v1" if gold >= 0 else "v0")  # type: ignore[attr-defined]


def test_the_command_says_so_again_and_fails(stopped: tuple[Store, str, Run], tmp_path: Path) -> None:
    store, line, _ = stopped
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    config = tmp_path / "micro.yaml"
    config.write_text(yaml.safe_dump({**raw, "gate": {"on_reject": "stop", **NEVER}}))
    environment = {**os.environ, "ROUNDHOUSE_STORE": store.url}
    command = [sys.executable, "-m", "cli", "run", str(config)]
    done = subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == f"error: {line}", done.stderr
    assert "nothing to do" in done.stdout and "report: " in done.stdout


@pytest.mark.parametrize(("gate", "message"), [
    ({"on_reject": "halt"}, "gate.on_reject"),
    ({"kl": {"above": 3}}, "gate.kl"),
    ({"worse": "maybe"}, "gate.worse"),
])  # fmt: skip
def test_a_wrong_gate_is_one_line(gate: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        campaign(**gate)
    assert "\n" not in str(error.value)
