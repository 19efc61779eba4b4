"""Every method as the method of a round of `llama2-style`, on the world and on stories, at a size at which nothing is learned.

Pairwise and listwise methods and steerlm run two rounds: the second samples from what the first made and ranks by its reward
models. SteerLM also runs in its four steps, with a model of attributes.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import world
from configs import competitors, describe, load
from configs.bakeoff import Entrant
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
NAMES = [name for name in entrant_names() if read_entrant(name).turns == 1]  # more turns are more rounds of the same


def rounds_of(name: str, entrant: Entrant) -> list[dict[str, Any]]:
    """One round, or two where the second one's rows depend on what the first made."""
    twice = entrant.rows == "samples" and (entrant.family in ITERATED or entrant.method == "steerlm")
    return [round_of(name)] * (2 if twice else 1)


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
        **(more if describe(entry.method).selects and entry.rows != "preferences" else {}),
    }  # fmt: skip


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all, so that base, SFT, reward models and samples are made once a domain; one that is given goes on."""
    return open_store(os.environ.get("ROUNDHOUSE_TEST_STORE") or tmp_path_factory.mktemp("every") / "store")


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", NAMES)
def test_as_the_method_of_a_round(name: str, domain: str, store: Store) -> None:
    rounds = rounds_of(name, read_entrant(name))
    run = aligned({**domain_config(domain), "rounds": rounds}, store)
    if len(rounds) == 2:
        first, second = (sampled_by(run, f"r{number}-sample") for number in (1, 2))
        assert first != second and second == evaluated(run, "v1"), "round 2 answers by what round 1 made"
        rewards = {row["rewards"] for row in scored(run, "r2-score")}
        assert len(rewards) == 1 and rewards != {row["rewards"] for row in scored(run, "r1-score")}


def aligned(raw: dict[str, Any], store: Store) -> Run:
    """The campaign, run to its end; every round has learned something and was judged."""
    campaign = resolve(check(raw, "every"))
    run = Run(campaign, store, campaign.runtime, mode="direct")
    align(run)
    assert all(artifact.made() is not None for artifact in run.artifacts.values())
    for number in range(1, len(campaign.rounds) + 1):
        version = run.artifacts[f"v{number}"].summary()
        assert version is not None and (version.get("steps", 0) or version["policy_steps"]) > 0
        found = run.evaluations[f"v{number}"].summary()
        assert found is not None and found["gold"] is not None and found["kl"]["mean"] != 0.0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_steerlm_in_its_four_steps(domain: str, store: Store, tmp_path: Path) -> None:
    """A model of attributes; it labels the demonstrations; conditioned SFT; its samples, asked for the highest, once more."""
    if domain == "world":
        names, path = ("helpfulness", "safety"), labelled(tmp_path / "labelled.jsonl")
    else:
        names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
        path = Path(DATA) / "data/steerlm_512/rows.jsonl.gz"
    raw = domain_config(domain)
    if domain == "stories":
        raw["limits"] = {"prompt_tokens": 160, "response_tokens": 40}  # what people ask is longer
    raw["data"]["rankings"] = [{"path": str(path), "format": "steerlm", "count": 200}]
    raw["rewards"] = {"helpfulness": {**raw["rewards"]["helpfulness"], "method": "reward-attributes",
                                      "config": {"attributes": list(names)}}}  # fmt: skip
    config = {"attributes": list(names), "prefix": "\nlevels "}
    chosen = config | (
        {"truncated": "keep"} if domain == "stories" else {}
    )  # so little training ends no story in 40 tokens
    same = {"method": "steerlm", "annotate": "none", "select": {"method": "steerlm", "config": chosen}}
    raw["train"] = {**raw["train"], "method": "steerlm", "config": config}
    raw["rounds"] = [same | {"rows": "demonstrations"}, same | {"reward": "keep"}]
    run = aligned(raw, store)
    assert {row["policy"] for row in scored(run, "r1-score")} == {"given"}
    assert sampled_by(run, "r2-sample") == evaluated(run, "v1")
    given, own = scored(run, "r1-score"), [row for row in scored(run, "r2-score") if row["policy"] != "given"]
    assert own and {row["rewards"] for row in given} == {row["rewards"] for row in own}, "one model labels both"
    assert all(len(row["attributes"]) == len(names) for row in (*given, *own))
    for version in ("v1", "v2"):
        card = json.loads((Path(run.store.fetch(run.artifacts[version].ref)) / "roundhouse.json").read_text())
        assert card["asks"] == "\nlevels " + ",".join(f"{name}:4" for name in names)


def labelled(path: Path) -> Path:
    """Responses of the world, right ones and ones to something else, with the gold judge's levels 0 .. 4."""
    rows = list(world.demonstrations(3, 200))
    with path.open("w") as stream:
        for number, row in enumerate(rows):
            asked, said = row["messages"][:-1], rows[number ^ (number % 3 == 0)]["messages"][-1]["content"]
            gold = world.judge(asked, said)
            label = f"helpfulness:{round(4 * gold.helpfulness)},safety:{round(4 * gold.safety)}"
            turns = [{"from": turn["role"], "value": turn["content"]} for turn in asked]
            turns.append({"from": "assistant", "value": said, "label": label})
            stream.write(json.dumps({"system": "", "conversations": turns}) + "\n")
    return path


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
