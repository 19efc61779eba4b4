"""Every alignment algorithm as one pure file. `load("ppo")` is `methods/ppo.py`; importing this package imports no torch.

A method is a module with these names:

    loop      "offline" | "online": which loop feeds it.
    unit      "token" | "row": what the loop counts for `batch.count`, the denominator of a whole optimizer step
              (all micro-batches, all ranks): response tokens, or rows (distinct groups). A method may define
              `count(batch) -> Tensor` instead; `methods.batch.denominator(method, batch)` picks the right one.
    columns   what a row must have: messages (ending with an assistant response), text, prompt, chosen, rejected, grade,
              chosen_safe, rejected_safe, responses, scores, attributes, weight. Others are used where present.
    forwards  what the loop computes for `loss`: policy_logp, policy_entropy, reference_logp, old_logp, value, old_value
              [B, R]; reward [B] (reward_attributes: [B, A]). Online: also every tensor that `signal` returns.
    Config    frozen dataclass of plain values with defaults and their source; wrong values raise ValueError.
    loss      (forwards, batch, config) -> (loss, metrics). loss [] is a SUM over this micro-batch divided by
              `batch.count`, so that micro-batches and ranks add up to one number; metrics {name: (sum, count)}, detached.
              Rows stay whole: all responses of one group lie in one micro-batch.

and, where it needs them:

    select    (candidates, config, rng) -> rows: scored responses of ONE prompt to training rows. A candidate is a dict
              {text, score, branch, finish, ...}; (branch, score) is compared. A row has {"response"}, {"chosen",
              "rejected", "grade"} or {"responses", "scores"}; with "response" may come "weight" and "condition", a
              text for the end of the last user turn.
    signal    (rollout, config, state) -> (tensors, state, metrics): per-token [B, R] training signal of the whole rollout
              batch, gathered from all ranks. `state` is a plain dict of floats; it starts as `initial_state(config)`.
    least_k   responses to one prompt that it compares, where more than one (methods with `select` of pairs and rankings: 2).
    baseline  "greedy": the loop also decodes greedily and scores it (`rollout.baseline_score`).
    condition (row, config) -> str: text for the end of the last user turn of a training row (steerlm: its attributes).
    target    (config) -> str: the same text for sampling and evaluation: what is asked for. It belongs to the model.
    fit       (scores, config) -> Config: constants over the whole pool of candidates, before `select` and `target`.
    order     (rows, draws, config, rng) -> row indices in the order of training.
    check     (config, vocab_size) -> None: raises where a setting cannot act with this vocabulary.
    PRESETS   {name: {field: value}}; LOOP holds the same presets' settings of the loop (configs.recipes.Online).
"""

import ast
import difflib
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOM = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Field:
    """One setting of a method's Config: its annotation as written, its default as a plain value."""

    name: str
    type: str
    default: Any  # any literal


@dataclass(frozen=True)
class Description:
    """A method as its source declares it."""

    name: str
    summary: str
    loop: str
    unit: str
    columns: tuple[str, ...]
    forwards: tuple[str, ...]
    fields: tuple[Field, ...]
    presets: dict[str, dict[str, Any]]  # any literal
    hooks: tuple[str, ...]  # the optional names it has: select, signal, count, ...


HOOKS = ("select", "signal", "initial_state", "count", "condition", "target", "fit", "order", "check", "baseline")


def names() -> list[str]:
    """Every method, sorted: the files that define a Config and a loss."""
    return sorted(path.stem.replace("_", "-") for path in _ROOM.glob("*.py") if _is_method(path))


def load(name: str) -> ModuleType:
    """Import a method by its name in configs (`curriculum-dpo` is `methods/curriculum_dpo.py`).

    Raises:
        ValueError: no such method; says which file was expected and which names are near.
    """
    return importlib.import_module(f"methods.{_path(name).stem}")


@cache
def describe(name: str) -> Description:
    """Read a method's declarations from its source, without importing it (it imports torch).

    Raises:
        ValueError: no such method, or a declaration that is missing or not a literal; names file and line.
    """
    path = _path(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = {}  # any literal
    fields: tuple[Field, ...] = ()
    hooks = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id in (
                "loop",
                "unit",
                "columns",
                "forwards",
                "baseline",
                "PRESETS",
            ):
                values[target.id] = _literal(node.value, path)
        elif isinstance(node, ast.ClassDef) and node.name == "Config":
            fields = tuple(
                Field(item.target.id, ast.unparse(item.annotation), _literal(item.value, path))
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None
            )
    if missing := [key for key in ("loop", "unit", "columns", "forwards") if key not in values]:
        raise ValueError(
            f"methods/{path.name} declares no {', '.join(missing)}; see the docstring of methods/__init__.py"
        )
    return Description(
        name=name,
        summary=(ast.get_docstring(tree) or "").split("\n")[0],
        loop=values["loop"],
        unit=values["unit"],
        columns=values["columns"],
        forwards=values["forwards"],
        fields=fields,
        presets=values.get("PRESETS", {}),
        hooks=tuple(hook for hook in HOOKS if hook in hooks or hook in values),
    )


def _path(name: str) -> Path:
    path = _ROOM / f"{name.replace('-', '_')}.py"
    if "_" not in name and path.exists() and _is_method(path):
        return path
    near = difflib.get_close_matches(name.replace("_", "-"), names())
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
    raise ValueError(f"no method {name!r}: want a file methods/{path.name} with a Config and a loss; {hint}")


def _is_method(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {"Config", "loss"} <= defined


def _literal(node: ast.expr, path: Path) -> Any:  # any literal
    try:
        return ast.literal_eval(node)
    except ValueError:
        line = ast.unparse(node)
        raise ValueError(f"methods/{path.name}:{node.lineno}: want a literal, found {line}") from None
