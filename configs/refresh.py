"""A refresh: one YAML file that says where documents arrive, how a campaign's base is trained on them, and what then."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from configs.campaign import Campaign
from configs.continuing import Continue, Measure, Pack, Transplant
from configs.deciding import Decide
from configs.fields import Count, Name, Natural, Strict
from configs.gathering import Gather, Inbox
from configs.load import find, load, with_digest
from configs.methods import check_config, describe
from configs.parse import ConfigError, one_line, parse
from configs.recipes import Source, Train
from configs.runtime import Runtime

_DERIVED: Mapping[str, set[str]] = {  # set by the refresh itself
    "gather": {"listings", "held_out", "seed"},
    "pack": {"seed"},
    "measure": {"labels", "corpora", "seed"},
    "decide": {"old", "candidates", "before", "after", "new", "seed"},
    "short_sft": {"seed", "limits"},
}


class Refresh(Strict):
    """The whole of a refresh's file. Refreshes of one name and campaign are a chain: r1, r2, ..

    campaign: whose base and chat model; a YAML file, or the name of one that comes with the project.
    record: the campaign's record in the store (name-digest), where its config or this software has changed since it was run.
    old: what the base was trained on, where the campaign itself has no documents (an adopted base).
    least: new documents that are worth a refresh; fewer wait for the next look.
    follow_up: whether what was decided is also started.
    """

    name: Name
    campaign: str
    record: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,40}-[0-9a-f]{16}$")
    seed: Natural = 0
    inboxes: tuple[Inbox, ...] = Field(min_length=1)
    old: tuple[Source, ...] = ()
    least: Count = 1
    gather: Gather = Gather()
    pack: Pack = Pack()
    training: Continue = Continue()
    measure: Measure = Measure()
    transplant: Transplant = Transplant()
    decide: Decide = Decide()
    short_sft: Train = Train(epochs=0.5)
    follow_up: Literal["start", "record"] = "start"
    runtime: Runtime | None = None  # None: the campaign's


def load_refresh(config: str, *, seed: int | None = None) -> tuple[Refresh, Campaign]:
    """Read and check a refresh and the campaign that it names; `seed` is for both, instead of their own.

    Raises:
        ConfigError: one line saying what was found where, and what was wanted.
    """
    raw = parse(find(config).read_bytes(), config)
    if "campaign" not in raw:
        raise ConfigError(f"{config}: campaign is missing; a refresh names the campaign whose base it trains on")
    refresh = check_refresh(raw if seed is None else {**raw, "seed": seed}, config)
    campaign = load(refresh.campaign, seed=seed)
    if refresh.record and refresh.record[:-17] != campaign.name:
        raise ConfigError(f"{config}: record {refresh.record} is not one of campaign {campaign.name}")
    if not campaign.data.documents and not refresh.old and refresh.training.replay:
        raise ConfigError(
            f"{config}: campaign {campaign.name} has no documents of its own to replay; give old: sources of the text that "
            "its base was trained on, or set training.replay: 0"
        )
    return resolve_refresh(refresh, campaign), campaign


def is_refresh(config: str) -> bool:
    """Whether a file is a refresh's and not a campaign's: it names the campaign that it is of."""
    found = parse(find(config).read_bytes(), config)
    return "campaign" in found and "inboxes" in found


def check_refresh(raw: Mapping[str, Any], config: str) -> Refresh:
    """A plain mapping -> a Refresh as its file says it.

    Raises:
        ConfigError: one line.
    """
    try:
        refresh = Refresh.model_validate(raw)
        check_config(refresh.short_sft.method, refresh.short_sft.config)
    except ValidationError as error:
        raise ConfigError(f"{config}: {one_line(error, Refresh)}") from error
    except ValueError as error:
        raise ConfigError(f"{config}: short_sft: {error}") from error
    if "messages" not in describe(refresh.short_sft.method).columns:
        raise ConfigError(
            f"{config}: short_sft.method {refresh.short_sft.method} does not train on demonstrations; use sft"
        )
    for section, fields in _DERIVED.items():
        for field in sorted(fields & getattr(refresh, section).model_fields_set):
            raise ConfigError(f"{config}: {section}.{field}: not here; the refresh sets it itself")
    return refresh


def resolve_refresh(refresh: Refresh, campaign: Campaign) -> Refresh:
    """Fill in what the sections share: the seed, the campaign's token limits and its held-out share."""
    seed = {"seed": refresh.seed}
    sft = refresh.short_sft.model_copy(update={**seed, "limits": campaign.limits})
    return refresh.model_copy(
        update={
            "old": tuple(with_digest(source) for source in refresh.old),
            "gather": refresh.gather.model_copy(update={**seed, "held_out": campaign.data.held_out}),
            "pack": refresh.pack.model_copy(update=seed),
            "measure": refresh.measure.model_copy(update=seed),
            "decide": refresh.decide.model_copy(update=seed),
            "short_sft": sft,
        }
    )
