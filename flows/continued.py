"""The order of a refresh's stages: look, pack, train on, measure, carry the chat model over, decide. No numbers, no paths."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.refresh import Refresh
from tasks import Artifact, Run, continue_pretraining, decide, evaluate, measure, pack, train, transplant
from tasks.chain import Begun, Chain, Entry
from tasks.refreshing import look_again, look_for, old_documents, once, training_of
from tasks.standing import Standing, find_given, given


def refresh(run: Run, plan: Refresh, standing: Standing, chain: Chain) -> list[Entry]:
    """Finish the refresh that was begun and died, then do one on what is new since; returns those that were made."""
    known = chain.entries()
    already = len(known)
    if (begun := chain.begun(already + 1)) is not None:
        known.append(_refresh(run, plan, standing, chain, known, begun))
    if (begun := look_for(run, plan, standing, chain, known)) is not None:
        known.append(_refresh(run, plan, standing, chain, known, begun))
    return known[already:]


def lay_out(run: Run, plan: Refresh, standing: Standing, chain: Chain, *, last: bool = False) -> None:
    """Name the stages of the refresh that was begun and died, else of one on what is new since; or of the last finished one."""
    known = chain.entries()
    if last:
        known = known[:-1]
    begun = chain.begun(len(known) + 1) or (None if last else look_for(run, plan, standing, chain, known))
    if begun is not None:
        _stages(run, plan, standing, known, begun)


@dataclass(frozen=True)
class _Laid:
    """A refresh's results, by what they are to its record."""

    look: Artifact
    corpus: Artifact
    base: Artifact
    losses: Artifact
    candidates: dict[str, Artifact]
    decision: Artifact


def _stages(run: Run, plan: Refresh, standing: Standing, known: Sequence[Entry], begun: Begun) -> _Laid:
    """One refresh, from the documents that it was begun with to the decision."""
    name, first = f"r{begun.number}", not known
    before = standing.base if first else given(run.store, f"r{known[-1].number}-base", known[-1].base)
    look = _look(run, plan, standing, known, begun)
    old = [_packed(run, plan, standing, i, rows) for i, rows in enumerate(old_documents(run, plan, standing))]
    old += [given(run.store, f"r{entry.number}-pack", entry.corpus) for entry in known]
    corpus = pack(run, f"{name}-pack", plan.pack, documents=look, tokenizer=standing.base)
    base = continue_pretraining(
        run,
        f"{name}-base",
        training_of(plan, first),
        model=before,
        new=corpus,
        old=old if plan.training.replay else (),
        previous=None if first else before,
    )
    losses = _measure(run, plan, name, [before, base], [*old, corpus])
    carried = transplant(
        run, f"{name}-transplant", plan.transplant, chat=standing.chat, old_base=standing.base, new_base=base
    )
    candidates = {f"{name}-transplant": carried, f"{name}-rebuilt": standing.rebuild(run, f"{name}-rebuilt", base)}
    recipe = plan.decide.model_copy(
        update={
            "old": standing.version,
            "candidates": tuple(candidates),
            "before": "before",
            "after": "after",
            "new": f"{name}-pack",
        }
    )
    judged = [compare_with_old(run, standing, label, model) for label, model in candidates.items()]
    decision = decide(run, f"{name}-decide", recipe, measure=losses, old=standing.evaluation, candidates=judged)
    return _Laid(look, corpus, base, losses, candidates, decision)


def _refresh(run: Run, plan: Refresh, standing: Standing, chain: Chain, known: Sequence[Entry], begun: Begun) -> Entry:
    """One refresh, done and recorded."""
    laid = _stages(run, plan, standing, known, begun)
    found = laid.decision.summary() or {}
    entry = Entry(
        number=begun.number,
        base=laid.base.ref.key,
        gather=laid.look.ref.key,
        corpus=laid.corpus.ref.key,
        measure=laid.losses.ref.key,
        decision=laid.decision.ref.key,
        action=str(found["action"]),
        chat=laid.candidates[str(found["candidate"])].ref.key,
        config=plan.model_dump(mode="json", exclude={"runtime"}),
    )
    chain.close(entry)
    return entry


def compare_with_old(run: Run, standing: Standing, label: str, model: Artifact) -> Artifact:
    """A chat model on the held-out prompts, under the campaign's reward models, beside the old chat model."""
    recipe = standing.recipe.model_copy(update={"version": label, "earlier": (standing.version,)})
    return evaluate(
        run,
        f"{label}-evaluate",
        recipe,
        policy=model,
        reference=standing.reference,
        rewards=standing.rewards,
        prompts=standing.prompts,
        earlier=[standing.evaluation],
    )


def short_sft(run: Run, plan: Refresh, standing: Standing, entry: Entry) -> Artifact:
    """The follow-up that costs little: the best candidate trained a little more on the campaign's demonstrations."""
    label = f"r{entry.number}-short-sft"
    demonstrations = standing.demonstrations()
    assert demonstrations is not None, "a chat model has been trained on demonstrations"
    chat = given(run.store, f"r{entry.number}-chat", entry.chat)
    made = train(run, label, plan.short_sft, model=chat, rows=[demonstrations])
    return compare_with_old(run, standing, label, made)


def _look(run: Run, plan: Refresh, standing: Standing, known: Sequence[Entry], begun: Begun) -> Artifact:
    """The look that the refresh was begun with; looked for again if its result is gone from the store."""
    label = f"r{begun.number}-gather"
    if label in run.artifacts:
        return run.artifacts[label]
    found = find_given(run.store, label, begun.gather)
    return found or look_again(run, plan, standing, known, begun.number, begun.recipe)


def _packed(run: Run, plan: Refresh, standing: Standing, i: int, rows: Artifact) -> Artifact:
    """One of the corpora that the campaign's base was trained on, in the order in which it was read then."""
    recipe = plan.pack.model_copy(update={"seed": standing.seed_of_base(plan.pack.seed)})
    return once(run, f"r0-pack-{i}", lambda label: pack(run, label, recipe, documents=rows, tokenizer=standing.base))


def _measure(run: Run, plan: Refresh, name: str, models: Sequence[Artifact], corpora: Sequence[Artifact]) -> Artifact:
    """The old and the new base on the held-out text of every corpus that has some; a plan takes it that a new one will."""
    held = [corpus for corpus in corpora if (corpus.summary() or {"held_out": run.mode == "plan"}).get("held_out")]
    recipe = plan.measure.model_copy(
        update={"labels": ("before", "after"), "corpora": tuple(corpus.label for corpus in held)}
    )
    return measure(run, f"{name}-measure", recipe, models=models, corpora=held)
