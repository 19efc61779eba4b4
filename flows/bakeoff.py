"""The flow `bake-off`: every method from the same SFT model, reward models, prompts and budget, and who is best."""

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from configs import Campaign, Competitor, ConfigError, Round, competitors, describe, load, load_runtime
from configs.recipes import Rank
from flows.iterative import RUNNER
from flows.rounds import base_of, learned, rows_of
from tasks import (
    Artifact,
    Run,
    annotate,
    certify,
    connect,
    evaluate,
    ingest,
    online,
    rank,
    reward,
    sample,
    score,
    screen,
    select,
    trackers,
    train,
)
from tasks.launch import stop_all, warm_up
from tasks.outcome import publish
from tasks.watch import listener

START = "v0"


class Shared:
    """What the competitors of one seed have in common; every one of its stages is computed once."""

    def __init__(self, run: Run, campaign: Campaign, seed: int) -> None:
        self.run, self.campaign, self.mark = run, campaign, f"s{seed}"
        c = campaign
        self.prompts = self.rows("prompts")
        self.demonstrations = self.rows("demonstrations")
        documents = self.rows("documents") if any(b.pretrain for b in (c.base, *c.reward_bases.values())) else None
        rankings = self.rows("rankings") if c.data.rankings else None
        own = {k: base_of(run, self.label(f"{k}-base"), one, documents) for k, one in sorted(c.reward_bases.items())}
        self.base = base_of(run, self.label("base"), c.base, documents)
        self.start = train(run, self.label(START), c.sft, model=self.base, rows=[self.demonstrations])
        pairs = self.rows("preferences") if c.annotate.annotator == "dataset" else None
        screen(
            run,
            self.label("leakage"),
            prompts=self.prompts,
            demonstrations=self.demonstrations,
            preferences=pairs,
        )
        self.preferences = annotate(
            run,
            self.label("annotate"),
            c.annotate,
            policy_a=None if pairs else self.start,
            policy_b=None if pairs else self.start,
            prompts=self.prompts,
            preferences=pairs,
        )
        recipes = sorted(c.rewards.items())
        lessons = [learned(recipe.method, [self.preferences], rankings) for _, recipe in recipes]
        self.rewards = [
            reward(run, self.label(kind), recipe, model=own.get(kind, self.start), preferences=rows)
            for (kind, recipe), rows in zip(recipes, lessons)
        ]
        certify(
            run,
            self.mark,
            rewards=self.rewards,
            before=(),
            policy=self.start,
            prompts=self.prompts,
            lessons=lessons,
        )
        self.scored: dict[str, Artifact] = {}

    def label(self, name: str) -> str:
        return f"{self.mark}-{name}"

    def rows(self, rows: str) -> Artifact:
        return ingest(self.run, self.label(rows), rows_of(self.campaign, rows))

    def pool(self, entry: Round, name: str, policy: Artifact) -> Artifact:
        """Scored samples of a policy under the round's part of the prompts; made once for all who ask for the same."""
        assert entry.sample is not None
        key = f"{policy.ref.key}:{entry.sample.model_dump_json()}"
        if key not in self.scored:
            made = name if self.scored else "pool"
            drawn = sample(
                self.run, self.label(f"{made}-sample"), entry.sample, policy=policy, prompts=self.prompts, probe=None
            )
            self.scored[key] = score(
                self.run, self.label(f"{made}-score"), self.run.score_recipe(), rewards=self.rewards, samples=[drawn]
            )
        return self.scored[key]

    def labelled(self) -> Artifact:
        """The demonstrations under the reward models."""
        if "given" not in self.scored:
            self.scored["given"] = score(
                self.run,
                self.label("given-score"),
                self.run.score_recipe(),
                rewards=self.rewards,
                samples=[self.demonstrations],
            )
        return self.scored["given"]

    def judge(self, name: str, policy: Artifact) -> Artifact:
        recipe = self.campaign.evaluate.model_copy(update={"version": name, "earlier": ()})
        label = self.label(name)
        self.run.versions[label] = policy
        self.run.evaluations[label] = evaluate(
            self.run,
            self.label(f"{name}-evaluate"),
            recipe,
            policy=policy,
            reference=self.start,
            rewards=self.rewards,
            prompts=self.prompts,
            earlier=(),
        )
        return self.run.evaluations[label]


def compete(run: Run) -> Artifact:
    """Lay out the whole bake-off; returns the ranking."""
    bake_off = run.campaign.bake_off
    assert bake_off is not None
    evaluations: list[Artifact] = []
    names: tuple[str, ...] = ()
    for seed in bake_off.seeds:
        campaign, entered = competitors(run.campaign, seed)
        shared = Shared(run, campaign, seed)
        names = (START, *(one.name for one in entered))
        evaluations.append(shared.judge(START, shared.start))
        evaluations += [shared.judge(one.name, trained(run, shared, one)) for one in entered]
        run.reached(shared.mark)
    recipe = Rank(
        versions=names,
        seeds=bake_off.seeds,
        start=START,
        planted=bake_off.planted,
        bootstrap=bake_off.bootstrap,
        level=bake_off.level,
    )
    return rank(run, "ranking", recipe, evaluations=evaluations)


def trained(run: Run, shared: Shared, competitor: Competitor, start: Artifact | None = None) -> Artifact:
    """The competitor's model after all its turns; each starts from the one before it, the first from the SFT model."""
    policy = start or shared.start
    for entry in competitor.rounds:
        policy = _turn(run, shared, entry, policy)
    return policy


def _turn(run: Run, shared: Shared, entry: Round, policy: Artifact) -> Artifact:
    method, name = describe(entry.method), str(entry.version)
    assert entry.train and entry.select and entry.online, "the loader fills every section"
    if method.loop == "online":
        return online(
            run,
            shared.label(name),
            entry.online,
            policy=policy,
            reference=policy,
            rewards=shared.rewards,
            prompts=shared.prompts,
            examples=shared.demonstrations if entry.online.ptx_weight > 0 else None,
        )
    rows = shared.demonstrations if entry.rows == "demonstrations" else shared.preferences
    if entry.rows == "samples" or (entry.rows == "demonstrations" and method.selects):
        scored = shared.pool(entry, name, policy) if entry.rows == "samples" else shared.labelled()
        rows = select(run, shared.label(f"{name}-select"), entry.select, scored=[scored])
    replay = shared.demonstrations if "messages" in method.columns and entry.rows == "samples" else None
    reference = policy if "reference_logp" in method.forwards else None
    return train(run, shared.label(name), entry.train, model=policy, rows=[rows], replay=replay, reference=reference)


def _run_name() -> str:
    """The bake-off's name and seeds, as people see them in the UI."""
    given = flow_run.parameters
    seeds = given.get("seeds")
    return Path(str(given.get("config"))).stem + (f", seeds {' '.join(map(str, seeds))}" if seeds else "")


@flow(
    name="bake-off",
    flow_run_name=_run_name,
    task_runner=RUNNER,
    persist_result=False,
)
def compare(
    config: str = "bake-off", seeds: list[int] | None = None, store: str | None = None, runtime: str | None = None
) -> str:
    """Let all methods of a bake-off compete, reusing every stage that the store has, and rank them.

    Args:
        config: a YAML file with a section `bake_off`, or the name of one that comes with the project.
        seeds: instead of the config's.
        store: URL of the object store, instead of the config's; file:///... or s3://bucket/prefix.
        runtime: a YAML file with another `runtime:`.

    Returns:
        The key of the ranking.
    """
    warm_up()
    campaign = load(config, seeds=seeds)
    if campaign.bake_off is None:
        raise ConfigError(f"{config} has no section bake_off; run it with llama2-style/iterative")
    chosen = load_runtime(runtime) if runtime else campaign.runtime
    trackers.check(chosen)
    run = Run(campaign, connect(store, chosen), chosen, listen=listener())
    try:
        compete(run)
        run.settle()
        return publish(run)
    except BaseException:
        run.cancelled.set()
        stop_all()
        raise


if __name__ == "__main__":
    try:
        compare()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
