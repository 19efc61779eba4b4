"""One set of services for the tests of this room, started by the code under test, on ports nobody uses."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import free_port

from cli import daemon, services
from cli.site import Site

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project folder with the project's own prefect.yaml, its two entrypoints replaced by quick ones."""
    root = tmp_path_factory.mktemp("house")
    shutil.copy(Path(__file__).parent / "probe" / "probe.py", root)
    text = (ROOT / "prefect.yaml").read_text()
    text = text.replace("flows/iterative.py:", "probe.py:").replace("flows/resume.py:", "probe.py:")
    (root / "prefect.yaml").write_text(text[: text.index("- name: resume")] + _only_resume(text))
    made = Site(root, free_port(), free_port())
    yield made
    services.down(made, say=lambda line: None)
    assert daemon.find(made.state, "server") is None


def _only_resume(text: str) -> str:
    """The resume deployment alone: the deployments after it belong to flows that the quick folder lacks."""
    rest = text[text.index("- name: resume") :]
    end = rest.find("\n- name:")
    return rest if end < 0 else rest[: end + 1]


@pytest.fixture
def house(site: Site) -> Site:
    """The site with its services up."""
    if services.serving(site) is None or daemon.find(site.state, "worker") is None:
        services.up(site, say=lambda line: None)
    return site


@pytest.fixture
def prefect(house: Site) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The bare `prefect` command in the project folder, with nothing of Prefect's exported."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_"))}
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        return subprocess.run(command, cwd=house.root, env=env, capture_output=True, text=True, timeout=120)

    return run
