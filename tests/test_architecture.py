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


OWN = {
    "random": {"Random", "SystemRandom"},
    "numpy.random": {"Generator", "default_rng", "PCG64", "Philox", "SeedSequence"},
}


def _global_draws(tree: ast.Module) -> list[str]:
    """Uses of the generators that `random` and `numpy.random` share with everybody, under whatever name they are imported."""
    names, found = {"np.random": "numpy.random", "numpy.random": "numpy.random"}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in OWN}
            names |= {f"{a.asname or a.name}.random": "numpy.random" for a in node.names if a.name == "numpy"}
        elif isinstance(node, ast.ImportFrom) and node.module == "numpy":
            names |= {alias.asname or alias.name: "numpy.random" for alias in node.names if alias.name == "random"}
        elif isinstance(node, ast.ImportFrom) and node.module in OWN:
            found += [f"{node.lineno}: {a.name} of {node.module}" for a in node.names if a.name not in OWN[node.module]]
    for node in ast.walk(tree):
        module = names.get(ast.unparse(node.value)) if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Attribute) and module and node.attr not in OWN[module]:
            found.append(f"{node.lineno}: {module}.{node.attr}")
    return found


def test_nobody_draws_from_a_global_generator() -> None:
    """A storage retry draws from `random`; sharing that generator changed trained weights."""
    found = []
    for room in MAY:
        for path in _files(room):
            found += [f"{path.relative_to(ROOT)}:{use}" for use in _global_draws(ast.parse(path.read_text()))]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import random\nrandom.random()", 1),
        ("import random as r\nr.choice([1])", 1),
        ("from random import choice, Random", 1),
        ("import numpy as n\nn.random.rand(2)", 1),
        ("from numpy.random import rand", 1),
        ("from numpy import random\nrandom.shuffle(x)", 1),
        ("import random\nrandom.Random(3).random()", 0),
        ("import numpy as np\nnp.random.default_rng(3).random()", 0),
    ],
)
def test_the_lint_of_generators_knows_every_way_to_import_them(text: str, count: int) -> None:
    assert len(_global_draws(ast.parse(text))) == count


def test_prefect_keeps_and_reads_no_result() -> None:
    """A result record that somebody plants in Prefect's storage runs code when it is read: nothing may ask for one."""
    found = 0
    for room in ("flows", "tasks"):
        for path in _files(room):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.FunctionDef):
                    continue
                for mark in node.decorator_list:
                    kind = ast.unparse(mark.func if isinstance(mark, ast.Call) else mark)
                    if kind not in ("flow", "task", "prefect.flow", "prefect.task"):
                        continue
                    found += 1
                    given = {k.arg: ast.unparse(k.value) for k in mark.keywords} if isinstance(mark, ast.Call) else {}
                    place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                    assert given.get("persist_result") == "False", place
                    assert kind.endswith("flow") or given.get("cache_policy") == "NO_CACHE", place
    assert found >= 6


def test_nobody_reads_or_writes_pickles() -> None:
    names = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for room in MAY:
        for path in _files(room):
            assert not names & {module.split(".")[0] for module in _imports(path)}, path
            assert "torch.load(" not in path.read_text(), path
            assert "torch.save(" not in path.read_text(), path


def test_whatever_is_imported_from_a_room_is_there() -> None:
    """Imports inside functions too, which no other test of the default tier may reach."""
    bad = []
    for path in sorted(p for room in {*OURS, "tests"} for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OURS or node.level:
                continue
            assert node.module is not None
            place = ROOT.joinpath(*node.module.split("."))
            source = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
            names = _defined(source) if source.is_file() else set()
            bad += [
                f"{path.relative_to(ROOT)}: {node.module} has no {alias.name}"
                for alias in node.names
                if alias.name not in names
                and not (place / f"{alias.name}.py").is_file()
                and not (place / alias.name).is_dir()
            ]
    assert bad == []


def _defined(path: Path) -> set[str]:
    """The names that a module binds, wherever in it (in an `if` or `try` too)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return found
