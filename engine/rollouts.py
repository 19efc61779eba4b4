"""One iteration's rollouts: which prompts, what the policy answers, what the frozen models say about it.

Letters: B rollouts, K of them to each prompt and side by side, R response tokens. Everything here is a function of the
weights, the seed and the number of the batch; nothing is drawn from a generator.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.recipes import Limits, Online
from configs.runtime import Runtime
from engine import adapters
from engine.batches import Padded, micro_batches, permutation
from engine.errors import NotFinite, StageError
from engine.forwards import logps, logps_entropy, rewards, values
from engine.generate import Generated, generate
from engine.idle import awake
from engine.packing import arrange, shape_for, shape_of
from engine.scoring import Scorer, combine, score_texts
from engine.sharding import ALONE
from methods.batch import Rollout

Row = Mapping[str, Any]
Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of a response
Judge = Callable[[Sequence[Row], Sequence[Pair], Sequence[tuple[list[int], Padded]]], dict[str, list[float | None]]]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run that fit, with their token ids, in the order of the file."""

    rows: Sequence[Row]
    ids: Sequence[Sequence[int]]

    def batch(self, number: int, size: int, seed: int) -> list[int]:
        """Indices of batch 1, 2, ..: fresh permutations of all prompts, one after the other."""
        return take(len(self.rows), (number - 1) * size, size, seed, "prompts")


@dataclass(frozen=True)
class Models:
    """Who takes part in a rollout."""

    policy: Any
    reference: Any
    critic: Any | None
    judge: Judge
    chat: Any
    resting: Sequence[Any] = ()  # frozen models that lie in main memory while they do not read


@dataclass(frozen=True, eq=False)
class Rolled:
    """What one batch of rollouts gave. Rows are in the order of the prompts, K side by side."""

    rows: list[Row]
    pairs: list[Pair]
    responses: list[Generated]
    scores: dict[str, list[float | None]]  # raw, by kind of reward model
    rollout: Rollout
    entropy: Tensor  # [B, R] nats, of the policy at the sampling temperature
    sampled_logp: Tensor  # [B, R] what the sampler said


def take(count: int, first: int, size: int, seed: int, stream: str) -> list[int]:
    """`size` indices below `count` from place `first` on of an endless row of permutations."""
    places = range(first, first + size)
    orders = {epoch: permutation(seed, stream, epoch, count) for epoch in {p // count for p in places}}
    return [orders[p // count][p % count] for p in places]


def judge_of(scorers: Sequence[Scorer], chat: Any, limits: Limits, rows_per_batch: int) -> Judge:
    """Raw scores by reward models that read the same token ids as the policy (`load_scorers` has made sure).

    One that reads in its own way gets the texts; one whose policy is asked for something gets the prompt without that. A body
    for which the policy's layout is wrong (a sliding window) or slow (trees apart) lays the rows out itself.
    """
    shapes = [shape_of(scorer.model) for scorer in scorers]

    def judge(
        rows: Sequence[Row], pairs: Sequence[Pair], parts: Sequence[tuple[list[int], Padded]]
    ) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {kind: [None] * len(pairs) for kind in ("helpfulness", "safety")}
        laid_apart = any(padded.sizes is not None for _, padded in parts)
        for scorer, shape in zip(scorers, shapes):
            if scorer.own or chat.asks or shape is None or (laid_apart and not shape.apart):
                said = [(r["messages"], chat.text(p[1]) if scorer.own else p[1]) for r, p in zip(rows, pairs)]
                found[scorer.kind] = list(score_texts(scorer.model, scorer.chat, said, limits, rows_per_batch))
                continue
            for places, padded in parts:
                for place, value in zip(places, rewards(scorer.model, padded).tolist()):
                    found[scorer.kind][place] = value
        return found

    return judge


def roll(
    models: Models, prompts: Prompts, recipe: Online, runtime: Runtime, number: int, *, greedy: bool, team: Any = ALONE
) -> Rolled:
    """Sample batch `number` and let every frozen model read it.

    greedy: also decode each prompt greedily and score that (`Rollout.baseline_score`).
    team: the processes that share the work, each a part of the prompts (a trainer of engine/sharding.py).

    Raises:
        NotFinite: log-probs of the policy. StageError: a score that is not finite, or log-probs of sampler and trainer
            that differ beyond float noise.
    """
    indices = prompts.batch(number, recipe.batch_size // recipe.k, recipe.seed)
    asked = _keyed([prompts.rows[i] for i in indices], [prompts.ids[i] for i in indices])
    mine = [place for place, counts in team.share(len(indices)) if counts]
    own = _read_prompts(models, [asked[place] for place in mine], recipe, runtime, number, greedy) if mine else None
    found = _join([part for part in team.everyone((mine, own)) if part[1]], recipe.k, runtime.device)
    rows = [a.row for a in asked for _ in range(recipe.k)]
    pairs: list[Pair] = [(asked[i // recipe.k].ids, r.token_ids) for i, r in enumerate(found.responses)]
    branch, score = piecewise(rows, found.scores, recipe.threshold)
    mask = found.read["mask"]
    sampled = torch.zeros_like(found.read["old_logp"])
    sampled[mask] = torch.tensor([v for r in found.responses for v in r.logps], device=mask.device)
    check_sampler(sampled, found.read["old_logp"], mask, recipe)
    rollout = Rollout(
        mask=mask,
        old_logp=found.read["old_logp"],
        reference_logp=found.read["reference_logp"],
        score=torch.tensor(score, device=mask.device),
        finished=torch.tensor([r.finish == "eos" for r in found.responses], device=mask.device),
        group=torch.arange(len(indices), device=mask.device).repeat_interleave(recipe.k),
        value=found.read.get("value"),
        branch=torch.tensor(branch, device=mask.device) if "safety" in judged(found.scores) else None,
        **(_greedy(found.baseline, recipe.k, mask.device) if greedy else {}),
    )
    return Rolled(rows, pairs, found.responses, found.scores, rollout, found.read["entropy"], sampled)


def _greedy(baseline: Sequence[tuple[float, bool]], k: int, device: torch.device) -> dict[str, Tensor]:
    """The fields of a Rollout that the greedy responses fill."""
    scores, ended = zip(*baseline)
    wide = lambda values: torch.tensor(values, device=device).repeat_interleave(k)
    return {"baseline_score": wide(scores), "baseline_finished": wide(ended)}


@dataclass(frozen=True)
class _Asked:
    """A prompt of a batch. `seen` tells it from the same prompt earlier in the batch: other streams answer it."""

    row: Row
    ids: Sequence[int]
    seen: int


def _keyed(rows: Sequence[Row], ids: Sequence[Sequence[int]]) -> list[_Asked]:
    counts: Counter[str] = Counter()
    found = []
    for row, prompt in zip(rows, ids):
        found.append(_Asked(row, prompt, counts[str(row["id"])]))
        counts[str(row["id"])] += 1
    return found


@dataclass(frozen=True, eq=False)
class _Read:
    """What was found out about some prompts' rollouts, K to each and side by side."""

    responses: list[Generated]
    scores: dict[str, list[float | None]]  # raw, by kind
    read: dict[str, Tensor]  # [b, R] mask, log-probs, entropies, values
    baseline: list[tuple[float, bool]]  # score of each prompt's greedy response, and whether it ended, where asked for


def _read_prompts(
    models: Models, asked: Sequence[_Asked], recipe: Online, runtime: Runtime, number: int, greedy: bool
) -> _Read:
    """Sample, score and read the responses to some of a batch's prompts."""
    rows, ids = [a.row for a in asked for _ in range(recipe.k)], [a.ids for a in asked for _ in range(recipe.k)]
    responses = _generate(models, asked, recipe, runtime, number, recipe.k, recipe.temperature)
    plain = _generate(models, asked, recipe, runtime, number, 1, 0.0) if greedy else []
    pairs: list[Pair] = [(p, r.token_ids) for p, r in zip(ids, responses)]
    with torch.no_grad(), awake(models.resting, runtime.device):
        parts = _parts(pairs, models, runtime)
        scores = models.judge(rows, pairs, parts)
        read = _read(models, pairs, parts, recipe)
        baseline = _baseline(models, asked, plain, recipe, runtime) if greedy else []
    return _Read(responses, scores, read, baseline)


def _join(parts: Sequence[tuple[list[int], _Read]], k: int, device: str) -> _Read:
    """The parts of all processes as one, in the order of the batch. parts: (places of the prompts, what was found)."""
    if len(parts) == 1:
        return parts[0][1]
    places = [place * k + i for mine, _ in parts for place in mine for i in range(k)]
    back = sorted(range(len(places)), key=places.__getitem__)
    order = lambda name: [v for _, one in parts for v in getattr(one, name)]
    depth = max(one.read["mask"].shape[1] for _, one in parts)
    wide = lambda t: torch.nn.functional.pad(t, (0, depth - t.shape[1]))
    prompts = [place for mine, _ in parts for place in mine]
    baseline = [value for _, value in sorted(zip(prompts, order("baseline")))]
    first = parts[0][1]
    return _Read(
        responses=[order("responses")[i] for i in back],
        scores={kind: [[v for _, one in parts for v in one.scores[kind]][i] for i in back] for kind in first.scores},
        read={name: torch.cat([wide(one.read[name]).to(device) for _, one in parts])[back] for name in first.read},
        baseline=baseline,
    )


def judged(scores: Mapping[str, Sequence[float | None]]) -> list[str]:
    """The kinds for which there are scores."""
    return [kind for kind, found in scores.items() if all(v is not None for v in found)]


def piecewise(
    rows: Sequence[Row], scores: Mapping[str, list[float | None]], threshold: float
) -> tuple[list[int], list[float]]:
    """(branch, score) of each response by the piecewise rule.

    Raises:
        StageError: a score that is not finite.
    """
    for kind in judged(scores):
        for row, value in zip(rows, scores[kind]):
            if value is None or not math.isfinite(value):
                raise StageError(f"the {kind} reward model scored a response to prompt {row['id']} with {value}")
    helpfulness = [v for v in scores["helpfulness"] if v is not None]
    return combine(helpfulness, scores["safety"], [bool(row["is_safety"]) for row in rows], threshold)


def check_sampler(sampled: Tensor, trained: Tensor, mask: Tensor, recipe: Online) -> None:
    """Raise StageError unless the sampler used the weights and the temperature that are trained (METHODS T40, T61)."""
    gap = float((sampled - trained)[mask].abs().mean())
    if not math.isfinite(gap):
        raise NotFinite("the policy's log-probabilities are not finite when its responses are read again")
    limit = 1e-3 if recipe.dtype == "float32" else 0.05
    if not gap < limit:
        raise StageError(
            f"sampler and trainer differ by {gap:.2e} a log-prob (at most {limit:g} is float noise): the responses are "
            "not from the weights or at the temperature that are trained"
        )


def _generate(
    models: Models,
    asked: Sequence[_Asked],
    recipe: Online,
    runtime: Runtime,
    number: int,
    k: int,
    temperature: float,
) -> list[Generated]:
    """`k` responses to each prompt, side by side."""
    return generate(
        models.policy,
        models.chat,
        [a.ids for a in asked for _ in range(k)],
        [(str(a.row["id"]), a.seen * k + i) for a in asked for i in range(k)],
        seed=recipe.seed,
        stream=f"online-{number}" if temperature else f"online-greedy-{number}",
        temperature=temperature,
        max_new_tokens=recipe.limits.response_tokens,
        rows=runtime.sample_rows,
    )


def _parts(pairs: Sequence[Pair], models: Models, runtime: Runtime) -> list[tuple[list[int], Padded]]:
    groups = micro_batches([[len(p) + len(r)] for p, r in pairs], runtime.score_rows)
    shape = shape_for([m for m in (models.policy, models.reference, models.critic) if m is not None])
    pack = lambda part: arrange([pairs[i] for i in part], pad_id=models.chat.pad_id, shape=shape)
    return [(part, pack(part).to(runtime.device)) for part in groups]


def _baseline(
    models: Models, asked: Sequence[_Asked], found: Sequence[Generated], recipe: Online, runtime: Runtime
) -> list[tuple[float, bool]]:
    """The score of each prompt's greedy response, and whether it has its EOS."""
    rows, pairs = [a.row for a in asked], [(a.ids, r.token_ids) for a, r in zip(asked, found)]
    scores = piecewise(rows, models.judge(rows, pairs, _parts(pairs, models, runtime)), recipe.threshold)[1]
    return [(score, r.finish == "eos") for score, r in zip(scores, found)]


def _read(
    models: Models, pairs: Sequence[Pair], parts: Sequence[tuple[list[int], Padded]], recipe: Online
) -> dict[str, Tensor]:
    """Log-probs, entropies and values of all rows by the code that the update uses: [B, R], 0 outside the mask."""
    depth = max(len(r) for _, r in pairs)
    found: dict[str, Tensor] = {}
    for places, padded in parts:
        with torch.autocast(padded.ids.device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            old, entropy = logps_entropy(models.policy, padded, recipe.temperature)
            with adapters.off(models.reference):
                reference = logps(models.reference, padded, recipe.temperature)
            read = {
                "mask": padded.response_mask,
                "old_logp": old,
                "entropy": entropy,
                "reference_logp": reference,
            }
            if models.critic is not None:
                read["value"] = values(models.critic, padded)
        for name, tensor in read.items():
            wide = found.setdefault(name, tensor.new_zeros(len(pairs), depth))
            wide[torch.tensor(places, device=tensor.device), : tensor.shape[1]] = tensor
    return found
