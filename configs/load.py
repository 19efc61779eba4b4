"""The file of a config -> a Campaign that is ready to run: checked, resolved, with the digests of its local data."""

import difflib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.campaign import Base, Campaign
from configs.check import SECTIONS, check, section_for
from configs.fields import Strict
from configs.methods import describe
from configs.parse import ConfigError, one_line, parse
from configs.recipes import Adopt, Online, Source
from configs.runtime import Runtime

FOLDER = Path(__file__).resolve().parent


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


def load_runtime(path: str | Path) -> Runtime:
    """A runtime of its own, from a YAML file holding the fields of `runtime:`."""
    try:
        return Runtime.model_validate(parse(Path(path).read_bytes(), str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


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
                "select": fill(section_for(_selector(entry.method, c), entry.select, c.select)),
                "train": fill(section_for(entry.method, entry.train, c.train)),
                "online": fill(_with_preset(entry.online or c.online, entry.method, f"rounds[{i - 1}].online")),
            }
        )
        for i, entry in enumerate(c.rounds, start=1)
    )
    rewards = {kind: fill(r, reads="own" if kind in c.reward_bases else "policy") for kind, r in c.rewards.items()}
    bases = {kind: _base(base, fill, require_data) for kind, base in c.reward_bases.items()}
    sections = {name: fill(getattr(c, name)) for name in SECTIONS}
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
