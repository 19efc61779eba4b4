"""Pairs of a strong model's response and a weak one's, without a judge, against the strong responses alone."""

from benchmarks.claims.lab import Effect, Lab
from configs import Entrant
from configs.recipes import Select
from tasks import annotate, sample, score, select, train

TEXT = "DPO on strong-against-weak pairs beats SFT on the strong responses"
SOURCE = "Xu et al. 2023, table 3"
MATTERS, UNIT = 0.02, "gold"
STRONG, WEAK = "rejection", "v0"  # the student starts from the weak one
PROMPTS = 1000  # of both
TEMPERATURE = 0.8


def stages(lab: Lab) -> list:
    if "dpo-strong-weak" not in lab.policies:
        _lay_out(lab)
    return [lab.evaluation("dpo-strong-weak"), lab.evaluation("sft-strong"), lab.evaluation(STRONG)]


def _lay_out(lab: Lab) -> None:
    shared, run, strong = lab.shared, lab.run, lab.policy(STRONG)
    recipe = lab.campaign.annotate.model_copy(
        update={"annotator": "tier", "prompts": PROMPTS, "temperatures": (TEMPERATURE, TEMPERATURE)}
    )
    weak = lab.policy(WEAK)
    pairs = annotate(run, shared.label("tier-annotate"), recipe, policy_a=strong, policy_b=weak, prompts=shared.prompts)
    given = Entrant(method="dpo", family="preference", rows="preferences")
    lab.policy("dpo-strong-weak", entrant=given, among=lab.variant("tier", preferences=pairs))
    entry = lab.ready("rejection").rounds[0]
    assert entry.sample and entry.train
    drawing = entry.sample.model_copy(update={"prompts": PROMPTS, "k": 1, "temperature": TEMPERATURE})
    drawn = sample(run, shared.label("strong-sample"), drawing, policy=strong, prompts=shared.prompts, probe=None)
    scored = score(run, shared.label("strong-score"), run.score_recipe(), rewards=shared.rewards, samples=[drawn])
    rows = select(run, shared.label("strong-select"), Select(method="rejection"), scored=[scored])  # of one: itself
    lab.policies["sft-strong"] = train(
        run, shared.label("sft-strong"), entry.train, model=shared.start, rows=[rows], replay=shared.demonstrations
    )


def measure(lab: Lab) -> Effect:
    found = lab.better("dpo-strong-weak", "sft-strong")
    return Effect(found.value, found.draws, found.count, f"{found.note}; strong {lab.held_out(STRONG).mean():.3f}")
