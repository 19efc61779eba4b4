"""A bake-off's methods, read from configs/methods, as the rounds of a campaign of each seed."""

import difflib
from typing import TypeVar

from pydantic import ValidationError

from configs.bakeoff import BakeOff, Entrant
from configs.campaign import Campaign, Data, Round
from configs.check import check_rounds
from configs.fields import Strict
from configs.load import FOLDER, resolve
from configs.methods import check_config, describe
from configs.parse import ConfigError, one_line, parse
from configs.recipes import Online, Sample, Select, Train

R = TypeVar("R", Train, Online)
METHODS = FOLDER / "methods"


class Competitor(Strict):
    """One entrant made ready: its name and a round for each of its turns."""

    name: str
    entrant: Entrant
    rounds: tuple[Round, ...]


def entrant_names() -> list[str]:
    """Every file of configs/methods."""
    return sorted(path.stem for path in METHODS.glob("*.yaml"))


def read_entrant(name: str) -> Entrant:
    """One file of configs/methods.

    Raises:
        ConfigError: no such file, or what is wrong in it.
    """
    path = METHODS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, entrant_names(), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(entrant_names())}"
        raise ConfigError(f"bake_off.methods: no configs/methods/{name}.yaml; {hint}")
    place = f"configs/methods/{name}.yaml"
    try:
        entrant = Entrant.model_validate(parse(path.read_bytes(), place))
        check_config(entrant.method, entrant.config, entrant.preset)
        online = describe(entrant.method).loop == "online"
    except ValidationError as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error
    if online != (entrant.family == "online"):
        raise ConfigError(
            f"{place}: method {entrant.method} is {'online' if online else 'offline'}, family is {entrant.family}"
        )
    if not describe(entrant.method).selects and entrant.rows == "samples" and not online:
        raise ConfigError(f"{place}: method {entrant.method} chooses no rows from samples; want rows: demonstrations")
    return entrant


def competitors(campaign: Campaign, seed: int) -> tuple[Campaign, list[Competitor]]:
    """The campaign under one seed, and its competitors.

    Raises:
        ConfigError: no bake-off, an unknown method, a family without settings, a budget that does not divide.
    """
    bake_off = campaign.bake_off
    if bake_off is None:
        raise ConfigError(f"{campaign.name} has no section bake_off; run it with llama2-style/iterative")
    seeded = resolve(campaign.model_copy(update={"seed": seed}), require_data=False)
    return seeded, [ready(name, read_entrant(name), bake_off, seeded) for name in bake_off.methods]


def ready(name: str, entrant: Entrant, bake_off: BakeOff, campaign: Campaign, **settings: object) -> Competitor:
    """One entrant's rounds under the bake-off's budget; `settings` replace some of its family's.

    Raises:
        ConfigError: a family without settings, a budget that does not divide, a round that cannot learn.
    """
    family = getattr(bake_off.families, entrant.family)
    if family is None:
        raise ConfigError(f"bake_off.families: {name} is of family {entrant.family}, which has no settings")
    changed = type(family).model_validate({**family.model_dump(exclude_unset=True), **settings})
    rounds = tuple(_round(name, turn, entrant, changed, campaign) for turn in range(1, entrant.turns + 1))
    whole = campaign.model_copy(update={"rounds": rounds, "data": Data()})  # its files have their digests already
    try:
        check_rounds(whole)
        return Competitor(name=name, entrant=entrant, rounds=resolve(whole, require_data=False).rounds)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _round(name: str, turn: int, entrant: Entrant, family: Train | Online, campaign: Campaign) -> Round:
    """What a round of a campaign would say to run this method under the bake-off's budget."""
    version = name if turn == entrant.turns else f"{name}-turn-{turn}"
    more: dict[str, Strict] = {}
    if isinstance(family, Online):
        more["online"] = _online(name, entrant, family, campaign.sample)
    else:
        more["train"] = _own(family, method=entrant.method, config=entrant.config)
        more["select"] = Select.model_validate(
            {"rounds": campaign.select.rounds, "threshold": campaign.select.threshold}
            | ({"method": entrant.method, "config": entrant.config} if describe(entrant.method).selects else {})
        )
    if campaign.sample.prompts % entrant.turns:
        raise ConfigError(
            f"{name}: sample.prompts {campaign.sample.prompts} must be a multiple of its {entrant.turns} turns"
        )
    more["sample"] = Sample.model_validate(
        campaign.sample.model_dump(exclude={"limits", "seed", "round"})
        | {"prompts": campaign.sample.prompts // entrant.turns}
    )
    return Round.model_validate(
        {"method": entrant.method, "version": version, "annotate": "none", "probe": "none", "reward": "keep",
         "rows": entrant.rows, "start": "sft", **more}
    )  # fmt: skip


def _online(name: str, entrant: Entrant, family: Online, sample: Sample) -> Online:
    """The family's loop for as many iterations as the budget of sampled responses pays."""
    budget, each = sample.prompts * sample.k, family.batch_size * entrant.cost
    if budget % each:
        raise ConfigError(
            f"{name}: the budget of {budget} responses is no multiple of the {each} that one iteration samples "
            f"(batch_size {family.batch_size}, {entrant.cost} for a rollout)"
        )
    return _own(
        family,
        method=entrant.method,
        config=entrant.config,
        preset=entrant.preset,
        k=entrant.k,
        iterations=budget // each,
    )


def _own(recipe: R, **more: object) -> R:
    """A recipe with other settings, checked again."""
    return type(recipe).model_validate({**recipe.model_dump(exclude_unset=True), **more})
