"""The README.md of a version: what it is, what made it, how it was measured, what it is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from report.evidence import BASE, FIRST, Evidence
from report.quantities import NONE, duration, interval, number, percent, size
from report.view import Node, Version

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, do_sample=True)[0]))
```"""


def model_card(evidence: Evidence, label: str) -> str:
    """Return the card of one version as Markdown with a Hugging Face header.

    Raises:
        ValueError: the campaign has no such version.
    """
    version = next((version for version in evidence.view.versions if version.label == label), None)
    if version is None:
        raise ValueError(
            f"no version {label!r} in {evidence.view.name}; it has {', '.join(v.label for v in evidence.view.versions)}"
        )
    node = evidence.view.node_of(version.model)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [roundhouse, rlhf]\n---",
        f"# {evidence.view.name} {label}",
        _what(evidence, version, node),
        "## Use\n\n" + LOADING,
        "## Evaluation\n\n" + _evaluation(evidence, label),
        "## Training\n\n" + _training(evidence, version, node),
        "## Data\n\n" + _data(evidence),
        "## Limits\n\n" + _limits(evidence, label),
        "## Licence\n\n" + _licence(evidence.view.config),
        "## Lineage\n\n" + _lineage(evidence, node),
    ]
    return "\n\n".join(parts) + "\n"


def _what(evidence: Evidence, version: Version, node: Node | None) -> str:
    work = {
        "pretrain": "a base model trained from nothing",
        "adopt": "an adopted base model",
        "train": "a chat model fine-tuned offline",
        "online": "a chat model trained online against two reward models",
    }.get(node.stage if node else "", "a model")
    accepted = evidence.verdicts.get(version.label, {}).get("accepted")
    said = (
        ""
        if accepted is None
        else " It was accepted by the campaign's gate."
        if accepted
        else " The campaign's gate rejected it."
    )
    return f"Version {version.label} of the campaign `{evidence.view.name}` ({evidence.view.digest}): {work}.{said}"


def _evaluation(evidence: Evidence, label: str) -> str:
    entry = evidence.standing.entries.get(label)
    if entry is None:
        return "This version has not been evaluated."
    names = (
        ("gold_helpfulness", "gold helpfulness"),
        ("gold_safety", "gold safety"),
        ("helpfulness", "helpfulness reward model, raw"),
        ("safety", "safety reward model, raw"),
        ("kl", "KL to v0, nats a response"),
    )
    rows = [(name, number(entry[key]["mean"]), interval(entry[key])) for key, name in names if entry.get(key)]
    for measure, name in (("gold", "gold"), ("score", "the reward models")):
        pair = evidence.pair(label, FIRST, measure)
        if pair:
            rows.append(
                (
                    f"win rate over {FIRST} by {name}",
                    percent(pair["win_rate"]["mean"]),
                    interval(pair["win_rate"], percent),
                )
            )
    rows.append(("response length, tokens", number(entry["length"], 1), ""))
    rows.append(("responses without EOS", percent(entry["missing_eos"], 1), ""))
    table = "| measure | mean | 95% interval |\n|---|---|---|\n" + "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows)
    scale = "the campaign's last reward models" if evidence.standing.one_scale else "the reward models of its own round"
    return f"{entry['prompts']} held-out prompts, one response each; reward models: {scale}.\n\n{table}"


def _training(evidence: Evidence, version: Version, node: Node | None) -> str:
    manifest = evidence.archive.manifest(version.model)
    if manifest is None:
        return "Not made yet."
    record = manifest.record
    recipe = record.get("identity", {}).get("recipe", {})
    libraries = ", ".join(f"{name} {found}" for name, found in sorted(record.get("versions", {}).items()))
    facts = [
        f"Stage `{node.label if node else record.get('label')}`, work `{manifest.ref.name}`.",
        f"It took {duration(record.get('seconds'))} and keeps {size(manifest.bytes)}.",
        f"Result `{manifest.key}`, root hash `{manifest.root}`.",
        f"Libraries: {libraries or NONE}.",
        f"Numerics: `{json.dumps(record.get('numerics', {}), sort_keys=True)}`.",
    ]
    return " ".join(facts) + "\n\nRecipe:\n\n```json\n" + json.dumps(recipe, indent=1, sort_keys=True) + "\n```"


def _data(evidence: Evidence) -> str:
    lines = []
    for kind, sources in evidence.view.config.get("data", {}).items():
        if isinstance(sources, list | tuple) and sources:
            lines.append(f"- {kind}: {'; '.join(_source(source) for source in sources)}")
    return "\n".join(lines) or "The configuration names no data."


def _source(source: Mapping[str, Any]) -> str:
    where = source.get("path") or source.get("hub") or f"the built-in world's {source.get('world')}"
    at = (
        f" at {source['revision']}"
        if source.get("revision")
        else f", SHA-256 {source['sha256']}"
        if source.get("sha256")
        else ""
    )
    count = f", {source['count']} rows" if source.get("count") else ""
    return f"{where}{at}{count}"


def _limits(evidence: Evidence, label: str) -> str:
    lines = [
        "- Measured on prompts from the distribution that it was trained on; nothing is known about others.",
        "- Safety was trained and measured against this campaign's own safety labels only. Do not rely on it elsewhere.",
    ]
    gold = evidence.standing.entries.get(label, {}).get("gold")
    if not gold:
        lines.append(
            "- No judge independent of its own reward models has measured it: its score may have risen without it being better."
        )
    if label == BASE:
        lines.append("- A base model: it continues text and follows no instructions.")
    limits = evidence.view.config.get("limits", {})
    if limits:
        lines.append(
            "- Trained with prompts of at most {prompt_tokens} and responses of at most {response_tokens} tokens.".format(
                **limits
            )
        )
    return "\n".join(lines)


def _licence(config: Mapping[str, Any]) -> str:
    adopted = config.get("base", {}).get("adopt") or {}
    origin = adopted.get("hub") or adopted.get("path")
    if origin:
        return (
            f"The weights derive from `{origin}` and the data above: their licences apply, including any rule on using "
            "a model's outputs to train another."
        )
    return (
        "Trained from nothing on the data above: the licences of that data apply. Data of the built-in world is made by "
        "this project and carries its licence."
    )


def _lineage(evidence: Evidence, node: Node | None) -> str:
    if node is None:
        return "Unknown."
    seen: dict[str, Node] = {}

    def walk(label: str) -> None:
        found = evidence.view.node(label)
        if found is not None and label not in seen:
            seen[label] = found
            for source in found.inputs:
                walk(source)

    walk(node.label)
    order = [one for one in evidence.view.nodes if one.label in seen]
    return "Made of, in order:\n\n" + "\n".join(f"- `{one.label}` ({one.stage}): `{one.ref.key}`" for one in order)
