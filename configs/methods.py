"""What a method's file declares, read from its source without importing it (it imports torch)."""

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from configs.fields import Scalar, Setting

METHODS = Path(__file__).resolve().parent.parent / "methods"


@dataclass(frozen=True)
class Described:
    """One method as its file declares it."""

    name: str
    loop: str  # offline | online
    columns: tuple[str, ...]
    forwards: tuple[str, ...]
    fields: Mapping[str, str]  # Config field -> annotation as written
    presets: tuple[str, ...]
    loops: Mapping[str, Mapping[str, Scalar]]  # the presets' settings of the loop, fields of configs.recipes.Online
    selects: bool
    least_k: int = 1  # responses to one prompt that it compares


def method_names() -> list[str]:
    """Every method in the project, sorted."""
    return sorted(path.stem.replace("_", "-") for path in METHODS.glob("*.py") if _declares_config(path))


def _declares_config(path: Path) -> bool:
    """What tells a method's file from shared maths."""
    return path.is_file() and "\nclass Config" in path.read_text(encoding="utf-8")


@cache
def describe(name: str) -> Described:
    """Read `methods/<name>.py`.

    Raises:
        ValueError: no such file; says which was expected and which names are near.
    """
    path = METHODS / f"{name.replace('-', '_')}.py"
    if not _declares_config(path):
        near = difflib.get_close_matches(name, method_names(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(method_names())}"
        raise ValueError(f"no method {name!r} (methods/{path.name} does not exist){hint}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values: dict[str, object] = {}
    fields: dict[str, str] = {}
    presets: tuple[str, ...] = ()
    loops: Mapping[str, Mapping[str, Scalar]] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and value is not None:
            if target.id in ("loop", "columns", "forwards", "least_k"):
                values[target.id] = ast.literal_eval(value)
            elif target.id == "PRESETS" and isinstance(value, ast.Dict):
                presets = tuple(str(ast.literal_eval(key)) for key in value.keys if key is not None)
            elif target.id == "LOOP":
                loops = ast.literal_eval(value)
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            fields = {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    columns, forwards = values.get("columns", ()), values.get("forwards", ())
    assert isinstance(columns, tuple) and isinstance(forwards, tuple)
    selects = any(isinstance(node, ast.FunctionDef) and node.name == "select" for node in tree.body)
    compared = 2 if selects and {"chosen", "responses"} & set(columns) else 1
    least_k = values.get("least_k", compared)
    assert isinstance(least_k, int)
    return Described(
        name, str(values.get("loop", "offline")), columns, forwards, fields, presets, loops, selects, least_k
    )


def _fits(value: Setting, annotation: str) -> bool:
    options = [part.strip() for part in annotation.split("|")]
    for option in options:
        if option == "bool" and isinstance(value, bool):
            return True
        if option == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if option == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if option == "str" and isinstance(value, str):
            return True
        if option.startswith("Literal[") and value in ast.literal_eval(f"[{option[8:-1]}]"):
            return True
        if option.startswith("tuple") and isinstance(value, tuple):
            return True
    return False


def shown(value: object) -> str:
    """What a person gave, as an error shows it: however long it is, the error stays a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


def check_config(name: str, config: Mapping[str, Setting], preset: str | None = None) -> None:
    """Check a recipe's `config` against the method's Config.

    Raises:
        ValueError: an unknown field, a value of the wrong type, an unknown preset.
    """
    method = describe(name)
    for key, value in config.items():
        if key not in method.fields:
            near = difflib.get_close_matches(key, method.fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(method.fields)}"
            raise ValueError(f"method {name} has no setting {shown(key)}{hint}")
        if not _fits(value, method.fields[key]):
            raise ValueError(f"method {name}: {key} must be {method.fields[key]}, found {shown(value)}")
    if preset is not None and preset not in method.presets:
        raise ValueError(f"method {name} has no preset {shown(preset)}; it has {', '.join(method.presets) or 'none'}")
