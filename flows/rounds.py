"""The order of a campaign's stages: base, SFT, then one round after another. No numbers, no paths, no torch."""

from collections.abc import Sequence

from configs import Base, Campaign, Round, describe
from configs.recipes import Ingest
from flows.judging import APART, apart, judge_models, side_by_side
from tasks import (
    Artifact,
    Run,
    accepted,
    adopt,
    annotate,
    certify,
    compare,
    evaluate,
    gate,
    ingest,
    leads,
    online,
    pretrain,
    probe,
    reward,
    sample,
    score,
    screen,
    select,
    train,
)


def align(run: Run, base: Artifact | None = None) -> Artifact:
    """Lay out the whole campaign, on its own base or on the given one; returns the comparison of all its versions."""
    c = run.campaign
    rows = _rows(run)
    prompts, demonstrations = rows["prompts"], rows.get("demonstrations")
    given, rankings = rows.get("preferences"), rows.get("rankings")
    screen(run, "leakage", prompts=prompts, demonstrations=demonstrations, preferences=given)
    base = base or base_of(run, "base", c.base, rows.get("documents"))
    sft = train(run, "v0", c.sft, model=base, rows=[demonstrations]) if demonstrations else base

    own = {
        kind: base_of(run, f"{kind}-base", one, rows.get("documents")) for kind, one in sorted(c.reward_bases.items())
    }
    run.versions = {"base": base, "v0": sft}
    rewards: list[Artifact] = []
    preferences: list[Artifact] = []
    drawn: list[Artifact] = []
    sound, best = ["v0"], "v0"  # accepted versions, the one to build upon last; the best of them
    models: dict[str, list[Artifact]] = {}  # round -> its reward models
    steered: dict[str, str] = {}  # version -> the round whose reward models steered it
    _evaluate(run, "base", rewards, prompts, [])
    _evaluate(run, "v0", rewards, prompts, [])
    run.reached("v0")
    judges = judge_models(run, rows, sft)

    for i, entry in enumerate(c.rounds, start=1):
        version, policy = str(entry.version), run.versions[sound[-1]]
        before = _before(run, entry, sound)
        if entry.annotate and entry.annotate != "none":
            pair = (None, None) if entry.annotate.annotator == "dataset" else (policy, before)
            preferences.append(
                annotate(
                    run,
                    f"r{i}-annotate",
                    entry.annotate,
                    policy_a=pair[0],
                    policy_b=pair[1],
                    prompts=prompts,
                    preferences=given,
                    rewards=rewards if entry.annotate.annotator == "reward_model" else None,
                )
            )
        if entry.reward == "refresh" and (preferences or rankings):
            replaced = rewards
            recipes = sorted(c.rewards.items())
            lessons = [learned(recipe.method, preferences, rankings) for _, recipe in recipes]
            rewards = [
                reward(run, f"r{i}-{kind}", recipe, model=own.get(kind, policy), preferences=rows)
                for (kind, recipe), rows in zip(recipes, lessons)
            ]
            certify(
                run,
                f"r{i}",
                rewards=rewards,
                before=replaced,
                policy=policy,
                prompts=prompts,
                lessons=lessons,
            )
            models[f"r{i}"] = rewards
        steered[version] = next(reversed(models), "")
        run.reached(f"r{i}-rewards")
        run.versions[version] = _round(run, i, entry, policy, rewards, preferences, drawn, prompts, demonstrations)
        _evaluate(run, version, rewards, prompts, judges)
        run.verdicts[version] = gate(run, f"{version}-gate", c.gate, version=version, best=best)
        if accepted(run, run.verdicts[version]):
            sound.append(version)
            best = version if leads(run.verdicts[version]) else best
        elif run.rejected:
            break  # what there is will still be compared
        else:
            sound = [*(label for label in sound if label != best), best]
        run.reached(version)

    side_by_side(run, models, steered, judges)
    evaluations = list(run.evaluations.values())
    recipe = c.compare.model_copy(update={"versions": tuple(run.evaluations)})
    return compare(run, "compare", recipe, versions=evaluations, rewards=rewards, judges=judges)


def _before(run: Run, entry: Round, sound: list[str]) -> Artifact:
    """The policy that writes the other response of a pair: the accepted version before the last."""
    if len(sound) > 1:
        return run.versions[sound[-2]]
    by_strength = entry.annotate and entry.annotate != "none" and entry.annotate.annotator == "tier"
    return run.versions["base" if by_strength else sound[-1]]  # tiers need a weaker model, and SFT's base is one


def _round(
    run: Run,
    i: int,
    entry: Round,
    policy: Artifact,
    rewards: list[Artifact],
    preferences: list[Artifact],
    drawn: list[Artifact],
    prompts: Artifact,
    demonstrations: Artifact | None,
) -> Artifact:
    """One round's model: an online method from the policy, or an offline one on rows it selects or on those given."""
    method, version = describe(entry.method), str(entry.version)
    imitates = "messages" in method.columns
    start = {"base": run.versions["base"], "sft": run.versions["v0"], "accepted": policy}[
        entry.start or ("base" if method.loop == "offline" and imitates else "accepted")
    ]
    assert entry.sample and entry.select and entry.train and entry.online, "the loader fills every section"
    if method.loop == "online":
        return online(
            run,
            version,
            entry.online,
            policy=start,
            reference=start,
            rewards=rewards,
            prompts=prompts,
            examples=demonstrations,
        )
    given = [demonstrations] if entry.rows == "demonstrations" and demonstrations else []
    rows, judged = given or preferences, given if method.selects else []
    if entry.rows == "samples":
        tried = None
        if entry.probe and entry.probe != "none":
            tried = probe(run, f"r{i}-probe", entry.probe, policy=policy, rewards=rewards, prompts=prompts)
        drawn.append(sample(run, f"r{i}-sample", entry.sample, policy=policy, prompts=prompts, probe=tried))
        judged = drawn
    if judged:
        scored = score(run, f"r{i}-score", run.score_recipe(), rewards=rewards, samples=judged)
        rows = [select(run, f"r{i}-select", entry.select, scored=[scored])]
    reference = start if "reference_logp" in method.forwards else None
    return train(
        run,
        version,
        entry.train,
        model=start,
        rows=rows,
        replay=demonstrations if imitates else None,
        reference=reference,
    )


def base_of(run: Run, label: str, base: Base, documents: Artifact | None) -> Artifact:
    """A base model, of the policy or of a reward model that has its own."""
    if base.adopt is not None:
        return adopt(run, label, base.adopt)
    assert base.pretrain is not None and documents is not None
    return pretrain(run, label, base.pretrain, documents=documents)


def learned(method: str, preferences: Sequence[Artifact], rankings: Artifact | None) -> Sequence[Artifact]:
    """What a reward model of this method learns from: all pairs so far, or the given rankings."""
    return [rankings] if "responses" in describe(method).columns and rankings is not None else preferences


def rows_of(c: Campaign, rows: str) -> Ingest:
    """How a campaign's data of one kind are read."""
    return Ingest(
        rows={"demonstrations": "examples"}.get(rows, rows),  # type: ignore[arg-type]  # one of its literals
        sources=getattr(c.data, rows),
        held_out=c.data.held_out,
        max_rejected=c.data.max_rejected,
        seed=c.seed,
    )


def _rows(run: Run) -> dict[str, Artifact]:
    """The campaign's data by kind, all of it read before any model is touched: bad rows end a run in seconds."""
    c, found = run.campaign, {}
    bases = [c.base, *c.reward_bases.values()]
    for rows in ("documents", "prompts", "demonstrations", "preferences", "rankings"):
        if not getattr(c.data, rows) or (rows == "documents" and not any(base.pretrain for base in bases)):
            continue
        recipe = rows_of(c, rows)
        if c.judge_model and apart(run) == rows:
            recipe = recipe.model_copy(update={"apart": c.judge_model.share})
            found[APART + rows] = ingest(run, APART + rows, recipe.model_copy(update={"part": "apart"}))
        found[rows] = ingest(run, rows, recipe)
    for artifact in found.values():
        artifact.made()
    return found


def _evaluate(run: Run, version: str, rewards: list[Artifact], prompts: Artifact, judges: list[Artifact]) -> None:
    """Evaluate a version against every earlier one."""
    recipe = run.campaign.evaluate.model_copy(update={"version": version, "earlier": tuple(run.evaluations)})
    earlier = list(run.evaluations.values())
    run.evaluations[version] = evaluate(
        run,
        f"{version}-evaluate",
        recipe,
        policy=run.versions[version],
        reference=run.versions["v0"],
        rewards=rewards,
        prompts=prompts,
        earlier=earlier,
        judges=judges,
    )
