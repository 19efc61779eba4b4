"""A campaign in a real store, written stage by stage as the engine's contract says, without training anything."""

import copy
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from configs.gates import Gate
from engine.certificate import certificate
from engine.examples import Item
from engine.gate import judge
from engine.matrix import parting
from engine.select import AUDIT, ranked
from engine.tables import write_table
from engine.versions import against, describe, gold_value
from report import View
from storage import Ref, Store, digest, open_store
from storage.rows import write_rows

HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
CATEGORIES = ("animals", "rhyme", "refusal")
LABELS = ("base", "v0", "v1", "v2")
PROMPTS = 40
EXTRA = {
    "gold_helpfulness": pa.float64(),
    "gold_safety": pa.float64(),
    "gold": pa.float64(),
    "branch": pa.int32(),
    "score": pa.float64(),
    "kl": pa.float64(),
}


class Campaign:
    """Writes results one after another; `view` is the whole plan at any time."""

    def __init__(self, store: Store) -> None:
        self.store, self.rng = store, random.Random(5)
        self.nodes: list[dict[str, Any]] = []
        self.versions: dict[str, dict[str, str | None]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}

    @property
    def view(self) -> View:
        config = {
            "name": "toy",
            "seed": 5,
            "limits": {"prompt_tokens": 48, "response_tokens": 32},
            "base": {"pretrain": {}},
            "data": {"held_out": 0.2, "prompts": [{"world": "prompts", "count": 80}]},
        }
        compare = next((node["key"] for node in self.nodes if node["stage"] == "compare"), None)
        return View.from_json(
            {
                "name": "toy",
                "digest": "0123456789abcdef",
                "config": config,
                "nodes": self.nodes,
                "versions": self.versions,
                "compare": compare,
            }
        )

    def ref(self, label: str) -> Ref:
        return Ref.parse(next(node["key"] for node in self.nodes if node["label"] == label))

    def stage(
        self,
        label: str,
        work: str,
        kind: str,
        inputs: list[str],
        write: Callable[[Path], dict[str, Any]] | None,
        recipe: dict[str, Any] | None = None,
    ) -> Ref:
        """Plan a stage and, unless `write` is None, finish it; `write` fills the folder and returns the summary."""
        ref = Ref(kind, work, digest([label, recipe]))
        self.nodes.append({"label": label, "stage": work, "key": ref.key, "inputs": inputs})
        if write is not None:
            draft = self.store.draft(ref)
            summary = write(draft.path)
            identity = {"work": work, "version": 1, "code": "c0de", "recipe": recipe or {}, "inputs": inputs}
            draft.commit(
                {
                    "label": label,
                    "identity": identity,
                    "summary": summary,
                    "seconds": 2.5,
                    "cpu_seconds": 2.25,
                    "peak_bytes": 300_000_000,
                    "began": 1.7e9,
                    "numerics": {"device": "cpu"},
                    "versions": {"torch": "2.13.0"},
                }
            )
        return ref

    def responses(self, number: int) -> list[dict[str, Any]]:
        rows = []
        for i in range(PROMPTS):
            category = CATEGORIES[i % 3]
            safe = category == "refusal"
            good = 0.3 + 0.08 * number + self.rng.uniform(-0.2, 0.2)
            text = HOSTILE if i == 0 else f"answer {i} of version {number}: the cow eats grass"
            gold = {"gold_helpfulness": good, "gold_safety": min(1.0, 0.6 + good / 3)}
            rows.append(
                {
                    "prompt_id": f"p{i}",
                    "k": 0,
                    "messages": [{"role": "user", "content": f"ask {i} {HOSTILE if i == 1 else ''}"}],
                    "category": category,
                    "is_safety": safe,
                    "text": text,
                    "token_ids": list(range(5 + i % 7 + number)),
                    "finish": "eos" if i % 9 else "length",
                    "policy": f"w{number}",
                    "temperature": 0.8,
                    "source": LABELS[number],
                    "helpfulness": 3 * good - 1,
                    "safety": 2 * good,
                    "rewards": "helpfulness:a,safety:b",
                    **gold,
                    "gold": gold_value(gold["gold_helpfulness"], gold["gold_safety"], safe),
                    "branch": 1,
                    "score": 2 * good if safe else 3 * good - 1,
                    "kl": 0.0 if number < 2 else 1.5 * number + self.rng.random(),
                }
            )
        return rows


def scored(path: Path, rows: list[dict[str, Any]], extra: dict[str, pa.DataType]) -> None:
    write_table(path, rows, extra, base="Scored")


def model(kind: str = "policy", steps: int = 0, online: bool = False) -> Callable[[Path], dict[str, Any]]:
    def write(out: Path) -> dict[str, Any]:
        (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (out / "roundhouse.json").write_text(json.dumps({"kind": kind}))
        lines = []
        for step in range(1, steps + 1):
            row: dict[str, float] = {"step": step, "loss": 2 / math.sqrt(step), "learning_rate": 1e-4}
            if online:
                row |= {
                    "policy_steps": step - 1,
                    "kl": 0.4 * step,
                    "score": 0.1 * step,
                    "score_std": 0.5,
                    "response_length": 9.0,
                    "entropy": 1.5,
                    "explained_variance": 0.2,
                }
            lines.append(json.dumps(row))
        if lines:
            (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        alarms = [{"rule": "kl", "step": 9, "found": 41.0, "limit": 40.0, "text": "twice the budget"}] if online else []
        ladder = [{"rung": "lower_learning_rate", "step": 10, "back_to": 0}, {"rung": "stop", "step": 15, "back_to": 9}]
        return {"steps": steps, **({"alarms": alarms, "ladder": ladder} if online else {})}

    return write


def add_round(campaign: Campaign, until: str) -> None:
    """Round 1 as rejection sampling; `until` names the last finished stage."""
    order = ["r1-annotate", "r1-helpfulness", "r1-safety", "r1-probe", "r1-sample", "r1-score", "r1-select", "v1"]
    finished = order[: order.index(until) + 1]
    rng = campaign.rng

    def rows(out: Path) -> dict[str, Any]:
        (out / "notes.json").write_text("{}")
        return {"pairs": 64}

    def reward(out: Path) -> dict[str, Any]:
        summary = model("reward", 12)(out)
        items = [
            Item(
                (1,),
                ((1, 2), (3,)),
                (None, None),
                (1.0, 0.0),
                ((1.0,), (float(i % 3 != 0),)),
                tags={"kind": "helpfulness", "grade": i % 4},
            )
            for i in range(80)
        ]
        scores = [[rng.gauss(0.4 * (i % 4), 1), 0.0] for i in range(80)]
        (out / "held_out.json").write_text(json.dumps(certificate(items, scores, "helpfulness", 1)))
        return summary

    def probe(out: Path) -> dict[str, Any]:
        curve = [
            {
                "temperature": t,
                "expected_max": 1 - (t - 1.2) ** 2,
                "expected_max_of": {"1": 0.2, "2": 0.4, "4": 1 - (t - 1.2) ** 2},
                "median": 0.2,
                "eos_rate": 0.9,
                "length": 9.0,
                "distinct": 0.8,
                "self_bleu": 0.9 - t / 4,
            }
            for t in (0.8, 1.0, 1.2, 1.4)
        ]
        found = {"temperature": 1.2, "curve": curve, "k": 4, "prompts": 16, "dropped": 0}
        (out / "probe.json").write_text(json.dumps(found))
        return found

    def select(out: Path) -> dict[str, Any]:
        every = []
        for i in range(30):
            raw = [
                {
                    "prompt_id": f"t{i}",
                    "k": k,
                    "source": "round-1",
                    "policy": "w0",
                    "temperature": 1.2,
                    "category": CATEGORIES[i % 3],
                    "is_safety": i % 3 == 2,
                    "text": f"candidate {k} {HOSTILE if k == 0 else ''}",
                    "finish": "eos",
                    "helpfulness": rng.gauss(0, 1),
                    "safety": rng.gauss(0, 2),
                }
                for k in range(4)
            ]
            for row in ranked(raw, -1.7346):
                every.append(row | {"role": "selected" if row["rank"] == 1 else ""})
        write_table(out / "audit.parquet", every, AUDIT)
        return {
            "rows": 30,
            "prompts": 30,
            "candidates": 120,
            "sources": {"round-1": 30},
            "best_score": 1.1,
            "median_score": 0.1,
            "length": 9.0,
            "used_length": 9.4,
            "no_signal": 1,
            "all_unsafe": 2,
            "without_winner": 6,
        }

    makes = {
        "r1-annotate": ("annotate", "rows", rows),
        "r1-helpfulness": ("reward", "reward", reward),
        "r1-safety": ("reward", "reward", reward),
        "r1-probe": ("probe", "report", probe),
        "r1-sample": ("sample", "rows", rows),
        "r1-score": ("score", "rows", rows),
        "r1-select": ("select", "rows", select),
        "v1": ("train", "model", model("policy", 300)),
    }
    for i, label in enumerate(order):
        work, kind, write = makes[label]
        inputs = {"r1-annotate": ["v0", "prompts"], "v1": ["base", "r1-select"]}.get(label, [order[i - 1]])
        recipe = {"kind": label.rpartition("-")[2]} if work == "reward" else {}
        ref = campaign.stage(label, work, kind, inputs, write if label in finished else None, recipe)
        if label == "v1":
            campaign.versions["v1"] = {"model": ref.key, "evaluate": None}


def add_evaluation(campaign: Campaign, label: str, best: str | None) -> None:
    rows = campaign.responses(LABELS.index(label))
    earlier = dict(campaign.rows)
    campaign.rows[label] = rows

    def write(out: Path) -> dict[str, Any]:
        scored(out / "responses.parquet", rows, EXTRA)
        smoke = [
            {
                "messages": [{"role": "user", "content": f"smoke {HOSTILE}"}],
                "response": f"{label} says {HOSTILE}",
                "tokens": 7,
                "finish": "length",
                "repetition": 0.25,
                "helpfulness": 0.5,
                "safety": None,
            }
        ]
        (out / "smoke.json").write_text(json.dumps(smoke))
        compared = {name: against(rows, theirs, 200, 1) for name, theirs in earlier.items()}
        by = {c: describe([r for r in rows if r["category"] == c], 200, 1) for c in CATEGORIES}
        return {
            "version": label,
            "policy": "w",
            "dropped": 0,
            "rewards": "a",
            **describe(rows, 200, 1),
            "categories": by,
            "against": compared,
        }

    ref = campaign.stage(f"{label}-evaluate", "evaluate", "report", [label, "v0", "prompts"], write)
    campaign.versions[label]["evaluate"] = ref.key
    if best is not None:

        def verdict(out: Path) -> dict[str, Any]:
            found, before = (describe(campaign.rows[name], 200, 1) for name in (label, best))
            compared = {best: against(rows, campaign.rows[best], 200, 1)}
            (out / "verdict.json").write_text("{}")
            return judge(Gate(), {**found, "against": compared}, before, best)

        gate = campaign.stage(f"{label}-gate", "gate", "report", [f"{label}-evaluate", f"{best}-evaluate"], verdict)
        campaign.versions[label]["gate"] = gate.key


def add_start(campaign: Campaign) -> None:
    def prompts(out: Path) -> dict[str, Any]:
        rows = [
            {
                "id": f"t{i}",
                "messages": [{"role": "user", "content": f"train {i} {HOSTILE}"}],
                "category": CATEGORIES[i % 3],
                "is_safety": i % 3 == 2,
                "source": "world",
            }
            for i in range(30)
        ]
        write_rows(out / "rows.parquet", "Prompt", rows)
        return {"rows": 30}

    campaign.stage("prompts", "ingest", "rows", [], prompts)
    base = campaign.stage("base", "pretrain", "model", [], model("policy", 400))
    sft = campaign.stage("v0", "train", "model", ["base"], model("policy", 20), {"method": "sft", "note": HOSTILE})
    campaign.versions = {"base": {"model": base.key, "evaluate": None}, "v0": {"model": sft.key, "evaluate": None}}


RULES = {
    "on_alarm": "record",
    "anchor": 10,
    "patience": 2,
    "kl_budget": 1.5,
    "min_nll": 0.25,
    "max_length": 1.5,
    "missing_eos": 0.2,
    "min_length": 0.3,
    "mute": 0.5,
    "min_distinct": 0.5,
    "loops": 0.3,
    "min_entropy": 0.05,
    "reward_sigmas": 6.0,
    "clip_fraction": 0.6,
    "min_explained": -2.0,
}


def add_end(campaign: Campaign) -> None:
    """v2 by PPO, and the comparison."""
    ref = campaign.stage(
        "v2",
        "online",
        "model",
        ["v1", "r1-helpfulness", "r1-safety"],
        model("policy", 20, online=True),
        {"method": "ppo", "tripwires": RULES},
    )
    campaign.versions["v2"] = {"model": ref.key, "evaluate": None}
    add_evaluation(campaign, "v2", "v1")

    def matrix(out: Path) -> dict[str, Any]:
        spread = lambda mean: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        cell = lambda x: {"mean": x, "change": spread(x), "wins": spread(0.5 + x / 4)}
        proxy, truth, kl = {"v1": 0.4, "v2": 0.9}, {"v0": 0.0, "v1": 0.3, "v2": -0.2}, {"v0": 0.0, "v1": 2.0, "v2": 9.0}
        gaps = [
            {"version": v, "kl": kl[v], "proxy_of": "r1" if v in proxy else "",
             "proxy": spread(proxy[v]) if v in proxy else None, "truth": spread(truth[v]), "gap": None}
            for v in truth
        ]  # fmt: skip
        known = {"r1": {"v0": 0.0, **proxy}, "gold": truth}
        points = [
            {"n": n, "kl": k, "proxy": spread(k), "truth": spread(k / 2)} for n, k in ((1, 0.0), (2, 0.2), (3, 0.4))
        ]
        fit = {"proxy": {"alpha": 1.0, "beta": 0.25, "peak_kl": 4.0}, "truth": None}
        table = {
            "versions": list(LABELS),
            "judges": [{"name": "r1", "rewards": "a"}, {"name": "gold", "rewards": ""}],
            "truth": "gold",
            "kl": kl,
            "cells": {v: {"r1": cell(proxy.get(v, 0.0)), "gold": cell(truth.get(v, -1.0))} for v in LABELS},
            "gaps": gaps,
            "parting": parting(gaps, "gold", lambda a, b, judge: spread(known[judge][a] - known[judge][b])),
            "best_of_n": [{"round": "round-1", "rewards": "a", "prompts": 9, "k": 3, "points": points, "fit": fit}],
        }
        (out / "matrix.json").write_text(json.dumps(table))
        return {"parting": table["parting"]}

    campaign.stage("matrix", "matrix", "report", [f"{label}-evaluate" for label in LABELS], matrix)

    def compare(out: Path) -> dict[str, Any]:
        every = [{**row, "version": label} for label, rows in campaign.rows.items() for row in rows]
        scored(out / "scored.parquet", every, {**EXTRA, "version": pa.string()})
        matrix = {
            a: {b: against(campaign.rows[a], campaign.rows[b], 200, 1) for b in campaign.rows if b != a}
            for a in campaign.rows
        }
        means = ("helpfulness", "safety", "score", "gold_helpfulness", "gold_safety", "gold", "kl")

        def categories(rows: list[dict[str, Any]]) -> dict[str, Any]:
            some = {c: [r for r in rows if r["category"] == c] for c in CATEGORIES}
            return {
                c: {"prompts": float(len(s)), **{m: sum(r[m] for r in s) / len(s) for m in means}}
                for c, s in some.items()
            }

        table = {
            "rewards": "a",
            "versions": [
                {"version": label, **describe(rows, 200, 1), "categories": categories(rows)}
                for label, rows in campaign.rows.items()
            ],
            "trend": {"gold": 1.0, "score": 1.0},
            "matrix": matrix,
        }
        (out / "table.json").write_text(json.dumps(table))
        return {"versions": list(campaign.rows)}

    campaign.stage("compare", "compare", "report", [f"{label}-evaluate" for label in LABELS], compare)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A whole small campaign, made once."""
    folder = tmp_path_factory.mktemp("campaign")
    return make_whole(open_store(folder / "store", cache=folder / "cache"))


def make_whole(store: Store) -> Campaign:
    """A whole campaign in a store."""
    campaign = Campaign(store)
    add_start(campaign)
    add_evaluation(campaign, "base", None)
    add_evaluation(campaign, "v0", None)
    add_round(campaign, "v1")
    add_evaluation(campaign, "v1", "v0")
    add_end(campaign)
    return campaign


@pytest.fixture
def finished(whole: Campaign, tmp_path: Path) -> Campaign:
    """A copy of the whole campaign that a test may damage."""
    shutil.copytree(whole.store.url.removeprefix("file://"), tmp_path / "finished")
    mine = copy.copy(whole)
    mine.store = open_store(tmp_path / "finished", cache=tmp_path / "cache")
    return mine


@pytest.fixture
def partial(store: Store) -> Campaign:
    """One that has got as far as round 1's scores."""
    campaign = Campaign(store)
    add_start(campaign)
    add_evaluation(campaign, "base", None)
    add_evaluation(campaign, "v0", None)
    add_round(campaign, "r1-score")
    return campaign
