"""Who may import whom: the table of docs/architecture.md, held."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"flows", "tasks", "storage", "configs", "engine", "methods", "world", "report", "cli", "benchmarks"}
MAY = {
    "flows": {"tasks", "configs"},
    "tasks": {"storage", "configs"},
    "engine": {"methods", "storage", "configs", "world"},
    "methods": set(),
    "world": set(),
    "storage": set(),
    "configs": set(),
    "report": {"storage", "configs"},
    "cli": {"storage", "configs", "flows", "tasks", "report"},
}
HEAVY = {"torch", "transformers", "deepspeed", "datasets"}
FORBIDDEN = {
    "flows": HEAVY,
    "tasks": HEAVY,
    "storage": HEAVY | {"prefect"},
    "configs": HEAVY | {"prefect", "fsspec", "s3fs"},
    "methods": {"prefect", "transformers", "deepspeed", "datasets", "fsspec", "s3fs"},
    "world": HEAVY | {"prefect", "numpy", "fsspec", "s3fs"},
    "engine": {"prefect", "s3fs", "fsspec"},
    "report": HEAVY | {"prefect"},
    "cli": HEAVY,
}
DOORS = {"world": {"engine/ingest.py", "engine/sources.py", "engine/judges.py", "engine/annotate.py"}}


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("room", sorted(MAY))
def test_room_imports_only_down_the_arrows(room: str) -> None:
    files = _files(room)
    assert files
    for path in files:
        for module in _imports(path):
            top = module.split(".")[0]
            assert top not in OURS or top == room or top in MAY[room], f"{path.relative_to(ROOT)} imports {module}"
            assert top not in FORBIDDEN[room], f"{path.relative_to(ROOT)} imports {module}"


def test_world_is_entered_through_its_doors_only() -> None:
    for path in _files("engine"):
        if any(module.split(".")[0] == "world" for module in _imports(path)):
            assert str(path.relative_to(ROOT)) in DOORS["world"], path


def test_nobody_draws_from_a_global_generator() -> None:
    """A storage retry draws from `random`; sharing that generator changed trained weights (RELIABILITY finding 1)."""
    found = []
    for room in MAY:
        for path in _files(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    if node.value.id == "random" and node.attr not in {"Random", "SystemRandom"}:
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}: random.{node.attr}")
                elif (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Attribute)
                    and node.value.attr == "random"
                    and isinstance(node.value.value, ast.Name)
                    and node.value.value.id in {"np", "numpy"}
                    and node.attr not in {"Generator", "default_rng", "PCG64", "Philox", "SeedSequence"}
                ):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: np.random.{node.attr}")
    assert not found, found


def test_nobody_reads_or_writes_pickles() -> None:
    names = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for room in MAY:
        for path in _files(room):
            assert not names & {module.split(".")[0] for module in _imports(path)}, path
            assert "torch.load(" not in path.read_text(), path
            assert "torch.save(" not in path.read_text(), path
