"""A base model trained on: new text and, in place of a share of it, old text, at the compute of the new text alone.

What came before decides where a run begins: the model's continued.json says how far each corpus was read, and with
`optimizer_state: carried` the earlier run's moments and its count of updates are taken over.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.continuing import Continue
from configs.recipes import Optimizer
from engine import heldout
from engine.carried import Carried, publish
from engine.corpus import Corpus, check_vocabulary, open_corpus
from engine.errors import StageError
from engine.examples import Item
from engine.job import Job
from engine.models import load_policy, save_model
from engine.offline import Fit, fit
from engine.rates import Rates
from engine.replay import Mix, share, weigh
from engine.sharding import trainer_for
from engine.template import Chat, load_chat
from methods import pretrain

CARD = "continued.json"


def run(job: Job) -> dict[str, Any]:
    """Train on and write the model folder, with continued.json and, if asked for, optimizer/.

    Raises:
        StageError: another tokenizer than the base's, sequences that the model or the corpus is too short for, replay of
            nothing, no optimizer state where one is to be carried, or what `offline.fit` raises.
    """
    recipe: Continue = job.recipe
    start = job.folder("model")
    chat = load_chat(start)
    with ExitStack() as stack:
        corpora = open_all(job, chat, stack)
        plan = lay_out(recipe, corpora, read_card(start).get("pointers", {}))
        model = load_policy(start, job.runtime)
        _check_length(model, recipe.sequence_length)
        trainers: list[Any] = []
        work = Fit(
            model=model,
            method=pretrain,
            config=pretrain.Config(),
            optimizer=_optimizer(recipe),
            steps=plan.steps,
            rows=plan.rows,
            item=plan.item,
            pad_id=chat.pad_id,
            dtype=recipe.dtype,
            trainer=_trainer(job, recipe, trainers),
            data=plan.pointers,
            observe=_observer(job, recipe, model, chat, plan),
        )
        model, summary = fit(job, work)
        save_model(model, chat, job.out, "policy", recipe.dtype)
        if recipe.publish_optimizer:
            publish(trainers[0], job.out)
        found = plan.report(plan.steps)
    card = {"pointers": {**read_card(start).get("pointers", {}), **plan.pointers(plan.steps)}}
    (job.out / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    return {**summary, **found}


@dataclass(frozen=True)
class Plan:
    """What every step reads. Corpus 0 is the new one."""

    corpora: tuple[Corpus, ...]
    mix: Mix
    begins: tuple[int, ...]  # of each corpus the token at which this run begins to read it
    steps: int
    size: int  # sequences a step
    length: int  # tokens predicted a sequence

    def rows(self, step: int) -> range:
        """The sequences of a step."""
        return range((step - 1) * self.size, step * self.size)

    def item(self, index: int) -> Item:
        """A sequence of the run."""
        corpus, before = self.mix.place(index)
        return self.corpora[corpus].item(self.begins[corpus] + before * self.length, self.length)

    def pointers(self, step: int) -> dict[str, int]:
        """By digest of the corpus: tokens of its endless stream read after so many steps, this run's and all before it."""
        taken = self.mix.taken(step * self.size)
        return {c.digest: first + n * self.length for c, first, n in zip(self.corpora, self.begins, taken)}

    def report(self, step: int) -> dict[str, Any]:
        """Of each corpus what was read, and the share that was replayed."""
        taken = self.mix.taken(step * self.size)
        tokens = [count * self.length for count in taken]
        return {
            "replayed": sum(taken[1:]) / sum(taken),
            "new": {"tokens": tokens[0], "epochs": tokens[0] / self.corpora[0].tokens},
            "old": [{"tokens": n, "epochs": n / c.tokens} for n, c in zip(tokens[1:], self.corpora[1:])],
        }


def open_all(job: Job, chat: Chat, stack: ExitStack) -> list[Corpus]:
    """The new corpus and the old ones, each once and each in the base's tokens."""
    folders = [("the new corpus", job.folder("new"))]
    folders += [(f"old corpus {i}", folder) for i, folder in enumerate(job.folders("old"), start=1)]
    corpora: dict[str, Corpus] = {}
    for label, folder in folders:
        corpus = open_corpus(folder, label, stack)
        check_vocabulary(chat, corpus)
        if corpus.digest in corpora:
            twin = corpora[corpus.digest].label
            raise StageError(f"{label} is the same text as {twin}; give each corpus once")
        corpora[corpus.digest] = corpus
    return list(corpora.values())


def lay_out(recipe: Continue, corpora: list[Corpus], pointers: Mapping[str, int]) -> Plan:
    """The plan of a run whose base has read the corpora up to `pointers`."""
    new, *old = corpora
    if recipe.replay and not old:
        raise StageError(f"replay is {recipe.replay:g} but no old corpus was given; give one, or set replay: 0")
    if recipe.weights and len(recipe.weights) != len(old):
        raise StageError(f"{len(recipe.weights)} weights for {len(old)} old corpora; want one each, or none")
    for corpus in corpora:
        if corpus.tokens <= recipe.sequence_length:
            found = f"{corpus.label} has {corpus.tokens} tokens, less than one sequence of {recipe.sequence_length}"
            raise StageError(f"{found}; shorten sequence_length or leave it out")
    mix = Mix(share(recipe.replay), weigh(recipe.weights, [corpus.tokens for corpus in old]))
    wanted = recipe.epochs * new.tokens / (recipe.batch_size * recipe.sequence_length)
    begins = tuple(int(pointers.get(corpus.digest, 0)) for corpus in corpora)
    steps = recipe.steps or math.ceil(round(wanted, 9))
    return Plan(tuple(corpora), mix, begins, steps, recipe.batch_size, recipe.sequence_length)


def read_card(folder: Path) -> dict[str, Any]:
    """What an earlier run left beside its model; empty for a model that was not continued."""
    path = folder / CARD
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _optimizer(recipe: Continue) -> Optimizer:
    """AdamW's settings as the loop takes them; its schedule is replaced by `Rates`."""
    return Optimizer(learning_rate=recipe.schedule.peak, **recipe.adam.model_dump())


def _trainer(job: Job, recipe: Continue, made: list[Any]) -> Callable[..., Any]:
    """What makes the trainer of the run, and keeps it in `made` for what is to be published at the end."""
    before = job.folder("previous") if recipe.optimizer_state == "carried" and "previous" in job.inputs else None
    keeps = recipe.optimizer_state == "carried" or recipe.publish_optimizer
    if recipe.optimizer_state == "carried" and before is None:
        raise StageError(
            "optimizer_state is carried but no previous run was given; give it, or set optimizer_state: reset"
        )
    if keeps and job.runtime.launcher != "local":
        raise StageError(f"optimizer state is carried by one process only; runtime.launcher is {job.runtime.launcher}")

    def make(model: Any, optimizer: Optimizer, total: int, runtime: Any, dtype: str) -> Any:
        if keeps:
            trainer: Any = Carried(model, optimizer, total, dtype, before)
        else:
            trainer = trainer_for(model, optimizer, total, runtime, dtype)
        trainer.schedule = Rates(recipe.schedule, total)
        made.append(trainer)
        return trainer

    return make


def _observer(job: Job, recipe: Continue, model: Any, chat: Chat, plan: Plan) -> Callable[[int], Mapping[str, float]]:
    """Adds to the curve what was read so far and, every so many steps, held-out losses. Curve names: new, old-1, .."""
    names = ["new", *(f"old-{i}" for i in range(1, len(plan.corpora)))]
    every = recipe.measure_every
    if every and job.runtime.launcher != "local":
        raise StageError(f"held-out losses in the curve need one process; runtime.launcher is {job.runtime.launcher}")
    held = [heldout.documents(corpus, recipe.measure_documents) for corpus in plan.corpora] if every else []

    def observe(step: int) -> dict[str, float]:
        taken = plan.mix.taken(step * plan.size)
        row: dict[str, float] = {"replayed": sum(taken[1:]) / sum(taken)}
        if not every or (step % every and step not in (1, plan.steps)):
            return row
        model.eval()
        for name, found in zip(names, held):
            values = heldout.nats(
                model, chat, found, length=plan.length, rows=job.runtime.score_rows, device=job.runtime.device
            )
            row[f"nats/{name}"] = float(sum(v.sum() for v in values)) / sum(len(d.ids) for d in found)
        model.train()
        return row

    return observe


def _check_length(model: Any, length: int) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise StageError(f"sequence_length {length} is more than the {most} positions of the model; shorten it")
