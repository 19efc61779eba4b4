"""Every method as the method of a round of `llama2-style`, on the world and on stories, at a size at which nothing is learned.

Pairwise and listwise methods run two rounds: the second samples from what the first made and ranks by its reward models.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from configs import competitors, describe, load
from configs.check import check
from configs.entrants import entrant_names, read_entrant
from configs.load import FOLDER, resolve
from configs.parse import parse
from flows.rounds import align
from storage import Store, open_store
from storage.rows import read_rows
from tasks import Run

DATA = os.environ.get("ROUNDHOUSE_DATA", "")
STORIES = Path(DATA) / "data/tinystories/stories.jsonl.gz"
DOMAINS = [
    "world",
    pytest.param(
        "stories", marks=pytest.mark.skipif(not DATA or not STORIES.is_file(), reason="needs ROUNDHOUSE_DATA")
    ),
]
ITERATED = ("preference", "listwise")


def domain_config(domain: str) -> dict[str, Any]:
    """configs/bake-off-micro.yaml without its bake-off, or the same on a real model and real texts."""
    raw = parse((FOLDER / "bake-off-micro.yaml").read_bytes(), "bake-off-micro")
    families = raw.pop("bake_off")["families"]
    raw |= {
        "name": f"every-{domain}",
        "certify": {"on_failure": "record"},
        "train": families["imitation"],
        "online": families["online"],
    }
    if domain == "stories":
        stories = parse((FOLDER / "stories.yaml").read_bytes(), "stories")
        source = "data/tinystories/stories.jsonl.gz"
        raw |= {"judge": "stories", "base": stories["base"], "limits": {"prompt_tokens": 48, "response_tokens": 40}}
        raw["data"] = {
            "held_out": 0.3,
            "demonstrations": [{"world": "stories-demonstrations", "path": source, "count": 200}],
            "prompts": [{"world": "stories-prompts", "path": source, "count": 80}],
        }
    return raw


def round_of(name: str) -> dict[str, Any]:
    """What a config's `rounds:` would say for this entrant, with the micro bake-off's settings."""
    campaign = load("bake-off-micro")
    assert campaign.bake_off is not None
    lone = campaign.bake_off.model_copy(update={"methods": (name,), "planted": None})
    _, (found,) = competitors(campaign.model_copy(update={"bake_off": lone}), 11)
    entry = found.rounds[0]
    section = "online" if describe(entry.method).loop == "online" else "train"
    recipe = getattr(entry, section).model_dump(exclude={"limits", "seed"}, exclude_defaults=True)
    recipe.pop("iterations", None)
    more: dict[str, Any] = {"select": {"method": entry.method, "config": found.entrant.config}}
    return {
        "method": entry.method, "rows": entry.rows, section: {**recipe, **({"iterations": 2} if section == "online" else {})},
        **(more if describe(entry.method).selects and entry.rows == "samples" else {}),
    }  # fmt: skip


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all, so that base, SFT, reward models and samples are made once a domain."""
    return open_store(tmp_path_factory.mktemp("every") / "store")


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", [name for name in entrant_names() if not name.endswith("-iterated")])
def test_as_the_method_of_a_round(name: str, domain: str, store: Store) -> None:
    entrant = read_entrant(name)
    rounds = [round_of(name)] * (2 if entrant.family in ITERATED and entrant.rows == "samples" else 1)
    campaign = resolve(check({**domain_config(domain), "rounds": rounds}, name))
    run = Run(campaign, store, campaign.runtime, mode="direct")
    align(run)
    assert all(artifact.made() is not None for artifact in run.artifacts.values())
    for number in range(1, len(rounds) + 1):
        version = run.artifacts[f"v{number}"].summary()
        assert version is not None and (version.get("steps", 0) or version["policy_steps"]) > 0
        found = run.evaluations[f"v{number}"].summary()
        assert found is not None and found["gold"] is not None and found["kl"]["mean"] != 0.0
    if len(rounds) == 2:
        first, second = (sampled_by(run, f"r{number}-sample") for number in (1, 2))
        assert first != second and second == evaluated(run, "v1"), "round 2 answers by what round 1 made"
        rewards = {row["rewards"] for row in scored(run, "r2-score")}
        assert len(rewards) == 1 and rewards != {row["rewards"] for row in scored(run, "r1-score")}


def sampled_by(run: Run, label: str) -> str:
    """The weights that answered."""
    (policy,) = {row["policy"] for row in read_rows(run.store.fetch(run.artifacts[label].ref), "Response")}
    return str(policy)


def evaluated(run: Run, version: str) -> str:
    summary = run.evaluations[version].summary()
    assert summary is not None
    return str(summary["policy"])


def scored(run: Run, label: str) -> list[dict[str, Any]]:
    return list(read_rows(run.store.fetch(run.artifacts[label].ref), "Scored"))
