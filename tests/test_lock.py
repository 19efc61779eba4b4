"""requirements.lock is what pyproject.toml asks for, hashed, and what is installed here."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {canonicalize_name(n): v for n, v in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_requirement_is_locked_within_its_bounds() -> None:
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    assert len(wanted) > 10
    for requirement in wanted:
        if requirement.name == "torch":
            continue
        version = LOCKED.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but {version} is locked"


def test_every_package_has_a_hash_and_torch_stays_out() -> None:
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(LOCKED) > 100
    assert all("--hash=sha256:" in block for block in blocks)
    assert not [name for name in LOCKED if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))]


def test_what_is_installed_is_what_is_locked() -> None:
    """A campaign run with other versions than the locked ones is not the one that was tested."""
    differing = {}
    for name, version in LOCKED.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != version:
            differing[name] = f"{installed}, locked {version}"
    assert not differing, f"{differing}: `make install`"
    assert metadata.version("torch").split("+")[0] == "2.13.0"
