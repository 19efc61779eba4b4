"""What a runtime asks for beyond the locked packages is found missing before any work, in one line."""

import sys
from pathlib import Path

import pytest

from configs import ConfigError, Runtime, load
from storage import open_store
from tasks.extras import check_extras
from tasks.run import Run


def test_a_missing_vllm_environment_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*/none: make it .* or set runtime.sampler to builtin") as said:
        check_extras(Runtime(sampler="vllm", vllm=str(tmp_path / "none")))
    assert "\n" not in str(said.value)
    with pytest.raises(ConfigError, match="has no vllm: make it"):
        check_extras(Runtime(sampler="vllm", vllm=sys.executable))
    check_extras(Runtime(sampler="vllm", vllm="http://127.0.0.1:1"))
    check_extras(Runtime())


def test_a_run_says_so_before_its_first_stage_and_a_plan_does_not_need_it(tmp_path: Path) -> None:
    campaign, missing = load("micro"), Runtime(sampler="vllm", vllm="/none")
    store = open_store(tmp_path.as_uri())
    with pytest.raises(ConfigError, match="there is no /none"):
        Run(campaign, store, missing)
    Run(campaign, store, missing, mode="plan")


@pytest.mark.parametrize("wanted", [{"processes": 2}, {"zero": 2}])
def test_several_processes_without_a_launcher_are_refused(wanted: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match="its launcher is local, which starts one process: set it to deepspeed or ray"
    ):
        check_extras(Runtime(**wanted))
    check_extras(Runtime(launcher="deepspeed", **wanted))
