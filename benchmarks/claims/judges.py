"""Helpfulness models of several sizes and amounts of data, and the policies that they train; shared by three claims.

The policy has a width of 96 and 0.29 million parameters. A model of another width starts, as the policy's own does, from a
base of its size that was pretrained and fine-tuned in the same way, on the same texts with the same tokenizer. The learning
rate of pretraining falls with the width above the policy's; nothing else is changed. The safety model is the shared one.
"""

from itertools import combinations

import numpy as np

from benchmarks.claims.lab import Lab
from engine.scoring import load_scorers, score_texts
from flows.rounds import base_of
from tasks import Artifact, annotate, reward, train

SIZES = {24: (1, 2), 48: (1, 3), 144: (2, 9)}  # width: layers, heads; 0.1, 0.2 and 2.1 times the policy's parameters
PAIRS = (144, 575)  # prompts annotated, of the bake-off's 2300
ALL = (*(f"width-{width}" for width in SIZES), *(f"pairs-{prompts}" for prompts in PAIRS), "shared")
ANSWERS = ("v0", "sft", "conditional", "steerlm", "filtered", "rwr", "rrhf", "rejection-worst")  # near the start
APART = 0.1  # of gold: pairs closer than this have no right order


def model(lab: Lab, name: str) -> Artifact:
    """The helpfulness model of that name."""
    kind, _, number = name.partition("-")
    shared, campaign = lab.shared, lab.campaign
    start, pairs = shared.start, shared.preferences
    if name == "shared":
        return shared.rewards[0]
    label = shared.label(f"{name}-helpfulness")
    if label in lab.run.artifacts:
        return lab.run.artifacts[label]
    if kind == "width":
        start = _start(lab, int(number))
    else:
        recipe = campaign.annotate.model_copy(update={"prompts": int(number)})
        drawn = {"policy_a": shared.start, "policy_b": shared.start, "prompts": shared.prompts}
        pairs = annotate(lab.run, shared.label(f"{name}-annotate"), recipe, **drawn)
    return reward(lab.run, label, campaign.rewards["helpfulness"], model=start, preferences=[pairs])


def _start(lab: Lab, width: int) -> Artifact:
    """A policy of that width after SFT."""
    shared, campaign = lab.shared, lab.campaign
    layers, heads = SIZES[width]
    pretrain = campaign.base.pretrain
    assert pretrain is not None
    body = {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads}  # fmt: skip
    rate = pretrain.optimizer.learning_rate * min(1.0, 96 / width)
    recipe = pretrain.model_copy(
        update={
            "architecture": {**pretrain.architecture, **body},
            "optimizer": pretrain.optimizer.model_copy(update={"learning_rate": rate}),
        }
    )
    base = campaign.base.model_copy(update={"pretrain": recipe})
    made = base_of(lab.run, shared.label(f"width-{width}-base"), base, lab.run.artifacts[shared.label("documents")])
    return train(lab.run, shared.label(f"width-{width}-v0"), campaign.sft, model=made, rows=[shared.demonstrations])


def policy(lab: Lab, name: str) -> Artifact:
    """Held-out responses of the policy that imitates what this model takes for the best of eight."""
    if name == "shared":
        return lab.evaluation("rejection")
    mine = f"rejection-{name}"
    if mine not in lab.policies:
        among = lab.variant(name, rewards=[model(lab, name), lab.shared.rewards[1]])
        return lab.evaluation(mine, entrant=lab.ready("rejection").entrant, among=among)
    return lab.evaluation(mine)


def policies(lab: Lab, names: tuple[str, ...]) -> list[Artifact]:
    return [policy(lab, name) for name in names]


def answers(lab: Lab) -> list[Artifact]:
    """The held-out responses on which accuracy is measured."""
    return [lab.evaluation(name) for name in ANSWERS]


def gold(lab: Lab, name: str) -> np.ndarray:
    """Gold of the policy that this model trained: [P]."""
    return lab.held_out("rejection" if name == "shared" else f"rejection-{name}")


def accuracy(lab: Lab, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Of each model, the share of pairs of responses to a held-out prompt that it orders as gold does: [P] each.

    Pairs of any two of ANSWERS; ties count a half. Safety prompts, and those without such a pair, are left out.
    """
    sides = [lab.rows(lab.evaluations[name], "responses") for name in ANSWERS]
    asked = [rows for rows in zip(*sides, strict=True) if not rows[0]["is_safety"]]
    found: dict[str, np.ndarray] = {}
    for name in names:
        (scorer,) = load_scorers([lab.folder(model(lab, name))], lab.run.runtime)
        texts = [(row["messages"], row["text"]) for rows in asked for row in rows]
        flat = score_texts(scorer.model, scorer.chat, texts, lab.campaign.limits, lab.run.runtime.score_rows)
        scores = np.array(flat).reshape(len(asked), len(ANSWERS))
        shares = [_right([row["gold_helpfulness"] for row in rows], list(own)) for rows, own in zip(asked, scores)]
        found[name] = np.array([share for share in shares if share is not None])
    return found


def _right(truth: list[float], scores: list[float]) -> float | None:
    """Share of the pairs that have a right order which is met; None without such a pair."""
    pairs = [(i, j) for i, j in combinations(range(len(truth)), 2) if abs(truth[i] - truth[j]) > APART]
    if not pairs:
        return None
    met = [0.5 if scores[i] == scores[j] else float((scores[i] > scores[j]) == (truth[i] > truth[j])) for i, j in pairs]
    return sum(met) / len(met)
