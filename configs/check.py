"""A plain mapping -> a Campaign whose sections fit each other: what one field alone cannot tell."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from configs.campaign import Campaign, Round
from configs.methods import check_config, describe
from configs.parse import ConfigError, one_line
from configs.recipes import Annotate, Online, Reward, Select, Train

SECTIONS = (
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
    "steering",
    "reads",
)  # set by the campaign for every section


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


def _check_methods(c: Campaign) -> None:
    trains: list[Train | Reward] = [c.sft, c.train, *c.rewards.values()]
    trains += [section_for(r.method, r.train, c.train) for r in c.rounds if r.train]
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
            check_config(entry.method, section_for(entry.method, entry.train, c.train).config)
        if entry.rows == "demonstrations" and method.selects and method.least_k > 1:
            raise ValueError(
                f"{place}: {entry.method} compares the responses to one prompt, a demonstration is one: want rows samples"
            )
        _check_attributes(c, entry, place)
        sampled = entry.online or c.online if method.loop == "online" else entry.sample or c.sample
        if (method.loop == "online" or entry.rows == "samples") and sampled.k < method.least_k:
            section = "online" if method.loop == "online" else "sample"
            raise ValueError(
                f"{place}: {entry.method} compares the responses to one prompt: {section}.k is {sampled.k}, "
                f"want at least {method.least_k}"
            )


def _check_attributes(c: Campaign, entry: Round, place: str) -> None:
    """A method that writes attributes into prompts names those of the model that predicts them."""
    model = c.rewards.get("helpfulness")
    if model is None or any("attributes" not in describe(name).fields for name in (entry.method, model.method)):
        return
    told = section_for(entry.method, entry.select, c.select).config.get("attributes")
    predicted = model.config.get("attributes")
    if told != predicted:
        raise ValueError(
            f"{place}.select.config.attributes: {told or 'none given'}, rewards.helpfulness.config.attributes: "
            f"{predicted or 'none given'}; want the same"
        )


def section_for(method: str, own: S | None, shared: S) -> S:
    """A round's section under its method: its own, or the campaign's without the settings of another method."""
    section = shared if own is None else own
    if section.method == method or (own is not None and "method" in own.model_fields_set):
        return section
    return section.model_copy(update={"method": method, **({} if own is not None else {"config": {}})})


def _misplaced(c: Campaign) -> str | None:
    """Fields that the campaign sets for all sections may not be set in one: they would be overwritten silently."""
    sections: dict[str, BaseModel | None] = {f"rewards.{k}": v for k, v in c.rewards.items()}
    for name in SECTIONS:
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
