"""YAML -> Campaign. Every error is one line: file, place, what was found, what was wanted."""

import difflib
import hashlib
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from configs.campaign import Base, Campaign
from configs.fields import Strict
from configs.methods import check_config, describe
from configs.recipes import Adopt, Annotate, Online, Reward, Select, Source, Train
from configs.runtime import Runtime

FOLDER = Path(__file__).resolve().parent
MAX_BYTES = 1 << 20
_SECTIONS = (
    "sft",
    "leakage",
    "certify",
    "annotate",
    "probe",
    "sample",
    "select",
    "train",
    "online",
    "evaluate",
    "compare",
)
S = TypeVar("S", Train, Select, Online)
_DERIVED = (
    "limits",
    "judge",
    "seed",
    "round",
    "sha256",
    "reward",
    "leakage",
    "reads",
)  # set by the campaign for every section


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


def data_root() -> Path:
    """Where relative data paths begin: ROUNDHOUSE_DATA, else the working folder."""
    return Path(os.environ.get("ROUNDHOUSE_DATA") or ".")


def find(config: str | Path) -> Path:
    """The file meant by a path or by the bare name of a config that ships with the project."""
    path = Path(config)
    for candidate in (path, FOLDER / path.name, FOLDER / f"{path}.yaml", FOLDER.parent / path):
        if candidate.is_file():
            return candidate
    names = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, names, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known names: {', '.join(names)}"
    raise ConfigError(f"no config {str(config)!r}{hint}")


def load(
    config: str | Path, *, seed: int | None = None, seeds: list[int] | None = None, require_data: bool = True
) -> Campaign:
    """Read, check and resolve a campaign: content digests of local data are filled in, derived fields are set.

    `seeds` are those of a bake-off; a campaign has one `seed`.
    Without `require_data` a local file that is not there is left without a digest; only a plan can use that.

    Raises:
        ConfigError: one line saying what was found where, and what was wanted.
    """
    path = find(config)
    raw = parse(path.read_bytes(), str(config))
    if seed is not None:
        raw["seed"] = seed
        seeds = [seed] if seeds is None else seeds
    if seeds is not None and isinstance(raw.get("bake_off"), dict):
        raw["bake_off"]["seeds"] = seeds
    try:
        return resolve(check(raw, str(config)), require_data=require_data)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config}: {error}") from error


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


def check(raw: dict[str, Any], name: str) -> Campaign:
    """A plain mapping -> a Campaign, with the methods' own settings checked."""
    if "campaign" in raw:
        raise ConfigError(f"{name}: a refresh, not a campaign; run it with continued-pretraining/refresh -p config=...")
    try:
        campaign = Campaign.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{name}: {one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    problem = _misplaced(campaign) or _lacking(campaign)
    if problem:
        raise ConfigError(f"{name}: {problem}")
    try:
        _check_methods(campaign)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    return campaign


def load_runtime(path: str | Path) -> Runtime:
    """A runtime of its own, from a YAML file holding the fields of `runtime:`."""
    try:
        return Runtime.model_validate(parse(Path(path).read_bytes(), str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _check_methods(c: Campaign) -> None:
    trains: list[Train | Reward] = [c.sft, c.train, *c.rewards.values()]
    trains += [_for(r.method, r.train, c.train) for r in c.rounds if r.train]
    for offline in trains:
        check_config(offline.method, offline.config)
    for select in (c.select, *(r.select for r in c.rounds if r.select)):
        check_config(select.method, select.config)
    for kind, reward in c.rewards.items():
        if reward.kind != kind:
            raise ValueError(f"rewards.{kind}.kind is {reward.kind}")
    if c.bake_off is not None and c.rounds:
        raise ValueError(
            "bake_off and rounds in one config: a bake-off takes its rounds from its methods; leave one out"
        )
    check_rounds(c)
    online = False
    for entry in c.rounds:
        if describe(entry.method).loop == "online":
            online = True
            recipe = entry.online or c.online
            check_config(entry.method, recipe.config, recipe.preset)
    if c.rounds and not c.rewards:
        needs = [
            r.method for r in c.rounds if r.sample or describe(r.method).loop == "online" or describe(r.method).selects
        ]
        if needs:
            raise ValueError(f"rounds with {needs[0]} need a reward model: give rewards.helpfulness")
    if not online and c.online.preset:
        check_config(c.online.method, c.online.config, c.online.preset)


def check_rounds(c: Campaign) -> None:
    """What a round's sections are to its method. Raises ValueError in one line."""
    for i, entry in enumerate(c.rounds):
        method, place = describe(entry.method), f"rounds[{i}]"
        for name in ("train", "online"):
            own = getattr(entry, name)
            if own is not None and "method" in own.model_fields_set and own.method != entry.method:
                raise ValueError(
                    f"{place}.{name}.method is {own.method}, the round's is {entry.method}: leave it out there"
                )
        if method.loop == "offline" and entry.rows == "samples":
            check_config(entry.method, _for(entry.method, entry.train, c.train).config)
        sampled = entry.online or c.online if method.loop == "online" else entry.sample or c.sample
        if (method.loop == "online" or entry.rows == "samples") and sampled.k < method.least_k:
            section = "online" if method.loop == "online" else "sample"
            raise ValueError(
                f"{place}: {entry.method} compares the responses to one prompt: {section}.k is {sampled.k}, "
                f"want at least {method.least_k}"
            )


def _for(method: str, own: S | None, shared: S) -> S:
    """A round's section under its method: its own, or the campaign's without the settings of another method."""
    section = shared if own is None else own
    if section.method == method or (own is not None and "method" in own.model_fields_set):
        return section
    return section.model_copy(update={"method": method, **({} if own is not None else {"config": {}})})


def _misplaced(c: Campaign) -> str | None:
    """Fields that the campaign sets for all sections may not be set in one: they would be overwritten silently."""
    sections: dict[str, BaseModel | None] = {f"rewards.{k}": v for k, v in c.rewards.items()}
    for name in _SECTIONS:
        section = getattr(c, name)
        sections[name] = section if isinstance(section, BaseModel) else None
        for i, entry in enumerate(c.rounds):
            own = getattr(entry, name, None)
            sections[f"rounds[{i}].{name}"] = own if isinstance(own, BaseModel) else None
    for place, section in sections.items():
        for field in _DERIVED:
            if section is not None and field in section.model_fields_set:
                return f"{place}.{field}: not here; the campaign sets it for every section"
    return None


def _lacking(c: Campaign) -> str | None:
    """Data that the campaign's stages will want and nobody gives."""
    annotators = [
        r.annotate if isinstance(r.annotate, Annotate) else c.annotate for r in c.rounds if r.annotate != "none"
    ]
    if not c.data.prompts:
        return "data.prompts: none given; every version is evaluated on held-out prompts"
    if not c.data.held_out:
        return "data.held_out: 0 leaves no prompt to evaluate on; 0.2 is usual"
    if c.base.pretrain and not c.data.documents:
        return "data.documents: none given, which base.pretrain learns from"
    if c.bake_off and not c.data.demonstrations:
        return "data.demonstrations: none given; all methods of a bake-off start from one SFT model"
    for kind, reward in c.rewards.items():
        if "responses" in describe(reward.method).columns and not c.data.rankings:
            return f"data.rankings: none given, which rewards.{kind}.method {reward.method} learns from"
    for kind, own in c.reward_bases.items():
        if kind not in c.rewards:
            return f"reward_bases.{kind}: there is no rewards.{kind}"
        if own.pretrain and not c.data.documents:
            return f"data.documents: none given, which reward_bases.{kind}.pretrain learns from"
    if c.judge_model and c.annotate.annotator not in ("gold", "dataset"):
        return (
            f"judge_model: preferences by annotator {c.annotate.annotator} would make it no independent judge; "
            "want annotate.annotator gold or dataset, or no judge_model"
        )
    if c.judge_model and not (c.rewards and c.judge_model.share):
        return "judge_model: needs rewards (it is trained as they are) and a share above 0"
    if not c.data.preferences and any(a.annotator == "dataset" for a in annotators):
        return "data.preferences: none given, which the annotator of the rounds deals out"
    return None


def resolve(c: Campaign, *, require_data: bool = True) -> Campaign:
    """Fill in what the sections share (limits, judge, seed) and the content digests of local files."""
    shared = {"limits": c.limits, "judge": c.judge, "seed": c.seed}

    def fill(section: Any, **more: Any) -> Any:
        if not isinstance(section, Strict):
            return section
        known = {k: v for k, v in {**shared, **more}.items() if k in type(section).model_fields}
        return section.model_copy(update=known)

    data = c.data.model_copy(
        update={
            rows: tuple(with_digest(source, require_data) for source in getattr(c.data, rows))
            for rows in ("documents", "demonstrations", "prompts", "preferences", "rankings")
        }
    )
    base = _base(c.base, fill, require_data)
    rounds = tuple(
        entry.model_copy(
            update={
                "version": entry.version or f"v{i}",
                "annotate": fill(entry.annotate or c.annotate, round=i),
                "probe": fill(entry.probe or c.probe),
                "sample": fill(entry.sample or c.sample, round=i),
                "select": fill(_for(_selector(entry.method, c), entry.select, c.select)),
                "train": fill(_for(entry.method, entry.train, c.train)),
                "online": fill(_with_preset(entry.online or c.online, entry.method, f"rounds[{i - 1}].online")),
            }
        )
        for i, entry in enumerate(c.rounds, start=1)
    )
    rewards = {kind: fill(r, reads="own" if kind in c.reward_bases else "policy") for kind, r in c.rewards.items()}
    bases = {kind: _base(base, fill, require_data) for kind, base in c.reward_bases.items()}
    sections = {name: fill(getattr(c, name)) for name in _SECTIONS}
    versions = [entry.version for entry in rounds]
    if len(set(versions)) != len(versions) or {"base", "v0"} & set(versions):
        raise ConfigError(f"rounds: versions must differ from each other and from base and v0, found {versions}")
    return c.model_copy(
        update={"data": data, "base": base, "rounds": rounds, "rewards": rewards, "reward_bases": bases, **sections}
    )


def _base(base: Base, fill: Callable[..., Any], require_data: bool) -> Base:
    adopt = _adopt_digest(fill(base.adopt), require_data) if base.adopt else None
    return base.model_copy(update={"pretrain": fill(base.pretrain), "adopt": adopt})


def _with_preset(recipe: Online, method: str, place: str) -> Online:
    """The preset's settings of the loop, where the file gives none of its own."""
    if describe(method).loop != "online":
        return recipe.model_copy(update={"method": method})  # not used: the round has another loop
    loop = describe(method).loops.get(recipe.preset or "", {})
    own = {**recipe.model_dump(exclude_unset=True), "method": method}
    try:
        whole = Online.model_validate({**loop, **own}).model_dump()
        return Online.model_validate(whole)  # with all fields set, so that what they are to each other is checked
    except ValidationError as error:
        raise ConfigError(f"{place}, preset {recipe.preset}: {one_line(error)}") from error


def _selector(method: str, c: Campaign) -> str:
    return method if describe(method).selects else c.select.method


def locate(path: str) -> Path:
    """A data path of a config -> the file or folder meant.

    Raises:
        ConfigError: nothing is there.
    """
    for root in (data_root(), Path("."), FOLDER.parent):
        found = (root / path).expanduser()
        if found.exists():
            return found
    raise ConfigError(
        f"{path}: no such file or folder under {data_root()} (set ROUNDHOUSE_DATA to the folder that holds it)"
    )


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: the folder is empty")
    for file in files:
        total.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def with_digest(source: Source, require: bool = True) -> Source:
    """The source with the digest of its local file or folder, if it has one."""
    if not source.path or not (require or _is_there(source.path)):
        return source
    return source.model_copy(update={"sha256": _sha256(locate(source.path))})


def _is_there(path: str) -> bool:
    try:
        return locate(path).exists()
    except ConfigError:
        return False


def _adopt_digest(adopt: Adopt, require: bool) -> Adopt:
    if adopt.path and (require or _is_there(adopt.path)) and not (adopt.random_init and adopt.architecture):
        return adopt.model_copy(update={"sha256": _sha256(locate(adopt.path))})
    return adopt


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
