"""The digest of the code that a stage's work runs: names change when it does, not when a comment does."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("engine", "methods", "world")  # what decides results; storage and configs only carry them
_BOUNDARY = {
    f"engine.{name}" for name in ("run", "job", "forkserver", "chat", "workers", "places", "cluster", "lifeline")
}  # start and watch the work


def stage_code(stage: str, methods: Iterable[str] = ()) -> str:
    """Digest of `engine/<stage>.py` and all it imports from the project, and of the named methods."""
    modules: set[str] = set()
    todo = [f"engine.{stage}", *(f"methods.{name.replace('-', '_')}" for name in methods)]
    while todo:
        module = todo.pop()
        if module in modules or module in _BOUNDARY:
            continue
        modules.add(module)
        todo.extend(_imports(module))
    total = hashlib.sha256()
    for module in sorted(modules):
        total.update(f"{module}:{_meaning(module)}\n".encode())
    return total.hexdigest()[:16]


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    assert path is not None, f"{module} is not a module of the project"
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _meaning(module: str) -> str:
    """Digest of the module without comments and docstrings."""
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _imports(module: str) -> tuple[str, ...]:
    return tuple(sorted(set(_named(_tree(module)))))


def _named(tree: ast.Module) -> Iterator[str]:
    """Modules of the deciding rooms that the code names in an import, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in _ROOMS and _file(name) is not None:
                yield name
                parts = name.split(".")
                yield from (".".join(parts[:i]) for i in range(1, len(parts)) if _file(".".join(parts[:i])))
