"""The plan's table on narrow and wide terminals: no line longer than they are, no empty column."""

from pathlib import Path

import pytest
import yaml

from cli import plan
from configs import Campaign
from configs.load import FOLDER, check, resolve
from flows.rounds import align
from storage import open_store
from tasks import Run


def micro(**runtime: float) -> Campaign:
    raw = yaml.safe_load((FOLDER / "micro.yaml").read_text())
    raw["runtime"] |= runtime
    return resolve(check(raw, "micro"), require_data=True)


def shown(tmp_path: Path, width: int, **runtime: float) -> list[str]:
    campaign = micro(**runtime)
    run = Run(campaign, open_store(tmp_path / "store"), campaign.runtime, mode="plan")
    align(run)
    with plan.console.capture() as capture:
        was, plan.console.width = plan.console.width, width
        plan.print_plan(run)
        plan.console.width = was
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.calibration.ROOT", tmp_path)
    lines = [line for line in shown(tmp_path, width) if "; store " not in line]  # a URL is not cut
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any(line.split()[0] == "r1-helpfulness-certify" for line in lines if line.strip())


def test_columns_that_say_nothing_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.calibration.ROOT", tmp_path)
    assert shown(tmp_path, 80)[0].split() == ["stage", "tokens", "FLOPs", "memory", "stored", "why"]
    known = shown(tmp_path, 80, device_flops=1e9, device_price=3600.0)
    assert known[0].split() == ["stage", "tokens", "time", "memory", "stored", "money", "why"]
    assert any("on the clock (by runtime.device_flops)" in line for line in known)
    wide = shown(tmp_path, 120)[0].split()
    assert wide == ["stage", "params", "steps", "tokens", "FLOPs", "memory", "stored", "why"]
