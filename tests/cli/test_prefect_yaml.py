"""prefect.yaml holds the names of the outside and points to flows that exist, read without importing any of them."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in FILE["deployments"]}
OUTSIDE = {"config", "seed", "store", "until", "runtime"}  # DESIGN section 1: the parameters of the user's way in


def flow(name: str) -> tuple[str, ast.FunctionDef]:
    """The flow's name and function at a deployment's entrypoint."""
    path, _, function = DEPLOYMENTS[name]["entrypoint"].partition(":")
    tree = ast.parse((ROOT / path).read_text())
    found = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    for decorator in found.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "flow":
            value = next(k.value for k in decorator.keywords if k.arg == "name")
            assert isinstance(value, ast.Constant)
            return str(value.value), found
    raise AssertionError(f"{path}:{function} is not a @flow(name=...)")


def test_the_outside_names_are_there() -> None:
    assert {"iterative", "resume"} <= set(DEPLOYMENTS)
    assert {flow(name)[0] for name in ("iterative", "resume")} == {"llama2-style"}


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_every_entrypoint_is_a_flow_with_typed_parameters(name: str) -> None:
    _, function = flow(name)
    arguments = function.args.args + function.args.kwonlyargs
    assert arguments and all(argument.annotation is not None for argument in arguments)
    assert set(DEPLOYMENTS[name].get("parameters", {})) <= {argument.arg for argument in arguments}
    # Prefect draws the form's help from the docstring's "Args:".
    assert all(f"{argument.arg}:" in (ast.get_docstring(function) or "") for argument in arguments)


def test_the_main_flow_has_the_agreed_parameters_and_runs_bare() -> None:
    _, function = flow("iterative")
    assert {argument.arg for argument in function.args.args} == OUTSIDE
    assert len(function.args.defaults) == len(function.args.args)


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_every_deployment_survives_its_worker(name: str) -> None:
    pool = DEPLOYMENTS[name]["work_pool"]
    assert pool["name"] == "roundhouse"
    assert pool["job_variables"]["stream_output"] is False
    assert pool["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert "concurrency_limit" not in DEPLOYMENTS[name]


def test_no_secret_and_no_machine_path_is_in_the_file() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    assert not re.search(r"(?i)(secret|password|auth_string|access_key)", text)
    assert [list(step) for step in FILE["pull"]] == [["prefect.deployments.steps.set_working_directory"]]
    assert FILE["pull"][0]["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ $PWD }}"


def test_schedules_are_deployed_inactive() -> None:
    for entry in DEPLOYMENTS.values():
        for schedule in entry.get("schedules", []):
            assert schedule["active"] is False and schedule["timezone"] and schedule["slug"]


def test_the_version_is_the_locked_one() -> None:
    locked = re.search(r"^prefect==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and FILE["prefect-version"] == locked[1]
