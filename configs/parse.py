"""YAML bytes -> a plain mapping, and a validation error -> one line: file, place, what was found, what was wanted."""

import difflib
import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.campaign import Campaign
from configs.runtime import Runtime

MAX_BYTES = 1 << 20


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line for the person who wrote it."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and alias bombs."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > 200:
                raise yaml.YAMLError("more than 200 aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.YAMLError(f"key {key!r} twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """YAML bytes -> a plain mapping."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: {len(data)} bytes, a config may have {MAX_BYTES}")
    try:
        raw = yaml.load(data.decode("utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 at byte {error.start}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        text = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else str(error)  # type: ignore[union-attr]  # a MarkedYAMLError has both
        raise ConfigError(f"{name}: not valid YAML: {' '.join(text.split())[:300] or type(error).__name__}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: want a mapping at the top, found {type(raw).__name__}")
    for key in raw:
        if not isinstance(key, str):
            raise ConfigError(f"{name}: key {key!r} is not a text")
    return raw


def one_line(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first problem of a validation error, with the nearest known key for a misspelt one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(model or (Campaign if error.title == "Campaign" else Runtime), first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}" if known else ""
        return f"{place}: unknown key{hint}{more}"
    found = first.get("input")
    shown = "" if isinstance(found, dict) or first["type"] == "missing" else f", found {str(found)[:80]!r}"
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}{shown}{more}"


def _keys_at(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that lies at `loc` under `model`."""
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel):
            info = model.model_fields.get(str(part))
            if info is None:
                continue
            model = info.annotation
        candidates = [model]
        found: Any = None
        while candidates and found is None:
            one = candidates.pop(0)
            if isinstance(one, type) and issubclass(one, BaseModel):
                found = one
            elif isinstance(one, types.UnionType) or typing.get_origin(one) is not None:
                candidates.extend(typing.get_args(one))
        if found is not None and (not isinstance(model, type) or model is found):
            model = found
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
