"""A reward model's certificate: what it does with pairs it has not seen, and whether that is enough to steer a round."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

import methods
from configs.certify import Certify
from engine import judgement
from engine.drawing import fingerprint, share_of
from engine.examples import UNKNOWN, Item, Reader
from engine.formats import is_held_out
from engine.invariance import differences
from engine.job import Job
from engine.leakage import as_row, compare, opening_turns, placed, user_turns
from engine.leakage import judge as judge_leaks
from engine.models import load_reward
from engine.overlap import Text
from engine.requirements import judge_all
from engine.reward import STREAM, judge
from engine.statistics import spearman
from engine.template import Chat, load_chat
from storage.rows import read_rows

Row = Mapping[str, Any]
PROBE = "certify:"  # orders the pairs of the frozen probe set
SAMPLE = "certify-train:"  # .. and the training pairs that are scored
GRADES = {0: "negligibly better", 1: "slightly better", 2: "better", 3: "significantly better"}


@dataclass(frozen=True)
class Case:
    """A row of preferences as the model reads it, and what it is called by."""

    item: Item
    row: Row
    batch: int  # in which round's preferences it came, from 1

    @property
    def orders(self) -> list[tuple[int, int]]:
        """(better, worse) places among the item's responses: by their scores, of rows with labels alone by the first."""
        known = self.item.scores if self.row.get("scores") or not self.row.get("attributes") else None
        worth = known or [labels[0] if labels else UNKNOWN for labels in self.item.labels]
        places = [place for place, value in enumerate(worth) if known or value != UNKNOWN]
        return [(a, b) for a in places for b in places if worth[a] > worth[b]]


@dataclass(frozen=True)
class Scored:
    """Cases with a model's scores, as N pairs."""

    cases: Sequence[Case]
    scores: Sequence[Sequence[float]]

    @property
    def pairs(self) -> list[tuple[int, int, int]]:
        """(case, better, worse) of every pair."""
        return [(i, a, b) for i, case in enumerate(self.cases) for a, b in case.orders]

    @property
    def gaps(self) -> np.ndarray:
        """[N] score of the better response less that of the worse."""
        return np.array([self.scores[i][a] - self.scores[i][b] for i, a, b in self.pairs])


def run(job: Job) -> dict[str, Any]:
    """Write certificate.json, leaks.jsonl and probe.jsonl (scores of the frozen probe set).

    A failed certificate is a result too.
    """
    recipe: Certify = job.recipe
    chat = load_chat(job.folder("reward"))
    train, held, turns = gather(job, chat)
    found = {
        "kind": recipe.reward.kind,
        "weights": {role: fingerprint(path) for role in ("reward", "other", "before") for path in job.folders(role)},
        "template": template(job, chat),
        "pairs": sum(len(case.orders) for case in held),
        "own": {"count": sum(len(case.orders) for case in held if is_own(case.row, recipe.reward.kind))},
        "leakage": leaks(job, held, turns),
    }
    if found["own"]["count"]:
        found |= measure(job, chat, train, held)
    checks = judge_all(recipe, found)
    failures = [check["text"] for check in checks if not check["passed"]]
    certificate = {**found, "checks": checks, "passed": not failures, "on_failure": recipe.on_failure}
    (job.out / "certificate.json").write_text(json.dumps(certificate, indent=1, sort_keys=True, allow_nan=False) + "\n")
    short = {name: found[name] for name in ("kind", "pairs", "own", "weights")}
    return {**short, "passed": not failures, "failures": failures, "on_failure": recipe.on_failure}


def measure(job: Job, chat: Chat, train: Sequence[Case], held: Sequence[Case]) -> dict[str, Any]:
    """Everything that needs the model and a held-out pair of its kind."""
    recipe: Certify = job.recipe
    model = load_reward(job.folder("reward"), job.runtime)
    judged = Scored(held, judge(job, model, [case.item for case in held], chat.pad_id))
    mine = of_kind(judged, recipe.reward.kind)
    return {
        **accuracies(judged, mine),
        "calibration": judgement.reliability(mine.gaps),
        "length": {**lengths(mine), "correlation_of_scores": score_length(mine)},
        "style": style(mine),
        "unsafe": unsafe(judged, recipe.threshold),
        "unsafe_steering": unsafe(judged, recipe.steering),
        "overfit": overfit(job, model, chat, train, mine),
        "invariance": differences(model, first_pairs(held, recipe.invariance_rows), chat.pad_id),
        **against(job, chat, judged),
        **probe(job, model, chat, held),
    }


def gather(job: Job, chat: Chat) -> tuple[list[Case], list[Case], list[Text]]:
    """At most `train_pairs` training cases of the model's kind, all held-out ones, and every user turn in training.

    Split as the reward stage did.
    """
    recipe: Certify = job.recipe
    method = methods.load(recipe.reward.method)
    reader = Reader(chat, recipe.reward.limits, method, method.Config(**recipe.reward.config))
    train: list[tuple[Row, int]] = []
    held: list[tuple[Row, int]] = []
    turns: list[Text] = []
    for batch, folder in enumerate(job.folders("preferences"), start=1):
        for number, (row, given) in enumerate(_rows(folder, reader.schema)):
            if given or is_held_out(row, recipe.reward.held_out, STREAM):
                held.append((row, batch))
                continue
            turns.extend(user_turns([(f"batch {batch} row {number}: {row['source']}", row)]))
            if is_own(row, recipe.reward.kind):
                train.append((row, batch))
    few = nsmallest(recipe.train_pairs, train, key=lambda entry: share_of(SAMPLE + _text(entry[0])))
    return _cases(reader, few), _cases(reader, held), turns


def _cases(reader: Reader, rows: Sequence[tuple[Row, int]]) -> list[Case]:
    """The rows that can be read, in order."""
    return [Case(item, row, batch) for row, batch in rows if (item := reader.item(row)) is not None]


def _rows(folder: Path, schema: str) -> Iterator[tuple[Row, bool]]:
    """A round's rows, and whether ingest had kept them from everybody."""
    for name, given in (("rows.parquet", False), ("held_out.parquet", True)):
        if given and not (folder / name).exists():
            continue
        for row in read_rows(folder / name, schema):
            yield row, given


def is_own(row: Row, kind: str) -> bool:
    """Whether the row was judged by what the model judges; rankings have no kind and are own."""
    return bool(row.get("kind", kind) == kind)


def of_kind(judged: Scored, kind: str) -> Scored:
    """Only the cases of the model's own kind."""
    kept = [i for i, case in enumerate(judged.cases) if is_own(case.row, kind)]
    return Scored([judged.cases[i] for i in kept], [judged.scores[i] for i in kept])


def accuracies(judged: Scored, mine: Scored) -> dict[str, Any]:
    """Overall on all held-out pairs and on the model's own; the latter by grade, category, source and batch."""
    cases = [mine.cases[i] for i, _, _ in mine.pairs]
    return {
        "all": judgement.accuracy(judged.gaps),
        "own": judgement.accuracy(mine.gaps),
        "by_kind": judgement.grouped(judged.gaps, [judged.cases[i].row.get("kind") for i, _, _ in judged.pairs]),
        "by_grade": judgement.grouped(mine.gaps, [GRADES.get(case.row.get("grade", -1)) for case in cases]),
        "by_category": judgement.grouped(mine.gaps, [case.row.get("category") for case in cases]),
        "by_source": judgement.grouped(mine.gaps, [case.row.get("source") for case in cases]),
        "by_batch": judgement.grouped(mine.gaps, [case.batch for case in cases]),
    }


def lengths(mine: Scored) -> dict[str, Any]:
    """Length bias on the model's own pairs, in tokens of the response."""
    tokens = [[len(response) for response in case.item.responses] for case in mine.cases]
    longer = np.array([tokens[i][a] - tokens[i][b] for i, a, b in mine.pairs], dtype=np.float64)
    longest = np.array([max(tokens[i][a], tokens[i][b]) for i, a, b in mine.pairs], dtype=np.float64)
    return judgement.length_bias(mine.gaps, longer, longest)


def score_length(mine: Scored) -> float | None:
    """Rank correlation of score and length over all responses; None where one of them never varies."""
    tokens = [len(response) for case in mine.cases for response in case.item.responses]
    found = spearman([score for one in mine.scores for score in one], tokens)
    return found if np.isfinite(found) else None


def style(mine: Scored) -> dict[str, Any]:
    """Marks of style; of pairs only, whose texts lie in the row."""
    if any("chosen" not in case.row for case in mine.cases):
        return {}
    rows = [mine.cases[i].row for i, _, _ in mine.pairs]
    return judgement.style_bias(mine.gaps, [row["chosen"] for row in rows], [row["rejected"] for row in rows])


def unsafe(judged: Scored, threshold: float) -> dict[str, Any]:
    """Recall of the responses that annotators labelled unsafe, over all pairs with safety labels."""
    labelled = [
        (score, labels[0] >= 0.5)
        for case, one in zip(judged.cases, judged.scores)
        for labels, score in zip(case.item.labels, one)
        if case.row.get("kind") is not None and labels and labels[0] != UNKNOWN
    ]
    return judgement.unsafe([score for score, _ in labelled], [safe for _, safe in labelled], threshold)


def overfit(job: Job, model: Any, chat: Chat, train: Sequence[Case], mine: Scored) -> dict[str, Any] | None:
    """Accuracy on pairs of its own kind that it was trained on, and how much less is left on held-out ones."""
    if not train:
        return None
    trained = Scored(train, judge(job, model, [case.item for case in train], chat.pad_id))
    before = judgement.accuracy(trained.gaps)
    return {"train": before, "gap": before["accuracy"] - judgement.accuracy(mine.gaps)["accuracy"]}


def first_pairs(held: Sequence[Case], count: int) -> list[Any]:
    """(prompt, response) ids of the longest and the shortest held-out responses: where padding shows most."""
    pairs = [pair for case in held for pair in case.item.pairs()]
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    few = count // 2
    return pairs if len(pairs) <= count else [*pairs[:few], *pairs[len(pairs) - (count - few) :]]


def leaks(job: Job, held: Sequence[Case], turns: Sequence[Text]) -> dict[str, Any]:
    """The campaign's evaluation prompts, and the held-out pairs', against every user turn that the model trained on."""
    recipe: Certify = job.recipe
    asked = list(opening_turns((f"held-out pair {i}", case.row) for i, case in enumerate(held)))
    for folder in job.folders("prompts"):
        if (path := folder / "held_out.parquet").exists():
            asked.extend(opening_turns(placed(path, "evaluation prompt", "Prompt")))
    numbers, found = compare(asked, turns, recipe.leakage)
    lines = (json.dumps(as_row(leak), ensure_ascii=False) + "\n" for leak in found[: recipe.leakage.listed])
    (job.out / "leaks.jsonl").write_text("".join(lines), encoding="utf-8")
    return {**numbers, "problems": judge_leaks(numbers, "prompts", recipe.leakage)}


def template(job: Job, chat: Chat) -> dict[str, Any]:
    """Fingerprints of tokenizer and template, the model's and the policy's."""
    policy = load_chat(job.folder("policy")).fingerprint
    return {"reward": chat.fingerprint, "policy": policy, "same": chat.fingerprint == policy}


def against(job: Job, chat: Chat, judged: Scored) -> dict[str, Any]:
    """The round's other reward model on the same pairs, where there is one that reads the same tokens."""
    for folder in job.folders("other"):
        if load_chat(folder).fingerprint != chat.fingerprint:
            return {}
        other = load_reward(folder, job.runtime)
        theirs = Scored(judged.cases, judge(job, other, [case.item for case in judged.cases], chat.pad_id))
        kinds = [judged.cases[i].row.get("kind") for i, _, _ in judged.pairs]
        return {"agreement": judgement.agreement(judged.gaps, theirs.gaps, kinds)}
    return {}


def probe(job: Job, model: Any, chat: Chat, held: Sequence[Case]) -> dict[str, Any]:
    """Score the frozen probe set: held-out pairs of the first round, the same in every round. Compare with the model before."""
    recipe: Certify = job.recipe
    first = min(case.batch for case in held)
    frozen = sorted((case for case in held if case.batch == first), key=lambda case: share_of(PROBE + _text(case.row)))
    frozen = frozen[: max(1, recipe.probe // 2)]
    now = Scored(frozen, judge(job, model, [case.item for case in frozen], chat.pad_id))
    rows = ({"prompt_id": case.row["prompt_id"], "scores": one} for case, one in zip(frozen, now.scores))
    (job.out / "probe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in job.folders("before"):
        if load_chat(folder).fingerprint == chat.fingerprint:
            old = load_reward(folder, job.runtime)
            then = Scored(frozen, judge(job, old, [case.item for case in frozen], chat.pad_id))
            flat = [[score for one in side.scores for score in one] for side in (now, then)]
            return {"drift": judgement.drift(*flat, now.gaps, then.gaps)}
    return {}


def _text(row: Row) -> str:
    return json.dumps([row["prompt_id"], row["messages"], row.get("chosen")], sort_keys=True)
