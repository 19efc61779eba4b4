"""The code digest follows what the code means."""

from pathlib import Path

import pytest

from tasks import code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "engine/work.py": '"""Doc."""\nfrom engine.part import f\n\n\ndef run(job):\n    return f()\n',
        "engine/part.py": "def f():\n    # a comment\n    return 1\n",
        "engine/other.py": "X = 1\n",
        "methods/__init__.py": "",
        "methods/dpo.py": "BETA = 0.1\n",
        "storage/rows.py": "Y = 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


def _digest(methods: tuple[str, ...] = ()) -> str:
    for cached in (code._tree, code._meaning, code._imports):
        cached.cache_clear()
    return code.stage_code("work", methods)


def _edit(project: Path, name: str, old: str, new: str) -> None:
    path = project / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("engine/part.py", "# a comment", "# another"),
        ("engine/work.py", '"""Doc."""', '"""Other."""'),
        ("engine/other.py", "1", "2"),
    ],
)
def test_comments_docstrings_and_strangers_do_not_matter(project: Path, file: str, old: str, new: str) -> None:
    before = _digest()
    _edit(project, file, old, new)
    assert _digest() == before


@pytest.mark.parametrize(
    ("file", "old", "new"), [("engine/part.py", "return 1", "return 2"), ("engine/work.py", "f()", "f() + 1")]
)
def test_a_change_in_what_is_imported_matters(project: Path, file: str, old: str, new: str) -> None:
    before = _digest()
    _edit(project, file, old, new)
    assert _digest() != before


def test_only_the_named_method_matters(project: Path) -> None:
    with_dpo, without = _digest(("dpo",)), _digest()
    _edit(project, "methods/dpo.py", "0.1", "0.2")
    assert _digest(("dpo",)) != with_dpo
    assert _digest() == without


def test_a_stage_imports_the_methods_that_it_uses_by_a_fixed_name() -> None:
    """Loaded by name they would be outside the digest: only what a recipe names is added to it."""
    hidden = [path.name for path in (code.ROOT / "engine").glob("*.py") if 'methods.load("' in path.read_text()]
    assert not hidden
