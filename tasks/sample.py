"""A policy's responses: the probe of the temperature, and K a prompt."""

from collections.abc import Sequence

from configs.recipes import Probe, Sample
from tasks.run import Artifact, Run

VERSION = 1


def probe(
    run: Run, label: str, recipe: Probe, *, policy: Artifact, rewards: Sequence[Artifact], prompts: Artifact
) -> Artifact:
    """probe.json: the temperature with the best expected maximum of K."""
    return run.stage(
        label, "probe", recipe, kind="rows", version=VERSION, policy=policy, rewards=rewards, prompts=prompts
    )


def sample(
    run: Run, label: str, recipe: Sample, *, policy: Artifact, prompts: Artifact, probe: Artifact | None
) -> Artifact:
    """Response rows, one file a shard."""
    return run.stage(label, "sample", recipe, kind="rows", version=VERSION, policy=policy, prompts=prompts, probe=probe)
