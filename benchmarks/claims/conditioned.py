"""Is a policy trained under conditions better when asked for more? After the two epochs of the bake-off, and after eight."""

from dataclasses import replace

import numpy as np

from benchmarks.claims.lab import Effect, Lab, mean_effect
from configs import read_entrant
from engine.evaluate import add_gold
from engine.generate import generate
from engine.models import load_policy
from engine.template import load_chat

TEXT = "a conditioned policy does what it is asked for"
SOURCE = "Hu et al. 2023; Dong et al. 2023"
MATTERS, UNIT = 0.05, "gold, asked for the best less the worst"
EPOCHS = 8  # of the longer ones; the bake-off's have 2
LOW = {"conditional": " score: -2", "steerlm": "\nlevels helpfulness:0,safety:0"}  # as configs/methods writes them


def stages(lab: Lab) -> list:
    found = [lab.evaluation("v0")]
    for name in LOW:
        found += [lab.policy(name), lab.policy(f"{name}-long", entrant=read_entrant(name), epochs=EPOCHS)]
    return found


def golds(lab: Lab, name: str, asked: str | None) -> np.ndarray:
    """Gold of a policy's responses to the held-out prompts when it is asked for this instead of what it is made for: [P]."""
    folder, recipe = lab.folder(lab.policies[name]), lab.campaign.evaluate
    chat, policy = load_chat(folder), load_policy(folder, lab.run.runtime)
    chat = chat if asked is None else replace(chat, asks=asked)
    rows = lab.rows(lab.evaluations["v0"], "responses")
    found = generate(
        policy,
        chat,
        [chat.prompt_ids(chat.asking(row["messages"])) for row in rows],
        [(row["prompt_id"], 0) for row in rows],
        seed=recipe.seed,
        stream="conditioned",
        temperature=recipe.temperature,
        max_new_tokens=recipe.limits.response_tokens,
        rows=lab.run.runtime.sample_rows,
    )
    rows = [{**row, "text": chat.text(response.token_ids)} for row, response in zip(rows, found, strict=True)]
    add_gold(rows, lab.campaign.judge)
    return np.array([row["gold"] for row in rows])


def measure(lab: Lab) -> dict[str, Effect]:
    """Paired over prompts; the random numbers are the same for both."""
    found = {}
    for method, low in LOW.items():
        for name in (method, f"{method}-long"):
            best, worst = golds(lab, name, None), golds(lab, name, low)
            note = f"asked for the best {best.mean():.3f}, for the worst {worst.mean():.3f}; v0 {lab.held_out('v0').mean():.3f}"
            found[name] = mean_effect(best - worst, note)
    return found
