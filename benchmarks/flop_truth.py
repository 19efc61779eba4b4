"""What sequences cost by torch's own counter, and which sequences a stage's process has worked on."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from configs.recipes import Lora
from engine import adapters


class Truth:
    """FLOPs of single sequences through a model of an architecture, with attention as plain products.

    online: policy and critic sample and read with their adapters on; of what is read (`read`) the reference reads half, which
    has none.
    """

    def __init__(self, architecture: dict[str, Any], lora: Lora | None, *, online: bool = False) -> None:
        config = AutoConfig.for_model(**{"model_type": "llama", **architecture, "pad_token_id": 0})
        config._attn_implementation = "eager"
        scored = AutoConfig.for_model(**{"model_type": "llama", **architecture, "pad_token_id": 0, "num_labels": 1})
        scored._attn_implementation = "eager"
        self.policy = AutoModelForCausalLM.from_config(config)
        self.scorer = AutoModelForSequenceClassification.from_config(scored)
        self.frozen = {"sample": self.policy, "read": self.policy, "score": self.scorer, "value": self.scorer}
        self.learning = {"train": self.policy, "reward": self.scorer, "critic": self.scorer}
        if lora is not None:
            policy = AutoModelForCausalLM.from_config(config)
            scorer = AutoModelForSequenceClassification.from_config(scored)
            for model in (policy, scorer):
                adapters.add(model.requires_grad_(False), lora, 0)
            self.learning = {"train": policy, "reward": scorer, "critic": scorer}
            if online:
                self.frozen |= {"sample": policy, "value": scorer, "adapted": policy}
        self.halves = online and lora is not None
        self.count = cache(self._count)

    def flops(self, kind: str, prompt: int, response: int, count: int) -> float:
        """Of `count` sequences of these lengths, by the kinds of `note_lengths`."""
        outputs = {"score": 1, "reward": 1}.get(kind, response)
        each = self.count(kind, prompt + response, outputs)
        if kind == "read" and self.halves:
            each = (each + self.count("adapted", prompt + response, outputs)) / 2
        return float(count * each)

    def _count(self, kind: str, length: int, outputs: int) -> int:
        learns = kind in self.learning
        model = self.learning[kind] if learns else self.frozen[kind]
        head = model.score if hasattr(model, "score") else model.get_output_embeddings()
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
            ids = torch.zeros(1, length, dtype=torch.int64)
            states = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
            found = head(states[0, :1].expand(outputs, -1) if outputs > length else states[0, -outputs:])
            if learns:
                found.sum().backward()
        return int(counter.get_total_flops())


class _Notes:
    """Lengths of the sequences that this process has worked on. Inside what is noted as a whole, its parts are not."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, int, int]] = Counter()
        self.whole = 0
        self.readers = 1  # models that score what is read

    def add(self, kind: str, pairs: Iterable[tuple[int, int]]) -> None:
        """Note sequences of (prompt, response) tokens."""
        if not self.whole:
            self.seen.update((kind, prompt, response) for prompt, response in pairs)

    def around(self, work: Callable[..., Any], before: Callable[..., None]) -> Callable[..., Any]:
        """`work`, noted as a whole by `before`."""

        def noted(*given: Any, **more: Any) -> Any:
            before(*given, **more)
            self.whole += 1
            try:
                return work(*given, **more)
            finally:
                self.whole -= 1

        return noted

    def forward(self, work: Callable[..., Any], frozen: str, learning: str) -> Callable[..., Any]:
        """A forward pass: its batch says how long its sequences are."""

        def before(model: Any, padded: Any, *rest: Any, **more: Any) -> None:
            outputs = padded.response_mask.sum(1)
            kind = learning if torch.is_grad_enabled() else frozen
            self.add(kind, zip((padded.lengths - outputs).tolist(), outputs.tolist()))

        return self.around(work, before)


def note_lengths(folder: Path) -> None:
    """From now on every stage forked from this process writes the lengths of its sequences to FOLDER/KEY.json at its end.

    Kinds: sample (generated), read (log-probs), score, value; train, reward, critic where gradients follow.
    """
    import engine.forwards as forwards
    from engine.job import Job

    assert not {"engine.offline", "engine.scoring", "engine.rollouts"} & set(sys.modules), (
        "imported too early to be noted"
    )
    notes = _Notes()
    forwards.logps = notes.forward(forwards.logps, "read", "train")
    forwards.logps_entropy = notes.forward(forwards.logps_entropy, "read", "train")
    forwards.rewards = notes.forward(forwards.rewards, "score", "reward")
    forwards.attributes = notes.forward(forwards.attributes, "score", "reward")
    forwards.values = notes.forward(forwards.values, "value", "critic")
    import engine.generate
    import engine.invariance
    import engine.offline
    import engine.scoring

    generate, ids, finish = engine.generate.generate, engine.scoring._ids, Job.finish
    together, plain = engine.scoring.score_together, engine.invariance._plain

    def step(job: Job, plan: Any, trainer: Any, number: int, items: Any, *rest: Any) -> None:
        kind = "reward" if "reward" in plan.method.forwards else "train"
        notes.add(kind, [(len(item.prompt), len(one)) for item in items for one in item.responses])

    def generated(model: Any, chat: Any, prompts: Any, keys: Any, **more: Any) -> Any:
        found = generate(model, chat, prompts, keys, **more)
        notes.add("sample", [(len(prompt), len(one.token_ids)) for prompt, one in zip(prompts, found)])
        return found

    def read(*given: Any) -> Any:
        pair = ids(*given)
        notes.seen[("score", len(pair[0]), len(pair[1]))] += notes.readers
        return pair

    def alike(models: Any, *rest: Any, **more: Any) -> Any:
        notes.readers = len(models)
        try:
            return together(models, *rest, **more)
        finally:
            notes.readers = 1

    def plainly(model: Any, pairs: Any, *rest: Any, **more: Any) -> Any:
        notes.add("score", [(len(prompt), len(response)) for prompt, response in pairs])
        return plain(model, pairs, *rest, **more)

    def finished(job: Job) -> None:
        finish(job)
        lines = [{"kind": k, "prompt": p, "response": r, "count": n} for (k, p, r), n in sorted(notes.seen.items())]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{job.out.parent.parent.name}-{job.out.parent.name}.json").write_text(json.dumps(lines))

    engine.offline._step = notes.around(engine.offline._step, step)
    engine.scoring.score_together, engine.invariance._plain = alike, plainly
    engine.scoring._ids, engine.scoring.score_texts = (
        read,
        notes.around(engine.scoring.score_texts, lambda *_, **__: None),
    )
    engine.generate.generate, Job.finish = generated, finished  # type: ignore[method-assign]
