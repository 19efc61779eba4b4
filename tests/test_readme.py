"""What the README and docs/running.md tell people to type exists."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/running.md", "CONTRIBUTING.md")


def text(page: str) -> str:
    return (ROOT / page).read_text()


def code(page: str) -> str:
    """Only what stands in code: blocks and `spans`."""
    found = re.findall(r"```\n(.*?)```|`([^`\n]+)`", text(page), re.DOTALL)
    return "\n".join(block or span for block, span in found)


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", code(page)))
    assert named and named <= targets, named - targets


@pytest.mark.parametrize("page", ("README.md", "docs/running.md"))
def test_every_command_exists(page: str) -> None:
    group = typer.main.get_command(app)
    commands = set(getattr(group, "commands", {}))
    named = set(re.findall(r"\broundhouse ([a-z]+)\b", code(page)))
    assert named and named <= commands, named - commands


@pytest.mark.parametrize("page", ("README.md", "docs/running.md"))
def test_every_deployment_exists(page: str) -> None:
    entries = yaml.safe_load(text("prefect.yaml"))["deployments"]
    deployments = {entry["name"] for entry in entries}
    named = set(re.findall(r"\b(?:llama2-style|continued-pretraining|bake-off)/([a-z]+)\b", code(page)))
    assert named and named <= deployments, named - deployments


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", text(page))
    paths = re.findall(r"\b(?:configs|docs|flows|tests|tasks)/[\w./-]+\.(?:yaml|py|md)\b", text(page))
    missing = [name for name in paths if not (ROOT / name).exists()]
    missing += [name for name in links if not (ROOT / page).parent.joinpath(name).exists()]
    assert paths and not missing


def test_the_tree_in_the_readme_is_the_tree() -> None:
    shown = set(re.findall(r"^([a-z]+)/ {2,}", text("README.md"), re.MULTILINE))
    assert {"flows", "tasks", "engine", "methods", "storage", "configs", "world", "report", "cli"} <= shown
    assert all((ROOT / name).is_dir() for name in shown)
