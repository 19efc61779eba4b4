"""A rare skill over three rounds: with the samples of all rounds, and with those of the previous round alone."""

from benchmarks.claims.lab import Effect, Lab, mean_effect
from benchmarks.world_check import golds, laid_out, last_accepted, previous_only, rhymes
from tasks import Run

TEXT = "samples of all rounds protect the minority skill"
SOURCE = "Llama 2, 3.2.3"
MATTERS, UNIT = 0.2, "gold of rhymes, all rounds less the previous one"
ARMS = {"all": lambda raw: None, "previous": previous_only}


def campaigns(lab: Lab) -> dict[str, Run]:
    """configs/world.yaml under this seed, as far as it can be laid out: its gates say from what a round starts."""
    return {name: laid_out(lab.run.store, lab.seed, change) for name, change in ARMS.items()}


def stages(lab: Lab) -> list:
    return [stage for run in campaigns(lab).values() for stage in (run.versions["v3"], *run.verdicts.values())]


def measure(lab: Lab) -> Effect:
    """Gold of the last accepted versions on 400 rhymes that no stage has seen, paired."""
    runs = campaigns(lab)
    prompts = list(rhymes(runs["all"]))
    skill = {name: [gold for (gold,) in golds(run, last_accepted(run), prompts)] for name, run in runs.items()}
    start = [gold for (gold,) in golds(runs["all"], "v0", prompts)]
    mean = lambda values: sum(values) / len(values)
    note = f"v0 {mean(start):.2f}, all rounds {mean(skill['all']):.2f}, previous {mean(skill['previous']):.2f}"
    return mean_effect([a - b for a, b in zip(skill["all"], skill["previous"], strict=True)], note)
